//! Which units to ask for, and in which requests.
//!
//! What a reader misses is asked for with its neighbours: units that touch become one request, up to [`MAX_REQUEST`].

use std::ops::Range;

use super::assemble::Wanted;
use crate::blob::ByteRange;
use crate::index::{CheckKind, Damaged, Packing, StoredIndex};

/// Compressed bytes of one request, except where one check alone needs more.
pub(super) const MAX_REQUEST: u64 = 4 << 20;

/// Slices in which caches on the way may keep blobs; those of other caches are as long as several of them.
pub(super) const SLICE: u64 = 1 << 20;

/// A longer unit is not cut: its second part is kept in memory until the first is there.
const LARGEST_CUT: u64 = 4 << 20;

/// Bytes of an image that one request brings because they lie in the same chunks.
const MOST_OF_CHUNKS: u64 = 32 << 20;

/// Checks looked at behind a miss: holes cost no bytes, and a file may be full of them.
const MAX_CHECKS_BEHIND: u32 = 4096;

/// Runs with no more than this between them become one, where a request more would cost more than bytes that are there already.
pub(super) const GAP: u64 = 8 << 10;

/// How far to go on behind a miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tail {
    /// Compressed bytes.
    pub(super) bytes: u64,
    /// Place in the layer file.
    pub(super) until: u64,
    /// Whether what is behind it will be asked for next: then it ends with the last slice that ends within those bytes, where any does.
    pub(super) goes_on: bool,
}

/// Units that lie next to each other in the blob, for one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) units: Range<u32>,
    /// From the first unit's start to the last one's end; either may be the end of a slice, where that cuts a unit.
    pub(super) compressed: ByteRange,
}

impl Run {
    fn new(index: &StoredIndex, units: Range<u32>) -> Result<Option<Self>, Damaged> {
        let Some(last) = units.end.checked_sub(1).filter(|last| *last >= units.start) else { return Ok(None) };
        let (start, end) = (index.unit(units.start)?.compressed.start, index.unit(last)?.compressed.end);
        Ok(ByteRange::new(start, end).map(|compressed| Self { units, compressed }))
    }

    /// The two as one request, where they are no more than `gap` bytes apart and it is not too large. Runs that share a unit always go together.
    fn join(&self, next: &Self, gap: u64) -> Option<Self> {
        let joined = Self {
            units: self.units.start..next.units.end.max(self.units.end),
            compressed: ByteRange { start: self.compressed.start, end: next.compressed.end.max(self.compressed.end) },
        };
        let shared = next.units.start < self.units.end && self.units.start <= next.units.start;
        // Those of a filesystem image need not ascend in the blob. Deflate blocks may begin in the byte that others end with.
        if !shared && next.compressed.start.saturating_add(1) < self.compressed.end {
            return None;
        }
        let between = next.compressed.start.saturating_sub(self.compressed.end);
        // Neighbours of a filesystem image may be far from each other.
        let touching = (next.units.start == self.units.end && between <= GAP) || (gap > 0 && between <= gap);
        (shared || (touching && joined.compressed.len() <= MAX_REQUEST)).then_some(joined)
    }
}

/// The runs that bring `checks` (ascending), each of them whole.
pub(super) fn runs(index: &StoredIndex, checks: &[u32]) -> Result<Vec<Run>, Damaged> {
    let mut runs: Vec<Run> = Vec::new();
    for &check in checks {
        add(index, &mut runs, check)?;
    }
    Ok(runs)
}

/// Runs that are but little apart as one. Between those of a filesystem image there may be units that are somewhere else.
pub(super) fn joined(index: &StoredIndex, runs: Vec<Run>) -> Vec<Run> {
    let gap = if index.summary().format.is_filesystem() { 0 } else { GAP };
    let mut joined: Vec<Run> = Vec::with_capacity(runs.len());
    for run in runs {
        match joined.last_mut().and_then(|last| Some((last.join(&run, gap)?, last))) {
            Some((both, last)) => *last = both,
            None => joined.push(run),
        }
    }
    joined
}

