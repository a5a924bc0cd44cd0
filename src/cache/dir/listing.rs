//! What is below a directory: names, sizes, and what was left half-written.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use super::Dir;
use super::shape::{kind_of, permanent};
use crate::cache::lock::{self, Kind};
use crate::sys::own::{Entry, EntryKind};

impl Dir {
    /// What is in a directory, in the order of the names' bytes; nothing where there is none.
    pub(in crate::cache) fn list(&self, path: &Path) -> Vec<Entry> {
        self.entries(path).unwrap_or_default()
    }

    /// The same; an error where it cannot be read.
    pub(super) fn entries(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        self.own.enter(path)?.list()
    }

    /// Bytes on the disk of all that is below a path, as du(1) counts them.
    pub(in crate::cache) fn allocated(&self, path: &Path) -> u64 {
        let below = |entry: &Entry| {
            if entry.kind == EntryKind::Directory { self.allocated(&path.join(&entry.name)) } else { 0 }
        };
        self.list(path).iter().map(|entry| entry.allocated.saturating_add(below(entry))).sum()
    }

    /// Removes files that a process left half-written when it was killed, in directories that crfs makes.
    pub(in crate::cache) fn sweep(&self, path: &Path) {
        for entry in self.list(path) {
            let path = path.join(&entry.name);
            if kind_of(&path) != Some(entry.kind) {
                continue;
            }
            if entry.kind == EntryKind::Directory {
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
    name.to_str().is_some_and(|name| permanent(name).1)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::shape;
    use super::super::tests::dir;
    use super::*;

    #[test]
    fn what_a_killed_process_left_half_written_goes() {
        let (_temp, dir) = dir();
        let path = Path::new("documents").join(crate::blob::Digest::of(b"x").hex());
        let name = path.with_extension("tmp-7-0-9");
        dir.write(&path, b"x").unwrap();
        let left = dir.path().join(&name);
        std::fs::write(&left, b"y").unwrap();
        let file = dir.open_to_write(&name).unwrap();
        // Unlocked when dropped: closing it alone would leave the lock to a child that another test is starting.
        let held = lock::exclusive(&file, 0, std::time::Duration::ZERO).unwrap();
        dir.sweep(Path::new(""));
        assert!(left.exists(), "it is being written");
        drop(held);
        dir.sweep(Path::new(""));
        assert!(!left.exists());
        assert_eq!(dir.read(&path, 9).unwrap(), b"x");
    }

    #[test]
    fn what_only_looks_like_it_stays() {
        let (_temp, dir) = dir();
        let theirs = ["notes.tmp-1", "a.tmp-x-1-2", "b.tmp-1-2-3-4", "c.tmp-1--3", "tmp-1-2-3", "notes.tmp-2024-11-30"];
        let folders = ["", "documents", "src"];
        for folder in folders.map(|folder| dir.path().join(folder)) {
            std::fs::create_dir_all(&folder).unwrap();
            theirs.iter().for_each(|name| std::fs::write(folder.join(name), b"mine").unwrap());
        }
        dir.sweep(Path::new(""));
        assert_eq!(dir.list(Path::new("")).len(), theirs.len() + 2);
        assert!(folders[1..].iter().all(|folder| dir.list(Path::new(folder)).len() == theirs.len()));
        assert!(is_temporary(OsStr::new(&format!("x{}", shape::temporary(1, 2, 3)))));
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
