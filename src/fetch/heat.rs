//! What became of the bytes of a layer: when each part of it came, and when a reader first needed it. For `crfs heat`; nothing is decided by it.
//!
//! ```text
//! a part, 32 bits   came: 13   needed: 13   a reader had it fetched: 1   its reader waited: 1
//! ```
//!
//! A part is a check, or some checks one after the other where there are many. Times are since the record began, in 4 ms, with 9 bits of precision.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Layer;
use crate::cache::State;
use crate::index::{CheckKind, Damaged};

/// Parts of all layers of an image: 1 MiB.
const OF_IMAGE: usize = (1 << 20) / size_of::<AtomicU32>();

/// A layer has no more than so many of them, and than this share of what other layers have left.
const OF_LAYER: usize = OF_IMAGE / 32;
const SHARE: usize = 8;

/// Cells that a layer is told in.
const CELLS: usize = 512;

/// What became of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// Fetched since a reader asked for them.
    Demanded,
    /// Fetched before a reader asked for them.
    Foreseen,
    /// Read, and here before anything was fetched.
    Cached,
    /// Fetched, and not read until now.
    Unused,
    /// Here before anything was fetched, and not read.
    Idle,
    /// Neither here nor fetched.
    Missing,
}

impl Fate {
    pub const ALL: [Self; 6] = [Self::Demanded, Self::Foreseen, Self::Cached, Self::Unused, Self::Idle, Self::Missing];
}

/// Bytes of contents by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fates {
    pub demanded: u64,
    pub foreseen: u64,
    pub cached: u64,
    pub unused: u64,
    pub idle: u64,
    pub missing: u64,
}

impl Fates {
    pub fn join(&mut self, other: &Self) {
        Fate::ALL.into_iter().for_each(|fate| self.add(fate, other.of(fate)));
    }

    #[must_use]
    pub const fn of(&self, fate: Fate) -> u64 {
        match fate {
            Fate::Demanded => self.demanded,
            Fate::Foreseen => self.foreseen,
            Fate::Cached => self.cached,
            Fate::Unused => self.unused,
            Fate::Idle => self.idle,
            Fate::Missing => self.missing,
        }
    }

    pub fn add(&mut self, fate: Fate, bytes: u64) {
        let sum = match fate {
            Fate::Demanded => &mut self.demanded,
            Fate::Foreseen => &mut self.foreseen,
            Fate::Cached => &mut self.cached,
            Fate::Unused => &mut self.unused,
            Fate::Idle => &mut self.idle,
            Fate::Missing => &mut self.missing,
        };
        *sum = sum.saturating_add(bytes);
    }

    #[must_use]
    pub fn all(&self) -> u64 {
        Fate::ALL.iter().map(|fate| self.of(*fate)).fold(0, u64::saturating_add)
    }
}

/// Some bytes of a layer's contents, one after the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    #[serde(flatten)]
    pub bytes: Fates,
    /// Milliseconds since the record began until a reader first needed any of it, and until any of it came.
    pub needed: Option<u64>,
    pub came: Option<u64>,
    /// Whether the reader who first needed some of it had to wait.
    pub waited: bool,
}

/// Bytes that came at a moment, or that a reader first needed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub millis: u64,
    pub fate: Fate,
    pub waited: bool,
    pub bytes: u64,
}

/// What is known of a layer's bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    pub bytes: Fates,
    /// One after the other.
    pub cells: Vec<Cell>,
    /// When they came, and when they were needed; in no order.
    pub came: Vec<Moment>,
    pub needed: Vec<Moment>,
}

/// The records of an image's layers.
#[derive(Debug)]
pub struct Record {
    since: Instant,
    /// When the image could be read, in milliseconds.
    ready: OnceLock<u64>,
    /// Parts that no layer has yet.
    left: AtomicUsize,
}

impl Default for Record {
    fn default() -> Self {
        Self { since: Instant::now(), ready: OnceLock::new(), left: AtomicUsize::new(OF_IMAGE) }
    }
}

impl Record {
    /// All layers are open.
    pub fn is_ready(&self) {
        // Once.
        let _first = self.ready.set(self.now());
    }

    #[must_use]
    pub fn ready(&self) -> Option<u64> {
        self.ready.get().copied()
    }

    /// Milliseconds since it began.
    #[must_use]
    pub fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// How many parts a layer of so many checks gets.
    fn take(&self, checks: u32) -> usize {
        let share = |left: usize| (checks as usize).min(OF_LAYER).min(left / SHARE);
        let take = |left: usize| Some(left - share(left));
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).map_or(0, share)
    }
}

