//! What a mount is known by while it lives: one directory per mount, mode 0700.
//!
//! ```text
//! $XDG_RUNTIME_DIR/crfs/<id>/     root: /run/crfs/<id>/
//!     mount.json                  what is mounted where, written before the mount is ready
//!     control.sock                0600; answers every connection with the server's status as JSON
//!     leave.sock                  0600; a connection asks the server to unmount, if nothing uses the mount
//!     server.log, server.log.1    JSON lines
//!     state.id                    the id: this directory is crfs's
//! ```
//!
//! Only such directories are ever removed, and only while there is nothing else in them (sys/own.rs): the directory above them may be somebody's.
//!
//! The server holds an flock(2) on its directory. Whoever gets that lock knows that the server is gone, however it ended.
//! Directories are made and cleaned up under a lock on their parent, so that none is taken for dead while it is being made.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::mounts::{self, Device};
use super::{Error, control, holders, wire};
use crate::blob::Digest;
use crate::sys::own::{Entry, EntryKind, OwnDir};
use crate::sys::trusted;

const RECORD: &str = "mount.json";
const SOCKET: &str = "control.sock";
const LEAVE: &str = "leave.sock";
const LOG: &str = "server.log";
const OLD_LOG: &str = "server.log.1";
/// The last of the names, so that it is the last to be removed.
const MARK: &str = "state.id";

/// Letters and digits of an id.
const ID_LENGTH: usize = 8;

/// Bytes of the longest record: a path has 4 KiB.
const LONGEST_RECORD: u64 = 64 << 10;

/// How long a mount waits for others that have the directory of all mounts. They have it for a few files' time.
const PATIENCE: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_millis(5);

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
    /// Who made it, as the mount table has it, and in which mount namespace. Servers before 0.2 do not say.
    #[serde(default)]
    pub(crate) user: Option<u32>,
    #[serde(default)]
    pub(crate) namespace: Option<String>,
    /// Seconds since 1970.
    pub(crate) started: u64,
}

impl Record {
    /// Whether this is what is known of that mount. The number alone may have been given to another one since, also to another user's.
    pub(crate) fn describes(&self, mount: &mounts::Mount) -> bool {
        let is_users = self.user.is_none() || mount.user() == self.user;
        mount.is_ours() && mount.device == self.device && mount.source == *self.source() && is_users
    }

    /// Whether its mount is in the mount table of this process or, where that is in another mount namespace, in anybody's.
    fn is_mounted(&self, table: &[mounts::Mount]) -> bool {
        let is_it = |mount: &mounts::Mount| self.describes(mount);
        table.iter().any(is_it) || (self.is_foreign() && !holders::of(is_it, &self.dir, &[]).is_empty())
    }

    /// Whether it was mounted in another mount namespace than that of this process.
    pub(crate) fn is_foreign(&self) -> bool {
        self.namespace.is_some() && self.namespace != holders::own_namespace()
    }

    /// The source of the mount: the image, pinned.
    pub(crate) fn source(&self) -> String {
        format!("{}@{}", self.image, self.digest)
    }
}

/// The state directory of a mount that this process serves. Removed when it is dropped.
pub(crate) struct OwnState {
    dir: PathBuf,
    lock: Flock<File>,
    stays: bool,
}

impl OwnState {
    /// Makes one in the first of `bases` that can be used, and cleans up after servers that are gone there.
    pub(crate) fn create(bases: &[PathBuf]) -> Result<Self, Error> {
        Self::create_within(PATIENCE, bases)
    }

    fn create_within(patience: Duration, bases: &[PathBuf]) -> Result<Self, Error> {
        let mut tried = Vec::new();
        for base in bases {
            match Self::create_in(base, patience) {
                Ok(state) => return Ok(state),
                Err(error) => tried.push(format!("{}: {error}", base.display())),
            }
        }
        Err(Error::NoStateDirectory { tried: tried.join(", ") })
    }

    fn create_in(path: &Path, patience: Duration) -> io::Result<Self> {
        let base = Base::made(path)?;
        let _parent = base.lock(patience)?;
        base.remove_stale();
        let mut new = tempfile::Builder::new();
        new.prefix("").rand_bytes(ID_LENGTH).permissions(Permissions::from_mode(0o700));
        // Whoever drops a `TempDir` removes all that is in it, whosever it is.
        let dir = new.tempdir_in(path)?.keep();
        let lock = lock(&OwnDir::open(&dir)?, FlockArg::LockExclusiveNonblock)?;
        let state = Self { dir, lock, stays: false };
        fs::write(state.dir.join(MARK), state.id())?;
        Ok(state)
    }

