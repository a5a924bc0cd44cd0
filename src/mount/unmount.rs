//! `crfs umount`: takes a mount from its directory and says what came of it.
//!
//! Unmounting DIR need not end the mount: an overlayfs keeps a clone of its lowers, and other mount namespaces may have one,
//! so the server goes on until the kernel is done with the superblock. Whether it is can be told at once when umount(2)
//! returns: the superblock's backing device (/sys/class/bdi/<major:minor>) goes with it, and every user may see that.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::fusedev::{self, Detach};
use super::holders::{self, Holder, named};
use super::mounts::{self, Mount};
use super::state::{self, FoundState};
use super::status::{Elsewhere, elsewhere};
use super::{Error, control};

/// How long a server may take to leave after its last request; it has nothing to do but to stop.
const LEAVING: Duration = Duration::from_secs(5);
/// How long a number that looks alive is watched: it may have been given to a new mount at once.
const DOUBT: Duration = Duration::from_millis(200);
const GLANCE: Duration = Duration::from_millis(5);

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
pub fn unmount(target: &Path, state_dirs: &[PathBuf]) -> Result<Outcome, Error> {
    let all = state::find_all(state_dirs);
    let asked = target.to_owned();
    let none_there = match mounts::answered(target, move || find(&asked)) {
        Ok(mount) => return unmount_here(&mount, &all),
        Err(error) => error,
    };
    if let Some(state) = all.iter().find(|state| Path::new(&state.record.id) == target) {
        return unmount_known(state, &all, Whose::Named);
    }
    let dir = std::path::absolute(target).unwrap_or_default();
    let there: Vec<_> = all.iter().filter(|state| state.record.dir == dir && state.record.is_foreign()).collect();
    match there.as_slice() {
        [] => Err(none_there),
        [state] => unmount_known(state, &all, Whose::OursAlone),
        several => {
            let ids: Vec<_> = several.iter().map(|state| state.record.id.as_str()).collect();
            Err(Error::SeveralMounted { dir, ids: ids.join(", ") })
        }
    }
}

/// Unmounts all crfs mounts of this user, but for those in other mount namespaces that somebody sees: what came of each, by its directory.
#[must_use]
pub fn unmount_all(state_dirs: &[PathBuf]) -> Vec<(PathBuf, Result<Outcome, Error>)> {
    let all = state::find_all(state_dirs);
    // The last one first: it may stand on one before it.
    let unmount = |state: &FoundState| (state.record.dir.clone(), unmount_known(state, &all, Whose::OursAlone));
    all.iter().rev().map(unmount).collect()
}

/// Which mounts in other mount namespaces are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Those that nobody sees there.
    OursAlone,
    /// The user has said which one.
    Named,
}

fn unmount_known(state: &FoundState, all: &[FoundState], whose: Whose) -> Result<Outcome, Error> {
    let dir = || state.record.dir.clone();
    let table = mounts::all().map_err(|source| Error::Directory { dir: dir(), source })?;
    if let Some(mount) = table.iter().rfind(|mount| state.record.describes(mount)) {
        return unmount_here(mount, all);
    }
    match elsewhere(state, all) {
        Some(Elsewhere { namespace: Some(namespace), holders }) => {
            if !holders.is_empty() && whose == Whose::OursAlone {
                let (id, holders) = (state.record.id.clone(), named(&holders));
                return Err(Error::MountedElsewhere { dir: dir(), namespace, holders, id });
            }
            ask_to_leave(state)
        }
        Some(Elsewhere { namespace: None, holders }) => Ok(Outcome::StillInUse(holders)),
        None => Ok(Outcome::Gone),
    }
}

/// Lets the server unmount, in the mount namespace that it is in.
fn ask_to_leave(state: &FoundState) -> Result<Outcome, Error> {
    let dir = || state.record.dir.clone();
    let answer = control::ask_to_leave(&state.leave_socket());
    answer
        .map_err(|source| Error::NotAsked { dir: dir(), pid: state.record.pid, source })?
        .map_err(|why| Error::StaysElsewhere { dir: dir(), why })?;
    match within(LEAVING, || !state.is_served()) {
        true => Ok(Outcome::Gone),
        false => Ok(Outcome::StillInUse(holders::of(state.record.device, &state.record.dir, &[]))),
    }
}

fn unmount_here(mount: &Mount, all: &[FoundState]) -> Result<Outcome, Error> {
    let state = all.iter().find(|state| state.record.describes(mount));
    let was_served = state.is_some_and(FoundState::is_served);
    fusedev::unmount(&mount.point, Detach::IfIdle)?;
    let served = || state.is_some_and(FoundState::is_served);
    if mount.device.exists() && !within(DOUBT, || !mount.device.exists() || (was_served && !served())) {
        return Ok(Outcome::StillInUse(holders::of(mount.device, &mount.point, &[])));
    }
    within(LEAVING, || !served());
    if let Some(dead) = state.filter(|_| !was_served) {
        dead.remove();
    }
    Ok(Outcome::Gone)
}

/// The crfs mount that `dir` leads to. The mount itself is asked nothing, so that a dead one is found, too.
fn find(dir: &Path) -> Result<Mount, Error> {
    let given = |source| Error::Directory { dir: dir.to_owned(), source };
    let mut found = None;
    for point in spellings(dir).map_err(given)? {
        found = found.or(mounts::at(&point).map_err(given)?);
    }
    match found {
        None => Err(dir.symlink_metadata().map_or_else(given, |_| Error::NotMounted { dir: dir.to_owned() })),
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

/// Whether `done` came true before `limit` had passed.
fn within(limit: Duration, done: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if done() {
            return true;
        }
        if start.elapsed() >= limit {
            return false;
        }
        std::thread::sleep(GLANCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_crfs_mounts_are_unmounted() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(unmount(dir.path(), &[]), Err(Error::NotMounted { .. })));
        assert!(matches!(unmount(&dir.path().join("missing"), &[]), Err(Error::Directory { .. })));
        match unmount(Path::new("/proc"), &[]) {
            Err(error @ Error::NotCrfs { .. }) => assert!(error.to_string().contains("type proc"), "{error}"),
            other => panic!("{other:?}"),
        }
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
