//! Whose a directory is that is to be the cache. What a user names may hold anything by the name that crfs gives (`v2` of an API): nothing is made,
//! replaced or swept in it before it is known to be crfs's.

use std::io;
use std::path::Path;

use super::Dir;
use crate::blob::Digest;
use crate::cache::documents::{DOCUMENTS, NAMES};
use crate::cache::space;
use crate::cache::store::SPACE;
use crate::cache::stored::{LAYER_FILES, LAYERS, is_layer_dir};
use crate::sys::own::EntryKind;

/// What the name of a file that is being written has in it.
const TEMPORARY: &str = ".tmp-";

/// The name that says whose it is. An older crfs made none: its cache is known by all that is in it.
const MARK: &str = "crfs-cache";
const MARKED: &[u8] = b"This directory is a cache of crfs, which makes, replaces and removes what is in it.\n";

/// The name of files that lose it at once.
pub(super) const UNNAMED: &str = "unnamed";

impl Dir {
    /// Makes the directory the cache's, if it is empty or is that already.
    ///
    /// # Errors
    /// Where it is somebody else's, or that cannot be told.
    pub(in crate::cache) fn adopt(&self) -> io::Result<()> {
        self.check()?;
        if self.is_marked() {
            return Ok(());
        }
        // Where nothing can be written, what is there is used all the same.
        if let Err(error) = self.write(Path::new(MARK), MARKED) {
            tracing::debug!(path = %self.path().display(), %error, "the cache cannot be marked as crfs's");
        }
        Ok(())
    }

    /// Whether the directory is the cache's, or nobody's.
    ///
    /// # Errors
    /// The same.
    pub(in crate::cache) fn check(&self) -> io::Result<()> {
        if self.is_marked() {
            return Ok(());
        }
        // Another process may be making it.
        self.check_all().or_else(|error| if self.is_marked() { Ok(()) } else { Err(error) })
    }

    fn is_marked(&self) -> bool {
        self.list(Path::new("")).iter().any(|entry| entry.name == MARK)
    }

    fn check_all(&self) -> io::Result<()> {
        let is_empty = self.entries(Path::new(""))?.is_empty();
        if is_empty || self.has_own(Path::new(""))? {
            return Ok(());
        }
        Err(self.others("nothing in it tells that crfs has made it"))
    }

    /// Whether anything below a path is what only crfs makes. An error where something is not what crfs makes.
    fn has_own(&self, below: &Path) -> io::Result<bool> {
        let mut has_own = false;
        for entry in self.entries(below)? {
            let path = below.join(&entry.name);
            if kind_of(&path) != Some(entry.kind) {
                return Err(self.others(format!("{} in it is somebody else's", path.display())));
            }
            has_own |= match entry.kind {
                EntryKind::Directory => self.has_own(&path)?,
                _ if path == Path::new(SPACE) => self.open(&path).is_ok_and(|file| space::damage(&file).is_none()),
                // It has a digest in its path, or is the mark that is being written.
                _ => path.components().count() > 1 || entry.name.to_str().is_some_and(|name| permanent(name).0 == MARK),
            };
        }
        Ok(has_own)
    }

    fn others(&self, what: impl std::fmt::Display) -> io::Error {
        let whole = self.path().display();
        io::Error::other(format!(
            "{whole} is not a cache of crfs: {what}; give crfs another --cache-dir, or move {whole} away"
        ))
    }
}

/// What crfs makes at a path below the directory; `None`: nothing.
pub(super) fn kind_of(path: &Path) -> Option<EntryKind> {
    let names: Option<Vec<&str>> = path.iter().map(|name| name.to_str()).collect();
    let mut names = names?;
    let (last, is_temporary) = permanent(names.pop()?);
    names.push(last);
    let is_digest = |hex: &str| format!("sha256:{hex}").parse::<Digest>().is_ok();
    let kind = match names[..] {
        [SPACE | MARK] => EntryKind::File,
        [UNNAMED] if is_temporary => EntryKind::File,
        [DOCUMENTS | NAMES | LAYERS] => EntryKind::Directory,
        [DOCUMENTS | NAMES, name] if is_digest(name) => EntryKind::File,
        [LAYERS, blob] if is_digest(blob) => EntryKind::Directory,
        [LAYERS, blob, identity] if is_layer_dir(blob, identity) => EntryKind::Directory,
        [LAYERS, blob, identity, name] if is_layer_dir(blob, identity) && LAYER_FILES.contains(&name) => {
            EntryKind::File
        }
        _ => return None,
    };
    // Directories are made by their names.
    (kind == EntryKind::File || !is_temporary).then_some(kind)
}

/// What the name of a file that is being written has at its end: numbers that no two have.
pub(super) fn temporary(process: u32, serial: u64, nanoseconds: u128) -> String {
    format!("{TEMPORARY}{process}-{serial}-{nanoseconds}")
}

