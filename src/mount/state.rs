//! What a mount is known by while it lives: one directory per mount, mode 0700.
//!
//! ```text
//! $XDG_RUNTIME_DIR/crfs/<id>/     root: /run/crfs/<id>/
//!     mount.json                  what is mounted where, written before the mount is ready
//!     control.sock                0600; answers every connection with the server's status as JSON
//!     server.log, server.log.1    JSON lines
//! ```
//!
//! The server holds an flock(2) on its directory. Whoever gets that lock knows that the server is gone, however it ended.
//! Directories are made and cleaned up under a lock on their parent, so that none is taken for dead while it is being made.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::mounts::{self, Device};
use super::{Error, wire};
use crate::blob::Digest;

const RECORD: &str = "mount.json";
const SOCKET: &str = "control.sock";
const LOG: &str = "server.log";

/// Where this user's mounts keep their state, the best first: later ones serve where an earlier one cannot be had.
#[must_use]
pub fn state_dirs(uid: u32, runtime_dir: Option<&Path>) -> Vec<PathBuf> {
    let run = if uid == 0 { Some(PathBuf::from("/run/crfs")) } else { None };
    let given = runtime_dir.filter(|dir| dir.is_absolute()).map(|dir| dir.join("crfs"));
    let usual = if given.is_none() && uid != 0 { Some(PathBuf::from(format!("/run/user/{uid}/crfs"))) } else { None };
    let last = Some(PathBuf::from(format!("/tmp/crfs-{uid}")));
    [run, given, usual, last].into_iter().flatten().collect()
}

/// What mount.json says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) pid: u32,
    /// The image's name, without tag.
    pub(crate) image: String,
    pub(crate) digest: Digest,
    pub(crate) frontend: String,
    #[serde(with = "wire::path")]
    pub(crate) dir: PathBuf,
    /// st_dev of the mount.
    pub(crate) device: Device,
    /// Seconds since 1970.
    pub(crate) started: u64,
}

impl Record {
    /// Whether this is what is known of that mount. The number alone may have been given to another one since.
    pub(crate) fn describes(&self, mount: &mounts::Mount) -> bool {
        mount.is_ours() && mount.device == self.device && mount.source == *self.source()
    }

    /// The source of the mount: the image, pinned.
    pub(crate) fn source(&self) -> String {
        format!("{}@{}", self.image, self.digest)
    }
}

/// The state directory of a mount that this process serves. Removed when it is dropped.
pub(crate) struct OwnState {
    dir: TempDir,
    lock: Flock<File>,
}

impl OwnState {
    /// Makes one in the first of `bases` that can be used, and cleans up after servers that are gone there.
    pub(crate) fn create(bases: &[PathBuf]) -> Result<Self, Error> {
        let mut tried = Vec::new();
        for base in bases {
            match Self::create_in(base) {
                Ok(state) => return Ok(state),
                Err(error) => tried.push(format!("{}: {error}", base.display())),
            }
        }
        Err(Error::NoStateDirectory { tried: tried.join(", ") })
    }

    fn create_in(base: &Path) -> io::Result<Self> {
        ensure_private(base)?;
        let _parent = lock_directory(base, FlockArg::LockExclusive)?;
        remove_stale(base);
        let dir = tempfile::Builder::new()
            .prefix("")
            .rand_bytes(8)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(base)?;
        let lock = lock_directory(dir.path(), FlockArg::LockExclusiveNonblock)?;
        Ok(Self { dir, lock })
    }

    /// The name that status shows.
    pub(crate) fn id(&self) -> String {
        self.dir.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.path().join(LOG)
    }

    /// The control socket's path, short enough for a socket's name wherever the directory is.
    pub(crate) fn socket(&self) -> PathBuf {
        short_path(&self.lock).join(SOCKET)
    }

    pub(crate) fn write(&self, record: &Record) -> Result<(), Error> {
        let path = self.dir.path().join(RECORD);
        let text = serde_json::to_vec_pretty(record).map_err(io::Error::from);
        text.and_then(|text| fs::write(&path, text)).map_err(|source| Error::State { path, source })
    }

    /// Leaves the directory where it is: the mount is still there, dead.
    pub(crate) fn leave(self) {
        let Self { dir, lock } = self;
        let _left = dir.keep();
        drop(lock);
    }
}

/// The state directory of some mount, as another process finds it.
pub(crate) struct FoundState {
    path: PathBuf,
    dir: File,
    pub(crate) record: Record,
}

impl FoundState {
    /// `None` where it is not (yet) one.
    fn open(path: PathBuf) -> Option<Self> {
        let dir = File::open(&path).ok()?;
        let record = serde_json::from_slice(&fs::read(path.join(RECORD)).ok()?).ok()?;
        Some(Self { path, dir, record })
    }

    pub(crate) fn socket(&self) -> PathBuf {
        short_path(&self.dir).join(SOCKET)
    }

    /// Whether the server still has its directory locked.
    pub(crate) fn is_served(&self) -> bool {
        match File::open(&self.path) {
            Ok(dir) => is_locked(dir),
            Err(_) => false,
        }
    }

    pub(crate) fn remove(&self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "state directory not removed");
        }
    }
}

