//! Manifests and image indexes by digest, and what names were resolved to.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::Cache;
use crate::blob::{Digest, Documents};

/// No document of a registry is larger; the distribution specification asks for 4 MiB of manifest at least.
const MAX_DOCUMENT: u64 = 16 << 20;

impl Documents for Cache {
    fn get(&self, digest: &Digest) -> Option<Bytes> {
        let dir = self.dir.as_ref()?;
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
        let line = self.dir.as_ref()?.read(&name_path(name), 4096).ok()?;
        let (digest, kept_name) = std::str::from_utf8(&line).ok()?.split_once(' ')?;
        (kept_name == name).then(|| digest.parse().ok())?
    }

    fn remember(&self, name: &str, digest: &Digest) {
        self.keep(&name_path(name), format!("{digest} {name}").as_bytes());
    }
}

impl Cache {
    fn keep(&self, path: &Path, bytes: &[u8]) {
        let Some(dir) = &self.dir else { return };
        if let Err(error) = dir.write(path, bytes) {
            tracing::warn!(path = %dir.path().join(path).display(), %error, "cannot write to the cache");
        }
    }
}

fn document_path(digest: &Digest) -> PathBuf {
    Path::new("documents").join(digest.hex())
}

/// By digest, since a name may hold any character.
fn name_path(name: &str) -> PathBuf {
    Path::new("names").join(Digest::of(name.as_bytes()).hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_checked_when_they_are_read() {
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::open(temp.path());
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
        let cache = Cache::open(temp.path());
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        assert_eq!(cache.resolved("a:b"), None);
        cache.remember("a:b", &one);
        cache.remember("a:b", &two);
        assert_eq!(cache.resolved("a:b"), Some(two));
        assert_eq!(cache.resolved("a:c"), None);
    }

    #[test]
    fn a_cache_that_cannot_be_had_forgets_everything() {
        let cache = Cache::open(Path::new("/proc/nowhere"));
        cache.put(&Digest::of(b"x"), b"x");
        assert_eq!(cache.get(&Digest::of(b"x")), None);
    }
}
