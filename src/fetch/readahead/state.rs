//! What is remembered of a mount's reads, and what they make one wish for.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use super::super::asker::Planned;
use super::super::plan;
use super::files::{Node, Place};
use super::policy::mentions::Mentions;
use super::policy::near::{CREDIT, Directory, MOST_CREDIT};
use super::policy::programs::Programs;
use super::stretch::Stretch;
use super::{FLOOR, Readahead, SMALL, WHOLE};
use crate::blob::ByteRange;
use crate::index::Damaged;

/// Of a larger file, so much of its end is wished for at its first read: there the dynamic section of a program is, and the directory of an archive.
pub(super) const TAIL: u64 = 64 << 10;

/// The largest window around a random miss in a large file, and ahead of a sequential reader.
const LARGEST_WINDOW: u64 = 4 << 20;
const LARGEST_AHEAD: u64 = 8 << 20;

/// Who has read so many bytes of a large file in order is a sequential reader; the kernel's own read-ahead is up to 1 MiB.
const IN_ORDER: u64 = 512 << 10;
const OUT_OF_ORDER: u64 = 1 << 20;

/// Nothing is guessed any more when more than so many times what was read was asked for (and a little).
const MOST_ASKED: u64 = 3;

/// Somebody reads everything when more than this was read, and it is more than this share of what was fetched.
const EVERYTHING: u64 = 16 << 20;
const EVERYTHING_PERCENT: u64 = 50;

/// And who has read so many files in the order of the blob, each within so many bytes of contents behind the one before, goes on for a while.
const FILES_IN_ORDER: u32 = 32;
const NEXT: u64 = 4 << 20;

/// Units that are looked at in one go for some that are not there.
const LOOKED_AT: u32 = 4096;

/// Checks of a hit that are looked up on the FUSE thread.
const FEW_CHECKS: usize = 64;

/// Wishes of each kind that are remembered.
const REMEMBERED: usize = 256;

/// Requests that are put off.
const MOST_LATE: usize = 16;

pub(super) struct State {
    /// Files that were read.
    pub(super) seen: Seen,
    pub(super) programs: Programs,
    pub(super) mentions: Mentions,
    large: HashMap<Node, Large>,
    rests: Stack<Stretch>,
    pub(super) libraries: Stack<Stretch>,
    /// What the image's command needs. It counts once it was read: until then it has a bound of its own.
    pub(super) started: Stack<Stretch>,
    dirs: Stack<Directory>,
    /// What is put off, since its slice is coming for another guess.
    late: VecDeque<Next>,
    /// Layer and unit that were read last, and from where in the layer file to the end of the file that this is of.
    last: (usize, u32, ByteRange),
    /// Files that were read in the order of the blob, halved by each that was not.
    in_order: u32,
    /// What was wished for because everything is read: in this layer, from the first of these units to the second.
    everything: (usize, Range<u32>),
    /// The same from the start of each layer, where the one that is read has been fetched to its end.
    ends: HashMap<usize, u32>,
    /// Compressed bytes that were asked for, and those of units that were read, if only in part; again for each other part that is read.
    asked: u64,
    read: u64,
    /// The share of what was read, of these units.
    used: u64,
    waste: u64,
    /// Checks that were asked for and not read yet.
    guessed: HashMap<(usize, u32), Guessed>,
}

/// A set of nodes, a bit for each up to the greatest: somebody may read every file of a large image.
#[derive(Default)]
pub(super) struct Seen(Vec<u64>);

impl Seen {
    /// Whether it was not there before.
    pub(super) fn insert(&mut self, node: Node) -> bool {
        let Ok(word) = usize::try_from(node / 64) else { return false };
        if self.0.len() <= word {
            self.0.resize(word.saturating_add(1), 0);
        }
        let is_new = !self.contains(node);
        self.0.get_mut(word).into_iter().for_each(|word| *word |= 1 << (node % 64));
        is_new
    }

    pub(super) fn contains(&self, node: Node) -> bool {
        let word = usize::try_from(node / 64).ok().and_then(|word| self.0.get(word));
        word.is_some_and(|word| word & (1 << (node % 64)) != 0)
    }
}

/// The newest first; the oldest are forgotten.
pub(super) struct Stack<T>(VecDeque<T>);

impl<T> Stack<T> {
    pub(super) fn push(&mut self, item: T) {
        self.0.push_front(item);
        self.0.truncate(REMEMBERED);
    }
}

impl Stack<Stretch> {
    /// Takes one out.
    fn take(&mut self, is_it: impl Fn(&Stretch) -> bool) -> Option<Stretch> {
        let at = self.0.iter().position(is_it)?;
        self.0.remove(at)
    }

