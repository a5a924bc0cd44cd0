//! What policies see of an image: its files, the units that hold them, and what of these is missing. Nothing of how it is fetched.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::super::{Layer, plan};
use super::files::{Files, Neighbourhood, Node, Place};
use crate::blob::ByteRange;
use crate::cache;
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

/// Units of a file that are looked at; a small one seldom has more than two.
const LOOKED_AT: usize = 64;

/// The units of one layer, in the order of its blob and of its layer file.
pub(super) trait Units: Send + Sync {
    /// Whether reading what is missing costs a round trip.
    fn is_remote(&self) -> bool;

    /// Compressed bytes that come in a round trip; 0 until that is known.
    fn per_round_trip(&self) -> u64;

    /// How many there are.
    fn count(&self) -> u32;

    /// Those that hold a range of the layer file.
    fn over(&self, range: ByteRange) -> Result<Range<u32>, Damaged>;

    /// Compressed bytes from the first to the last of some.
    fn size(&self, units: &Range<u32>) -> Result<u64, Damaged>;

    /// The last unit before `end` that ends within `bytes` from the start of `unit`; itself at least.
    fn forward(&self, unit: u32, bytes: u64, end: u32) -> Result<u32, Damaged>;

    /// The last unit before `end` that is whole in the slice in which `unit` ends; itself at least.
    fn to_slice_end(&self, unit: u32, end: u32) -> Result<u32, Damaged>;

    /// The first unit from `start` on that starts within `bytes` before the end of `unit`; itself at most.
    fn backward(&self, unit: u32, bytes: u64, start: u32) -> Result<u32, Damaged>;

    /// Whether any of it is missing and not on its way.
    fn lacks(&self, unit: u32) -> Result<bool, Damaged>;

    /// The checks that cover a range of the layer file.
    fn checks(&self, range: ByteRange) -> Result<Range<u32>, Damaged>;

    /// Whether all of these checks were found right; holes need not be.
    fn has(&self, checks: &Range<u32>) -> Result<bool, Damaged>;

    /// The bytes of a range of the layer file, if all of them are here and were verified.
    fn peek(self: Arc<Self>, range: ByteRange) -> Option<Vec<u8>>;
}

impl Units for Layer {
    fn is_remote(&self) -> bool {
        self.source.is_remote()
    }

    fn per_round_trip(&self) -> u64 {
        self.source.per_round_trip()
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

    fn lacks(&self, unit: u32) -> Result<bool, Damaged> {
        Self::lacks(self, unit)
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
        Self { layers, files, neighbourhood: OnceLock::new() }
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

    /// Compressed bytes from the first to the last of some units.
    pub(super) fn size(&self, layer: usize, units: &Range<u32>) -> Result<u64, Damaged> {
        self.layers.get(layer).map_or(Ok(0), |layer| layer.size(units))
    }

    /// Whether any of a few units is missing and not on its way.
    pub(super) fn is_absent(&self, layer: usize, units: &Range<u32>) -> Result<bool, Damaged> {
        let Some(layer) = self.layers.get(layer) else { return Ok(false) };
        for unit in units.clone().take(LOOKED_AT) {
            if layer.lacks(unit)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The contents at a place, if they are here.
    pub(super) fn peek(&self, place: Place) -> Option<Vec<u8>> {
        Arc::clone(self.layers.get(place.layer)?).peek(place.range)
    }
}
