//! Directories that crfs has made, and the only way in which it removes anything: file by file, each by a name that crfs gives.
//!
//! Nothing below such a directory is reached through a symlink or across a mount, and nothing is removed together with what is in it. So whatever
//! somebody puts, links or mounts there stays as it is.

use std::ffi::{OsStr, OsString};
use std::fs::{File, FileType, Metadata};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::dir::Dir as Entries;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2, readlinkat};
use nix::sys::stat::Mode;
use nix::sys::statfs::fstatfs;
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

/// What reads past the kernel's cache are aligned to: no disk has larger blocks.
const DIRECT: usize = 4096;

/// Owner only.
const FILE_MODE: Mode = Mode::from_bits_truncate(0o600);

/// A directory of crfs's own, held open.
pub(crate) struct OwnDir {
    fd: OwnedFd,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File,
    Directory,
    Symlink,
    Socket,
    /// Whatever is mounted there, which nobody is asked about: its server may be gone.
    Mount,
    Other,
}

/// What a directory holds by one name.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: OsString,
    pub(crate) kind: EntryKind,
    /// Bytes that it takes on the disk.
    pub(crate) allocated: u64,
    /// Seconds since 1970.
    pub(crate) modified: i64,
}

impl EntryKind {
    fn of(found: FileType) -> Self {
        match found {
            found if found.is_file() => Self::File,
            found if found.is_dir() => Self::Directory,
            found if found.is_symlink() => Self::Symlink,
            found if found.is_socket() => Self::Socket,
            _ => Self::Other,
        }
    }
}

impl From<OwnedFd> for OwnDir {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl From<OwnDir> for File {
    fn from(dir: OwnDir) -> Self {
        dir.fd.into()
    }
}

impl AsFd for OwnDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl OwnDir {
    /// The directory at a path, which may be a mount point but no symlink.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(Self { fd: open(path, flags, Mode::empty())? })
    }

