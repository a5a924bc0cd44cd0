#![no_main]
//! One unit of any codec, with pieces that the input chooses: decoding ends, and gives each piece whole and in order, or an error.

use crfs::blob::ByteRange;
use crfs::fetch::Units;
use crfs::index::{Codec, Piece};
use libfuzzer_sys::fuzz_target;

/// Bytes of input that say how to decode: the codec and its bits, for two pieces how far each starts behind the one before and how long it is,
/// and how many of the bytes that follow are the window.
const PLAN: usize = 7;

fuzz_target!(|input: &[u8]| {
    let Some((plan, unit)) = input.split_at_checked(PLAN) else { return };
    let codec = match plan[0] & 3 {
        0 => Codec::Gzip,
        1 => Codec::Zstd,
        2 => Codec::Stored,
        _ => Codec::Deflate { bits: plan[0] >> 2 & 7, window: None },
    };
    let (window, unit) = unit.split_at(usize::from(u16::from_le_bytes([plan[5], plan[6]])).min(unit.len()));
    let number = |at: usize| u64::from(plan[at]) * if plan[at] > 200 { 5000 } else { 1 };
    let (gap, len) = (number(1), 1 + number(2));
    let first = Piece { unit: 0, in_unit: gap, range: ByteRange { start: 0, end: len } };
    let (gap, next) = (number(3), 1 + number(4));
    let start = len.next_multiple_of(4096);
    let second = Piece { unit: 0, in_unit: first.in_unit + len + gap, range: ByteRange { start, end: start + next } };

    let mut seen = Vec::new();
    let decoded = Units::new().expect("memory").decode(codec, window, unit, &[first, second], &mut |at, bytes| {
        seen.push(ByteRange::at(at, bytes.len() as u64).expect("within the pieces"));
        Ok(())
    });
    let mut at = 0;
    for part in &seen {
        assert!(part.start == at || (at == len && part.start == start), "in order, without a gap");
        at = part.end;
    }
    assert!(decoded.is_err() || at == start + next, "whole");
});
