//! How the checks of a layer file are divided into groups: what is evicted, and valid, at once.
//!
//! A group is all checks whose range starts in the same [`SPAN`] of the layer file, and its bytes are all up to the first check of the
//! next. So a file of many small checks has groups of about 1 MiB, one check of a gigabyte is a group of its own, and every process gets
//! the same groups from the same index.

use std::ops::Range;

use crate::blob::ByteRange;
use crate::index::{Damaged, StoredIndex};

/// Small enough that what is evicted is little more than what has to be, large enough that what is kept for each group is nothing.
const SPAN: u64 = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Groups {
    len: u64,
    checks: u32,
    /// Where each group starts: its first byte and its first check, ascending. The first starts at 0.
    starts: Vec<(u64, u32)>,
}

impl Groups {
    /// `starts`: where each check starts, ascending. `len`: bytes of the layer file.
    #[cfg(test)]
    pub(super) fn new(len: u64, starts: &[u64]) -> Self {
        let mut groups = Self { len, checks: 0, starts: vec![(0, 0)] };
        for &start in starts {
            groups.push(start, groups.checks);
            groups.checks += 1;
        }
        groups
    }

    pub(super) fn of(index: &StoredIndex) -> Result<Self, Damaged> {
        let summary = index.summary();
        let groups = Self { len: summary.layer_file_len, checks: summary.checks, starts: vec![(0, 0)] };
        groups.divided(|span| index.checks_over(span), |check| Ok(index.check(check)?.range))
    }

    /// `over`: the checks that have bytes in a range. `range`: the bytes of a check.
    fn divided(
        mut self,
        over: impl Fn(ByteRange) -> Result<Range<u32>, Damaged>,
        range: impl Fn(u32) -> Result<ByteRange, Damaged>,
    ) -> Result<Self, Damaged> {
        let mut at = SPAN;
        while at < self.len {
            let span = ByteRange { start: at, end: at + SPAN };
            at = span.end;
            // The first may reach into this span from before it, and far beyond.
            for check in over(span)?.take(2) {
                let range = range(check)?;
                if range.start >= span.start {
                    self.push(range.start, check);
                    break;
                }
                at = at.max(range.end / SPAN * SPAN);
            }
        }
        Ok(self)
    }

    /// Of an index that cannot be read.
    pub(super) fn none() -> Self {
        Self { len: 0, checks: 0, starts: vec![(0, 0)] }
    }

    /// The check belongs to the last group, or starts one.
    fn push(&mut self, start: u64, check: u32) {
        if self.starts.last().is_some_and(|(last, _)| last / SPAN < start / SPAN) {
            self.starts.push((start, check));
        }
    }

    /// Of what [`starts`](Self::starts) gave; `None` where it makes no sense.
    pub(super) fn from_parts(len: u64, checks: u32, starts: Vec<(u64, u32)>) -> Option<Self> {
        let ascending = starts.windows(2).all(|pair| matches!(pair, [a, b] if a.0 < b.0 && a.1 <= b.1));
        let inside = starts.last().is_some_and(|last| last.0 <= len && last.1 <= checks);
        let groups = Self { len, checks, starts };
        (ascending && inside && groups.starts.first() == Some(&(0, 0))).then_some(groups)
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn checks(&self) -> u32 {
        self.checks
    }

    pub(super) fn count(&self) -> usize {
        self.starts.len()
    }

    pub(super) fn starts(&self) -> &[(u64, u32)] {
        &self.starts
    }

    pub(super) fn of_check(&self, check: u32) -> usize {
        self.starts.partition_point(|(_, first)| *first <= check).saturating_sub(1)
    }

    pub(super) fn bytes(&self, group: usize) -> ByteRange {
        let start = |group: usize| self.starts.get(group).map_or(self.len, |(start, _)| *start);
        ByteRange { start: start(group), end: start(group.saturating_add(1)) }
    }

    pub(super) fn checks_of(&self, group: usize) -> Range<u32> {
        let first = |group: usize| self.starts.get(group).map_or(self.checks, |(_, first)| *first);
        first(group)..first(group.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_tile_the_layer_file_and_its_checks() {
        let starts = [0, 4096, SPAN - 1, SPAN * 3, SPAN * 3 + 1, SPAN * 9 - 1, SPAN * 9];
        let groups = Groups::new(SPAN * 10, &starts);
        assert_eq!(groups.starts(), [(0, 0), (SPAN * 3, 3), (SPAN * 9 - 1, 5), (SPAN * 9, 6)]);
        assert_eq!((0..7).map(|check| groups.of_check(check)).collect::<Vec<_>>(), [0, 0, 0, 1, 1, 2, 3]);
        assert_eq!(groups.bytes(0), ByteRange { start: 0, end: SPAN * 3 });
        assert_eq!(groups.bytes(3), ByteRange { start: SPAN * 9, end: SPAN * 10 });
        assert_eq!((groups.checks_of(1), groups.checks_of(3)), (3..5, 6..7));
        let again = Groups::from_parts(groups.len(), groups.checks(), groups.starts().to_vec());
        assert_eq!(again, Some(groups));
    }

    #[test]
    fn what_is_found_by_looking_is_the_same_and_a_long_check_is_looked_at_once() {
        let starts =
            [0, 5, SPAN, SPAN * 2 - 1, SPAN * 2 + 7, SPAN * 1_000_000 + 7, SPAN * 1_000_001, SPAN * 1_000_003 - 1];
        for len in [SPAN * 1_000_003, SPAN * 16_000_000] {
            let end = |check: usize| starts.get(check + 1).copied().unwrap_or(len);
            let looks = std::cell::Cell::new(0);
            let over = |span: ByteRange| {
                looks.set(looks.get() + 1);
                let first = (0..starts.len()).find(|check| end(*check) > span.start).unwrap();
                let after = starts.partition_point(|start| *start < span.end);
                Ok(first as u32..after as u32)
            };
            let range = |check: u32| Ok(ByteRange { start: starts[check as usize], end: end(check as usize) });
            let none = Groups { len, checks: starts.len() as u32, starts: vec![(0, 0)] };
            assert_eq!(none.divided(over, range).unwrap(), Groups::new(len, &starts));
            assert!(looks.get() < 20, "{}", looks.get());
        }
    }

    #[test]
    fn a_layer_without_contents_has_one_group_of_nothing() {
        let groups = Groups::new(0, &[]);
        assert_eq!((groups.count(), groups.bytes(0).len(), groups.checks_of(0)), (1, 0, 0..0));
    }

    #[test]
    fn what_makes_no_sense_is_no_division() {
        for (len, checks, starts) in
            [(5, 5, vec![]), (5, 5, vec![(1, 0)]), (9, 9, vec![(0, 0), (0, 1)]), (9, 9, vec![(0, 0), (10, 1)])]
        {
            assert_eq!(Groups::from_parts(len, checks, starts), None);
        }
    }
}
