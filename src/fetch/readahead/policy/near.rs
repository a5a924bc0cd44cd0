//! The small files near one that was read: a program that reads one file of a directory often reads more of it.

use std::ops::Range;

use super::super::super::plan;
use super::super::files::{Neighbourhood, Node, Place};
use super::super::{Readahead, SMALL};
use crate::index::Damaged;

/// What reading a small file for the first time gives its directory to spend on others.
pub(in super::super) const CREDIT: u64 = 128 << 10;

/// More than this is not saved up.
pub(in super::super) const MOST_CREDIT: u64 = 4 << 20;

/// Units of a file that are looked at; a small one seldom has more than two.
const LOOKED_AT: usize = 64;

/// Files that are looked at in one go for some that are not there: a directory may have thousands, all of them in the cache.
const CANDIDATES: usize = 128;

/// A directory with something to spend.
#[derive(Debug)]
pub(in super::super) struct Directory {
    pub(in super::super) dir: Node,
    /// The file of it that was read last.
    pub(in super::super) last: Node,
    pub(in super::super) credit: u64,
}

/// A request costs a server more than so few bytes are worth.
const LEAST: u64 = 8 << 10;

/// A small file: where its contents are, in which units, and how many bytes these have.
struct Small {
    place: Place,
    units: Range<u32>,
    bytes: u64,
}

/// Small files that lie next to each other.
struct Run {
    layer: usize,
    units: Range<u32>,
    way: Way,
    bytes: u64,
}

/// Which way a file lies from another.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Behind,
    Before,
}

impl Readahead {
    /// Where the run of small files of one directory ends that `file` starts in the blob; about `bytes` far.
    pub(in super::super) fn end_of_small_files(&self, file: Node, place: Place, bytes: u64) -> Result<u64, Damaged> {
        let neighbourhood = self.neighbourhood();
        let dir = neighbourhood.dir(file);
        let [behind, _] = neighbourhood.beside(&*self.files, file);
        let (mut until, mut sum) = (place.range.end, 0u64);
        for next in behind {
            let Some(small) = self.small(next)?.filter(|_| neighbourhood.dir(next) == dir) else { break };
            if sum >= bytes {
                break;
            }
            sum = sum.saturating_add(small.bytes);
            until = small.place.range.end;
        }
        Ok(until)
    }

    /// `None` for a file that is not small.
    fn small(&self, file: Node) -> Result<Option<Small>, Damaged> {
        let Some((place, units)) = self.units(file)? else { return Ok(None) };
        let bytes = self.size(place.layer, &units)?;
        Ok((bytes <= SMALL).then_some(Small { place, units, bytes }))
    }

    /// Where a file is, and the units that hold it.
    pub(in super::super) fn units(&self, file: Node) -> Result<Option<(Place, Range<u32>)>, Damaged> {
        let Some(place) = self.files.place(file) else { return Ok(None) };
        let Some(layer) = self.layers.get(place.layer) else { return Ok(None) };
        Ok(Some((place, layer.index.units_over(place.range)?)))
    }

    /// Adjacent small files near the last one read in a directory, about `size` bytes of them, which its credit then pays for. Runs that are
    /// too short for a request of their own are passed over.
    pub(in super::super) fn near(
        &self,
        near: &mut Directory,
        size: u64,
    ) -> Result<Option<(usize, Range<u32>)>, Damaged> {
        let mut run: Option<Run> = None;
        for (file, way) in self.candidates(near).into_iter().take(CANDIDATES) {
            let small = self.small(file)?.filter(|small| small.bytes <= near.credit);
            let Some(Small { place, units, bytes }) = small else { continue };
            let is_absent = self.is_absent(place.layer, &units)?;
            if let Some(run) = run.as_mut().filter(|_| is_absent) {
                if self.join(run, (place.layer, &units, way), near.credit.min(size))? {
                    continue;
                }
            }
            if run.as_ref().is_some_and(|run| run.bytes >= LEAST) {
                break;
            }
            run = is_absent.then_some(Run { layer: place.layer, units, way, bytes });
        }
        let Some(run) = run.filter(|run| run.bytes >= LEAST) else { return Ok(None) };
        near.credit = near.credit.saturating_sub(run.bytes);
        Ok(Some((run.layer, run.units)))
    }

