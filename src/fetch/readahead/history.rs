//! What was read of an image and asked for so far, and what that says of who reads: how much was guessed wrong, and whether they read everything.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::super::asker::Planned;
use super::files::Node;
use super::seen::Seen;
use super::underway::Underway;
use super::wish::Origin;
use crate::blob::ByteRange;
use crate::metrics::METRICS;

/// Nothing is guessed any more when more than so many times what was read was asked for (and a little).
const MOST_ASKED: u64 = 3;

/// Somebody reads everything when more than this was read, and it is more than this share of what was fetched.
const EVERYTHING: u64 = 16 << 20;
const EVERYTHING_PERCENT: u64 = 50;

/// And who has read so many files in the order of the blob, each within so many bytes of contents behind the one before, goes on for a while.
const FILES_IN_ORDER: u32 = 32;
const NEXT: u64 = 4 << 20;

/// Checks of a hit that are looked up on the FUSE thread.
const FEW_CHECKS: usize = 64;

pub(super) struct History {
    /// Files that were read.
    seen: Seen,
    last: Last,
    /// Files that were read in the order of the blob, halved by each that was not.
    in_order: u32,
    /// Compressed bytes that were asked for, and those of units that were read, if only in part; again for each other part that is read.
    asked: u64,
    read: u64,
    /// The share of what was read, of these units.
    used: u64,
    /// What may be guessed wrong whatever is read.
    waste: u64,
    /// Checks that were asked for and not read yet.
    guessed: HashMap<(usize, u32), Guessed>,
    underway: Arc<Underway>,
}

/// What was read last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Last {
    pub(super) layer: usize,
    pub(super) unit: u32,
    /// From where in the layer file to the end of the file that this is of.
    pub(super) rest: ByteRange,
}

/// A check that nobody has read yet.
#[derive(Clone, Copy)]
struct Guessed {
    bytes: u64,
    /// Whether they are among those asked for already.
    counts: bool,
    origin: Origin,
}

impl History {
    pub(super) fn new(waste: u64, underway: Arc<Underway>) -> Self {
        let last = Last { layer: 0, unit: 0, rest: ByteRange { start: 0, end: 0 } };
        let (seen, guessed) = (Seen::default(), HashMap::new());
        Self { seen, last, in_order: 0, asked: 0, read: 0, used: 0, waste, guessed, underway }
    }

    /// Whether so much was guessed wrong that nothing more is.
    pub(super) fn is_over(&self) -> bool {
        self.asked > self.read.saturating_mul(MOST_ASKED).saturating_add(self.waste)
    }

    /// Whether somebody reads everything, or does so for a while.
    pub(super) fn reads_all(&self) -> bool {
        let came = self.asked.saturating_sub(self.underway.bytes());
        let reads_all =
            self.used > EVERYTHING && self.used.saturating_mul(100) > came.saturating_mul(EVERYTHING_PERCENT);
        reads_all || self.reads_in_order()
    }

    /// Whether many files were read in the order of the blob.
    pub(super) fn reads_in_order(&self) -> bool {
        self.in_order >= FILES_IN_ORDER
    }

    pub(super) fn has_read(&self, file: Node) -> bool {
        self.seen.contains(file)
    }

    /// Whether anything had to be fetched so far.
    pub(super) fn has_asked(&self) -> bool {
        self.asked > 0
    }

    pub(super) fn last(&self) -> Last {
        self.last
    }

    /// Some of a file was read; tells whether it was for the first time.
    pub(super) fn note(&mut self, file: Node, now: Last) -> bool {
        let before = std::mem::replace(&mut self.last, now);
        let is_first = self.seen.insert(file);
        if is_first {
            let near = before.rest.start..before.rest.end.saturating_add(NEXT);
            let is_next = before.layer == now.layer && near.contains(&now.rest.start);
            self.in_order = if is_next { self.in_order.saturating_add(1) } else { self.in_order / 2 };
        }
        is_first
    }

    /// A request was planned. One that does not count does so once it was read.
    pub(super) fn asked(&mut self, layer: usize, planned: &Planned, counts: bool, origin: Origin) {
        if counts {
            self.asked = self.asked.saturating_add(planned.bytes);
            self.read = self.read.saturating_add(planned.needed);
            self.used = self.used.saturating_add(planned.used);
        }
        METRICS.guesses(origin.name(), planned.guessed.iter().map(|(_, bytes)| bytes).sum());
        let guess = |(check, bytes): &(u32, u64)| ((layer, *check), Guessed { bytes: *bytes, counts, origin });
        self.guessed.extend(planned.guessed.iter().map(guess));
    }

    /// Checks were read; tells whether any of them was a guess.
    pub(super) fn used(&mut self, layer: usize, checks: Range<u32>) -> bool {
        let before = self.read;
        if !self.guessed.is_empty() {
            for check in checks {
                let Some(guess) = self.guessed.remove(&(layer, check)) else { continue };
                METRICS.guessed_right(guess.origin.name(), guess.bytes);
                self.read = self.read.saturating_add(guess.bytes);
                self.used = self.used.saturating_add(guess.bytes);
                self.asked = self.asked.saturating_add(if guess.counts { 0 } else { guess.bytes });
            }
        }
        self.read > before
    }

    /// Whether a hit of these checks may be of a guess: many are not looked up.
    pub(super) fn may_be_guessed(&self, layer: usize, checks: &Range<u32>) -> bool {
        let is_guess = |check: u32| self.guessed.contains_key(&(layer, check));
        !self.guessed.is_empty() && (checks.len() > FEW_CHECKS || checks.clone().any(is_guess))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(bytes: u64, needed: u64, guessed: &[(u32, u64)]) -> Planned {
        Planned { bytes, needed, used: needed, guessed: guessed.to_vec() }
    }

    #[test]
    fn nothing_more_is_guessed_when_too_much_was_wrong() {
        let mut history = History::new(100, Arc::new(Underway::new(1)));
        history.asked(0, &planned(1000, 200, &[(1, 700), (2, 100)]), true, Origin::Miss);
        assert!(history.is_over() && history.has_asked());
        assert!(history.may_be_guessed(0, &(1..2)) && !history.may_be_guessed(0, &(3..4)));
        assert!(history.used(0, 2..3) && !history.is_over(), "what was right makes up for it");
        assert!(!history.used(0, 2..3), "once");
        // What does not count does so once it was read.
        history.asked(0, &planned(9000, 0, &[(3, 5000)]), false, Origin::Command);
        assert_eq!(history.asked, 1000);
        assert!(history.used(0, 3..4));
        assert_eq!((history.asked, history.read), (6000, 5300));
    }
}
