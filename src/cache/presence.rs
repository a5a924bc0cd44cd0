//! The file `present` of a layer: which checks of its layer file are there, in groups that are evicted at once.
//!
//! ```text
//! 0         "crfs pr2"    len of the layer file    checks    groups
//! 32        sha256 of these and of the division into groups
//! 64        division into groups, for each: { first byte, first check }
//! ...       for each group: { generation, last use }, sealed numbers (sealed.rs)
//! ...       for each check one byte: 0xc5 where its range of the layer file was verified and written, else 0
//! ...       at a multiple of 8: a random number, another one after each eviction, sealed; 0 before the first
//! ```
//!
//! The first three never change and follow from the index; they are here for those who evict or verify without it. A group's generation
//! is a random number, another one after each eviction, and 0 before anything was stored, and while it is evicted: then nothing of it can be
//! verified. It is written before anything is taken away, and read after anything was read: bytes that were read while it stayed the same
//! were not evicted meanwhile. The last number tells by one look that nothing of the layer was evicted since: what is fetched ahead goes by it, and
//! no reader. (A crfs from before it leaves it alone, and has a shorter file.) Everything is a hint otherwise:
//! contents are verified before a process uses them. Numbers are little endian.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use super::groups::Groups;
use super::lock::{self, Held};
use super::sealed;
use crate::blob::{ByteRange, Digest};
use crate::metrics::steps;

const MAGIC: &[u8; 8] = b"crfs pr2";
const HEADER: usize = 64;
const START: usize = 16;
const RECORD: u64 = 16;

/// The byte of a check that is there. Neither another single bit nor none makes it of a 0.
const THERE: u8 = 0xc5;

/// A division into more groups than this is none: each is of 1 MiB and more, and a layer file smaller than 16 TiB.
const MAX_GROUPS: u64 = 1 << 24;

/// The byte whose lock excludes all others who change what is there.
const LOCK: u64 = 0;

pub(super) struct Present {
    file: File,
    groups: Groups,
}

/// What the records of a group say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) group: usize,
    pub(super) last_use: u64,
}

impl Present {
    /// For a layer whose index is known. What the file says otherwise, because it is new or damaged, is replaced.
    pub(super) fn open(file: File, groups: Groups, patience: Duration) -> io::Result<Self> {
        let present = Self { file, groups };
        let head = head(&present.groups);
        if !present.starts_with(&head) {
            let _held = present.lock(patience).ok_or(io::ErrorKind::WouldBlock)?;
            // Another may have made it meanwhile.
            if !present.starts_with(&head) {
                present.file.write_all_at(&head, 0)?;
            }
        }
        let found = present.file.metadata()?.len();
        if found < present.len() {
            let made = present.file.set_len(present.len());
            // One that cannot be written, and that a crfs from before the last number has left, says all else.
            if found < without_evictions(&present.groups) {
                made?;
            }
        }
        Ok(present)
    }