    /// What to fetch next of the newest wish, at most about `size` bytes.
    pub(super) fn next(&mut self, readahead: &Readahead, size: u64, counts: bool) -> Result<Option<Next>, Damaged> {
        while let Some(wish) = self.0.front_mut() {
            let layer = readahead.layers.get(wish.layer);
            if let Some(units) = layer.map(|layer| wish.next(layer, size)).transpose()?.flatten() {
                return Ok(Some(Next { layer: wish.layer, units, counts, goes_on: wish.goes_on }));
            }
            self.0.pop_front();
        }
        Ok(None)
    }
}

/// A check that nobody has read yet.
#[derive(Clone, Copy)]
struct Guessed {
    bytes: u64,
    /// Whether they are among those asked for already.
    counts: bool,
}

/// Units to be fetched.
pub(super) struct Next {
    pub(super) layer: usize,
    pub(super) units: Range<u32>,
    /// Whether they count for what may be guessed wrong.
    pub(super) counts: bool,
    /// Whether those behind them are wished for next.
    pub(super) goes_on: bool,
}

/// How a large file was read so far. Offsets are in the layer file.
struct Large {
    last: ByteRange,
    /// Bytes read in order.
    run: u64,
    misses: u32,
    /// The first unit that was not wished for ahead of a sequential reader.
    ahead: u32,
}

impl State {
    pub(super) fn new(waste: u64) -> Self {
        Self {
            seen: Seen::default(),
            programs: Programs::default(),
            mentions: Mentions::default(),
            large: HashMap::new(),
            rests: Stack(VecDeque::new()),
            libraries: Stack(VecDeque::new()),
            started: Stack(VecDeque::new()),
            dirs: Stack(VecDeque::new()),
            late: VecDeque::new(),
            last: (0, 0, ByteRange { start: 0, end: 0 }),
            in_order: 0,
            everything: (0, 0..0),
            ends: HashMap::new(),
            asked: 0,
            read: 0,
            used: 0,
            waste,
            guessed: HashMap::new(),
        }
    }

    /// Whether so much was guessed wrong that nothing more is.
    pub(super) fn is_over(&self) -> bool {
        self.asked > self.read.saturating_mul(MOST_ASKED).saturating_add(self.waste)
    }

    pub(super) fn last_layer(&self) -> usize {
        self.last.0
    }

    pub(super) fn has_missed(&self, file: Node) -> bool {
        self.large.get(&file).is_some_and(|large| large.misses > 0)
    }

    /// Whether a large file is read in order.
    pub(super) fn is_in_order(&self, file: Node) -> bool {
        self.large.get(&file).is_some_and(|large| large.run >= IN_ORDER)
    }

    /// A request was planned. One that does not count does so once it was read.
    pub(super) fn asked(&mut self, layer: usize, planned: &Planned, counts: bool) {
        if counts {
            self.asked = self.asked.saturating_add(planned.bytes);
            self.read = self.read.saturating_add(planned.needed);
            self.used = self.used.saturating_add(planned.used);
        }
        let guessed = planned.guessed.iter().map(|(check, bytes)| ((layer, *check), Guessed { bytes: *bytes, counts }));
        self.guessed.extend(guessed);
    }

    /// Checks were read; tells whether any of them was a guess.
    fn used(&mut self, layer: usize, checks: Range<u32>) -> bool {
        let before = self.read;
        if !self.guessed.is_empty() {
            for guess in checks.filter_map(|check| self.guessed.remove(&(layer, check))) {
                self.read = self.read.saturating_add(guess.bytes);
                self.used = self.used.saturating_add(guess.bytes);
                self.asked = self.asked.saturating_add(if guess.counts { 0 } else { guess.bytes });
            }
        }
        self.read > before
    }

    /// A read of `range`, which `checks` cover; tells whether there may be something to do now.
    pub(super) fn noticed(
        &mut self,
        readahead: &Readahead,
        (layer, file): (usize, Node),
        (range, checks): (ByteRange, Range<u32>),
        missed: bool,
    ) -> Result<bool, Damaged> {
        let used = self.used(layer, checks);
        if self.is_known(file) && !missed {
            return Ok(used);
        }
        let Some((place, units)) = readahead.units(file)? else { return Ok(false) };
        let Some(contents) = readahead.layers.get(layer) else { return Ok(false) };
        let here = contents.index.units_over(range)?;
        let rest = ByteRange { start: range.start, end: place.range.end };
        let (last_layer, _, last) = std::mem::replace(&mut self.last, (layer, here.end.saturating_sub(1), rest));
        let size = plan::compressed(&contents.index, &units)?;
        if self.seen.insert(file) {
            let is_next = last_layer == layer && (last.start..last.end.saturating_add(NEXT)).contains(&range.start);
            self.in_order = if is_next { self.in_order.saturating_add(1) } else { self.in_order / 2 };
            self.programs.push(file, false);
            // Of one who reads everything it comes anyway.
            if let Some(wish) = rest_of(readahead, place, &units, here.start)?.filter(|_| !self.reads_all(readahead)) {
                self.rests.push(wish);
            }
            if size <= SMALL && !self.mentions.has_told(file) {
                self.credit(readahead, file);
            }
            // Where everything has been there so far there is nothing to guess.
            if missed || self.asked > 0 {
                self.mentions_of(readahead, file)?;
            }
        }
        if size > WHOLE {
            self.large(readahead, file, place, (range, here, units), missed)?;
        }
        Ok(true)
    }

