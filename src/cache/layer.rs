//! One layer file and which of its checks are there, shared by processes that store and evict at any time.
//!
//! A check is written only after it was found right, data before presence; what another process left is verified once before it is used.
//! What was verified counts for one generation of the check's group (presence.rs), and the generation is looked at again after every read:
//!
//! ```text
//! store    room taken . lock { generation, if there is none; last use; data; presence }
//! evict                 lock { generation; presence; hole; no last use }
//! read     generation: verified at it? . data . generation again: still the same? then these are the verified bytes
//! ```

use std::fmt;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::io::{ReadWriteFlags, preadv2};
use sha2::{Digest as _, Sha256};

use super::groups::Groups;
use super::lock::{self, Kind};
use super::presence::{self, Present};
use super::space::PAGE;
use super::space::PATIENCE_WITH_STOPPED;
use super::store::Store;
use super::stored;
use super::sums::Sums;
use super::verified::{Found, Verified};
use crate::blob::{ByteRange, Digest};

/// How long the lock of a layer is waited for. Who stores or evicts has it for the time of a write; one that is stopped has it for ever.
const PATIENCE: Duration = Duration::from_millis(100);

/// A check whose group changes each time it is verified is taken for missing.
const TRIES: u32 = 3;

/// Bytes read at once to verify.
const PART: u64 = 256 << 10;

/// What is known of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Verified by this process, and there the moment before.
    Ready,
    /// Left by some process; to be verified first.
    Unverified,
    Missing,
}

/// How long a read of local disk may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// Not at all: what is not in memory is not had. (Reading it from disk begins.)
    InMemory,
    /// As long as the disk needs.
    MayWait,
}

/// What was there of a layer file is there still for as long as this stays the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Epoch {
    /// Another number after each eviction, whoever evicts.
    pub(crate) evictions: u64,
    /// How often this process has found something damaged.
    pub(crate) forgotten: u64,
}

/// The decoded contents of one layer on local disk, as far as they were read.
pub struct LayerFile {
    contents: Contents,
    groups: Groups,
    verified: Verified,
    forgotten: AtomicU64,
    /// Set by the first failed write, so that it is told once.
    failing: AtomicBool,
}

enum Contents {
    Nowhere,
    /// Without a name: nobody else sees it, and it ends with the process.
    Private {
        data: File,
        store: Arc<Store>,
        /// Bytes of room that it has.
        taken: AtomicU64,
    },
    Shared(Shared),
}

struct Shared {
    data: File,
    present: Present,
    /// Digests of what is stored, where the index has none.
    sums: Option<Sums>,
    store: Arc<Store>,
    /// OFD locks do not exclude threads.
    change: Mutex<()>,
    /// Another process had the lock for long the last time, so that it is hardly waited for.
    is_held_up: AtomicBool,
    /// The last use of each group, as this process has told it.
    last_uses: Vec<AtomicU64>,
}

/// The generation of all groups that nobody else can evict.
const ONLY: u64 = 1;

