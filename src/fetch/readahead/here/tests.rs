//! Nothing is looked at twice that is known to be here, nothing stays known that was evicted, and no read of what is here takes more than so many steps.

use super::super::fake::{Lab, UNIT};
use super::super::files::{Files, Place};
use super::super::history::History;
use super::super::image::Image;
use super::super::state::State;
use super::super::underway::Underway;
use super::*;
use crate::blob::{ByteRange, Digest};
use crate::cache::{Cache, Disk, LayerFile};
use crate::fetch::cached::fill;
use crate::fetch::lacking::{self, Elsewhere};
use crate::fetch::plan;
use crate::index::{Identity, LayerKey, StoredIndex, of_small_files};
use crate::metrics::steps;

const FILES: u32 = 100_000;

/// What looks at a layer are made of, without a registry behind it.
struct Contents {
    index: StoredIndex,
    file: LayerFile,
}

impl Units for Contents {
    fn is_remote(&self) -> bool {
        true
    }

    fn per_round_trip(&self) -> u64 {
        1 << 20
    }

    fn carries(&self, _: std::time::Duration) -> u64 {
        0
    }

    fn count(&self) -> u32 {
        self.index.summary().units
    }

    fn over(&self, range: ByteRange) -> Result<Range<u32>, Damaged> {
        self.index.units_over(range)
    }

    fn size(&self, units: &Range<u32>) -> Result<u64, Damaged> {
        plan::compressed(&self.index, units)
    }

    fn forward(&self, unit: u32, bytes: u64, end: u32) -> Result<u32, Damaged> {
        plan::forward(&self.index, unit, bytes, end)
    }

    fn to_slice_end(&self, unit: u32, end: u32) -> Result<u32, Damaged> {
        plan::to_slice_end(&self.index, unit, end)
    }

    fn backward(&self, unit: u32, bytes: u64, start: u32) -> Result<u32, Damaged> {
        plan::backward(&self.index, unit, bytes, start)
    }

    fn look_at(&self, unit: u32, skipped: u32, most: u32) -> Result<(Presence, u32), Damaged> {
        lacking::look(&self.index, &self.file, |_| Elsewhere::Nowhere, unit, skipped, most)
    }

    fn epoch(&self) -> Epoch {
        self.file.epoch()
    }

    fn checks(&self, range: ByteRange) -> Result<Range<u32>, Damaged> {
        self.index.checks_over(range)
    }

    fn has(&self, checks: &Range<u32>) -> Result<bool, Damaged> {
        Ok(self.file.first_missing(checks.clone()).is_none())
    }

    fn peek(self: Arc<Self>, range: ByteRange) -> Option<Vec<u8>> {
        let mut bytes = vec![0; range.len() as usize];
        fill(&self.index, &self.file, range, &mut bytes, Disk::MayWait).unwrap().map(|_| bytes)
    }
}

/// So many files in one directory.
struct Flat(Vec<String>);

impl Files for Flat {
    fn count(&self) -> u64 {
        self.0.len() as u64 + 1
    }

    fn place(&self, node: Node) -> Option<Place> {
        let start = node.checked_sub(2)? * 4096;
        Some(Place { layer: 0, range: ByteRange { start, end: start + 100 } })
    }

    fn parent(&self, dir: Node) -> Option<Node> {
        (dir == 1).then_some(1)
    }

    fn children(&self, dir: Node) -> Box<dyn Iterator<Item = (&[u8], Node)> + '_> {
        let names = self.0.iter().filter(move |_| dir == 1);
        Box::new(names.map(|name| name.as_bytes()).zip(2..))
    }

    fn find(&self, _: Node, _: &[u8]) -> Option<Node> {
        None
    }
}

/// A layer of [`FILES`] small files, all of which are here.
struct Whole {
    _place: tempfile::TempDir,
    contents: Arc<Contents>,
    state: State,
}

impl Whole {
    fn of(in_one: bool) -> Self {
        let place = tempfile::tempdir().unwrap();
        let index = of_small_files(FILES, in_one);
        assert_eq!((index.summary().units, index.summary().checks), (if in_one { 1 } else { FILES }, FILES));
        let key = LayerKey { blob: Digest::of(b"any"), identity: Identity::Own };
        let file = Cache::of_any_size(place.path()).layer_file(Some(&key), &index);
        file.fill();
        let contents = Arc::new(Contents { index, file });
        let files = Arc::new(Flat((0..FILES).map(|file| format!("{file:08}")).collect()));
        let image = Arc::new(Image::new(vec![Arc::clone(&contents) as Arc<dyn Units>], files as Arc<dyn Files>));
        image.neighbourhood();
        let state = State::new(image, History::new(u64::MAX, Arc::new(Underway::new(1))), Arc::default());
        Self { _place: place, contents, state }
    }

    /// Reads a file, and gives the steps that this has taken with all that it leads to, and what was wished for.
    fn read(&mut self, file: u32) -> (u64, Vec<Range<u32>>) {
        self.read_as(file, false)
    }

