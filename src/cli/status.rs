//! `crfs status`.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;

use super::args::StatusArgs;
use super::environment::Environment;
use super::format::{self, Side, printable, table};
use super::mount::by_whom;
use super::{Failure, complain, endpoints, json, options, print};
use crate::errors::chain;
use crate::image::escape;
use crate::podman::commands;
use crate::serve::holders::named;
use crate::serve::status::{self as mounts, Elsewhere, State, Status};

pub(super) fn status(args: &StatusArgs, environment: &Environment) -> Result<(), Failure> {
    let (mut servers, unasked) = mounts::status(&environment.state_dirs());
    let mut silent: Vec<_> = unasked.iter().map(|error| chain(error)).collect();
    match options::ask_store(&args.place, environment, commands::status) {
        Ok(store) => servers.extend(store),
        Err(why) => silent.push(why),
    }
    print(&match args.json {
        true => json(&servers)?,
        // Nobody knows that.
        false if servers.is_empty() && !silent.is_empty() => String::new(),
        false => status_text(&servers),
    })?;
    // The others are shown all the same.
    silent.iter().for_each(|message| complain(message));
    if silent.is_empty() { Ok(()) } else { Err(Failure::Reported) }
}

fn status_text(servers: &[Status]) -> String {
    if servers.is_empty() {
        return "nothing is mounted\n".to_owned();
    }
    let titles = [
        "STATE", "KIND", "PID", "IMAGE", "DIGEST", "LAYERS", "SERVED", "FETCHED", "CACHED", "REQUESTS", "ERRORS", "DIR",
    ];
    let rows: Vec<_> = std::iter::once(titles.map(str::to_owned).to_vec()).chain(servers.iter().map(row)).collect();
    use Side::{Left, Right};
    let sides = [Left, Left, Right, Left, Left, Right, Right, Right, Right, Right, Right, Left];
    let mut text = table(&sides, &rows);
    for server in servers {
        let (dir, activity) = (shown(server.dir.as_os_str()), &server.activity);
        let mut add = |line: String| {
            // Writing to a string does not fail.
            let _written = writeln!(text, "\n{line}");
        };
        if let Some(restarts) = server.restarts.filter(|restarts| *restarts > 0) {
            let times = if restarts == 1 { "once".to_owned() } else { format!("{restarts} times") };
            add(format!("{dir}: its server was started again {times}, and the mount went on"));
        }
        if activity.stats.uncached > 0 {
            let uncached = format::bytes(activity.stats.uncached);
            add(format!("{dir}: {uncached} could not be cached, and are fetched again when they are read again"));
        }
        if let Some(elsewhere) = &server.elsewhere {
            add(printable(&whereabouts(server, elsewhere)));
        }
        for line in endpoints::ill(&server.endpoints) {
            add(format!("{dir}: asked for at {line}"));
        }
        if let Some(error) = &activity.last_error {
            add(format!("last error of {dir}: {}", printable(error)));
        }
    }
    text
}

fn whereabouts(mount: &Status, elsewhere: &Elsewhere) -> String {
    let dir = shown(mount.dir.as_os_str());
    let way = match mount.state {
        State::Dead => "unmount it there".to_owned(),
        State::Serving | State::Silent | State::Failing => format!("`crfs umount {}` unmounts it", mount.id),
    };
    match (&elsewhere.namespace, elsewhere.holders.as_slice()) {
        (Some(namespace), []) => format!("{dir}: mounted in {namespace}, where nothing but its server sees it: {way}"),
        (Some(namespace), holders) => {
            format!("{dir}: mounted in {namespace}, where others see it: {}; {way}", named(holders))
        }
        (None, holders) => format!("{dir}: unmounted; still in use {}", by_whom(holders)),
    }
}

fn row(server: &Status) -> Vec<String> {
    let stats = server.activity.stats;
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let known = |text: String| if server.state == State::Serving { text } else { "-".to_owned() };
    let images =
        || server.images.map(|images| if images == 1 { "1 image".to_owned() } else { format!("{images} images") });
    vec![
        state_name(server.state).to_owned(),
        server.kind.to_owned(),
        or_none(server.pid.map(|pid| pid.to_string())),
        or_none(server.image.as_deref().map(printable).or_else(images)),
        or_none(server.digest.map(|digest| digest.hex().chars().take(12).collect())),
        or_none(server.layers.map(|layers| layers.to_string())),
        known(format::bytes(stats.served)),
        known(format::bytes(stats.fetched)),
        known(format::bytes(stats.cached)),
        known(stats.requests.to_string()),
        known(stats.errors.to_string()),
        shown(server.dir.as_os_str()),
    ]
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Serving => "serving",
        State::Silent => "silent",
        State::Failing => "failing",
        State::Dead => "dead",
    }
}