impl LayerFile {
    pub(super) fn shared(store: Arc<Store>, layer: &Path, groups: Groups, has_sums: bool) -> io::Result<Self> {
        let (dir, path, present) = (&store.dir, layer.join("data"), layer.join("present"));
        // What is there can be read also where nothing can be written.
        let open = |path: &Path| dir.open_or_create(path).or_else(|error| dir.open(path).map_err(|_| error));
        let mut data = stored::open_in_use(|| open(&path))?;
        // Its presence was taken away. Whoever has both open sees no generation but of the old one, so what it reads from must not be
        // evicted from by those who have a new one.
        if stored::has_data(&data, 0, groups.len()) && dir.lacks(&present) {
            if presence::is_linked(&data) {
                dir.remove(&path)?;
            }
            data = stored::open_in_use(|| open(&path))?;
        }
        let is_new = data.metadata()?.len() < groups.len() || dir.open(&present).is_err();
        // With the names of the two and of their directories.
        let sums = if has_sums { Sums::len(&groups).next_multiple_of(PAGE) + PAGE } else { 0 };
        let needed = presence::len(&groups).next_multiple_of(PAGE) + 4 * PAGE + sums;
        if is_new && needed > store.limits.limit {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // Without it as well: that there is none now must not keep the layer out of the cache for as long as it is mounted.
        let room = if is_new { store.room(needed) } else { None };
        grow(&data, groups.len())?;
        let present = Present::open(open(&present)?, groups.clone(), PATIENCE)?;
        stored::tell_of_untold(&data, &present);
        let sums = has_sums.then(|| open(&layer.join(Sums::NAME)).map(Sums)).transpose()?;
        drop(room);
        let last_uses = (0..groups.count()).map(|_| AtomicU64::new(0)).collect();
        let (change, is_held_up) = (Mutex::default(), AtomicBool::new(false));
        Ok(Self::new(Contents::Shared(Shared { data, present, sums, store, change, is_held_up, last_uses }), groups))
    }

    pub(super) fn private(store: Arc<Store>, groups: Groups) -> io::Result<Self> {
        let data = store.dir.unnamed()?;
        grow(&data, groups.len())?;
        Ok(Self::new(Contents::Private { data, store, taken: AtomicU64::new(0) }, groups))
    }

    /// Keeps nothing.
    pub(super) fn nowhere(groups: Groups) -> Self {
        Self::new(Contents::Nowhere, groups)
    }

    fn new(contents: Contents, groups: Groups) -> Self {
        let verified = Verified::new(&groups);
        Self { contents, groups, verified, forgotten: AtomicU64::new(0), failing: AtomicBool::new(false) }
    }

    fn data(&self) -> Option<&File> {
        match &self.contents {
            Contents::Nowhere => None,
            Contents::Private { data, .. } | Contents::Shared(Shared { data, .. }) => Some(data),
        }
    }

    /// 0: nothing is there.
    fn generation(&self, group: usize) -> u64 {
        match &self.contents {
            Contents::Nowhere => 0,
            Contents::Private { .. } => ONLY,
            Contents::Shared(shared) => shared.present.generation(group),
        }
    }

    /// What is known of a check now; another process may evict it the next moment.
    #[must_use]
    pub fn state(&self, check: u32) -> State {
        let group = self.groups.of_check(check);
        self.state_at(group, self.generation(group), check)
    }

    /// By one look, whether anything has gone since. For guesses: who reads looks at the generation of what it reads.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        let evictions = match &self.contents {
            Contents::Nowhere | Contents::Private { .. } => 0,
            Contents::Shared(shared) => shared.present.evictions(),
        };
        Epoch { evictions, forgotten: self.forgotten.load(Ordering::SeqCst) }
    }

    /// The first of some checks that is [`State::Missing`], by one or two looks for each group.
    #[must_use]
    pub fn first_missing(&self, mut checks: Range<u32>) -> Option<u32> {
        while !checks.is_empty() {
            let group = self.groups.of_check(checks.start);
            let end = self.groups.checks_of(group).end.clamp(checks.start.saturating_add(1), checks.end);
            let missing = self.first_missing_in(group, checks.start..end);
            if missing.is_some() {
                return missing;
            }
            checks.start = end;
        }
        None
    }

    /// The same of checks of one group.
    fn first_missing_in(&self, group: usize, mut checks: Range<u32>) -> Option<u32> {
        let generation = self.generation(group);
        while let Some(unknown) =
            checks.clone().find(|check| self.verified.found(group, generation, *check) != Some(Found::Right))
        {
            let known = |check: &u32| self.verified.found(group, generation, *check).is_some();
            let end = (unknown + 1..checks.end).find(known).unwrap_or(checks.end);
            match &self.contents {
                Contents::Shared(shared) if generation != 0 && !known(&unknown) => {
                    let absent = shared.present.first_absent(unknown..end);
                    if absent.is_some() {
                        return absent;
                    }
                }
                _ => return Some(unknown),
            }
            checks.start = end;
        }
        None
    }

    /// Everything is there and was found right, for tests of what is then looked at.
    #[cfg(test)]
    pub(crate) fn fill(&self) {
        let Contents::Shared(shared) = &self.contents else { return };
        shared.present.set_first(self.groups.checks(), 1).unwrap();
        for check in 0..self.groups.checks() {
            let group = self.groups.of_check(check);
            self.verified.note(&self.groups, group, self.generation(group), check, Found::Right);
        }
    }

    /// A group is evicted, as another process would do it.
    #[cfg(test)]
    pub(crate) fn evict(&self, check: u32) {
        let (group, Contents::Shared(shared)) = (self.groups.of_check(check), &self.contents) else { return };
        shared.present.end_generation(group).and_then(|()| shared.present.clear(group)).unwrap();
    }

    fn state_at(&self, group: usize, generation: u64, check: u32) -> State {
        match (self.verified.found(group, generation, check), &self.contents) {
            (Some(Found::Right), _) => State::Ready,
            (None, Contents::Shared(shared)) if generation != 0 && shared.present.is_there(check) => State::Unverified,
            _ => State::Missing,
        }
    }

    /// Reads a part of a check, if it is [`State::Ready`]; what else it gives is what is to be done first. It is left to the caller to
    /// [`touch`](LayerFile::touch) the check.
    ///
    /// Where the disk fails, or the check was evicted meanwhile, it is missing.
    pub fn read(&self, check: u32, part: ByteRange, buffer: &mut [u8]) -> State {
        let group = self.groups.of_check(check);
        let generation = self.generation(group);
        let state = self.state_at(group, generation, check);
        let Some(data) = self.data().filter(|_| state == State::Ready) else { return state };
        let read = data.read_exact_at(buffer, part.start);
        if self.generation(group) != generation {
            return State::Missing;
        }
        if read.is_err() {
            self.forget(group, generation, check);
            return State::Missing;
        }
        State::Ready
    }

    /// Fills `buffer` from `start` on with a part of a check that is [`State::Ready`], where that takes no longer than `disk` allows. Says whether
    /// it did; [`LayerFile::read`] finds out why not. It is left to the caller to [`touch`](LayerFile::touch) the check.
    pub fn read_within(&self, check: u32, start: u64, buffer: &mut [u8], disk: Disk) -> bool {
        let group = self.groups.of_check(check);
        let generation = self.generation(group);
        let is_ready = self.state_at(group, generation, check) == State::Ready;
        let Some(data) = self.data().filter(|_| is_ready) else { return false };
        let flags = match disk {
            Disk::InMemory => ReadWriteFlags::NOWAIT,
            Disk::MayWait => ReadWriteFlags::empty(),
        };
        let len = buffer.len();
        let is_whole = preadv2(data, &mut [IoSliceMut::new(buffer)], start, flags) == Ok(len);
        is_whole && self.generation(group) == generation
    }

    /// Verifies a check that is [`State::Unverified`]. One whose bytes are wrong, or cannot be read, is missing from now on.
    ///
    /// `digest`: of its bytes; `None` where the index has none, and that was kept which they had when they were stored.
    pub fn verify(&self, check: u32, range: ByteRange, digest: Option<Digest>) -> State {
        let group = self.groups.of_check(check);
        for _ in 0..TRIES {
            let generation = self.generation(group);
            let state = self.state_at(group, generation, check);
            let Some(data) = self.data().filter(|_| state == State::Unverified) else { return state };
            let found = hash(data, range);
            if self.generation(group) != generation {
                continue;
            }
            let digest = digest.or_else(|| self.sum(check));
            if found.is_ok_and(|found| Some(found) == digest) {
                self.verified.note(&self.groups, group, generation, check, Found::Right);
                return State::Ready;
            }
            tracing::warn!(contents = %range, "cached contents are damaged; they are fetched again");
            self.forget(group, generation, check);
            return State::Missing;
        }
        State::Missing
    }

    /// The digest that was kept of a check.
    fn sum(&self, check: u32) -> Option<Digest> {
        let Contents::Shared(shared) = &self.contents else { return None };
        shared.sums.as_ref()?.get(check)
    }

    /// The check's bytes on disk are wrong or cannot be read.
    fn forget(&self, group: usize, generation: u64, check: u32) {
        self.verified.note(&self.groups, group, generation, check, Found::Wrong);
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        if let Contents::Shared(shared) = &self.contents {
            // Another process may have stored it anew this moment: then it is stored once more.
            let _ = shared.present.set(check, false);
        }
    }

    /// Keeps the bytes of a check that was found right. `write` puts them into the layer file. `sum`: their digest, where the index has none.
    ///
    /// Returns whether they are kept: not where there is no room, or another process holds things up. Failures are logged here, once.
    pub fn publish(
        &self,
        check: u32,
        range: ByteRange,
        sum: Option<Digest>,
        write: impl FnOnce(&File) -> io::Result<()>,
    ) -> bool {
        let room = range.end.next_multiple_of(PAGE) - range.start / PAGE * PAGE;
        let group = self.groups.of_check(check);
        let kept = match &self.contents {
            Contents::Nowhere => Ok(None),
            Contents::Private { data, store, taken } => keep_private(data, store, taken, room, write),
            // Before the lock: making room takes the locks of layers.
            Contents::Shared(shared) => match shared.store.room(room) {
                Some(_room) => shared.keep(group, check, |data| {
                    sum.zip(shared.sums.as_ref()).map_or(Ok(()), |(sum, sums)| sums.set(check, &sum))?;
                    write(data)
                }),
                None => {
                    self.warn_once(&"the cache has no room, and nothing that could be evicted (see crfs cache show)");
                    Ok(None)
                }
            },
        };
        match kept {
            Ok(Some(generation)) => {
                self.verified.note(&self.groups, group, generation, check, Found::Right);
                true
            }
            Ok(None) => false,
            Err(error) => {
                self.warn_once(&error);
                false
            }
        }
    }

    /// One cause fails many.
    fn warn_once(&self, error: &dyn fmt::Display) {
        if !self.failing.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "the cache cannot be written; contents are served without it");
        }
    }

    /// Lets nothing of it be evicted, by any process, for as long as it is open: it could not be fetched again in parts.
    pub fn pin(&self) {
        let Contents::Shared(shared) = &self.contents else { return };
        let _change = shared.change.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever evicts looks for it under this lock.
        let _held = shared.present.lock(PATIENCE);
        if let Err(error) = lock::try_keep(&shared.data, Kind::Shared, stored::PINNED) {
            tracing::warn!(%error, "contents that are used may be evicted");
        }
    }

    /// Whether any check is missing that has bytes of its own; `is_hole`: those that have none.
    #[must_use]
    pub fn lacks_any(&self, mut is_hole: impl FnMut(u32) -> bool) -> bool {
        (0..self.groups.checks()).any(|check| self.state(check) == State::Missing && !is_hole(check))
    }

    /// Whether it is news that a check is in use: then somebody is to [`touch`](LayerFile::touch) it.
    #[must_use]
    pub fn is_use_news(&self, check: u32) -> bool {
        self.news(self.groups.of_check(check)).is_some()
    }

    /// Tells other processes that a check is in use, where that is news. A write, which may wait for the disk: for a thread that nobody waits for.
    pub fn touch(&self, check: u32) {
        let group = self.groups.of_check(check);
        if let Some((shared, now)) = self.news(group) {
            shared.tell_use(group, now);
        }
    }

    /// The time to be told of, where it is news that a group is in use. One that is empty is not: it has no last use.
    fn news(&self, group: usize) -> Option<(&Shared, u64)> {
        let Contents::Shared(shared) = &self.contents else { return None };
        let told = shared.last_uses.get(group)?.load(Ordering::Relaxed);
        let now = shared.store.clock();
        let is_news = now.saturating_sub(told) >= shared.store.stamp_step() && self.generation(group) != 0;
        is_news.then_some((shared, now))
    }
}

