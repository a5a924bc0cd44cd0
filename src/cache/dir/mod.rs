//! A directory that crfs owns, and the only way to a path below it: no symlink on the way is ever followed, so that nothing planted in a
//! cache can make crfs read or write elsewhere.

mod listing;
mod shape;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, openat2, renameat};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::{Mode, SFlag, fstatat, mkdirat};
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::{UnlinkatFlags, geteuid, linkat, unlinkat};

pub(super) use self::listing::is_temporary;
use super::lock::{self, Kind};
use crate::sys::own::{OwnDir, regular};
use crate::sys::trusted;

/// Owner only: what is cached may come from private registries.
const FILE_MODE: Mode = Mode::from_bits_truncate(0o600);
const DIR_MODE: Mode = Mode::from_bits_truncate(0o700);

/// Descriptors that the cache leaves to others, where it could take them all.
const KEPT_DESCRIPTORS: u64 = 256;

pub(super) struct Dir {
    own: OwnDir,
    path: PathBuf,
}

/// Closes a file whose descriptor is one of the last that the process may have. The kernel gives the lowest number that is free, and
/// connections cannot be done without: the cache can.
fn unless_scarce(file: File) -> io::Result<File> {
    let Ok((limit, _)) = getrlimit(Resource::RLIMIT_NOFILE) else { return Ok(file) };
    let kept = (limit / 2).min(KEPT_DESCRIPTORS);
    let is_scarce = u64::try_from(file.as_raw_fd()).is_ok_and(|number| number >= limit - kept);
    if is_scarce { Err(Errno::EMFILE.into()) } else { Ok(file) }
}

impl Dir {
    /// Opens the directory `name` in the one at `path`, making both (and what leads there) where they are missing.
    pub(super) fn create(path: &Path, name: &str) -> io::Result<Self> {
        let above = trusted::made(path, DIR_MODE.bits())?;
        match mkdirat(&above, name, DIR_MODE) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        Self::within(above.into(), name, path)
    }

    /// Opens a directory that is there.
    pub(super) fn existing(path: &Path, name: &str) -> io::Result<Self> {
        Self::within(trusted::existing(path)?.into(), name, path)
    }

