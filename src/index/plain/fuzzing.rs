//! Unpacking for the fuzz target, which cannot see this module.

use std::io;

use super::unpack::{Event, Start, Unpacker};
use super::window;
use crate::index::{Codec, Format};

/// A unit, with all that it is decoded by.
#[derive(Debug, PartialEq, Eq)]
pub struct UnpackedUnit {
    /// Where it starts in the blob.
    pub compressed: u64,
    /// Where it starts in the stream.
    pub decoded: u64,
    pub codec: Codec,
    pub window: Vec<u8>,
}

/// What a pass has told.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    pub bytes: Vec<u8>,
    pub units: Vec<UnpackedUnit>,
    /// Where the data ends in the blob; `None` where unpacking has failed.
    pub end: Option<u64>,
}

/// Unpacks a blob that comes in parts, up to `limit` bytes of the stream.
pub fn unpack<'a>(format: Format, parts: impl Iterator<Item = &'a [u8]>, limit: usize) -> Unpacked {
    let mut unpacked = Unpacked::default();
    if all(format, parts, limit, &mut unpacked).is_err() {
        unpacked.end = None;
    }
    unpacked
}

fn all<'a>(
    format: Format,
    mut parts: impl Iterator<Item = &'a [u8]>,
    limit: usize,
    unpacked: &mut Unpacked,
) -> io::Result<()> {
    let mut unpacker = Unpacker::new(format)?;
    let mut tell = |event| take(event, limit, unpacked);
    parts.try_for_each(|part| unpacker.push(part, &mut tell))?;
    unpacker.finish(&mut tell)
}

fn take(event: Event, limit: usize, unpacked: &mut Unpacked) -> io::Result<()> {
    match event {
        Event::Unit { compressed, decoded, start } => {
            let codec = match start {
                Start::Stored => Codec::Stored,
                Start::Zstd => Codec::Zstd,
                Start::Deflate { bits } => Codec::Deflate { bits, window: None },
            };
            unpacked.units.push(UnpackedUnit { compressed, decoded, codec, window: Vec::new() });
        }
        Event::Bytes(bytes) => unpacked.bytes.extend(bytes),
        Event::Window { unit, packed } => {
            let unit = unpacked.units.get_mut(unit as usize).ok_or(io::ErrorKind::InvalidData)?;
            unit.window = window::unpack(&packed)?;
        }
        Event::Holds(_) => {}
        Event::End { compressed } => unpacked.end = Some(compressed),
    }
    if unpacked.bytes.len() > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(()) }
}
