//! Turns wishes into requests: the next one as soon as there is room, on one thread at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::super::asker::Guess;
use super::super::job::Job;
use super::super::prefetch::Waiting;
use super::super::{Error, Layer, plan};
use super::Readahead;
use super::policy::News;
use super::state::State;
use super::underway::Flying;
use super::wish::Wish;
use crate::blob::ByteRange;
use crate::index::Damaged;
use crate::threads::{self, Work};

/// The largest request for a guess.
const LARGEST_PIECE: u64 = 1 << 20;

/// Requests for guesses under way at a time.
const REQUESTS: usize = 10;

/// Guesses of a layer of which nothing came for so many round trips, and for so long, take no room from the others, and it gets no more of them.
const STUCK_ROUND_TRIPS: u32 = 8;
const STUCK: Duration = Duration::from_secs(1);

/// How often it is gone on looking for something to wish for.
const TURNS: u32 = 4;

impl Readahead {
    /// Turns wishes into requests as long as there is room, on a thread of its own.
    pub(super) fn pump(self: &Arc<Self>) {
        self.again.store(true, Ordering::Release);
        if !self.pumping.swap(true, Ordering::AcqRel) {
            let readahead = Arc::clone(self);
            let _pumped = threads::run(Work::Local, move || readahead.run());
        }
    }

    fn run(self: &Arc<Self>) {
        loop {
            self.again.store(false, Ordering::Release);
            self.run_once();
            // Not a store: `again` must not be read before it.
            self.pumping.swap(false, Ordering::AcqRel);
            if !self.again.load(Ordering::Acquire) || self.pumping.swap(true, Ordering::AcqRel) {
                return;
            }
        }
    }

    fn run_once(self: &Arc<Self>) {
        let mut turns = TURNS;
        loop {
            match self.next() {
                Ok(Some(jobs)) => jobs.into_iter().for_each(|job| drop(tokio::spawn(job.run()))),
                // What has come meanwhile may say more.
                Ok(None) if self.came.load(Ordering::Acquire) && !self.waiting.load(Ordering::Acquire) => {}
                // There may be more where it has not looked.
                Ok(None) if self.image.here().is_spent() && turns > 0 => turns -= 1,
                Ok(None) => break,
                // A damaged index is made again by the next reader that needs it.
                Err(error) => {
                    tracing::debug!(%error, "nothing is fetched around a miss");
                    break;
                }
            }
        }
    }

    /// The requests for the next wish, if there is room for one.
    fn next(self: &Arc<Self>) -> Result<Option<Vec<Job>>, Error> {
        let last = self.state().history.last().layer;
        let budget = self.image.budget(last);
        let reads_all = self.reads_all.load(Ordering::Acquire);
        if !self.has_room(if reads_all { self.image.stream_budget(last) } else { budget }) {
            self.waiting.store(true, Ordering::Release);
            return Ok(None);
        }
        self.waiting.store(false, Ordering::Release);
        self.study()?;
        let mut state = self.state();
        let Some(wish) = state.next(budget.min(LARGEST_PIECE), |wish| self.is_coming(wish))? else { return Ok(None) };
        let Some((contents, flying)) = self.of(wish.layer) else { return Ok(None) };
        // Whoever reads it hears what is wrong with it.
        if self.is_stuck(wish.layer) || contents.source.is_restrained() {
            return Ok(Some(Vec::new()));
        }
        tracing::trace!(layer = %contents.digest(), units = ?wish.units, origin = ?wish.origin, "guessing");
        let jobs = self.jobs(&wish, contents, flying, &mut state)?;
        self.show(&state);
        Ok(Some(jobs))
    }

    /// Lets policies find out what they have to about what came; meanwhile the state is anybody's.
    fn study(&self) -> Result<(), Damaged> {
        if !self.came.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let studies = self.state().studies()?;
        if studies.is_empty() {
            return Ok(());
        }
        studies.into_iter().for_each(|study| study(&self.image));
        self.state().tell(News::Studied)
    }

