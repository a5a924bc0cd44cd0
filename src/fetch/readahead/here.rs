//! What of an image is known to be here, so that a read of what is here costs no walk over all that is near it.
//!
//! ```text
//! a unit is looked at   --> here: remembered, for as long as nothing of its layer is evicted (one look at the layer tells)
//!                       --> missing, or on its way: looked at again the next time
//! a read of what is here --> some more units are looked at; when all of all layers are here, reads tell nothing any more
//! ```
//!
//! The looks that may be taken for one wish are bounded. What was not looked at counts as here until there are looks again: that costs a guess at most.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::lacking::Presence;
use super::files::Node;
use super::seen::Seen;
use super::units::Units;
use crate::cache::Epoch;
use crate::index::Damaged;

/// Checks that are looked at for one wish.
const LOOKS: u32 = 512;

/// Checks that are looked at after a read of what is here, until it is known whether all is.
const SURVEYED: u32 = 64;

/// What is known of one layer.
#[derive(Default)]
struct Here {
    /// Since when.
    epoch: Epoch,
    /// When that was looked at last.
    turn: u64,
    /// A bit for each unit of which nothing is missing.
    units: Vec<u64>,
    /// How many these are; and all before this one are among them.
    known: u32,
    first_unknown: u32,
    /// Small files that were found to be here: those near what is read are asked for again and again.
    files: Seen,
    /// Of units with many checks, how many of these were looked at.
    begun: BTreeMap<u32, u32>,
}

impl Here {
    fn forget(&mut self) {
        *self = Self { epoch: self.epoch, turn: self.turn, ..Self::default() };
    }

    fn has(&self, unit: u32) -> bool {
        self.units.get(unit as usize / 64).is_some_and(|word| word & (1 << (unit % 64)) != 0)
    }

    fn note(&mut self, unit: u32) {
        let word = unit as usize / 64;
        if self.units.len() <= word {
            self.units.resize(word.saturating_add(1), 0);
        }
        self.known = self.known.saturating_add(u32::from(!self.has(unit)));
        self.units.get_mut(word).into_iter().for_each(|word| *word |= 1 << (unit % 64));
        self.begun.remove(&unit);
        while self.has(self.first_unknown) {
            self.first_unknown = self.next_unknown(self.first_unknown..u32::MAX).unwrap_or(u32::MAX);
        }
    }

    /// The first of some that is not known to be here.
    fn next_unknown(&self, units: Range<u32>) -> Option<u32> {
        let mut at = units.start.max(self.first_unknown);
        while at < units.end {
            // Those known before it in its word count as unknown ones behind it.
            let word = self.units.get(at as usize / 64).map_or(0, |word| *word) >> (at % 64);
            let run = word.trailing_ones().min(64 - at % 64);
            if run < 64 - at % 64 {
                return Some(at.saturating_add(run)).filter(|at| *at < units.end);
            }
            at = at.saturating_add(run);
        }
        None
    }

    /// The last of some that is not known to be here.
    fn last_unknown(&self, units: Range<u32>) -> Option<u32> {
        let start = units.start.max(self.first_unknown);
        let mut end = units.end;
        while end > start {
            let last = end - 1;
            let word = self.units.get(last as usize / 64).map_or(0, |word| *word) << (63 - last % 64);
            let run = word.leading_ones().min(last % 64 + 1);
            if run < last % 64 + 1 {
                return Some(last - run).filter(|at| *at >= start);
            }
            end = end.saturating_sub(run);
        }
        None
    }
}

/// What is known of all layers of an image.
pub(super) struct AllHere {
    layers: Vec<Mutex<Here>>,
    /// Whether nothing of any is missing.
    everything: AtomicBool,
    /// The layer that is looked at next, whatever is read.
    next: AtomicUsize,
    /// Counts the wishes: what may have been evicted is looked at once for each.
    turn: AtomicU64,
    /// Looks that are left in this one.
    looks: AtomicU32,
}

impl AllHere {
    pub(super) fn new(layers: usize) -> Self {
        let layers = std::iter::repeat_with(Mutex::default).take(layers).collect();
        let (everything, next) = (AtomicBool::new(false), AtomicUsize::new(0));
        Self { layers, everything, next, turn: AtomicU64::new(1), looks: AtomicU32::new(0) }
    }

    /// Somebody is about to look for what is missing.
    pub(super) fn start(&self) {
        self.start_with(LOOKS);
    }

    fn start_with(&self, looks: u32) {
        self.turn.fetch_add(1, Ordering::AcqRel);
        self.looks.store(looks, Ordering::Release);
    }

    /// Whether no more may be looked at: what was not found may be there.
    pub(super) fn is_spent(&self) -> bool {
        self.looks.load(Ordering::Acquire) == 0
    }

    fn spend(&self, looks: u32) {
        self.looks.store(self.looks.load(Ordering::Acquire).saturating_sub(looks), Ordering::Release);
    }