    /// The same of one that may have `missed` what it was to read.
    fn read_as(&mut self, file: u32, missed: bool) -> (u64, Vec<Range<u32>>) {
        let Contents { index, file: contents } = &*self.contents;
        let start = u64::from(file) * 4096;
        let (range, node) = (ByteRange { start, end: start + 100 }, Node::from(file) + 2);
        let (wishes, steps) = steps::of(|| {
            let checks = fill(index, contents, range, &mut [0; 100], Disk::MayWait).unwrap().unwrap();
            let is_old = !missed && self.state.is_old(0, node, &checks);
            if is_old || !self.state.noticed(0, node, range, checks, missed).unwrap() {
                return Vec::new();
            }
            let next = || self.state.next(1 << 20, |_| Ok(false)).unwrap().map(|wish| wish.units);
            std::iter::from_fn(next).take(8).collect()
        });
        (steps, wishes)
    }
}

/// In an order that looks like none.
fn scattered(files: u32) -> impl Iterator<Item = u32> {
    (0..files).map(|turn| (u64::from(turn) * 48_271 % u64::from(FILES)) as u32)
}

#[test]
fn no_read_of_what_is_here_takes_more_than_so_many_steps() {
    for in_one in [true, false] {
        let mut layer = Whole::of(in_one);
        for file in scattered(4000) {
            let (steps, wishes) = layer.read(file);
            assert!(wishes.is_empty() && steps < 20_000, "{steps} steps for {file}, {wishes:?}");
        }
        for file in scattered(FILES).skip(4000).take(100) {
            let (steps, _) = layer.read(file);
            assert!(steps < 100, "{steps} steps for {file} where all is known to be here");
        }
        // Another process evicts a group. Reads of what is here look at no disk, and do not see it; one that misses something does, and it is found out
        // again.
        layer.contents.file.evict(50_000);
        let (steps, _) = layer.read(7);
        assert!(steps < 100, "{steps} steps for a read behind an eviction");
        let (steps, _) = layer.read_as(8, true);
        assert!((100..20_000).contains(&steps), "{steps} steps for a miss behind an eviction");
    }
}

#[test]
fn where_something_is_missing_a_read_of_what_is_here_takes_few_steps_as_well() {
    for in_one in [true, false] {
        let mut layer = Whole::of(in_one);
        layer.contents.file.evict(90_000);
        let (mut all, mut most) = (0, 0);
        for file in scattered(FILES).filter(|file| *file < 80_000).take(4000) {
            let (steps, _) = layer.read(file);
            (all, most) = (all + steps, most.max(steps));
        }
        assert!(most < 20_000 && all < 4000 * 3000, "{most} steps for one read, {all} for 4000");
    }
}

#[test]
fn what_is_known_to_be_here_is_not_looked_at_again_until_something_is_evicted() {
    let small = |path| (path, vec![1; 100]);
    let lab = Lab::of(&[&[("/", Vec::new())], &["/1", "/2", "/3", "/4"].map(small)[..]].concat());
    let image = &lab.image;
    let lacking = || {
        image.here().start();
        (image.next_lacking(0, 0..4).unwrap(), image.last_lacking(0, 0..4).unwrap())
    };
    lab.bring(0..4);
    assert_eq!((lacking(), lab.looks()), ((None, None), 4));
    assert_eq!((lacking(), lab.looks()), ((None, None), 4), "known");
    lab.evict(1..3);
    assert_eq!((lacking(), lab.looks()), ((Some(1), Some(2)), 8), "all but one of what is left");
    lab.bring(1..3);
    assert_eq!(lacking(), (None, None));
    assert!(!image.is_all_here(0));
    image.survey().unwrap();
    assert!(image.is_all_here(0));
    lab.evict(3..4);
    assert!(!image.is_all_here(0) && UNIT > 0);
}

#[test]
fn whoever_sees_first_that_something_has_gone_all_know_it() {
    let lab = Lab::of(&[("/", Vec::new()), ("/1", vec![1; 100]), ("/2", vec![1; 100])]);
    lab.bring(0..2);
    lab.image.survey().unwrap();
    assert!(lab.image.was_all_here());
    lab.evict(1..2);
    lab.image.here().start();
    assert_eq!(lab.image.next_lacking(0, 0..2).unwrap(), Some(1));
    assert!(!lab.image.was_all_here());
}

#[test]
fn a_miss_of_what_was_known_to_be_here_makes_all_of_it_unknown() {
    let lab = Lab::of(&[("/", Vec::new()), ("/1", vec![1; 100]), ("/2", vec![1; 100])]);
    lab.bring(0..2);
    lab.image.survey().unwrap();
    assert!(lab.image.is_all_here(0));
    let looks = lab.looks();
    lab.image.here().missed(0, &(0..1));
    assert!(!lab.image.is_all_here(0));
    lab.image.survey().unwrap();
    assert_eq!((lab.image.is_all_here(0), lab.looks()), (true, looks + 2));
}

#[test]
fn bits_are_found_from_both_ends() {
    let mut here = Here::default();
    let unknown = |here: &Here, units: Range<u32>| (here.next_unknown(units.clone()), here.last_unknown(units));
    assert_eq!(unknown(&here, 3..200), (Some(3), Some(199)));
    (0..130).filter(|unit| *unit != 70).for_each(|unit| here.note(unit));
    assert_eq!(unknown(&here, 0..130), (Some(70), Some(70)));
    assert_eq!((unknown(&here, 0..70), unknown(&here, 71..130)), ((None, None), (None, None)));
    assert_eq!(unknown(&here, 71..140), (Some(130), Some(139)));
    here.note(70);
    assert_eq!((unknown(&here, 0..130), here.first_unknown, here.known), ((None, None), 130, 130));
    assert_eq!(unknown(&here, 5..5), (None, None));
}
