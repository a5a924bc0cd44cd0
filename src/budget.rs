//! How much memory what is read of images may take: a budget for each image, and one for all of a process.
//!
//! Whoever builds something of an image's size charges for it before it takes the memory, and gives back when it is dropped. What an honest image
//! needs in proportion to its entries is not counted against the image, but against the process. What passes a limit is an error of that image;
//! nobody else hears of it.
//!
//! Memory that only building takes is lent to few at a time: [`PLACES`] build at once, and one alone what is large, so that images that fit one by
//! one fit together. Who waits for that waits for those that came before, and these for nothing but the CPU and the cache's disk.

mod gate;
mod memory;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::gate::Gate;
pub use self::gate::Place;
pub(crate) use self::memory::memory;
use crate::sys;

/// Bytes that an image may take beyond what is honest, unless its user says otherwise.
pub const DEFAULT_LIMIT: u64 = 256 << 20;

/// From so many bytes on one is built alone.
const LARGE: u64 = 16 << 20;

/// How many build at the same time: each takes up to some 10 MiB for the entry at hand. It is work for the CPU alone.
const PLACES: u64 = 8;

/// What counts as honest at most, for each byte that a layer's table of contents, or the layer, takes where it is stored. An entry takes at least some
/// ten there; one that takes next to nothing is not worth a place in memory.
const WORTH: u64 = 64;

/// The part of an image's limit that its tables of contents take at most while they are fetched, but for one that is larger.
const FETCHED: u64 = 4;

/// 32 KiB of window for each MiB that is unpacked, packed as that is.
const WINDOWS: u64 = 32;

/// Bytes of a table of contents that stand for 64 of what grows with the layer's bytes: a digest is in it for each part, which nothing packs.
const DIGESTS: u64 = 8;

/// What a byte of a layer unpacks to: so much of it a decoder may look back to.
const UNPACKED: u64 = 4;

/// What is taken ahead at most, so that not every byte is asked for by itself.
const AHEAD: u64 = 1 << 20;

/// The memory of an image, or of all of them. What is cloned is the same budget.
#[derive(Debug, Clone, Default)]
pub struct Budget(Option<Arc<Account>>);

#[derive(Debug)]
struct Account {
    used: AtomicU64,
    limit: AtomicU64,
    /// For what is fetched.
    turn: Arc<Gate>,
    places: Arc<Places>,
    /// That of all images, where this is one's.
    all: Option<Arc<Account>>,
}

/// Who builds at the same time, of all images.
#[derive(Debug)]
struct Places {
    building: Arc<Gate>,
    alone: Arc<Gate>,
}

/// There is not so much left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    #[error(
        "the image takes more than {} of memory beside what its entries are worth; if it is to be trusted, give it more by --memory-limit", size(*limit)
    )]
    Image { limit: u64 },
    #[error(
        "all images of this process together take more than {} of memory, which is half of what there is, or twice an image's --memory-limit; use \
         fewer at a time, or give it more memory",
        size(*limit)
    )]
    All { limit: u64 },
}

/// As it may have been typed: in the largest unit of which it is at least one.
fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..0x10_0000 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

impl Budget {
    /// For tests, and for what nobody else has made.
    pub const UNLIMITED: Self = Self(None);

    /// For all images of a process: half of the memory that there is.
    #[must_use]
    pub fn of_process() -> Self {
        Self::new(memory().map_or(u64::MAX, |bytes| bytes / 2).max(2 * DEFAULT_LIMIT), None)
    }

    /// For one image among these. Two of its kind always have room.
    #[must_use]
    pub fn of_image(&self, limit: u64) -> Self {
        if let Some(all) = &self.0 {
            all.limit.fetch_max(limit.saturating_mul(2), Ordering::Relaxed);
        }
        Self::new(limit, self.0.clone())
    }

    /// For another image, of the same limit.
    #[must_use]
    pub fn another(&self) -> Self {
        let new = |account: &Arc<Account>| Self::new(account.limit.load(Ordering::Relaxed), account.all.clone());
        self.0.as_ref().map_or(Self::UNLIMITED, new)
    }

    fn new(limit: u64, all: Option<Arc<Account>>) -> Self {
        let new = || Arc::new(Places { building: Gate::new(PLACES), alone: Gate::new(1) });
        let places = all.as_ref().map_or_else(new, |all| Arc::clone(&all.places));
        let turn = Gate::new((limit / FETCHED).max(1));
        let (used, limit) = (AtomicU64::new(0), AtomicU64::new(limit));
        Self(Some(Arc::new(Account { used, limit, turn, places, all })))
    }

