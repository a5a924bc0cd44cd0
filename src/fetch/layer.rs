//! The contents of one layer, fetched and verified when first read.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use moka::sync::Cache as Memory;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, Semaphore, SemaphorePermit};

use super::assemble::{Kept, Wanted};
use super::flight::{Duty, Flights, Waiter};
use super::job::Job;
use super::plan::{self, Run, Streams};
use super::prefetch::{Gate, Waiting};
use super::{Error, Source};
use crate::blob::{ByteRange, ByteSource, Digest};
use crate::cache::{Cache, LayerFile, State};
use crate::index::{Check, CheckKind, Damaged, StoredIndex};
use crate::registry;

/// Requests of one layer at a time. Counted for each layer, so that one that is stuck does not hold up the others.
const REQUESTS: usize = 8;

/// Requests of all layers at a time. Each has a blocking thread while its body comes in, of the 512 that tokio has by default; what is
/// cached is read on the same threads and must not wait for them.
const ALL_REQUESTS: usize = 128;

/// How long a failure to get anything within the deadline answers for the same check at once: when the READ that reads ahead has failed,
/// the kernel sends another for the page itself, which would wait a second deadline.
const REPEAT: Duration = Duration::from_millis(50);

/// Bytes that a layer keeps in memory while the cache would not have them.
pub(super) const MEMORY: u64 = 32 << 20;

/// Failed reads of a layer are logged this often at most.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// A read looks again this often when what it waited for was gone before it could be copied.
const ROUNDS: usize = 4;

/// Checks found on disk are verified one by one in each of this many groups, so that a check is not verified by all of its readers.
const VERIFIERS: usize = 16;

/// What all layers of a mount have in common.
#[derive(Clone)]
pub struct Engine {
    cache: Cache,
    gate: Arc<Gate>,
    requests: Arc<Semaphore>,
    /// Longest time without progress that a read waits.
    io_deadline: Duration,
}

/// Makes a layer's encoded index again, where the cached one is damaged while it is in use. Blocking.
pub type Reindex = Arc<dyn Fn() -> Option<Arc<dyn ByteSource>> + Send + Sync>;

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
}

#[derive(Default)]
struct Counters {
    served: AtomicU64,
    cached: AtomicU64,
    errors: AtomicU64,
    last_error: Mutex<Option<String>>,
    warned: Mutex<Option<Instant>>,
}

/// The contents of one layer.
pub struct Layer {
    digest: Digest,
    pub(super) index: StoredIndex,
    pub(super) source: Source,
    pub(super) cache: Cache,
    pub(super) file: LayerFile,
    flights: Arc<Flights>,
    /// Verified bytes that the cache would not have.
    memory: Memory<u32, Kept>,
    /// Checks for which nothing came within the deadline, for the length of [`REPEAT`].
    failed: Memory<u32, Error>,
    streams: Mutex<Streams>,
    requests: Semaphore,
    all_requests: Arc<Semaphore>,
    verifiers: [Arc<AsyncMutex<()>>; VERIFIERS],
    reindex: AsyncMutex<Repair>,
    pub(super) gate: Arc<Gate>,
    io_deadline: Duration,
    counters: Counters,
}

/// Verified bytes that a reader holds itself, by check, so that nothing can take them away while it waits for others.
type Held = HashMap<u32, Kept>;

/// What a look at the layer file gave.
enum Look {
    Bytes(Bytes),
    /// Somebody is verifying a check of this group.
    Verifying(usize),
    Wait {
        waiters: Vec<Waiter>,
        jobs: Vec<Job>,
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
    pub fn new(cache: Cache, io_deadline: Duration) -> Self {
        Self { cache, gate: Arc::default(), requests: Arc::new(Semaphore::new(ALL_REQUESTS)), io_deadline }
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
        Arc::new(Layer {
            digest,
            index,
            source,
            cache: self.cache.clone(),
            file,
            flights: Arc::default(),
            memory: Memory::builder().max_capacity(MEMORY).weigher(|_, kept: &Kept| kept.weight()).build(),
            failed: Memory::builder().max_capacity(4096).time_to_live(REPEAT).build(),
            streams: Mutex::default(),
            requests: Semaphore::new(REQUESTS),
            all_requests: Arc::clone(&self.requests),
            verifiers: std::array::from_fn(|_| Arc::default()),
            reindex: AsyncMutex::new(Repair { reindex, done: false, failed: None }),
            gate: Arc::clone(&self.gate),
            io_deadline: self.io_deadline,
            counters: Counters::default(),
        })
    }
}

impl Layer {
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    #[must_use]
    pub fn index(&self) -> &StoredIndex {
        &self.index
    }

