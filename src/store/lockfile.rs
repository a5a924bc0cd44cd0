//! The lock files of containers/storage: record locks (fcntl(2)) of the whole file, and in it 64 random bytes that each writer changes.
//!
//! podman's readers keep a read lock while they read a list, and read it again only when the 64 bytes have changed. Ours are OFD locks,
//! which conflict with those of processes, and which two threads of one process do not share.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// Bytes that say who wrote last.
const LAST_WRITER: usize = 64;

/// How long to wait before the next try.
const GLANCE: Duration = Duration::from_millis(2);

/// How long podman is waited for. It holds these locks for the time of a few small files.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A lock that is held until it is dropped.
pub(super) struct Held(File);

impl Held {
    /// For writing, if nobody has it.
    pub(super) fn to_write(path: &Path) -> io::Result<Option<Self>> {
        take(OpenOptions::new().read(true).write(true).open(path)?, libc::F_WRLCK)
    }

    /// For reading, if nobody writes.
    pub(super) fn to_read(path: &Path) -> io::Result<Option<Self>> {
        take(open_regular(path)?, libc::F_RDLCK)
    }

    /// Tells readers that what the lock is for has changed.
    pub(super) fn touch(&self) -> io::Result<()> {
        let mut random = [0; LAST_WRITER];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        self.0.write_all_at(&random, 0)
    }
}

/// A file to read, and nothing that is waited for: in a user's own store anything may stand there.
pub(super) fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
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
    use super::*;

    #[test]
    fn a_writer_excludes_readers_and_leaves_other_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("images.lock");
        File::create(&path).unwrap();
        let writer = Held::to_write(&path).unwrap().unwrap();
        assert!(Held::to_read(&path).unwrap().is_none() && Held::to_write(&path).unwrap().is_none());
        writer.touch().unwrap();
        let first = std::fs::read(&path).unwrap();
        assert_eq!(first.len(), LAST_WRITER);
        writer.touch().unwrap();
        assert_ne!(std::fs::read(&path).unwrap(), first);
        drop(writer);
        let readers = [Held::to_read(&path).unwrap(), Held::to_read(&path).unwrap()];
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
        assert!(Held::to_read(&path).unwrap().is_none());
    }
}
