//! `crfs umount`: takes a mount from its directory and says what came of it.
//!
//! Unmounting DIR need not end the mount: an overlayfs keeps a clone of its lowers, and other mount namespaces may have one,
//! so the server goes on until the kernel is done with the superblock. Whether it is can be told at once when umount(2)
//! returns: the superblock's backing device (/sys/class/bdi/<major:minor>) goes with it, and every user may see that.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Error;
use super::fusedev::{self, Detach};
use super::mounts::{self, Mount};
use super::state::{self, FoundState};

/// How long a server may take to leave after its last request; it has nothing to do but to stop.
const LEAVING: Duration = Duration::from_secs(5);
/// How long a number that looks alive is watched: it may have been given to a new mount at once.
const DOUBT: Duration = Duration::from_millis(200);
const GLANCE: Duration = Duration::from_millis(5);

/// What is left of the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing.
    Gone,
    /// The server goes on for another mount that uses it.
    StillInUse,
}

/// Unmounts the crfs mount at `dir`, alive or dead.
///
/// # Errors
/// Where there is none, it is busy, or this user may not.
pub fn unmount(dir: &Path, state_dirs: &[PathBuf]) -> Result<Outcome, Error> {
    let asked = dir.to_owned();
    let mount = mounts::answered(dir, move || find(&asked))?;
    let state = state::find_all(state_dirs).into_iter().find(|state| state.record.describes(&mount));
    let was_served = state.as_ref().is_some_and(FoundState::is_served);
    fusedev::unmount(&mount.point, Detach::IfIdle)?;
    let served = || state.as_ref().is_some_and(FoundState::is_served);
    if mount.device.exists() && !within(DOUBT, || !mount.device.exists() || (was_served && !served())) {
        return Ok(Outcome::StillInUse);
    }
    within(LEAVING, || !served());
    if let Some(dead) = state.as_ref().filter(|_| !was_served) {
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
