//! The first 512 bytes of an encoded index.
//!
//! ```text
//!   0  "crfs index\n\0\0\0\0\0"     16   the name of the format
//!  16  u64 version, u64 format           of the layer: its place in FORMATS
//!  32  blob digest                  32
//!  64  u64 identity kind                 0 none, 1 TOC digest, 2 own, 3 zTOC digest
//!  72  identity digest              32   of kinds 1 and 3, else zeros
//! 104  u64 layer file bytes, u64 entries, u64 TOC bytes
//! 128  u64 prefetch start, u64 end       0, 0: no landmark
//! 144  sections: u64 start, u64 bytes    block digests, entries; and units, pieces, checks, which start in the unpacked tables
//! 224  sha256 of the block digests  32
//! 256  sha256 of the entries        32
//! 288  section: u64 start, u64 bytes     windows, likewise
//! 304  sha256 of the tar stream     32   where it is known, else zeros
//! 336  section: u64 start, u64 bytes     chunks, likewise; none in version 4
//! 352  u64 how they are packed           0 none, 1 stored, 2 zstd, 3 verity, 4 zstd without digests; of verity, above: u8 bits of a block, u8 length of the salt, u8 whether chunks are of several
//! 360  salt                         64
//! 424  zeros
//! 480  sha256 of all of the above   32
//! ```

use super::chunks::{Chunk, LONGEST_SALT, Packing};
use super::record::range_at;
use super::tables::{BLOCK, BLOCK_DIGEST, Check, Piece, Record, Unit, u64_at};
use crate::blob::{ByteRange, Digest};
use crate::index::{Format, Identity, Summary, limits};

pub(super) const LEN: usize = 512;
const SUMMED: usize = LEN - 32;
const MAGIC: &[u8; 16] = b"crfs index\n\0\0\0\0\0";

/// Raised whenever the same bytes come to mean something else; an index of another version is made again.
const VERSION: u64 = 4;

/// Of an index that has chunks: who does not know them would take places in the image for places in the blob.
const WITH_CHUNKS: u64 = 5;

/// Where a part of the encoded index lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) start: u64,
    pub(super) len: u64,
}

impl Section {
    pub(super) const fn range(self) -> ByteRange {
        ByteRange { start: self.start, end: self.start.saturating_add(self.len) }
    }

    /// Bytes of a table with its padding: tables start with a block.
    pub(super) const fn padded(self) -> u64 {
        self.len.next_multiple_of(BLOCK as u64)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) blob: Digest,
    pub(super) identity: Option<Identity>,
    pub(super) summary: Summary,
    pub(super) digests: Section,
    pub(super) entries: Section,
    pub(super) units: Section,
    pub(super) pieces: Section,
    pub(super) checks: Section,
    pub(super) digests_digest: Digest,
    pub(super) entries_digest: Digest,
    pub(super) windows: Section,
    pub(super) chunks: Section,
    pub(super) packing: Option<Packing>,
}

impl Header {
    pub(super) fn put(&self) -> [u8; LEN] {
        let (identity, identity_digest) = match self.identity {
            None => (0, [0; 32]),
            Some(Identity::Toc(digest)) => (1, *digest.as_bytes()),
            Some(Identity::Own) => (2, [0; 32]),
            Some(Identity::Ztoc(digest)) => (3, *digest.as_bytes()),
        };
        let summary = &self.summary;
        let prefetch = summary.prefetch.unwrap_or(ByteRange { start: 0, end: 0 });
        let mut out = Vec::with_capacity(LEN);
        let words =
            |out: &mut Vec<u8>, words: &[u64]| words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
        out.extend_from_slice(MAGIC);
        let version = if self.packing.is_some() { WITH_CHUNKS } else { VERSION };
        words(&mut out, &[version, format_number(summary.format)]);
        out.extend_from_slice(self.blob.as_bytes());
        words(&mut out, &[identity]);
        out.extend_from_slice(&identity_digest);
        words(&mut out, &[summary.layer_file_len, summary.entries, summary.toc_len, prefetch.start, prefetch.end]);
        for section in [self.digests, self.entries, self.units, self.pieces, self.checks] {
            words(&mut out, &[section.start, section.len]);
        }
        out.extend_from_slice(self.digests_digest.as_bytes());
        out.extend_from_slice(self.entries_digest.as_bytes());
        words(&mut out, &[self.windows.start, self.windows.len]);
        out.extend_from_slice(&summary.diff_id.map_or([0; 32], |digest| *digest.as_bytes()));
        if let Some(packing) = &self.packing {
            let (kind, salt) = packing_word(packing);
            words(&mut out, &[self.chunks.start, self.chunks.len, kind]);
            out.extend_from_slice(salt);
        }
        out.resize(SUMMED, 0);
        let sum = Digest::of(&out);
        out.extend_from_slice(sum.as_bytes());
        let mut header = [0; LEN];
        header.iter_mut().zip(out).for_each(|(to, from)| *to = from);
        header
    }