    /// The name that status shows.
    pub(crate) fn id(&self) -> String {
        self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join(LOG)
    }

    /// The control socket's path, short enough for a socket's name wherever the directory is.
    pub(crate) fn socket(&self) -> PathBuf {
        short_path(self.lock.as_fd()).join(SOCKET)
    }

    /// The path of the socket by which the server is asked to unmount.
    pub(crate) fn leave_socket(&self) -> PathBuf {
        short_path(self.lock.as_fd()).join(LEAVE)
    }

    pub(crate) fn write(&self, record: &Record) -> Result<(), Error> {
        let path = self.dir.join(RECORD);
        let text = serde_json::to_vec_pretty(record).map_err(io::Error::from);
        text.and_then(|text| fs::write(&path, text)).map_err(|source| Error::State { path, source })
    }

    /// Leaves the directory where it is: the mount is still there, dead.
    pub(crate) fn leave(mut self) {
        self.stays = true;
    }
}

impl Drop for OwnState {
    fn drop(&mut self) {
        if !self.stays {
            remove(&self.dir);
        }
    }
}

/// The state directory of some mount, as another process finds it.
pub(crate) struct FoundState {
    path: PathBuf,
    dir: OwnDir,
    pub(crate) record: Record,
}

impl FoundState {
    /// `None` where it is not (yet) one.
    fn open(base: &Base, name: &OsStr) -> Option<Self> {
        let dir = base.dir.enter(name).ok()?;
        let record = read_record(&dir)?;
        Some(Self { path: base.path.join(name), dir, record })
    }

    fn by_start(a: &Self, b: &Self) -> Ordering {
        (a.record.started, &a.record.id).cmp(&(b.record.started, &b.record.id))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        short_path(self.dir.as_fd()).join(SOCKET)
    }

    pub(crate) fn leave_socket(&self) -> PathBuf {
        short_path(self.dir.as_fd()).join(LEAVE)
    }

    /// Whether the server still has its directory locked.
    pub(crate) fn is_served(&self) -> bool {
        lock(&self.dir, FlockArg::LockSharedNonblock).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// The process that serves it.
    pub(crate) fn server(&self) -> Option<u32> {
        self.is_served().then(|| control::server_of(&self.socket()).unwrap_or(self.record.pid))
    }

    pub(crate) fn remove(&self) {
        remove(&self.path);
    }
}

/// All mounts of this user, in all `bases`, in the order of their start. Those that are gone altogether are cleaned up.
///
/// # Errors
/// Where one of `bases` does not answer.
pub(crate) fn found_in(bases: &[PathBuf]) -> Result<Vec<FoundState>, Error> {
    let mut found = Vec::new();
    for base in bases {
        let bases = [base.clone()];
        found.extend(mounts::answered(base, move || Ok(find_all(&bases)))?);
    }
    found.sort_by(FoundState::by_start);
    Ok(found)
}

fn find_all(bases: &[PathBuf]) -> Vec<FoundState> {
    let mut found = Vec::new();
    for base in bases.iter().filter_map(|base| Base::existing(base).ok()) {
        // Where somebody else is at it, the next one cleans up.
        if let Ok(_parent) = base.lock(Duration::ZERO) {
            base.remove_stale();
        }
        found.extend(base.ids().iter().filter_map(|name| FoundState::open(&base, name)));
    }
    found.sort_by(FoundState::by_start);
    found
}

/// The directory of all mounts of a user. It may hold other things as well: its place follows from a variable.
struct Base {
    path: PathBuf,
    dir: OwnDir,
}

impl Base {
    fn existing(path: &Path) -> io::Result<Self> {
        Self::private(path, trusted::existing(path)?.into())
    }

    fn made(path: &Path) -> io::Result<Self> {
        Self::private(path, trusted::made(path, 0o700)?.into())
    }

    fn private(path: &Path, dir: OwnDir) -> io::Result<Self> {
        let meta = dir.metadata()?;
        let refused =
            || io::Error::new(io::ErrorKind::PermissionDenied, "not a directory of this user alone (mode 0700)");
        match meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o077 == 0 {
            true => Ok(Self { path: path.to_owned(), dir }),
            false => Err(refused()),
        }
    }

    /// Waits for those who have it no longer than `patience`.
    fn lock(&self, patience: Duration) -> io::Result<Flock<File>> {
        let start = Instant::now();
        loop {
            match lock(&self.dir, FlockArg::LockExclusiveNonblock) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && start.elapsed() < patience => {
                    std::thread::sleep(GLANCE);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let why = format!("another process has kept it locked for {} s", patience.as_secs());
                    return Err(io::Error::new(io::ErrorKind::WouldBlock, why));
                }
                locked => return locked,
            }
        }
    }

