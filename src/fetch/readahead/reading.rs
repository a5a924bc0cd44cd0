//! Who reads what: how far a miss goes on, and what policies are told of a read.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::asker::{Planned, Reading};
use super::super::plan::{self, Tail};
use super::Readahead;
use super::files::Node;
use super::image::{SMALL, WHOLE};
use super::policy;
use super::wish::Origin;
use crate::blob::ByteRange;
use crate::index::Damaged;
use crate::threads::{self, Work};

/// Over small files a miss goes on only for this part of it: what is named in files that were read says better which of them come next.
const SMALL_TAIL: u64 = 4;

/// Hits that are noticed at a time. One that is not costs a guess, no more.
const NOTICED: usize = 4;

/// Who reads what.
pub(super) struct Reader {
    readahead: Arc<Readahead>,
    layer: usize,
    file: Node,
}

impl Reader {
    pub(super) fn new(readahead: &Arc<Readahead>, layer: usize, file: Node) -> Self {
        Self { readahead: Arc::clone(readahead), layer, file }
    }

    /// The read was of what is here. For what that tells there is time after the answer.
    pub(super) fn hit(self, range: ByteRange, checks: Range<u32>) {
        if self.tells(&checks) {
            let _noticed = threads::run(Work::Local, move || {
                self.noticed(range, checks, false);
                self.readahead.noticing.fetch_sub(1, Ordering::AcqRel);
            });
        }
    }

    /// Whether a hit is to be noticed; then it has a place among those that are.
    fn tells(&self, checks: &Range<u32>) -> bool {
        let readahead = &self.readahead;
        if readahead.state.try_lock().is_ok_and(|state| state.is_old(self.layer, self.file, checks)) {
            return false;
        }
        let has_place = readahead.noticing.fetch_add(1, Ordering::AcqRel) < NOTICED;
        if !has_place {
            readahead.noticing.fetch_sub(1, Ordering::AcqRel);
        }
        has_place
    }
}

impl Reading for Reader {
    fn tail(&self) -> Result<Option<Tail>, Damaged> {
        let (readahead, image) = (&self.readahead, &self.readahead.image);
        if readahead.is_over.load(Ordering::Acquire) {
            return Ok(None);
        }
        let bytes = image.budget(self.layer).min(plan::MAX_REQUEST);
        if readahead.reads_all.load(Ordering::Acquire) {
            return Ok(Some(Tail { bytes: bytes.max(plan::SLICE), until: u64::MAX, goes_on: true }));
        }
        let Some(located) = image.locate(self.file)? else { return Ok(None) };
        let place = located.place;
        let size = located.size()?;
        if size > WHOLE {
            return Ok(readahead.state().tail(self.file, place.range.end, bytes));
        }
        let until = match size {
            ..=SMALL => policy::end_of_small_files(image, self.file, place, bytes / SMALL_TAIL)?,
            _ => place.range.end,
        };
        Ok(Some(Tail { bytes, until, goes_on: false }))
    }

    fn asked(&self, planned: &Planned) {
        let mut state = self.readahead.state();
        state.history.asked(self.layer, planned, true, Origin::Miss);
        self.readahead.show(&state);
    }

    fn noticed(&self, range: ByteRange, checks: Range<u32>, missed: bool) {
        let mut state = self.readahead.state();
        let noticed = state.noticed(self.layer, self.file, range, checks, missed);
        self.readahead.show(&state);
        drop(state);
        match noticed {
            Ok(true) => self.readahead.pump(),
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "nothing is fetched around a read"),
        }
    }
}
