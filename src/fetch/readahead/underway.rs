//! Guesses that are under way, and how much there is of them.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::super::plan;
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

    pub(super) fn start(&self, bytes: u64) {
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
    pub(super) fn ask(&self, range: ByteRange) -> Vec<u64> {
        let mut slices = self.slices();
        let first: Vec<u64> = plan::slices(range).filter(|slice| slices.asked.insert(*slice)).collect();
        slices.coming.extend(&first);
        first
    }

    /// So many bytes of one came.
    pub(super) fn arrived(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.moved();
    }

    /// One is over that lacks so many bytes, and was the first for some slices.
    pub(super) fn end(&self, left: u64, first: &[u64]) {
        self.bytes.fetch_sub(left, Ordering::AcqRel);
        self.requests.fetch_sub(1, Ordering::AcqRel);
        self.slices().coming.retain(|slice| !first.contains(slice));
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

/// Those of all layers of an image.
pub(super) struct Underway(Vec<Flying>);

impl Underway {
    pub(super) fn new(layers: usize) -> Self {
        Self(std::iter::repeat_with(Flying::default).take(layers).collect())
    }

    pub(super) fn of(&self, layer: usize) -> Option<&Flying> {
        self.0.get(layer)
    }

    /// With the numbers of their layers.
    pub(super) fn each(&self) -> impl Iterator<Item = (usize, &Flying)> {
        self.0.iter().enumerate()
    }

    /// Bytes that were asked for and have not come.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(Flying::bytes).fold(0, u64::saturating_add)
    }
}