fn shown(path: &OsStr) -> String {
    escape(path.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use serde_json::Value;

    use super::*;
    use crate::blob::Digest;
    use crate::fetch::Stats;
    use crate::registry::{Counts, EndpointReport};
    use crate::serve::Activity;

    fn mount() -> Status {
        let stats = Stats { served: 2048, fetched: 1024, cached: 1024, requests: 3, errors: 1, uncached: 512 };
        Status {
            kind: "mount",
            id: "i".into(),
            state: State::Serving,
            pid: Some(1),
            image: Some("docker.io/library/a".into()),
            digest: Some(Digest::of(b"")),
            frontend: Some("fuse".into()),
            dir: "/m".into(),
            started: Some(0),
            keeper: Some(3),
            restarts: Some(2),
            images: Some(1),
            layers: Some(4),
            pulled: Some(3),
            endpoints: vec![EndpointReport {
                host: "m.io".into(),
                mirror: true,
                rests: Some(4),
                counts: Counts { asked: 7, failed: 2, last_error: Some("gone".into()), ..Counts::default() },
            }],
            elsewhere: None,
            activity: Activity { stats, last_error: Some("gone\n".into()) },
        }
    }

    fn store(state: State) -> Status {
        let none = Status { pid: None, image: None, digest: None, frontend: None, started: None, ..mount() };
        Status { kind: "store", id: "/s".into(), state, dir: "/s".into(), images: None, layers: None, ..none }
    }

    #[test]
    fn a_dead_mount_has_no_figures() {
        let mut mount = mount();
        let text = status_text(std::slice::from_ref(&mount));
        assert!(text.contains("       4  2.0 KiB  1.0 KiB  1.0 KiB         3       1  /m\n"), "{text}");
        assert!(text.contains("\n/m: 512 B could not be cached"), "{text}");
        assert!(text.ends_with("\nlast error of /m: gone\\n\n"), "{text}");
        let namespace = Some("mnt:[7]".to_owned());
        mount.elsewhere = Some(Elsewhere { namespace, holders: Vec::new() });
        let text = status_text(std::slice::from_ref(&mount));
        assert!(
            text.contains("\n/m: mounted in mnt:[7], where nothing but its server sees it: `crfs umount i`"),
            "{text}"
        );
        mount.state = State::Dead;
        assert!(status_text(std::slice::from_ref(&mount)).contains("sees it: unmount it there\n"));
        let shown = row(&mount).join(" ");
        assert!(shown.starts_with("dead mount 1 ") && shown.ends_with(" - - - - - /m"), "{shown}");
        assert_eq!(status_text(&[]), "nothing is mounted\n");
    }

    #[test]
    fn a_store_is_shown_beside_mounts() {
        let serving = Status { pid: Some(7), images: Some(2), layers: Some(9), ..store(State::Serving) };
        assert_eq!(row(&serving).join(" "), "serving store 7 2 images - 9 2.0 KiB 1.0 KiB 1.0 KiB 3 1 /s");
        assert_eq!(row(&store(State::Dead)).join(" "), "dead store - - - - - - - - - /s");
    }

    /// Rows of docs/STATUS.md: fields and their types.
    fn documented() -> BTreeMap<String, String> {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/STATUS.md")).unwrap();
        let rows = text.lines().filter(|line| line.starts_with("| `"));
        let cells = |row: &str| row.split('|').map(|cell| cell.trim().replace('`', "")).collect::<Vec<_>>();
        rows.map(cells).map(|cells| (cells[1].clone(), cells[2].clone())).collect()
    }

    fn types(value: &Value, prefix: &str, found: &mut BTreeMap<String, String>) {
        for (name, value) in value.as_object().unwrap() {
            let kind = match value {
                Value::String(_) => "string",
                Value::Number(_) => "number",
                Value::Bool(_) => "boolean",
                Value::Array(all) => {
                    types(&all[0], &format!("{prefix}{name}[]."), found);
                    "array"
                }
                Value::Object(_) => {
                    types(value, &format!("{prefix}{name}."), found);
                    "object"
                }
                Value::Null => panic!("{name} says nothing"),
            };
            found.insert(format!("{prefix}{name}"), kind.to_owned());
        }
    }

    #[test]
    fn each_field_is_documented() {
        let holder = crate::serve::holders::Holder {
            pid: 1,
            process: "sh".into(),
            namespace: Some("mnt:[7]".into()),
            point: PathBuf::from("/m"),
            overlay: false,
        };
        let elsewhere = Elsewhere { namespace: Some("mnt:[7]".into()), holders: vec![holder] };
        let whole = Status { elsewhere: Some(elsewhere), ..mount() };
        let mut told = BTreeMap::new();
        types(&serde_json::from_str(&json(&whole).unwrap()).unwrap(), "", &mut told);
        assert_eq!(documented(), told);
        let help = super::super::help::STATUS;
        let unnamed: Vec<_> = told.keys().filter(|name| !name.contains('.') && !help.contains(name.as_str())).collect();
        assert!(unnamed.is_empty(), "not in the help: {unnamed:?}");
    }
}
