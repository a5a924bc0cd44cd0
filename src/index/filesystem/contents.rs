//! Files' contents into units, pieces and checks, as the tree names them: each extent is unpacked once to have its digest.
//!
//! ```text
//! image        | block | block |inodes|   | fragments |      a block is a unit; several of a plain file, or files, are one
//! layer file   | file A |pad| file B | file C |              a file's extents one behind the other, wherever they are in the image
//! ```
//!
//! Where the image is vouched for in parts nothing is unpacked: checks have no digests, then, and what fills them comes out of verified chunks.
//!
//! Units ascend in the layer file, and in the image as far as that is laid out so. A block that several files have parts of, apart from each
//! other, is a unit for each.

use super::codec::How;
use super::image::Image;
use super::{Bad, broken};
use crate::blob::{ByteRange, Digest};
use crate::budget::Charge;
use crate::index::entries::BLOCK;
use crate::index::error::Problem;
use crate::index::limits;
use crate::index::plain::Keep;
use crate::index::stored::{Check, CheckKind, Codec, Piece, Tables, Unit};

/// Bytes of the layer file that one check covers, as in a tar.
const CHECK: u64 = 128 << 10;

/// Bytes of one unit of what is not packed.
const SPAN: u64 = 512 << 10;

/// Bytes that the tables may grow by for what is added at once.
const EACH_PART: u64 = 1024;

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Where it is in the file.
    pub(super) at: u64,
    pub(super) len: u64,
    pub(super) from: From,
}

/// Where its bytes are in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    Hole,
    Stored {
        at: u64,
    },
    /// From `in_block` on in what a block unpacks to, which is `most` bytes at most.
    Packed {
        block: ByteRange,
        how: How,
        in_block: u64,
        most: u64,
    },
}

/// The unit that may still get pieces.
struct OpenUnit {
    compressed: ByteRange,
    /// `None`: not packed.
    how: Option<How>,
    unpacked: u64,
    first_piece: u32,
    /// How far its pieces reach.
    end: u64,
}

/// The piece that may still grow.
struct OpenPiece {
    in_unit: u64,
    range: ByteRange,
}

/// The check that is being filled: its bytes, with the zeros between files, where these are looked at.
struct OpenCheck {
    start: u64,
    len: u64,
    bytes: Vec<u8>,
}

pub(super) struct Contents<'a> {
    image: &'a Image<'a>,
    /// `None`: only metadata is read.
    keep: Option<Keep<'a>>,
    tables: Tables,
    unit: Option<OpenUnit>,
    piece: Option<OpenPiece>,
    check: Option<OpenCheck>,
    /// Holes side by side are one.
    hole: Option<ByteRange>,
    /// Extents so far.
    extents: usize,
    charge: Charge,
}

impl<'a> Contents<'a> {
    pub(super) fn new(image: &'a Image<'a>, keep: Option<Keep<'a>>, charge: Charge) -> Self {
        Self {
            image,
            keep,
            tables: Tables::default(),
            unit: None,
            piece: None,
            check: None,
            hole: None,
            extents: 0,
            charge,
        }
    }

    /// An extent of the file that starts at `start` in the layer file.
    pub(super) fn add(&mut self, start: u64, extent: &Extent) -> Result<(), Bad> {
        let Extent { at, len, from } = *extent;
        let place = start.saturating_add(at);
        self.extents += 1;
        if self.extents > limits::CHUNKS {
            return Err(Problem::TooMany { what: "extents of files in one layer", limit: limits::CHUNKS }.into());
        }
        match from {
            From::Hole => self.hole(ByteRange::at(place, len).ok_or_else(far)?),
            From::Stored { at } => self.stored(place, self.image.range(at, len)?),
            From::Packed { block, how, in_block, most } => {
                let end = in_block.checked_add(len).ok_or_else(far)?;
                self.image.shown(len)?;
                if self.keep.is_none() {
                    self.room()?;
                    self.open_packed(block, how, in_block, most);
                    self.grow(place, in_block, len)?;
                    self.pass(place, len);
                    return Ok(());
                }
                let bytes = self.image.unpacked(block, how, end, most)?;
                let part = bytes.get(in_block as usize..end as usize).ok_or_else(far)?;
                self.room()?;
                self.open_packed(block, how, in_block, bytes.len() as u64);
                self.grow(place, in_block, len)?;
                self.fill(place, part);
                Ok(())
            }
        }
    }

    /// Each part of a plain range that one unit has.
    fn stored(&mut self, mut place: u64, range: ByteRange) -> Result<(), Bad> {
        let mut at = range.start;
        while at < range.end {
            self.room()?;
            let start = self.open_stored(at);
            let len = (range.end - at).min(start + SPAN - at);
            let part = ByteRange { start: at, end: at + len };
            if let Some(unit) = &mut self.unit {
                unit.compressed.end = part.end;
            }
            self.grow(place, at - start, len)?;
            if self.keep.is_none() {
                self.image.shown(len)?;
                self.pass(place, len);
                (at, place) = (part.end, place + len);
                continue;
            }
            let mut from = part.start;
            while from < part.end {
                let next = ByteRange { start: from, end: (from + CHECK).min(part.end) };
                let bytes = self.image.stored(next)?;
                self.fill(place + (from - part.start), &bytes);
                from = next.end;
            }
            (at, place) = (part.end, place + len);
        }
        Ok(())
    }

    /// The unit of plain bytes at `at` is open from here on. Gives where it starts.
    fn open_stored(&mut self, at: u64) -> u64 {
        let fits = |unit: &&OpenUnit| {
            let OpenUnit { compressed: ByteRange { start, end }, how, .. } = unit;
            how.is_none() && at >= *end && at - end < BLOCK && at < start + SPAN
        };
        if let Some(unit) = self.unit.as_ref().filter(fits) {
            return unit.compressed.start;
        }
        self.open_unit(ByteRange { start: at, end: at }, None, 0);
        at
    }

