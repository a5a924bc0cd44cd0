//! The tables of units, pieces and checks: fixed-size records, so that any one is found without reading the others.
//!
//! ```text
//! unit    32   u64 start, u64 end of the compressed range; u32 first piece, u32 past the last; u8 codec, u8 bits, 6 bytes window
//! piece   32   u64 in the decoded unit; u64 start, u64 end in the layer file; u32 unit, 4 zeros
//! check   64   u64 start, u64 end in the layer file; u8 kind (0 digest, 1 hole, 2 span, 3 vouched for), 15 zeros; 32 bytes digest
//! chunk   64   see chunks.rs
//! ```
//!
//! Codecs: 1 gzip, 2 zstd, 3 stored, 4 deflate, which alone has bits and a window: one more than its place in the windows, or 0. There it is
//! a u32 length and so many bytes of zstd. Of filesystem images: 5 zlib, 6 deflate alone, 7 lz4, with a u32 of what it unpacks to in place of
//! the window, 8 xz; 9 lz4, 10 deflate alone, 11 zstd and 12 MicroLZMA, with zeros before them.
//!
//! Little endian. The lengths divide [`BLOCK`], so that no record lies in two blocks. Each block is packed by zstd.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use zstd::bulk::Decompressor;

use super::chunks::Chunks;
pub(super) use super::record::{Record, u32_at, u64_at};
use super::record::{put_range, range_at};
use crate::blob::{ByteRange, Digest};

/// What the tables are verified and kept in memory by.
pub(super) const BLOCK: usize = 64 << 10;

/// Bytes that are kept of each block: the sha256 of what is stored of it, where the range of its first record starts (u64), so that a lookup
/// reads one block, and where it ends in what is stored (u64).
pub(super) const BLOCK_DIGEST: usize = 48;

/// zstd's level for blocks: a lookup unpacks one.
const LEVEL: i32 = 3;

/// A block as it is stored.
pub(super) fn pack(block: &[u8]) -> std::io::Result<Vec<u8>> {
    zstd::bulk::compress(block, LEVEL)
}

/// The block that was packed; shorter ones end a table.
pub(super) fn unpack(packed: &[u8]) -> std::io::Result<Vec<u8>> {
    let kept = UNPACKERS.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let mut unpacker = kept.map_or_else(Decompressor::new, Ok)?;
    let block = unpacker.decompress(packed, BLOCK);
    let mut kept = UNPACKERS.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.len() < MOST_UNPACKERS {
        kept.push(unpacker);
    }
    block
}

/// To make one costs as much as to unpack a third of a block.
static UNPACKERS: Mutex<Vec<Decompressor<'static>>> = Mutex::new(Vec::new());

/// Those that are kept while nobody uses them, of some 100 KiB each.
const MOST_UNPACKERS: usize = 2;

/// How a unit is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// One gzip member (RFC 1952).
    Gzip,
    /// A zstd frame (RFC 8878), or several.
    Zstd,
    /// Not compressed.
    Stored,
    /// Deflate blocks (RFC 1951), which start with the upper `bits` bits of the first byte, or with all of it where that is 0; behind the
    /// last one the trailer, and further gzip members.
    Deflate {
        bits: u8,
        window: Option<Window>,
    },
    /// A zlib stream (RFC 1950).
    Zlib,
    /// A deflate stream (RFC 1951) with nothing around it.
    Inflate,
    /// An lz4 block, which unpacks to so many bytes.
    Lz4 {
        unpacked: u32,
    },
    /// An .xz stream.
    Xz,
    /// The same with zeros before what is packed, as EROFS fills a block.
    PaddedLz4 {
        unpacked: u32,
    },
    PaddedInflate,
    PaddedZstd,
    /// MicroLZMA, behind zeros.
    MicroLzma,
}

/// Where the index has the window of a unit: the output before it that its blocks may refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window(u64);

impl Codec {
    fn word(self) -> u64 {
        match self {
            Self::Gzip => 1,
            Self::Zstd => 2,
            Self::Stored => 3,
            Self::Zlib => 5,
            Self::Inflate => 6,
            Self::Lz4 { unpacked } => 7 | u64::from(unpacked) << 16,
            Self::Xz => 8,
            Self::PaddedLz4 { unpacked } => 9 | u64::from(unpacked) << 16,
            Self::PaddedInflate => 10,
            Self::PaddedZstd => 11,
            Self::MicroLzma => 12,
            Self::Deflate { bits, window } => 4 | u64::from(bits) << 8 | window.map_or(0, |Window(at)| at + 1) << 16,
        }
    }

