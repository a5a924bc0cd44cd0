//! All of a filesystem image as it comes: its units need not ascend in the blob as they do in the layer file, so each is decoded where the
//! blob has it, for its checks alone.

use std::collections::HashSet;

use bytes::Bytes;

use super::arrival::Arrival;
use super::assemble::{Assembler, Brought, Wanted};
use super::decode::Units;
use super::plan::{self, Run};
use super::{Error, Layer};
use crate::blob::ByteRange;
use crate::index::Piece;

/// Decodes all units of `run`; what of them is not wanted is left.
pub(super) fn decode(
    layer: &Layer,
    run: &Run,
    arrival: &mut Arrival,
    wanted: &[Wanted],
    outcome: &mut dyn FnMut(Wanted, Option<Brought>),
) -> Result<(), Error> {
    let wanted: HashSet<u32> = wanted.iter().map(|wanted| wanted.check).collect();
    let mut order = Vec::with_capacity(run.units.len());
    for unit in run.units.clone() {
        order.push((layer.index.unit(unit)?.compressed, unit));
    }
    order.sort_by_key(|(compressed, _)| (compressed.start, compressed.end));
    let mut units = Units::new().map_err(|_| Error::Interrupted)?;
    let (mut last, mut bytes) = (ByteRange { start: 0, end: 0 }, Bytes::new());
    for (compressed, number) in order {
        // One that several files have parts of stands there several times.
        if compressed != last {
            (last, bytes) = (compressed, arrival.bytes(compressed));
        }
        if bytes.len() as u64 != compressed.len() {
            if arrival.has_failed() {
                break;
            }
            continue;
        }
        let alone = Run { units: number..number.saturating_add(1), compressed };
        let mut checks = plan::checks_in(&layer.index, &alone)?;
        checks.retain(|check| wanted.contains(&check.check));
        if checks.is_empty() {
            continue;
        }
        let unit = layer.index.unit(number)?;
        let pieces = unit.pieces.clone().map(|piece| layer.index.piece(piece)).collect::<Result<Vec<Piece>, _>>()?;
        let mut assembler = Assembler::new(&layer.cache, &layer.file, checks, outcome);
        let decoded = units.decode(unit.codec, &[], &bytes[..], &pieces, &mut |at, part| assembler.push(at, part));
        if let Err(error) = decoded {
            tracing::debug!(layer = %layer.digest(), unit = number, %error, "a unit cannot be decoded");
        }
        if let Some(needed) = assembler.finish() {
            return Err(Error::NoRoom { layer: *layer.digest(), needed });
        }
    }
    Ok(())
}
