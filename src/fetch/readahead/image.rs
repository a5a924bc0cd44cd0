//! What policies see of an image: its files, the units that hold them, and what of these is missing. Nothing of how it is fetched.

use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::super::lacking::Presence;
use super::super::{Layer, plan};
use super::files::{Files, Neighbourhood, Node, Place};
use super::here::AllHere;
use super::units::Units;
use crate::blob::ByteRange;
use crate::cache::{self, Epoch};
use crate::index::{CheckKind, Damaged};

/// A file up to this size is fetched whole once any of it was read.
pub(super) const WHOLE: u64 = 2 << 20;

/// A file up to this size has neighbours.
pub(super) const SMALL: u64 = 128 << 10;

/// What is fetched around a miss, in round trips of the link: one is what a request costs anyway, and what comes during the next one is in time,
/// too.
const ROUND_TRIPS: u64 = 2;

/// The least that is fetched around a miss, where the link carries less.
pub(super) const FLOOR: u64 = 32 << 10;

/// Where answers come at once, the next one has to be on its way all the same: a reader takes what came, and asks for more, in so much time.
const STREAM: Duration = Duration::from_millis(16);

/// Requests in the order of the blob that are under way at a time, where the link carries more than as many slices.
const PIECES: u64 = 4;

/// They end with slices, so that the largest request is not cut elsewhere.
const LARGEST_PIECE: u64 = plan::MAX_REQUEST - plan::SLICE;

/// Units of a file that are looked at; a small one seldom has more than two.
const LOOKED_AT: u32 = 64;

impl Units for Layer {
    fn is_remote(&self) -> bool {
        self.source.is_remote()
    }

    fn per_round_trip(&self) -> u64 {
        self.source.per_round_trip()
    }

    fn carries(&self, time: Duration) -> u64 {
        self.source.carries(time)
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
        Self::look_at(self, unit, skipped, most)
    }

    fn epoch(&self) -> Epoch {
        self.file.epoch()
    }

    fn checks(&self, range: ByteRange) -> Result<Range<u32>, Damaged> {
        self.index.checks_over(range)
    }

    fn has(&self, checks: &Range<u32>) -> Result<bool, Damaged> {
        for check in checks.clone() {
            let is_here = self.file.state(check) == cache::State::Ready;
            if !is_here && self.index.check(check)?.kind != CheckKind::Hole {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn peek(self: Arc<Self>, range: ByteRange) -> Option<Vec<u8>> {
        Self::peek(&self, range)
    }
}

/// An image, as far as policies see it.
pub(super) struct Image {
    layers: Vec<Arc<dyn Units>>,
    files: Arc<dyn Files>,
    neighbourhood: OnceLock<Neighbourhood>,
    here: AllHere,
}

/// Where a file is, and the units that hold it.
pub(super) struct Located<'a> {
    pub(super) place: Place,
    pub(super) units: Range<u32>,
    pub(super) layer: &'a Arc<dyn Units>,
}

impl Located<'_> {
    /// Compressed bytes of its units.
    pub(super) fn size(&self) -> Result<u64, Damaged> {
        self.layer.size(&self.units)
    }
}

impl Image {
    /// `layers` as the places of `files` number them.
    pub(super) fn new(layers: Vec<Arc<dyn Units>>, files: Arc<dyn Files>) -> Self {
        let here = AllHere::new(layers.len());
        Self { layers, files, neighbourhood: OnceLock::new(), here }
    }

    /// What of it is known to be here.
    pub(super) fn here(&self) -> &AllHere {
        &self.here
    }

    pub(super) fn files(&self) -> &dyn Files {
        &*self.files
    }

    /// How many layers there are.
    pub(super) fn layers(&self) -> usize {
        self.layers.len()
    }

    pub(super) fn layer(&self, layer: usize) -> Option<&Arc<dyn Units>> {
        self.layers.get(layer)
    }

    pub(super) fn neighbourhood(&self) -> &Neighbourhood {
        self.neighbourhood.get_or_init(|| Neighbourhood::of(&*self.files, self.layers.len()))
    }

    /// The directory of a file.
    pub(super) fn dir(&self, file: Node) -> Option<Node> {
        self.neighbourhood().dir(file)
    }

    /// `None` for what is no regular file.
    pub(super) fn locate(&self, file: Node) -> Result<Option<Located<'_>>, Damaged> {
        let Some(place) = self.files.place(file) else { return Ok(None) };
        let Some(layer) = self.layers.get(place.layer) else { return Ok(None) };
        Ok(Some(Located { place, units: layer.over(place.range)?, layer }))
    }

    /// What a miss in a layer may bring beyond itself, and all guesses that are under way.
    pub(super) fn budget(&self, layer: usize) -> u64 {
        self.layers.get(layer).map_or(0, |layer| layer.per_round_trip()).saturating_mul(ROUND_TRIPS).max(FLOOR)
    }

    /// The same for one who reads everything: what comes in so much time at least.
    pub(super) fn stream_budget(&self, layer: usize) -> u64 {
        let carries = self.layers.get(layer).map_or(0, |layer| layer.carries(STREAM));
        self.budget(layer).max(carries)
    }

    /// Compressed bytes of one request of many in the order of the blob. Some are under way at a time, and each costs CPU.
    pub(super) fn piece(&self, layer: usize) -> u64 {
        (self.stream_budget(layer) / PIECES).clamp(plan::SLICE, LARGEST_PIECE)
    }

    /// Compressed bytes from the first to the last of some units.
    pub(super) fn size(&self, layer: usize, units: &Range<u32>) -> Result<u64, Damaged> {
        self.layers.get(layer).map_or(Ok(0), |layer| layer.size(units))
    }

    /// Whether any of a few units is missing and not on its way.
    pub(super) fn is_absent(&self, layer: usize, units: &Range<u32>) -> Result<bool, Damaged> {
        let few = units.start..units.end.min(units.start.saturating_add(LOOKED_AT));
        Ok(self.next_lacking(layer, few)?.is_some())
    }

    /// The first of some units of which something is missing and not on its way.
    pub(super) fn next_lacking(&self, layer: usize, units: Range<u32>) -> Result<Option<u32>, Damaged> {
        self.here.next_lacking(&self.layers, layer, units)
    }

    /// The last of them.
    pub(super) fn last_lacking(&self, layer: usize, units: Range<u32>) -> Result<Option<u32>, Damaged> {
        self.here.last_lacking(&self.layers, layer, units)
    }

    /// Whether a file at this place was found to be here.
    pub(super) fn is_known_here(&self, file: Node, place: Place) -> bool {
        self.here.has_file(&self.layers, place.layer, file)
    }

    /// Remembers that a file is here, where it is known of its units.
    pub(super) fn note_here(&self, file: Node, layer: usize, units: &Range<u32>) {
        self.here.note_file(&self.layers, layer, file, units);
    }

    /// Whether nothing of the whole image is missing, as far as one look at a layer and at another tells.
    pub(super) fn is_all_here(&self, layer: usize) -> bool {
        self.here.is_everything(&self.layers, layer)
    }

    /// The same without a look at the disk: nothing has been missed since.
    pub(super) fn was_all_here(&self) -> bool {
        self.here.was_everything()
    }

    /// Goes on looking whether nothing of the whole image is missing.
    pub(super) fn survey(&self) -> Result<(), Damaged> {
        self.here.survey(&self.layers)
    }

    /// The contents at a place, if they are here.
    pub(super) fn peek(&self, place: Place) -> Option<Vec<u8>> {
        Arc::clone(self.layers.get(place.layer)?).peek(place.range)
    }
}
