//! What to fetch around a miss. A request costs a round trip, so what comes with it decides how long a program takes to start.
//!
//! ```text
//! a read misses  --> its request goes on behind what was asked for, about as far as the link carries in two round trips (`tail`)
//! a file is read --> wishes: the rest of it; the libraries it needs; the files it names; the small files near it (`wish`, `programs`, `mentions`, `near`)
//! there is room  --> the newest wish becomes a request: behind readers who wait, little at a time, bounded in all (`next`)
//! ```
//!
//! Nothing is recorded of earlier runs; only the image's own files say what comes next. The rules and most numbers came out of a simulation of
//! recorded reads; docs/performance.md says what each is worth on a real link. Sizes are compressed bytes unless said otherwise.

mod files;
mod policy;
mod state;
mod stretch;
mod underway;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use self::files::Neighbourhood;
pub use self::files::{Files, LONGEST_PATH, Node, Place};
pub use self::policy::{elf, words};
use self::state::{Next, State};
use self::underway::{Flying, Ticket};
use super::asker::{Guess, Planned, Reading};
use super::job::Job;
use super::plan::{self, Tail};
use super::{Error, Layer};
use crate::blob::ByteRange;
use crate::cache::Disk;
use crate::index::Damaged;
use crate::threads::{self, Work};

/// A file up to this size is fetched whole once any of it was read.
const WHOLE: u64 = 2 << 20;

/// A file up to this size has neighbours.
const SMALL: u64 = 128 << 10;

/// What is fetched around a miss, in round trips of the link: one is what a request costs anyway, and what comes during the next one is in time,
/// too.
const ROUND_TRIPS: u64 = 2;

/// Over small files a miss goes on only for this part of it: what is named in files that were read says better which of them come next.
const SMALL_TAIL: u64 = 4;

/// The least that is fetched around a miss, where the link carries less.
const FLOOR: u64 = 32 << 10;

/// The largest request for a guess.
const LARGEST_PIECE: u64 = 1 << 20;

/// Requests for guesses under way at a time.
const REQUESTS: usize = 10;

/// Guesses of a layer of which nothing came for so many round trips, and for so long, take no room from the others, and it gets no more of them.
const STUCK_ROUND_TRIPS: u32 = 8;
const STUCK: Duration = Duration::from_secs(1);

/// Hits that are noticed at a time. One that is not costs a guess, no more.
const NOTICED: usize = 4;

/// What may be guessed wrong whatever is read: this, and no more than this part of an image.
const WASTE: u64 = 1 << 20;
const WASTED_PART: u64 = 16;

/// The contents of all files of an image, and guesses about what is read next.
pub struct Readahead {
    layers: Vec<Arc<Layer>>,
    files: Arc<dyn Files>,
    guesses: bool,
    neighbourhood: OnceLock<Neighbourhood>,
    state: Mutex<State>,
    /// For each layer, its guesses that are under way.
    flying: Vec<Flying>,
    /// Hits that are being noticed.
    noticing: AtomicUsize,
    /// Whether so much was guessed wrong that nothing more is: told without the state, which a reader who misses does not wait for.
    is_over: AtomicBool,
    /// Whether somebody reads everything: told in the same way.
    reads_all: AtomicBool,
    /// Whether something came that may be looked into.
    came: AtomicBool,
    /// Whether something waits for room.
    waiting: AtomicBool,
    /// Somebody turns wishes into requests, and is to look once more.
    pumping: AtomicBool,
    again: AtomicBool,
}

/// Who reads what.
struct Reader {
    readahead: Arc<Readahead>,
    layer: usize,
    file: Node,
}

impl Readahead {
    /// `layers` as the places of `files` number them. Without `guesses`, nothing is fetched but what is read.
    #[must_use]
    pub fn new(layers: Vec<Arc<Layer>>, files: Arc<dyn Files>, guesses: bool) -> Arc<Self> {
        let size = layers.iter().map(|layer| layer.source.size()).fold(0, u64::saturating_add);
        let flying = layers.iter().map(|_| Flying::default()).collect();
        Arc::new(Self {
            layers,
            files,
            guesses,
            neighbourhood: OnceLock::new(),
            state: Mutex::new(State::new(WASTE.min(size / WASTED_PART))),
            flying,
            noticing: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
            reads_all: AtomicBool::new(false),
            came: AtomicBool::new(false),
            waiting: AtomicBool::new(false),
            pumping: AtomicBool::new(false),
            again: AtomicBool::new(false),
        })
    }