    /// Bytes that are taken now.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.0.as_ref().map_or(0, |account| account.used.load(Ordering::Relaxed))
    }

    /// Waits for the image's turn to fetch so many bytes and to hold them while something is built of them. A quarter of the limit is lent at a time, so
    /// that layers that fit one by one do not depend on when each comes; what is larger comes alone. No other image waits for it.
    #[must_use]
    pub fn turn(&self, bytes: u64) -> Option<Place> {
        self.0.as_ref().map(|account| account.turn.enter(bytes))
    }

    /// For what comes of so many stored bytes.
    #[must_use]
    pub fn charge(&self, stored: u64) -> Charge {
        Charge::new(self, Worth::Known(stored.saturating_mul(WORTH)))
    }

    /// The same for what comes of a layer while that comes.
    #[must_use]
    pub fn charge_as_it_comes(&self, arrived: &Arrived) -> Charge {
        Charge::new(self, Worth::Coming(arrived.clone(), WORTH, 1))
    }

    /// The same for what is built by this thread, without waiting for anything but memory, the CPU and the cache's disk. Waits for a place.
    #[must_use]
    pub fn build(&self, stored: u64) -> Charge {
        self.build_worth(stored.saturating_mul(WORTH))
    }

    /// The same for what comes of other things that are built: what they are worth together.
    #[must_use]
    pub fn build_worth(&self, worth: u64) -> Charge {
        let place = self.0.as_ref().map(|account| account.places.building.enter(1));
        let mut charge = Charge::new(self, Worth::Known(worth));
        charge.place = place;
        charge
    }
}

impl Account {
    fn take(&self, bytes: u64) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        let taken = |used: u64| used.checked_add(bytes).filter(|used| *used <= limit);
        bytes == 0 || self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }

    fn give(&self, bytes: u64) {
        let _used =
            self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| Some(used.saturating_sub(bytes)));
    }

    /// `all`: bytes that are to be taken of the process's budget, of which `own` are the image's.
    fn take_both(&self, all: u64, own: u64) -> Result<(), Exceeded> {
        let limit = |account: &Self| account.limit.load(Ordering::Relaxed);
        if !self.take(own) {
            return Err(Exceeded::Image { limit: limit(self) });
        }
        match &self.all {
            Some(process) if !process.take(all) => {
                self.give(own);
                Err(Exceeded::All { limit: limit(process) })
            }
            _ => Ok(()),
        }
    }

    fn give_both(&self, all: u64, own: u64) {
        self.give(own);
        self.all.iter().for_each(|process| process.give(all));
    }
}

/// Bytes of a layer that have come so far: what a manifest says of its size is only somebody's word. What is cloned counts the same.
#[derive(Debug, Clone, Default)]
pub struct Arrived(Arc<AtomicU64>);

impl Arrived {
    pub fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// How much of what comes of something may be honest.
#[derive(Debug, Clone)]
enum Worth {
    Known(u64),
    /// So much for so many bytes that have come.
    Coming(Arrived, u64, u64),
}

impl Default for Worth {
    fn default() -> Self {
        Self::Known(0)
    }
}

impl Worth {
    fn now(&self) -> u64 {
        match self {
            Self::Known(bytes) => *bytes,
            Self::Coming(arrived, much, each) => arrived.0.load(Ordering::Relaxed).saturating_mul(*much) / each,
        }
    }
}

/// Bytes that are taken of a budget, until this is dropped.
#[derive(Debug, Default)]
pub struct Charge {
    budget: Budget,
    /// All bytes, and those of them that the image's limit is for.
    all: u64,
    own: u64,
    worth: Worth,
    place: Option<Place>,
    alone: Option<Place>,
}

impl Charge {
    fn new(budget: &Budget, worth: Worth) -> Self {
        Self { budget: budget.clone(), all: 0, own: 0, worth, place: None, alone: None }
    }

    /// How much of what comes of the same bytes may be honest.
    #[must_use]
    pub fn worth(&self) -> u64 {
        self.worth.now()
    }

    #[must_use]
    pub const fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Bytes that are taken.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.all
    }

    /// Another one of the same budget, for something else that comes of the same bytes.
    #[must_use]
    pub fn beside(&self) -> Self {
        Self::new(&self.budget, self.worth.clone())
    }

    /// The same for what grows with a layer's bytes and not with its entries: the windows that unpacking starts from. A thirty-second of these bytes is
    /// honest, as far as they have come. Where they do not come, `blob` is what is said of them, and the table of contents is to show that it knows them.
    #[must_use]
    pub fn beside_windows(&self, blob: u64) -> Self {
        let worth = match &self.worth {
            Worth::Coming(arrived, ..) => Worth::Coming(arrived.clone(), 1, WINDOWS),
            Worth::Known(_) => Worth::Known((blob / WINDOWS).min(self.worth_of_parts())),
        };
        Self::new(&self.budget, worth)
    }

