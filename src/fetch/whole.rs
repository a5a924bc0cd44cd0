//! A layer whose host sends all of it for any part: one reads it, to its end, for all who wait for any of it.
//!
//! Those who were about to ask for parts of it hand their duties over. What comes that nobody waits for is kept as well: it is there anyway, and
//! a cache on the way keeps only what its client has read to the end.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::Layer;
use super::assemble::Wanted;
use super::flight::{Duty, Waiter};
use super::kept::Kept;
use super::plan::{self, Run};
use crate::cache::State;
use crate::index::Damaged;

/// The checks that a request is to bring. Others may add theirs while it runs.
#[derive(Clone, Default)]
pub(super) struct Duties(Arc<Mutex<HashMap<u32, Duty>>>);

impl Duties {
    pub(super) fn of(duties: impl IntoIterator<Item = Duty>) -> Self {
        let all = Self::default();
        all.add(duties);
        all
    }

    fn add(&self, duties: impl IntoIterator<Item = Duty>) {
        self.lock().extend(duties.into_iter().map(|duty| (duty.check(), duty)));
    }

    pub(super) fn remove(&self, check: u32) -> Option<Duty> {
        self.lock().remove(&check)
    }

    pub(super) fn take(&self) -> HashMap<u32, Duty> {
        std::mem::take(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Duty>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A layer that is read whole.
#[derive(Default)]
pub(super) struct Whole {
    /// What its reader is to bring. Nobody does when that is gone.
    reader: Mutex<Weak<Mutex<HashMap<u32, Duty>>>>,
    /// Somebody reads it, or has read it.
    was_begun: AtomicBool,
}

/// Who is to read it.
pub(super) enum Reader {
    /// Whoever asks: this is to be brought.
    First { run: Run, wanted: Vec<Wanted>, duties: Duties },
    /// Somebody does already, and has these duties now, too.
    Another(Vec<Waiter>),
    /// Nobody: there is nothing to bring.
    None,
}

/// What became of duties.
pub(super) enum Handed {
    /// Somebody who reads all of the layer has them.
    Over(Vec<Waiter>),
    /// Nobody reads all of it. These have not come with it.
    Back(HashMap<u32, Duty>),
}

impl Whole {
    fn lock(&self) -> MutexGuard<'_, Weak<Mutex<HashMap<u32, Duty>>>> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn was_begun(&self) -> bool {
        self.was_begun.load(Ordering::Acquire)
    }

    /// It was read: gives the duties that are left of it. Nobody adds to them any more.
    pub(super) fn end(&self, duties: &Duties) -> HashMap<u32, Duty> {
        let mut reader = self.lock();
        *reader = Weak::new();
        duties.take()
    }
}

impl Layer {
    /// Hands duties to whoever reads the layer whole. Where nobody does whoever asks is to, and has the duty for all that nobody brings yet.
    pub(super) fn read_whole(&self, own: HashMap<u32, Duty>) -> Result<Reader, Damaged> {
        let mut reader = self.whole.lock();
        let own = match self.hand_over(&reader, own) {
            Handed::Over(waiters) => return Ok(Reader::Another(waiters)),
            Handed::Back(own) if own.is_empty() => return Ok(Reader::None),
            Handed::Back(own) => own,
        };
        let duties = Duties::of(own.into_values());
        let _planning = self.planning.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(run) = plan::whole(&self.index)? else { return Ok(Reader::None) };
        // What others are bringing is wanted, too: they may come to hand it over.
        let wanted = plan::checks_in(&self.index, &run)?.into_iter().filter(|wanted| !self.is_there(wanted.check));
        let wanted: Vec<Wanted> = wanted.collect();
        let others = wanted.iter().filter_map(|wanted| self.flights.take(wanted.check).ok());
        duties.add(others.map(|(duty, _)| duty));
        *reader = Arc::downgrade(&duties.0);
        self.whole.was_begun.store(true, Ordering::Release);
        Ok(Reader::First { run, wanted, duties })
    }

    /// Hands duties to whoever reads the layer whole, or has read it.
    pub(super) fn join_whole(&self, own: HashMap<u32, Duty>) -> Handed {
        self.hand_over(&self.whole.lock(), own)
    }

    fn hand_over(&self, reader: &Weak<Mutex<HashMap<u32, Duty>>>, own: HashMap<u32, Duty>) -> Handed {
        let checks: Vec<u32> = own.keys().copied().collect();
        let running = reader.upgrade().map(Duties);
        let waiters =
            running.iter().flat_map(|_| checks.iter().filter_map(|check| self.flights.join(*check))).collect();
        let duties = running.clone().unwrap_or_default();
        duties.add(own.into_values());
        // What had come before it was waited for does not come again.
        self.land_what_is_there(&duties, &checks);
        if running.is_some() { Handed::Over(waiters) } else { Handed::Back(duties.take()) }
    }

    fn land_what_is_there(&self, duties: &Duties, checks: &[u32]) {
        for check in checks.iter().filter(|check| self.is_there(**check)) {
            duties.remove(*check).into_iter().for_each(|duty| duty.land(Ok(Kept::LayerFile)));
        }
    }

    fn is_there(&self, check: u32) -> bool {
        self.file.state(check) != State::Missing || self.aside.has(check)
    }
}
