//! The right to change a store.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::Error;
use super::paths::{Paths, open_own};

/// Whoever has this may change the store. Nobody else may, in any process.
pub(super) struct Lock {
    held: Flock<File>,
}

impl Lock {
    /// `None`: somebody has it.
    pub(super) fn take(paths: &Paths) -> Result<Option<Self>, Error> {
        let path = paths.lock();
        let failed = |source| Error::File { path: path.clone(), source };
        let file = open_own(&path, OpenOptions::new().append(true).create(true).mode(0o600)).map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => Ok(Some(Self { held })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }

    /// Whether somebody has it. Of a store that never had one, nobody.
    pub(super) fn is_taken(paths: &Paths) -> io::Result<bool> {
        let file = match open_own(&paths.lock(), OpenOptions::new().read(true)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_held) => Ok(false),
            Err((_, Errno::EWOULDBLOCK)) => Ok(true),
            Err((_, errno)) => Err(errno.into()),
        }
    }

    /// For another process, which has it then, too.
    pub(super) fn file(&self) -> io::Result<File> {
        self.held.try_clone()
    }
}
