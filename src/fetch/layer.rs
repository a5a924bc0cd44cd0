//! The contents of one layer, fetched and verified when first read.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use moka::sync::Cache as Memory;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, Semaphore, SemaphorePermit};

use super::aside::Aside;
use super::asker::Reading;
use super::assemble::{Brought, Wanted};
use super::flight::{Flights, Waiter};
use super::heat::{Heat, Record};
use super::kept::Kept;
use super::prefetch::{Gate, Waiting};
use super::seams::Seams;
use super::shared::Shared;
use super::still::Still;
use super::whole::{Duties, Whole};
use super::{Error, Source};
use crate::blob::{ByteRange, ByteSource, Digest};
use crate::cache::{Cache, LayerFile, State};
use crate::index::{Check, CheckKind, Damaged, Of, StoredIndex};
use crate::metrics::METRICS;
use crate::registry;
use crate::threads::{self, Work};

/// Requests of one layer at a time. Counted for each layer, so that one that is stuck does not hold up the others.
const REQUESTS: usize = 8;

/// Requests of all layers of an image at a time: an image whose registry is stuck leaves enough of them to the others.
const ALL_REQUESTS: usize = 128;

/// How long a failure to get anything within the deadline answers for the same check at once, but no longer than [`REPEAT_PART`] of the deadline:
/// when the READ that reads ahead has failed, the kernel sends another for the page itself, which would wait a second deadline. Thousands
/// may fail at once, and as many are sent again.
const REPEAT: Duration = Duration::from_secs(1);
const REPEAT_PART: u32 = 16;

/// Checks of which that is remembered.
const REPEATED: u64 = 64 << 10;

/// Failed reads of a layer are logged this often at most.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// A read looks again this often when nothing was brought for it: what it needs was there, and evicted before it could be copied.
const ROUNDS: usize = 8;

/// Checks found on disk are verified one by one in each of this many groups, so that a check is not verified by all of its readers.
const VERIFIERS: usize = 16;

/// What all layers of a mount have in common.
#[derive(Clone)]
pub struct Engine {
    cache: Cache,
    gate: Arc<Gate>,
    /// Those of the image, and of all images.
    requests: [Arc<Semaphore>; 2],
    aside: Aside,
    record: Option<Arc<Record>>,
    /// Longest time without progress that a read waits.
    io_deadline: Duration,
}

/// Makes a layer's encoded index again, where the cached one is damaged while it is in use. Blocking.
pub type Reindex = Arc<dyn Fn() -> Option<Arc<dyn ByteSource>> + Send + Sync>;

/// A read that is counted until it is answered, or nobody waits any more for it.
struct Unanswered<'a>(&'a AtomicUsize);

impl<'a> Unanswered<'a> {
    fn count(reads: &'a AtomicUsize) -> Self {
        reads.fetch_add(1, Ordering::Relaxed);
        Self(reads)
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What became of a damaged index.
struct Repair {
    reindex: Reindex,
    /// Since then it is served from memory, which nothing damages.
    done: bool,
    failed: Option<Instant>,
}

/// The right to verify the checks of one group.
struct Verifier {
    group: usize,
    _lock: OwnedMutexGuard<()>,
}

/// What one layer has done, for `crfs status`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stats {
    /// Bytes handed to readers.
    pub served: u64,
    /// Bytes that came from the registry, as the blob has them, the TOC included.
    pub fetched: u64,
    /// Bytes handed to readers that were there when they were asked for.
    pub cached: u64,
    pub requests: u64,
    /// Reads that failed.
    pub errors: u64,
    /// Bytes of contents that were brought and that the cache would not have, as it is full or cannot be written.
    #[serde(default)]
    pub uncached: u64,
}

/// What is waited for of one layer at this moment, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doing {
    pub reads: usize,
    /// Checks that are on their way.
    pub checks: usize,
    /// Bytes of all layers together that the cache would not have.
    pub aside: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    /// Reads that have no answer yet.
    reads: AtomicUsize,
    pub(super) served: AtomicU64,
    pub(super) cached: AtomicU64,
    errors: AtomicU64,
    uncached: AtomicU64,
    last_error: Mutex<Option<String>>,
    warned: Mutex<Option<Instant>>,
}

