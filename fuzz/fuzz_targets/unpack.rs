#![no_main]
//! A blob in one pass: unpacking ends, gives the same however the blob is cut, and each unit decodes from its start alone to what the pass had there.
//!
//! Input: a byte that says how the blob is cut; one for what it is: zstd, gzip as it is, or gzip members around deflate data, whose lengths
//! and checksums no search would find.

use crfs::blob::ByteRange;
use crfs::fetch::Units;
use crfs::index::{Codec, Format, Piece, Unpacked, unpack_for_fuzzing};
use flate2::{Crc, Decompress, FlushDecompress, Status};
use libfuzzer_sys::fuzz_target;

/// Bytes of the stream that are asked for.
const LIMIT: usize = 4 << 20;

/// Members with right trailers, as long as there is deflate data; then the rest.
fn members(mut data: &[u8]) -> Vec<u8> {
    let mut blob = Vec::new();
    let mut output = vec![0; LIMIT];
    while !data.is_empty() {
        let mut inflate = Decompress::new(false);
        let Ok(Status::StreamEnd) = inflate.decompress(data, &mut output, FlushDecompress::Finish) else { break };
        let (deflate, rest) = data.split_at(inflate.total_in() as usize);
        let mut sum = Crc::new();
        sum.update(&output[..inflate.total_out() as usize]);
        blob.extend_from_slice(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff]);
        blob.extend_from_slice(deflate);
        blob.extend_from_slice(&sum.sum().to_le_bytes());
        blob.extend_from_slice(&sum.amount().to_le_bytes());
        data = rest;
    }
    [blob.as_slice(), data].concat()
}

/// Every unit from its start alone.
fn check_units(blob: &[u8], unpacked: &Unpacked) {
    let mut decoder = Units::new().expect("memory");
    for (number, unit) in unpacked.units.iter().enumerate() {
        let end = unpacked.units.get(number + 1).map_or(unpacked.bytes.len(), |next| next.decoded as usize);
        let wanted = &unpacked.bytes[unit.decoded as usize..end];
        if wanted.is_empty() {
            continue;
        }
        let piece = Piece { unit: 0, in_unit: 0, range: ByteRange { start: 0, end: wanted.len() as u64 } };
        let mut got = Vec::new();
        let decoded =
            decoder.decode(unit.codec, &unit.window, &blob[unit.compressed as usize..], &[piece], &mut |_, bytes| {
                got.extend_from_slice(bytes);
                Ok(())
            });
        decoded.expect("what was decoded before");
        assert!(got == wanted, "unit {number} of {}", unpacked.units.len());
        assert!(matches!(unit.codec, Codec::Stored | Codec::Zstd | Codec::Deflate { .. }));
    }
}

fuzz_target!(|input: &[u8]| {
    let [cut, what, data @ ..] = input else { return };
    let (format, blob) = match what & 3 {
        0 => (Format::TarZstd, data.to_vec()),
        1 => (Format::TarGzip, data.to_vec()),
        2 => (Format::Tar, data.to_vec()),
        _ => (Format::TarGzip, members(data)),
    };
    let part = 1 + usize::from(*cut) * 7;
    let unpacked = unpack_for_fuzzing(format, blob.chunks(part), LIMIT);
    let whole = unpack_for_fuzzing(format, [blob.as_slice()].into_iter(), LIMIT);
    // What is damaged may be given up a little earlier or later.
    if unpacked.end.is_some() || whole.end.is_some() {
        assert!(unpacked.end.is_some_and(|end| end <= blob.len() as u64));
        assert!(unpacked == whole, "the same, however it is cut");
        check_units(&blob, &whole);
    }
});
