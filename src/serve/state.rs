//! What a mount is known by while it lives: one directory per mount, mode 0700.
//!
//! ```text
//! $XDG_RUNTIME_DIR/crfs/<id>/     root: /run/crfs/<id>/
//!     mount.json                  what is mounted where, written before the mount is ready
//!     control.sock                0600; where the server is asked (control.rs)
//!     server.log, server.log.1    JSON lines
//!     state.id                    the id: this directory is crfs's
//! ```
//!
//! Only such directories are ever removed, and only while there is nothing else in them (sys/own.rs): the directory above them may be somebody's. One is
//! made as `.new-<id>` and gets its own name once it says whose it is: whatever kills its maker, what is left is known to be crfs's.
//!
//! The server holds an flock(2) on its directory. Whoever gets that lock knows that the server is gone, however it ended.
//! Directories are made and cleaned up under a lock on their parent, so that none is taken for dead while it is being made.

use std::cmp::Ordering;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg, OFlag};
use rustix::fs::{FlockOperation, RenameFlags, flock, renameat, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Deserializer, Serialize};

use super::ask::{self, GLANCE as ANSWER, Unanswered};
use super::control::SOCKET;
use super::{Error, holders};
use crate::blob::Digest;
use crate::image::options::ImageOptions;
use crate::image::wire;
use crate::kernel::mounts::{self, Device};
use crate::sys::own::{Entry, EntryKind, OwnDir, short_path};
use crate::sys::trusted;

const RECORD: &str = "mount.json";
/// Those of older servers, which had one for each question.
const OLD_SOCKETS: [&str; 2] = ["leave.sock", "metrics.sock"];
const LOG: &str = "server.log";
/// The record while it is written.
const NEW_RECORD: &str = "mount.json.new";
const OLD_LOG: &str = "server.log.1";
/// The last of the names, so that it is the last to be removed.
const MARK: &str = "state.id";

/// Letters and digits of an id.
const ID_LENGTH: usize = 8;

/// Before the id of a directory that does not say yet whose it is.
const NEW: &str = ".new-";

/// Bytes of the longest record: it has some paths of up to 4 KiB, of which each byte may take a line.
const LONGEST_RECORD: u64 = 1 << 20;

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
    /// Which of the filesystems that have that number one after the other. Servers before 0.2 do not say.
    #[serde(default)]
    pub(crate) instance: Option<u64>,
    /// Who made it, as the mount table has it, and in which mount namespace. Servers before 0.2 do not say.
    #[serde(default)]
    pub(crate) user: Option<u32>,
    #[serde(default)]
    pub(crate) namespace: Option<String>,
    /// Seconds since 1970.
    pub(crate) started: u64,
    /// How the image was reached. Servers before 0.2 do not say.
    #[serde(default, deserialize_with = "readable")]
    pub(crate) options: Option<ImageOptions>,
    /// Its source in the mount table, where that is not the image, pinned.
    #[serde(default)]
    pub(crate) shown: Option<String>,
    /// All options of `crfs mount` as they were, for a remount to compare with.
    #[serde(default, with = "wire::paths")]
    pub(crate) words: Vec<PathBuf>,
}

/// Those that another version of crfs has written in another way cost no more than themselves.
fn readable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ImageOptions>, D::Error> {
    Ok(serde_json::from_value(serde_json::Value::deserialize(deserializer)?).ok())
}

impl Record {
    /// Whether this is what is known of that mount. The number alone may have been given to another one since, also to another user's.
    pub(crate) fn describes(&self, mount: &mounts::Mount) -> bool {
        self.may_be(mount) && self.is_instance(mount.device.instance())
    }

    /// The same of a mount that had that [`Device::instance`], and may be gone by now.
    pub(crate) fn described(&self, mount: &mounts::Mount, instance: Option<u64>) -> bool {
        self.may_be(mount) && self.is_instance(instance)
    }

    fn may_be(&self, mount: &mounts::Mount) -> bool {
        let is_users = self.user.is_none() || mount.user() == self.user;
        mount.is_ours() && mount.device == self.device && mount.source == *self.source() && is_users
    }