    fn jobs(
        self: &Arc<Self>,
        Wish { layer, units, counts, goes_on, origin }: &Wish,
        contents: &Arc<Layer>,
        flying: &Flying,
        state: &mut State,
    ) -> Result<Vec<Job>, Error> {
        let ticket = |range| {
            let waiting = contents.gate.reader();
            Box::new(Ticket::new(self, *layer, waiting, flying, range)) as Box<dyn Guess>
        };
        let guesses = contents.guess(units.clone(), *goes_on, &ticket)?;
        let asked = guesses.into_iter().map(|(job, planned)| {
            state.history.asked(*layer, &planned, *counts, *origin);
            job
        });
        Ok(asked.collect())
    }

    /// Tells those who do not wait for the state what it is.
    pub(super) fn show(&self, state: &State) {
        self.is_over.store(state.history.is_over(), Ordering::Release);
        self.reads_all.store(state.history.reads_all(), Ordering::Release);
    }

    fn of(&self, layer: usize) -> Option<(&Arc<Layer>, &Flying)> {
        self.layers.get(layer).zip(self.underway.of(layer))
    }

    /// Whether guesses of this layer are under way, and nothing has come of them for so long that others are not to wait for them.
    fn is_stuck(&self, layer: usize) -> bool {
        self.of(layer).is_some_and(|(contents, flying)| {
            flying.is_still((contents.source.round_trip() * STUCK_ROUND_TRIPS).max(STUCK))
        })
    }

    /// Whether a slice that has some of these units is coming for another guess.
    fn is_coming(&self, Wish { layer, units, goes_on, .. }: &Wish) -> Result<bool, Damaged> {
        let Some((contents, flying)) = self.of(*layer) else { return Ok(false) };
        let mut place = plan::place(&contents.index, units)?;
        if *goes_on {
            // The start of its first unit comes with the one before.
            place.start = plan::cut(&contents.index, units.start)?.unwrap_or(place.start);
        }
        Ok(!self.is_stuck(*layer) && flying.is_coming(place))
    }

    /// Whether there is room for one more request.
    fn has_room(&self, budget: u64) -> bool {
        let moving = || self.underway.each().filter(|(layer, _)| !self.is_stuck(*layer));
        let bytes = moving().map(|(_, flying)| flying.bytes()).fold(0, u64::saturating_add);
        let requests = moving().map(|(_, flying)| flying.requests()).fold(0, usize::saturating_add);
        bytes < budget && requests < REQUESTS
    }
}

/// Guesses on their way, in one request.
struct Ticket {
    readahead: Arc<Readahead>,
    layer: usize,
    left: AtomicU64,
    /// Slices that it is the first for.
    first: Vec<u64>,
    /// Prefetch waits for it as it does for readers.
    _waiting: Waiting,
}

impl Ticket {
    fn new(readahead: &Arc<Readahead>, layer: usize, waiting: Waiting, flying: &Flying, range: ByteRange) -> Self {
        flying.start(range.len());
        let (left, first) = (AtomicU64::new(range.len()), flying.ask(range));
        Self { readahead: Arc::clone(readahead), layer, left, first, _waiting: waiting }
    }
}

impl Guess for Ticket {
    fn arrived(&self, bytes: u64) {
        let bytes = bytes.min(self.left.load(Ordering::Acquire));
        self.left.fetch_sub(bytes, Ordering::AcqRel);
        if let Some(flying) = self.readahead.underway.of(self.layer) {
            flying.arrived(bytes);
        }
        if self.readahead.waiting.load(Ordering::Acquire) {
            self.readahead.pump();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(flying) = self.readahead.underway.of(self.layer) {
            flying.end(self.left.load(Ordering::Acquire), &self.first);
        }
        self.readahead.came.store(true, Ordering::Release);
        // While the runtime shuts down there is nobody to go on.
        if tokio::runtime::Handle::try_current().is_ok() {
            self.readahead.pump();
        }
    }
}