    fn within(above: OwnDir, name: &str, path: &Path) -> io::Result<Self> {
        let own = above.enter(name)?;
        let found = own.metadata()?;
        // What others may write could change after it was verified.
        if found.uid() != geteuid().as_raw() || found.mode() & 0o022 != 0 {
            return Err(io::Error::other("it belongs to another user, or others may write to it"));
        }
        Ok(Self { own, path: path.join(name) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether what another process writes is seen at once: on NFS and the like one of another machine may write, and what it evicts is
    /// seen before the generation that tells so.
    pub(super) fn is_coherent(&self) -> bool {
        // statfs(2): NFS, SMB, CIFS, SMB2, AFS, 9p.
        const REMOTE: [FsType; 6] = [
            FsType(0x6969),
            FsType(0x517b),
            FsType(0xff53_4d42),
            FsType(0xfe53_4d42),
            FsType(0x5346_414f),
            FsType(0x0102_1997),
        ];
        fstatfs(&self.own).is_ok_and(|found| !REMOTE.contains(&found.filesystem_type()))
    }

    /// Comes back once its disk has answered.
    pub(super) fn ask_disk(&self) {
        self.own.ask_disk();
    }

    /// The directory itself.
    pub(super) fn file(&self) -> io::Result<File> {
        Ok(self.own.as_fd().try_clone_to_owned()?.into())
    }

    fn at(&self, path: &Path, flags: OFlag) -> io::Result<File> {
        unless_scarce(self.own.at(path, flags)?)
    }

    /// An existing regular file, to read.
    pub(super) fn open(&self, path: &Path) -> io::Result<File> {
        regular(self.at(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?)
    }

    /// Whether there is no regular file at a path, as far as that can be told.
    pub(super) fn lacks(&self, path: &Path) -> bool {
        self.open(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound || is_in_the_way(&error))
    }

    /// An existing regular file, to read and write.
    pub(super) fn open_to_write(&self, path: &Path) -> io::Result<File> {
        regular(self.at(path, OFlag::O_RDWR | OFlag::O_NONBLOCK)?)
    }

    /// A regular file to read and write, made where it is missing. What stands in its place and is none (a planted symlink, a directory)
    /// is removed.
    pub(super) fn open_or_create(&self, path: &Path) -> io::Result<File> {
        let open = || regular(self.at(path, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NONBLOCK)?);
        self.make_parents(path)?;
        open().or_else(|error| {
            if !is_in_the_way(&error) {
                return Err(error);
            }
            self.remove(path).map_err(|_| error)?;
            open()
        })
    }

    /// A file without a name on the same filesystem, gone with its last descriptor.
    pub(super) fn unnamed(&self) -> io::Result<File> {
        let how = OpenHow::new().flags(OFlag::O_RDWR | OFlag::O_TMPFILE | OFlag::O_CLOEXEC).mode(FILE_MODE);
        let made = openat2(self.own.as_fd(), ".", how).map(File::from);
        unless_scarce(made.or_else(|_| self.named_for_a_moment())?)
    }

    /// The same where every file has a name at first.
    fn named_for_a_moment(&self) -> io::Result<File> {
        let name = temporary(Path::new(shape::UNNAMED));
        let file = self.own.at(&name, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL)?;
        self.remove(&name)?;
        Ok(file)
    }

    /// Gives a file without a name one; `false`: there is such a file.
    pub(super) fn link(&self, file: &File, path: &Path) -> io::Result<bool> {
        self.make_parents(path)?;
        let (parent, name) = path.parent().zip(path.file_name()).ok_or(io::ErrorKind::InvalidInput)?;
        let parent = self.at(parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        let descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
        let linked = linkat(AT_FDCWD, descriptor.as_str(), &parent, name, AtFlags::AT_SYMLINK_FOLLOW);
        match linked {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// All of a file of at most `limit` bytes.
    pub(super) fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(io::Error::other(format!("more than {limit} bytes")));
        }
        Ok(bytes)
    }

    /// Writes a file whole: a reader sees all of it or what was there before.
    pub(super) fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.make_parents(path)?;
        let temporary = temporary(path);
        let written = self.at(&temporary, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL).and_then(|mut file| {
            // For `sweep`: it is not left over.
            let _ = lock::try_keep(&file, Kind::Exclusive, 0);
            file.write_all(bytes)?;
            self.rename(&temporary, path)
        });
        if written.is_err() {
            let _ = self.remove(&temporary);
        }
        written
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        match renameat(from_dir.as_fd(), &from_name, to_dir.as_fd(), &to_name) {
            Err(Errno::EISDIR | Errno::ENOTEMPTY | Errno::EEXIST) => {
                self.remove(to)?;
                Ok(renameat(from_dir.as_fd(), &from_name, to_dir.as_fd(), &to_name)?)
            }
            renamed => Ok(renamed?),
        }
    }

    /// Removes a file, a symlink or an empty directory.
    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        match unlinkat(dir.as_fd(), &name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR) => Ok(unlinkat(dir.as_fd(), &name, UnlinkatFlags::RemoveDir)?),
            removed => Ok(removed?),
        }
    }

    fn parent(&self, path: &Path) -> io::Result<(File, PathBuf)> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        Ok((self.at(parent, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?, PathBuf::from(name)))
    }

    fn make_parents(&self, path: &Path) -> io::Result<()> {
        let mut ancestors: Vec<&Path> = path.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()).collect();
        ancestors.reverse();
        for dir in ancestors {
            if self.at(dir, OFlag::O_RDONLY | OFlag::O_DIRECTORY).is_ok() {
                continue;
            }
            let (parent, name) = self.parent(dir)?;
            match mkdirat(parent.as_fd(), &name, DIR_MODE) {
                Ok(()) => {}
                Err(Errno::EEXIST) => self.replace_by_directory(&parent, &name, dir)?,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Something stands where a directory of ours belongs: another process may just have made it, or it is a planted symlink. What is neither may be
    /// somebody's.
    fn replace_by_directory(&self, parent: &File, name: &Path, dir: &Path) -> io::Result<()> {
        if self.at(dir, OFlag::O_RDONLY | OFlag::O_DIRECTORY).is_ok() {
            return Ok(());
        }
        let found = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT != SFlag::S_IFLNK {
            return Err(Errno::ENOTDIR.into());
        }
        unlinkat(parent.as_fd(), name, UnlinkatFlags::NoRemoveDir)?;
        match mkdirat(parent.as_fd(), name, DIR_MODE) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The name beside a path under which a file is written, which no other has.
fn temporary(path: &Path) -> PathBuf {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    // Processes in different containers may have the same number.
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |now| now.as_nanos());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(shape::temporary(std::process::id(), serial, now));
    path.with_file_name(name)
}

/// Whether what stands at a path is the reason that no file could be opened there; everything else says nothing against the file.
fn is_in_the_way(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    error.kind() == io::ErrorKind::InvalidInput || matches!(errno, Some(Errno::ELOOP | Errno::EISDIR | Errno::ENXIO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    pub(super) fn dir() -> (tempfile::TempDir, Dir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::create(&temp.path().join("cache"), "v").unwrap();
        (temp, dir)
    }

    #[test]
    fn files_are_written_whole_and_read_back() {
        let (_temp, dir) = dir();
        let path = Path::new("a/b/c");
        dir.write(path, b"one").unwrap();
        dir.write(path, b"two").unwrap();
        assert_eq!(dir.read(path, 3).unwrap(), b"two");
        assert!(dir.read(path, 2).is_err(), "more than the limit");
        assert_eq!(std::fs::read_dir(dir.path().join("a/b")).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn planted_symlinks_are_not_followed_but_replaced() {
        let (temp, dir) = dir();
        let outside = temp.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("file"), b"secret").unwrap();

        symlink(outside.join("file"), dir.path().join("link")).unwrap();
        assert!(dir.read(Path::new("link"), 100).is_err());
        dir.open_or_create(Path::new("link")).unwrap().write_all(b"mine").unwrap();
        symlink(&outside, dir.path().join("sub")).unwrap();
        dir.write(Path::new("sub/file"), b"mine").unwrap();

        assert_eq!(std::fs::read(outside.join("file")).unwrap(), b"secret");
        assert_eq!(dir.read(Path::new("link"), 100).unwrap(), b"mine");
        assert_eq!(dir.read(Path::new("sub/file"), 100).unwrap(), b"mine");
    }

    #[test]
    fn what_is_no_file_is_replaced() {
        let (_temp, dir) = dir();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        assert!(dir.open(Path::new("data")).is_err());
        dir.open_or_create(Path::new("data")).unwrap().write_all(b"x").unwrap();
        std::fs::create_dir(dir.path().join("other")).unwrap();
        dir.write(Path::new("other"), b"y").unwrap();
        assert_eq!(dir.read(Path::new("other"), 9).unwrap(), b"y");
    }

    #[test]
    fn a_file_where_a_directory_belongs_stays() {
        let (_temp, dir) = dir();
        std::fs::write(dir.path().join("documents"), "mine").unwrap();
        for path in ["documents/x", "documents/x/y"] {
            assert!(dir.write(Path::new(path), b"x").is_err(), "{path}");
        }
        assert_eq!(std::fs::read(dir.path().join("documents")).unwrap(), b"mine");
    }

    #[test]
    fn unnamed_files_leave_nothing() {
        let (_temp, dir) = dir();
        dir.unnamed().unwrap().write_all(b"x").unwrap();
        dir.named_for_a_moment().unwrap().write_all(b"x").unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
