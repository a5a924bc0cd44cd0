//! The tables of units, pieces and checks: fixed-size records, so that any one is found without reading the others.
//!
//! ```text
//! unit    32   u64 start, u64 end of the compressed range; u32 first piece, u32 past the last; u8 codec, 7 zeros
//! piece   32   u64 in the decoded unit; u64 start, u64 end in the layer file; u32 unit, 4 zeros
//! check   64   u64 start, u64 end in the layer file; u8 kind (0 digest, 1 hole), 15 zeros; 32 bytes digest
//! ```
//!
//! Little endian. The lengths divide [`BLOCK`], so that no record lies in two blocks.

use std::ops::Range;

use crate::blob::{ByteRange, Digest};

/// What the tables are verified and kept in memory by.
pub(super) const BLOCK: usize = 64 << 10;

/// Bytes that are kept of each block: its sha256, and where the range of its first record starts (u64), so that a lookup reads one block.
pub(super) const BLOCK_DIGEST: usize = 40;

/// How a unit is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// One gzip member (RFC 1952).
    Gzip,
    /// One zstd frame (RFC 8878).
    Zstd,
}

/// The smallest part of a blob that can be decoded on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Where it lies in the blob.
    pub compressed: ByteRange,
    pub codec: Codec,
    /// Its pieces: positions in the table of pieces. Pieces stand in the order of the stream, which is that of the layer file.
    pub pieces: Range<u32>,
}

/// The bytes of one file that a unit yields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub unit: u32,
    /// Where it starts in the decoded unit.
    pub in_unit: u64,
    /// Where it lies in the layer file.
    pub range: ByteRange,
}

/// A digest over a range of the layer file. Checks tile every file, in the order of the layer file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    pub range: ByteRange,
    pub kind: CheckKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckKind {
    Digest(Digest),
    /// Zeros by the TOC's word: nothing to fetch.
    Hole,
}

/// A record of a table.
pub(super) trait Record: Sized {
    const LEN: usize;
    /// Where in the record the start is of the range that it is looked up by.
    const KEY: usize;

    fn put(&self, out: &mut Vec<u8>);

    /// `None` where it is none that [`put`](Self::put) makes.
    fn get(bytes: &[u8]) -> Option<Self>;
}

impl Record for Unit {
    const LEN: usize = 32;
    const KEY: usize = 0;

    fn put(&self, out: &mut Vec<u8>) {
        put_range(self.compressed, out);
        out.extend_from_slice(&self.pieces.start.to_le_bytes());
        out.extend_from_slice(&self.pieces.end.to_le_bytes());
        let codec = match self.codec {
            Codec::Gzip => 1,
            Codec::Zstd => 2,
        };
        out.extend_from_slice(&u64::to_le_bytes(codec));
    }

    fn get(bytes: &[u8]) -> Option<Self> {
        let codec = match u64_at(bytes, 24)? {
            1 => Codec::Gzip,
            2 => Codec::Zstd,
            _ => return None,
        };
        Some(Self { compressed: range_at(bytes, 0)?, codec, pieces: u32_at(bytes, 16)?..u32_at(bytes, 20)? })
    }
}

impl Record for Piece {
    const LEN: usize = 32;
    const KEY: usize = 8;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.in_unit.to_le_bytes());
        put_range(self.range, out);
        out.extend_from_slice(&u64::from(self.unit).to_le_bytes());
    }

    fn get(bytes: &[u8]) -> Option<Self> {
        let unit = u32::try_from(u64_at(bytes, 24)?).ok()?;
        Some(Self { unit, in_unit: u64_at(bytes, 0)?, range: range_at(bytes, 8)? })
    }
}

impl Record for Check {
    const LEN: usize = 64;
    const KEY: usize = 0;

    fn put(&self, out: &mut Vec<u8>) {
        put_range(self.range, out);
        let (kind, digest) = match &self.kind {
            CheckKind::Digest(digest) => (0, *digest.as_bytes()),
            CheckKind::Hole => (1, [0; 32]),
        };
        out.extend_from_slice(&u128::to_le_bytes(kind));
        out.extend_from_slice(&digest);
    }

    fn get(bytes: &[u8]) -> Option<Self> {
        let kind = match u64_at(bytes, 16)? {
            0 => CheckKind::Digest(Digest::from_bytes(*bytes.get(32..)?.first_chunk()?)),
            1 => CheckKind::Hole,
            _ => return None,
        };
        Some(Self { range: range_at(bytes, 0)?, kind })
    }
}

fn put_range(range: ByteRange, out: &mut Vec<u8>) {
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

/// The three tables of a layer, already in the form they are stored in.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(super) units: Vec<u8>,
    pub(super) pieces: Vec<u8>,
    pub(super) checks: Vec<u8>,
}

impl Tables {
    pub(crate) fn unit(&mut self, unit: &Unit) {
        unit.put(&mut self.units);
    }

    pub(crate) fn piece(&mut self, piece: &Piece) {
        piece.put(&mut self.pieces);
    }

    pub(crate) fn check(&mut self, check: &Check) {
        check.put(&mut self.checks);
    }

    /// Number of units so far; [`CHUNKS`](crate::index::limits::CHUNKS) keeps all three below 2^32.
    pub(crate) fn units(&self) -> u32 {
        (self.units.len() / Unit::LEN) as u32
    }

    pub(crate) fn pieces(&self) -> u32 {
        (self.pieces.len() / Piece::LEN) as u32
    }

    pub(crate) fn checks(&self) -> usize {
        self.checks.len() / Check::LEN
    }
}
