//! `crfs umount`: takes a mount from its directory and says what came of it.
//!
//! Unmounting DIR need not end the mount: an overlayfs keeps a clone of its lowers, and other mount namespaces may have one,
//! so the server goes on until the kernel is done with the superblock. Whether it is can be told at once when umount(2)
//! returns: the superblock's backing device (/sys/class/bdi/<major:minor>) goes with it, and every user may see that. A new mount may
//! have the number at once, but that is another inode there.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Error;
use super::ask::{self, Unanswered};
use super::holders::{self, Holder, named};
use super::state::{self, FoundState};
use super::status::{Elsewhere, elsewhere};
use crate::kernel;
use crate::kernel::fusedev;
pub use crate::kernel::fusedev::Detach;
use crate::kernel::mounts::{self, Mount};
use crate::registry::list;
use crate::sys::limit::comes_true;

/// How long a server may take to leave after its last request; it has nothing to do but to stop.
const LEAVING: Duration = Duration::from_secs(5);
/// How long the kernel may take to be done with what nobody has any more.
const DOUBT: Duration = Duration::from_millis(200);

/// What is left of the mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing.
    Gone,
    /// The server goes on for those who still have it, as far as they can be seen.
    StillInUse(Vec<Holder>),
}

/// Unmounts the crfs mount at `target`, alive or dead, or the one that has that id. One that is in another mount namespace is unmounted there: by its
/// directory only where nobody but its server sees it.
///
/// # Errors
/// Where there is none, it is busy, or this user may not.
pub fn unmount(target: &Path, state_dirs: &[PathBuf], how: Detach) -> Result<Outcome, Error> {
    let asked = target.to_owned();
    let here = mounts::answered(target, move || find(&asked));
    match here {
        // Its state is looked for afterwards: whatever is wrong with that, the mount can be ended.
        Ok(mount) => unmount_here(&mount, how, |instance| {
            let (all, _silent) = state::found_where_answered(state_dirs);
            all.into_iter().find(|state| state.record.described(&mount, instance))
        }),
        Err(none) => {
            let (all, silent) = state::found_where_answered(state_dirs);
            // What is meant may be known where there was no answer.
            unmount_elsewhere(target, &all, none).map_err(|none| match none {
                Error::Kernel(kernel::Error::NotMounted { .. } | kernel::Error::Directory { .. }) => {
                    silent.unwrap_or(none)
                }
                other => other,
            })
        }
    }
}

/// `none`: why nothing is unmounted at the directory `target`.
fn unmount_elsewhere(target: &Path, all: &[FoundState], none: Error) -> Result<Outcome, Error> {
    if let Some(state) = all.iter().find(|state| Path::new(&state.record.id) == target) {
        return unmount_known(state, all, Whose::Named);
    }
    if !matches!(none, Error::Kernel(kernel::Error::NotMounted { .. } | kernel::Error::Directory { .. })) {
        return Err(none);
    }
    let dir = std::path::absolute(target).unwrap_or_default();
    let there: Vec<_> = all.iter().filter(|state| state.record.dir == dir && state.record.is_foreign()).collect();
    match there.as_slice() {
        [] => Err(none),
        [state] => unmount_known(state, all, Whose::OursAlone),
        several => {
            let ids: Vec<_> = several.iter().map(|state| state.record.id.clone()).collect();
            Err(Error::SeveralMounted { dir, ids: list(&ids) })
        }
    }
}

/// The directory of a mount, and what came of unmounting it.
pub type Unmounted = (PathBuf, Result<Outcome, Error>);

/// Unmounts all crfs mounts of this user, but for those in other mount namespaces that somebody sees. The last error is that of a directory of states
/// that cannot be asked.
#[must_use]
pub fn unmount_all(state_dirs: &[PathBuf]) -> Vec<Unmounted> {
    let (all, silent) = state::found_where_answered(state_dirs);
    let unmount = |state: &FoundState| (state.record.dir.clone(), unmount_known(state, &all, Whose::OursAlone));
    // The last one first: it may stand on one before it.
    let mut unmounted: Vec<_> = all.iter().rev().map(unmount).collect();
    // What is known elsewhere is unmounted all the same.
    unmounted.extend(silent.map(|error| (PathBuf::new(), Err(error))));
    unmounted
}

/// Which mounts in other mount namespaces are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Those that nobody sees there.
    OursAlone,
    /// The user has said which one.
    Named,
}

/// Only at its own directory, and only where that leads to it: what else is mounted there, or made of it, is somebody else's.
fn unmount_known(state: &FoundState, all: &[FoundState], whose: Whose) -> Result<Outcome, Error> {
    let record = &state.record;
    let dir = || record.dir.clone();
    let top = mounts::at(&record.dir).map_err(|source| kernel::Error::Directory { dir: dir(), source })?;
    match (top, elsewhere(state, all)) {
        (Some(top), _) if record.describes(&top) => unmount_here(&top, Detach::IfIdle, |_| Some(state.clone())),
        (Some(top), None) => Err(Error::Covered { dir: dir(), kind: top.kind.to_string_lossy().into_owned() }),
        (_, Some(Elsewhere { namespace: Some(namespace), holders })) => match whose {
            Whose::OursAlone if !holders.is_empty() => {
                Err(Error::MountedElsewhere { dir: dir(), namespace, holders: named(&holders), id: record.id.clone() })
            }
            _ => ask_to_leave(state),
        },
        (_, Some(Elsewhere { namespace: None, holders })) if state.may_be_served() => Ok(Outcome::StillInUse(holders)),
        _ => Ok(Outcome::Gone),
    }
}

