//! Reads of what is in the layer file and was verified: no task, no fetching, no copy but the one out of the layer file.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Layer;
use crate::blob::ByteRange;
use crate::cache::{Disk, LayerFile};
use crate::index::{CheckKind, Damaged, StoredIndex};
use crate::metrics::METRICS;
use crate::threads;

impl Layer {
    /// Fills `buffer` with a range of the layer file of the same length where all of it is in the layer file and was verified, and that takes
    /// no longer than `disk` allows. Gives the checks of it if so; else [`Layer::read`] finds out why, or brings it.
    pub(super) fn read_cached(self: &Arc<Self>, range: ByteRange, buffer: &mut [u8], disk: Disk) -> Option<Range<u32>> {
        let checks = fill(&self.index, &self.file, range, buffer, disk).ok()??;
        self.note_use(checks.clone());
        self.heat.needed(checks.clone(), false);
        self.counters.served.fetch_add(range.len(), Ordering::Relaxed);
        METRICS.served.inc_by(range.len());
        self.counters.cached.fetch_add(range.len(), Ordering::Relaxed);
        Some(checks)
    }

    /// The bytes of a range, if all of them are in the layer file and were verified.
    pub(super) fn peek(self: &Arc<Self>, range: ByteRange) -> Option<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(range.len()).ok()?];
        self.note_use(fill(&self.index, &self.file, range, &mut bytes, Disk::MayWait).ok()??);
        Some(bytes)
    }

    /// Tells other processes that checks are in use, where that is news. By a thread that nobody waits for: the cache's disk may have stopped.
    pub(super) fn note_use(self: &Arc<Self>, checks: Range<u32>) {
        if checks.clone().any(|check| self.file.is_use_news(check)) {
            let layer = Arc::clone(self);
            threads::offer(move || checks.for_each(|check| layer.file.touch(check)));
        }
    }
}

/// Fills `buffer` with a range, where all of it is in the layer file and was verified; gives the checks of it.
pub(super) fn fill(
    index: &StoredIndex,
    file: &LayerFile,
    range: ByteRange,
    mut buffer: &mut [u8],
    disk: Disk,
) -> Result<Option<Range<u32>>, Damaged> {
    let checks = index.checks_over(range)?;
    let mut filled = range.start;
    for number in checks.clone() {
        let check = index.check(number)?;
        let part = check.range.intersection(&range);
        let len = usize::try_from(part.len()).unwrap_or(usize::MAX);
        let Some((here, rest)) = buffer.split_at_mut_checked(len).filter(|_| part.start == filled) else {
            return Ok(None);
        };
        match check.kind {
            CheckKind::Hole => here.fill(0),
            _ if !file.read_within(number, part.start, here, disk) => return Ok(None),
            CheckKind::Digest(_) | CheckKind::Span(_) | CheckKind::Vouched => {}
        }
        (buffer, filled) = (rest, part.end);
    }
    Ok((filled == range.end).then_some(checks))
}
