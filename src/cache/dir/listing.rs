//! What is below a directory: names, sizes, and what was left half-written.

use std::ffi::OsStr;
use std::path::Path;

use super::Dir;
use crate::cache::lock::{self, Kind};
use crate::sys::own::{Entry, EntryKind};

/// What the name of a file that is being written has in it.
const TEMPORARY: &str = ".tmp-";

impl Dir {
    /// What is in a directory, in the order of the names' bytes; nothing where there is none.
    pub(in crate::cache) fn list(&self, path: &Path) -> Vec<Entry> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        self.own.enter(path).and_then(|dir| dir.list()).unwrap_or_default()
    }

    /// Bytes on the disk of all that is below a path, as du(1) counts them.
    pub(in crate::cache) fn allocated(&self, path: &Path) -> u64 {
        let below = |entry: &Entry| {
            if entry.kind == EntryKind::Directory { self.allocated(&path.join(&entry.name)) } else { 0 }
        };
        self.list(path).iter().map(|entry| entry.allocated.saturating_add(below(entry))).sum()
    }

    /// Removes files that a process left half-written when it was killed.
    pub(in crate::cache) fn sweep(&self, path: &Path) {
        for entry in self.list(path) {
            let path = path.join(&entry.name);
            if entry.kind == EntryKind::Directory {
                self.sweep(&path);
            } else if is_temporary(&entry.name) {
                let left = self.open_to_write(&path).and_then(|file| lock::try_keep(&file, Kind::Exclusive, 0));
                let _ = left.map(|left| left.then(|| self.remove(&path)));
            }
        }
    }
}

/// What the name of a file that is being written has at its end: numbers that no two have.
pub(super) fn temporary(process: u32, serial: u64, nanoseconds: u128) -> String {
    format!("{TEMPORARY}{process}-{serial}-{nanoseconds}")
}

/// Whether it is the name of a file that is being written, or was when its writer was killed.
pub(in crate::cache) fn is_temporary(name: &OsStr) -> bool {
    let numbers = name.to_str().and_then(|name| Some(name.split_once(TEMPORARY)?.1.split('-')));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
    numbers.is_some_and(|numbers| numbers.clone().count() == 3 && numbers.clone().all(is_number))
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
        let left = dir.path().join("a/b.tmp-7-0-9");
        std::fs::write(&left, b"y").unwrap();
        let file = dir.open_to_write(Path::new("a/b.tmp-7-0-9")).unwrap();
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
    fn what_only_looks_like_it_stays() {
        let (_temp, dir) = dir();
        let theirs = ["notes.tmp-1", "a.tmp-x-1-2", "b.tmp-1-2-3-4", "c.tmp-1--3", "tmp-1-2-3"];
        for name in theirs {
            std::fs::write(dir.path().join(name), b"mine").unwrap();
        }
        dir.sweep(Path::new(""));
        assert_eq!(dir.list(Path::new("")).len(), theirs.len());
        assert!(is_temporary(OsStr::new(&format!("x{}", temporary(1, 2, 3)))));
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