    fn open_packed(&mut self, block: ByteRange, how: How, in_block: u64, unpacked: u64) {
        let goes_on = |unit: &OpenUnit| unit.compressed == block && unit.how == Some(how) && unit.end <= in_block;
        if !self.unit.as_ref().is_some_and(goes_on) {
            self.open_unit(block, Some(how), unpacked);
        }
    }

    fn open_unit(&mut self, compressed: ByteRange, how: Option<How>, unpacked: u64) {
        self.close();
        self.unit = Some(OpenUnit { compressed, how, unpacked, first_piece: self.tables.pieces(), end: 0 });
    }

    /// Ends all that is open.
    fn close(&mut self) {
        self.close_check();
        self.close_piece();
        self.close_hole();
        let Some(OpenUnit { compressed, how, unpacked, first_piece, .. }) = self.unit.take() else { return };
        let codec = how.map_or(Codec::Stored, |how| how.codec(u32::try_from(unpacked).unwrap_or(u32::MAX)));
        self.tables.unit(&Unit { compressed, codec, pieces: first_piece..self.tables.pieces() });
    }

    fn grow(&mut self, place: u64, in_unit: u64, len: u64) -> Result<(), Bad> {
        let range = ByteRange::at(place, len).ok_or_else(far)?;
        if let Some(unit) = &mut self.unit {
            unit.end = in_unit + len;
        }
        if let Some(open) = &mut self.piece {
            if open.range.end == place && open.in_unit + open.range.len() == in_unit {
                open.range.end = range.end;
                return Ok(());
            }
        }
        self.close_piece();
        self.piece = Some(OpenPiece { in_unit, range });
        Ok(())
    }

    fn close_piece(&mut self) {
        if let Some(OpenPiece { in_unit, range }) = self.piece.take() {
            self.tables.piece(&Piece { unit: self.tables.units(), in_unit, range });
        }
    }

    /// Bytes of the open unit into its checks.
    fn fill(&mut self, mut place: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let check = self.check_at(place);
            let room = (CHECK as usize).saturating_sub(check.bytes.len());
            let (part, rest) = bytes.split_at(room.min(bytes.len()));
            check.bytes.extend_from_slice(part);
            check.len = check.bytes.len() as u64;
            let is_full = part.len() == room;
            place += part.len() as u64;
            bytes = rest;
            if is_full {
                self.close_check();
            }
        }
    }

    /// So many bytes of the open unit into its checks, which nobody looks at yet.
    fn pass(&mut self, mut place: u64, mut len: u64) {
        while len > 0 {
            let check = self.check_at(place);
            let take = CHECK.saturating_sub(check.len).min(len);
            check.len += take;
            let is_full = check.len >= CHECK;
            (place, len) = (place + take, len - take);
            if is_full {
                self.close_check();
            }
        }
    }

    /// The check that goes on at `place`, with zeros up to there.
    fn check_at(&mut self, place: u64) -> &mut OpenCheck {
        let goes_on = |check: &OpenCheck| {
            let end = check.start + check.len;
            place >= end && place - end < BLOCK && place - check.start < CHECK
        };
        if !self.check.as_ref().is_some_and(goes_on) {
            self.close_check();
            self.close_hole();
        }
        let is_read = self.keep.is_some();
        let check = self.check.get_or_insert_with(|| OpenCheck { start: place, len: 0, bytes: Vec::new() });
        check.len = check.len.max(place - check.start);
        if is_read {
            check.bytes.resize(usize::try_from(check.len).unwrap_or(0), 0);
        }
        check
    }

    fn close_check(&mut self) {
        let Some(OpenCheck { start, len, bytes }) = self.check.take() else { return };
        let range = ByteRange { start, end: start + len };
        let kind = match &mut self.keep {
            None => CheckKind::Vouched,
            Some(_) if bytes.iter().all(|byte| *byte == 0) => CheckKind::Hole,
            Some(keep) => {
                keep(start, &bytes);
                CheckKind::Digest(Digest::of(&bytes))
            }
        };
        self.tables.check(&Check { range, kind });
    }

    fn hole(&mut self, range: ByteRange) -> Result<(), Bad> {
        self.close_check();
        // A hole lies behind what was there before; so does a new one behind this.
        if let Some(open) = self.hole.as_mut().filter(|open| open.end == range.start) {
            open.end = range.end;
            return Ok(());
        }
        self.room()?;
        self.close_hole();
        self.hole = Some(range);
        Ok(())
    }

    /// Before any other check comes.
    fn close_hole(&mut self) {
        if let Some(range) = self.hole.take() {
            self.tables.check(&Check { range, kind: CheckKind::Hole });
        }
    }

    /// Sees to it that there is room for what the next extent adds.
    fn room(&mut self) -> Result<(), Bad> {
        let limit = limits::CHUNKS - (SPAN / CHECK) as usize;
        if self.tables.checks() > limit || self.tables.pieces() as usize > limit {
            return Err(Problem::TooMany { what: "blocks of files in one layer", limit }.into());
        }
        let covered = self.charge.cover(self.tables.bytes() + EACH_PART, u64::MAX);
        covered.map_err(|exceeded| Problem::from(exceeded).into())
    }

    /// The tables, and what of them is honest.
    pub(super) fn finish(mut self) -> (Tables, u64) {
        self.close();
        let share = self.charge.worth();
        (self.tables, share)
    }
}

fn far() -> Bad {
    broken("a file's extent lies beyond all that there can be")
}