    /// Makes a run longer by units that lie next to it, up to a size; says whether it did.
    fn join(&self, run: &mut Run, (layer, units, way): (usize, &Range<u32>, Way), size: u64) -> Result<bool, Damaged> {
        if run.layer != layer || run.way != way || !self.touch(layer, &run.units, units)? {
            return Ok(false);
        }
        let joined = run.units.start.min(units.start)..run.units.end.max(units.end);
        let bytes = self.size(layer, &joined)?;
        if bytes <= size {
            (run.units, run.bytes) = (joined, bytes);
        }
        Ok(bytes <= size)
    }

    /// The best first: behind the last one read, then before it, in its directory; then the same below the directory that holds it.
    fn candidates(&self, near: &Directory) -> Vec<(Node, Way)> {
        let neighbourhood = self.neighbourhood();
        let [behind, before] = neighbourhood.beside(&*self.files, near.last);
        let parent = self.files.parent(near.dir).unwrap_or(near.dir);
        let below = |file: &Node, above| {
            neighbourhood.dir(*file).is_some_and(|dir| Neighbourhood::is_below(&*self.files, dir, above))
        };
        let own = |files: &[Node], way| -> Vec<(Node, Way)> {
            let in_it = files.iter().take_while(|file| below(file, near.dir));
            in_it.filter(|file| neighbourhood.dir(**file) == Some(near.dir)).map(|file| (*file, way)).collect()
        };
        let around = |files: &[Node], way| -> Vec<(Node, Way)> {
            let mut far = 0u64;
            let near_enough = |file: &Node| {
                far = far.saturating_add(self.files.place(*file).map_or(0, |place| place.range.len()).min(SMALL));
                far <= near.credit.saturating_mul(2)
            };
            files
                .iter()
                .copied()
                .take_while(|file| below(file, parent))
                .take_while(near_enough)
                .map(|file| (file, way))
                .collect()
        };
        let parts = [
            own(&behind, Way::Behind),
            own(&before, Way::Before),
            around(&behind, Way::Behind),
            around(&before, Way::Before),
        ];
        parts.concat()
    }

    /// The units of a file that are not there, made longer over `wished` files near it, up to `size` bytes and no further than over `gap` bytes.
    pub(in super::super) fn run_of(
        &self,
        file: Node,
        (layer, units): (usize, Range<u32>),
        (size, gap): (u64, u64),
        wished: impl Fn(&Node) -> bool,
    ) -> Result<Option<Range<u32>>, Damaged> {
        if !self.is_absent(layer, &units)? {
            return Ok(None);
        }
        let mut run = units;
        for side in self.neighbourhood().beside(&*self.files, file) {
            for next in side {
                let Some((_, units)) = self.units(next)?.filter(|(place, _)| place.layer == layer) else { break };
                let between = run.end.min(units.end)..run.start.max(units.start);
                let joined = run.start.min(units.start)..run.end.max(units.end);
                if self.size(layer, &between)? > gap || self.size(layer, &joined)? > size {
                    break;
                }
                if wished(&next) && self.is_absent(layer, &units)? {
                    run = joined;
                }
            }
        }
        Ok(Some(run))
    }

    fn size(&self, layer: usize, units: &Range<u32>) -> Result<u64, Damaged> {
        self.layers.get(layer).map_or(Ok(0), |layer| plan::compressed(&layer.index, units))
    }

    fn is_absent(&self, layer: usize, units: &Range<u32>) -> Result<bool, Damaged> {
        let Some(layer) = self.layers.get(layer) else { return Ok(false) };
        for unit in units.clone().take(LOOKED_AT) {
            if layer.lacks(unit)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether two runs of units lie so near each other that one request brings both.
    fn touch(&self, layer: usize, one: &Range<u32>, other: &Range<u32>) -> Result<bool, Damaged> {
        let (first, second) = if one.start <= other.start { (one, other) } else { (other, one) };
        let gap = first.end..second.start;
        Ok(gap.is_empty() || self.size(layer, &gap)? <= plan::GAP)
    }
}
