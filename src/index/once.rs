//! Byte strings one after the other in an arena, each different one once.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

/// A map whose keys are hashes already. It is in parts, since a table is there twice while it grows: so a small part of it is.
#[derive(Debug)]
pub(crate) struct ByHash<T>([HashMap<u64, T, BuildHasherDefault<Hashed>>; PARTS]);

const PARTS: usize = 16;

impl<T> Default for ByHash<T> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| HashMap::default()))
    }
}

impl<T: Copy> ByHash<T> {
    /// Bytes for an entry of two small numbers. A place of the table takes 17, and seven to fourteen of sixteen are taken.
    pub(crate) const EACH: u64 = 44;

    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(HashMap::len).sum()
    }

    pub(crate) fn get(&self, key: u64) -> Option<T> {
        self.0.get(Self::part(key))?.get(&key).copied()
    }

    pub(crate) fn insert(&mut self, key: u64, value: T) {
        if let Some(part) = self.0.get_mut(Self::part(key)) {
            part.insert(key, value);
        }
    }

    /// By bits that a table looks at neither for the place nor for the tag.
    const fn part(key: u64) -> usize {
        (key >> 48) as usize % PARTS
    }
}

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
    pub(crate) const EACH: u64 = ByHash::<(u32, u32)>::EACH;

    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> u64 {
        self.places.len() as u64 * Self::EACH
    }

    /// Where `bytes` start in the arena, which gets them if it does not have them. `None` where they would lie behind 4 GiB.
    pub(crate) fn place(&mut self, arena: &mut Vec<u8>, bytes: &[u8]) -> Option<u32> {
        let mut key = self.hasher.hash_one(bytes);
        while let Some((start, len)) = self.places.get(key) {
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

    #[test]
    fn a_table_of_hashes_takes_what_it_is_said_to_and_finds_all_of_it() {
        let (hasher, mut map) = (RandomState::new(), ByHash::default());
        for number in 0..200_000_u32 {
            map.insert(hasher.hash_one(number), (number, number));
            // Of the hash and the numbers, and a byte for the tag; a table that grows is there twice.
            let (places, largest) = map.0.iter().fold((0, 0), |(sum, largest), part| {
                let places = part.capacity() * 8 / 7;
                (sum + places, largest.max(places))
            });
            let taken = (places + largest / 2) as u64 * 17;
            assert!(number < 20_000 || taken <= (map.len() as u64) * ByHash::<(u32, u32)>::EACH, "{number}: {taken}");
        }
        assert!((0..200_000_u32).all(|number| map.get(hasher.hash_one(number)) == Some((number, number))));
        assert_eq!((map.len(), map.get(7)), (200_000, None));
    }
}