/// Lets the last of `runs`, which brings the check `last`, go on over further checks that `missing` says are not there.
pub(super) fn extend(
    index: &StoredIndex,
    runs: &mut Vec<Run>,
    last: u32,
    tail: Tail,
    missing: impl Fn(u32) -> bool,
) -> Result<(), Damaged> {
    let start = runs.last().map_or(0, |run| run.compressed.end);
    let limit = start.saturating_add(tail.bytes);
    let last_slice = tail.goes_on.then_some(limit / SLICE * SLICE).filter(|end| *end > start);
    let end = last.saturating_add(MAX_CHECKS_BEHIND).min(index.summary().checks);
    for next in last.saturating_add(1)..end {
        let is_far = runs.last().is_some_and(|run| run.compressed.end >= limit);
        if is_far || !missing(next) || index.check(next)?.range.start >= tail.until {
            break;
        }
        if let (Some(end), Some(run)) = (last_slice, run_of(index, next)?) {
            if run.compressed.end > end {
                break;
            }
        }
        add(index, runs, next)?;
    }
    Ok(())
}

fn add(index: &StoredIndex, runs: &mut Vec<Run>, check: u32) -> Result<(), Damaged> {
    let Some(run) = run_of(index, check)? else { return Ok(()) };
    match runs.last_mut().and_then(|last| Some((last.join(&run, 0)?, last))) {
        Some((joined, last)) => *last = joined,
        None => runs.push(run),
    }
    Ok(())
}

/// The run that brings a check.
fn run_of(index: &StoredIndex, check: u32) -> Result<Option<Run>, Damaged> {
    Run::new(index, index.units_over(index.check(check)?.range)?)
}

/// The same with what else lies in its chunks: these come whole, whatever is wanted of them.
pub(super) fn with_chunks(index: &StoredIndex, run: Run) -> Result<Run, Damaged> {
    if !matches!(index.packing(), Some(Packing::Stored | Packing::Zstd | Packing::Frames)) {
        return Ok(run);
    }
    let chunks = index.chunks_over(run.compressed)?;
    let Some(last) = chunks.end.checked_sub(1).filter(|last| *last >= chunks.start) else { return Ok(run) };
    let all = ByteRange { start: index.chunk(chunks.start)?.image.start, end: index.chunk(last)?.image.end };
    let Run { mut units, mut compressed } = run;
    // Units that lie somewhere else have nothing of them.
    while let Some(before) = units.start.checked_sub(1) {
        let unit = index.unit(before)?.compressed;
        if unit.start < all.start || unit.end > compressed.start || compressed.len() > MOST_OF_CHUNKS {
            break;
        }
        (units.start, compressed.start) = (before, unit.start);
    }
    while units.end < index.summary().units {
        let unit = index.unit(units.end)?.compressed;
        if unit.end > all.end || unit.start < compressed.end || compressed.len() > MOST_OF_CHUNKS {
            break;
        }
        (units.end, compressed.end) = (units.end + 1, unit.end);
    }
    Ok(Run { units, compressed })
}

/// Compressed bytes from the first to the last of some units.
pub(super) fn compressed(index: &StoredIndex, units: &Range<u32>) -> Result<u64, Damaged> {
    Ok(place(index, units)?.len())
}

/// Where they are in the blob.
pub(super) fn place(index: &StoredIndex, units: &Range<u32>) -> Result<ByteRange, Damaged> {
    Ok(Run::new(index, units.clone())?.map_or(ByteRange { start: 0, end: 0 }, |run| run.compressed))
}

/// The last unit before `end` that ends within `bytes` from the start of `unit`; itself at least.
pub(super) fn forward(index: &StoredIndex, unit: u32, bytes: u64, end: u32) -> Result<u32, Damaged> {
    let limit = index.unit(unit)?.compressed.start.saturating_add(bytes);
    last_before(unit..end, |at| Ok(index.unit(at)?.compressed.end <= limit))
}

