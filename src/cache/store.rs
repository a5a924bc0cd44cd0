//! A cache directory that is open: its files, and the room that they may take.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::dir::Dir;
use super::evict;
use super::space::{Limits, PAGE, Refused, Room, Space, Taken};

/// The file that tells how much room is taken.
pub(super) const SPACE: &str = "space";

/// A name costs at most so much besides what is behind it: a directory's block.
const NAME: u64 = PAGE;

/// After an eviction that did not help, or could not be had, none is tried for this time, and for twice as long after each more in a row: looking
/// through the cache, or waiting, for each check that is fetched would cost more than fetching it again.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Evictions for one that needs room: what the first has freed, others may have taken.
const EVICTIONS: u32 = 4;

/// An eviction makes so much more room than is needed, so that there is one for many checks.
const SLACK: u64 = 16;
const MAX_SLACK: u64 = 256 << 20;

pub(super) struct Store {
    pub(super) dir: Dir,
    pub(super) limits: Limits,
    /// `None` where nothing can be written: what is there can be read all the same.
    space: Option<Space>,
    /// Held by who evicts: the other threads wait for what it brings.
    pause: Mutex<Pause>,
}

/// A time in which there is no use in evicting.
#[derive(Default)]
struct Pause {
    until: Option<Instant>,
    /// How long the last one was, where nothing has helped since.
    length: Duration,
}

impl Pause {
    fn is_now(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() < until)
    }

    fn begin(&mut self) {
        self.length = self.length.saturating_mul(2).clamp(PAUSE, LONGEST_PAUSE);
        self.until = Some(Instant::now() + self.length);
    }
}

impl Store {
    /// Opens the directory and counts what is in it.
    pub(super) fn open(dir: Dir, limits: Limits) -> Self {
        let space = dir.open_or_create(Path::new(SPACE)).and_then(|file| Space::open(file, limits));
        let space = space.map_err(|error| {
            tracing::warn!(path = %dir.path().display(), %error, "the cache cannot be written; what is in it is used");
        });
        let store = Self { dir, limits, space: space.ok(), pause: Mutex::default() };
        store.recount();
        store
    }

    /// Counts what is there.
    pub(super) fn recount(&self) {
        let Some(space) = &self.space else { return };
        self.dir.sweep(Path::new(""));
        // With the blocks of the two directories above.
        space.recount(|| self.dir.allocated(Path::new("")) + 2 * NAME);
    }

    pub(super) fn taken(&self) -> Option<Taken> {
        self.space.as_ref()?.taken()
    }

    /// Room for something that gets a name, made by evicting what was not used for the longest time where there is none.
    pub(super) fn room(&self, bytes: u64) -> Option<Room<'_>> {
        self.take(bytes, |space| space.room(bytes))
    }

    /// The same for something that has no name; `false`: there is none.
    pub(super) fn take_unnamed(&self, bytes: u64) -> bool {
        self.take(bytes, |space| space.unnamed(bytes)).is_some()
    }

    pub(super) fn give_back(&self, bytes: u64) {
        if let Some(space) = &self.space {
            space.give_back(bytes);
        }
    }

    /// Something that had a name is gone.
    pub(super) fn freed(&self, bytes: u64) {
        if let Some(space) = &self.space {
            space.freed(bytes);
        }
    }

    /// What was taken for something without a name has one now.
    pub(super) fn name(&self, bytes: u64) {
        if let Some(space) = &self.space {
            space.name(bytes);
        }
    }

    fn take<'a, T>(&'a self, bytes: u64, take: impl Fn(&'a Space) -> Result<T, Refused>) -> Option<T> {
        let space = self.space.as_ref()?;
        match take(space) {
            Ok(taken) => Some(taken),
            Err(Refused::Full(_)) if bytes <= self.limits.limit => self.make_room(space, take),
            Err(_) => None,
        }
    }

    fn make_room<'a, T>(&self, space: &'a Space, take: impl Fn(&'a Space) -> Result<T, Refused>) -> Option<T> {
        let mut pause = self.pause.lock().unwrap_or_else(PoisonError::into_inner);
        if pause.is_now() {
            return take(space).ok();
        }
        let turn = space.evictor();
        // Another may have made room meanwhile, or what was counted may be gone.
        let mut taken = take(space);
        if turn.is_some() && taken.is_err() {
            self.recount();
            taken = take(space);
        }
        if turn.is_some() {
            taken = self.evict_for(space, taken, take);
        }
        match taken {
            Ok(_) => *pause = Pause::default(),
            Err(_) => pause.begin(),
        }
        taken.ok()
    }

    /// Evicts until what was refused can be taken, or nothing more goes.
    fn evict_for<'a, T>(
        &self,
        space: &'a Space,
        mut taken: Result<T, Refused>,
        take: impl Fn(&'a Space) -> Result<T, Refused>,
    ) -> Result<T, Refused> {
        let slack = (self.limits.limit / SLACK).min(MAX_SLACK);
        for _ in 0..EVICTIONS {
            let Err(Refused::Full(short)) = taken else { break };
            let freed = evict::free(&self.dir, short, slack, |newest| space.not_before(newest));
            space.freed(freed);
            taken = take(space);
            if freed == 0 {
                break;
            }
        }
        taken
    }

    /// Writes a small file whole, if there is room.
    pub(super) fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let _room = self.room((bytes.len() as u64).next_multiple_of(PAGE) + NAME).ok_or(io::ErrorKind::StorageFull)?;
        self.dir.write(path, bytes)
    }

    /// The logical time of last uses.
    pub(super) fn clock(&self) -> u64 {
        self.space.as_ref().map_or(0, Space::clock)
    }

    /// How much later a use must be than the last one that was told.
    pub(super) fn stamp_step(&self) -> u64 {
        self.space.as_ref().map_or(u64::MAX, Space::stamp_step)
    }
}

/// Limits of the filesystem that a directory is on.
pub(super) fn limits(dir: &Dir, size: Option<u64>) -> Limits {
    let limits = dir.file().and_then(|file: File| Limits::of(&file, size));
    limits.unwrap_or(Limits { limit: size.unwrap_or(0), floor: 0 })
}
