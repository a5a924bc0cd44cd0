//! All of a filesystem image as it comes: its units need not ascend in the blob as they do in the layer file, so each is decoded where the
//! blob has it, for its checks alone.

use std::collections::HashSet;

use bytes::{Buf, BytesMut};

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
    let mut window = Window { start: 0, bytes: BytesMut::new() };
    for (compressed, number) in order {
        let Some(bytes) = window.get(arrival, compressed) else {
            if arrival.has_failed() {
                break;
            }
            continue;
        };
        let alone = Run { units: number..number.saturating_add(1), compressed };
        let mut checks = plan::checks_in(&layer.index, &alone)?;
        checks.retain(|check| wanted.contains(&check.check));
        if checks.is_empty() {
            continue;
        }
        let unit = layer.index.unit(number)?;
        let pieces = unit.pieces.clone().map(|piece| layer.index.piece(piece)).collect::<Result<Vec<Piece>, _>>()?;
        let mut assembler = Assembler::new(&layer.cache, &layer.file, checks, outcome);
        let decoded = units.decode(unit.codec, &[], bytes, &pieces, &mut |at, part| assembler.push(at, part));
        if let Err(error) = decoded {
            tracing::debug!(layer = %layer.digest(), unit = number, %error, "a unit cannot be decoded");
        }
        if let Some(needed) = assembler.finish() {
            return Err(Error::NoRoom { layer: *layer.digest(), needed });
        }
    }
    Ok(())
}

/// Bytes of the blob that units may still have a part of, from the start of the one at hand on. Those of a file's end that is stored among inodes
/// lie within what others have fetched around them, and a block that several files have parts of stands there several times.
struct Window {
    start: u64,
    bytes: BytesMut,
}

impl Window {
    /// The bytes of a unit, of which each starts where the one before does or behind; `None` where not all of them come.
    fn get(&mut self, arrival: &mut Arrival, unit: ByteRange) -> Option<&[u8]> {
        let before = usize::try_from(unit.start.checked_sub(self.start)?).ok()?;
        self.bytes.advance(before.min(self.bytes.len()));
        self.start = unit.start;
        let len = usize::try_from(unit.len()).ok()?;
        let known = self.bytes.len() as u64;
        if known < unit.len() {
            self.bytes.extend_from_slice(&arrival.bytes(ByteRange { start: unit.start + known, end: unit.end }));
        }
        self.bytes.get(..len)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn units_overlap_lie_within_each_other_and_are_there_twice() {
        let blob: Vec<u8> = (0..200).collect();
        let (sender, parts) = mpsc::channel(10);
        blob.chunks(30).for_each(|part| sender.try_send(Ok(Bytes::copy_from_slice(part))).unwrap());
        drop(sender);
        let mut arrival = Arrival::new(parts, 0, None);
        let mut window = Window { start: 0, bytes: BytesMut::new() };
        for (start, end) in [(0, 50), (10, 20), (10, 20), (15, 70), (70, 80), (79, 90), (120, 150), (149, 200)] {
            let got = window.get(&mut arrival, ByteRange { start, end }).map(<[u8]>::to_vec);
            assert_eq!(got.as_deref(), blob.get(start as usize..end as usize), "{start} {end}");
        }
        assert_eq!(window.get(&mut arrival, ByteRange { start: 190, end: 201 }), None, "cut off");
    }
}
