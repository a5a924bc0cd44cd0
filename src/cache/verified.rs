//! What this process knows of the checks of a layer file, for as long as the generations of their groups stay the same.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::groups::Groups;
use crate::metrics::steps;

/// What was found of a check's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Right,
    Wrong,
}

/// Bits for each check, each group's of one generation. Looked into without a lock.
pub(super) struct Verified {
    /// The generation that the bits of a group are of; 0: none.
    generations: Vec<AtomicU64>,
    right: Bits,
    /// Found wrong: whatever `present` says, where it cannot be written.
    wrong: Bits,
    /// Held by who changes anything.
    change: Mutex<()>,
}

impl Verified {
    pub(super) fn new(groups: &Groups) -> Self {
        let generations = (0..groups.count()).map(|_| AtomicU64::new(0)).collect();
        let (right, wrong) = (Bits::new(groups.checks()), Bits::new(groups.checks()));
        Self { generations, right, wrong, change: Mutex::default() }
    }

    /// What was found of a check at this generation of its group.
    pub(super) fn found(&self, group: usize, generation: u64, check: u32) -> Option<Found> {
        steps::take();
        let is_it = || self.generations.get(group).is_some_and(|of| of.load(Ordering::SeqCst) == generation);
        if generation == 0 || !is_it() {
            return None;
        }
        let found = match (self.right.get(check), self.wrong.get(check)) {
            (true, _) => Some(Found::Right),
            (false, true) => Some(Found::Wrong),
            (false, false) => None,
        };
        // The bits may have become those of another generation while they were looked at.
        found.filter(|_| is_it())
    }

    /// Notes what was found at a generation; what was known of the group at another is no more.
    pub(super) fn note(&self, groups: &Groups, group: usize, generation: u64, check: u32, found: Found) {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(of) = self.generations.get(group) else { return };
        if of.load(Ordering::SeqCst) != generation {
            of.store(0, Ordering::SeqCst);
            for check in groups.checks_of(group) {
                self.right.set(check, false);
                self.wrong.set(check, false);
            }
        }
        self.right.set(check, found == Found::Right);
        self.wrong.set(check, found == Found::Wrong);
        of.store(generation, Ordering::SeqCst);
    }
}

/// A fixed number of bits that threads share.
struct Bits(Vec<AtomicU64>);

impl Bits {
    fn new(len: u32) -> Self {
        Self((0..len.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    fn get(&self, bit: u32) -> bool {
        self.0.get(bit as usize / 64).is_some_and(|word| word.load(Ordering::SeqCst) & (1 << (bit % 64)) != 0)
    }

    fn set(&self, bit: u32, value: bool) {
        let Some(word) = self.0.get(bit as usize / 64) else { return };
        let mask = 1 << (bit % 64);
        if value {
            word.fetch_or(mask, Ordering::SeqCst);
        } else {
            word.fetch_and(!mask, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_counts_for_one_generation_of_one_group() {
        let groups = Groups::new(3 << 20, &[0, 4096, 1 << 20, 2 << 20]);
        let verified = Verified::new(&groups);
        verified.note(&groups, 0, 7, 0, Found::Right);
        verified.note(&groups, 0, 7, 1, Found::Wrong);
        verified.note(&groups, 1, 8, 2, Found::Right);
        assert_eq!(verified.found(0, 7, 0), Some(Found::Right));
        assert_eq!(verified.found(0, 7, 1), Some(Found::Wrong));
        assert_eq!((verified.found(0, 8, 0), verified.found(1, 7, 2), verified.found(0, 0, 0)), (None, None, None));
        verified.note(&groups, 0, 9, 1, Found::Right);
        assert_eq!((verified.found(0, 9, 0), verified.found(0, 9, 1)), (None, Some(Found::Right)));
        assert_eq!(verified.found(1, 8, 2), Some(Found::Right), "another group");
        verified.note(&groups, 0, 9, 1, Found::Wrong);
        assert_eq!(verified.found(0, 9, 1), Some(Found::Wrong));
    }
}
