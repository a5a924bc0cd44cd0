//! Records of tables, and the numbers in them.

use crate::blob::ByteRange;

/// A record of a table.
pub(super) trait Record: Sized {
    const LEN: usize;
    /// Where in the record the start is of the range that it is looked up by.
    const KEY: usize;

    fn put(&self, out: &mut Vec<u8>);

    /// `None` where it is none that [`put`](Self::put) makes.
    fn get(bytes: &[u8]) -> Option<Self>;
}

pub(super) fn put_range(range: ByteRange, out: &mut Vec<u8>) {
    out.extend_from_slice(&range.start.to_le_bytes());
    out.extend_from_slice(&range.end.to_le_bytes());
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|word| u64::from_le_bytes(*word))
}

pub(super) fn range_at(bytes: &[u8], at: usize) -> Option<ByteRange> {
    ByteRange::new(u64_at(bytes, at)?, u64_at(bytes, at + 8)?)
}