    fn lock(&self, layer: usize) -> Option<MutexGuard<'_, Here>> {
        self.layers.get(layer).map(|here| here.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is known of a layer, and holds still.
    fn of(&self, layer: usize, units: &dyn Units) -> Option<MutexGuard<'_, Here>> {
        let mut here = self.lock(layer)?;
        let turn = self.turn.load(Ordering::Acquire);
        if std::mem::replace(&mut here.turn, turn) != turn {
            let now = units.epoch();
            if std::mem::replace(&mut here.epoch, now) != now {
                here.forget();
                self.everything.store(false, Ordering::Release);
            }
        }
        Some(here)
    }

    pub(super) fn next_lacking(
        &self,
        layers: &[Arc<dyn Units>],
        layer: usize,
        mut units: Range<u32>,
    ) -> Result<Option<u32>, Damaged> {
        let Some((contents, mut here)) = self.open(layers, layer) else { return Ok(None) };
        while let Some(unit) = here.next_unknown(units.clone()) {
            units.start = unit.saturating_add(1);
            match self.look_at(&mut here, contents, unit)? {
                Some(Presence::Lacking) => return Ok(Some(unit)),
                Some(_) => {}
                None => break,
            }
        }
        Ok(None)
    }

    pub(super) fn last_lacking(
        &self,
        layers: &[Arc<dyn Units>],
        layer: usize,
        mut units: Range<u32>,
    ) -> Result<Option<u32>, Damaged> {
        let Some((contents, mut here)) = self.open(layers, layer) else { return Ok(None) };
        while let Some(unit) = here.last_unknown(units.clone()) {
            units.end = unit;
            match self.look_at(&mut here, contents, unit)? {
                Some(Presence::Lacking) => return Ok(Some(unit)),
                Some(_) => {}
                None => break,
            }
        }
        Ok(None)
    }

    fn open<'a>(&'a self, layers: &'a [Arc<dyn Units>], layer: usize) -> Option<(&'a dyn Units, MutexGuard<'a, Here>)> {
        let contents = &**layers.get(layer)?;
        Some((contents, self.of(layer, contents)?))
    }

    /// `None`: there are no more looks.
    fn look_at(&self, here: &mut Here, contents: &dyn Units, unit: u32) -> Result<Option<Presence>, Damaged> {
        let left = self.looks.load(Ordering::Acquire);
        if left == 0 {
            return Ok(None);
        }
        let skipped = here.begun.get(&unit).copied().unwrap_or(0);
        let (found, looks) = contents.look_at(unit, skipped, left)?;
        self.spend(looks);
        match found {
            Presence::Here => here.note(unit),
            Presence::HereSoFar(checks) => drop(here.begun.insert(unit, checks)),
            Presence::Coming | Presence::Lacking => {}
        }
        Ok(Some(found))
    }

    /// Whether a file was found to be here.
    pub(super) fn has_file(&self, layers: &[Arc<dyn Units>], layer: usize, file: Node) -> bool {
        self.open(layers, layer).is_some_and(|(_, here)| here.files.contains(file))
    }

    /// Remembers that a file is here, where all its units are known to be.
    pub(super) fn note_file(&self, layers: &[Arc<dyn Units>], layer: usize, file: Node, units: &Range<u32>) {
        if let Some((_, mut here)) = self.open(layers, layer) {
            if here.next_unknown(units.clone()).is_none() {
                here.files.insert(file);
            }
        }
    }

    /// A few more looks at whether nothing is missing.
    pub(super) fn survey(&self, layers: &[Arc<dyn Units>]) -> Result<(), Damaged> {
        self.start_with(SURVEYED);
        for (layer, contents) in layers.iter().enumerate() {
            let count = contents.count();
            let lacking = self.next_lacking(layers, layer, 0..count)?;
            if lacking.is_some() || self.lock(layer).is_none_or(|here| here.known < count) {
                return Ok(());
            }
        }
        self.everything.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether nothing was missing, as far as is known without a look at the disk.
    pub(super) fn was_everything(&self) -> bool {
        self.everything.load(Ordering::Acquire)
    }

    /// Whether nothing was missing, and nothing of a layer has gone since, nor of another one, which is the next each time.
    pub(super) fn is_everything(&self, layers: &[Arc<dyn Units>], layer: usize) -> bool {
        if !self.everything.load(Ordering::Acquire) {
            return false;
        }
        let other = self.next.fetch_add(1, Ordering::Relaxed) % layers.len().max(1);
        let holds = |layer: usize| {
            let (contents, here) = (layers.get(layer), self.lock(layer));
            contents.zip(here).is_some_and(|(contents, here)| contents.epoch() == here.epoch)
        };
        let all_hold = holds(layer) && (other == layer || holds(other));
        if !all_hold {
            self.everything.store(false, Ordering::Release);
        }
        all_hold
    }

    /// A read has missed something of a few units. What was known of them was wrong, if anything was: by a crfs that tells nobody what it evicts.
    pub(super) fn missed(&self, layer: usize, units: &Range<u32>) {
        self.everything.store(false, Ordering::Release);
        if let Some(mut here) = self.lock(layer) {
            if here.next_unknown(units.clone()).is_none() {
                here.forget();
            }
            here.begun.retain(|unit, _| !units.contains(unit));
        }
    }
}

#[cfg(test)]
mod tests;
