//! podman's side of a store: whether it is named in storage.conf, and whether its server lives.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Finding, Setting};
use crate::podman::commands;
use crate::serve::status::State;
use crate::sys::outside;

/// Those of the machine, which is asked where the user's own is not there.
const OF_MACHINE: [&str; 2] = ["/etc/containers/storage.conf", "/usr/share/containers/storage.conf"];

/// Bytes of a storage.conf.
const LONGEST: u64 = 1 << 20;

const READ_ABOUT: &str = "see `crfs store config` and docs/podman.md";

struct Facts {
    root: PathBuf,
    store: Store,
    conf: Conf,
}

enum Store {
    /// Nobody has made one.
    None,
    Unserved,
    Is(State),
    Unknown(String),
}

enum Conf {
    Missing,
    Broken { path: PathBuf, why: String },
    Says { path: PathBuf, said: Said },
}

/// What a storage.conf says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Said {
    driver: Option<String>,
    mount_program: Option<String>,
    stores: Vec<PathBuf>,
}

pub(super) fn look(setting: &Setting) -> Vec<Finding> {
    let paths = match &setting.store {
        Ok(paths) => paths,
        Err(why) => return judge_unknown(why),
    };
    let store = match commands::status(paths) {
        Ok(Some(status)) => Store::Is(status.state),
        Ok(None) if paths.state.join("store.json").exists() => Store::Unserved,
        Ok(None) => Store::None,
        Err(error) => Store::Unknown(error.chain()),
    };
    judge(&Facts { root: paths.root.clone(), store, conf: conf(&setting.storage_conf) })
}

fn conf(own: &Path) -> Conf {
    let paths = std::iter::once(own).chain(OF_MACHINE.iter().map(Path::new));
    for path in paths {
        let why = match outside::read(path, LONGEST) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => error.to_string(),
            Ok(text) => match said(&String::from_utf8_lossy(&text)) {
                Ok(said) => return Conf::Says { path: path.to_owned(), said },
                Err(why) => why,
            },
        };
        return Conf::Broken { path: path.to_owned(), why };
    }
    Conf::Missing
}

/// containers-storage.conf(5).
fn said(text: &str) -> Result<Said, String> {
    let file = DeTable::parse(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        format!("line {}: {}", before.matches('\n').count().saturating_add(1), error.message())
    })?;
    let storage = table(file.get_ref(), "storage");
    let options = storage.and_then(|storage| table(storage, "options"));
    let overlay = options.and_then(|options| table(options, "overlay"));
    let in_overlay = |key| overlay.and_then(|overlay| string(overlay, key));
    let in_options = |key| options.and_then(|options| string(options, key));
    let listed = |key| {
        let list = options.and_then(|options| options.get(key)).and_then(|list| list.get_ref().as_array());
        list.into_iter().flat_map(|all| all.iter()).filter_map(|one| one.get_ref().as_str())
    };
    // podman's own suffix says how images are named there.
    let layers = listed("additionallayerstores").map(|path| Path::new(path.strip_suffix(":ref").unwrap_or(path)));
    let layers = layers.filter(|path| path.ends_with("layers")).filter_map(Path::parent).map(Path::to_owned);
    Ok(Said {
        driver: storage.and_then(|storage| string(storage, "driver")),
        mount_program: in_overlay("mount_program").or_else(|| in_options("mount_program")),
        stores: listed("additionalimagestores").map(PathBuf::from).chain(layers).collect(),
    })
}

