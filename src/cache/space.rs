//! How much room the cache takes, agreed on by all who use it: the file `space`.
//!
//! ```text
//! 0     named   bytes of all files that have a name below the directory, as last counted, with what was stored since
//! 8     clock   4 KiB pages that were ever leased: the time by which last uses are told, since it only goes on, and at the pace of
//!               the cache (no wall clock, which jumps)
//! 64    for each process that uses the cache: bytes that it holds beside those, that is leased and not yet stored, or in files without
//!       a name. Its process holds a lock of its first byte; what a dead one held is named from then on, as it may have stored it
//! ```
//!
//! Sealed numbers (sealed.rs), changed under the lock of byte 0, which is held for microseconds. A process leases room in steps, so that
//! most of what it stores does not touch the file. Byte 1 is the right to evict. What a crash leaves wrong is mended by counting: when a
//! cache is opened, and before anything is evicted.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::statvfs::fstatvfs;

use super::lock::{self, Held, Kind};
use super::sealed;

const NAMED: u64 = 0;
const CLOCK: u64 = 8;
const SLOTS: u64 = 64;
const MAX_SLOTS: u64 = 4096;

const TABLE: u64 = 0;
const EVICTOR: u64 = 1;

pub(super) const PAGE: u64 = 4096;

/// Longest waits for others: for the table, which nobody has for long unless it is stopped, and for one who evicts.
const TABLE_PATIENCE: Duration = Duration::from_millis(100);
/// The same after one that was in vain: whoever has it may be stopped, but may as well be one of many who have it for a moment.
pub(super) const PATIENCE_WITH_STOPPED: Duration = Duration::from_millis(2);
const EVICTOR_PATIENCE: Duration = Duration::from_millis(200);

/// What a cache may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Limits {
    /// Bytes for everything below the directory.
    pub limit: u64,
    /// Free bytes that the filesystem must keep.
    pub floor: u64,
}

impl Limits {
    /// `limit`, or else the smaller of 10 GiB and a tenth of the filesystem that holds `dir`. The floor is the larger of 1 GiB and 5 % of it,
    /// but no more than a quarter, so that a small filesystem can hold a cache at all.
    pub(crate) fn of(dir: &File, limit: Option<u64>) -> io::Result<Self> {
        let filesystem = fstatvfs(dir)?;
        let size = filesystem.blocks().saturating_mul(filesystem.fragment_size());
        let limit = limit.unwrap_or((size / 10).min(10 << 30));
        Ok(Self { limit, floor: (size / 20).max(1 << 30).min(size / 4) })
    }
}

/// Bytes that a cache takes, of those that it may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    pub taken: u64,
    pub limit: u64,
}

/// Room for something that is being stored under a name. Dropped when it is, or could not be.
pub(super) struct Room<'a> {
    space: &'a Space,
    bytes: u64,
}

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// So many bytes would have to go first.
    Full(u64),
    /// The table, or the state of the filesystem, cannot be had.
    Busy,
}

pub(super) struct Space {
    file: File,
    limits: Limits,
    /// Bytes leased at once.
    step: u64,
    /// Where this process says what it holds.
    slot: u64,
    own: Mutex<Own>,
    /// Another process had the table for long the last time, so that it is hardly waited for.
    is_held_up: AtomicBool,
    clock: AtomicU64,
    reads: AtomicU64,
}

/// What this process holds. All of it is in its slot since the table was last touched.
#[derive(Default)]
struct Own {
    /// Leased and not used.
    left: u64,
    /// Being stored: whoever counts now may not find it.
    storing: u64,
    /// Stored under a name, and not yet said so.
    stored: u64,
    unnamed: u64,
}

impl Own {
    /// What it holds beside what has been said to be stored.
    fn held(&self) -> u64 {
        self.left.saturating_add(self.storing).saturating_add(self.unnamed)
    }
}

