//! Where the contents of files are: chunks in, units, pieces and checks out.
//!
//! ```text
//! blob         |..| unit 0          |..| unit 1     | unit 2     |...| TOC
//! decoded      | piece | hdr | piece|  | piece      | piece | hdr|
//! layer file   | file A |pad| file B (a check)      | file C (check)(hole) |
//! ```
//!
//! Everything runs in the order of the stream, so that a streaming pass needs no look-ahead: units and pieces never go backwards or
//! overlap, and neither do files. A TOC that says otherwise is refused.

use crate::blob::{ByteRange, Digest};
use crate::index::entries::BLOCK;
use crate::index::error::Problem;
use crate::index::limits;
use crate::index::stored::{Check, CheckKind, Codec, Piece, Tables, Unit};

/// A chunk of a file as the TOC has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chunk {
    /// Where it starts in the file.
    pub(crate) at: u64,
    /// Its bytes; 0: up to the file's end.
    pub(crate) size: u64,
    /// Where its unit starts in the blob.
    pub(crate) offset: u64,
    /// Where it starts in the decoded unit.
    pub(crate) inner: u64,
    pub(crate) digest: Option<Digest>,
    pub(crate) hole: bool,
}

/// A file's contents as the TOC has them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Contents<'a> {
    pub(crate) size: u64,
    pub(crate) digest: Option<Digest>,
    pub(crate) chunks: &'a [Chunk],
    /// Where its last unit ends in the blob, if the TOC says so.
    pub(crate) end: Option<u64>,
}

/// A unit that may still get pieces; it ends where the next one starts.
#[derive(Debug)]
struct OpenUnit {
    start: u64,
    end: Option<u64>,
    /// How far its pieces reach into the decoded data.
    decoded: u64,
    /// Bytes of the decoded data that lie before or between its pieces.
    skipped: u64,
    first_piece: u32,
}

#[derive(Debug)]
pub(crate) struct ContentsBuilder {
    codec: Codec,
    /// Where the payload of the blob ends.
    payload_end: u64,
    tables: Tables,
    open: Option<OpenUnit>,
    /// Nothing that follows may start before this byte of the blob.
    floor: u64,
    /// How far the layer file is filled, a multiple of [`BLOCK`].
    filled: u64,
}

impl ContentsBuilder {
    pub(crate) fn new(codec: Codec, payload_end: u64) -> Self {
        Self { codec, payload_end, tables: Tables::default(), open: None, floor: 0, filled: 0 }
    }

    /// Places a file behind those before it.
    ///
    /// Returns the block of the layer file that it starts on.
    pub(crate) fn file(&mut self, contents: &Contents<'_>) -> Result<u32, Problem> {
        let (block, start) = self.place(contents.size)?;
        if contents.size == 0 && !contents.chunks.is_empty() {
            return Err(Problem::Overlap { at: 0 });
        }
        if contents.size > 0 {
            if self.tables.checks() + contents.chunks.len() > limits::CHUNKS {
                return Err(Problem::TooMany { what: "chunks", limit: limits::CHUNKS });
            }
            self.add_checks(contents, start)?;
            self.units(contents, start)?;
        }
        Ok(block)
    }

