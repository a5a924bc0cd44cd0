//! Manifests and image indexes by digest, and what names were resolved to.
//!
//! A name's file is one line: `SHA256-OF-THE-REST DIGEST NAME`, so that a flipped bit shows.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::dir::{Dir, is_temporary};
use super::{Cache, Spool};
use crate::blob::{Digest, Documents, Scratch};
use crate::sys::own::Entry;

/// No document of a registry is larger; the distribution specification asks for 4 MiB of manifest at least.
const MAX_DOCUMENT: u64 = 16 << 20;
const MAX_NAME: u64 = 8 << 10;

pub(super) const DOCUMENTS: &str = "documents";
pub(super) const NAMES: &str = "names";

impl Documents for Cache {
    fn get(&self, digest: &Digest) -> Option<Bytes> {
        let dir = &self.store.as_ref()?.dir;
        let path = document_path(digest);
        let bytes = dir.read(&path, MAX_DOCUMENT).ok()?;
        if Digest::of(&bytes) == *digest {
            return Some(bytes.into());
        }
        tracing::warn!(%digest, "a cached document is damaged; it is asked for again");
        let _ = dir.remove(&path);
        None
    }

    fn put(&self, digest: &Digest, document: &[u8]) {
        self.keep(&document_path(digest), document);
    }

    fn resolved(&self, name: &str) -> Option<Digest> {
        let bytes = self.store.as_ref()?.dir.read(&name_path(name), MAX_NAME).ok()?;
        let (digest, kept_name) = parse_name(&bytes)?;
        (kept_name == name).then_some(digest)
    }

    fn remember(&self, name: &str, digest: &Digest) {
        let rest = format!("{digest} {name}");
        let line = format!("{} {rest}", Digest::of(rest.as_bytes()).hex());
        let path = name_path(name);
        // What a mount says anew each time is written when it is news.
        if self.store.as_ref().is_some_and(|store| store.dir.read(&path, MAX_NAME).ok() != Some(line.as_bytes().into()))
        {
            self.keep(&path, line.as_bytes());
        }
    }

    fn dir(&self) -> Option<PathBuf> {
        self.path().map(Path::to_owned)
    }

    fn scratch(&self) -> io::Result<Box<dyn Scratch>> {
        // Without a cache nothing would limit it.
        let store = self.store.as_ref().ok_or(io::ErrorKind::StorageFull)?;
        Ok(Box::new(Spool::new(Some(store))?))
    }
}

impl Cache {
    fn keep(&self, path: &Path, bytes: &[u8]) {
        let Some(store) = &self.store else { return };
        if let Err(error) = store.write(path, bytes) {
            tracing::warn!(path = %store.dir.path().join(path).display(), %error, "cannot write to the cache");
        }
    }
}

fn parse_name(bytes: &[u8]) -> Option<(Digest, &str)> {
    let (checksum, rest) = std::str::from_utf8(bytes).ok()?.split_once(' ')?;
    let (digest, name) = rest.split_once(' ')?;
    (Digest::of(rest.as_bytes()).hex() == checksum).then_some((digest.parse().ok()?, name))
}

/// The files of [`DOCUMENTS`] or [`NAMES`] that are whole.
pub(super) fn in_folder(dir: &Dir, folder: &'static str) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = dir.list(Path::new(folder)).into_iter().filter(|entry| !is_temporary(&entry.name));
    entries.map(move |entry| Path::new(folder).join(entry.name))
}

/// The image that a file of [`NAMES`] is of, without the platform behind it, and what it led to last.
pub(super) fn named(dir: &Dir, path: &Path) -> Option<(String, Digest)> {
    let bytes = dir.read(path, MAX_NAME).ok()?;
    let (digest, name) = parse_name(&bytes)?;
    Some((name.split_once(' ').map_or(name, |(image, _)| image).to_owned(), digest))
}

/// A file of [`DOCUMENTS`], if it is what its name says.
pub(super) fn document(dir: &Dir, path: &Path) -> Option<(Digest, Vec<u8>)> {
    let bytes = dir.read(path, MAX_DOCUMENT).ok()?;
    let digest = Digest::of(&bytes);
    (document_path(&digest) == path).then_some((digest, bytes))
}

/// Whether a file of [`DOCUMENTS`] or [`NAMES`] is what its name says; `None` where it is gone.
pub(super) fn is_sound(dir: &Dir, folder: &str, name: &str) -> Option<bool> {
    let path = Path::new(folder).join(name);
    let bytes = match dir.read(&path, MAX_DOCUMENT) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        read => read.unwrap_or_default(),
    };
    Some(match folder {
        NAMES => parse_name(&bytes).is_some_and(|(_, kept)| name_path(kept) == path),
        _ => Digest::of(&bytes).hex() == name,
    })
}

/// Makes room: the oldest documents go first, then the names. Gives the bytes that are free now.
pub(super) fn free(dir: &Dir, goal: u64) -> u64 {
    let mut freed = 0;
    for folder in [DOCUMENTS, NAMES] {
        let is_ours =
            |entry: &Entry| entry.name.to_str().is_some_and(|name| format!("sha256:{name}").parse::<Digest>().is_ok());
        let mut entries = dir.list(Path::new(folder));
        entries.retain(is_ours);
        entries.sort_by_key(|entry| entry.modified);
        for entry in entries {
            if freed >= goal {
                return freed;
            }
            if dir.remove(&Path::new(folder).join(&entry.name)).is_ok() {
                freed += entry.allocated;
            }
        }
    }
    freed
}

fn document_path(digest: &Digest) -> PathBuf {
    Path::new(DOCUMENTS).join(digest.hex())
}

/// By digest, since a name may hold any character.
fn name_path(name: &str) -> PathBuf {
    Path::new(NAMES).join(Digest::of(name.as_bytes()).hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_checked_when_they_are_read() {
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::of_any_size(temp.path());
        let digest = Digest::of(b"{}");
        assert_eq!(cache.get(&digest), None);
        cache.put(&digest, b"{}");
        assert_eq!(cache.get(&digest).unwrap(), "{}");
        let path = temp.path().join(super::super::LAYOUT).join(document_path(&digest));
        std::fs::write(&path, b"[]").unwrap();
        assert_eq!(cache.get(&digest), None, "flipped");
        assert!(!path.exists(), "and dropped");
    }

    #[test]
    fn names_remember_their_last_digest() {
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::of_any_size(temp.path());
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        assert_eq!(cache.resolved("a:b"), None);
        cache.remember("a:b", &one);
        cache.remember("a:b", &two);
        assert_eq!(cache.resolved("a:b"), Some(two));
        assert_eq!(cache.resolved("a:c"), None);
        let dir = &cache.store.as_ref().unwrap().dir;
        let file = name_path("a:b").file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(is_sound(dir, NAMES, &file), Some(true));
        let mut line = dir.read(&name_path("a:b"), MAX_NAME).unwrap();
        line[80] ^= 1;
        dir.write(&name_path("a:b"), &line).unwrap();
        assert_eq!((cache.resolved("a:b"), is_sound(dir, NAMES, &file)), (None, Some(false)), "flipped");
    }

    #[test]
    fn a_cache_that_cannot_be_had_forgets_everything() {
        let cache = Cache::of_any_size(Path::new("/proc/nowhere"));
        cache.put(&Digest::of(b"x"), b"x");
        assert_eq!(cache.get(&Digest::of(b"x")), None);
    }
}
