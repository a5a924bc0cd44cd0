//! A part of a layer that somebody may want soon.

use std::ops::Range;

use super::super::plan;
use super::image::{Image, Located, WHOLE};
use super::stack::Stack;
use super::wish::{Origin, Wish};
use crate::index::Damaged;

/// Of a larger file, so much of its end is wished for at its first read: there the dynamic section of a program is, and the directory of an archive.
pub(super) const TAIL: u64 = 64 << 10;

/// Units of one layer, those ahead of a place first, then those behind it from there backwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stretch {
    layer: usize,
    ahead: Range<u32>,
    behind: Range<u32>,
    /// Where more will be wished for behind it: compressed bytes of a request. They end with slices then.
    in_order: Option<u64>,
}

impl Stretch {
    /// `units`, from `at` on.
    pub(super) fn new(layer: usize, units: Range<u32>, at: u32) -> Self {
        let at = at.clamp(units.start, units.end.max(units.start));
        Self { layer, ahead: at..units.end, behind: units.start..at, in_order: None }
    }

    /// `units`, in requests of about `piece` compressed bytes, and what is behind them afterwards.
    pub(super) fn in_order(layer: usize, units: Range<u32>, piece: u64) -> Self {
        let at = units.start;
        Self { in_order: Some(piece), ..Self::new(layer, units, at) }
    }

    /// All of a file, from a unit on; of a larger one its end.
    pub(super) fn rest_of(file: &Located<'_>, at: u32) -> Result<Option<Self>, Damaged> {
        let Located { place, units, layer } = file;
        if units.is_empty() {
            return Ok(None);
        }
        if file.size()? <= WHOLE {
            return Ok(Some(Self::new(place.layer, units.clone(), at)));
        }
        let start = layer.backward(units.end - 1, TAIL, units.start)?;
        Ok(Some(Self::new(place.layer, start..units.end, start)))
    }

    /// Whether it ends where `unit` of that layer begins, and more is to be wished for behind it.
    pub(super) fn goes_on_at(&self, layer: usize, unit: u32) -> bool {
        self.in_order.is_some() && self.layer == layer && self.ahead.end == unit
    }

    /// The same up to another unit, in requests of another size.
    pub(super) fn up_to(mut self, end: u32, piece: u64) -> Self {
        self.ahead.end = end;
        self.in_order = Some(piece);
        self
    }

    /// The next units that are not there, up to `size` compressed bytes (and at least one), or to the end of a slice; they are not given again.
    /// Where the image's looks are spent, it goes on the next time.
    pub(super) fn next(&mut self, image: &Image, size: u64) -> Result<Option<Range<u32>>, Damaged> {
        let Some(layer) = image.layer(self.layer) else { return Ok(None) };
        if let Some(unit) = image.next_lacking(self.layer, self.ahead.clone())? {
            let last = match self.in_order {
                Some(piece) => {
                    // Up to the end of the slice behind the others.
                    let others = piece.saturating_sub(plan::SLICE);
                    let unit = match layer.forward(unit, others, self.ahead.end)? {
                        last if others > 0 => last.saturating_add(1).min(self.ahead.end.saturating_sub(1)),
                        _ => unit,
                    };
                    layer.to_slice_end(unit, self.ahead.end)?
                }
                None => layer.forward(unit, size, self.ahead.end)?,
            };
            self.ahead.start = last.saturating_add(1);
            return Ok(Some(unit..last.saturating_add(1)));
        }
        if image.here().is_spent() {
            return Ok(None);
        }
        self.ahead.start = self.ahead.end.max(self.ahead.start);
        if let Some(unit) = image.last_lacking(self.layer, self.behind.clone())? {
            let first = layer.backward(unit, size, self.behind.start)?;
            self.behind.end = first;
            return Ok(Some(first..unit.saturating_add(1)));
        }
        Ok(None)
    }
}

impl Stack<Stretch> {
    /// What to fetch next of the newest, at most about `size` bytes.
    pub(super) fn next(&mut self, image: &Image, size: u64, origin: Origin) -> Result<Option<Wish>, Damaged> {
        while let Some(stretch) = self.top() {
            if let Some(units) = stretch.next(image, size)? {
                let goes_on = stretch.in_order.is_some();
                return Ok(Some(Wish { goes_on, ..Wish::new(origin, stretch.layer, units) }));
            }
            if image.here().is_spent() {
                return Ok(None);
            }
            self.pop();
        }
        Ok(None)
    }
}
