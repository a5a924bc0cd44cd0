//! Locks between processes: OFD locks of single bytes (fcntl(2), "Open file description locks").
//!
//! They belong to an open file description: two opened files exclude each other in one process as in two, threads that share one do not,
//! and the kernel takes a lock away when its process dies. No lock is waited for without an end, since a process that holds one may be
//! stopped.

use std::fs::File;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// What a lock lets others do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Shared,
    Exclusive,
}

/// A lock that is held; released when dropped.
pub(super) struct Held<'a> {
    file: &'a File,
    byte: u64,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let _ = fcntl(self.file, FcntlArg::F_OFD_SETLK(&flock(libc::F_UNLCK, self.byte)));
    }
}

/// Takes a lock for as long as the file is open. `false`: another holds one that excludes it.
pub(super) fn try_keep(file: &File, kind: Kind, byte: u64) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&flock(lock_type(kind), byte))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Takes an exclusive lock, waiting for it no longer than `patience`.
pub(super) fn exclusive(file: &File, byte: u64, patience: Duration) -> Option<Held<'_>> {
    let start = Instant::now();
    loop {
        match try_keep(file, Kind::Exclusive, byte) {
            Ok(true) => return Some(Held { file, byte }),
            Ok(false) if start.elapsed() < patience => thread::sleep(Duration::from_micros(200)),
            Ok(false) | Err(_) => return None,
        }
    }
}

/// Whether another holds any lock of this byte.
pub(super) fn is_held(file: &File, byte: u64) -> bool {
    let mut asked = flock(libc::F_WRLCK, byte);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut asked)).is_ok() && i32::from(asked.l_type) != libc::F_UNLCK
}

fn lock_type(kind: Kind) -> libc::c_int {
    match kind {
        Kind::Shared => libc::F_RDLCK,
        Kind::Exclusive => libc::F_WRLCK,
    }
}

fn flock(kind: libc::c_int, byte: u64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte as libc::off_t,
        l_len: 1,
        // OFD locks have no owner but the description.
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_exclude_other_descriptions_until_they_are_dropped() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(named.path()).unwrap();
        let (one, two) = (open(), open());
        let held = exclusive(&one, 3, Duration::ZERO).unwrap();
        assert!(exclusive(&two, 3, Duration::ZERO).is_none() && is_held(&two, 3));
        assert!(exclusive(&two, 4, Duration::ZERO).is_some(), "another byte");
        assert!(!is_held(&one, 3), "one's own is none of another");
        drop(held);
        assert!(try_keep(&one, Kind::Shared, 3).unwrap() && try_keep(&two, Kind::Shared, 3).unwrap());
        assert!(exclusive(&two, 3, Duration::ZERO).is_none());
        drop(one);
        assert!(exclusive(&two, 3, Duration::ZERO).is_some());
    }
}
