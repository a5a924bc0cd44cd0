//! The blocks of an index's tables that were read last.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::tables::BLOCK;

/// Blocks that one index keeps in memory: up to 2 MiB, the checks of 32,768 chunks.
const KEPT: usize = SHELVES * EACH;
const SHELVES: usize = 8;
const EACH: usize = 4;

/// Each block has one shelf, which it shares with every 8th other. There the four that were used last are: who reads a layer in order uses a block of
/// each table at a time, and some further on. A lookup is one lock and a few comparisons, and there are several for each read.
pub(super) struct Blocks([Mutex<Vec<(u64, Bytes)>>; SHELVES]);

impl Blocks {
    /// Bytes that they come to at most.
    pub(super) const fn most(&self) -> u64 {
        (KEPT * BLOCK) as u64
    }

    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }

    pub(super) fn get(&self, number: u64) -> Option<Bytes> {
        self.with(number, |block| block.clone())
    }

    /// What is made of a block, without another reference to it.
    pub(super) fn with<T>(&self, number: u64, make: impl FnOnce(&Bytes) -> T) -> Option<T> {
        let mut shelf = self.shelf(number)?.lock().unwrap_or_else(PoisonError::into_inner);
        let at = shelf.iter().position(|(kept, _)| *kept == number)?;
        shelf.get_mut(..=at)?.rotate_right(1);
        shelf.first().map(|(_, block)| make(block))
    }

    pub(super) fn keep(&self, number: u64, block: Bytes) {
        if let Some(shelf) = self.shelf(number) {
            let mut shelf = shelf.lock().unwrap_or_else(PoisonError::into_inner);
            shelf.retain(|(kept, _)| *kept != number);
            shelf.truncate(EACH - 1);
            shelf.insert(0, (number, block));
        }
    }

    fn shelf(&self, number: u64) -> Option<&Mutex<Vec<(u64, Bytes)>>> {
        self.0.get(usize::try_from(number % SHELVES as u64).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_blocks_of_each_shelf_are_kept() {
        let blocks = Blocks::new();
        assert_eq!(blocks.get(3), None);
        let of = |number: u64| Bytes::from(vec![number as u8; 3]);
        // Of one shelf, and one of another.
        let numbers = [3, 11, 19, 27].into_iter().chain([4]);
        numbers.clone().for_each(|number| blocks.keep(number, of(number)));
        numbers.clone().for_each(|number| assert_eq!(blocks.get(number), Some(of(number))));
        blocks.keep(11, of(11));
        blocks.keep(35, of(35));
        let kept = numbers.chain([35]).filter(|number| blocks.get(*number).is_some());
        assert_eq!(kept.collect::<Vec<_>>(), [11, 19, 27, 4, 35], "the one that was used before all others has gone");
        assert_eq!(blocks.with(35, Bytes::len), Some(3));
    }
}