/// Lets the server unmount, in the mount namespace that it is in.
fn ask_to_leave(state: &FoundState) -> Result<Outcome, Error> {
    let dir = || state.record.dir.clone();
    let (was_served, servers) = (state.may_be_served(), state.servers());
    match state.connect().and_then(ask::leave) {
        Err(Unanswered::Failed { message }) => Err(Error::StaysElsewhere { dir: dir(), why: message }),
        Err(source @ Unanswered::OtherVersion) => Err(Error::NotAsked { dir: dir(), pid: state.record.pid, source }),
        // A server that has nothing left to serve may be gone before it has answered.
        _ if was_served && comes_true(LEAVING, || !state.may_be_served()) => {
            // Until it is, its mount namespace keeps other mounts in use that were copied into it.
            comes_true(LEAVING, || !servers.iter().any(|server| holders::has_namespace(*server)));
            Ok(Outcome::Gone)
        }
        Ok(()) => {
            let is_it = |mount: &Mount| state.record.describes(mount);
            Ok(Outcome::StillInUse(holders::of(is_it, &state.record.dir, &[])))
        }
        Err(source) => Err(Error::NotAsked { dir: dir(), pid: state.record.pid, source }),
    }
}

/// `find`: what is known of it, which is asked when it is unmounted. It is told which instance of its device it was.
fn unmount_here(
    mount: &Mount,
    how: Detach,
    find: impl FnOnce(Option<u64>) -> Option<FoundState>,
) -> Result<Outcome, Error> {
    // Before it is gone: a new mount may have its number at once, and be of the same image.
    let instance = mount.device.instance();
    let asked = mount.clone();
    fusedev::unmount(&mount.point, how, move |now| *now == asked)?;
    let state = find(instance);
    let served = || state.as_ref().is_some_and(FoundState::may_be_served);
    let is_served = served();
    let lives = || instance.is_some() && mount.device.instance() == instance;
    if !comes_true(DOUBT, || !lives() || (is_served && !served())) {
        return Ok(Outcome::StillInUse(holders::of(|other| other.is_of(mount), &mount.point, &[])));
    }
    comes_true(LEAVING, || !served());
    if let Some(dead) = state.filter(|_| !is_served) {
        dead.remove();
    }
    Ok(Outcome::Gone)
}

/// The crfs mount that `dir` leads to. The mount itself is asked nothing, so that a dead one is found, too.
pub(super) fn find(dir: &Path) -> Result<Mount, Error> {
    let given = |source| kernel::Error::Directory { dir: dir.to_owned(), source };
    let mut found = None;
    for point in spellings(dir).map_err(given)? {
        found = found.or(mounts::at(&point).map_err(given)?);
    }
    match found {
        None => {
            let none = dir.symlink_metadata().map_or_else(given, |_| kernel::Error::NotMounted { dir: dir.to_owned() });
            Err(none.into())
        }
        Some(mount) if mount.is_ours() => Ok(mount),
        Some(mount) => Err(Error::NotCrfs { dir: dir.to_owned(), kind: mount.kind.to_string_lossy().into_owned() }),
    }
}

/// The paths under which the mount table may have `dir`: as it is when only its parent is resolved, and when it is a link itself.
fn spellings(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let absolute = std::path::absolute(dir)?;
    let by_parent = match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => parent.canonicalize().ok().map(|parent| parent.join(name)),
        _ => None,
    };
    Ok(by_parent.into_iter().chain(absolute.canonicalize()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_crfs_mounts_are_unmounted() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            unmount(dir.path(), &[], Detach::IfIdle),
            Err(Error::Kernel(kernel::Error::NotMounted { .. }))
        ));
        assert!(matches!(
            unmount(&dir.path().join("missing"), &[], Detach::IfIdle),
            Err(Error::Kernel(kernel::Error::Directory { .. }))
        ));
        match unmount(Path::new("/proc"), &[], Detach::IfIdle) {
            Err(error @ Error::NotCrfs { .. }) => assert!(error.to_string().contains("type proc"), "{error}"),
            other => panic!("{other:?}"),
        }
    }

    /// As the kernel does it: the lowest number that is free is given first.
    #[test]
    fn a_new_mount_with_the_number_of_the_old_is_not_taken_for_it() {
        use crate::kernel::Target;
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let made = |name: &str| {
            let point = dir.join(name);
            std::fs::create_dir(&point).unwrap();
            fusedev::mount(&Target {
                dir: &point,
                source: "image@digest",
                allow_other: false,
                is_asked_for_changes: false,
                noexec: false,
            })
        };
        for turn in 0..100 {
            let (old, new) = (format!("old{turn}"), format!("new{turn}"));
            let Ok(first) = made(&old) else { return };
            drop(first);
            let mount = mounts::at(&dir.join(&old)).unwrap().unwrap();
            let mut second = None;
            let outcome = unmount_here(&mount, Detach::IfIdle, |instance| {
                assert!(instance.is_some());
                second = Some(made(&new).unwrap());
                None
            });
            drop(second);
            let second = mounts::at(&dir.join(&new)).unwrap().unwrap();
            nix::mount::umount2(&second.point, nix::mount::MntFlags::MNT_DETACH).unwrap();
            assert_eq!(outcome.unwrap(), Outcome::Gone);
            if second.device == mount.device {
                return;
            }
        }
        panic!("the kernel never gave a number again");
    }

    #[test]
    fn a_link_to_a_mount_point_leads_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/proc", &link).unwrap();
        assert!(matches!(find(&link), Err(Error::NotCrfs { .. })));
        assert!(matches!(find(Path::new("/usr/../proc/.")), Err(Error::NotCrfs { .. })));
    }
}
