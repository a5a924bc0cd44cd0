//! Numbers on disk that show when a bit of them was flipped.
//!
//! ```text
//! 63            16 15           0
//! | number, 48 bits | checksum |      little endian; 0 as a whole is what was never written
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::metrics::steps;

/// Numbers are below this.
pub(super) const LIMIT: u64 = 1 << 48;

/// Bytes of one.
pub(super) const LEN: u64 = 8;

pub(super) fn seal(number: u64) -> u64 {
    let number = number % LIMIT;
    number << 16 | checksum(number)
}

/// `None`: damaged. What was never written is 0.
pub(super) fn open(sealed: u64) -> Option<u64> {
    let number = sealed >> 16;
    (sealed == 0 || sealed & 0xffff == checksum(number)).then_some(number)
}

pub(super) fn write(file: &File, at: u64, number: u64) -> io::Result<()> {
    file.write_all_at(&seal(number).to_le_bytes(), at)
}

/// As it is on disk, not looked into; 0 where nothing can be read.
pub(super) fn raw(file: &File, at: u64) -> u64 {
    let mut bytes = [0; LEN as usize];
    steps::take();
    file.read_exact_at(&mut bytes, at).map_or(0, |()| u64::from_le_bytes(bytes))
}

/// Multiplication carries every bit of the number into the upper ones (Knuth's multiplicative hashing). Never 0, so that nothing
/// sealed is.
fn checksum(number: u64) -> u64 {
    (number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_shows() {
        for number in [0, 1, 4096, 77_777_777, LIMIT - 1] {
            let sealed = seal(number);
            assert_eq!(open(sealed), Some(number));
            for bit in 0..64 {
                assert_eq!(open(sealed ^ 1 << bit), None, "{number}, bit {bit}");
            }
        }
        assert_eq!(open(0), Some(0));
        assert_ne!(seal(0), 0);
    }
}
