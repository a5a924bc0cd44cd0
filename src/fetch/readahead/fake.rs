//! An image for tests of policies: files by their paths, in one layer, of which nothing is here until it is brought.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::files::{Files, Node, Place};
use super::history::{History, Last};
use super::image::Image;
use super::policy::{Ask, Found, Known, News, Policy, Read};
use super::underway::Underway;
use super::units::Units;
use super::wish::{Origin, Wish};
use crate::blob::ByteRange;
use crate::cache::Epoch;
use crate::fetch::lacking::Presence;
use crate::fetch::plan::SLICE;
use crate::index::Damaged;

/// Bytes of each unit, packed or not. Files start with a unit of their own.
pub(super) const UNIT: u64 = 16 << 10;

/// Directories end in a slash. Node 1 is the root, the others follow in the order in which they are given.
pub(super) struct Fake {
    paths: Vec<&'static str>,
    ranges: Vec<ByteRange>,
}

impl Fake {
    /// Files of one byte.
    pub(super) fn of(paths: Vec<&'static str>) -> Self {
        let sizes = paths.iter().map(|_| 1).collect();
        Self::sized(paths, sizes)
    }

    fn sized(paths: Vec<&'static str>, sizes: Vec<u64>) -> Self {
        let mut start = 0;
        let place = |size: u64| {
            let range = ByteRange { start, end: start + size };
            start += size.next_multiple_of(UNIT);
            range
        };
        Self { ranges: sizes.into_iter().map(place).collect(), paths }
    }

    pub(super) fn path(&self, node: Node) -> &'static str {
        self.paths[usize::try_from(node).unwrap() - 1]
    }

    pub(super) fn node(&self, path: &str) -> Node {
        self.paths.iter().position(|known| *known == path).unwrap() as Node + 1
    }
}

impl Files for Fake {
    fn count(&self) -> u64 {
        self.paths.len() as u64
    }

    fn place(&self, node: Node) -> Option<Place> {
        let range = self.ranges[usize::try_from(node).unwrap() - 1];
        (!self.path(node).ends_with('/')).then_some(Place { layer: 0, range })
    }

    fn parent(&self, dir: Node) -> Option<Node> {
        let path = self.path(dir).strip_suffix('/')?;
        Some(self.node(path.rfind('/').map_or("/", |at| &path[..=at])))
    }

    fn children(&self, dir: Node) -> Box<dyn Iterator<Item = (&[u8], Node)> + '_> {
        let above = self.path(dir);
        let name = move |path: &'static str| path.strip_prefix(above).map(|name| name.trim_end_matches('/'));
        let children = (1..).zip(&self.paths).filter_map(move |(node, path)| Some((name(path)?, node)));
        let own = children.filter(|(name, _)| !name.is_empty() && !name.contains('/'));
        Box::new(own.map(|(name, node)| (name.as_bytes(), node)))
    }

    fn find(&self, dir: Node, path: &[u8]) -> Option<Node> {
        let path = std::str::from_utf8(path).unwrap().trim_start_matches('/');
        let path = format!("{}{path}", self.path(dir));
        (1..).zip(&self.paths).find(|(_, known)| known.trim_end_matches('/') == path).map(|(node, _)| node)
    }
}

struct Layer {
    bytes: Vec<u8>,
    here: Mutex<HashSet<u32>>,
    evictions: AtomicU64,
    looks: AtomicU64,
    /// Bytes a second.
    bandwidth: AtomicU64,
}

impl Layer {
    fn has_unit(&self, unit: u32) -> bool {
        self.here.lock().unwrap().contains(&unit)
    }
}

impl Units for Layer {
    fn is_remote(&self) -> bool {
        true
    }

    fn per_round_trip(&self) -> u64 {
        4 * UNIT
    }

    fn carries(&self, time: Duration) -> u64 {
        self.bandwidth.load(Ordering::Relaxed) * u64::try_from(time.as_millis()).unwrap() / 1000
    }

    fn count(&self) -> u32 {
        u32::try_from(self.bytes.len() as u64 / UNIT).unwrap()
    }

    fn over(&self, range: ByteRange) -> Result<Range<u32>, Damaged> {
        Ok(u32::try_from(range.start / UNIT).unwrap()..u32::try_from(range.end.div_ceil(UNIT)).unwrap())
    }

    fn size(&self, units: &Range<u32>) -> Result<u64, Damaged> {
        Ok(units.len() as u64 * UNIT)
    }

    fn forward(&self, unit: u32, bytes: u64, end: u32) -> Result<u32, Damaged> {
        Ok((unit + u32::try_from(bytes / UNIT).unwrap().max(1)).min(end.max(unit + 1)) - 1)
    }

    fn to_slice_end(&self, unit: u32, end: u32) -> Result<u32, Damaged> {
        let limit = ((u64::from(unit) + 1) * UNIT).next_multiple_of(SLICE);
        self.forward(unit, limit - u64::from(unit) * UNIT, end)
    }

    fn backward(&self, unit: u32, bytes: u64, start: u32) -> Result<u32, Damaged> {
        Ok((unit + 1).saturating_sub(u32::try_from(bytes / UNIT).unwrap().max(1)).max(start))
    }