/// All mounts of this user, in all `bases`, in the order of their start. Those that are gone altogether are cleaned up.
pub(crate) fn find_all(bases: &[PathBuf]) -> Vec<FoundState> {
    let mut found = Vec::new();
    for base in bases.iter().filter(|base| is_private(base).is_ok()) {
        // Where somebody else is at it, the next one cleans up.
        if let Ok(_parent) = lock_directory(base, FlockArg::LockExclusiveNonblock) {
            remove_stale(base);
        }
        found.extend(directories(base).filter_map(FoundState::open));
    }
    found.sort_by(|a, b| (a.record.started, &a.record.id).cmp(&(b.record.started, &b.record.id)));
    found
}

/// Removes the directories whose servers are gone and whose mounts are, too. `base` is locked.
fn remove_stale(base: &Path) {
    let Ok(table) = mounts::all() else { return };
    for path in directories(base) {
        // Shared, as everybody asks, so that two who ask do not take each other for the server.
        let Ok(lock) = lock_directory(&path, FlockArg::LockSharedNonblock) else { continue };
        let mounted =
            FoundState::open(path.clone()).is_some_and(|state| table.iter().any(|mount| state.record.describes(mount)));
        if !mounted && fs::remove_dir_all(&path).is_ok() {
            tracing::debug!(path = %path.display(), "removed the state of a server that is gone");
        }
        drop(lock);
    }
}

fn directories(base: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

/// Makes the directory where it is missing, and refuses one that others could have prepared.
fn ensure_private(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => is_private(dir),
    }
}

fn is_private(dir: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(dir)?;
    let ours = meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o077 == 0;
    let refused = || io::Error::new(io::ErrorKind::PermissionDenied, "not a directory of this user alone (mode 0700)");
    if ours { Ok(()) } else { Err(refused()) }
}

fn lock_directory(dir: &Path, how: FlockArg) -> io::Result<Flock<File>> {
    Flock::lock(File::open(dir)?, how).map_err(|(_, errno)| errno.into())
}

fn is_locked(dir: File) -> bool {
    matches!(Flock::lock(dir, FlockArg::LockSharedNonblock), Err((_, Errno::EWOULDBLOCK)))
}

/// A name of an open directory that fits into the 108 bytes of a socket's address.
pub(crate) fn short_path(dir: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(state: &OwnState) -> Record {
        Record {
            id: state.id(),
            pid: 1,
            image: "docker.io/library/x".into(),
            digest: Digest::of(b""),
            frontend: "fuse".into(),
            dir: "/mnt".into(),
            device: Device { major: 0, minor: u32::MAX },
            started: 1,
        }
    }

    #[test]
    fn where_state_is_kept() {
        let run = Path::new("/run/user/7");
        assert_eq!(state_dirs(7, Some(run)), ["/run/user/7/crfs", "/tmp/crfs-7"].map(PathBuf::from));
        assert_eq!(state_dirs(7, None), ["/run/user/7/crfs", "/tmp/crfs-7"].map(PathBuf::from));
        assert_eq!(state_dirs(7, Some(Path::new("here"))), state_dirs(7, None));
        assert_eq!(state_dirs(0, None), ["/run/crfs", "/tmp/crfs-0"].map(PathBuf::from));
        assert_eq!(state_dirs(0, Some(run)), ["/run/crfs", "/run/user/7/crfs", "/tmp/crfs-0"].map(PathBuf::from));
    }

    #[test]
    fn a_directory_that_others_may_enter_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let (open, good) = (dir.path().join("open"), dir.path().join("good"));
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        let error = OwnState::create(std::slice::from_ref(&open)).err().unwrap().to_string();
        assert!(error.contains("0700"), "{error}");
        assert!(OwnState::create(&[dir.path().join("link")]).is_err());
        let state = OwnState::create(&[open, good.clone()]).unwrap();
        assert_eq!(fs::metadata(&good).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(good.join(state.id())).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_served_state_is_found_and_goes_with_its_server() {
        let dir = tempfile::tempdir().unwrap();
        let bases = [dir.path().join("crfs")];
        let state = OwnState::create(&bases).unwrap();
        assert!(find_all(&bases).is_empty(), "not before it is written");
        let record = record(&state);
        state.write(&record).unwrap();
        let found = find_all(&bases);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].record, record);
        assert!(found[0].is_served());
        drop(state);
        assert!(!found[0].is_served());
        assert!(find_all(&bases).is_empty());
    }

    #[test]
    fn what_a_dead_server_left_is_removed_once_its_mount_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let bases = [dir.path().join("crfs")];
        let dead = OwnState::create(&bases).unwrap();
        dead.write(&record(&dead)).unwrap();
        let path = bases[0].join(dead.id());
        dead.leave();
        assert!(path.exists());
        let _other = OwnState::create(&bases).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_mount_that_is_still_in_the_table_is_told_from_one_that_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let state = OwnState::create(&[dir.path().join("crfs")]).unwrap();
        let record = record(&state);
        let mut mount = mounts::Mount {
            device: record.device,
            point: "/mnt".into(),
            kind: mounts::TYPE.into(),
            source: record.source().into(),
        };
        assert!(record.describes(&mount));
        mount.source = "other".into();
        assert!(!record.describes(&mount), "the number was given to another mount");
    }
}