/// What is recorded of one layer.
pub(super) struct Heat {
    record: Option<Arc<Record>>,
    checks: u32,
    parts: Box<[AtomicU32]>,
}

const TIME: u32 = (1 << 13) - 1;
const NEEDED: u32 = 13;
const DEMANDED: u32 = 1 << 26;
const WAITED: u32 = 1 << 27;

impl Heat {
    /// Of a layer of so many checks; `None`: nothing is recorded.
    pub(super) fn new(record: Option<&Arc<Record>>, checks: u32) -> Self {
        let parts = record.map_or(0, |record| record.take(checks));
        Self {
            record: record.cloned(),
            checks,
            parts: std::iter::repeat_with(AtomicU32::default).take(parts).collect(),
        }
    }

    /// A reader has these checks fetched.
    pub(super) fn demanded(&self, check: u32) {
        if let Some(part) = self.part(check) {
            part.fetch_or(DEMANDED, Ordering::Relaxed);
        }
    }

    /// A check came, and was right.
    pub(super) fn came(&self, check: u32) {
        self.note(check, 0, 0);
    }

    /// A reader needs these checks, and waits for them or has them at once.
    pub(super) fn needed(&self, checks: Range<u32>, waits: bool) {
        let Some(last) = checks.end.checked_sub(1) else { return };
        let mut at = self.place(checks.start);
        let last = self.place(last);
        while let (Some(now), Some(end)) = (at, last) {
            self.note_at(now, NEEDED, if waits { WAITED } else { 0 });
            at = Some(now + 1).filter(|next| *next <= end);
        }
    }

    fn place(&self, check: u32) -> Option<usize> {
        let place = u64::from(check) * self.parts.len() as u64 / u64::from(self.checks.max(1));
        usize::try_from(place).ok().filter(|place| *place < self.parts.len())
    }

    fn part(&self, check: u32) -> Option<&AtomicU32> {
        self.parts.get(self.place(check)?)
    }

    fn note(&self, check: u32, time: u32, flags: u32) {
        self.place(check).into_iter().for_each(|place| self.note_at(place, time, flags));
    }

    /// What happens for the first time is noted.
    fn note_at(&self, place: usize, time: u32, flags: u32) {
        let (Some(part), Some(record)) = (self.parts.get(place), &self.record) else { return };
        let is_new = |now: u32| (now >> time) & TIME == 0;
        if is_new(part.load(Ordering::Relaxed)) {
            let code = code(record.since.elapsed()) << time | flags;
            // Another may have been faster.
            let _noted =
                part.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| is_new(now).then_some(now | code));
        }
    }
}

/// A time in 13 bits, never 0.
fn code(time: Duration) -> u32 {
    let units = u64::try_from(time.as_millis() / 4).unwrap_or(u64::MAX).saturating_add(1);
    let exponent = (64 - units.leading_zeros()).saturating_sub(9);
    if exponent > 15 { TIME } else { exponent << 9 | u32::try_from(units >> exponent).unwrap_or(TIME) }
}

/// The milliseconds of it; `None` for 0.
fn millis(code: u32) -> Option<u64> {
    let units = u64::from(code & 511) << (code >> 9);
    units.checked_sub(1).map(|units| units * 4)
}

/// What is known of a part.
#[derive(Clone, Copy)]
struct Part {
    came: Option<u64>,
    needed: Option<u64>,
    demanded: bool,
    waited: bool,
}

impl Part {
    fn of(bits: u32) -> Self {
        Self {
            came: millis(bits & TIME),
            needed: millis(bits >> NEEDED & TIME),
            demanded: bits & DEMANDED != 0,
            waited: bits & WAITED != 0,
        }
    }

    fn fate(self, is_here: impl Fn() -> bool) -> Fate {
        match (self.needed, self.came) {
            (Some(_), Some(_)) if self.demanded => Fate::Demanded,
            (Some(_), Some(_)) => Fate::Foreseen,
            (Some(_), None) if !self.demanded && is_here() => Fate::Cached,
            (None, Some(_)) => Fate::Unused,
            (None, None) if is_here() => Fate::Idle,
            (_, None) => Fate::Missing,
        }
    }
}

