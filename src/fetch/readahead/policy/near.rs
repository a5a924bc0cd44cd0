//! The small files near one that was read: a program that reads one file of a directory often reads more of it.

use std::ops::Range;

use super::super::super::plan;
use super::super::files::{Neighbourhood, Node, Place};
use super::super::image::{Image, Located, SMALL};
use super::super::stack::Stack;
use super::super::wish::{Origin, Wish};
use super::{Ask, Found, Known, News, Policy};
use crate::index::Damaged;

/// What reading a small file for the first time gives its directory to spend on others.
const CREDIT: u64 = 128 << 10;

/// More than this is not saved up.
const MOST_CREDIT: u64 = 4 << 20;

/// Files that are looked at in one go for some that are not there: a directory may have thousands, all of them in the cache.
const CANDIDATES: usize = 128;

/// A directory with something to spend.
#[derive(Debug)]
struct Directory {
    dir: Node,
    /// The file of it that was read last.
    last: Node,
    credit: u64,
}

/// A request costs a server more than so few bytes are worth.
const LEAST: u64 = 8 << 10;

/// A small file: where its contents are, in which units, and how many bytes these have.
struct Small {
    place: Place,
    units: Range<u32>,
    bytes: u64,
}

/// What a file near one that was read is.
enum Candidate {
    /// For the credit that there is, or no file.
    TooLarge,
    Here,
    Absent(Small),
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

/// The directories in which small files were read.
#[derive(Default)]
pub(super) struct Near(Stack<Directory>);

impl Policy for Near {
    fn origins(&self) -> &'static [Origin] {
        &[Origin::Near]
    }

    fn told(&mut self, known: &Known<'_>, news: &News<'_>, _: &mut Found) -> Result<(), Damaged> {
        match news {
            News::Read(read) if read.is_first && read.size <= SMALL && !read.is_foreseen => {
                self.credit(known.image, read.file);
            }
            _ => {}
        }
        Ok(())
    }

    fn next(&mut self, known: &Known<'_>, ask: Ask, _: &mut Found) -> Result<Option<Wish>, Damaged> {
        while let Some(dir) = self.0.top() {
            if let Some(Run { layer, units, .. }) = next_in(known.image, dir, ask.size)? {
                return Ok(Some(Wish::new(Origin::Near, layer, units)));
            }
            if known.image.here().is_spent() {
                break;
            }
            self.0.pop();
        }
        Ok(None)
    }
}

impl Near {
    fn credit(&mut self, image: &Image, file: Node) {
        let Some(dir) = image.dir(file) else { return };
        let known = self.0.take(|known| known.dir == dir);
        let credit = known.map_or(0, |known| known.credit).saturating_add(CREDIT).min(MOST_CREDIT);
        self.0.push(Directory { dir, last: file, credit });
    }
}

/// Where the run of small files of one directory ends that `file` starts in the blob; about `bytes` far.
pub(in super::super) fn end_of_small_files(
    image: &Image,
    file: Node,
    place: Place,
    bytes: u64,
) -> Result<u64, Damaged> {
    let neighbourhood = image.neighbourhood();
    let dir = neighbourhood.dir(file);
    let [behind, _] = neighbourhood.beside(image.files(), file);
    let (mut until, mut sum) = (place.range.end, 0u64);
    for next in behind {
        let Some(small) = small(image, next)?.filter(|_| neighbourhood.dir(next) == dir) else { break };
        if sum >= bytes {
            break;
        }
        sum = sum.saturating_add(small.bytes);
        until = small.place.range.end;
    }
    Ok(until)
}

/// `None` for a file that is not small.
fn small(image: &Image, file: Node) -> Result<Option<Small>, Damaged> {
    let Some(located) = image.locate(file)? else { return Ok(None) };
    let bytes = located.size()?;
    let Located { place, units, .. } = located;
    Ok((bytes <= SMALL).then_some(Small { place, units, bytes }))
}

/// Adjacent small files near the last one read in a directory, about `size` bytes of them, which its credit then pays for. Runs that are
/// too short for a request of their own are passed over.
fn next_in(image: &Image, near: &mut Directory, size: u64) -> Result<Option<Run>, Damaged> {
    let mut run: Option<Run> = None;
    for (file, way) in candidates(image, near).into_iter().take(CANDIDATES) {
        let found = match absent(image, near, file)? {
            Candidate::TooLarge => continue,
            Candidate::Here => None,
            Candidate::Absent(small) => Some(small),
        };
        if let Some((run, Small { place, units, .. })) = run.as_mut().zip(found.as_ref()) {
            if run.join(image, place.layer, units, way, near.credit.min(size))? {
                continue;
            }
        }
        if run.as_ref().is_some_and(|run| run.bytes >= LEAST) {
            break;
        }
        run = found.map(|Small { place, units, bytes }| Run { layer: place.layer, units, way, bytes });
    }
    let run = run.filter(|run| run.bytes >= LEAST);
    run.iter().for_each(|run| near.credit = near.credit.saturating_sub(run.bytes));
    Ok(run)
}