    /// As the file itself says; `None` where it is damaged.
    pub(super) fn read(file: File) -> Option<Self> {
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0).ok()?;
        let number = |at: usize| header.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        let (len, checks, count) = (number(8)?, u32::try_from(number(16)?).ok()?, number(24)?);
        if count > MAX_GROUPS || count > file.metadata().ok()?.len() / START as u64 {
            return None;
        }
        let mut starts = vec![0; usize::try_from(count).ok()? * START];
        file.read_exact_at(&mut starts, HEADER as u64).ok()?;
        let starts = starts.chunks_exact(START).map(start).collect::<Option<_>>()?;
        let groups = Groups::from_parts(len, checks, starts)?;
        let present = Self { file, groups };
        present.starts_with(&head(&present.groups)).then_some(present)
    }

    fn starts_with(&self, head: &[u8]) -> bool {
        let mut there = vec![0; head.len()];
        self.file.read_exact_at(&mut there, 0).is_ok() && there == head
    }

    pub(super) fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Bytes of the whole file.
    pub(super) fn len(&self) -> u64 {
        len(&self.groups)
    }

    /// Whether a file says what no presence does, and not because a process is writing it this moment.
    pub(super) fn is_damaged(open: impl Fn() -> io::Result<File>) -> bool {
        let is_left = |file: &File| file.metadata().is_ok_and(|found| found.len() > 0) && !lock::is_held(file, LOCK);
        // Read after the lock was looked at: who had it until then has written all.
        open().is_ok_and(|file| is_left(&file)) && open().is_ok_and(|file| Self::read(file).is_none())
    }

    /// Whether it was not removed.
    pub(super) fn is_linked(&self) -> bool {
        is_linked(&self.file)
    }

    /// The right to change what is there.
    pub(super) fn lock(&self, patience: Duration) -> Option<Held<'_>> {
        lock::exclusive(&self.file, LOCK, patience)
    }

    fn record(&self, group: usize) -> u64 {
        (HEADER + self.groups.count() * START) as u64 + group as u64 * RECORD
    }

    fn byte(&self, check: u32) -> u64 {
        self.record(self.groups.count()) + u64::from(check)
    }

    /// What bytes of the group have to be verified for again when it has changed; 0: nothing is there.
    pub(super) fn generation(&self, group: usize) -> u64 {
        sealed::raw(&self.file, self.record(group))
    }

    /// Whatever was read before is not to be relied on any more. Under the lock.
    pub(super) fn next_generation(&self, group: usize) -> io::Result<u64> {
        let random = random();
        sealed::write(&self.file, self.record(group), random)?;
        Ok(sealed::seal(random))
    }

    /// Nothing of the group is there, whatever else is said, until it has another generation. Under the lock.
    pub(super) fn end_generation(&self, group: usize) -> io::Result<()> {
        self.file.write_all_at(&[0; sealed::LEN as usize], self.record(group))?;
        // Afterwards: who sees the new number sees as well that the group is gone. It may need a block of a full disk, and eviction is for that disk: then
        // who guesses learns of it by the next miss.
        let _ = sealed::write(&self.file, evictions_at(&self.groups), random());
        Ok(())
    }

    /// Another number after each eviction.
    pub(super) fn evictions(&self) -> u64 {
        sealed::raw(&self.file, evictions_at(&self.groups))
    }

    /// By the logical clock of the cache; 0: nothing is stored.
    pub(super) fn set_last_use(&self, group: usize, clock: u64) -> io::Result<()> {
        sealed::write(&self.file, self.record(group) + sealed::LEN, clock)
    }

    pub(super) fn is_there(&self, check: u32) -> bool {
        let mut byte = [0];
        steps::take();
        self.file.read_exact_at(&mut byte, self.byte(check)).is_ok() && byte == [THERE]
    }

    /// The first of some checks that is not there.
    pub(super) fn first_absent(&self, checks: Range<u32>) -> Option<u32> {
        let mut bytes = vec![0; checks.len()];
        steps::take();
        if self.file.read_exact_at(&mut bytes, self.byte(checks.start)).is_err() {
            return checks.into_iter().next();
        }
        checks.zip(bytes).find(|(_, byte)| *byte != THERE).map(|(check, _)| check)
    }

    pub(super) fn set(&self, check: u32, there: bool) -> io::Result<()> {
        self.file.write_all_at(&[if there { THERE } else { 0 }], self.byte(check))
    }

    /// The first checks are there, from now on. Under the lock.
    pub(super) fn set_first(&self, checks: u32, clock: u64) -> io::Result<()> {
        for group in (0..self.groups.count()).take_while(|group| self.groups.checks_of(*group).start < checks) {
            if self.generation(group) == 0 {
                self.next_generation(group)?;
            }
            self.set_last_use(group, clock)?;
        }
        self.file.write_all_at(&vec![THERE; checks.min(self.groups.checks()) as usize], self.byte(0))
    }

    /// Under the lock.
    pub(super) fn clear(&self, group: usize) -> io::Result<()> {
        let checks = self.groups.checks_of(group);
        self.file.write_all_at(&vec![0; checks.len()], self.byte(checks.start))
    }

    /// The groups that something may be stored of.
    pub(super) fn uses(&self) -> Vec<Use> {
        let mut records = vec![0; self.groups.count() * RECORD as usize];
        if self.file.read_exact_at(&mut records, self.record(0)).is_err() {
            return Vec::new();
        }
        let records = records.chunks_exact(RECORD as usize).enumerate();
        let used = records.filter_map(|(group, record)| Some((group, u64::from_le_bytes(*record.last_chunk()?))));
        // Where the last use is damaged it is the first to go.
        let uses = used.map(|(group, sealed)| (group, sealed, sealed::open(sealed).unwrap_or(0)));
        uses.filter(|(_, sealed, last_use)| *last_use != 0 || sealed::open(*sealed).is_none())
            .map(|(group, _, last_use)| Use { group, last_use })
            .collect()
    }

    /// What of the file cannot have been written by crfs.
    pub(super) fn damage(&self) -> Option<String> {
        let is_damaged = |at: u64| sealed::open(sealed::raw(&self.file, at)).is_none();
        let numbers = (self.record(0)..self.byte(0)).step_by(sealed::LEN as usize).chain([evictions_at(&self.groups)]);
        // Twice: a process may be writing it.
        if let Some(at) = numbers.into_iter().find(|at| is_damaged(*at) && is_damaged(*at)) {
            return Some(format!("the number at {at} is damaged"));
        }
        let mut bytes = vec![0; self.groups.checks() as usize];
        if let Err(error) = self.file.read_exact_at(&mut bytes, self.byte(0)) {
            return Some(error.to_string());
        }
        let mut between = vec![0; (evictions_at(&self.groups) - self.byte(self.groups.checks())) as usize];
        if self
            .file
            .read_exact_at(&mut between, self.byte(self.groups.checks()))
            .is_ok_and(|()| between.iter().any(|byte| *byte != 0))
        {
            return Some("what is between its parts is damaged".to_owned());
        }
        let odd = bytes.iter().position(|byte| ![0, THERE].contains(byte))?;
        Some(format!("the byte of check {odd} is damaged"))
    }
}

