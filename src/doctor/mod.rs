//! `crfs doctor`: what of this machine is as crfs needs it, what is not, and what to do about that.
//!
//! ```text
//! Setting (from cli/) -> facts (asks the machine) -> judge (pure) -> findings        for each of CHECKS, all at once
//! ```
//!
//! A check is a file here. None changes anything, and none waits for longer than its limit: what it asks may never answer. All of it runs in a child of
//! the command (apart.rs).

pub mod apart;
mod cache;
mod credentials;
mod finding;
mod fuse;
mod image;
mod kernel;
mod limits;
mod mounts;
mod podman;
mod probe;
mod proxies;
mod registries;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use self::finding::{Checked, Finding, Verdict};
pub use self::probe::{SUBCOMMAND, answer_parent};

use crate::image::options::ImageOptions;
use crate::podman::Paths;
use crate::registry::Places;
use crate::sys::limit;

/// Where this machine is looked at: as a mount of this user would find it.
#[derive(Debug, Clone)]
pub struct Setting {
    pub uid: u32,
    /// `$PATH`
    pub path: Vec<PathBuf>,
    pub auth_files: Vec<PathBuf>,
    /// Whether they were named, so that there must be one.
    pub auth_is_named: bool,
    pub places: Places,
    pub cache_dir: PathBuf,
    pub cache_size: Option<u64>,
    pub state_dirs: Vec<PathBuf>,
    /// Where the store is, or why that cannot be told.
    pub store: Result<Paths, String>,
    /// podman's storage.conf of this user.
    pub storage_conf: PathBuf,
    /// The variables about proxies that are set, and their values.
    pub proxies: Vec<(String, String)>,
    /// The image that is asked about, if one is; or why it cannot be asked about.
    pub image: Option<Result<ImageOptions, String>>,
}

/// How long a check may take that asks this machine alone.
const LIMIT: Duration = Duration::from_secs(20);

/// The same where registries are asked: as long as resolving an image may take, and some more for its layers.
const LIMIT_OF_IMAGE: Duration = Duration::from_secs(60);

struct Check {
    name: &'static str,
    limit: Duration,
    look: fn(&Setting) -> Vec<Finding>,
}

const fn check(name: &'static str, look: fn(&Setting) -> Vec<Finding>) -> Check {
    Check { name, limit: LIMIT, look }
}

/// All checks, in the order in which they are told. docs/doctor.md has them.
const CHECKS: [Check; 11] = [
    check("fuse", fuse::look),
    check("kernel", kernel::look),
    check("cache", cache::look),
    check("credentials", credentials::look),
    check("proxies", proxies::look),
    check("registries", registries::look),
    check("podman", podman::look),
    check("limits", limits::look),
    check("mounts", mounts::look),
    check("leftovers", mounts::look_for_leftovers),
    Check { name: "image", limit: LIMIT_OF_IMAGE, look: image::look },
];

/// Does all checks at once, and tells what they have found in their order.
#[must_use]
pub fn examine(setting: Setting) -> Vec<Checked> {
    let setting = Arc::new(setting);
    let found = std::thread::scope(|scope| {
        let begun = CHECKS.each_ref().map(|check| {
            let setting = Arc::clone(&setting);
            let run = move || run(check, setting);
            // Where there can be no thread, one check comes after the other.
            std::thread::Builder::new().spawn_scoped(scope, run.clone()).map_err(|_| run)
        });
        begun.map(|begun| match begun {
            Ok(thread) => thread.join().unwrap_or_else(|_| vec![panicked()]),
            Err(run) => run(),
        })
    });
    let named = |(check, found): (&Check, Vec<Finding>)| {
        let name = check.name;
        found.into_iter().map(move |finding| Checked { check: name, finding }).collect::<Vec<_>>()
    };
    CHECKS.iter().zip(found).flat_map(named).collect()
}

fn run(check: &Check, setting: Arc<Setting>) -> Vec<Finding> {
    let look = check.look;
    limit::within(check.limit, move || look(&setting)).unwrap_or_else(|| vec![unanswered(check)])
}

fn unanswered(check: &Check) -> Finding {
    Finding::problem(
        format!("the check has not come to an end within {} s", check.limit.as_secs()),
        "a filesystem or server that it asks does not answer; crfs may wait for it as well",
        "look with `df` and `findmnt` for a mount that hangs (NFS, FUSE), and at the server behind it",
    )
}

fn panicked() -> Finding {
    Finding::problem(
        "the check has failed; standard error has more",
        "nobody knows whether what it looks at is well",
        "this is a bug of crfs: please report it",
    )
}

#[cfg(test)]
impl Setting {
    fn of_nothing() -> Self {
        Self {
            uid: 0,
            path: Vec::new(),
            auth_files: Vec::new(),
            auth_is_named: false,
            places: Places::default(),
            cache_dir: PathBuf::new(),
            cache_size: None,
            state_dirs: Vec::new(),
            store: Err(String::new()),
            storage_conf: PathBuf::new(),
            proxies: Vec::new(),
            image: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_does_not_end_is_a_problem() {
        fn hangs(_: &Setting) -> Vec<Finding> {
            loop {
                std::thread::park();
            }
        }
        let check = Check { name: "hangs", limit: Duration::from_millis(1), look: hangs };
        let found = run(&check, Arc::new(Setting::of_nothing()));
        assert_eq!(found, [unanswered(&check)]);
        assert_eq!(found[0].verdict, Verdict::Problem);
    }

    #[test]
    fn every_check_is_documented() {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/doctor.md")).unwrap();
        let named: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`')).collect();
        assert_eq!(named, CHECKS.each_ref().map(|check| check.name));
    }
}