/// The last unit before `end` that is whole in the slice in which `unit` ends; itself at least.
pub(super) fn to_slice_end(index: &StoredIndex, unit: u32, end: u32) -> Result<u32, Damaged> {
    let limit = slice_end(index.unit(unit)?.compressed.end);
    last_before(unit..end, |at| Ok(index.unit(at)?.compressed.end <= limit))
}

/// The end of the slice that a place is in, or the place itself where it is one.
fn slice_end(place: u64) -> u64 {
    place.checked_next_multiple_of(SLICE).unwrap_or(u64::MAX)
}

/// The slices that have a part of a range, by number.
pub(super) fn slices(range: ByteRange) -> Range<u64> {
    range.start / SLICE..range.end.div_ceil(SLICE)
}

/// Whether `place` is in the slice that ends at `end`.
pub(super) fn is_in_slice_before(end: u64, place: u64) -> bool {
    place < end && end - place <= SLICE
}

/// Where the end of a slice cuts a unit, if there is one, the unit can be verified by itself, and it is not too long.
pub(super) fn cut(index: &StoredIndex, unit: u32) -> Result<Option<u64>, Damaged> {
    let compressed = index.unit(unit)?.compressed;
    let at = slice_end(compressed.start.saturating_add(1));
    // Chunks come whole.
    if at >= compressed.end || compressed.len() > LARGEST_CUT || index.packing().is_some() {
        return Ok(None);
    }
    let checks = checks_over_unit(index, unit)?;
    // All between them have bytes of this unit alone.
    let ends = checks.clone().next().into_iter().chain(checks.last());
    for check in ends {
        let check = index.check(check)?;
        if check.kind != CheckKind::Hole && index.units_over(check.range)?.len() > 1 {
            return Ok(None);
        }
    }
    Ok(Some(at))
}

/// The first unit from `start` on that starts within `bytes` before the end of `unit`; itself at most.
pub(super) fn backward(index: &StoredIndex, unit: u32, bytes: u64, start: u32) -> Result<u32, Damaged> {
    let limit = index.unit(unit)?.compressed.end.saturating_sub(bytes);
    let (mut low, mut high) = (start.min(unit), unit);
    while low < high {
        let middle = low.midpoint(high);
        if index.unit(middle)?.compressed.start >= limit { high = middle } else { low = middle + 1 }
    }
    Ok(high)
}

/// The last of a range that `fits`, all before it doing so as well; the first at least.
fn last_before(range: Range<u32>, fits: impl Fn(u32) -> Result<bool, Damaged>) -> Result<u32, Damaged> {
    let (mut low, mut high) = (range.start, range.end.saturating_sub(1).max(range.start));
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle)? { low = middle } else { high = middle - 1 }
    }
    Ok(low)
}

/// The run that brings two checks and all between them.
pub(super) fn run_over(index: &StoredIndex, first: ByteRange, last: ByteRange) -> Result<Option<Run>, Damaged> {
    Run::new(index, index.units_over(first)?.start..index.units_over(last)?.end)
}

/// The run of all units that hold something.
pub(super) fn whole(index: &StoredIndex) -> Result<Option<Run>, Damaged> {
    if index.summary().format.is_filesystem() {
        // They need not ascend.
        let units = 0..index.summary().units;
        let mut end = 0;
        for unit in units.clone() {
            end = index.unit(unit)?.compressed.end.max(end);
        }
        return Ok((end > 0).then_some(Run { units, compressed: ByteRange { start: 0, end } }));
    }
    Run::new(index, index.units_over(ByteRange { start: 0, end: index.summary().layer_file_len })?)
}

/// The checks that a unit has a part of, and holes between them.
pub(super) fn checks_over_unit(index: &StoredIndex, unit: u32) -> Result<Range<u32>, Damaged> {
    let Some(run) = Run::new(index, unit..unit.saturating_add(1))? else { return Ok(0..0) };
    let Some(span) = span(index, &run)? else { return Ok(0..0) };
    index.checks_over(span)
}