    /// The same for what a decoder keeps of what it has unpacked.
    #[must_use]
    pub fn beside_decoder(&self) -> Self {
        let worth = match &self.worth {
            Worth::Coming(arrived, ..) => Worth::Coming(arrived.clone(), UNPACKED, 1),
            Worth::Known(worth) => Worth::Known(worth / WORTH * UNPACKED),
        };
        Self::new(&self.budget, worth)
    }

    /// How much may be honest of what there is for each part of a layer that has a digest.
    #[must_use]
    pub fn worth_of_parts(&self) -> u64 {
        self.worth.now() / WORTH * DIGESTS
    }

    /// What of so many bytes the image's limit is for.
    fn own(&self, bytes: u64, honest: u64) -> u64 {
        bytes.saturating_sub(honest.min(self.worth.now()))
    }

    /// Sees to it that `bytes` are taken, of which `honest` are what an honest image of as many entries would need.
    ///
    /// # Errors
    /// Where there are not so many; what was taken before stays taken.
    pub fn cover(&mut self, bytes: u64, honest: u64) -> Result<(), Exceeded> {
        let own = self.own(bytes, honest);
        if bytes <= self.all && own <= self.own {
            return Ok(());
        }
        self.grow(bytes.max(self.all), own.max(self.own))
    }

    fn grow(&mut self, all: u64, own: u64) -> Result<(), Exceeded> {
        let Some(account) = self.budget.0.clone() else { return Ok(()) };
        if self.place.is_some() && self.alone.is_none() && all > LARGE {
            self.alone = Some(account.places.alone.enter(1));
        }
        let (more, more_own) = (all - self.all, own - self.own);
        let ahead = (all / 8).min(AHEAD);
        let own_ahead = if more_own > 0 { ahead } else { 0 };
        let taken = match account.take_both(more + ahead, more_own + own_ahead) {
            Ok(()) => (ahead, own_ahead),
            Err(_) => account.take_both(more, more_own).map(|()| (0, 0))?,
        };
        (self.all, self.own) = (all + taken.0, own + taken.1);
        Ok(())
    }

    /// What was built is ready: takes no more than it needs from now on, and lets others build.
    ///
    /// # Errors
    /// Where that is more than was taken, and there is not so much.
    pub fn settle(&mut self, bytes: u64, honest: u64) -> Result<(), Exceeded> {
        self.cover(bytes, honest)?;
        let own = self.own(bytes, honest);
        if let Some(account) = &self.budget.0 {
            account.give_both(self.all.saturating_sub(bytes), self.own.saturating_sub(own));
            (self.all, self.own) = (bytes, own);
        }
        self.leave();
        Ok(())
    }

    fn leave(&mut self) {
        if let Some(alone) = self.alone.take() {
            // What was freed in small blocks would otherwise stay with the process.
            sys::give_back_heap();
            drop(alone);
        }
        self.place = None;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some(account) = &self.budget.0 {
            account.give_both(self.all, self.own);
        }
        self.leave();
    }
}

/// What takes memory is what it is, whoever was charged for it.
impl PartialEq for Charge {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Charge {}

#[cfg(test)]
mod tests {
    use super::gate::tests::until_waiting;
    use super::*;

    const ANY: u64 = u64::MAX;

    #[test]
    fn limits_are_said_in_a_unit_that_they_have() {
        let said = |limit| Exceeded::Image { limit }.to_string();
        assert!(said(1000).contains("more than 1000 bytes of memory"), "{}", said(1000));
        assert!(
            said(1024).contains("more than 1 KiB of memory") && said(256 << 20).contains("more than 256 MiB of memory")
        );
    }

    #[test]
    fn what_is_dropped_is_given_back() {
        let all = Budget::new(1000, None);
        let image = Budget::new(100, all.0.clone());
        let mut one = image.charge(ANY);
        one.cover(500, 450).unwrap();
        let mut other = image.charge(ANY);
        assert_eq!(other.cover(60, 0), Err(Exceeded::Image { limit: 100 }));
        assert_eq!(other.cover(560, 550), Err(Exceeded::All { limit: 1000 }), "the entries of all count");
        assert_eq!(image.used(), one.own, "what was refused is not kept");
        drop(one);
        assert_eq!((all.used(), image.used()), (0, 0));
        other.cover(60, 0).unwrap();
        other.settle(10, 0).unwrap();
        assert_eq!((all.used(), image.used()), (10, 10));
    }

    #[test]
    fn a_charge_takes_a_little_ahead_where_there_is_some() {
        let image = Budget::new(1 << 30, None);
        let mut charge = image.charge(ANY);
        charge.cover(64 << 20, 0).unwrap();
        assert_eq!(image.used(), (64 << 20) + AHEAD);
        charge.cover((64 << 20) + AHEAD, 0).unwrap();
        assert_eq!(image.used(), (64 << 20) + AHEAD, "it was taken before");
        charge.cover(1 << 30, 0).unwrap();
        assert_eq!(image.used(), 1 << 30, "to the last byte");
        assert_eq!(charge.cover((1 << 30) + 1, 0), Err(Exceeded::Image { limit: 1 << 30 }));
    }

