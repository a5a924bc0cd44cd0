//! What of a unit is missing, by a bounded number of looks: a unit may have a hundred thousand checks.

use std::ops::Range;

use super::{Layer, plan};
use crate::cache::LayerFile;
use crate::index::{CheckKind, Damaged, StoredIndex};

/// What was found of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// All of it is here, or has no bytes of its own.
    Here,
    /// What is missing of it is on its way: whoever brings a part of a unit brings all of it.
    Coming,
    Lacking,
    /// So many of its checks are here; the others were not looked at.
    HereSoFar(u32),
}

/// Where a check is that is not in the layer file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Elsewhere {
    InMemory,
    OnItsWay,
    Nowhere,
}

/// How some checks of a unit are, the first `skipped` of it left out, and no more than `most` of them looked at. Gives as well how many were.
pub(super) fn look(
    index: &StoredIndex,
    file: &LayerFile,
    elsewhere: impl Fn(u32) -> Elsewhere,
    unit: u32,
    skipped: u32,
    most: u32,
) -> Result<(Presence, u32), Damaged> {
    let checks = plan::checks_over_unit(index, unit)?;
    let start = checks.start.saturating_add(skipped).min(checks.end);
    let end = start.saturating_add(most).min(checks.end);
    let (mut left, mut is_kept): (Range<u32>, bool) = (start..end, true);
    while let Some(missing) = file.first_missing(left.clone()) {
        let looks = (missing - start).saturating_add(1);
        match elsewhere(missing) {
            // Only for a while.
            Elsewhere::InMemory => is_kept = false,
            Elsewhere::OnItsWay => return Ok((Presence::Coming, looks)),
            Elsewhere::Nowhere if index.check(missing)?.kind != CheckKind::Hole => {
                return Ok((Presence::Lacking, looks));
            }
            Elsewhere::Nowhere => {}
        }
        left.start = missing.saturating_add(1);
    }
    let found = match is_kept {
        false => Presence::Coming,
        true if end == checks.end => Presence::Here,
        true => Presence::HereSoFar(end - checks.start),
    };
    Ok((found, (end - start).max(1)))
}

impl Layer {
    pub(super) fn look_at(&self, unit: u32, skipped: u32, most: u32) -> Result<(Presence, u32), Damaged> {
        let elsewhere = |check| match self.aside.has(check) {
            true => Elsewhere::InMemory,
            false if self.flights.has(check) => Elsewhere::OnItsWay,
            false => Elsewhere::Nowhere,
        };
        look(&self.index, &self.file, elsewhere, unit, skipped, most)
    }
}