    /// Opens something below it.
    pub(crate) fn at(&self, path: &Path, flags: OFlag) -> io::Result<File> {
        let mode = if flags.contains(OFlag::O_CREAT) { FILE_MODE } else { Mode::empty() };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
            .mode(mode)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV);
        Ok(openat2(self.as_fd(), path, how)?.into())
    }

    /// A directory below it.
    pub(crate) fn enter(&self, path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self { fd: self.at(path.as_ref(), OFlag::O_RDONLY | OFlag::O_DIRECTORY)?.into() })
    }

    pub(crate) fn metadata(&self) -> io::Result<Metadata> {
        File::from(self.fd.try_clone()?).metadata()
    }

    /// Comes back once its disk has answered: something that would write, and something that a server of files is asked in any case. Whatever it answers,
    /// nothing is left behind.
    pub(crate) fn ask_disk(&self) {
        let _answer = self.at(Path::new("."), OFlag::O_RDWR | OFlag::O_TMPFILE);
        let _answer = fstatfs(&self.fd);
    }

    /// Comes back once its disk has answered something that reads, which may work where nothing can be written: a frozen filesystem. `name`: a file in it, of
    /// which the kernel's copy does not count.
    pub(crate) fn ask_disk_to_read(&self, name: &str) {
        let _answer = fstatfs(&self.fd);
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
        // Not every filesystem can do it so.
        let file = self.at(Path::new(name), flags | OFlag::O_DIRECT).or_else(|_| self.at(Path::new(name), flags));
        let mut buffer = vec![0; 2 * DIRECT];
        let start = buffer.as_ptr().align_offset(DIRECT);
        if let (Ok(file), Some(part)) =
            (file.and_then(regular), buffer.get_mut(start..).and_then(|rest| rest.get_mut(..DIRECT)))
        {
            let _answer = file.read_at(part, 0);
        }
    }

    /// All of a regular file of at most `limit` bytes.
    pub(crate) fn read(&self, path: impl AsRef<Path>, limit: u64) -> io::Result<Vec<u8>> {
        let file = regular(self.at(path.as_ref(), OFlag::O_RDONLY | OFlag::O_NONBLOCK)?)?;
        let mut bytes = Vec::new();
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(io::Error::other(format!("more than {limit} bytes")));
        }
        Ok(bytes)
    }

    /// Where a symlink in it leads.
    pub(crate) fn read_link(&self, name: &OsStr) -> io::Result<PathBuf> {
        Ok(readlinkat(self.as_fd(), name)?.into())
    }

    /// What is in it, in the order of the names' bytes.
    pub(crate) fn list(&self) -> io::Result<Vec<Entry>> {
        // A descriptor of its own, whose place in the directory nobody else moves.
        let mut entries = Entries::from_fd(self.enter(".")?.fd)?;
        let names = entries.iter().map(|entry| Ok(entry?.file_name().to_owned()));
        let mut list = Vec::new();
        for name in names.collect::<io::Result<Vec<_>>>()? {
            match self.entry(OsStr::from_bytes(name.to_bytes())) {
                _ if [b".".as_slice(), b".."].contains(&name.to_bytes()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                entry => list.push(entry?),
            }
        }
        list.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(list)
    }

    fn entry(&self, name: &OsStr) -> io::Result<Entry> {
        let entry = |kind, allocated, modified| Entry { name: name.to_owned(), kind, allocated, modified };
        let found = match self.at(Path::new(name), OFlag::O_PATH) {
            Err(error) if error.raw_os_error() == Some(Errno::EXDEV as i32) => {
                return Ok(entry(EntryKind::Mount, 0, 0));
            }
            found => found?.metadata()?,
        };
        Ok(entry(EntryKind::of(found.file_type()), found.blocks() * 512, found.mtime()))
    }

    /// Removes a name that stands for no directory.
    pub(crate) fn remove(&self, name: impl AsRef<Path>) -> io::Result<()> {
        Ok(unlinkat(self.as_fd(), name.as_ref(), UnlinkatFlags::NoRemoveDir)?)
    }

    /// Removes what is there by a name, if it is of that kind.
    pub(crate) fn remove_known(&self, name: &str, kind: EntryKind) -> io::Result<()> {
        match self.entry(OsStr::new(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Ok(found) if found.kind != kind => {
                Err(io::Error::new(io::ErrorKind::AlreadyExists, "what is there is nothing of crfs's"))
            }
            found => found.and_then(|_| self.remove(name)),
        }
    }

    /// Removes an empty directory.
    pub(crate) fn remove_empty(&self, name: impl AsRef<Path>) -> io::Result<()> {
        Ok(unlinkat(self.as_fd(), name.as_ref(), UnlinkatFlags::RemoveDir)?)
    }

    /// Removes a directory with the files in it, in the order of their names, and with directories that are empty. Where it holds anything that is not
    /// `known`, or belongs to somebody else, nothing is removed.
    pub(crate) fn remove_with(&self, name: impl AsRef<Path>, known: impl Fn(&Entry) -> bool) -> io::Result<()> {
        let name = name.as_ref();
        let dir = match self.enter(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entered => entered?,
        };
        dir.only_we_write()?;
        let entries = dir.list()?;
        if let Some(other) = entries.iter().find(|entry| !known(entry)) {
            let what = format!("{} in it is nothing of crfs's", Path::new(&other.name).display());
            return Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, what));
        }
        for entry in &entries {
            match entry.kind {
                EntryKind::Directory => dir.remove_empty(&entry.name)?,
                _ => dir.remove(&entry.name)?,
            }
        }
        self.remove_empty(name)
    }

    fn only_we_write(&self) -> io::Result<()> {
        let found = self.metadata()?;
        match found.uid() == geteuid().as_raw() && found.mode() & 0o022 == 0 {
            true => Ok(()),
            false => Err(Errno::EPERM.into()),
        }
    }
}

/// The same file, if it is a regular one.
pub(crate) fn regular(file: File) -> io::Result<File> {
    let other = || io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
    if file.metadata()?.is_file() { Ok(file) } else { Err(other()) }
}