    #[test]
    fn one_image_takes_nothing_from_another_ones_limit() {
        let all = Budget::new(0, None);
        let [one, other] = [all.of_image(100), all.of_image(100)];
        let mut charge = one.charge(ANY);
        charge.cover(100, 0).unwrap();
        assert!(charge.cover(101, 0).is_err());
        other.charge(ANY).cover(100, 0).unwrap();
        assert!(all.of_image(1000).charge(ANY).cover(1000, 0).is_ok(), "the process's limit follows");
    }

    #[test]
    fn what_hardly_anything_is_stored_of_is_not_honest() {
        let image = Budget::new(100, None);
        image.charge(10).cover(740, 640).unwrap();
        assert!(image.charge(10).cover(741, 700).is_err());
        assert!(image.charge(10).beside().cover(741, 700).is_err());
    }

    #[test]
    fn what_has_not_come_is_not_honest() {
        let (image, arrived) = (Budget::new(0, None), Arrived::default());
        let mut charge = image.charge_as_it_comes(&arrived);
        let [mut windows, mut decoder] = [charge.beside_windows(1 << 40), charge.beside_decoder()];
        assert!([&mut charge, &mut windows, &mut decoder].into_iter().all(|charge| charge.cover(1, 1).is_err()));
        arrived.add(32);
        charge.cover(32 * 64, ANY).unwrap();
        windows.cover(1, ANY).unwrap();
        decoder.cover(32 * 4, ANY).unwrap();
        assert!(
            [&mut charge, &mut windows, &mut decoder].into_iter().all(|charge| charge.cover(1 << 20, ANY).is_err())
        );
    }

    #[test]
    fn what_is_said_of_a_layer_is_not_honest_without_a_table_that_knows_it() {
        let image = Budget::new(0, None);
        image.charge(100).beside_windows(3200).cover(100, ANY).unwrap();
        assert!(image.charge(100).beside_windows(3200).cover(101, ANY).is_err());
        assert!(image.charge(10).beside_windows(u64::MAX).cover(81, ANY).is_err());
    }

    #[test]
    fn no_limit_is_none() {
        let mut charge = Budget::UNLIMITED.build(ANY);
        charge.cover(u64::MAX, 0).unwrap();
        charge.settle(0, 0).unwrap();
    }

    #[test]
    fn what_is_large_is_built_alone() {
        let image = Budget::new(u64::MAX, None);
        let alone = &image.0.as_ref().unwrap().places.alone;
        let mut one = image.build(ANY);
        one.cover(LARGE + 1, LARGE).unwrap();
        let (told, tells) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let image = &image;
            scope.spawn(move || {
                let mut other = image.build(ANY);
                other.cover(1, 0).unwrap();
                told.send("small").unwrap();
                other.cover(LARGE + 1, 0).unwrap();
                told.send("large").unwrap();
            });
            assert_eq!(tells.recv(), Ok("small"));
            until_waiting(alone, 1, || tells.try_recv().is_ok());
            one.settle(LARGE + 1, 0).unwrap();
            assert_eq!(tells.recv(), Ok("large"));
        });
        assert!(image.build(ANY).place.is_some(), "its place is free again");
    }

    #[test]
    fn so_many_build_at_a_time_of_all_images_together() {
        let all = Budget::new(0, None);
        let [one, other] = [all.of_image(100), all.of_image(100)];
        let mut building: Vec<_> = (0..PLACES).map(|_| one.build(ANY)).collect();
        let gate = &all.0.as_ref().unwrap().places.building;
        std::thread::scope(|scope| {
            let last = scope.spawn(|| drop(other.build(ANY)));
            until_waiting(gate, 1, || last.is_finished());
            building.pop();
            last.join().unwrap();
        });
    }

    #[test]
    fn what_is_fetched_takes_a_part_of_the_limit_at_a_time() {
        let image = Budget::new(400, None);
        let two = [image.turn(50), image.turn(50)];
        let gate = &image.0.as_ref().unwrap().turn;
        std::thread::scope(|scope| {
            let more = scope.spawn(|| drop(image.turn(1)));
            until_waiting(gate, 1, || more.is_finished());
            drop(two);
            more.join().unwrap();
            let large = image.turn(300);
            let small = scope.spawn(|| drop(image.turn(1)));
            until_waiting(gate, 1, || small.is_finished());
            drop(large);
            small.join().unwrap();
        });
        assert!(Budget::UNLIMITED.turn(1).is_none());
    }
}