    /// Names in it that may be those of state directories.
    fn ids(&self) -> Vec<std::ffi::OsString> {
        let is_id = |name: &OsStr| name.len() == ID_LENGTH && name.as_bytes().iter().all(u8::is_ascii_alphanumeric);
        let entries = self.dir.list().unwrap_or_default().into_iter();
        entries
            .filter(|entry| entry.kind == EntryKind::Directory && is_id(&entry.name))
            .map(|entry| entry.name)
            .collect()
    }

    /// Removes the directories whose servers are gone and whose mounts are, too. It is locked.
    fn remove_stale(&self) {
        let Ok(table) = mounts::all() else { return };
        for name in self.ids() {
            let Ok(dir) = self.dir.enter(&name) else { continue };
            // Shared, as everybody asks, so that two who ask do not take each other for the server.
            let Ok(_lock) = lock(&dir, FlockArg::LockSharedNonblock) else { continue };
            if !read_record(&dir).is_some_and(|record| record.is_mounted(&table)) {
                self.remove(&name);
            }
        }
    }

    /// Removes a state directory, if it is one.
    fn remove(&self, name: &OsStr) {
        let is_one = self.dir.enter(name).is_ok_and(|dir| is_state(&dir, name));
        if !is_one {
            return;
        }
        match self.dir.remove_with(name, is_of_state) {
            Ok(()) => {
                tracing::debug!(path = %self.path.join(name).display(), "removed the state of a server that is gone")
            }
            Err(error) => {
                tracing::debug!(%error, path = %self.path.join(name).display(), "state directory not removed");
            }
        }
    }
}

/// Whether a directory says of itself that it is a mount's. Before 0.2, only the record did.
fn is_state(dir: &OwnDir, name: &OsStr) -> bool {
    let marked = dir.read(MARK, ID_LENGTH as u64).is_ok_and(|id| id == name.as_bytes());
    marked || read_record(dir).is_some_and(|record| *record.id == *name)
}

/// Whether it is a file that crfs puts into a state directory.
fn is_of_state(entry: &Entry) -> bool {
    match entry.kind {
        EntryKind::File => [RECORD, LOG, OLD_LOG, MARK].iter().any(|name| entry.name == *name),
        EntryKind::Socket => [SOCKET, LEAVE].iter().any(|name| entry.name == *name),
        _ => false,
    }
}

fn read_record(dir: &OwnDir) -> Option<Record> {
    serde_json::from_slice(&dir.read(RECORD, LONGEST_RECORD).ok()?).ok()
}

/// Removes the state directory at a path, if it is one.
fn remove(path: &Path) {
    if let Some((base, name)) = path.parent().zip(path.file_name()) {
        if let Ok(base) = Base::existing(base) {
            base.remove(name);
        }
    }
}

/// By a description of its own: a lock belongs to one.
fn lock(dir: &OwnDir, how: FlockArg) -> io::Result<Flock<File>> {
    Flock::lock(dir.enter(".")?.into(), how).map_err(|(_, errno)| errno.into())
}