impl Layer {
    /// What became of its bytes until now. Blocking.
    ///
    /// # Errors
    /// Where the index is damaged.
    pub fn heat(&self) -> Result<Told, Damaged> {
        let mut told = Told::default();
        let cells = CELLS.min(self.heat.checks as usize);
        told.cells.resize_with(cells, Cell::default);
        for number in 0..self.heat.checks {
            let check = self.index.check(number)?;
            if check.kind == CheckKind::Hole {
                continue;
            }
            let part = Part::of(self.heat.part(number).map_or(0, |part| part.load(Ordering::Relaxed)));
            let is_here = || self.file.state(number) != State::Missing || self.aside.has(number);
            let (fate, bytes) = (part.fate(is_here), check.range.len());
            told.bytes.add(fate, bytes);
            let cell = u64::from(number) * cells as u64 / u64::from(self.heat.checks);
            if let Some(cell) = told.cells.get_mut(usize::try_from(cell).unwrap_or(usize::MAX)) {
                cell.add(part, fate, bytes);
            }
            let moment = |millis| Moment { millis, fate, waited: part.waited, bytes };
            part.came.into_iter().for_each(|came| add(&mut told.came, moment(came)));
            part.needed.into_iter().for_each(|needed| add(&mut told.needed, moment(needed)));
        }
        Ok(told)
    }
}

/// The checks of a part have one moment.
fn add(moments: &mut Vec<Moment>, new: Moment) {
    match moments.last_mut().filter(|last| Moment { bytes: new.bytes, ..**last } == new) {
        Some(last) => last.bytes = last.bytes.saturating_add(new.bytes),
        None => moments.push(new),
    }
}

impl Cell {
    fn add(&mut self, part: Part, fate: Fate, bytes: u64) {
        self.bytes.add(fate, bytes);
        let first = |now: Option<u64>, new: Option<u64>| now.into_iter().chain(new).min();
        if part.needed.is_some_and(|needed| self.needed.is_none_or(|first| needed < first)) {
            self.waited = part.waited;
        }
        (self.needed, self.came) = (first(self.needed, part.needed), first(self.came, part.came));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_fits_13_bits_and_loses_little() {
        for ms in [0, 3, 4, 1000, 2043, 2048, 5000, 60_000, 3_600_000, 60_000_000] {
            let back = millis(code(Duration::from_millis(ms))).unwrap();
            assert!(back <= ms && ms - back <= 4 + ms / 250, "{ms} came back as {back}");
        }
        assert_eq!(code(Duration::MAX), TIME);
        assert_eq!((millis(0), millis(code(Duration::ZERO))), (None, Some(0)));
    }

    #[test]
    fn an_image_of_any_size_is_recorded_within_a_mebibyte() {
        let record = Arc::new(Record::default());
        let layers: Vec<_> = (0..500).map(|_| Heat::new(Some(&record), u32::MAX)).collect();
        let parts: usize = layers.iter().map(|layer| layer.parts.len()).sum();
        assert!(parts * size_of::<AtomicU32>() <= 1 << 20, "{parts}");
        assert_eq!(layers[0].parts.len(), OF_LAYER);
        assert!(layers[40].parts.len() > 500, "the others have some as well");
        let small = Heat::new(Some(&Arc::default()), 3);
        assert_eq!(small.parts.len(), 3, "no more than there are checks");
        // One that has no part, or is not recorded, takes what it is told.
        for none in [Heat::new(None, 10), Heat::new(Some(&record), 10)] {
            none.needed(0..10, true);
            none.came(9);
            none.demanded(0);
        }
    }

    #[test]
    fn each_byte_has_one_fate() {
        let heat = Heat::new(Some(&Arc::default()), 8);
        let fate = |check: u32, is_here| Part::of(heat.parts[check as usize].load(Ordering::Relaxed)).fate(|| is_here);
        heat.needed(0..1, true);
        heat.demanded(0);
        assert_eq!(fate(0, false), Fate::Missing, "it has not come yet");
        heat.came(0);
        heat.came(1);
        heat.needed(1..4, false);
        heat.came(4);
        heat.needed(6..6, true);
        let fates: Vec<_> = (0..7).map(|check| fate(check, check != 6)).collect();
        use Fate::{Cached, Demanded, Foreseen, Idle, Missing, Unused};
        assert_eq!(fates, [Demanded, Foreseen, Cached, Cached, Unused, Idle, Missing]);
        let waited = |check: usize| Part::of(heat.parts[check].load(Ordering::Relaxed)).waited;
        assert!(waited(0) && !waited(1));
        heat.needed(1..2, true);
        assert!(!waited(1), "the first time counts");
    }
}