    /// The bytes of a range of the layer file, every one verified.
    ///
    /// # Errors
    /// Where they cannot be had within the deadline, or are wrong. Nothing is remembered: the next read tries again.
    pub async fn read(self: &Arc<Self>, range: ByteRange) -> Result<Bytes, Error> {
        let read = self.read_or_fetch(range).await;
        match &read {
            Ok(bytes) => self.counters.served.fetch_add(bytes.len() as u64, Ordering::Relaxed),
            Err(error) => {
                self.warn(error);
                *self.counters.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
                self.counters.errors.fetch_add(1, Ordering::Relaxed)
            }
        };
        read
    }

    /// Not more often than [`WARN_EVERY`]: one cause fails many reads.
    fn warn(&self, error: &Error) {
        let mut last = self.counters.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= WARN_EVERY) {
            tracing::warn!(layer = %self.digest, %error, "a read failed");
            *last = Some(Instant::now());
        }
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
        }
    }

    /// The last error that a reader was given.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.counters.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn read_or_fetch(self: &Arc<Self>, range: ByteRange) -> Result<Bytes, Error> {
        let mut held = Held::new();
        let mut rounds = 0;
        let mut verifier = None;
        while rounds < ROUNDS {
            let layer = Arc::clone(self);
            let right = verifier.take();
            let looked = tokio::task::spawn_blocking(move || (layer.look(range, &held, right.as_ref()), held)).await;
            let (look, looked_held) = looked.map_err(|_| Error::Interrupted)?;
            held = looked_held;
            let waited = match look {
                Ok(Look::Bytes(bytes)) => {
                    if rounds == 0 {
                        self.counters.cached.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    }
                    return Ok(bytes);
                }
                Ok(Look::Verifying(group)) => {
                    // Whoever has waited for the right uses it: each hop verifies something.
                    verifier = self.verifier(group).await;
                    continue;
                }
                Ok(Look::Wait { waiters, jobs, waiting }) => {
                    let waited = self.wait(waiters, jobs, &mut held).await;
                    drop(waiting);
                    waited
                }
                Err(error) => Err(error),
            };
            match waited {
                Ok(()) => {}
                // Whoever was to bring it was stopped by something else; nobody has tried yet.
                Err(Error::Interrupted) => {}
                Err(Error::Index(damaged)) if rounds == 0 => self.reindex(damaged).await?,
                Err(error) => return Err(error),
            }
            rounds += 1;
        }
        Err(Error::Interrupted)
    }

    async fn verifier(&self, group: usize) -> Option<Verifier> {
        let lock = Arc::clone(self.verifiers.get(group)?).lock_owned().await;
        Some(Verifier { group, _lock: lock })
    }

    /// Waits for what others bring, no longer than the deadline allows: time in which this layer's bytes keep coming does not count.
    async fn wait(&self, waiters: Vec<Waiter>, jobs: Vec<Job>, held: &mut Held) -> Result<(), Error> {
        for job in jobs {
            tokio::spawn(job.run());
        }
        let limit = self.reader_deadline();
        let checks: Vec<u32> = waiters.iter().map(|waiter| waiter.check).collect();
        for waiter in waiters {
            let check = waiter.check;
            let outcome = self.moving(limit, waiter.wait()).await.unwrap_or_else(|| Err(self.stuck(limit)));
            if let Err(error) = outcome.as_ref().map_err(Clone::clone).map(|_| ()) {
                if error.is_deadline() {
                    // The kernel may ask for any page of the read again.
                    let rest = checks.iter().filter(|check| !held.contains_key(check));
                    rest.for_each(|check| self.failed.insert(*check, error.clone()));
                }
            }
            held.insert(check, outcome?);
        }
        Ok(())
    }

    /// A little longer than a request has, whose error says more.
    fn reader_deadline(&self) -> Duration {
        self.io_deadline + self.io_deadline / 16
    }

    /// What `future` gives; `None` where it does not within `limit` in which nothing moves.
    async fn moving<T>(&self, limit: Duration, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        loop {
            let before = self.source.traffic().bytes;
            if let Ok(output) = tokio::time::timeout(limit, &mut future).await {
                return Some(output);
            }
            if self.source.traffic().bytes == before {
                return None;
            }
        }
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
        let made = tokio::task::spawn_blocking(move || reindex().is_some_and(|source| layer.index.replace(source)));
        repair.done = made.await.unwrap_or(false);
        repair.failed = (!repair.done).then(Instant::now);
        if repair.done { Ok(()) } else { Err(failed) }
    }

    /// The bytes, where all of them are there (or `held` by the reader itself), else who will bring what is missing.
    fn look(self: &Arc<Self>, range: ByteRange, held: &Held, right: Option<&Verifier>) -> Result<Look, Error> {
        let mut bytes = BytesMut::zeroed(usize::try_from(range.len()).unwrap_or(usize::MAX));
        let mut missing = Vec::new();
        let mut covered = range.start;
        for number in self.index.checks_over(range)? {
            let check = self.index.check(number)?;
            let part = check.range.intersection(&range);
            let start = usize::try_from(part.start.saturating_sub(range.start)).unwrap_or(usize::MAX);
            let len = usize::try_from(part.len()).unwrap_or(usize::MAX);
            let buffer = bytes.get_mut(start..).and_then(|rest| rest.get_mut(..len));
            let Some(buffer) = buffer.filter(|_| part.start == covered) else { break };
            match self.copy(number, &check, part, (held.get(&number), right), buffer) {
                Verdict::There => {}
                Verdict::Missing => missing.push(number),
                Verdict::Busy(group) => return Ok(Look::Verifying(group)),
            }
            covered = part.end;
        }
        if covered != range.end {
            return Err(Error::NotInIndex { layer: self.digest, range });
        }
        if missing.is_empty() { Ok(Look::Bytes(bytes.freeze())) } else { self.wait_for(&missing) }
    }

    /// Copies a part of a check that is there.
    fn copy(
        &self,
        number: u32,
        check: &Check,
        part: ByteRange,
        (held, right): (Option<&Kept>, Option<&Verifier>),
        buffer: &mut [u8],
    ) -> Verdict {
        let CheckKind::Digest(digest) = check.kind else { return Verdict::There };
        let offset = part.start - check.range.start;
        let in_memory =
            held.cloned().filter(|kept| !matches!(kept, Kept::LayerFile)).or_else(|| self.memory.get(&number));
        if let Some(read) = in_memory.and_then(|kept| kept.read(offset, buffer)) {
            return if read.is_ok() { Verdict::There } else { Verdict::Missing };
        }
        match self.verdict(Wanted { check: number, range: check.range, digest }, right) {
            Verdict::There if self.file.read(part, buffer).is_err() => {
                self.file.forget(number);
                Verdict::Missing
            }
            verdict => verdict,
        }
    }

    /// Whether a check is there; what an earlier process left is verified first, and forgotten where it is wrong.
    fn verdict(&self, wanted: Wanted, right: Option<&Verifier>) -> Verdict {
        let known = |state| match state {
            State::Ready => Some(Verdict::There),
            State::Missing => Some(Verdict::Missing),
            State::Unverified => None,
        };
        if let Some(verdict) = known(self.file.state(wanted.check)) {
            return verdict;
        }
        let group = wanted.check as usize % VERIFIERS;
        let lock = match right.filter(|right| right.group == group) {
            Some(_) => None,
            None => match self.verifiers.get(group).map(|lock| lock.try_lock()) {
                Some(Ok(lock)) => Some(lock),
                _ => return Verdict::Busy(group),
            },
        };
        // It may have been verified between the look and the lock.
        if let Some(verdict) = known(self.file.state(wanted.check)) {
            return verdict;
        }
        if self.hash(wanted.range).is_some_and(|digest| digest == wanted.digest) {
            self.file.set_verified(wanted.check);
            drop(lock);
            return Verdict::There;
        }
        tracing::warn!(layer = %self.digest, contents = %wanted.range, "cached contents are damaged; they are fetched again");
        self.file.forget(wanted.check);
        Verdict::Missing
    }

    fn hash(&self, range: ByteRange) -> Option<Digest> {
        let mut hash = Sha256::new();
        let mut part = vec![0; 256 << 10];
        let mut at = range.start;
        while at < range.end {
            let len = usize::try_from(range.end - at).unwrap_or(part.len()).min(part.len());
            let buffer = part.get_mut(..len)?;
            self.file.read(ByteRange::at(at, len as u64)?, buffer).ok()?;
            hash.update(&*buffer);
            at += len as u64;
        }
        Some(Digest::from_bytes(hash.finalize().into()))
    }

    /// Joins the flights that bring `missing` (ascending) and plans requests for what nobody brings yet.
    fn wait_for(self: &Arc<Self>, missing: &[u32]) -> Result<Look, Error> {
        let waiting = self.gate.reader();
        // One reader plans at a time: what it finds brought by nobody it then takes, so that no two requests have a unit in common.
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut waiters, mut nobody) = (Vec::new(), Vec::new());
        for &check in missing {
            if let Some(error) = self.failed.get(&check) {
                return Err(error);
            }
            match self.flights.join(check) {
                Some(waiter) => waiters.push(waiter),
                // It may have come since it was looked for; then there is nobody to wait for either.
                None if self.is_missing(check) => nobody.push(check),
                None => {}
            }
        }
        let mut jobs = Vec::new();
        if let Some(&first) = nobody.first() {
            let runs = plan::runs(&self.index, &nobody, streams.ahead(first), |check| self.is_missing(check))?;
            let bytes = runs.iter().map(|run| run.compressed.len()).sum();
            let mut next = first;
            for run in runs {
                let (job, brought) = self.job(run)?;
                next = brought.last().map_or(next, |waiter| waiter.check + 1);
                waiters.extend(brought.into_iter().filter(|waiter| missing.binary_search(&waiter.check).is_ok()));
                jobs.extend(job);
            }
            streams.advance(first, next, bytes);
        }
        Ok(Look::Wait { waiters, jobs, waiting })
    }

    /// Takes the duty for what of the first run is still missing; also gives back what is to be done after it.
    pub(super) fn take_first(self: &Arc<Self>, runs: Vec<Run>) -> Result<(Option<Job>, Vec<Run>), Error> {
        let _planning = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let mut runs = runs.into_iter();
        let Some(run) = runs.next() else { return Ok((None, Vec::new())) };
        let wanted = plan::checks_in(&self.index, &run)?;
        let missing: Vec<u32> =
            wanted.iter().map(|wanted| wanted.check).filter(|check| self.is_missing(*check)).collect();
        let mut left = plan::runs(&self.index, &missing, 0, |_| false)?.into_iter();
        let job = left.next().map(|run| self.job(run)).transpose()?.and_then(|(job, _)| job);
        Ok((job, left.chain(runs).collect()))
    }

    pub(super) fn is_missing(&self, check: u32) -> bool {
        self.file.state(check) == State::Missing
            && !self.memory.contains_key(&check)
            && self.flights.join(check).is_none()
    }

    /// Takes the duty for every check that a run brings whole, except those that others bring or that came meanwhile.
    fn job(self: &Arc<Self>, run: Run) -> Result<(Option<Job>, Vec<Waiter>), Error> {
        let run = self.or_whole(run)?;
        let wanted = plan::checks_in(&self.index, &run)?;
        let (mut duties, mut waiters) = (Vec::new(), Vec::new());
        for wanted in &wanted {
            match self.flights.take(wanted.check) {
                Ok((duty, waiter)) => {
                    waiters.push(waiter);
                    match (self.file.state(wanted.check), self.memory.get(&wanted.check)) {
                        (State::Ready, _) => duty.land(Ok(Kept::LayerFile)),
                        (_, Some(kept)) => duty.land(Ok(kept)),
                        _ => duties.push(duty),
                    }
                }
                Err(waiter) => waiters.push(waiter),
            }
        }
        let job = if duties.is_empty() { None } else { Some(Job::new(Arc::clone(self), run, wanted, duties)) };
        Ok((job, waiters))
    }

    /// Everything at once where the blob's host sends all of it anyway, so that it does so once and not for each run.
    fn or_whole(&self, run: Run) -> Result<Run, Error> {
        if !self.source.is_sent_whole() {
            return Ok(run);
        }
        Ok(plan::whole(&self.index)?.unwrap_or(run))
    }

    /// A check is there: kept where the next reader looks before the flight is over.
    pub(super) fn land(&self, duty: Duty, wanted: Wanted, kept: Kept) {
        if !matches!(kept, Kept::LayerFile) && u64::from(kept.weight()) <= MEMORY {
            self.memory.insert(wanted.check, kept.clone());
            self.memory.run_pending_tasks();
        }
        duty.land(Ok(kept));
    }

    /// The right to send a request, within the deadline.
    pub(super) async fn permit(&self) -> Result<[SemaphorePermit<'_>; 2], Error> {
        let both = async {
            let own = self.requests.acquire().await.map_err(|_| Error::Interrupted)?;
            Ok([own, self.all_requests.acquire().await.map_err(|_| Error::Interrupted)?])
        };
        self.moving(self.io_deadline, both).await.unwrap_or_else(|| Err(self.stuck(self.io_deadline)))
    }

    pub(super) fn registry_error(&self, source: registry::Error) -> Error {
        Error::Registry { layer: self.digest, source: Arc::new(source) }
    }
}