/// A name of an open directory that fits into the 108 bytes of a socket's address.
pub(crate) fn short_path(dir: BorrowedFd<'_>) -> PathBuf {
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
            user: Some(0),
            namespace: None,
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
        std::os::unix::fs::symlink(&open, dir.path().join("link")).unwrap();
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
    fn a_state_goes_with_all_that_a_server_puts_into_it() {
        let dir = tempfile::tempdir().unwrap();
        let bases = [dir.path().join("crfs")];
        let state = OwnState::create(&bases).unwrap();
        state.write(&record(&state)).unwrap();
        let _sockets = [state.socket(), state.leave_socket()].map(|path| control::bind(&path).unwrap());
        for log in [LOG, OLD_LOG] {
            fs::write(state.dir.join(log), "{}\n").unwrap();
        }
        let path = state.dir.clone();
        drop(state);
        assert!(!path.exists());
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
    fn what_is_not_of_crfs_stays_whatever_it_looks_like() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let bases = [dir.path().join("crfs")];
        drop(OwnState::create(&bases).unwrap());
        let path = |name: &str| bases[0].join(name);
        let files = [
            "overlay/upper/work",
            "Projects/server.log",
            "Projekte/mount.json",
            "abcd1234/state.id",
            "abcd1235/state.id",
            "abcd1235/mine",
            "abcd1236/mount.json",
        ];
        for file in files {
            fs::create_dir_all(path(file).parent().unwrap()).unwrap();
            fs::write(path(file), "mine").unwrap();
        }
        // It says that it is one, but there is more in it.
        fs::write(path("abcd1235/state.id"), "abcd1235").unwrap();
        // The state of another directory, copied.
        let state = OwnState::create(&bases).unwrap();
        state.write(&record(&state)).unwrap();
        fs::copy(path(&state.id()).join(RECORD), path("abcd1236/mount.json")).unwrap();
        fs::create_dir(path("empty000")).unwrap();
        symlink("overlay", path("link0000")).unwrap();
        nix::unistd::mkfifo(&path("Projects/mount.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for _ in 0..2 {
            assert_eq!(find_all(&bases).iter().filter(|found| found.is_served()).count(), 1);
            let _next = OwnState::create(&bases).unwrap();
        }
        drop(state);
        for kept in files.iter().chain(&["empty000", "link0000"]) {
            assert!(path(kept).exists(), "{kept}");
        }
        assert_eq!(fs::read_dir(&bases[0]).unwrap().count(), 8, "and nothing of crfs's is left");
    }

    #[test]
    fn nothing_goes_through_a_mount() {
        use nix::mount::{MntFlags, MsFlags, mount, umount2};
        let dir = tempfile::tempdir().unwrap();
        let bases = [dir.path().join("crfs")];
        // As a server leaves it; its name is on another directory by now.
        let dead = OwnState::create(&bases).unwrap();
        let (id, theirs) = (dead.id(), dir.path().join("theirs"));
        dead.leave();
        fs::create_dir(&theirs).unwrap();
        fs::write(theirs.join(MARK), &id).unwrap();
        let (point, none) = (bases[0].join(&id), None::<&str>);
        if mount(Some(&theirs), &point, none, MsFlags::MS_BIND, none).is_err() {
            return;
        }
        assert!(find_all(&bases).is_empty());
        umount2(&point, MntFlags::MNT_DETACH).unwrap();
        assert!(theirs.join(MARK).exists());
        assert!(find_all(&bases).is_empty() && !point.exists(), "without the mount it is crfs's");
    }

    #[test]
    fn a_directory_that_is_locked_is_waited_for_with_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let bases = [dir.path().join("crfs"), dir.path().join("other")];
        let first = OwnState::create(&bases).unwrap();
        let _held = lock(&OwnDir::open(&bases[0]).unwrap(), FlockArg::LockExclusive).unwrap();
        let error = OwnState::create_within(Duration::ZERO, &bases[..1]).err().unwrap().to_string();
        assert!(error.contains("locked") && error.contains("crfs"), "{error}");
        let second = OwnState::create_within(Duration::ZERO, &bases).unwrap();
        assert!(bases[0].join(first.id()).exists() && bases[1].join(second.id()).exists());
    }

    #[test]
    fn a_place_that_somebody_else_has_prepared_is_not_used() {
        use std::os::unix::fs::{lchown, symlink};
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o1777)).unwrap();
        let (theirs, link) = (dir.path().join("private"), dir.path().join("crfs-7"));
        fs::create_dir(&theirs).unwrap();
        fs::set_permissions(&theirs, Permissions::from_mode(0o700)).unwrap();
        symlink(&theirs, &link).unwrap();
        if lchown(&link, Some(4242), None).is_err() {
            return;
        }
        let error = OwnState::create(&[link.join("crfs")]).err().unwrap().to_string();
        assert!(error.contains("user 4242"), "{error}");
        assert_eq!(fs::read_dir(&theirs).unwrap().count(), 0);
    }

    #[test]
    fn a_dead_mount_that_is_still_in_the_table_is_told_from_one_that_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let state = OwnState::create(&[dir.path().join("crfs")]).unwrap();
        let record = record(&state);
        let mut mount = mounts::Mount {
            id: 7,
            parent: 1,
            device: record.device,
            point: "/mnt".into(),
            kind: mounts::TYPE.into(),
            source: record.source().into(),
            options: "ro,user_id=0,group_id=0".into(),
        };
        assert!(record.describes(&mount));
        mount.options = "ro,user_id=7,group_id=0".into();
        assert!(!record.describes(&mount), "the number was given to another user's mount of the same image");
        assert!(Record { user: None, ..record.clone() }.describes(&mount), "an older server's");
        mount.source = "other".into();
        assert!(!Record { user: None, ..record }.describes(&mount), "the number was given to another mount");
    }
}