    fn is_known(&self, file: Node) -> bool {
        self.seen.contains(file) && !self.large.contains_key(&file)
    }

    /// Whether a hit in this file tells nothing.
    pub(super) fn is_old(&self, layer: usize, file: Node, checks: &Range<u32>) -> bool {
        let is_guess = |check: u32| self.guessed.contains_key(&(layer, check));
        let no_guess = self.guessed.is_empty() || (checks.len() <= FEW_CHECKS && !checks.clone().any(is_guess));
        no_guess && self.is_known(file)
    }

    fn credit(&mut self, readahead: &Readahead, file: Node) {
        let Some(dir) = readahead.neighbourhood().dir(file) else { return };
        let known = self.dirs.0.iter().position(|known| known.dir == dir).and_then(|at| self.dirs.0.remove(at));
        let credit = known.map_or(0, |known| known.credit).saturating_add(CREDIT).min(MOST_CREDIT);
        self.dirs.push(Directory { dir, last: file, credit });
    }

    fn large(
        &mut self,
        readahead: &Readahead,
        file: Node,
        place: Place,
        (range, here, units): (ByteRange, Range<u32>, Range<u32>),
        missed: bool,
    ) -> Result<(), Damaged> {
        let Some(contents) = readahead.layers.get(place.layer) else { return Ok(()) };
        let (budget, reads_all) = (readahead.budget(place.layer), self.reads_all(readahead));
        let large = self.large.entry(file).or_insert(Large { last: range, run: 0, misses: 0, ahead: 0 });
        let goes_on = range.start >= large.last.start && range.start <= large.last.end.saturating_add(OUT_OF_ORDER);
        large.run = if goes_on { large.run.saturating_add(range.len()) } else { range.len() };
        large.last = range;
        if large.run >= IN_ORDER {
            let window = large.run.clamp(budget.min(LARGEST_AHEAD), LARGEST_AHEAD);
            let half = plan::forward(&contents.index, here.end.saturating_sub(1), window / 2, units.end)?;
            let last = plan::forward(&contents.index, here.end.saturating_sub(1), window, units.end)?;
            let until = if reads_all { contents.index.summary().units } else { units.end };
            let end = plan::to_slice_end(&contents.index, last, until)?.saturating_add(1);
            if large.ahead <= half || large.ahead > end {
                let start = if large.ahead > end { here.end } else { large.ahead.max(here.end) };
                large.ahead = end;
                // What is left of the one before comes first, since it ends where this one begins.
                let before = self.rests.take(|wish| wish.goes_on_at(place.layer, start));
                let wish = before.map_or_else(|| Stretch::in_order(place.layer, start..end), |wish| wish.up_to(end));
                self.rests.push(wish);
            }
        } else if missed {
            let window = (budget / 2)
                .max(FLOOR)
                .saturating_mul(1u64.checked_shl(large.misses).unwrap_or(u64::MAX))
                .min(LARGEST_WINDOW);
            large.misses = large.misses.saturating_add(1);
            let start = plan::backward(&contents.index, here.start, window / 2, units.start)?;
            let end =
                plan::forward(&contents.index, here.end.saturating_sub(1), window / 2, units.end)?.saturating_add(1);
            self.rests.push(Stretch::new(place.layer, start..end, here.end));
        }
        Ok(())
    }

    /// What to fetch next, at most about `size` bytes of it.
    pub(super) fn next(&mut self, readahead: &Readahead, size: u64) -> Result<Option<Next>, Damaged> {
        if self.is_over() {
            self.late.retain(|next| !next.counts);
        }
        for _ in 0..self.late.len() {
            let Some(next) = self.late.pop_front() else { break };
            if !readahead.is_coming(&next)? {
                return Ok(Some(next));
            }
            self.late.push_back(next);
        }
        while let Some(next) = self.newest(readahead, size)? {
            if self.late.len() >= MOST_LATE || !readahead.is_coming(&next)? {
                return Ok(Some(next));
            }
            self.late.push_back(next);
        }
        Ok(None)
    }

