//! The files that a tar-split names, by their paths.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, RandomState};

use crate::index::once::Hashed;

/// A file that a tar-split names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Named {
    /// The entry's number in the tar.
    pub(super) entry: u64,
    pub(super) size: u64,
}

/// Paths are known by two hashes of 64 bits: the paths of a layer can take a GiB. The hashes are keyed, so nobody can make two paths that have the
/// same, and that any two of 2^24 do by chance is less likely than one in 2^80.
#[derive(Debug, Default)]
pub(super) struct Files {
    by_path: HashMap<(u64, u64), Named, BuildHasherDefault<Hashed>>,
    hashers: [RandomState; 2],
}

impl Files {
    /// Bytes for a file: 33 for a place of the table, of which seven to fourteen in sixteen are taken, half as many while that grows, and its number in
    /// the sets that come of it.
    pub(super) const EACH: u64 = 144;

    pub(super) fn len(&self) -> usize {
        self.by_path.len()
    }

    pub(super) fn get(&self, path: &[u8]) -> Option<Named> {
        self.by_path.get(&self.key(path)).copied()
    }

    pub(super) fn insert(&mut self, path: &[u8], file: Named) {
        self.by_path.insert(self.key(path), file);
    }

    pub(super) fn remove(&mut self, path: &[u8]) -> Option<Named> {
        self.by_path.remove(&self.key(path))
    }

    /// Their numbers.
    pub(super) fn entries(&self) -> impl Iterator<Item = u64> {
        self.by_path.values().map(|file| file.entry)
    }

    fn key(&self, path: &[u8]) -> (u64, u64) {
        let [one, other] = &self.hashers;
        (one.hash_one(path), other.hash_one(path))
    }
}