/// What of the file cannot have been written by crfs. A slot is nobody's concern: the next who takes it mends it.
pub(super) fn damage(file: &File) -> Option<String> {
    let is_damaged = |at: u64| sealed::open(sealed::raw(file, at)).is_none();
    // Twice: a process may be writing it.
    let at = [NAMED, CLOCK].into_iter().find(|at| is_damaged(*at) && is_damaged(*at))?;
    Some(format!("the number at {at} is damaged"))
}

/// The table, locked.
struct Table<'a> {
    space: &'a Space,
    _held: Held<'a>,
}

impl Space {
    pub(super) fn open(file: File, limits: Limits) -> io::Result<Self> {
        let slots = (0..MAX_SLOTS).map(|number| SLOTS + number * sealed::LEN);
        for slot in slots {
            if lock::try_keep(&file, Kind::Exclusive, slot)? {
                // Where nothing can be written nothing can be agreed on.
                sealed::write(&file, slot, sealed::open(sealed::raw(&file, slot)).unwrap_or(0))?;
                let step = (limits.limit / 256).clamp(16 * PAGE, 1 << 20);
                let (own, clock, reads) = (Mutex::default(), AtomicU64::new(0), AtomicU64::new(0));
                let is_held_up = AtomicBool::new(false);
                let space = Self { file, limits, step, slot, own, is_held_up, clock, reads };
                if let Some(table) = space.table() {
                    table.bury(slot);
                }
                space.refresh_clock();
                return Ok(space);
            }
        }
        Err(io::Error::other("too many processes use it"))
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self) -> Option<Table<'_>> {
        let patience = if self.is_held_up.load(Ordering::Relaxed) { PATIENCE_WITH_STOPPED } else { TABLE_PATIENCE };
        let held = lock::exclusive(&self.file, TABLE, patience);
        self.is_held_up.store(held.is_none(), Ordering::Relaxed);
        Some(Table { space: self, _held: held? })
    }

    /// The right to evict: one at a time, whatever the process.
    pub(super) fn evictor(&self) -> Option<Held<'_>> {
        lock::exclusive(&self.file, EVICTOR, EVICTOR_PATIENCE)
    }

    /// Takes room for something that gets a name, or has one.
    pub(super) fn room(&self, bytes: u64) -> Result<Room<'_>, Refused> {
        self.take(bytes)?.storing += bytes;
        Ok(Room { space: self, bytes })
    }

    /// Takes room for something that has no name, and is to be given back.
    pub(super) fn unnamed(&self, bytes: u64) -> Result<(), Refused> {
        self.take(bytes)?.unnamed += bytes;
        Ok(())
    }

    fn take(&self, bytes: u64) -> Result<MutexGuard<'_, Own>, Refused> {
        let mut own = self.own();
        if own.left < bytes {
            self.lease(&mut own, bytes)?;
        }
        own.left -= bytes;
        Ok(own)
    }

    fn lease(&self, own: &mut Own, bytes: u64) -> Result<(), Refused> {
        let table = self.table().ok_or(Refused::Busy)?;
        let more = bytes - own.left;
        let taken = Self::counted(&table, own);
        // Where that cannot be said, nothing is evicted for it.
        let filesystem = fstatvfs(&self.file).map_err(|_| Refused::Busy)?;
        let free = filesystem.blocks_available().saturating_mul(filesystem.fragment_size());
        let room = self.limits.limit.saturating_sub(taken).min(free.saturating_sub(self.limits.floor));
        let granted = if more <= room { room.min(more + self.step) } else { 0 };
        own.left += granted;
        table.tick(granted.div_ceil(PAGE));
        table.set(self.slot, own.held());
        let over = taken.saturating_add(more).saturating_sub(self.limits.limit);
        let below = self.limits.floor.saturating_add(more).saturating_sub(free);
        if granted > 0 { Ok(()) } else { Err(Refused::Full(over.max(below).max(1))) }
    }

    fn counted(table: &Table<'_>, own: &mut Own) -> u64 {
        table.settle(own).saturating_add(table.others()).saturating_add(own.held())
    }

    /// What all processes have taken, by a look that changes nothing and waits for nobody: about right for what changes this moment. `None`: this
    /// process is changing it.
    pub(super) fn taken(&self) -> Option<Taken> {
        let own = self.own.try_lock().ok()?;
        let get = |at| sealed::open(sealed::raw(&self.file, at)).unwrap_or(0);
        let len = self.file.metadata().ok()?.len();
        let slots = (SLOTS..len.min(SLOTS + MAX_SLOTS * sealed::LEN)).step_by(sealed::LEN as usize);
        let others = slots.filter(|slot| *slot != self.slot).map(get).fold(0, u64::saturating_add);
        let taken = get(NAMED).saturating_add(own.stored).saturating_add(own.held()).saturating_add(others);
        Some(Taken { taken, limit: self.limits.limit })
    }

    /// Gives back what was taken for a file without a name.
    pub(super) fn give_back(&self, bytes: u64) {
        let mut own = self.own();
        own.unnamed = own.unnamed.saturating_sub(bytes);
        own.left += bytes;
        if own.left > self.step * 2 {
            self.settle(&mut own);
        }
    }

    /// What was taken for a file without a name is stored under one.
    pub(super) fn name(&self, bytes: u64) {
        let mut own = self.own();
        own.unnamed = own.unnamed.saturating_sub(bytes);
        own.stored += bytes;
    }

    /// Says in the table what was stored, and gives back what is not used. Gives what is counted as named then.
    fn settle(&self, own: &mut Own) -> Option<u64> {
        let table = self.table()?;
        own.left = 0;
        // The dead first: who counts then finds what they stored.
        table.others();
        let named = table.settle(own);
        table.set(self.slot, own.held());
        Some(named)
    }

    /// Counts anew: `count` gives the bytes of all files that have a name. What is stored meanwhile is not lost.
    pub(super) fn recount(&self, count: impl FnOnce() -> u64) {
        let Some(before) = self.settle(&mut self.own()) else { return };
        let counted = count();
        let Some(table) = self.table() else { return };
        let meanwhile = table.named().saturating_sub(before);
        table.set(NAMED, counted.saturating_add(meanwhile));
    }

    /// Files that have a name take so much less.
    pub(super) fn freed(&self, bytes: u64) {
        if let Some(table) = self.table() {
            table.set(NAMED, table.named().saturating_sub(bytes));
        }
    }

    /// The logical time, looked up often enough for last uses.
    pub(super) fn clock(&self) -> u64 {
        if self.reads.fetch_add(1, Ordering::Relaxed) % 64 == 63 {
            self.refresh_clock();
        }
        self.clock.load(Ordering::Relaxed)
    }

    fn refresh_clock(&self) {
        let clock = sealed::open(sealed::raw(&self.file, CLOCK)).unwrap_or(0);
        self.clock.fetch_max(clock.max(1), Ordering::Relaxed);
    }

    /// Where the clock was lost it goes on from the latest use: else all that is stored from now on would be the oldest, and go first.
    pub(super) fn not_before(&self, clock: u64) {
        if self.clock.fetch_max(clock, Ordering::Relaxed) < clock {
            self.table().iter().for_each(|table| table.tick(0));
        }
    }

    /// How much later than its last use a thing is to be used to be told again: a sixty-fourth of what fits.
    pub(super) fn stamp_step(&self) -> u64 {
        (self.limits.limit / PAGE / 64).max(1)
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let mut own = self.space.own();
        own.storing = own.storing.saturating_sub(self.bytes);
        own.stored += self.bytes;
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let mut own = std::mem::take(&mut *self.own());
        own.unnamed = 0;
        self.settle(&mut own);
    }
}

