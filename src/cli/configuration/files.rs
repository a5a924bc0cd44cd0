//! Which files there are, in the order in which later ones win.

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::error::Error;
use crate::cli::environment::Environment;
use crate::cli::options::PATIENCE;
use crate::sys::{limit, outside, trusted};

/// Larger than any real one.
const LARGEST_FILE: u64 = 1 << 20;

/// Where configuration may be.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    /// `/etc/crfs`, with config.toml, and with config.d.
    pub(super) system: PathBuf,
    /// `~/.config/crfs/config.toml`; `None`: this user has no home.
    pub(super) user: Option<PathBuf>,
}

/// A file that may have been there.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    /// `None`: there is none.
    pub(super) text: Result<Option<String>, Error>,
}

impl Places {
    pub(super) fn of(environment: &Environment) -> Self {
        let system = PathBuf::from("/etc/crfs");
        let in_home = environment.home.as_ref().map(|home| home.join(".config"));
        let absolute = |dir: &PathBuf| dir.is_absolute();
        let dir = environment.config_home.clone().filter(absolute).or_else(|| in_home.filter(absolute));
        // Read once, where somebody says that it is the user's as well.
        let user = dir.map(|dir| dir.join("crfs")).filter(|dir| *dir != system);
        Self { user: user.map(|dir| dir.join("config.toml")), system }
    }

    pub(super) fn read(&self) -> Vec<Found> {
        let of_system = |path: PathBuf| Found { text: file(&path, false), path };
        let parts = self.system.join("config.d");
        let parts = match parts_in(&parts) {
            Ok(paths) => paths.into_iter().map(of_system).collect(),
            Err(source) => vec![Found {
                text: Err(Error::Unreadable { path: parts.clone(), source: advised(source) }),
                path: parts,
            }],
        };
        let of_user = self.user.clone().map(|path| Found { text: file(&path, true), path });
        std::iter::once(of_system(self.system.join("config.toml"))).chain(parts).chain(of_user).collect()
    }
}

/// The files `*.toml` of config.d, by name. Those that start with a dot are an editor's.
fn parts_in(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let asked = dir.to_owned();
    let list = move || {
        let paths = std::fs::read_dir(asked)?.map(|entry| entry.map(|entry| entry.path()));
        paths.collect::<Result<Vec<_>, _>>()
    };
    let mut paths = match limit::answered(PATIENCE, list) {
        Err(error) if is_missing(&error) => Vec::new(),
        listed => listed?,
    };
    paths.retain(|path| {
        let name = path.file_name().unwrap_or_default();
        path.extension() == Some(OsStr::new("toml")) && !name.as_bytes().starts_with(b".")
    });
    paths.sort();
    Ok(paths)
}

fn file(path: &Path, is_users: bool) -> Result<Option<String>, Error> {
    let asked = path.to_owned();
    let read = limit::answered(PATIENCE, move || {
        match asked.metadata() {
            Err(error) if is_missing(&error) => return Ok(None),
            // Where nobody lets us look we have nothing: HOME is another's.
            Err(error) if is_users && error.kind() == ErrorKind::PermissionDenied => return Ok(None),
            found => found?,
        };
        outside::read_found(&trusted::file(&asked)?, LARGEST_FILE).map(Some)
    });
    let bytes = read.map_err(|source| Error::Unreadable { path: path.to_owned(), source: advised(source) })?;
    let text = |bytes| String::from_utf8(bytes).map_err(|_| Error::NotText { path: path.to_owned() });
    bytes.map(text).transpose()
}

/// What to do where the system says no more than that.
fn advised(error: io::Error) -> io::Error {
    match error.raw_os_error() == Some(Errno::EACCES as i32) {
        true => io::Error::new(error.kind(), "this user may not read it: chmod a+r it, or remove it"),
        false => error,
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}