/// The name that a file gets once it is written, and whether it has none yet.
pub(super) fn permanent(name: &str) -> (&str, bool) {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
    match name.split_once(TEMPORARY) {
        Some((name, numbers)) if numbers.split('-').count() == 3 && numbers.split('-').all(is_number) => (name, true),
        _ => (name, false),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::super::tests::dir;
    use super::*;
    use crate::cache::tests::filled;
    use crate::cache::{LAYOUT, clear, show, verify};

    #[test]
    fn an_empty_directory_is_taken_and_marked() {
        let (_temp, dir) = dir();
        dir.adopt().unwrap();
        assert!(dir.path().join(MARK).is_file());
        let (mark, being_written) = (dir.path().join(MARK), dir.path().join(format!("{MARK}.tmp-1-2-3")));
        fs::rename(&mark, &being_written).unwrap();
        dir.adopt().unwrap();
        // Whatever comes then.
        fs::write(dir.path().join("mine"), "x").unwrap();
        dir.adopt().unwrap();
    }

    #[test]
    fn a_cache_of_a_crfs_that_made_no_mark_is_known_by_all_that_is_in_it() {
        let temp = tempfile::tempdir().unwrap();
        let cache = filled(temp.path());
        let dir = Dir::existing(temp.path(), LAYOUT).unwrap();
        fs::remove_file(dir.path().join(MARK)).unwrap();
        dir.check().unwrap();
        assert!(!dir.is_marked());
        let left = dir.path().join("documents").join(format!("{}.tmp-1-2-3", Digest::of(b"x").hex()));
        fs::write(&left, "half").unwrap();
        dir.adopt().unwrap();
        assert!(dir.is_marked());
        fs::remove_file(dir.path().join(MARK)).unwrap();
        fs::write(dir.path().join("layers/notes"), "mine").unwrap();
        let error = dir.adopt().unwrap_err().to_string();
        assert!(error.contains("layers/notes in it is somebody else's"), "{error}");
        drop(cache);
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused_and_stays_as_it_is() {
        type Make = fn(&Path);
        let others: [(&str, Make); 7] = [
            ("a file by a name of ours", |v2| fs::write(v2.join("documents"), "mine").unwrap()),
            ("its size", |v2| fs::write(v2.join("space"), [b'y'; 200]).unwrap()),
            ("a directory by a name of ours", |v2| fs::create_dir(v2.join("documents")).unwrap()),
            ("a mere file", |v2| fs::write(v2.join("README"), "mine").unwrap()),
            ("a link", |v2| symlink("/nowhere", v2.join("layers")).unwrap()),
            ("what looks left over", |v2| fs::write(v2.join("notes.tmp-2024-11-30"), "mine").unwrap()),
            ("deeper down", |v2| {
                fs::create_dir_all(v2.join("names/2024")).unwrap();
                fs::write(v2.join("names/2024/a"), "mine").unwrap();
            }),
        ];
        for (what, make) in others {
            let temp = tempfile::tempdir().unwrap();
            let v2 = temp.path().join(LAYOUT);
            fs::create_dir(&v2).unwrap();
            make(&v2);
            let found = || {
                let list = std::process::Command::new("ls").args(["-lR", "--time-style=full-iso"]).arg(&v2).output();
                String::from_utf8(list.unwrap().stdout).unwrap()
            };
            let before = found();
            assert!(crate::cache::Cache::of_any_size(temp.path()).room().is_none(), "{what}");
            for error in [
                show(temp.path(), None).map(drop).unwrap_err(),
                clear(temp.path(), false).map(drop).unwrap_err(),
                verify(temp.path(), std::sync::Arc::new(|_| ())).map(drop).unwrap_err(),
            ] {
                assert!(error.to_string().contains("give crfs another --cache-dir"), "{what}: {error}");
            }
            assert_eq!(found(), before, "{what}");
        }
    }

    #[test]
    fn only_names_that_crfs_gives_have_a_kind() {
        let hex = Digest::of(b"x").hex().to_string();
        let of = |path: &str| kind_of(Path::new(&path.replace("HEX", &hex)));
        for file in [
            "space",
            "documents/HEX",
            "names/HEX.tmp-1-2-3",
            "layers/HEX/own/data",
            "layers/HEX/toc-HEX/index.tmp-1-2-3",
        ] {
            assert_eq!(of(file), Some(EntryKind::File), "{file}");
        }
        for directory in ["documents", "layers", "layers/HEX", "layers/HEX/ztoc-HEX"] {
            assert_eq!(of(directory), Some(EntryKind::Directory), "{directory}");
        }
        for other in [
            "",
            "x",
            "unnamed",
            "documents/x",
            "layers.tmp-1-2-3",
            "layers/HEX/mine",
            "layers/HEX/own/x",
            "src/x.tmp-1-2-3",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