    /// The place of the next file: its block of the layer file, and its first byte.
    pub(crate) fn place(&mut self, size: u64) -> Result<(u32, u64), Problem> {
        let start = self.filled;
        let too_many = || Problem::TooMany { what: "bytes of contents", limit: limits::LAYER_FILE as usize };
        let end = start.checked_add(size).filter(|end| *end <= limits::LAYER_FILE - BLOCK).ok_or_else(too_many)?;
        let block = u32::try_from(start / BLOCK).map_err(|_| too_many())?;
        self.filled = end.next_multiple_of(BLOCK);
        Ok((block, start))
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> u64 {
        self.tables.bytes()
    }

    /// Checks so far: one for each chunk, or file.
    pub(super) fn checks(&self) -> usize {
        self.tables.checks()
    }

    /// Bytes of the blob that contents may be in.
    pub(super) const fn payload(&self) -> u64 {
        self.payload_end
    }

    /// Bytes of the layer file so far.
    pub(crate) fn filled(&self) -> u64 {
        self.filled
    }

    /// Everything in the blob's payload before `offset`.
    pub(crate) fn payload_before(&self, offset: u64) -> ByteRange {
        ByteRange { start: 0, end: offset.min(self.payload_end) }
    }

    /// The tables, and the bytes of the layer file.
    pub(crate) fn finish(mut self) -> Result<(Tables, u64), Problem> {
        self.close(self.payload_end)?;
        Ok((self.tables, self.filled))
    }

    /// One check for each chunk; where chunks have no digests, one for the whole file.
    fn add_checks(&mut self, contents: &Contents<'_>, start: u64) -> Result<(), Problem> {
        let kind = |chunk: &Chunk| match chunk {
            Chunk { hole: true, .. } => Some(CheckKind::Hole),
            Chunk { digest, .. } => digest.map(CheckKind::Digest),
        };
        let missing = contents.chunks.iter().find(|chunk| kind(chunk).is_none());
        if let Some(missing) = missing {
            let has_hole = contents.chunks.iter().any(|chunk| chunk.hole);
            let digest = contents.digest.filter(|_| !has_hole).ok_or(Problem::NoDigest { at: missing.at })?;
            tile(contents, |_, _| Ok(()))?;
            let range = ByteRange { start, end: start + contents.size };
            self.tables.check(&Check { range, kind: CheckKind::Digest(digest) });
            return Ok(());
        }
        tile(contents, |chunk, len| {
            let range = ByteRange { start: start + chunk.at, end: start + chunk.at + len };
            let kind = kind(chunk).ok_or(Problem::NoDigest { at: chunk.at })?;
            self.tables.check(&Check { range, kind });
            Ok(())
        })
    }

    fn units(&mut self, contents: &Contents<'_>, start: u64) -> Result<(), Problem> {
        tile(contents, |chunk, len| {
            if chunk.offset >= self.payload_end {
                return Err(Problem::OutsideBlob(ByteRange { start: self.payload_end, end: chunk.offset }));
            }
            if chunk.hole {
                return if chunk.offset > 0 { self.close(chunk.offset) } else { Ok(()) };
            }
            let range = ByteRange { start: start + chunk.at, end: start + chunk.at + len };
            self.piece(chunk, range)
        })?;
        if let (Some(end), Some(last)) = (contents.end, contents.chunks.last()) {
            self.end_file(end, last.hole)?;
        }
        Ok(())
    }

    /// A piece of the unit at the chunk's offset.
    fn piece(&mut self, chunk: &Chunk, range: ByteRange) -> Result<(), Problem> {
        if chunk.offset == 0 && chunk.inner == 0 {
            return Err(Problem::NoOffset);
        }
        let overlap = Problem::UnitOverlap { offset: chunk.offset };
        let decoded = chunk.inner.checked_add(range.len()).filter(|end| *end <= limits::OFFSET);
        let decoded = decoded.ok_or(Problem::UnitOverlap { offset: chunk.offset })?;
        let (before, skipped, first_piece) = match &self.open {
            Some(open) if open.start == chunk.offset => (open.decoded, open.skipped, open.first_piece),
            _ => {
                self.close(chunk.offset)?;
                (0, 0, self.tables.pieces())
            }
        };
        let skipped = skipped.saturating_add(chunk.inner.checked_sub(before).ok_or(overlap)?);
        if skipped > limits::UNIT_SKIPPED {
            return Err(Problem::Number {
                key: "innerOffset",
                value: chunk.inner,
                limit: before + limits::UNIT_SKIPPED,
            });
        }
        if self.tables.pieces() - first_piece >= limits::UNIT_PIECES {
            return Err(Problem::TooMany { what: "chunks in one unit", limit: limits::UNIT_PIECES as usize });
        }
        let end = self.open.as_ref().and_then(|open| open.end);
        self.open = Some(OpenUnit { start: chunk.offset, end, decoded, skipped, first_piece });
        self.tables.piece(&Piece { unit: self.tables.units(), in_unit: chunk.inner, range });
        Ok(())
    }

    /// The TOC says where the last unit of a file ends.
    fn end_file(&mut self, end: u64, ends_in_hole: bool) -> Result<(), Problem> {
        let start = self.open.as_ref().map_or(self.floor, |open| open.start);
        if end < start || end > self.payload_end {
            return Err(Problem::OutsideBlob(ByteRange { start: start.min(end), end: start.max(end) }));
        }
        match &mut self.open {
            Some(open) if !ends_in_hole => open.end = Some(end),
            _ => self.floor = self.floor.max(end),
        }
        Ok(())
    }

    /// Ends the open unit, if there is one, because something else starts at `next`.
    fn close(&mut self, next: u64) -> Result<(), Problem> {
        if next < self.floor {
            return Err(Problem::Order { offset: next });
        }
        if let Some(open) = self.open.take() {
            let end = open.end.unwrap_or(next);
            if end > next || open.start > next {
                return Err(Problem::Order { offset: next });
            }
            let outside = Problem::OutsideBlob(ByteRange { start: open.start, end });
            if open.start >= end || end > self.payload_end {
                return Err(outside);
            }
            let compressed = ByteRange { start: open.start, end };
            let pieces = open.first_piece..self.tables.pieces();
            self.tables.unit(&Unit { compressed, codec: self.codec, pieces });
        }
        self.floor = next;
        Ok(())
    }
}

/// Hands on each chunk with its length, and sees to it that they tile the file.
fn tile(contents: &Contents<'_>, mut each: impl FnMut(&Chunk, u64) -> Result<(), Problem>) -> Result<(), Problem> {
    let mut at = 0;
    for chunk in contents.chunks {
        if chunk.at != at {
            return Err(if chunk.at > at { Problem::Gap { at } } else { Problem::Overlap { at: chunk.at } });
        }
        let left = contents.size - at;
        let len = if chunk.size == 0 { left } else { chunk.size };
        if len > left || left == 0 {
            return Err(Problem::Overlap { at: contents.size });
        }
        each(chunk, len)?;
        at += len;
    }
    if at == contents.size { Ok(()) } else { Err(Problem::Gap { at }) }
}