    fn look_at(&self, unit: u32, _: u32, _: u32) -> Result<(Presence, u32), Damaged> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        Ok((if self.has_unit(unit) { Presence::Here } else { Presence::Lacking }, 1))
    }

    fn epoch(&self) -> Epoch {
        Epoch { evictions: self.evictions.load(Ordering::Relaxed), forgotten: 0 }
    }

    fn checks(&self, range: ByteRange) -> Result<Range<u32>, Damaged> {
        self.over(range)
    }

    fn has(&self, checks: &Range<u32>) -> Result<bool, Damaged> {
        Ok(checks.clone().all(|check| self.has_unit(check)))
    }

    fn peek(self: Arc<Self>, range: ByteRange) -> Option<Vec<u8>> {
        let is_here = self.has(&self.over(range).unwrap()).unwrap();
        is_here.then(|| self.bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()].to_vec())
    }
}

/// An image that is read.
pub(super) struct Lab {
    files: Arc<Fake>,
    layer: Arc<Layer>,
    pub(super) image: Arc<Image>,
    pub(super) history: History,
}

impl Lab {
    pub(super) fn of(files: &[(&'static str, Vec<u8>)]) -> Self {
        let (paths, sizes) = files.iter().map(|(path, content)| (*path, content.len() as u64)).unzip();
        let fake = Arc::new(Fake::sized(paths, sizes));
        let mut bytes = Vec::new();
        for (_, content) in files {
            bytes.extend_from_slice(content);
            bytes.resize(bytes.len().next_multiple_of(usize::try_from(UNIT).unwrap()), 0);
        }
        let [evictions, looks, bandwidth] = std::array::from_fn(|_| AtomicU64::new(0));
        let layer = Arc::new(Layer { bytes, here: Mutex::default(), evictions, looks, bandwidth });
        let units = vec![Arc::clone(&layer) as Arc<dyn Units>];
        let image = Arc::new(Image::new(units, Arc::clone(&fake) as Arc<dyn Files>));
        Self { files: fake, layer, image, history: History::new(0, Arc::new(Underway::new(1))) }
    }

    pub(super) fn node(&self, path: &str) -> Node {
        self.files.node(path)
    }

    /// Those that hold a file.
    pub(super) fn units(&self, path: &str) -> Range<u32> {
        self.image.locate(self.node(path)).unwrap().unwrap().units
    }

    /// Some units are here from now on.
    pub(super) fn bring(&self, units: Range<u32>) {
        self.layer.here.lock().unwrap().extend(units);
    }

    /// They are here no more.
    pub(super) fn evict(&self, units: Range<u32>) {
        self.layer.here.lock().unwrap().retain(|unit| !units.contains(unit));
        self.layer.evictions.fetch_add(1, Ordering::Relaxed);
    }

    /// The link carries so many bytes a second.
    pub(super) fn link(&self, bandwidth: u64) {
        self.layer.bandwidth.store(bandwidth, Ordering::Relaxed);
    }

    /// How many units were looked at so far.
    pub(super) fn looks(&self) -> u64 {
        self.layer.looks.load(Ordering::Relaxed)
    }

    pub(super) fn tell(&self, policy: &mut dyn Policy, news: &News<'_>) -> Found {
        let mut found = Found::default();
        policy.told(&Known { image: &self.image, history: &self.history }, news, &mut found).unwrap();
        found
    }

    /// A range of a file is read, and missed.
    pub(super) fn read(&mut self, policy: &mut dyn Policy, path: &str, range: Range<u64>) -> Found {
        self.read_as(policy, path, range, false)
    }

    /// The same of a file that may have been foreseen.
    pub(super) fn read_as(
        &mut self,
        policy: &mut dyn Policy,
        path: &str,
        range: Range<u64>,
        is_foreseen: bool,
    ) -> Found {
        let (image, file) = (Arc::clone(&self.image), self.node(path));
        let located = image.locate(file).unwrap().unwrap();
        let start = located.place.range.start;
        let range = ByteRange { start: start + range.start, end: start + range.end };
        let here = located.layer.over(range).unwrap();
        self.bring(here.clone());
        let rest = ByteRange { start: range.start, end: located.place.range.end };
        let is_first = self.history.note(file, Last { layer: 0, unit: here.end - 1, rest });
        let size = located.size().unwrap();
        self.tell(policy, &News::Read(Read { file, located, size, range, here, missed: true, is_first, is_foreseen }))
    }

    /// The units of the next wish, which is brought.
    pub(super) fn next(&self, policy: &mut dyn Policy, turn: Origin) -> Option<Range<u32>> {
        let wish = self.ask(policy, Ask { turn, size: 4 * UNIT, is_over: false })?;
        self.bring(wish.units.clone());
        Some(wish.units)
    }

    pub(super) fn ask(&self, policy: &mut dyn Policy, ask: Ask) -> Option<Wish> {
        self.image.here().start();
        let known = Known { image: &self.image, history: &self.history };
        policy.next(&known, ask, &mut Found::default()).unwrap()
    }

    /// Lets it find out what it has to about files that came; gives what it finds for others.
    pub(super) fn study(&self, policy: &mut dyn Policy) -> Found {
        let known = Known { image: &self.image, history: &self.history };
        let studies = policy.studies(&known, &mut Found::default()).unwrap();
        studies.into_iter().for_each(|study| study(&self.image));
        self.tell(policy, &News::Studied)
    }
}