    fn is_instance(&self, instance: Option<u64>) -> bool {
        self.instance.zip(instance).is_none_or(|(own, other)| own == other)
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

    /// The source of the mount: what fstab has, or the image, pinned.
    pub(crate) fn source(&self) -> String {
        self.shown.clone().unwrap_or_else(|| format!("{}@{}", self.image, self.digest))
    }
}

/// The state directory of a mount that this process serves. Removed when it is dropped.
pub(crate) struct OwnState {
    dir: PathBuf,
    /// Locked for as long as any process has it open: this one, and whoever keeps the mount.
    lock: File,
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
        new.prefix(NEW).rand_bytes(ID_LENGTH).permissions(Permissions::from_mode(0o700));
        // Whoever drops a `TempDir` removes all that is in it, whosever it is.
        let dir = new.tempdir_in(path)?.keep();
        let lock = File::from(OwnDir::open(&dir)?.enter(".")?);
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let mut state = Self { dir, lock, stays: false };
        let name = state.id();
        let id = name.strip_prefix(NEW).unwrap_or(&name);
        fs::write(state.dir.join(MARK), id)?;
        let own = path.join(id);
        base.rename(&name, id)?;
        state.dir = own;
        Ok(state)
    }

    /// The one of a mount that this process is to go on with, of which it has an open descriptor that the process before has locked.
    pub(super) fn resumed(dir: PathBuf, lock: OwnedFd) -> Result<Self, Error> {
        let lock = File::from(lock);
        let locked = flock(&lock, FlockOperation::NonBlockingLockExclusive);
        locked.map_err(|errno| Error::State { path: dir.clone(), source: errno.into() })?;
        Ok(Self { dir, lock, stays: true })
    }

    /// From now on it goes with the mount.
    pub(super) fn take_over(&mut self) {
        self.stays = false;
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What keeps it locked.
    pub(super) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
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

    pub(crate) fn write(&self, record: &Record) -> Result<(), Error> {
        let (path, new) = (self.dir.join(RECORD), self.dir.join(NEW_RECORD));
        let text = serde_json::to_vec_pretty(record).map_err(io::Error::from);
        // Nobody reads a part of it, and what has its name does not change any more.
        let written = text.and_then(|text| fs::write(&new, text)).and_then(|()| fs::rename(&new, &path));
        written.map_err(|source| Error::State { path, source })
    }

    /// Leaves the directory where it is: the mount is still there, dead.
    pub(crate) fn leave(mut self) {
        self.stays = true;
    }
}

impl Drop for OwnState {
    fn drop(&mut self) {
        // After a panic another process may go on with the mount.
        if !self.stays && !std::thread::panicking() {
            remove(&self.dir, &self.lock);
        }
    }
}

/// Which record it is: another one may have come to its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Written {
    device: u64,
    inode: u64,
    /// An inode's number is given to the next file at once.
    changed: (i64, i64),
}

impl Written {
    fn of(found: &Metadata) -> Self {
        Self { device: found.dev(), inode: found.ino(), changed: (found.ctime(), found.ctime_nsec()) }
    }
}

/// The state directory of some mount, as another process finds it. Nothing of it is held open: there may be more of them than descriptors.
#[derive(Clone)]
pub(crate) struct FoundState {
    base: PathBuf,
    name: OsString,
    written: Written,
    pub(crate) record: Record,
}

impl FoundState {
    /// `None` where it is not (yet) one.
    fn open(base: &Base, name: &OsStr) -> io::Result<Option<Self>> {
        let read = known(base.dir.enter(name))?.map(|dir| read_record(&dir)).transpose()?.flatten();
        let found = |(written, record)| Self { base: base.path.clone(), name: name.to_owned(), written, record };
        Ok(read.map(found))
    }