/// Whether a file is one to be fetched.
fn absent(image: &Image, near: &Directory, file: Node) -> Result<Candidate, Damaged> {
    if image.files().place(file).is_some_and(|place| image.is_known_here(file, place)) {
        return Ok(Candidate::Here);
    }
    let small = small(image, file)?.filter(|small| small.bytes <= near.credit);
    let Some(small) = small else { return Ok(Candidate::TooLarge) };
    if image.is_absent(small.place.layer, &small.units)? {
        return Ok(Candidate::Absent(small));
    }
    image.note_here(file, small.place.layer, &small.units);
    Ok(Candidate::Here)
}

impl Run {
    /// Makes it longer by units that lie next to it, up to a size; says whether it did.
    fn join(&mut self, image: &Image, layer: usize, units: &Range<u32>, way: Way, size: u64) -> Result<bool, Damaged> {
        if self.layer != layer || self.way != way || !touch(image, layer, &self.units, units)? {
            return Ok(false);
        }
        let joined = self.units.start.min(units.start)..self.units.end.max(units.end);
        let bytes = image.size(layer, &joined)?;
        if bytes <= size {
            (self.units, self.bytes) = (joined, bytes);
        }
        Ok(bytes <= size)
    }
}

/// The best first: behind the last one read, then before it, in its directory; then the same below the directory that holds it.
fn candidates(image: &Image, near: &Directory) -> Vec<(Node, Way)> {
    let [behind, before] = image.neighbourhood().beside(image.files(), near.last);
    let of = |files: fn(&Image, &Directory, &[Node]) -> Vec<Node>, beside: &[Node], way| {
        files(image, near, beside).into_iter().map(move |file| (file, way)).collect::<Vec<_>>()
    };
    let parts = [
        of(own, &behind, Way::Behind),
        of(own, &before, Way::Before),
        of(around, &behind, Way::Behind),
        of(around, &before, Way::Before),
    ];
    parts.concat()
}

fn is_below(image: &Image, file: Node, above: Node) -> bool {
    image.dir(file).is_some_and(|dir| Neighbourhood::is_below(image.files(), dir, above))
}

/// Those of the directory itself.
fn own(image: &Image, near: &Directory, beside: &[Node]) -> Vec<Node> {
    let in_it = beside.iter().copied().take_while(|file| is_below(image, *file, near.dir));
    in_it.filter(|file| image.dir(*file) == Some(near.dir)).collect()
}

/// Those below the directory that holds it, as far as its credit goes, twice.
fn around(image: &Image, near: &Directory, beside: &[Node]) -> Vec<Node> {
    let parent = image.files().parent(near.dir).unwrap_or(near.dir);
    let mut far = 0u64;
    let near_enough = |file: &Node| {
        far = far.saturating_add(image.files().place(*file).map_or(0, |place| place.range.len()).min(SMALL));
        far <= near.credit.saturating_mul(2)
    };
    beside.iter().copied().take_while(|file| is_below(image, *file, parent)).take_while(near_enough).collect()
}

/// Whether two runs of units lie so near each other that one request brings both.
fn touch(image: &Image, layer: usize, one: &Range<u32>, other: &Range<u32>) -> Result<bool, Damaged> {
    let (first, second) = if one.start <= other.start { (one, other) } else { (other, one) };
    let gap = first.end..second.start;
    Ok(gap.is_empty() || image.size(layer, &gap)? <= plan::GAP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::readahead::fake::{Lab, UNIT};

    fn lab() -> Lab {
        let small = |path| (path, vec![1; 100]);
        let dirs = [("/", Vec::new()), ("/a/", Vec::new()), ("/b/", Vec::new())];
        let files = ["/a/1", "/a/2", "/a/3", "/a/4", "/b/5", "/b/6"].map(small);
        Lab::of(&[&dirs[..], &files, &[("/b/large", vec![1; 1 << 20]), ("/b/z", vec![1; 100])]].concat())
    }

    #[test]
    fn a_directory_comes_before_what_is_beside_it() {
        let (mut lab, mut near) = (lab(), Near::default());
        lab.read(&mut near, "/a/3", 0..100);
        let wishes = std::array::from_fn(|_| lab.next(&mut near, Origin::Near));
        // Behind it, before it, and then beyond its directory, but nothing that is large.
        assert_eq!(wishes, [Some(3..4), Some(0..2), Some(4..6), None]);
    }

    #[test]
    fn who_was_foreseen_brings_nothing_near_it() {
        let (mut lab, mut near) = (lab(), Near::default());
        lab.read_as(&mut near, "/a/3", 0..100, true);
        lab.read(&mut near, "/b/large", 0..100);
        assert!(lab.next(&mut near, Origin::Near).is_none());
    }

    #[test]
    fn a_miss_goes_on_over_the_small_files_of_a_directory() {
        let lab = lab();
        let end = |path, bytes| {
            let place = lab.image.files().place(lab.node(path)).unwrap();
            end_of_small_files(&lab.image, lab.node(path), place, bytes).unwrap()
        };
        assert_eq!([end("/a/1", 0), end("/a/1", 1), end("/a/1", 99 * UNIT)], [100, UNIT + 100, 3 * UNIT + 100]);
    }
}