    /// How many layers there are.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// How long a read may wait for local disk; the same for all layers.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.layers.first().map_or(Duration::MAX, |layer| layer.reader_deadline())
    }

    /// A read has waited for local disk for longer than that.
    pub fn gave_up(&self, layer: usize) {
        if let Some(layer) = self.layers.get(layer) {
            layer.gave_up();
        }
    }

    /// Reads a range of a layer file, which is a part of `file`.
    ///
    /// # Errors
    /// As [`Layer::read`].
    pub async fn read(self: &Arc<Self>, layer: usize, file: Node, range: ByteRange) -> Result<Bytes, Error> {
        let contents = self.layers.get(layer).ok_or(Error::Interrupted)?;
        let reader = || Arc::new(Reader { readahead: Arc::clone(self), layer, file }) as Arc<dyn Reading>;
        let reading = (self.guesses && contents.source.is_remote()).then(reader);
        let read = contents.read_for(range, reading).await;
        self.came.store(true, Ordering::Release);
        let may_wait = |state: MutexGuard<'_, State>| state.programs.are_waiting() || state.mentions.are_waiting();
        // Where it is looked at right now, perhaps without what has just come.
        if self.state.try_lock().map_or(true, may_wait) {
            // What was read may say what it needs.
            self.pump();
        }
        read
    }

    /// Fills a buffer of the same length with such bytes, where all of them are there and local disk need not be waited for longer than said.
    /// Tells whether it did.
    pub fn read_cached(
        self: &Arc<Self>,
        layer: usize,
        file: Node,
        range: ByteRange,
        (buffer, disk): (&mut [u8], Disk),
    ) -> bool {
        let Some(contents) = self.layers.get(layer) else { return false };
        let Some(checks) = contents.read_cached(range, buffer, disk) else { return false };
        let reading = Reader { readahead: Arc::clone(self), layer, file };
        if self.guesses && contents.source.is_remote() && reading.tells(&checks) {
            // For this, there is time after the answer.
            let _noticed = threads::run(Work::Local, move || {
                reading.noticed(range, checks, false);
                reading.readahead.noticing.fetch_sub(1, Ordering::AcqRel);
            });
        }
        true
    }

    /// The image's command starts with these files, each by the paths that it may have: they are wished for before anyone reads them.
    pub async fn starts(self: &Arc<Self>, files: Vec<Vec<String>>) {
        if !self.layers.iter().any(|layer| layer.source.is_remote()) {
            return;
        }
        let readahead = Arc::clone(self);
        let found = threads::run(Work::Local, move || readahead.found(&files)).await.unwrap_or_default();
        for file in found.into_iter().rev() {
            self.read_local(file).await;
            let readahead = Arc::clone(self);
            let wish = move || {
                let mut state = readahead.state();
                state.starts(&readahead, file).and_then(|()| state.mentions_of_command(&readahead, file))
            };
            if let Ok(Err(error)) = threads::run(Work::Local, wish).await {
                tracing::debug!(%error, "nothing is fetched for the image's command");
            }
        }
        self.pump();
    }

    /// Of each file the first path that there is.
    fn found(&self, files: &[Vec<String>]) -> Vec<Node> {
        // Made before anything waits for the state.
        self.neighbourhood();
        files.iter().filter_map(|paths| paths.iter().find_map(|path| self.files.find(1, path.as_bytes()))).collect()
    }

    /// Lets a file be looked into whose layer was read whole when it was opened.
    async fn read_local(&self, file: Node) {
        let Some(place) = self.files.place(file).filter(|place| place.range.len() <= policy::mentions::LOOKED_INTO)
        else {
            return;
        };
        if let Some(contents) = self.layers.get(place.layer).filter(|contents| !contents.source.is_remote()) {
            // Whoever reads it hears of an error.
            let _read = contents.read(place.range).await;
            self.came.store(true, Ordering::Release);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, state: &State) {
        self.is_over.store(state.is_over(), Ordering::Release);
        self.reads_all.store(state.reads_all(self), Ordering::Release);
    }

    fn neighbourhood(&self) -> &Neighbourhood {
        self.neighbourhood.get_or_init(|| Neighbourhood::of(&*self.files, self.layers.len()))
    }

    /// What a miss in a layer may bring beyond itself, and all guesses that are under way.
    fn budget(&self, layer: usize) -> u64 {
        self.layers.get(layer).map_or(0, |layer| layer.source.per_round_trip()).saturating_mul(ROUND_TRIPS).max(FLOOR)
    }

    /// Turns wishes into requests as long as there is room, on a thread of its own.
    fn pump(self: &Arc<Self>) {
        self.again.store(true, Ordering::Release);
        if !self.pumping.swap(true, Ordering::AcqRel) {
            let readahead = Arc::clone(self);
            let _pumped = threads::run(Work::Local, move || readahead.guess());
        }
    }

    fn guess(self: &Arc<Self>) {
        loop {
            self.again.store(false, Ordering::Release);
            loop {
                match self.next() {
                    Ok(Some(jobs)) => jobs.into_iter().for_each(|job| drop(tokio::spawn(job.run()))),
                    // What has come meanwhile may say more.
                    Ok(None) if self.came.load(Ordering::Acquire) && !self.waiting.load(Ordering::Acquire) => {}
                    Ok(None) => break,
                    // A damaged index is made again by the next reader that needs it.
                    Err(error) => {
                        tracing::debug!(%error, "nothing is fetched around a miss");
                        break;
                    }
                }
            }
            // Not a store: `again` must not be read before it.
            self.pumping.swap(false, Ordering::AcqRel);
            if !self.again.load(Ordering::Acquire) || self.pumping.swap(true, Ordering::AcqRel) {
                return;
            }
        }
    }

    /// Bytes of guesses that were asked for and have not come.
    fn flying(&self) -> u64 {
        self.flying.iter().map(Flying::bytes).fold(0, u64::saturating_add)
    }

    /// Whether guesses of this layer are under way, and nothing has come of them for so long that others are not to wait for them.
    fn is_stuck(&self, layer: usize) -> bool {
        let round_trip = self.layers.get(layer).map_or(Duration::ZERO, |layer| layer.source.round_trip());
        self.flying.get(layer).is_some_and(|flying| flying.is_still((round_trip * STUCK_ROUND_TRIPS).max(STUCK)))
    }

    /// Whether a slice that has some of these units is coming for another guess.
    fn is_coming(&self, Next { layer, units, goes_on, .. }: &Next) -> Result<bool, Damaged> {
        let Some((contents, flying)) = self.layers.get(*layer).zip(self.flying.get(*layer)) else { return Ok(false) };
        let mut place = plan::place(&contents.index, units)?;
        if *goes_on {
            // The start of its first unit comes with the one before.
            place.start = plan::cut(&contents.index, units.start)?.unwrap_or(place.start);
        }
        Ok(!self.is_stuck(*layer) && flying.is_coming(place))
    }

    /// Whether there is room for one more request.
    fn has_room(&self, budget: u64) -> bool {
        let moving = || self.flying.iter().enumerate().filter(|(layer, _)| !self.is_stuck(*layer));
        let bytes = moving().map(|(_, flying)| flying.bytes()).fold(0, u64::saturating_add);
        let requests = moving().map(|(_, flying)| flying.requests()).fold(0, usize::saturating_add);
        bytes < budget && requests < REQUESTS
    }

    /// The requests for the next wish, if there is room for one.
    fn next(self: &Arc<Self>) -> Result<Option<Vec<Job>>, Error> {
        let last = self.state().last_layer();
        let budget = self.budget(last);
        if !self.has_room(budget) {
            self.waiting.store(true, Ordering::Release);
            return Ok(None);
        }
        self.waiting.store(false, Ordering::Release);
        self.look_into_mentions()?;
        let mut state = self.state();
        let size = budget.min(LARGEST_PIECE);
        let Some(Next { layer, units, counts, goes_on }) = state.next(self, size)? else { return Ok(None) };
        let Some((contents, flying)) = self.layers.get(layer).zip(self.flying.get(layer)) else { return Ok(None) };
        let mut jobs = Vec::new();
        // Whoever reads it hears what is wrong with it.
        if self.is_stuck(layer) || contents.source.is_restrained() {
            return Ok(Some(jobs));
        }
        let ticket =
            |range| Box::new(Ticket::new(self, layer, contents.gate.reader(), (flying, range))) as Box<dyn Guess>;
        for (job, planned) in contents.guess(units, goes_on, &ticket)? {
            state.asked(layer, &planned, counts);
            jobs.push(job);
        }
        self.tell(&state);
        Ok(Some(jobs))
    }
}

