//! A part of a layer that somebody may want soon.

use std::ops::Range;

use super::super::{Layer, plan};
use crate::index::Damaged;

/// Units of one layer, those ahead of a place first, then those behind it from there backwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) layer: usize,
    ahead: Range<u32>,
    behind: Range<u32>,
    /// Whether more will be wished for behind it: then its requests end with slices.
    pub(super) goes_on: bool,
}

impl Stretch {
    /// `units`, from `at` on.
    pub(super) fn new(layer: usize, units: Range<u32>, at: u32) -> Self {
        let at = at.clamp(units.start, units.end.max(units.start));
        Self { layer, ahead: at..units.end, behind: units.start..at, goes_on: false }
    }

    /// `units`, and what is behind them afterwards.
    pub(super) fn in_order(layer: usize, units: Range<u32>) -> Self {
        let at = units.start;
        Self { goes_on: true, ..Self::new(layer, units, at) }
    }

    /// Whether it ends where `unit` of that layer begins, and more is to be wished for behind it.
    pub(super) fn goes_on_at(&self, layer: usize, unit: u32) -> bool {
        self.goes_on && self.layer == layer && self.ahead.end == unit
    }

    /// The same up to another unit.
    pub(super) fn up_to(mut self, end: u32) -> Self {
        self.ahead.end = end;
        self
    }

    /// The next units that are not there, up to `size` compressed bytes (and at least one), or to the end of a slice; they are not given again.
    pub(super) fn next(&mut self, layer: &Layer, size: u64) -> Result<Option<Range<u32>>, Damaged> {
        while let Some(unit) = self.ahead.next() {
            if layer.lacks(unit)? {
                let last = match self.goes_on {
                    true => plan::to_slice_end(&layer.index, unit, self.ahead.end)?,
                    false => plan::forward(&layer.index, unit, size, self.ahead.end)?,
                };
                self.ahead.start = last.saturating_add(1);
                return Ok(Some(unit..last.saturating_add(1)));
            }
        }
        while let Some(unit) = self.behind.next_back() {
            if layer.lacks(unit)? {
                let first = plan::backward(&layer.index, unit, size, self.behind.start)?;
                self.behind.end = first;
                return Ok(Some(first..unit.saturating_add(1)));
            }
        }
        Ok(None)
    }
}
