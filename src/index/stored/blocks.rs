//! The blocks of an index's tables that were read last.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::tables::BLOCK;

/// Blocks that one index keeps in memory: up to 2 MiB, the checks of 32,768 chunks.
const KEPT: usize = 32;

/// Each block has one place, which it shares with every 32nd other: a lookup is one lock and one comparison, and there are several for each
/// read. What a read looks up lies together, so that it is seldom two blocks of one place.
pub(super) struct Blocks([Mutex<Option<(u64, Bytes)>>; KEPT]);

impl Blocks {
    /// Bytes that they come to at most.
    pub(super) const fn most(&self) -> u64 {
        (KEPT * BLOCK) as u64
    }

    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|_| Mutex::new(None)))
    }

    pub(super) fn get(&self, number: u64) -> Option<Bytes> {
        let place = self.place(number)?.lock().unwrap_or_else(PoisonError::into_inner);
        place.as_ref().filter(|(kept, _)| *kept == number).map(|(_, block)| block.clone())
    }

    pub(super) fn keep(&self, number: u64, block: Bytes) {
        if let Some(place) = self.place(number) {
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some((number, block));
        }
    }

    fn place(&self, number: u64) -> Option<&Mutex<Option<(u64, Bytes)>>> {
        self.0.get(usize::try_from(number % KEPT as u64).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_block_of_each_place_is_kept() {
        let blocks = Blocks::new();
        assert_eq!(blocks.get(3), None);
        blocks.keep(3, Bytes::from_static(b"3"));
        blocks.keep(4, Bytes::from_static(b"4"));
        assert_eq!((blocks.get(3), blocks.get(4)), (Some(Bytes::from_static(b"3")), Some(Bytes::from_static(b"4"))));
        let other = 3 + KEPT as u64;
        assert_eq!(blocks.get(other), None);
        blocks.keep(other, Bytes::from_static(b"other"));
        assert_eq!((blocks.get(3), blocks.get(other)), (None, Some(Bytes::from_static(b"other"))));
    }
}
