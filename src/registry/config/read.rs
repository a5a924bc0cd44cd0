//! Files of a configuration, read whole.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::Error;
use crate::sys::{limit, outside};

/// Larger than any real one.
const LARGEST_FILE: u64 = 4 << 20;

/// How long a filesystem may take: a home may be on NFS.
const PATIENCE: Duration = Duration::from_secs(10);

/// The text of a file; `None` where there is none.
pub(super) fn file(path: &Path) -> Result<Option<String>, Error> {
    let asked = path.to_owned();
    let read = limit::answered(PATIENCE, move || outside::read(&asked, LARGEST_FILE));
    match read {
        Ok(bytes) => {
            String::from_utf8(bytes).map(Some).map_err(|_| unreadable(path, "it is not text in UTF-8".to_owned()))
        }
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(unreadable(path, error.to_string())),
    }
}

/// Whether there is something at a path.
pub(super) fn is_there(path: &Path) -> Result<bool, Error> {
    look(path).map_err(|error| unreadable(path, error.to_string()))
}

/// The same, as podman looks: where a directory on the way lets nobody look, there is nothing.
pub(super) fn exists(path: &Path) -> Result<bool, Error> {
    match look(path) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(false),
        found => found.map_err(|error| unreadable(path, error.to_string())),
    }
}

fn look(path: &Path) -> std::io::Result<bool> {
    let asked = path.to_owned();
    match limit::answered(PATIENCE, move || asked.metadata()) {
        Ok(_) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) fn is_dir(path: &Path) -> bool {
    let asked = path.to_owned();
    limit::answered(PATIENCE, move || asked.symlink_metadata()).is_ok_and(|found| found.is_dir())
}

fn is_missing(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// What a directory holds, by name; `None` where there is none, or nobody lets us look.
pub(super) fn dir(path: &Path) -> Result<Option<Vec<PathBuf>>, Error> {
    let asked = path.to_owned();
    let list = move || {
        let entries = std::fs::read_dir(&asked)?.map(|entry| entry.map(|entry| entry.path()));
        entries.collect::<Result<Vec<_>, _>>()
    };
    match limit::answered(PATIENCE, list) {
        Ok(mut paths) => {
            paths.sort();
            Ok(Some(paths))
        }
        Err(error) if is_missing(&error) || error.kind() == ErrorKind::PermissionDenied => Ok(None),
        Err(error) => Err(unreadable(path, error.to_string())),
    }
}

/// A path without symlinks, where it leads to something.
pub(super) fn real_path(path: &Path) -> PathBuf {
    let asked = path.to_owned();
    limit::answered(PATIENCE, move || asked.canonicalize()).unwrap_or_else(|_| path.to_owned())
}

pub(super) fn unreadable(path: &Path, reason: String) -> Error {
    Error::Unreadable { path: path.to_owned(), reason }
}
