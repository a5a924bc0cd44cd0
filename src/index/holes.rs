//! The holes of a layer file: whole blocks that no unit fills, and that read as zeros.

use std::sync::Arc;

use super::entries::BLOCK;
use crate::blob::ByteRange;

/// Holes in the order of the layer file, neither empty nor touching.
///
/// One may reach over the ends of files, since what pads a file to a block is none of its bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holes(Arc<[Hole]>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hole {
    range: ByteRange,
    /// Bytes of all holes before it.
    before: u64,
}

impl Holes {
    /// Of ranges that ascend, each as far as it is whole blocks.
    pub(crate) fn of(ranges: impl IntoIterator<Item = ByteRange>) -> Self {
        let mut holes = Vec::new();
        let mut before = 0;
        for ByteRange { start, end } in ranges {
            let (start, end) = (start.next_multiple_of(BLOCK), end / BLOCK * BLOCK);
            if start < end {
                holes.push(Hole { range: ByteRange { start, end }, before });
                before += end - start;
            }
        }
        Self(holes.into())
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first hole that ends behind `at`.
    #[must_use]
    pub fn from(&self, at: u64) -> Option<ByteRange> {
        self.0.get(self.position(at)).map(|hole| hole.range)
    }

    /// How many bytes of a range are in holes.
    #[must_use]
    pub fn bytes_in(&self, range: ByteRange) -> u64 {
        self.bytes_before(range.end).saturating_sub(self.bytes_before(range.start))
    }

    fn bytes_before(&self, at: u64) -> u64 {
        match (self.0.get(self.position(at)), self.0.last()) {
            (Some(hole), _) => hole.before + at.saturating_sub(hole.range.start),
            (None, Some(last)) => last.before + last.range.len(),
            (None, None) => 0,
        }
    }

    fn position(&self, at: u64) -> usize {
        self.0.partition_point(|hole| hole.range.end <= at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange { start, end }
    }

    #[test]
    fn only_whole_blocks_are_holes() {
        let holes = Holes::of([range(1, 4096), range(5000, 12_287), range(12_288, 12_289), range(20_000, 40_960)]);
        assert_eq!(holes, Holes::of([range(20_480, 40_960)]));
        assert!(Holes::of([range(1, 8191)]).is_empty());
    }

    #[test]
    fn the_bytes_of_holes_are_counted_in_any_range() {
        let holes = Holes::of([range(4096, 8192), range(12_288, 20_480)]);
        let bytes = |start, end| holes.bytes_in(range(start, end));
        assert_eq!([bytes(0, 4096), bytes(0, 5000), bytes(5000, 6000), bytes(0, u64::MAX)], [0, 904, 1000, 12_288]);
        assert_eq!([bytes(8192, 12_288), bytes(8000, 12_289), bytes(20_480, 30_000)], [0, 193, 0]);
        assert_eq!(holes.from(4095), Some(range(4096, 8192)));
        assert_eq!([holes.from(8191), holes.from(8192)].map(|hole| hole.unwrap().start), [4096, 12_288]);
        assert_eq!(holes.from(20_480), None);
        assert_eq!(Holes::default().bytes_in(range(0, 9)), 0);
    }
}
