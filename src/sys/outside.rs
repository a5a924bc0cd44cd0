//! Files that others have made: nothing is opened but a regular one, and nothing is waited for. A FIFO waits for a writer, and to open a device can be to
//! start it.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::{Mode, makedev};

/// Opens a file to read. Symlinks are followed: where they lead is its owner's business, what they lead to is ours.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    open_found(&find(path)?)
}

/// Reads a file of at most `limit` bytes. /dev/null, which many name who mean none, is an empty one.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_found(&find(path)?, limit)
}

/// The same of a file that was only found (O_PATH).
pub(crate) fn read_found(found: &File, limit: u64) -> io::Result<Vec<u8>> {
    if is_null(&found.metadata()?) {
        return Ok(Vec::new());
    }
    let mut bytes = Vec::new();
    open_found(found)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > limit {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {limit} bytes"))),
        false => Ok(bytes),
    }
}

fn is_null(found: &Metadata) -> bool {
    found.file_type().is_char_device() && found.rdev() == makedev(1, 3)
}

/// What a path leads to, without opening it.
pub(crate) fn find(path: &Path) -> io::Result<File> {
    Ok(open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?.into())
}

/// Opens what was only found (O_PATH), if it is a regular file.
pub(crate) fn open_found(found: &File) -> io::Result<File> {
    if !found.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    // What is behind the descriptor, and not what may stand at the path by now.
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => io::Error::other("/proc is not mounted"),
        _ => error,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn regular_files_are_read_also_through_links() {
        let temp = tempfile::tempdir().unwrap();
        let (file, link) = (temp.path().join("file"), temp.path().join("link"));
        fs::write(&file, "text").unwrap();
        symlink("file", &link).unwrap();
        assert_eq!(read(&link, 4).unwrap(), b"text");
        assert_eq!(read(&file, 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read(Path::new("/dev/null"), 9).unwrap(), b"");
        assert_eq!(read(&temp.path().join("missing"), 9).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn nothing_else_is_opened() {
        let temp = tempfile::tempdir().unwrap();
        let path = |name: &str| temp.path().join(name);
        nix::unistd::mkfifo(&path("pipe"), Mode::S_IRWXU).unwrap();
        symlink("pipe", path("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        for other in [path("pipe"), path("link"), path("socket"), "/dev/zero".into(), temp.path().to_owned()] {
            let error = read(&other, 9).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{}", other.display());
        }
    }
}