    /// The same of what is newest.
    fn newest(&mut self, readahead: &Readahead, size: u64) -> Result<Option<Next>, Damaged> {
        self.look_into_programs(readahead)?;
        let is_over = self.is_over();
        if !is_over {
            for stack in [&mut self.rests, &mut self.libraries] {
                if let Some(next) = stack.next(readahead, size, true)? {
                    return Ok(Some(next));
                }
            }
        }
        if let Some(next) = self.next_mentioned(readahead, size, is_over)? {
            return Ok(Some(next));
        }
        if let Some(next) = self.started.next(readahead, size, false)? {
            return Ok(Some(next));
        }
        if is_over {
            return self.next_in_order(readahead);
        }
        while let Some(dir) = self.dirs.0.front_mut() {
            if let Some((layer, units)) = readahead.near(dir, size)? {
                return Ok(Some(Next { layer, units, counts: true, goes_on: false }));
            }
            self.dirs.0.pop_front();
        }
        Ok(self.everything(readahead)?.map(|(layer, units)| Next { layer, units, counts: true, goes_on: true }))
    }

    /// What lies behind the last read of who has read many files in the order of the blob, whatever was guessed wrong before: a slice ahead at most.
    fn next_in_order(&mut self, readahead: &Readahead) -> Result<Option<Next>, Damaged> {
        let (layer, unit, _) = self.last;
        let Some(contents) = readahead.layers.get(layer).filter(|_| self.in_order >= FILES_IN_ORDER) else {
            return Ok(None);
        };
        let ahead = if self.everything.0 == layer && self.everything.1.contains(&unit) {
            plan::compressed(&contents.index, &(unit..self.everything.1.end))?
        } else {
            0
        };
        if ahead > plan::SLICE {
            return Ok(None);
        }
        Ok(self.everything(readahead)?.map(|(layer, units)| Next { layer, units, counts: true, goes_on: true }))
    }

    /// Whether somebody reads everything, or does so for a while.
    pub(super) fn reads_all(&self, readahead: &Readahead) -> bool {
        let came = self.asked.saturating_sub(readahead.flying());
        let reads_all =
            self.used > EVERYTHING && self.used.saturating_mul(100) > came.saturating_mul(EVERYTHING_PERCENT);
        reads_all || self.in_order >= FILES_IN_ORDER
    }

    /// Where somebody reads everything: what lies behind the last read.
    fn everything(&mut self, readahead: &Readahead) -> Result<Option<(usize, Range<u32>)>, Damaged> {
        if !self.reads_all(readahead) {
            return Ok(None);
        }
        let (layer, unit, _) = self.last;
        if self.everything.0 != layer || !self.everything.1.contains(&unit) {
            self.everything = (layer, unit..unit.saturating_add(1));
        }
        let end = &mut self.everything.1.end;
        if let Some(units) = missing_from(readahead, layer, end)? {
            return Ok(Some((layer, units)));
        }
        if readahead.layers.get(layer).is_some_and(|contents| *end < contents.index.summary().units) {
            // There is more to look at the next time.
            return Ok(None);
        }
        // To its end; what is left is elsewhere.
        for layer in 0..readahead.layers.len() {
            let end = self.ends.entry(layer).or_insert(0);
            if let Some(units) = missing_from(readahead, layer, end)? {
                return Ok(Some((layer, units)));
            }
        }
        Ok(None)
    }
}

/// The next units of a layer that are not there; `start` is moved behind what was looked at.
fn missing_from(readahead: &Readahead, layer: usize, start: &mut u32) -> Result<Option<Range<u32>>, Damaged> {
    let Some(contents) = readahead.layers.get(layer).filter(|layer| layer.source.is_remote()) else { return Ok(None) };
    let until = contents.index.summary().units.max(*start).min(start.saturating_add(LOOKED_AT));
    let found = Stretch::in_order(layer, *start..until).next(contents, plan::SLICE)?;
    *start = found.as_ref().map_or(until, |units| units.end);
    Ok(found)
}

/// All of a file, from a unit on; of a larger one its end.
pub(super) fn rest_of(
    readahead: &Readahead,
    place: Place,
    units: &Range<u32>,
    at: u32,
) -> Result<Option<Stretch>, Damaged> {
    let Some(contents) = readahead.layers.get(place.layer).filter(|_| !units.is_empty()) else { return Ok(None) };
    if plan::compressed(&contents.index, units)? <= WHOLE {
        return Ok(Some(Stretch::new(place.layer, units.clone(), at)));
    }
    let start = plan::backward(&contents.index, units.end - 1, TAIL, units.start)?;
    Ok(Some(Stretch::new(place.layer, start..units.end, start)))
}
