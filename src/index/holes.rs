//! The holes of a layer file: whole blocks that no unit fills, and that read as zeros.

use std::sync::Arc;

use super::entries::BLOCK;
use crate::blob::ByteRange;
use crate::budget::{Budget, Charge, Exceeded};

/// Holes in the order of the layer file, neither empty nor touching.
///
/// One may reach over the ends of files, since what pads a file to a block is none of its bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holes(Arc<List>);

#[derive(Debug, Default, PartialEq, Eq)]
struct List {
    holes: Vec<Hole>,
    charge: Charge,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hole {
    range: ByteRange,
    /// Bytes of all holes before it.
    before: u64,
}

/// Gathers holes within a budget.
#[derive(Debug)]
pub(super) struct Gathered {
    list: List,
    before: u64,
}

impl Gathered {
    pub(super) fn new(memory: &Budget) -> Self {
        Self { list: List { holes: Vec::new(), charge: memory.charge(0) }, before: 0 }
    }

    /// A range behind all before it, as far as it is whole blocks.
    pub(super) fn add(&mut self, ByteRange { start, end }: ByteRange) -> Result<(), Exceeded> {
        let (start, end) = (start.next_multiple_of(BLOCK), end / BLOCK * BLOCK);
        if start < end {
            let List { holes, charge } = &mut self.list;
            charge.cover(((holes.len() + 1) * size_of::<Hole>()) as u64, 0)?;
            holes.push(Hole { range: ByteRange { start, end }, before: self.before });
            self.before += end - start;
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Holes, Exceeded> {
        let List { holes, charge } = &mut self.list;
        holes.shrink_to_fit();
        charge.settle((holes.len() * size_of::<Hole>()) as u64, 0)?;
        Ok(Holes(Arc::new(self.list)))
    }
}

impl Holes {
    /// Of ranges that ascend, each as far as it is whole blocks, without a limit.
    #[cfg(test)]
    pub(crate) fn of(ranges: impl IntoIterator<Item = ByteRange>) -> Self {
        let mut gathered = Gathered::new(&Budget::UNLIMITED);
        ranges.into_iter().for_each(|range| gathered.add(range).unwrap());
        gathered.finish().unwrap()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.holes.is_empty()
    }

    /// The first hole that ends behind `at`.
    #[must_use]
    pub fn from(&self, at: u64) -> Option<ByteRange> {
        self.0.holes.get(self.position(at)).map(|hole| hole.range)
    }

    /// How many bytes of a range are in holes.
    #[must_use]
    pub fn bytes_in(&self, range: ByteRange) -> u64 {
        self.bytes_before(range.end).saturating_sub(self.bytes_before(range.start))
    }

    fn bytes_before(&self, at: u64) -> u64 {
        match (self.0.holes.get(self.position(at)), self.0.holes.last()) {
            (Some(hole), _) => hole.before + at.saturating_sub(hole.range.start),
            (None, Some(last)) => last.before + last.range.len(),
            (None, None) => 0,
        }
    }

    fn position(&self, at: u64) -> usize {
        self.0.holes.partition_point(|hole| hole.range.end <= at)
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
    fn more_of_them_than_there_is_room_for_are_refused() {
        let mut gathered = Gathered::new(&Budget::of_process().of_image(10 * size_of::<Hole>() as u64));
        let hole = |number: u64| range(number * 8192, number * 8192 + 4096);
        assert_eq!((0..).map(hole).position(|hole| gathered.add(hole).is_err()), Some(10));
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
