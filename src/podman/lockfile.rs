//! The lock files of containers/storage: record locks (fcntl(2)) of the whole file, and in it 64 random bytes that each writer changes.
//!
//! podman's readers keep a read lock while they read a list, and read it again only when the 64 bytes have changed. Ours are OFD locks,
//! which conflict with those of processes, and which two threads of one process do not share.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open, openat};
use nix::libc;
use nix::sys::stat::Mode;

use super::paths::open_own;
use crate::sys::outside;

/// Bytes that say who wrote last.
const LAST_WRITER: usize = 64;

/// How long to wait before the next try.
pub(super) const GLANCE: Duration = Duration::from_millis(2);

/// How long podman is waited for. It holds these locks for the time of a few small files.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A lock that is held until it is dropped.
pub(super) struct Held(File);

impl Held {
    /// For writing, if nobody has it.
    pub(super) fn to_write(path: &Path) -> io::Result<Option<Self>> {
        take(open_own(path, OpenOptions::new().read(true).write(true))?, libc::F_WRLCK)
    }

    /// For reading, if nobody writes.
    pub(super) fn of_reader(file: File) -> io::Result<Option<Self>> {
        take(file, libc::F_RDLCK)
    }

    /// Tells readers that what the lock is for has changed.
    pub(super) fn touch(&self) -> io::Result<()> {
        let mut random = [0; LAST_WRITER];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        self.0.write_all_at(&random, 0)
    }
}

/// A file of one of podman's own stores, to read. In a user's anything may stand in its place, and root looks: nothing is opened but a regular file,
/// and below the store's root no symlink is followed, which could lead to one of /proc that must not be read.
pub(super) fn open_below(root: &Path, part: &str, file: &str) -> io::Result<File> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let root = open(root, flags | OFlag::O_DIRECTORY, Mode::empty()).map_err(|errno| match errno {
        // Nothing can be there.
        Errno::ENOTDIR => Errno::ENOENT,
        other => other,
    })?;
    let part = openat(&root, part, flags | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())?;
    outside::open_found(&openat(&part, file, flags | OFlag::O_NOFOLLOW, Mode::empty())?.into())
}

fn take(file: File, kind: libc::c_int) -> io::Result<Option<Held>> {
    let whole = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        // OFD locks have no owner but the description.
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole)) {
        Ok(_) => Ok(Some(Held(file))),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Takes several locks, all or none: whoever holds one of them and waits for another never waits for us. `None`: not within `patience`.
pub(super) fn all(
    patience: Duration,
    take: impl Fn() -> io::Result<Option<Vec<Held>>>,
) -> io::Result<Option<Vec<Held>>> {
    let start = std::time::Instant::now();
    loop {
        match take()? {
            Some(locks) => return Ok(Some(locks)),
            None if start.elapsed() < patience => std::thread::sleep(GLANCE),
            None => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn to_read(path: &Path) -> io::Result<Option<Held>> {
        Held::of_reader(File::open(path)?)
    }

    /// Anything but a regular file of that store's own, also where opening it would wait, or start something.
    #[test]
    fn only_regular_files_below_the_root_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (root, link) = (dir.path().join("root"), dir.path().join("link"));
        std::fs::create_dir_all(root.join("part")).unwrap();
        symlink(&root, &link).unwrap();
        let part = root.join("part");
        std::fs::write(part.join("list"), "[]").unwrap();
        assert!(open_below(&root, "part", "list").is_ok() && open_below(&link, "part", "list").is_ok());
        let kind = |root: &Path, part: &str, file: &str| open_below(root, part, file).unwrap_err().kind();
        for missing in [("part", "nothing"), ("nothing", "list")] {
            assert_eq!(kind(&root, missing.0, missing.1), io::ErrorKind::NotFound);
        }
        assert_eq!(kind(&part.join("list"), "part", "list"), io::ErrorKind::NotFound, "no store can be in a file");
        symlink("list", part.join("symlink")).unwrap();
        symlink("part", root.join("other")).unwrap();
        nix::unistd::mkfifo(&part.join("pipe"), Mode::S_IRWXU).unwrap();
        std::fs::create_dir(part.join("dir")).unwrap();
        for (part, file) in [("part", "symlink"), ("part", "pipe"), ("part", "dir"), ("other", "list")] {
            assert_ne!(kind(&root, part, file), io::ErrorKind::NotFound, "{part}/{file}");
        }
    }

    #[test]
    fn a_writer_excludes_readers_and_leaves_other_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("images.lock");
        File::create(&path).unwrap();
        let writer = Held::to_write(&path).unwrap().unwrap();
        assert!(to_read(&path).unwrap().is_none() && Held::to_write(&path).unwrap().is_none());
        writer.touch().unwrap();
        let first = std::fs::read(&path).unwrap();
        assert_eq!(first.len(), LAST_WRITER);
        writer.touch().unwrap();
        assert_ne!(std::fs::read(&path).unwrap(), first);
        drop(writer);
        let readers = [to_read(&path).unwrap(), to_read(&path).unwrap()];
        assert!(readers.iter().all(Option::is_some));
        assert!(Held::to_write(&path).unwrap().is_none());
        assert!(
            all(Duration::ZERO, || Held::to_write(&path).map(|held| held.map(|held| vec![held]))).unwrap().is_none()
        );
    }

    /// As containers/storage takes them: of the process, not of the description.
    #[test]
    fn locks_of_processes_are_respected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layers.lock");
        let file = File::create(&path).unwrap();
        let whole = libc::flock { l_type: libc::F_WRLCK as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
        fcntl(&file, FcntlArg::F_SETLK(&whole)).unwrap();
        assert!(to_read(&path).unwrap().is_none());
    }
}