    /// The directory, while it is still that of this mount.
    fn opened(&self) -> io::Result<OwnDir> {
        let dir = Base::existing(&self.base)?.dir.enter(&self.name)?;
        if self.is_in(&dir)? { Ok(dir) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn is_in(&self, dir: &OwnDir) -> io::Result<bool> {
        Ok(read_record(dir)?.is_some_and(|(written, _)| written == self.written))
    }

    fn by_start(a: &Self, b: &Self) -> Ordering {
        (a.record.started, &a.record.id).cmp(&(b.record.started, &b.record.id))
    }

    /// A connection to its server.
    pub(crate) fn connect(&self) -> Result<UnixStream, Unanswered> {
        ask::connect(self.opened().map_err(|source| Unanswered::Ended { source })?.as_fd(), ANSWER)
    }

    /// Whether the server still has its directory locked.
    ///
    /// # Errors
    /// Where that cannot be told: there are no more descriptors, or the filesystem fails.
    pub(crate) fn is_served(&self) -> io::Result<bool> {
        Ok(known(self.opened())?.map(|dir| is_locked(&dir)).transpose()?.unwrap_or(false))
    }

    /// Whether there may be a server that has it.
    pub(crate) fn may_be_served(&self) -> bool {
        self.is_served().unwrap_or(true)
    }

    /// The process that serves it, and the one that keeps it.
    pub(crate) fn servers(&self) -> Vec<u32> {
        let Some(dir) = self.opened().ok().filter(|dir| is_locked(dir).unwrap_or(true)) else { return Vec::new() };
        let server = ask::connect(dir.as_fd(), ANSWER).ok().and_then(|server| ask::server_of(&server).ok());
        let server = server.unwrap_or(self.record.pid);
        std::iter::once(server).chain(holders::keeper_of(server)).collect()
    }

    /// Removes it, if it is still that of this mount and nobody serves it.
    pub(crate) fn remove(&self) {
        let Ok(base) = Base::existing(&self.base) else { return };
        let Ok(_parent) = base.lock(PATIENCE) else { return };
        let is_its = |dir: OwnDir| Ok(self.is_in(&dir)? && !is_locked(&dir)?);
        if base.dir.enter(&self.name).and_then(is_its).unwrap_or(false) {
            base.remove(&self.name);
        }
    }
}

fn is_locked(dir: &OwnDir) -> io::Result<bool> {
    match lock(dir, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

/// `None` where something else has the name, or nothing. Other errors say nothing about that.
fn known<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    use nix::errno::Errno;
    const NOT_IT: [Errno; 4] = [Errno::ENOENT, Errno::ENOTDIR, Errno::ELOOP, Errno::EXDEV];
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if NOT_IT.iter().any(|errno| error.raw_os_error() == Some(*errno as i32)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All mounts of this user, in all `bases`, in the order of their start. Those that are gone altogether are cleaned up.
///
/// # Errors
/// Where one of `bases` does not answer.
pub(crate) fn found_in(bases: &[PathBuf]) -> Result<Vec<FoundState>, Error> {
    match found_where_answered(bases) {
        (_, Some(error)) => Err(error),
        (found, None) => Ok(found),
    }
}

/// The same of those of `bases` that answer, and why one does not.
pub(crate) fn found_where_answered(bases: &[PathBuf]) -> (Vec<FoundState>, Option<Error>) {
    let (mut found, mut silent) = (Vec::new(), None);
    for base in bases {
        let asked = base.clone();
        let (some, error) = match mounts::answered(base, move || Ok(find_all(&asked))) {
            Ok((some, unread)) => (some, unread),
            Err(error) => (Vec::new(), Some(error)),
        };
        found.extend(some);
        silent = silent.or(error);
    }
    found.sort_by(FoundState::by_start);
    (found, silent)
}

/// And why one of them cannot be read.
fn find_all(path: &Path) -> (Vec<FoundState>, Option<Error>) {
    let unread = |path: PathBuf, source| Some(Error::UnreadState { path, source });
    let base = match known(Base::existing(path)) {
        Ok(Some(base)) => base,
        Ok(None) => return (Vec::new(), None),
        // One that is not of this user alone has none of its mounts.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return (Vec::new(), None),
        Err(error) => return (Vec::new(), unread(path.to_owned(), error)),
    };
    // Where somebody else is at it, the next one cleans up.
    if let Ok(_parent) = base.lock(Duration::ZERO) {
        base.remove_stale();
    }
    let (mut found, mut silent) = (Vec::new(), None);
    for name in base.ids() {
        match FoundState::open(&base, &name) {
            Ok(state) => found.extend(state),
            Err(error) => silent = silent.or_else(|| unread(path.join(&name), error)),
        }
    }
    (found, silent)
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
    fn ids(&self) -> Vec<OsString> {
        self.directories(is_id)
    }

    fn directories(&self, is_one: impl Fn(&OsStr) -> bool) -> Vec<OsString> {
        let entries = self.dir.list().unwrap_or_default().into_iter();
        let found = entries.filter(|entry| entry.kind == EntryKind::Directory && is_one(&entry.name));
        found.map(|entry| entry.name).collect()
    }

    /// Gives a directory in it another name, which nothing has.
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        match renameat_with(&self.dir, from, &self.dir, to, RenameFlags::NOREPLACE) {
            // Not every filesystem can do it so. An empty directory would be replaced.
            Err(Errno::INVAL | Errno::NOSYS) if self.dir.at(Path::new(to), OFlag::O_PATH).is_err() => {
                Ok(renameat(&self.dir, from, &self.dir, to)?)
            }
            renamed => Ok(renamed?),
        }
    }

    /// Removes the directories whose servers are gone and whose mounts are, too. It is locked.
    fn remove_stale(&self) {
        let Ok(table) = mounts::all() else { return };
        for name in self.ids() {
            let Ok(dir) = self.dir.enter(&name) else { continue };
            // Shared, as everybody asks, so that two who ask do not take each other for the server.
            let Ok(_lock) = lock(&dir, FlockArg::LockSharedNonblock) else { continue };
            // Where that cannot be told, it stays.
            let is_mounted = read_record(&dir).map(|read| read.is_some_and(|(_, record)| record.is_mounted(&table)));
            if !is_mounted.unwrap_or(true) {
                self.remove(&name);
            }
        }
        // Whoever makes one has the lock.
        for name in self.directories(is_new) {
            self.remove_known(&name, |entry| entry.kind == EntryKind::File && entry.name == MARK);
        }
    }

    /// Removes a state directory, if it is one.
    fn remove(&self, name: &OsStr) {
        let is_one = self.dir.enter(name).is_ok_and(|dir| is_state(&dir, name));
        if is_one {
            self.remove_known(name, is_of_state);
        }
    }

    fn remove_known(&self, name: &OsStr, known: impl Fn(&Entry) -> bool) {
        match self.dir.remove_with(name, known) {
            Ok(()) => {
                tracing::debug!(path = %self.path.join(name).display(), "removed the state of a server that is gone")
            }
            Err(error) => {
                tracing::debug!(%error, path = %self.path.join(name).display(), "state directory not removed");
            }
        }
    }
}

fn is_id(name: &OsStr) -> bool {
    name.len() == ID_LENGTH && name.as_bytes().iter().all(u8::is_ascii_alphanumeric)
}

fn is_new(name: &OsStr) -> bool {
    name.as_bytes().strip_prefix(NEW.as_bytes()).is_some_and(|id| is_id(OsStr::from_bytes(id)))
}

/// Whether a directory says of itself that it is a mount's. Before 0.2, only the record did.
fn is_state(dir: &OwnDir, name: &OsStr) -> bool {
    let marked = dir.read(MARK, ID_LENGTH as u64).is_ok_and(|id| id == name.as_bytes());
    marked || matches!(read_record(dir), Ok(Some((_, record))) if *record.id == *name)
}

/// Whether it is a file that crfs puts into a state directory.
fn is_of_state(entry: &Entry) -> bool {
    match entry.kind {
        EntryKind::File => [RECORD, NEW_RECORD, LOG, OLD_LOG, MARK].iter().any(|name| entry.name == *name),
        EntryKind::Socket => OLD_SOCKETS.iter().chain([&SOCKET]).any(|name| entry.name == *name),
        _ => false,
    }
}

/// `None` where there is none.
fn read_record(dir: &OwnDir) -> io::Result<Option<(Written, Record)>> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
    let Some(file) = known(dir.at(Path::new(RECORD), flags))? else { return Ok(None) };
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut text = Vec::new();
    // One that is longer ends in the middle, which is none.
    (&file).take(LONGEST_RECORD).read_to_end(&mut text)?;
    // It got its name after it was written, which counts as a change.
    let written = Written::of(&file.metadata()?);
    Ok(serde_json::from_slice(&text).ok().map(|record| (written, record)))
}

/// Removes the state directory at a path, if it is the one that is open.
fn remove(path: &Path, open: &File) {
    let Some((base, name)) = path.parent().zip(path.file_name()) else { return };
    let Ok(base) = Base::existing(base) else { return };
    let is_it = |dir: OwnDir| {
        let (found, open) = (dir.metadata().ok()?, open.metadata().ok()?);
        Some((found.dev(), found.ino()) == (open.dev(), open.ino()))
    };
    if base.dir.enter(name).ok().and_then(is_it) == Some(true) {
        match is_new(name) {
            true => base.remove_known(name, |entry| entry.kind == EntryKind::File && entry.name == MARK),
            false => base.remove(name),
        }
    }
}

/// By a description of its own: a lock belongs to one.
fn lock(dir: &OwnDir, how: FlockArg) -> io::Result<Flock<File>> {
    Flock::lock(dir.enter(".")?.into(), how).map_err(|(_, errno)| errno.into())
}

#[cfg(test)]
mod tests;
