//! What is below a directory: names, sizes, and what was left half-written.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::Dir as Entries;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{SFlag, fstatat};

use super::{Dir, TEMPORARY};
use crate::cache::lock::{self, Kind};

/// What a directory holds by one name.
pub(in crate::cache) struct Entry {
    pub(in crate::cache) name: OsString,
    pub(in crate::cache) is_dir: bool,
    /// Bytes that it takes on the disk.
    pub(in crate::cache) allocated: u64,
    /// Seconds since 1970.
    pub(in crate::cache) modified: i64,
}

impl Dir {
    /// What is in a directory, in the order of the names' bytes; nothing where there is none.
    pub(in crate::cache) fn list(&self, path: &Path) -> Vec<Entry> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let Ok(dir) = self.at(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY) else { return Vec::new() };
        let Ok(mut entries) = dir.try_clone().map_err(|_| Errno::EMFILE).and_then(|dir| Entries::from_fd(dir.into()))
        else {
            return Vec::new();
        };
        let names = entries.iter().flatten().map(|entry| entry.file_name().to_owned());
        let names = names.filter(|name| ![b".".as_slice(), b".."].contains(&name.to_bytes()));
        let entry = |name: std::ffi::CString| {
            let found = fstatat(dir.as_fd(), name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
            Some(Entry {
                name: OsStr::from_bytes(name.to_bytes()).to_owned(),
                is_dir: SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR,
                allocated: found.st_blocks.unsigned_abs() * 512,
                modified: found.st_mtime,
            })
        };
        let mut list: Vec<Entry> = names.filter_map(entry).collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    }

    /// Bytes on the disk of all that is below a path, as du(1) counts them.
    pub(in crate::cache) fn allocated(&self, path: &Path) -> u64 {
        let below = |entry: &Entry| if entry.is_dir { self.allocated(&path.join(&entry.name)) } else { 0 };
        self.list(path).iter().map(|entry| entry.allocated.saturating_add(below(entry))).sum()
    }

    /// Removes files that a process left half-written when it was killed.
    pub(in crate::cache) fn sweep(&self, path: &Path) {
        for entry in self.list(path) {
            let path = path.join(&entry.name);
            if entry.is_dir {
                self.sweep(&path);
            } else if is_temporary(&entry.name) {
                let left = self.open_to_write(&path).and_then(|file| lock::try_keep(&file, Kind::Exclusive, 0));
                let _ = left.map(|left| left.then(|| self.remove(&path)));
            }
        }
    }
}

/// Whether it is the name of a file that is being written, or was when its writer was killed.
pub(in crate::cache) fn is_temporary(name: &OsStr) -> bool {
    name.to_string_lossy().contains(TEMPORARY)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::tests::dir;
    use super::*;

    #[test]
    fn what_a_killed_process_left_half_written_goes() {
        let (_temp, dir) = dir();
        dir.write(Path::new("a/b"), b"x").unwrap();
        let left = dir.path().join("a/b.tmp-7");
        std::fs::write(&left, b"y").unwrap();
        let file = dir.open_to_write(Path::new("a/b.tmp-7")).unwrap();
        // Unlocked when dropped: closing it alone would leave the lock to a child that another test is starting.
        let held = lock::exclusive(&file, 0, std::time::Duration::ZERO).unwrap();
        dir.sweep(Path::new(""));
        assert!(left.exists(), "it is being written");
        drop(held);
        dir.sweep(Path::new(""));
        assert!(!left.exists());
        assert_eq!(dir.read(Path::new("a/b"), 9).unwrap(), b"x");
    }

    #[test]
    fn sizes_are_those_of_du() {
        let (_temp, dir) = dir();
        dir.write(Path::new("a/b"), &[1; 10_000]).unwrap();
        dir.open_or_create(Path::new("sparse")).unwrap().set_len(1 << 30).unwrap();
        let du = std::process::Command::new("du").arg("-sB1").arg(dir.path()).output().unwrap().stdout;
        let du: u64 = String::from_utf8(du).unwrap().split_whitespace().next().unwrap().parse().unwrap();
        let own = std::fs::metadata(dir.path()).unwrap().blocks() * 512;
        assert_eq!(dir.allocated(Path::new("")) + own, du);
    }
}