impl Drop for LayerFile {
    fn drop(&mut self) {
        if let Contents::Private { store, taken, .. } = &self.contents {
            store.give_back(taken.load(Ordering::Relaxed));
        }
    }
}

impl Shared {
    /// Gives the generation that the check is kept at; `None`: another process holds it up.
    fn keep(&self, group: usize, check: u32, write: impl FnOnce(&File) -> io::Result<()>) -> io::Result<Option<u64>> {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let patience = if self.is_held_up.load(Ordering::Relaxed) { PATIENCE_WITH_STOPPED } else { PATIENCE };
        let held = self.present.lock(patience);
        self.is_held_up.store(held.is_none(), Ordering::Relaxed);
        if held.is_none() {
            return Ok(None);
        }
        let generation = match self.present.generation(group) {
            0 => self.present.next_generation(group)?,
            generation => generation,
        };
        // Before the data, so that whatever takes room is found by who evicts.
        self.tell_use(group, self.store.clock());
        write(&self.data)?;
        self.present.set(check, true)?;
        Ok(Some(generation))
    }

    fn tell_use(&self, group: usize, now: u64) {
        if let Some(told) = self.last_uses.get(group) {
            let _ = self.present.set_last_use(group, now);
            told.store(now, Ordering::Relaxed);
        }
    }
}

fn keep_private(
    data: &File,
    store: &Store,
    taken: &AtomicU64,
    room: u64,
    write: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<Option<u64>> {
    if !store.take_unnamed(room) {
        return Ok(None);
    }
    taken.fetch_add(room, Ordering::Relaxed);
    write(data).map(|()| Some(ONLY))
}

pub(super) fn hash(data: &File, range: ByteRange) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut part = vec![0; usize::try_from(range.len().min(PART)).map_err(io::Error::other)?];
    let mut at = range.start;
    while at < range.end {
        let len = usize::try_from((range.end - at).min(PART)).map_err(io::Error::other)?;
        let buffer = part.get_mut(..len).ok_or(io::ErrorKind::InvalidInput)?;
        data.read_exact_at(buffer, at)?;
        hash.update(&*buffer);
        at += len as u64;
    }
    Ok(Digest::from_bytes(hash.finalize().into()))
}

/// Sets the length of a sparse file that is shorter; never shortens what another process has open.
fn grow(file: &File, len: u64) -> io::Result<()> {
    if file.metadata()?.len() < len { file.set_len(len) } else { Ok(()) }
}