impl Table<'_> {
    fn get(&self, at: u64) -> Option<u64> {
        sealed::open(sealed::raw(&self.space.file, at))
    }

    /// What cannot be written is counted again before anything is evicted.
    fn set(&self, at: u64, number: u64) {
        let _ = sealed::write(&self.space.file, at, number);
    }

    /// Where it is damaged the cache is full until it was counted.
    fn named(&self) -> u64 {
        self.get(NAMED).unwrap_or(self.space.limits.limit)
    }

    /// Adds what a process has stored. Gives the sum.
    fn settle(&self, own: &mut Own) -> u64 {
        let named = self.named().saturating_add(std::mem::take(&mut own.stored));
        self.set(NAMED, named);
        named
    }

    fn tick(&self, pages: u64) {
        let clock = self.get(CLOCK).unwrap_or(0).max(self.space.clock.load(Ordering::Relaxed)) + pages;
        self.set(CLOCK, clock);
        self.space.clock.fetch_max(clock, Ordering::Relaxed);
    }

    /// What other processes hold, or held when they died.
    fn others(&self) -> u64 {
        let len = self.space.file.metadata().map_or(0, |found| found.len());
        let slots = (SLOTS..len.min(SLOTS + MAX_SLOTS * sealed::LEN)).step_by(sealed::LEN as usize);
        let held = slots.filter(|slot| *slot != self.space.slot).map(|slot| match self.get(slot).unwrap_or(0) {
            0 => 0,
            _ if !lock::is_held(&self.space.file, slot) => self.bury(slot),
            held => held,
        });
        held.fold(0, u64::saturating_add)
    }

    /// What a dead process held it may have stored under a name, and not said so: it counts as that until all is counted. Gives how much.
    fn bury(&self, slot: u64) -> u64 {
        let held = self.get(slot).unwrap_or(0);
        // A crash in between counts it twice, not never.
        self.set(NAMED, self.named().saturating_add(held));
        self.set(slot, 0);
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    struct Lab(tempfile::NamedTempFile);

    impl Lab {
        fn new() -> Self {
            Self(tempfile::NamedTempFile::new().unwrap())
        }

        fn process(&self) -> Space {
            let file = File::options().read(true).write(true).open(self.0.path()).unwrap();
            Space::open(file, Limits { limit: 64 * MIB, floor: 0 }).unwrap()
        }
    }

    #[test]
    fn all_processes_together_get_no_more_than_the_limit() {
        let lab = Lab::new();
        let processes: Vec<_> = (0..4).map(|_| lab.process()).collect();
        let mut taken = 0;
        while processes.iter().any(|process| process.room(100_000).map(drop).is_ok()) {
            taken += 100_000;
        }
        assert!((63 * MIB..=64 * MIB).contains(&taken), "{taken}");
        assert!(matches!(processes[0].unnamed(MIB), Err(Refused::Full(short)) if short <= MIB));
        processes[0].freed(8 * MIB);
        assert_eq!(processes[1].unnamed(7 * MIB), Ok(()));
        processes[1].give_back(7 * MIB);
        assert_eq!(processes[2].room(6 * MIB).map(drop), Ok(()));
    }

    #[test]
    fn what_a_process_held_is_free_when_it_ends_and_what_it_stored_is_counted() {
        let lab = Lab::new();
        let (one, two) = (lab.process(), lab.process());
        one.unnamed(40 * MIB).unwrap();
        assert!(two.room(30 * MIB).map(drop).is_err());
        drop(one);
        two.room(60 * MIB).map(drop).unwrap();
        assert!(lab.process().room(5 * MIB).map(drop).is_err());
        two.recount(|| 10 * MIB);
        assert_eq!(lab.process().room(50 * MIB).map(drop), Ok(()));
    }

    /// Its locks go with its file, and it says nothing more.
    fn kill(mut process: Space) {
        process.file = tempfile::tempfile().unwrap();
    }

    #[test]
    fn what_a_killed_process_held_counts_as_stored_until_it_is_counted() {
        let lab = Lab::new();
        let (one, two) = (lab.process(), lab.process());
        one.unnamed(20 * MIB).unwrap();
        one.room(20 * MIB).map(drop).unwrap();
        kill(one);
        let in_its_slot = lab.process();
        assert!(in_its_slot.room(30 * MIB).map(drop).is_err());
        kill(in_its_slot);
        assert!(two.room(30 * MIB).map(drop).is_err());
        two.recount(|| 20 * MIB);
        assert_eq!(two.room(40 * MIB).map(drop), Ok(()));
    }

    #[test]
    fn what_is_taken_is_told_without_waiting() {
        let lab = Lab::new();
        let (one, two) = (lab.process(), lab.process());
        one.unnamed(20 * MIB).unwrap();
        two.room(10 * MIB).map(drop).unwrap();
        // Also while another process has the table.
        let _table = two.table().unwrap();
        for space in [&one, &two] {
            let taken = space.taken().unwrap();
            assert!((30 * MIB..=40 * MIB).contains(&taken.taken) && taken.limit == one.limits.limit, "{taken:?}");
        }
        let _own = one.own();
        assert!(one.taken().is_none(), "it is being changed");
    }

    #[test]
    fn damage_of_a_number_that_nobody_has_a_copy_of_shows() {
        let lab = Lab::new();
        let space = lab.process();
        space.room(MIB).map(drop).unwrap();
        assert_eq!(damage(&space.file), None);
        for at in [NAMED, CLOCK] {
            let before = sealed::raw(&space.file, at);
            std::os::unix::fs::FileExt::write_all_at(&space.file, &(before ^ 1).to_le_bytes(), at).unwrap();
            assert!(damage(&space.file).is_some(), "{at}");
            std::os::unix::fs::FileExt::write_all_at(&space.file, &before.to_le_bytes(), at).unwrap();
        }
    }

    #[test]
    fn what_is_stored_during_a_count_is_not_lost() {
        let lab = Lab::new();
        let (one, two) = (lab.process(), lab.process());
        one.recount(|| {
            let _being_stored = two.room(5 * MIB).unwrap();
            drop(two.room(35 * MIB).unwrap());
            drop(two.room(10 * MIB).unwrap());
            20 * MIB
        });
        assert!(one.room(10 * MIB).map(drop).is_err(), "20 and 35 are taken, and 15 held");
    }

    #[test]
    fn a_damaged_table_is_full_until_it_is_counted() {
        let lab = Lab::new();
        let space = lab.process();
        std::os::unix::fs::FileExt::write_all_at(&space.file, &[0xff; 8], NAMED).unwrap();
        assert!(space.room(1).map(drop).is_err());
        space.recount(|| 0);
        assert_eq!(space.room(1).map(drop), Ok(()));
    }

    #[test]
    fn the_floor_of_the_filesystem_counts_as_well() {
        let file = tempfile::tempfile().unwrap();
        let limits = Limits { limit: 64 * MIB, floor: u64::MAX / 2 };
        let space = Space::open(file, limits).unwrap();
        assert!(matches!(space.room(1).map(drop), Err(Refused::Full(short)) if short > MIB));
    }

    #[test]
    fn a_lost_clock_goes_on_from_the_latest_use() {
        let lab = Lab::new();
        let space = lab.process();
        space.not_before(1000);
        space.not_before(10);
        assert_eq!(lab.process().clock(), 1000);
    }

    #[test]
    fn the_clock_goes_on_with_what_is_stored() {
        let lab = Lab::new();
        let (one, two) = (lab.process(), lab.process());
        let before = (0..64).map(|_| two.clock()).max().unwrap();
        one.room(10 * MIB).map(drop).unwrap();
        let after = (0..64).map(|_| two.clock()).max().unwrap();
        assert!(after >= before + 10 * MIB / PAGE);
    }
}