/// The contents of one layer.
pub struct Layer {
    digest: Digest,
    pub(super) heat: Heat,
    pub(super) index: StoredIndex,
    pub(super) source: Source,
    pub(super) cache: Cache,
    pub(super) file: LayerFile,
    pub(super) flights: Arc<Flights>,
    pub(super) whole: Whole,
    pub(super) seams: Seams,
    pub(super) aside: Aside,
    /// Checks for which nothing came within the deadline, for the length of [`REPEAT`].
    pub(super) failed: Memory<u32, Error>,
    pub(super) planning: Mutex<()>,
    requests: Semaphore,
    all_requests: [Arc<Semaphore>; 2],
    verifiers: [Arc<AsyncMutex<()>>; VERIFIERS],
    reindex: AsyncMutex<Repair>,
    pub(super) gate: Arc<Gate>,
    io_deadline: Duration,
    pub(super) counters: Counters,
}

/// Verified bytes that a reader holds itself, by check, so that nothing can take them away while it waits for others.
type Held = HashMap<u32, Kept>;

/// What a look at the layer file gave.
pub(super) enum Look {
    Bytes(Bytes),
    /// Somebody is verifying a check of this group.
    Verifying(usize),
    /// Requests for it are under way.
    Wait {
        waiters: Vec<Waiter>,
        waiting: Waiting,
    },
}

/// Whether a check can be read from the layer file.
enum Verdict {
    There,
    Missing,
    /// Being verified, with others of its group.
    Busy(usize),
}

impl Engine {
    #[must_use]
    pub fn new(cache: Cache, shared: &Shared, io_deadline: Duration) -> Self {
        let requests = [Arc::new(Semaphore::new(ALL_REQUESTS)), Arc::clone(&shared.requests)];
        let (aside, record) = (shared.aside.clone(), shared.record.clone());
        Self { cache, gate: Arc::default(), requests, aside, record, io_deadline }
    }

    /// The contents of the layer `digest`. `file` is the layer file that belongs to `index`.
    #[must_use]
    pub fn layer(
        &self,
        digest: Digest,
        index: StoredIndex,
        source: Source,
        file: LayerFile,
        reindex: Reindex,
    ) -> Arc<Layer> {
        let heat = Heat::new(self.record.as_ref(), index.summary().checks);
        Arc::new(Layer {
            digest,
            heat,
            index,
            source,
            cache: self.cache.clone(),
            file,
            flights: Arc::default(),
            whole: Whole::default(),
            seams: Seams::default(),
            aside: self.aside.for_layer(),
            failed: Memory::builder()
                .max_capacity(REPEATED)
                .time_to_live(REPEAT.min(self.io_deadline / REPEAT_PART))
                .build(),
            planning: Mutex::default(),
            requests: Semaphore::new(REQUESTS),
            all_requests: self.requests.clone(),
            verifiers: std::array::from_fn(|_| Arc::default()),
            reindex: AsyncMutex::new(Repair { reindex, done: false, failed: None }),
            gate: Arc::clone(&self.gate),
            io_deadline: self.io_deadline,
            counters: Counters::default(),
        })
    }
}

impl Layer {
    /// How many places may have its blob.
    #[must_use]
    pub fn places(&self) -> usize {
        self.source.places()
    }

    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    #[must_use]
    pub fn index(&self) -> &StoredIndex {
        &self.index
    }

    /// Where its blob is read from.
    #[must_use]
    pub fn source(&self) -> Source {
        self.source.clone()
    }

    /// The bytes of a range of the layer file, every one verified.
    ///
    /// # Errors
    /// Where they cannot be had within the deadline, or are wrong. Nothing is remembered: the next read tries again.
    pub async fn read(self: &Arc<Self>, range: ByteRange) -> Result<Bytes, Error> {
        self.read_for(range, None).await
    }

    /// The same for `reading`, which says what else to fetch.
    pub(super) async fn read_for(
        self: &Arc<Self>,
        range: ByteRange,
        reading: Option<Arc<dyn Reading>>,
    ) -> Result<Bytes, Error> {
        let _unanswered = Unanswered::count(&self.counters.reads);
        let read = self.read_or_fetch(range, reading).await;
        match &read {
            Ok(bytes) => {
                self.counters.served.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                METRICS.served.inc_by(bytes.len() as u64);
            }
            Err(error) => self.note_error(error),
        }
        read
    }

