//! Which units to ask for, and in which requests.
//!
//! What a reader misses is asked for with its neighbours: units that touch become one request, up to [`MAX_REQUEST`]. A reader that goes on
//! where the last miss ended is sequential, and gets ahead of itself what it has read so far, up to [`MAX_AHEAD`].

use std::collections::VecDeque;
use std::ops::Range;

use super::assemble::Wanted;
use crate::blob::ByteRange;
use crate::index::{CheckKind, Damaged, StoredIndex};

/// Compressed bytes of one request, except where one check alone needs more.
pub(super) const MAX_REQUEST: u64 = 4 << 20;

/// Compressed bytes asked for ahead of a sequential reader.
const MAX_AHEAD: u64 = 8 << 20;

/// Checks looked at ahead of a sequential reader: holes cost no bytes, and a file may be full of them.
const MAX_CHECKS_AHEAD: u32 = 4096;

/// Sequential readers of one layer that are told apart.
const STREAMS: usize = 16;

/// Units that lie next to each other in the blob, for one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) units: Range<u32>,
    /// From the first unit's start to the last one's end.
    pub(super) compressed: ByteRange,
}

impl Run {
    fn new(index: &StoredIndex, units: Range<u32>) -> Result<Option<Self>, Damaged> {
        let Some(last) = units.end.checked_sub(1).filter(|last| *last >= units.start) else { return Ok(None) };
        let (start, end) = (index.unit(units.start)?.compressed.start, index.unit(last)?.compressed.end);
        Ok(ByteRange::new(start, end).map(|compressed| Self { units, compressed }))
    }

    /// The two as one request, where they touch and it is not too large. Runs that share a unit always go together.
    fn join(&self, next: &Self) -> Option<Self> {
        let joined = Self {
            units: self.units.start..next.units.end.max(self.units.end),
            compressed: ByteRange { start: self.compressed.start, end: next.compressed.end.max(self.compressed.end) },
        };
        let shared = next.units.start < self.units.end;
        let touching = next.units.start == self.units.end && joined.compressed.len() <= MAX_REQUEST;
        (shared || touching).then_some(joined)
    }
}

/// The runs that bring `checks` (ascending), and behind the last of them about `ahead` compressed bytes of further checks that `missing`
/// says are not there.
pub(super) fn runs(
    index: &StoredIndex,
    checks: &[u32],
    ahead: u64,
    missing: impl Fn(u32) -> bool,
) -> Result<Vec<Run>, Damaged> {
    let mut runs: Vec<Run> = Vec::new();
    for &check in checks {
        add(index, &mut runs, check)?;
    }
    let Some(&last) = checks.last() else { return Ok(runs) };
    let limit = runs.last().map_or(0, |run| run.compressed.end.saturating_add(ahead));
    let end = last.saturating_add(MAX_CHECKS_AHEAD).min(index.summary().checks);
    let mut next = last + 1;
    while ahead > 0 && next < end && missing(next) {
        if runs.last().is_some_and(|run| run.compressed.end >= limit) {
            break;
        }
        add(index, &mut runs, next)?;
        next += 1;
    }
    Ok(runs)
}

fn add(index: &StoredIndex, runs: &mut Vec<Run>, check: u32) -> Result<(), Damaged> {
    let units = index.units_over(index.check(check)?.range)?;
    let Some(run) = Run::new(index, units)? else { return Ok(()) };
    match runs.last_mut().and_then(|last| Some((last.join(&run)?, last))) {
        Some((joined, last)) => *last = joined,
        None => runs.push(run),
    }
    Ok(())
}

/// The run that brings two checks and all between them.
pub(super) fn run_over(index: &StoredIndex, first: ByteRange, last: ByteRange) -> Result<Option<Run>, Damaged> {
    Run::new(index, index.units_over(first)?.start..index.units_over(last)?.end)
}

/// The run of all units that hold something.
pub(super) fn whole(index: &StoredIndex) -> Result<Option<Run>, Damaged> {
    Run::new(index, index.units_over(ByteRange { start: 0, end: index.summary().layer_file_len })?)
}

/// The checks that a unit has a part of, holes left out.
pub(super) fn checks_of_unit(index: &StoredIndex, unit: u32) -> Result<Vec<u32>, Damaged> {
    let Some(run) = Run::new(index, unit..unit.saturating_add(1))? else { return Ok(Vec::new()) };
    let Some(span) = span(index, &run)? else { return Ok(Vec::new()) };
    let mut checks = Vec::new();
    for number in index.checks_over(span)? {
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
        if let (CheckKind::Digest(digest), true) = (check.kind, span.contains(&check.range)) {
            wanted.push(Wanted { check: number, range: check.range, digest });
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

/// Tells sequential readers by where their misses are.
#[derive(Default)]
pub(super) struct Streams(VecDeque<Stream>);

struct Stream {
    /// The check at which this reader misses next if it is sequential.
    next: u32,
    /// Compressed bytes that it has had.
    read: u64,
}

impl Streams {
    /// How many compressed bytes to ask for ahead of a reader that misses at `first`.
    pub(super) fn ahead(&self, first: u32) -> u64 {
        self.0.iter().find(|stream| stream.next == first).map_or(0, |stream| stream.read.min(MAX_AHEAD))
    }

    /// What was asked for after a miss at `first`: up to but not including `next`, `bytes` in all.
    pub(super) fn advance(&mut self, first: u32, next: u32, bytes: u64) {
        let known = self.0.iter().position(|stream| stream.next == first).and_then(|at| self.0.remove(at));
        let read = known.map_or(0, |stream| stream.read).saturating_add(bytes);
        self.0.push_front(Stream { next, read });
        self.0.truncate(STREAMS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(units: Range<u32>, start: u64, end: u64) -> Run {
        Run { units, compressed: ByteRange { start, end } }
    }

    #[test]
    fn neighbours_share_a_request_until_it_is_large() {
        assert_eq!(run(0..2, 0, 10).join(&run(2..3, 10, 20)), Some(run(0..3, 0, 20)));
        assert_eq!(run(0..2, 0, 10).join(&run(3..4, 20, 30)), None, "not neighbours");
        assert_eq!(run(0..2, 0, MAX_REQUEST).join(&run(2..3, MAX_REQUEST, MAX_REQUEST + 1)), None, "too large");
        assert_eq!(
            run(0..2, 0, MAX_REQUEST).join(&run(1..3, 9, MAX_REQUEST + 1)),
            Some(run(0..3, 0, MAX_REQUEST + 1)),
            "a unit is never asked for twice"
        );
        assert_eq!(run(0..2, 0, 10).join(&run(1..2, 5, 10)), Some(run(0..2, 0, 10)));
    }

    #[test]
    fn only_sequential_readers_get_something_ahead() {
        let mut streams = Streams::default();
        assert_eq!(streams.ahead(5), 0);
        streams.advance(5, 6, 100);
        assert_eq!(streams.ahead(9), 0, "elsewhere");
        assert_eq!(streams.ahead(6), 100);
        streams.advance(6, 9, 300);
        assert_eq!(streams.ahead(9), 400);
        streams.advance(9, 10, u64::MAX);
        assert_eq!(streams.ahead(10), MAX_AHEAD);
        for other in 0..STREAMS as u32 {
            streams.advance(1000 + 10 * other, 1001 + 10 * other, 1);
        }
        assert_eq!(streams.ahead(10), 0, "forgotten for others");
    }
}