fn start(bytes: &[u8]) -> Option<(u64, u32)> {
    let byte = u64::from_le_bytes(*bytes.first_chunk()?);
    let check = u64::from_le_bytes(*bytes.last_chunk()?);
    Some((byte, u32::try_from(check).ok()?))
}

/// Bytes of the file `present` for such groups.
pub(super) fn len(groups: &Groups) -> u64 {
    evictions_at(groups) + sealed::LEN
}

/// Where the number is that changes with each eviction.
fn evictions_at(groups: &Groups) -> u64 {
    without_evictions(groups).next_multiple_of(sealed::LEN)
}

/// Bytes of all that is before it.
fn without_evictions(groups: &Groups) -> u64 {
    HEADER as u64 + groups.count() as u64 * (START as u64 + RECORD) + u64::from(groups.checks())
}

/// From the only source of random numbers in std: seeded by the kernel, another number each time.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// What the file starts with.
fn head(groups: &Groups) -> Vec<u8> {
    let numbers = [groups.len(), groups.checks().into(), groups.count() as u64];
    let first = MAGIC.iter().copied().chain(numbers.into_iter().flat_map(u64::to_le_bytes));
    let starts = groups.starts().iter().flat_map(|(byte, check)| [*byte, (*check).into()]).flat_map(u64::to_le_bytes);
    let (first, starts): (Vec<u8>, Vec<u8>) = (first.collect(), starts.collect());
    let digest = Digest::of(&[first.as_slice(), &starts].concat());
    [first.as_slice(), digest.as_bytes(), &starts].concat()
}

/// Whether a file was not removed.
pub(super) fn is_linked(file: &File) -> bool {
    file.metadata().is_ok_and(|found| found.nlink() > 0)
}

