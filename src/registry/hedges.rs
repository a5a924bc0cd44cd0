//! How often a second place is asked for what a first one has not answered yet: that costs bytes.

use std::sync::atomic::{AtomicU64, Ordering};

/// One request in so many.
const SELDOM: u64 = 20;

/// As many are free: a place that falls silent has many requests at once.
const FREE: u64 = 16;

#[derive(Debug, Default)]
pub(super) struct Hedges {
    asked: AtomicU64,
    hedged: AtomicU64,
}

impl Hedges {
    pub(super) fn asked(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn hedged(&self, requests: usize) {
        self.hedged.fetch_add(requests as u64, Ordering::Relaxed);
    }

    pub(super) fn may(&self) -> bool {
        self.hedged.load(Ordering::Relaxed) < FREE + self.asked.load(Ordering::Relaxed) / SELDOM
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_requests_are_made_twice() {
        let hedges = Hedges::default();
        (0..2000).for_each(|_| hedges.asked());
        let twice = std::iter::from_fn(|| hedges.may().then(|| hedges.hedged(1))).count();
        assert_eq!(twice as u64, FREE + 100);
    }
}