fn table<'a, 'b>(of: &'a DeTable<'b>, key: &str) -> Option<&'a DeTable<'b>> {
    of.get(key).and_then(|found: &Spanned<DeValue<'_>>| found.get_ref().as_table())
}

fn string(of: &DeTable<'_>, key: &str) -> Option<String> {
    Some(of.get(key)?.get_ref().as_str()?.to_owned()).filter(|text| !text.is_empty())
}

fn judge_unknown(why: &str) -> Vec<Finding> {
    vec![Finding::note(
        format!("the store of crfs cannot be looked for: {why}"),
        "nobody knows whether podman can use it",
        "give its directory with --root",
    )]
}

fn judge(facts: &Facts) -> Vec<Finding> {
    let root = facts.root.display();
    let listed = match &facts.conf {
        Conf::Says { path, said } if is_listed(said, &facts.root) => Some((path, said)),
        _ => None,
    };
    let store = judge_store(facts, listed.is_some());
    let rest = match (&facts.conf, listed, &facts.store) {
        (Conf::Broken { path, why }, ..) => vec![Finding::problem(
            format!("{} cannot be used: {why}", path.display()),
            "podman does not start, or does not find crfs's store",
            "mend the line that is named; `man 5 containers-storage.conf`",
        )],
        (_, Some((path, said)), _) => judge_listing(path, said),
        // It is there, and podman does not know of it.
        (_, None, Store::Is(_)) => vec![Finding::note(
            format!(
                "no storage.conf of this user has {root} in additionalimagestores, or its layers in additionallayerstores"
            ),
            "podman does not see the images of the store, unless it is told on its command line",
            "put into storage.conf what `crfs store config` prints",
        )],
        _ => Vec::new(),
    };
    std::iter::once(store).chain(rest).collect()
}

fn is_listed(said: &Said, root: &Path) -> bool {
    said.stores.iter().any(|store| store == root || fs::canonicalize(store).is_ok_and(|store| store == root))
}

fn judge_store(facts: &Facts, is_listed: bool) -> Finding {
    let root = facts.root.display();
    let start = "start its server: systemctl start crfs-store, or `crfs store serve`";
    match &facts.store {
        Store::None if is_listed => Finding::problem(
            format!("storage.conf names the store {root}, and there is none"),
            "podman fails or warns with every command",
            format!("{start}; or take it out of there"),
        ),
        Store::None => Finding::ok("there is no store for podman"),
        Store::Unserved if is_listed => Finding::problem(
            format!("the store {root} is in storage.conf, and no server runs"),
            "podman cannot run its images, and `podman system` commands may fail",
            start,
        ),
        Store::Unserved => {
            Finding::note(format!("no server runs for the store {root}"), "podman cannot use its images", start)
        }
        Store::Is(State::Serving) => Finding::ok(format!("the store {root} is served")),
        Store::Is(State::Dead) => Finding::problem(
            format!("the server of the store {root} is gone, and its mount is still there"),
            "containers that use it read errors",
            start,
        ),
        Store::Is(State::Silent | State::Failing) => Finding::problem(
            format!("the server of the store {root} does not answer, or dies again and again"),
            "containers that use it wait, and read errors after --io-deadline",
            format!("see {root}/crfs/server.log, and `crfs status`"),
        ),
        Store::Unknown(why) => Finding::problem(
            format!("the store {root} cannot be asked: {why}"),
            "podman may not be able to use it",
            READ_ABOUT,
        ),
    }
}

/// What a storage.conf that names the store says besides.
fn judge_listing(path: &Path, said: &Said) -> Vec<Finding> {
    let path = path.display();
    let mut found = vec![Finding::ok(format!("{path} names the store"))];
    if let Some(driver) = said.driver.as_deref().filter(|driver| *driver != "overlay") {
        found.push(Finding::problem(
            format!("{path} has the storage driver {driver:?}"),
            "podman does not see the images of crfs's store, which are for overlay",
            format!("set driver = \"overlay\" in {path}; podman's own images are pulled again then"),
        ));
    }
    if let Some(program) = &said.mount_program {
        let is_there = Path::new(program).exists();
        found.push(match is_there {
            true => Finding::ok(format!("podman mounts containers by {program}")),
            false => Finding::problem(
                format!("{path} names the mount_program {program}, which is not there"),
                "podman cannot start a container",
                format!("install {program} (package fuse-overlayfs), or remove mount_program: the kernel's overlayfs is faster"),
            ),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{self, Note, Ok as Good, Problem};
    use super::*;

    fn verdicts(store: Store, conf: Conf) -> Vec<Verdict> {
        judge(&Facts { root: "/s".into(), store, conf }).iter().map(|finding| finding.verdict).collect()
    }

    fn says(text: &str) -> Conf {
        Conf::Says { path: "/c".into(), said: said(text).unwrap() }
    }

    const NAMED: &str =
        "[storage]\ndriver = \"overlay\"\n[storage.options]\nadditionalimagestores = [\n \"/o\", '/s',\n]\n";

    #[test]
    fn the_store_and_its_listing_are_judged_together() {
        use State::{Dead, Serving, Silent};
        let none = || says("");
        assert_eq!(verdicts(Store::None, Conf::Missing), [Good]);
        assert_eq!(verdicts(Store::None, says(NAMED)), [Problem, Good]);
        assert_eq!(verdicts(Store::Unserved, none()), [Note]);
        assert_eq!(verdicts(Store::Unserved, says(NAMED)), [Problem, Good]);
        assert_eq!(verdicts(Store::Is(Serving), says(NAMED)), [Good, Good]);
        assert_eq!(verdicts(Store::Is(Serving), none()), [Good, Note]);
        let layers =
            "[storage]\ndriver = \"overlay\"\n[storage.options]\nadditionallayerstores = [\"/s/layers:ref\"]\n";
        assert_eq!(verdicts(Store::Is(Serving), says(layers)), [Good, Good]);
        assert_eq!(verdicts(Store::Unserved, says(layers)), [Problem, Good]);
        assert_eq!(verdicts(Store::Is(Dead), says(NAMED)), [Problem, Good]);
        assert_eq!(verdicts(Store::Is(Silent), says(NAMED)), [Problem, Good]);
        assert_eq!(verdicts(Store::Unknown("x".into()), Conf::Missing), [Problem]);
        let broken = Conf::Broken { path: "/c".into(), why: "line 1".into() };
        assert_eq!(verdicts(Store::None, broken), [Good, Problem]);
        assert_eq!(judge_unknown("x")[0].verdict, Note);
    }

    #[test]
    fn the_rest_of_a_storage_conf_counts() {
        let of = |text: &str| verdicts(Store::Is(State::Serving), says(&format!("{NAMED}{text}")));
        assert_eq!(of("[storage.options.overlay]\nmount_program = \"/nowhere\"\n"), [Good, Good, Problem]);
        assert_eq!(of("[storage.options.overlay]\nmount_program = \"/bin/sh\"\n"), [Good, Good, Good]);
        let vfs = says(&NAMED.replace("overlay", "vfs"));
        assert_eq!(verdicts(Store::Is(State::Serving), vfs), [Good, Good, Problem]);
    }

    #[test]
    fn a_broken_file_says_where() {
        assert!(said("[storage]\ndriver = \n").unwrap_err().starts_with("line 2: "));
        assert_eq!(said("[storage]\ndriver = 7\n").unwrap(), Said::default());
    }
}
