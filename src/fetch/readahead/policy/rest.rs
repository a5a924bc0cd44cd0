//! The rest of a file that was read, and what is next of a large one: ahead of who reads it in order, and around each miss of who does not.

use std::collections::HashMap;

use super::super::super::plan::{self, Tail};
use super::super::files::Node;
use super::super::image::{FLOOR, WHOLE};
use super::super::stack::Stack;
use super::super::stretch::Stretch;
use super::super::wish::{Origin, Wish};
use super::{Ask, Found, Known, News, Policy, Read};
use crate::blob::ByteRange;
use crate::index::Damaged;

/// The largest window around a random miss in a large file.
const LARGEST_WINDOW: u64 = 4 << 20;

/// The largest window ahead of a sequential reader: the first of these whatever the link carries, and so many of its budgets up to the second.
const AHEAD: std::ops::RangeInclusive<u64> = 8 << 20..=64 << 20;
const AHEAD_BUDGETS: u64 = 4;

/// Who has read so many bytes of a large file in order is a sequential reader; the kernel's own read-ahead is up to 1 MiB.
const IN_ORDER: u64 = 512 << 10;
const OUT_OF_ORDER: u64 = 1 << 20;

/// How large files were read, and what is wished for of all.
#[derive(Default)]
pub(super) struct Rest {
    large: HashMap<Node, Large>,
    rests: Stack<Stretch>,
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

impl Large {
    fn new(range: ByteRange) -> Self {
        Self { last: range, run: 0, misses: 0, ahead: 0 }
    }

    fn note(&mut self, range: ByteRange) {
        let until = self.last.end.saturating_add(OUT_OF_ORDER);
        let goes_on = range.start >= self.last.start && range.start <= until;
        self.run = if goes_on { self.run.saturating_add(range.len()) } else { range.len() };
        self.last = range;
    }

    fn is_in_order(&self) -> bool {
        self.run >= IN_ORDER
    }
}

impl Policy for Rest {
    fn origins(&self) -> &'static [Origin] {
        &[Origin::Rest]
    }

    fn told(&mut self, known: &Known<'_>, news: &News<'_>, _: &mut Found) -> Result<(), Damaged> {
        let News::Read(read) = news else { return Ok(()) };
        if read.is_first {
            let rest = Stretch::rest_of(&read.located, read.here.start)?;
            // Of one who reads everything it comes anyway.
            rest.filter(|_| !known.history.reads_all()).into_iter().for_each(|rest| self.rests.push(rest));
        }
        if read.size > WHOLE {
            self.large(known, read)?;
        }
        Ok(())
    }

    fn next(&mut self, known: &Known<'_>, ask: Ask, _: &mut Found) -> Result<Option<Wish>, Damaged> {
        self.rests.next(known.image, ask.size, ask.turn)
    }

    fn tail(&self, file: Node, end: u64, bytes: u64) -> Option<Tail> {
        let large = self.large.get(&file).filter(|large| large.misses > 0)?;
        let bytes = if large.is_in_order() { bytes.max(plan::SLICE) } else { bytes };
        Some(Tail { bytes, until: end, goes_on: true })
    }

    fn follows(&self, file: Node) -> bool {
        self.large.contains_key(&file)
    }
}

impl Rest {
    fn large(&mut self, known: &Known<'_>, read: &Read<'_>) -> Result<(), Damaged> {
        let budget = known.image.budget(read.located.place.layer);
        let large = self.large.entry(read.file).or_insert_with(|| Large::new(read.range));
        large.note(read.range);
        if large.is_in_order() {
            return ahead(large, &mut self.rests, read, known);
        }
        if read.missed {
            self.rests.push(around(large, read, budget)?);
        }
        Ok(())
    }
}

/// Wishes for more of a file ahead of who reads it in order, as soon as there is less than half of a window.
fn ahead(
    large: &mut Large,
    rests: &mut Stack<Stretch>,
    Read { located, here, .. }: &Read<'_>,
    Known { image, history }: &Known<'_>,
) -> Result<(), Damaged> {
    let (layer, number) = (located.layer, located.place.layer);
    let (budget, piece) = (image.budget(number), image.piece(number));
    let most = image.stream_budget(number).saturating_mul(AHEAD_BUDGETS).clamp(*AHEAD.start(), *AHEAD.end());
    // No more than was read in order, so that little is guessed wrong of a file that is not read on.
    let window = large.run.clamp(budget.min(most), most);
    let half = layer.forward(here.end.saturating_sub(1), window / 2, located.units.end)?;
    let last = layer.forward(here.end.saturating_sub(1), window, located.units.end)?;
    let until = if history.reads_all() { layer.count() } else { located.units.end };
    let end = layer.to_slice_end(last, until)?.saturating_add(1);
    if large.ahead <= half || large.ahead > end {
        let start = if large.ahead > end { here.end } else { large.ahead.max(here.end) };
        large.ahead = end;
        // What is left of the one before comes first, since it ends where this one begins.
        let before = rests.take(|rest| rest.goes_on_at(number, start));
        rests.push(before.map_or_else(|| Stretch::in_order(number, start..end, piece), |rest| rest.up_to(end, piece)));
    }
    Ok(())
}

