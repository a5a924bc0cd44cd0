//! What to fetch around a miss. A request costs a round trip, so what comes with it decides how long a program takes to start.
//!
//! ```text
//! a read misses  --> its request goes on behind what was asked for, about as far as the link carries in two round trips (reading.rs)
//! a file is read --> policies are told, each by itself: the rest of it; the libraries it needs; the files it names; those near it (policy/)
//! there is room  --> the next wish becomes a request: behind readers who wait, little at a time, bounded in all (pump.rs)
//! ```
//!
//! ```text
//! mechanism  pump      turns wishes into requests while there is room
//!            underway  what of these has not come, and whether it is stuck
//!            state     tells the policies of what happens, and asks each in its turn
//!            here      what of the image is known to be here
//! ---------- Policy, News, Wish ------------------------------------------------------
//! policies   rest, programs, mentions, near, everything
//! ---------- Image, Units, Files, History --------------------------------------------
//! what they see: files, the units that hold them, what is missing; what was read
//! ```
//!
//! Nothing is recorded of earlier runs; only the image's own files say what comes next. The rules and most numbers came out of a simulation of
//! recorded reads; docs/performance.md says what each is worth on a real link. Sizes are compressed bytes unless said otherwise.

#[cfg(test)]
mod fake;
mod files;
mod here;
mod history;
mod image;
mod policy;
mod pump;
mod reading;
mod seen;
mod stack;
mod state;
mod stretch;
mod underway;
mod units;
mod wish;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

pub use self::files::{Files, LONGEST_PATH, Node, Place};
use self::history::History;
use self::image::Image;
use self::policy::News;
pub use self::policy::{elf, words};
use self::reading::Reader;
use self::state::State;
use self::underway::Underway;
use self::units::Units;
use super::asker::Reading;
use super::{Error, Layer};
use crate::blob::ByteRange;
use crate::cache::Disk;
use crate::threads::{self, Work};

/// What may be guessed wrong whatever is read: this, and no more than this part of an image.
const WASTE: u64 = 1 << 20;
const WASTED_PART: u64 = 16;

/// The contents of all files of an image, and guesses about what is read next.
pub struct Readahead {
    layers: Vec<Arc<Layer>>,
    image: Arc<Image>,
    guesses: bool,
    state: Mutex<State>,
    underway: Arc<Underway>,
    /// Hits that are being noticed.
    noticing: AtomicUsize,
    /// Whether so much was guessed wrong that nothing more is: told without the state, which a reader who misses does not wait for.
    is_over: AtomicBool,
    /// Whether somebody reads everything: told in the same way.
    reads_all: AtomicBool,
    /// Whether something came that may be looked into.
    came: Arc<AtomicBool>,
    /// Whether something waits for room.
    waiting: AtomicBool,
    /// Somebody turns wishes into requests, and is to look once more.
    pumping: AtomicBool,
    again: AtomicBool,
}

impl Readahead {
    /// `layers` as the places of `files` number them. Without `guesses`, nothing is fetched but what is read.
    #[must_use]
    pub fn new(layers: Vec<Arc<Layer>>, files: Arc<dyn Files>, guesses: bool) -> Arc<Self> {
        let size = layers.iter().map(|layer| layer.source.size()).fold(0, u64::saturating_add);
        let underway = Arc::new(Underway::new(layers.len()));
        let units = layers.iter().map(|layer| Arc::clone(layer) as Arc<dyn Units>).collect();
        let (image, came) = (Arc::new(Image::new(units, files)), Arc::new(AtomicBool::new(false)));
        let history = History::new(WASTE.min(size / WASTED_PART), Arc::clone(&underway));
        Arc::new(Self {
            layers,
            state: Mutex::new(State::new(Arc::clone(&image), history, Arc::clone(&came))),
            image,
            guesses,
            underway,
            noticing: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
            reads_all: AtomicBool::new(false),
            came,
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
        let reader = || Arc::new(Reader::new(self, layer, file)) as Arc<dyn Reading>;
        let reading = (self.guesses && contents.source.is_remote()).then(reader);
        let read = contents.read_for(range, reading).await;
        self.came.store(true, Ordering::Release);
        // Where it is looked at right now, perhaps without what has just come.
        if self.state.try_lock().map_or(true, |state| state.is_waiting()) {
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
        buffer: &mut [u8],
        disk: Disk,
    ) -> bool {
        let Some(contents) = self.layers.get(layer) else { return false };
        let Some(checks) = contents.read_cached(range, buffer, disk) else { return false };
        if self.guesses && contents.source.is_remote() {
            Reader::new(self, layer, file).hit(range, checks);
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
            let told = threads::run(Work::Local, move || readahead.state().tell(News::Starts(file)));
            if let Ok(Err(error)) = told.await {
                tracing::debug!(%error, "nothing is fetched for the image's command");
            }
        }
        self.pump();
    }

    /// Of each file the first path that there is.
    fn found(&self, files: &[Vec<String>]) -> Vec<Node> {
        // Made before anything waits for the state.
        self.image.neighbourhood();
        let find = |path: &String| self.image.files().find(1, path.as_bytes());
        files.iter().filter_map(|paths| paths.iter().find_map(find)).collect()
    }

    /// Lets a file be looked into whose layer was read whole when it was opened.
    async fn read_local(&self, file: Node) {
        let place = self.image.files().place(file).filter(|place| place.range.len() <= policy::LOOKED_INTO);
        let Some(place) = place else { return };
        if let Some(contents) = self.layers.get(place.layer).filter(|contents| !contents.source.is_remote()) {
            // Whoever reads it hears of an error.
            let _read = contents.read(place.range).await;
            self.came.store(true, Ordering::Release);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
