//! Byte strings one after the other in an arena, each different one once.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

/// A map whose keys are hashes already.
pub(crate) type ByHash<T> = HashMap<u64, T, BuildHasherDefault<Hashed>>;

#[derive(Debug, Default)]
pub(crate) struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

/// Where the strings of an arena are, by their hashes. Where two hash alike, the next free number is taken; the hash is keyed, so nobody can make
/// many do so. It is needed only while the arena grows.
#[derive(Debug, Default)]
pub(crate) struct Once {
    places: ByHash<(u32, u32)>,
    hasher: RandomState,
}

impl Once {
    /// Bytes that this takes for a string, its table's free places included.
    pub(crate) const EACH: u64 = 44;

    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> u64 {
        self.places.len() as u64 * Self::EACH
    }

    /// Where `bytes` start in the arena, which gets them if it does not have them. `None` where they would lie behind 4 GiB.
    pub(crate) fn place(&mut self, arena: &mut Vec<u8>, bytes: &[u8]) -> Option<u32> {
        let mut key = self.hasher.hash_one(bytes);
        while let Some((start, len)) = self.places.get(&key).copied() {
            if arena.get(start as usize..start as usize + len as usize) == Some(bytes) {
                return Some(start);
            }
            key = key.wrapping_add(1);
        }
        let start = u32::try_from(arena.len()).ok()?;
        let len = u32::try_from(bytes.len()).ok().filter(|len| start.checked_add(*len).is_some())?;
        arena.extend_from_slice(bytes);
        self.places.insert(key, (start, len));
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_have_one_place() {
        let (mut once, mut arena) = (Once::default(), Vec::new());
        let words = [&b"ab"[..], b"", b"c", b"ab", b"abc", b"c", b""];
        let places: Vec<_> = words.iter().map(|word| once.place(&mut arena, word).unwrap() as usize).collect();
        assert_eq!(arena, b"abcabc");
        for (word, place) in words.iter().zip(&places) {
            assert_eq!(&arena[*place..place + word.len()], *word);
        }
        assert_eq!((places[0], places[2]), (places[3], places[5]));
    }
}