impl Reader {
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
        let readahead = &self.readahead;
        let Some((place, contents)) = readahead.files.place(self.file).zip(readahead.layers.get(self.layer)) else {
            return Ok(None);
        };
        if readahead.is_over.load(Ordering::Acquire) {
            return Ok(None);
        }
        let bytes = readahead.budget(self.layer).min(plan::MAX_REQUEST);
        if readahead.reads_all.load(Ordering::Acquire) {
            return Ok(Some(Tail { bytes: bytes.max(plan::SLICE), until: u64::MAX, goes_on: true }));
        }
        let size = plan::compressed(&contents.index, &contents.index.units_over(place.range)?)?;
        if size > WHOLE {
            let state = readahead.state();
            let bytes = if state.is_in_order(self.file) { bytes.max(plan::SLICE) } else { bytes };
            let tail = Tail { bytes, until: place.range.end, goes_on: true };
            return Ok(state.has_missed(self.file).then_some(tail));
        }
        let until = match size {
            ..=SMALL => readahead.end_of_small_files(self.file, place, bytes / SMALL_TAIL)?,
            _ => place.range.end,
        };
        Ok(Some(Tail { bytes, until, goes_on: false }))
    }

    fn asked(&self, planned: &Planned) {
        let mut state = self.readahead.state();
        state.asked(self.layer, planned, true);
        self.readahead.tell(&state);
    }

    fn noticed(&self, range: ByteRange, checks: Range<u32>, missed: bool) {
        let mut state = self.readahead.state();
        let noticed = state.noticed(&self.readahead, (self.layer, self.file), (range, checks), missed);
        self.readahead.tell(&state);
        drop(state);
        match noticed {
            Ok(true) => self.readahead.pump(),
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "nothing is fetched around a read"),
        }
    }
}