    fn of(word: u64) -> Option<Self> {
        let bits = (word >> 8 & 0xff) as u8;
        Some(match word & 0xff {
            1 if word == 1 => Self::Gzip,
            2 if word == 2 => Self::Zstd,
            3 if word == 3 => Self::Stored,
            4 if bits < 8 => Self::Deflate { bits, window: (word >> 16).checked_sub(1).map(Window) },
            5 if word == 5 => Self::Zlib,
            6 if word == 6 => Self::Inflate,
            7 if bits == 0 => Self::Lz4 { unpacked: u32::try_from(word >> 16).ok()? },
            8 if word == 8 => Self::Xz,
            9 if bits == 0 => Self::PaddedLz4 { unpacked: u32::try_from(word >> 16).ok()? },
            10 if word == 10 => Self::PaddedInflate,
            11 if word == 11 => Self::PaddedZstd,
            12 if word == 12 => Self::MicroLzma,
            _ => return None,
        })
    }
}

impl Window {
    pub(super) const fn place(self) -> u64 {
        self.0
    }
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
    /// Of the compressed bytes of the unit that fills the range, and nothing else: a zTOC has no other digests.
    Span(Digest),
    /// Of nothing: what fills it comes out of chunks that are verified before they are unpacked (chunks.rs).
    Vouched,
    /// Zeros by the TOC's word: nothing to fetch.
    Hole,
}

/// What a digest is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    Contents,
    Span,
    /// What comes was verified before.
    Chunks,
}

impl CheckKind {
    /// What is to be compared; `None` for a hole.
    #[must_use]
    pub const fn digest(&self) -> Option<(Digest, Of)> {
        match self {
            Self::Digest(digest) => Some((*digest, Of::Contents)),
            Self::Span(digest) => Some((*digest, Of::Span)),
            Self::Vouched => Some((Digest::from_bytes([0; 32]), Of::Chunks)),
            Self::Hole => None,
        }
    }
}

impl Record for Unit {
    const LEN: usize = 32;
    const KEY: usize = 0;

    fn put(&self, out: &mut Vec<u8>) {
        put_range(self.compressed, out);
        out.extend_from_slice(&self.pieces.start.to_le_bytes());
        out.extend_from_slice(&self.pieces.end.to_le_bytes());
        out.extend_from_slice(&self.codec.word().to_le_bytes());
    }

    fn get(bytes: &[u8]) -> Option<Self> {
        let codec = Codec::of(u64_at(bytes, 24)?)?;
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
            CheckKind::Span(digest) => (2, *digest.as_bytes()),
            CheckKind::Vouched => (3, [0; 32]),
        };
        out.extend_from_slice(&u128::to_le_bytes(kind));
        out.extend_from_slice(&digest);
    }

    fn get(bytes: &[u8]) -> Option<Self> {
        let kind = match u64_at(bytes, 16)? {
            0 => CheckKind::Digest(Digest::from_bytes(*bytes.get(32..)?.first_chunk()?)),
            2 => CheckKind::Span(Digest::from_bytes(*bytes.get(32..)?.first_chunk()?)),
            1 => CheckKind::Hole,
            3 => CheckKind::Vouched,
            _ => return None,
        };
        Some(Self { range: range_at(bytes, 0)?, kind })
    }
}

/// The tables of a layer, already in the form they are stored in.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(super) units: Vec<u8>,
    pub(super) pieces: Vec<u8>,
    pub(super) checks: Vec<u8>,
    /// One after the other; not a table, since they are of different lengths.
    pub(super) windows: Vec<u8>,
    /// What the blob is verified by, where the places of units are those of an image in it.
    pub(super) chunks: Chunks,
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

    /// Keeps a packed window, unless it is empty.
    pub(crate) fn window(&mut self, packed: &[u8]) -> Option<Window> {
        let len = u32::try_from(packed.len()).ok().filter(|len| *len > 0)?;
        let place = Window(self.windows.len() as u64);
        self.windows.extend_from_slice(&len.to_le_bytes());
        self.windows.extend_from_slice(packed);
        Some(place)
    }

    /// From here on the places of units are those of the image that these are of.
    pub(crate) fn within(&mut self, chunks: Chunks) {
        self.chunks = chunks;
    }

    /// Number of units so far; [`CHUNKS`](crate::index::limits::CHUNKS) keeps all three below 2^32.
    pub(crate) fn units(&self) -> u32 {
        (self.units.len() / Unit::LEN) as u32
    }

    /// Bytes that they take.
    pub(crate) fn bytes(&self) -> u64 {
        (self.units.len() + self.pieces.len() + self.checks.len() + self.windows.len()) as u64 + self.chunks.bytes()
    }

    /// What a file of one chunk takes in them.
    pub(crate) const EACH: u64 = (Unit::LEN + Piece::LEN + Check::LEN) as u64;

    pub(crate) fn pieces(&self) -> u32 {
        (self.pieces.len() / Piece::LEN) as u32
    }

    pub(crate) fn checks(&self) -> usize {
        self.checks.len() / Check::LEN
    }
}