    /// A reader was given an error.
    fn note_error(&self, error: &Error) {
        self.warn(error);
        METRICS.read_failed(error.cause());
        *self.counters.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// A reader was told that the cache's disk has not answered in time.
    pub(super) fn gave_up(&self) {
        self.note_error(&Error::CacheStopped { layer: self.digest, waited: self.reader_deadline() });
    }

    /// Not more often than [`WARN_EVERY`]: one cause fails many reads.
    fn warn(&self, error: &Error) {
        let mut last = self.counters.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= WARN_EVERY) {
            tracing::warn!(layer = %self.digest, %error, "a read failed");
            *last = Some(Instant::now());
        }
    }

    /// Whether all of it is on local disk; from then on it stays there for as long as the layer is open. Blocking.
    ///
    /// # Errors
    /// Where the index is damaged.
    pub fn is_kept(&self) -> Result<bool, Damaged> {
        // First, so that nothing goes once it was seen.
        self.file.pin();
        let mut damaged = None;
        let lacks = self.file.lacks_any(|check| match self.index.check(check) {
            Ok(check) => check.kind == CheckKind::Hole,
            Err(error) => {
                damaged = Some(error);
                true
            }
        });
        damaged.map_or(Ok(!lacks), Err)
    }

    #[must_use]
    pub fn stats(&self) -> Stats {
        let traffic = self.source.traffic();
        Stats {
            served: self.counters.served.load(Ordering::Relaxed),
            fetched: traffic.bytes,
            cached: self.counters.cached.load(Ordering::Relaxed),
            requests: traffic.requests,
            errors: self.counters.errors.load(Ordering::Relaxed),
            uncached: self.counters.uncached.load(Ordering::Relaxed),
        }
    }

    #[must_use]
    pub fn doing(&self) -> Doing {
        Doing {
            reads: self.counters.reads.load(Ordering::Relaxed),
            checks: self.flights.count(),
            aside: self.aside.bytes(),
        }
    }

