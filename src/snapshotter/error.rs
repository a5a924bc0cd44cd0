//! What a client of the socket is told where something does not work, and why the process ends.

use std::io;
use std::path::PathBuf;

use crate::{podman, serve};

/// Why a call has failed, as gRPC numbers it. containerd tells these apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    InvalidArgument = 3,
    NotFound = 5,
    AlreadyExists = 6,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) code: Code,
    pub(super) message: String,
}

impl Status {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(super) fn missing(name: &str) -> Self {
        Self::new(Code::NotFound, format!("snapshot {name:?} does not exist"))
    }

    pub(super) fn file(path: &std::path::Path, error: &io::Error) -> Self {
        Self::new(Code::Internal, format!("{}: {error}", path.display()))
    }
}

/// Why it does not serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the snapshotter's directory {} cannot be used; give another with --root", path.display())]
    Root { path: PathBuf, source: io::Error },
    #[error("the path {} has a colon, a comma or a backslash, which overlayfs does not take in a name; give another with --root", path.display())]
    Name { path: PathBuf },
    #[error("{} cannot be opened: {reason}; if it is locked, another `crfs snapshotter serve` has it", path.display())]
    Table { path: PathBuf, reason: String },
    #[error("the socket {} cannot be made; give another with --address", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("somebody answers at {} already: end that, or give another --address", path.display())]
    Served { path: PathBuf },
    #[error(transparent)]
    Store(#[from] podman::Error),
    #[error(transparent)]
    Serve(#[from] serve::Error),
}

impl Error {
    /// The message and its causes, on one line.
    #[must_use]
    pub fn chain(&self) -> String {
        crate::errors::chain(self)
    }
}
