//! Guesses that are under way, and how much there is of them.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::super::asker::Guess;
use super::super::plan;
use super::super::prefetch::Waiting;
use super::Readahead;
use crate::blob::ByteRange;

/// The guesses of one layer that are under way.
#[derive(Default)]
pub(super) struct Flying {
    /// Bytes that were asked for and have not come.
    bytes: AtomicU64,
    requests: AtomicUsize,
    /// When any of them came last.
    moved: Mutex<Option<Instant>>,
    slices: Mutex<Slices>,
}

/// A slice that a cache on the way does not have yet is fetched once for each request that wants it meanwhile.
#[derive(Default)]
struct Slices {
    /// Those that a guess has asked for.
    asked: HashSet<u64>,
    /// Of these, the ones of which the first such guess is under way.
    coming: HashSet<u64>,
}

impl Flying {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    pub(super) fn requests(&self) -> usize {
        self.requests.load(Ordering::Acquire)
    }

    fn start(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        if self.requests.fetch_add(1, Ordering::AcqRel) == 0 {
            self.moved();
        }
    }

    /// Whether a guess would better wait until another is over.
    pub(super) fn is_coming(&self, range: ByteRange) -> bool {
        let slices = self.slices();
        plan::slices(range).any(|slice| slices.coming.contains(&slice))
    }

    /// A guess asks for this; gives the slices that it is the first for.
    fn ask(&self, range: ByteRange) -> Vec<u64> {
        let mut slices = self.slices();
        let first: Vec<u64> = plan::slices(range).filter(|slice| slices.asked.insert(*slice)).collect();
        slices.coming.extend(&first);
        first
    }

    fn slices(&self) -> MutexGuard<'_, Slices> {
        self.slices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moved(&self) {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether there are any, of which nothing came for so long.
    pub(super) fn is_still(&self, since: Duration) -> bool {
        let moved = *self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        self.requests() > 0 && moved.is_some_and(|moved| moved.elapsed() > since)
    }
}

/// Guesses on their way, in one request.
pub(super) struct Ticket {
    readahead: Arc<Readahead>,
    layer: usize,
    left: AtomicU64,
    /// Slices that it is the first for.
    first: Vec<u64>,
    /// Prefetch waits for it as it does for readers.
    _waiting: Waiting,
}

impl Ticket {
    pub(super) fn new(
        readahead: &Arc<Readahead>,
        layer: usize,
        waiting: Waiting,
        (flying, range): (&Flying, ByteRange),
    ) -> Self {
        flying.start(range.len());
        let (left, first) = (AtomicU64::new(range.len()), flying.ask(range));
        Self { readahead: Arc::clone(readahead), layer, left, first, _waiting: waiting }
    }
}

impl Guess for Ticket {
    fn arrived(&self, bytes: u64) {
        let bytes = bytes.min(self.left.load(Ordering::Acquire));
        self.left.fetch_sub(bytes, Ordering::AcqRel);
        if let Some(flying) = self.readahead.flying.get(self.layer) {
            flying.bytes.fetch_sub(bytes, Ordering::AcqRel);
            flying.moved();
        }
        if self.readahead.waiting.load(Ordering::Acquire) {
            self.readahead.pump();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(flying) = self.readahead.flying.get(self.layer) {
            flying.bytes.fetch_sub(self.left.load(Ordering::Acquire), Ordering::AcqRel);
            flying.requests.fetch_sub(1, Ordering::AcqRel);
            flying.slices().coming.retain(|slice| !self.first.contains(slice));
        }
        self.readahead.came.store(true, Ordering::Release);
        // While the runtime shuts down there is nobody to go on.
        if tokio::runtime::Handle::try_current().is_ok() {
            self.readahead.pump();
        }
    }
}