/// Makes the bytes of a range a hole; `false` where the filesystem knows no such thing.
pub(super) fn punch(data: &File, range: ByteRange) -> io::Result<bool> {
    use nix::errno::Errno;
    use nix::fcntl::{FallocateFlags, fallocate};
    if range.is_empty() {
        return Ok(true);
    }
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match fallocate(data, flags, range.start as i64, range.len() as i64) {
        Ok(()) => Ok(true),
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups() -> Groups {
        Groups::new(5 << 20, &[0, 4096, 1 << 20, 3 << 20, 4 << 20])
    }

    fn reopened(file: &File) -> Option<Present> {
        Present::read(file.try_clone().unwrap())
    }

    #[test]
    fn what_was_written_is_read_without_the_index() {
        let file = tempfile::tempfile().unwrap();
        let present = Present::open(file.try_clone().unwrap(), groups(), Duration::ZERO).unwrap();
        assert_eq!((present.generation(1), present.is_there(2)), (0, false));
        let generation = present.next_generation(1).unwrap();
        present.set(2, true).unwrap();
        present.set_last_use(1, 7).unwrap();

        let read = reopened(&file).unwrap();
        assert_eq!(read.groups(), &groups());
        assert_eq!((read.generation(1), read.is_there(2), read.is_there(1)), (generation, true, false));
        assert_eq!(read.uses(), [Use { group: 1, last_use: 7 }]);
        assert_eq!(read.damage(), None);
        read.clear(1).unwrap();
        assert_ne!(read.next_generation(1).unwrap(), generation);
        assert!(!present.is_there(2));
        assert_eq!(present.len(), file.metadata().unwrap().len());
    }

    /// As a crfs has left it that knew no number of evictions.
    #[test]
    fn what_is_older_is_used_also_where_it_cannot_be_written() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let file = named.reopen().unwrap();
        Present::open(file.try_clone().unwrap(), groups(), Duration::ZERO).unwrap().set(2, true).unwrap();
        file.set_len(without_evictions(&groups())).unwrap();
        let old = || Present::open(File::open(named.path()).unwrap(), groups(), Duration::ZERO);
        assert!(old().unwrap().is_there(2));
        assert_eq!(old().unwrap().evictions(), 0);
        file.set_len(without_evictions(&groups()) - 1).unwrap();
        assert!(old().is_err());
    }

    #[test]
    fn what_is_being_written_is_not_damaged() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(named.path());
        let is_damaged = || Present::is_damaged(|| File::open(named.path()));
        assert!(!is_damaged(), "nothing was written");
        let writer = open().unwrap();
        let held = lock::exclusive(&writer, LOCK, Duration::ZERO).unwrap();
        writer.write_all_at(&head(&groups())[..50], 0).unwrap();
        assert!(!is_damaged());
        drop(held);
        assert!(is_damaged());
        Present::open(open().unwrap(), groups(), Duration::ZERO).unwrap();
        assert!(!is_damaged());
    }

    #[test]
    fn a_flipped_bit_anywhere_shows() {
        let file = tempfile::tempfile().unwrap();
        let present = Present::open(file.try_clone().unwrap(), groups(), Duration::ZERO).unwrap();
        for group in 0..4 {
            present.next_generation(group).unwrap();
            present.set_last_use(group, 1 << group).unwrap();
        }
        (0..5).for_each(|check| present.set(check, check % 2 == 0).unwrap());
        assert!(reopened(&file).unwrap().damage().is_none());
        for at in 0..present.len() {
            for bit in 0..8 {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
                let damage = reopened(&file).map(|read| read.damage());
                assert_ne!(damage, Some(None), "bit {bit} of byte {at}");
                file.write_all_at(&byte, at).unwrap();
            }
        }
        file.write_all_at(&[0; 50], 10).unwrap();
        assert!(reopened(&file).is_none());
        let mended = Present::open(file.try_clone().unwrap(), groups(), Duration::ZERO).unwrap();
        assert!(reopened(&file).is_some() && mended.is_there(4), "with the index it is made anew");
    }
}
