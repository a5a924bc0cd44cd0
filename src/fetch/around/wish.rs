//! A part of a layer that somebody may want soon.

use std::ops::Range;

use super::super::{Layer, plan};
use crate::index::Damaged;

/// Units of one layer, those ahead of a place first, then those behind it from there backwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) layer: usize,
    ahead: Range<u32>,
    behind: Range<u32>,
}

impl Wish {
    /// `units`, from `at` on.
    pub(super) fn new(layer: usize, units: Range<u32>, at: u32) -> Self {
        let at = at.clamp(units.start, units.end.max(units.start));
        Self { layer, ahead: at..units.end, behind: units.start..at }
    }

    /// The next units that are not there, up to `size` compressed bytes (and at least one); they are not given again.
    pub(super) fn next(&mut self, layer: &Layer, size: u64) -> Result<Option<Range<u32>>, Damaged> {
        while let Some(unit) = self.ahead.next() {
            if layer.lacks(unit)? {
                let last = plan::forward(&layer.index, unit, size, self.ahead.end)?;
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