/// The checks that a unit has a part of, holes left out.
pub(super) fn checks_of_unit(index: &StoredIndex, unit: u32) -> Result<Vec<u32>, Damaged> {
    let mut checks = Vec::new();
    for number in checks_over_unit(index, unit)? {
        if index.check(number)?.kind != CheckKind::Hole {
            checks.push(number);
        }
    }
    Ok(checks)
}

/// The checks that a run brings whole, holes left out.
pub(super) fn checks_in(index: &StoredIndex, run: &Run) -> Result<Vec<Wanted>, Damaged> {
    let Some(span) = span(index, run)? else { return Ok(Vec::new()) };
    let mut wanted = Vec::new();
    for number in index.checks_over(span)? {
        let check = index.check(number)?;
        if let (Some((digest, of)), true) = (check.kind.digest(), span.contains(&check.range)) {
            wanted.push(Wanted { check: number, range: check.range, digest, of });
        }
    }
    Ok(wanted)
}

/// The part of the layer file that a run's units fill.
fn span(index: &StoredIndex, run: &Run) -> Result<Option<ByteRange>, Damaged> {
    let (first, last) = (index.unit(run.units.start)?, index.unit(run.units.end.saturating_sub(1))?);
    if first.pieces.is_empty() || last.pieces.is_empty() {
        return Ok(None);
    }
    let start = index.piece(first.pieces.start)?.range.start;
    let end = index.piece(last.pieces.end - 1)?.range.end;
    Ok(ByteRange::new(start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(units: Range<u32>, start: u64, end: u64) -> Run {
        Run { units, compressed: ByteRange { start, end } }
    }

    #[test]
    fn neighbours_share_a_request_until_it_is_large() {
        assert_eq!(run(0..2, 0, 10).join(&run(2..3, 10, 20), 0), Some(run(0..3, 0, 20)));
        assert_eq!(run(0..2, 0, 10).join(&run(3..4, 20, 30), 0), None, "not neighbours");
        assert_eq!(run(0..2, 0, 10).join(&run(3..4, 20, 30), 10), Some(run(0..4, 0, 30)), "near enough");
        assert_eq!(run(0..2, 0, 10).join(&run(3..4, 21, 30), 10), None, "too far");
        assert_eq!(run(0..2, 0, MAX_REQUEST).join(&run(2..3, MAX_REQUEST, MAX_REQUEST + 1), 0), None, "too large");
        assert_eq!(
            run(0..2, 0, MAX_REQUEST).join(&run(1..3, 9, MAX_REQUEST + 1), 0),
            Some(run(0..3, 0, MAX_REQUEST + 1)),
            "a unit is never asked for twice"
        );
        assert_eq!(run(0..2, 0, 10).join(&run(1..2, 5, 10), 0), Some(run(0..2, 0, 10)));
    }

    #[test]
    fn places_and_the_ends_of_their_slices() {
        let ends = [0, 1, SLICE - 1, SLICE, SLICE + 1].map(slice_end);
        assert_eq!(ends, [0, SLICE, SLICE, SLICE, 2 * SLICE]);
        assert_eq!(slice_end(u64::MAX), u64::MAX);
        let before = [0, 1, SLICE - 1, SLICE].map(|place| is_in_slice_before(SLICE, place));
        assert_eq!(before, [true, true, true, false]);
        assert!(!is_in_slice_before(2 * SLICE, SLICE - 1));
    }

    #[test]
    fn the_last_that_fits() {
        let up_to = |limit: u32| last_before(3..9, |at| Ok(at <= limit)).unwrap();
        assert_eq!([0, 3, 4, 7, 8, 99].map(up_to), [3, 3, 4, 7, 8, 8]);
        assert_eq!(last_before(3..3, |_| Ok(true)).unwrap(), 3);
    }
}