/// What lies around a miss, the more of it the more often the file was missed.
fn around(large: &mut Large, Read { located, here, .. }: &Read<'_>, budget: u64) -> Result<Stretch, Damaged> {
    let (layer, units) = (located.layer, &located.units);
    let times = 1u64.checked_shl(large.misses).unwrap_or(u64::MAX);
    let window = (budget / 2).max(FLOOR).saturating_mul(times).min(LARGEST_WINDOW);
    large.misses = large.misses.saturating_add(1);
    let start = layer.backward(here.start, window / 2, units.start)?;
    let end = layer.forward(here.end.saturating_sub(1), window / 2, units.end)?.saturating_add(1);
    Ok(Stretch::new(located.place.layer, start..end, here.end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::readahead::fake::{Lab, UNIT};

    fn lab(size: u64) -> Lab {
        Lab::of(&[("/", Vec::new()), ("/file", vec![1; usize::try_from(size).unwrap()]), ("/next", vec![2; 1 << 20])])
    }

    #[test]
    fn a_file_comes_from_where_it_was_read_on_and_then_what_is_before() {
        let (mut lab, mut rest) = (lab(12 * UNIT), Rest::default());
        assert!(lab.next(&mut rest, Origin::Rest).is_none(), "nothing was read");
        lab.read(&mut rest, "/file", 6 * UNIT..7 * UNIT);
        let wishes = std::array::from_fn(|_| lab.next(&mut rest, Origin::Rest));
        assert_eq!(wishes, [Some(7..11), Some(11..12), Some(2..6), Some(0..2), None]);
        lab.read(&mut rest, "/file", 0..UNIT);
        assert!(lab.next(&mut rest, Origin::Rest).is_none() && !rest.follows(lab.node("/file")));
    }

    #[test]
    fn of_a_large_file_its_end_comes_and_what_is_around_a_miss() {
        let (mut lab, mut rest) = (lab(1024 * UNIT), Rest::default());
        lab.read(&mut rest, "/file", 500 * UNIT..501 * UNIT);
        let file = lab.node("/file");
        assert!(rest.follows(file) && rest.tail(file, 9, 5).is_some_and(|tail| tail.goes_on && tail.bytes == 5));
        let wishes = std::array::from_fn(|_| lab.next(&mut rest, Origin::Rest));
        // The newest first: two units to either side, of which one was read; then the end.
        assert_eq!(wishes, [Some(501..502), Some(499..500), Some(1020..1024), None]);
        lab.read(&mut rest, "/file", 700 * UNIT..701 * UNIT);
        assert_eq!(lab.next(&mut rest, Origin::Rest), Some(701..704), "twice as far");
    }

    #[test]
    fn who_reads_a_large_file_in_order_gets_whole_slices_ahead() {
        let (mut lab, mut rest) = (lab(1024 * UNIT), Rest::default());
        (0..32).for_each(|at| drop(lab.read(&mut rest, "/file", at * UNIT..(at + 1) * UNIT)));
        let tail = rest.tail(lab.node("/file"), 9, 5).unwrap();
        assert_eq!(tail, Tail { bytes: plan::SLICE, until: 9, goes_on: true });
        let wish = lab.ask(&mut rest, Ask { turn: Origin::Rest, size: UNIT, is_over: false }).unwrap();
        assert!(wish.goes_on && wish.counts && wish.origin == Origin::Rest);
        assert_eq!(wish.units, 32..64, "to the end of a slice, whatever was asked for");
    }

    #[test]
    fn a_fast_link_gets_few_requests_and_a_long_window() {
        let (mut lab, mut rest) = (lab(5000 * UNIT), Rest::default());
        // Eight slices in 16 ms: a window of 32, in requests of two.
        lab.link(500 * plan::SLICE);
        lab.image.here().start();
        let piece = lab.image.piece(0);
        assert_eq!(piece, 2 * plan::SLICE);
        assert_eq!(Stretch::in_order(0, 0..4000, piece).next(&lab.image, UNIT).unwrap(), Some(0..128));
        let (mut wishes, slice) = (Vec::new(), u32::try_from(plan::SLICE / UNIT).unwrap());
        for at in 0..2200 {
            drop(lab.read(&mut rest, "/file", at * UNIT..(at + 1) * UNIT));
            while let Some(units) = lab.next(&mut rest, Origin::Rest) {
                lab.bring(units.clone());
                wishes.push(units);
            }
        }
        let in_order: Vec<_> = wishes.iter().filter(|units| units.end < 5000 - slice).collect();
        let ahead = in_order.iter().map(|units| units.end).max().unwrap() - 2200;
        assert!(ahead > 16 * slice && ahead <= 33 * slice, "four times what comes in 16 ms: {ahead}");
    }
}