    /// The last error that a reader was given.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.counters.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn read_or_fetch(
        self: &Arc<Self>,
        range: ByteRange,
        reading: Option<Arc<dyn Reading>>,
    ) -> Result<Bytes, Error> {
        let mut held = Held::new();
        let mut is_first = true;
        let mut fruitless = 0;
        let mut verifier = None;
        // Also where it joins what is on its way already, and tries for itself after that has failed.
        let mut still = Still::new(self.progress());
        while fruitless < ROUNDS {
            let layer = Arc::clone(self);
            let right = verifier.take();
            let who = reading.clone().filter(|_| is_first);
            let looked =
                threads::run(Work::Local, move || (layer.look(range, &held, right.as_ref(), who.as_deref()), held));
            let looked = self.unless_disk_stops(looked).await?;
            let (look, looked_held) = looked.map_err(|_| Error::Interrupted)?;
            held = looked_held;
            let waited = match look {
                Ok(Look::Bytes(bytes)) => {
                    if is_first {
                        self.counters.cached.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    }
                    return Ok(bytes);
                }
                Ok(Look::Verifying(group)) => {
                    // Whoever has waited for the right uses it: each hop verifies something.
                    verifier = self.unless_disk_stops(self.verifier(group)).await?;
                    continue;
                }
                Ok(Look::Wait { waiters, waiting }) => {
                    let before = held.len();
                    let waited = self.wait(waiters, &mut still, &mut held).await;
                    drop(waiting);
                    // What was brought is held, so that the rounds in which something is come to an end, too.
                    fruitless += usize::from(held.len() == before);
                    waited
                }
                Err(error) => {
                    fruitless += 1;
                    Err(error)
                }
            };
            match waited {
                Ok(()) => {}
                // Whoever was to bring it was stopped by something else; nobody has tried yet.
                Err(Error::Interrupted) => {}
                Err(Error::Index(damaged)) if is_first => self.reindex(damaged).await?,
                Err(error) => return Err(error),
            }
            is_first = false;
        }
        Err(Error::Interrupted)
    }

    async fn verifier(&self, group: usize) -> Option<Verifier> {
        let lock = Arc::clone(self.verifiers.get(group)?).lock_owned().await;
        Some(Verifier { group, _lock: lock })
    }

    /// Waits for what the cache's disk does, no longer than the deadline allows.
    async fn unless_disk_stops<T>(&self, work: impl Future<Output = T>) -> Result<T, Error> {
        let waited = self.reader_deadline();
        tokio::time::timeout(waited, work).await.map_err(|_| Error::CacheStopped { layer: self.digest, waited })
    }

    /// Waits for what others bring, no longer than the deadline allows: time in which this layer's bytes keep coming does not count.
    async fn wait(&self, waiters: Vec<Waiter>, still: &mut Still, held: &mut Held) -> Result<(), Error> {
        let limit = self.reader_deadline();
        let checks: Vec<u32> = waiters.iter().map(|waiter| waiter.check).collect();
        for waiter in waiters {
            let check = waiter.check;
            let outcome =
                still.wait(|| self.progress(), limit, waiter.wait()).await.unwrap_or_else(|| Err(self.stuck(limit)));
            if let Err(error) = outcome.as_ref().map_err(Clone::clone).map(|_| ()) {
                if error.is_deadline() {
                    // The kernel may ask for any page of the read again.
                    let rest = checks.iter().filter(|check| !held.contains_key(check));
                    rest.for_each(|check| self.failed.insert(*check, error.clone()));
                }
            }
            match outcome? {
                // To be looked for there.
                Kept::LayerFile => {}
                kept => drop(held.insert(check, kept)),
            }
        }
        Ok(())
    }

    /// A little longer than a request has, whose error says more.
    pub(super) fn reader_deadline(&self) -> Duration {
        self.io_deadline + self.io_deadline / 16
    }

    fn progress(&self) -> u64 {
        self.source.traffic().progress
    }

    fn stuck(&self, waited: Duration) -> Error {
        Error::Stuck { layer: self.digest, waited }
    }

    /// The cached index was damaged while it was in use: it is made again, once for all who notice, and a failure is theirs as well.
    async fn reindex(self: &Arc<Self>, damaged: Arc<Damaged>) -> Result<(), Error> {
        let limit = self.reader_deadline();
        let failed = Error::Index(damaged);
        let Ok(mut repair) = tokio::time::timeout(limit, self.reindex.lock()).await else { return Err(failed) };
        if repair.done {
            return Ok(());
        }
        if repair.failed.is_some_and(|since| since.elapsed() < limit) {
            return Err(failed);
        }
        tracing::warn!(layer = %self.digest, "the cached index was damaged in use; it is made again");
        let (layer, reindex) = (Arc::clone(self), Arc::clone(&repair.reindex));
        let made = threads::run(Work::Opening, move || reindex().is_some_and(|source| layer.index.replace(source)));
        repair.done = made.await.unwrap_or(false);
        repair.failed = (!repair.done).then(Instant::now);
        if repair.done { Ok(()) } else { Err(failed) }
    }

    /// The bytes, where all of them are there (or `held` by the reader itself), else who will bring what is missing.
    fn look(
        self: &Arc<Self>,
        range: ByteRange,
        held: &Held,
        right: Option<&Verifier>,
        reading: Option<&dyn Reading>,
    ) -> Result<Look, Error> {
        let mut bytes = BytesMut::zeroed(usize::try_from(range.len()).unwrap_or(usize::MAX));
        let mut missing = Vec::new();
        let mut covered = range.start;
        let checks = self.index.checks_over(range)?;
        for number in checks.clone() {
            let check = self.index.check(number)?;
            let part = check.range.intersection(&range);
            let start = usize::try_from(part.start.saturating_sub(range.start)).unwrap_or(usize::MAX);
            let len = usize::try_from(part.len()).unwrap_or(usize::MAX);
            let buffer = bytes.get_mut(start..).and_then(|rest| rest.get_mut(..len));
            let Some(buffer) = buffer.filter(|_| part.start == covered) else { break };
            match self.copy(number, &check, part, held.get(&number), right, buffer) {
                Verdict::There => {}
                Verdict::Missing => missing.push(number),
                Verdict::Busy(group) => return Ok(Look::Verifying(group)),
            }
            covered = part.end;
        }
        if covered != range.end {
            return Err(Error::NotInIndex { layer: self.digest, range });
        }
        // Whoever waits is noted first: they have waited since now.
        missing.iter().for_each(|check| self.heat.needed(*check..check.saturating_add(1), true));
        self.heat.needed(checks.clone(), false);
        let look = if missing.is_empty() {
            self.note_use(checks.clone());
            Look::Bytes(bytes.freeze())
        } else {
            self.wait_for(&missing, reading)?
        };
        reading.iter().for_each(|reading| reading.noticed(range, checks.clone(), !missing.is_empty()));
        Ok(look)
    }

    /// Copies a part of a check that is there.
    fn copy(
        &self,
        number: u32,
        check: &Check,
        part: ByteRange,
        held: Option<&Kept>,
        right: Option<&Verifier>,
        buffer: &mut [u8],
    ) -> Verdict {
        let Some((digest, of)) = check.kind.digest() else { return Verdict::There };
        let offset = part.start - check.range.start;
        let in_memory = held.cloned().or_else(|| self.aside.get(number));
        if let Some(read) = in_memory.and_then(|kept| kept.read(offset, buffer)) {
            return if read.is_ok() { Verdict::There } else { Verdict::Missing };
        }
        match self.file.read(number, part, buffer) {
            State::Ready => Verdict::There,
            State::Missing => Verdict::Missing,
            State::Unverified => {
                self.copy_verified(Wanted { check: number, range: check.range, digest, of }, part, right, buffer)
            }
        }
    }

    /// Copies a part of a check that another process left: it is verified first, by one reader at a time, and forgotten where it is wrong.
    fn copy_verified(&self, wanted: Wanted, part: ByteRange, right: Option<&Verifier>, buffer: &mut [u8]) -> Verdict {
        let group = wanted.check as usize % VERIFIERS;
        let _lock = match right.filter(|right| right.group == group) {
            Some(_) => None,
            None => match self.verifiers.get(group).map(|lock| lock.try_lock()) {
                Some(Ok(lock)) => Some(lock),
                _ => return Verdict::Busy(group),
            },
        };
        let digest = (wanted.of == Of::Contents).then_some(wanted.digest);
        match self.file.verify(wanted.check, wanted.range, digest) {
            State::Ready if self.file.read(wanted.check, part, buffer) == State::Ready => Verdict::There,
            _ => Verdict::Missing,
        }
    }

    /// A check is there: kept where the next reader looks before the flight is over, and handed to those who wait. Also where nobody has handed over
    /// the duty for it: who does so now looks for it afterwards.
    pub(super) fn land(&self, duties: &Duties, wanted: Wanted, brought: Brought) {
        let Brought { kept, is_stored } = brought;
        self.heat.came(wanted.check);
        if !is_stored {
            self.counters.uncached.fetch_add(wanted.range.len(), Ordering::Relaxed);
            METRICS.uncached.inc_by(wanted.range.len());
            self.aside.set(wanted.check, kept.clone());
        }
        if let Some(duty) = duties.remove(wanted.check) {
            duty.land(Ok(kept));
        }
    }

    /// The right to send a request, within the deadline.
    pub(super) async fn permit(&self) -> Result<[SemaphorePermit<'_>; 3], Error> {
        let [of_image, of_all] = &self.all_requests;
        let turns = async {
            let own = self.requests.acquire().await.map_err(|_| Error::Interrupted)?;
            let of_image = of_image.acquire().await.map_err(|_| Error::Interrupted)?;
            Ok([own, of_image, of_all.acquire().await.map_err(|_| Error::Interrupted)?])
        };
        let (mut still, limit) = (Still::new(self.progress()), self.io_deadline);
        still.wait(|| self.progress(), limit, turns).await.unwrap_or_else(|| Err(self.stuck(limit)))
    }

    pub(super) fn registry_error(&self, source: registry::Error) -> Error {
        Error::Registry { layer: self.digest, source: Arc::new(source) }
    }
}