/// A name of an open directory that fits into the 108 bytes of a socket's address.
pub(crate) fn short_path(dir: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use tempfile::TempDir;

    use super::*;

    /// A directory of ours with one of crfs's in it, `own`, and one of somebody's, `theirs`.
    fn lab() -> (TempDir, OwnDir, PathBuf) {
        let temp = tempfile::tempdir().unwrap();
        for (dir, file) in [("own", "known"), ("own", "other-known"), ("theirs", "known"), ("theirs", "work")] {
            fs::create_dir_all(temp.path().join(dir)).unwrap();
            fs::write(temp.path().join(dir).join(file), dir).unwrap();
        }
        let (dir, theirs) = (OwnDir::open(temp.path()).unwrap(), temp.path().join("theirs"));
        (temp, dir, theirs)
    }

    fn known(entry: &Entry) -> bool {
        match entry.kind {
            EntryKind::Directory => entry.name == "empty",
            kind => kind == EntryKind::File && entry.name.to_string_lossy().ends_with("known"),
        }
    }

    #[test]
    fn a_directory_goes_with_files_that_are_known() {
        let (temp, dir, _) = lab();
        fs::create_dir(temp.path().join("own/empty")).unwrap();
        dir.remove_with("own", known).unwrap();
        assert!(!temp.path().join("own").exists());
        dir.remove_with("own", known).unwrap();
        dir.remove_with("missing", known).unwrap();
    }

    #[test]
    fn what_holds_anything_else_stays_whole() {
        let (temp, dir, theirs) = lab();
        let error = dir.remove_with("theirs", known).unwrap_err();
        assert!(error.to_string().contains("work"), "{error}");
        assert_eq!(fs::read_dir(&theirs).unwrap().count(), 2);
        // A known name for something else than a file.
        for make in [|path: &Path| fs::create_dir(path), |path: &Path| symlink("/etc", path)] {
            let path = temp.path().join("own/x-known");
            make(&path).unwrap();
            assert!(dir.remove_with("own", known).is_err());
            assert_eq!(fs::read_dir(temp.path().join("own")).unwrap().count(), 3);
            fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).unwrap();
        }
        // A directory that is to be empty, and is not.
        fs::create_dir(temp.path().join("own/empty")).unwrap();
        fs::write(temp.path().join("own/empty/known"), "x").unwrap();
        assert!(dir.remove_with("own", known).is_err());
        assert!(temp.path().join("own/empty/known").exists());
    }

    #[test]
    fn others_directories_stay() {
        let (temp, dir, _) = lab();
        fs::set_permissions(temp.path().join("own"), fs::Permissions::from_mode(0o775)).unwrap();
        assert!(dir.remove_with("own", known).is_err());
        assert!(temp.path().join("own/known").exists());
    }

    #[test]
    fn symlinks_are_not_followed() {
        let (temp, dir, theirs) = lab();
        fs::remove_file(theirs.join("work")).unwrap();
        symlink(&theirs, temp.path().join("link")).unwrap();
        assert!(dir.remove_with("link", known).is_err() && dir.enter("link").is_err());
        assert!(dir.read("link/known", 9).is_err() && OwnDir::open(&temp.path().join("link")).is_err());
        assert!(theirs.join("known").exists());
        assert_eq!(dir.read("own/known", 9).unwrap(), b"own");
        assert!(dir.read("own/known", 2).is_err());
    }

    /// Somebody puts a symlink in the place of the directory, and takes it away, all the time.
    #[test]
    fn nobody_wins_a_race_with_a_symlink() {
        let (temp, dir, theirs) = lab();
        fs::remove_file(theirs.join("work")).unwrap();
        let path = |name: &str| temp.path().join(name);
        symlink(&theirs, path("link")).unwrap();
        std::thread::scope(|scope| {
            let racer = scope.spawn(|| {
                for _ in 0..2000 {
                    let _ = fs::create_dir(path("real"));
                    let _ = fs::write(path("real/known"), "x");
                    let _ = fs::rename(path("real"), path("own"));
                    let _ = fs::rename(path("own"), path("away"));
                    let _ = fs::rename(path("link"), path("own"));
                    let _ = fs::rename(path("own"), path("link"));
                    let _ = fs::rename(path("away"), path("own"));
                }
            });
            while !racer.is_finished() {
                let _ = dir.remove_with("own", known);
            }
        });
        assert_eq!(fs::read(theirs.join("known")).unwrap(), b"theirs");
    }

    /// Takes a mount away again.
    struct Bound(PathBuf);

    impl Drop for Bound {
        fn drop(&mut self) {
            let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        }
    }

    /// `None`, where this user may not mount.
    fn bind(from: &Path, to: PathBuf) -> Option<Bound> {
        let none: Option<&str> = None;
        mount(Some(from), &to, none, MsFlags::MS_BIND, none).ok().map(|()| Bound(to))
    }

    #[test]
    fn nothing_is_removed_through_a_mount() {
        let (temp, dir, theirs) = lab();
        fs::remove_file(theirs.join("work")).unwrap();
        // On the directory itself.
        let Some(bound) = bind(&theirs, temp.path().join("own")) else { return };
        assert!(dir.remove_with("own", known).is_err() && dir.read("own/known", 9).is_err());
        drop(bound);
        // On a directory in it, and on a file.
        fs::create_dir(temp.path().join("own/empty")).unwrap();
        for (from, at) in [(theirs.clone(), "own/empty"), (theirs.join("known"), "own/known")] {
            let bound = bind(&from, temp.path().join(at)).unwrap();
            let own = dir.enter("own").unwrap();
            let mounted: Vec<_> =
                own.list().unwrap().into_iter().filter(|entry| entry.kind == EntryKind::Mount).collect();
            assert!(mounted.len() == 1 && Path::new(at).ends_with(&mounted[0].name));
            assert!(dir.remove_with("own", known).is_err());
            assert_eq!(fs::read_dir(temp.path().join("own")).unwrap().count(), 3);
            drop(bound);
        }
        assert_eq!(fs::read(theirs.join("known")).unwrap(), b"theirs");
    }

    #[test]
    fn only_regular_files_are_read() {
        let (temp, dir, _) = lab();
        nix::unistd::mkfifo(&temp.path().join("own/pipe"), Mode::S_IRWXU).unwrap();
        assert!(dir.read("own/pipe", 9).is_err() && dir.read("own", 9).is_err());
    }
}