    /// Checks what the header alone can tell; `size`: bytes of the whole encoded index.
    pub(super) fn parse(bytes: &[u8], size: u64) -> Result<Self, &'static str> {
        if !bytes.starts_with(MAGIC) {
            return Err("it is no index");
        }
        if !u64_at(bytes, 16).is_some_and(|version| [VERSION, WITH_CHUNKS].contains(&version)) {
            return Err("it is of another version");
        }
        let summed = bytes.get(..SUMMED).map(Digest::of);
        if summed.is_none() || summed != digest_at(bytes, SUMMED) {
            return Err("its header is damaged");
        }
        let header = Self::fields(bytes).ok_or("its header makes no sense")?;
        if header.is_sound(size) { Ok(header) } else { Err("its sections are not where its header says") }
    }

    fn fields(bytes: &[u8]) -> Option<Self> {
        let identity = match u64_at(bytes, 64)? {
            0 => None,
            1 => Some(Identity::Toc(digest_at(bytes, 72)?)),
            2 => Some(Identity::Own),
            3 => Some(Identity::Ztoc(digest_at(bytes, 72)?)),
            _ => return None,
        };
        let section = |at| Some(Section { start: u64_at(bytes, at)?, len: u64_at(bytes, at + 8)? });
        let (units, checks) = (section(176)?, section(208)?);
        let summary = Summary {
            format: format_of(u64_at(bytes, 24)?)?,
            layer_file_len: u64_at(bytes, 104)?,
            entries: u64_at(bytes, 112)?,
            units: records::<Unit>(units)?,
            checks: records::<Check>(checks)?,
            toc_len: u64_at(bytes, 120)?,
            prefetch: range_at(bytes, 128).filter(|range| !range.is_empty()),
            diff_id: digest_at(bytes, 304).filter(|digest| *digest.as_bytes() != [0; 32]),
        };
        Some(Self {
            blob: digest_at(bytes, 32)?,
            identity,
            summary,
            digests: section(144)?,
            entries: section(160)?,
            units,
            pieces: section(192)?,
            checks,
            digests_digest: digest_at(bytes, 224)?,
            entries_digest: digest_at(bytes, 256)?,
            windows: section(288)?,
            chunks: section(336)?,
            packing: packing_of(bytes)?,
        })
    }

    /// Whether the sections lie one behind the other, as they are written, up to the end.
    fn is_sound(&self, size: u64) -> bool {
        let Self { digests, entries, units, pieces, checks, windows, chunks, .. } = self;
        let limit = limits::OFFSET / 8;
        let small = [digests, entries, units, pieces, checks, windows, chunks]
            .iter()
            .all(|section| section.start <= limit && section.len <= limit);
        small
            && digests.start == LEN as u64
            && entries.start == digests.start + digests.len
            && entries.range().end <= size
            && units.start == 0
            && pieces.start == units.start + units.padded()
            && checks.start == pieces.start + pieces.padded()
            && windows.start == checks.start + checks.padded()
            && (chunks.start == windows.start + windows.padded() || (self.packing.is_none() && chunks.start == 0))
            && (chunks.len > 0) == self.packing.is_some()
            && records::<Chunk>(*chunks).is_some()
            && digests.len == (windows.start + windows.padded() + chunks.padded()) / BLOCK as u64 * BLOCK_DIGEST as u64
            && records::<Piece>(*pieces).is_some()
    }
}

/// How chunks are packed, as a number, and the salt.
fn packing_word(packing: &Packing) -> (u64, &[u8]) {
    match packing {
        Packing::Stored => (1, &[]),
        Packing::Zstd => (2, &[]),
        Packing::Frames => (4, &[]),
        Packing::Verity { bits, several, salt } => {
            (3 | u64::from(*bits) << 8 | (salt.len() as u64) << 16 | u64::from(*several) << 24, salt)
        }
    }
}

/// `None` where it is nothing that there is.
fn packing_of(bytes: &[u8]) -> Option<Option<Packing>> {
    let word = u64_at(bytes, 352)?;
    Some(match word & 0xff {
        0 if word == 0 => None,
        1 if word == 1 => Some(Packing::Stored),
        2 if word == 2 => Some(Packing::Zstd),
        4 if word == 4 => Some(Packing::Frames),
        3 => {
            let (bits, len, several) = ((word >> 8 & 0xff) as u8, (word >> 16 & 0xff) as usize, word >> 24);
            let salt = bytes.get(360..)?.get(..len).filter(|salt| salt.len() <= LONGEST_SALT && bits < 32)?;
            (several < 2).then(|| Packing::Verity { bits, several: several == 1, salt: salt.to_vec() })
        }
        _ => return None,
    })
}

fn records<R: Record>(table: Section) -> Option<u32> {
    let len = R::LEN as u64;
    u32::try_from(table.len / len).ok().filter(|_| table.len % len == 0)
}

fn digest_at(bytes: &[u8], at: usize) -> Option<Digest> {
    bytes.get(at..)?.first_chunk().map(|digest| Digest::from_bytes(*digest))
}

const FORMATS: [Format; 10] = [
    Format::Stargz,
    Format::EStargz,
    Format::EStargzExternalToc,
    Format::ZstdChunked,
    Format::Empty,
    Format::Tar,
    Format::TarGzip,
    Format::TarZstd,
    Format::Erofs,
    Format::Squashfs,
];

fn format_number(format: Format) -> u64 {
    FORMATS.iter().position(|other| *other == format).map_or(u64::MAX, |number| number as u64)
}

fn format_of(number: u64) -> Option<Format> {
    FORMATS.get(usize::try_from(number).ok()?).copied()
}
