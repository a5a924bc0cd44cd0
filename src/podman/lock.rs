//! The right to change a store.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::Error;
use super::paths::{Paths, open_own};

/// Whoever has this may change the store. Nobody else may, in any process.
pub(super) struct Lock {
    /// It is locked as long as anybody has this open: a server's keeper has it, too.
    held: File,
}

impl Lock {
    /// `None`: somebody has it.
    pub(super) fn take(paths: &Paths) -> Result<Option<Self>, Error> {
        let path = paths.lock();
        let failed = |source| Error::File { path: path.clone(), source };
        let file = open_own(&path, OpenOptions::new().append(true).create(true).mode(0o600)).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { held: file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// The same of a store that has had a server, or a command that changed it.
    pub(super) fn take_known(paths: &Paths) -> Result<Option<Self>, Error> {
        if paths.lock().symlink_metadata().is_ok() { Self::take(paths) } else { Ok(None) }
    }

    /// The one that another process has taken, of whose open file this is a descriptor.
    pub(super) fn handed(held: OwnedFd) -> Self {
        Self { held: held.into() }
    }

    /// Whether somebody has it. Of a store that never had one, nobody.
    pub(super) fn is_taken(paths: &Paths) -> io::Result<bool> {
        let file = match open_own(&paths.lock(), OpenOptions::new().read(true)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(errno) => Err(errno.into()),
        }
    }

    /// For another process, which has it then, too.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.held.as_fd()
    }
}
