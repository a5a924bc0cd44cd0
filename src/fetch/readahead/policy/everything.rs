//! What lies behind the last read, for who reads everything, or many files in the order of the blob.

use std::collections::HashMap;
use std::ops::Range;

use super::super::super::plan;
use super::super::history::Last;
use super::super::image::Image;
use super::super::stretch::Stretch;
use super::super::wish::{Origin, Wish};
use super::{Ask, Found, Known, News, Policy};
use crate::index::Damaged;

/// Units that are looked at in one go for some that are not there.
const LOOKED_AT: u32 = 4096;

#[derive(Default)]
pub(super) struct Everything {
    /// What was wished for: in this layer, from the first of these units to the second.
    wished: (usize, Range<u32>),
    /// The same from the start of each layer, where the one that is read has been fetched to its end.
    ends: HashMap<usize, u32>,
}

impl Policy for Everything {
    fn origins(&self) -> &'static [Origin] {
        &[Origin::Everything]
    }

    fn told(&mut self, _: &Known<'_>, _: &News<'_>, _: &mut Found) -> Result<(), Damaged> {
        Ok(())
    }

    fn next(&mut self, known: &Known<'_>, ask: Ask, _: &mut Found) -> Result<Option<Wish>, Damaged> {
        if !known.history.reads_all() || (ask.is_over && !self.may_go_on(known)?) {
            return Ok(None);
        }
        let found = self.behind(known.image, known.history.last())?;
        Ok(found.map(|(layer, units)| Wish { goes_on: true, ..Wish::new(Origin::Everything, layer, units) }))
    }
}

impl Everything {
    /// Who has read many files in the order of the blob gets a slice ahead at most, whatever was guessed wrong before.
    fn may_go_on(&self, known: &Known<'_>) -> Result<bool, Damaged> {
        let Last { layer, unit, .. } = known.history.last();
        let Some(contents) = known.image.layer(layer).filter(|_| known.history.reads_in_order()) else {
            return Ok(false);
        };
        let ahead = if self.has_wished(layer, unit) { contents.size(&(unit..self.wished.1.end))? } else { 0 };
        Ok(ahead <= plan::SLICE)
    }

    fn has_wished(&self, layer: usize, unit: u32) -> bool {
        self.wished.0 == layer && self.wished.1.contains(&unit)
    }

    fn behind(
        &mut self,
        image: &Image,
        Last { layer, unit, .. }: Last,
    ) -> Result<Option<(usize, Range<u32>)>, Damaged> {
        if !self.has_wished(layer, unit) {
            self.wished = (layer, unit..unit.saturating_add(1));
        }
        let end = &mut self.wished.1.end;
        if let Some(units) = missing_from(image, layer, end)? {
            return Ok(Some((layer, units)));
        }
        if image.here().is_spent() || image.layer(layer).is_some_and(|contents| *end < contents.count()) {
            // There is more to look at the next time.
            return Ok(None);
        }
        self.elsewhere(image)
    }

    /// The one that is read was fetched to its end; what is left is elsewhere.
    fn elsewhere(&mut self, image: &Image) -> Result<Option<(usize, Range<u32>)>, Damaged> {
        for layer in 0..image.layers() {
            let end = self.ends.entry(layer).or_insert(0);
            if let Some(units) = missing_from(image, layer, end)? {
                return Ok(Some((layer, units)));
            }
            if image.here().is_spent() {
                break;
            }
        }
        Ok(None)
    }
}

/// The next units of a layer that are not there; `start` is moved behind what was looked at.
fn missing_from(image: &Image, layer: usize, start: &mut u32) -> Result<Option<Range<u32>>, Damaged> {
    let Some(contents) = image.layer(layer).filter(|layer| layer.is_remote()) else { return Ok(None) };
    let until = contents.count().max(*start).min(start.saturating_add(LOOKED_AT));
    let found = Stretch::in_order(layer, *start..until, image.piece(layer)).next(image, plan::SLICE)?;
    match &found {
        Some(units) => *start = units.end,
        None if image.here().is_spent() => {}
        None => *start = until,
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::readahead::fake::{Lab, UNIT};

    const NAMES: [&str; 40] = [
        "/00", "/01", "/02", "/03", "/04", "/05", "/06", "/07", "/08", "/09", "/10", "/11", "/12", "/13", "/14", "/15",
        "/16", "/17", "/18", "/19", "/20", "/21", "/22", "/23", "/24", "/25", "/26", "/27", "/28", "/29", "/30", "/31",
        "/32", "/33", "/34", "/35", "/36", "/37", "/38", "/39",
    ];

    #[test]
    fn who_reads_many_files_in_order_gets_those_behind() {
        let files = NAMES.map(|name| (name, vec![1; 4 * usize::try_from(UNIT).unwrap()]));
        let mut lab = Lab::of(&[&[("/", Vec::new())], &files[..]].concat());
        let mut policy = Everything::default();
        let ask = |is_over| Ask { turn: Origin::Everything, size: UNIT, is_over };
        for name in &NAMES[..32] {
            assert!(lab.ask(&mut policy, ask(false)).is_none(), "{name}");
            lab.read(&mut policy, name, 0..4 * UNIT);
        }
        // Also when much was guessed wrong before.
        let wish = lab.ask(&mut policy, ask(true)).unwrap();
        assert!(wish.goes_on && wish.origin == Origin::Everything);
        assert_eq!(wish.units, 128..160, "to its end, which is that of the layer");
        lab.bring(wish.units);
        assert!(lab.ask(&mut policy, ask(false)).is_none(), "all is there");
    }
}
