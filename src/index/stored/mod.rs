//! The encoded layer index: what the cache keeps, and what the fetch engine looks units and checks up in.
//!
//! ```text
//! 0         header (512 bytes), see header.rs: key, summary, where the sections are, and the root digests over them
//! 512       block digests: of each block of the tables its sha256, where the range of its first record starts, and where it ends
//!           entries: the tree, zstd-compressed, see entries.rs
//! tables    units | pieces | checks | windows | chunks    in blocks of 64 KiB (the last of each table shorter), each packed by zstd, see tables.rs
//! ```
//!
//! Each part is checked when it is used: the header and the block digests when the index is opened, the entries when they are decoded, a
//! block of a table when it is read. So whatever is flipped, cut or another layer's is [`Damaged`], and never another answer.
//! The same TOC gives the same bytes. Numbers are little endian.

mod blocks;
pub(crate) mod chunks;
mod encode;
mod entries;
mod header;
mod record;
mod room;
mod tables;

use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use self::blocks::Blocks;
pub(crate) use self::chunks::Chunks;
pub use self::chunks::{Chunk, Packing};
pub(crate) use self::encode::{Encoded, encode};
use self::entries::Undecoded;
use self::header::{Header, Section};
pub(crate) use self::tables::Tables;
use self::tables::{BLOCK, BLOCK_DIGEST, Record};
pub use self::tables::{Check, CheckKind, Codec, Of, Piece, Unit, Window};
use super::entries::BLOCK as FILE_BLOCK;
use super::error::Damaged;
use super::holes::Gathered;
use super::plain::window;
use super::{Entries, Error, Holes, Identity, LayerKey, Summary, limits};
use crate::blob::{ByteRange, ByteSource, Digest};
use crate::budget::{Budget, Charge};
use crate::metrics::steps;

/// A layer index read from its encoded form; tables are read in verified blocks when needed and not held.
pub struct StoredIndex {
    source: RwLock<Arc<dyn ByteSource>>,
    header: Header,
    /// The digest and the first key of each block of the tables, one after the other.
    digests: Bytes,
    blocks: Blocks,
    /// For what is held of it; what is read of it is charged where this is.
    charge: Charge,
}

impl StoredIndex {
    /// # Errors
    /// Where it is damaged, of another version, or of another key. `key` is `None` for an index that nothing vouches for.
    pub fn open(source: Arc<dyn ByteSource>, blob: &Digest, key: Option<&LayerKey>) -> Result<Self, Damaged> {
        let damaged = |what: String| Damaged { blob: *blob, what };
        let range = ByteRange { start: 0, end: header::LEN as u64 };
        let bytes = source.read_at(range).map_err(|error| damaged(format!("its header cannot be read: {error}")))?;
        let header = Header::parse(&bytes, source.size()).map_err(|what| damaged(what.to_owned()))?;
        if header.blob != *blob
            || header.identity != key.map(|key| key.identity)
            || key.is_some_and(|key| key.blob != *blob)
        {
            return Err(damaged("it is the index of another layer".to_owned()));
        }
        let digests = header.digests.range();
        let digests = source.read_at(digests).map_err(|error| damaged(format!("{digests} cannot be read: {error}")))?;
        if Digest::of(&digests) != header.digests_digest {
            return Err(damaged("the digests of its blocks are damaged".to_owned()));
        }
        let packed = digests.len().checked_sub(8).and_then(|last| tables::u64_at(&digests, last)).unwrap_or(0);
        if header.entries.range().end.checked_add(packed) != Some(source.size()) {
            return Err(damaged("it is longer or shorter than it says".to_owned()));
        }
        let (blocks, charge) = (Blocks::new(), Charge::default());
        Ok(Self { source: RwLock::new(source), header, digests, blocks, charge })
    }

    /// The same within a budget.
    ///
    /// # Errors
    /// Where what is held of it is more than there is.
    pub fn within(mut self, memory: &Budget) -> Result<Self, Error> {
        let tables = (self.digests.len() / BLOCK_DIGEST * BLOCK) as u64;
        // A byte says of each check whether it is present.
        let honest = self.blocks.most().min(tables) + self.digests.len() as u64 + u64::from(self.header.summary.checks);
        let (layer, what) = (self.header.blob, "what is held of its index and of the layer itself");
        self.charge = memory.charge(u64::MAX);
        self.charge.settle(honest + EACH_LAYER, honest).map_err(|source| Error::Memory { layer, what, source })?;
        Ok(self)
    }

    /// That of the image that has opened it.
    #[must_use]
    pub const fn budget(&self) -> &Budget {
        self.charge.budget()
    }

    #[must_use]
    pub fn summary(&self) -> &Summary {
        &self.header.summary
    }

    /// Whether its digests are of spans of the blob.
    #[must_use]
    pub const fn has_spans(&self) -> bool {
        matches!(self.header.identity, Some(Identity::Ztoc(_)))
    }

    /// Whether some of its checks have no digest of what fills them, so that one is kept of what was stored.
    #[must_use]
    pub const fn keeps_sums(&self) -> bool {
        match &self.header.packing {
            Some(packing) => packing.has_digests(),
            None => self.has_spans(),
        }
    }

    /// How the chunks are packed that the places of units are in. `None`: units are in the blob itself.
    #[must_use]
    pub const fn packing(&self) -> Option<&Packing> {
        self.header.packing.as_ref()
    }

    #[must_use]
    pub const fn chunks(&self) -> u32 {
        (self.header.chunks.len / Chunk::LEN as u64) as u32
    }

    /// # Errors
    /// Where there is no such chunk, or the table is damaged.
    pub fn chunk(&self, chunk: u32) -> Result<Chunk, Damaged> {
        self.record(self.header.chunks, chunk)
    }

    /// The chunks that have bytes of a range of the image.
    ///
    /// # Errors
    /// Where the table is damaged.
    pub fn chunks_over(&self, image: ByteRange) -> Result<Range<u32>, Damaged> {
        self.overlapping(self.header.chunks, image, |chunk: &Chunk| chunk.image)
    }

    /// Reads all of it once, so that damage on disk shows while the index can still be made again.
    ///
    /// # Errors
    /// Where any part is damaged.
    pub fn verify(&self) -> Result<(), Damaged> {
        let mut entries = self.entry_bytes();
        io::copy(&mut entries, &mut io::sink()).map_err(|_| self.damaged("its entries cannot be read"))?;
        self.check_entries(entries)?;
        (0..(self.digests.len() / BLOCK_DIGEST) as u64).try_for_each(|number| self.block(number).map(drop))
    }

    /// Where it is read from, as it is.
    pub fn source(&self) -> Arc<dyn ByteSource> {
        Arc::clone(&self.source.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Goes on with another source of the same index, where the one it had is damaged; says whether it is the same.
    pub fn replace(&self, source: Arc<dyn ByteSource>) -> bool {
        let head = source.read_at(ByteRange { start: 0, end: header::LEN as u64 });
        let header = head.ok().and_then(|head| Header::parse(&head, source.size()).ok());
        let is_same = header.is_some_and(|header| header == self.header);
        if is_same {
            *self.source.write().unwrap_or_else(PoisonError::into_inner) = source;
        }
        is_same
    }

    /// Decodes all entries.
    ///
    /// # Errors
    /// Where they are damaged, or take more memory than there is.
    pub fn entries(&self) -> Result<Entries, Error> {
        let mut bytes = self.entry_bytes();
        let charge = self.charge.budget().build(self.stored()?);
        let decoded = entries::decode(&mut bytes, charge);
        // Wrong bytes are told from what they seem to say.
        let rest = io::copy(&mut bytes, &mut io::sink());
        rest.map_err(|_| self.damaged("its entries cannot be read"))?;
        self.check_entries(bytes)?;
        let layer = self.header.blob;
        let entries = decoded.map_err(|undecoded| match undecoded {
            Undecoded::Damaged(what) => self.damaged(what).into(),
            Undecoded::Memory(source) => {
                Error::Memory { layer, what: "its names, links and xattrs, as a mount holds them", source }
            }
        })?;
        if entries.names() as u64 != self.header.summary.entries {
            return Err(self.damaged("its entries are not as many as it says").into());
        }
        Ok(entries)
    }

    /// Bytes in the registry of what the index was made of: of the TOC, or of the layer up to the end of its last file.
    fn stored(&self) -> Result<u64, Damaged> {
        let Summary { toc_len, units, format, .. } = self.header.summary;
        // What vouches for a filesystem image says nothing of its names.
        let toc_len = if format.is_filesystem() { 0 } else { toc_len };
        match (toc_len, units.checked_sub(1)) {
            (0, Some(last)) => Ok(self.unit(last)?.compressed.end),
            (0, None) => Ok(self.header.entries.len),
            (toc, _) => Ok(toc),
        }
    }

    /// The bytes of the entries, a part at a time.
    fn entry_bytes(&self) -> Parts<'_> {
        Parts { index: self, range: self.header.entries.range(), part: Bytes::new(), hash: Sha256::new() }
    }

    /// Whether all of them that were read are right.
    fn check_entries(&self, read: Parts<'_>) -> Result<(), Damaged> {
        match Digest::from_bytes(read.hash.finalize().into()) {
            got if got == self.header.entries_digest => Ok(()),
            _ => Err(self.damaged("its entries are damaged")),
        }
    }

    /// The checks that touch a range of the layer file.
    ///
    /// # Errors
    /// Where the table is damaged.
    pub fn checks_over(&self, range: ByteRange) -> Result<Range<u32>, Damaged> {
        self.overlapping(self.header.checks, range, |check: &Check| check.range)
    }

    /// # Errors
    /// Where there is no such check, or the table is damaged.
    pub fn check(&self, check: u32) -> Result<Check, Damaged> {
        self.record(self.header.checks, check)
    }

    /// The units that yield bytes of a range of the layer file.
    ///
    /// # Errors
    /// Where a table is damaged.
    pub fn units_over(&self, range: ByteRange) -> Result<Range<u32>, Damaged> {
        let pieces = self.overlapping(self.header.pieces, range, |piece: &Piece| piece.range)?;
        match pieces.end.checked_sub(1).filter(|last| *last >= pieces.start) {
            Some(last) => Ok(self.piece(pieces.start)?.unit..self.piece(last)?.unit.saturating_add(1)),
            None => Ok(0..0),
        }
    }

    /// The units that lie in a range of the blob (whole or in part).
    ///
    /// # Errors
    /// Where the table is damaged.
    pub fn units_in_blob(&self, range: ByteRange) -> Result<Range<u32>, Damaged> {
        self.overlapping(self.header.units, range, |unit: &Unit| unit.compressed)
    }

    /// # Errors
    /// Where there is no such unit, or the table is damaged.
    pub fn unit(&self, unit: u32) -> Result<Unit, Damaged> {
        self.record(self.header.units, unit)
    }

    /// # Errors
    /// Where there is no such piece, or the table is damaged.
    pub fn piece(&self, piece: u32) -> Result<Piece, Damaged> {
        self.record(self.header.pieces, piece)
    }

    /// Whether some of it can only be had by unpacking so much that it is to be done once, and kept. Of a layer with a table of contents,
    /// or a zTOC, nothing is: its writer has cut it, and the blob of the former need not be a tar.
    ///
    /// # Errors
    /// Where the table is damaged.
    pub fn has_huge_unit(&self) -> Result<bool, Damaged> {
        if self.packing().is_some_and(|packing| !packing.has_digests()) {
            for chunk in 0..self.chunks() {
                let Chunk { image, blob, .. } = self.chunk(chunk)?;
                if blob.len() > limits::HUGE_UNIT || image.len() > limits::HUGE_DECODED {
                    return Ok(true);
                }
            }
        }
        if !self.is_cut_by_us() {
            return Ok(false);
        }
        for unit in 0..self.header.summary.units {
            let unit = self.unit(unit)?;
            let last = unit.pieces.end.checked_sub(1).filter(|last| *last >= unit.pieces.start);
            let last = last.map(|last| self.piece(last)).transpose()?;
            let decoded = last.map_or(0, |piece| piece.in_unit.saturating_add(piece.range.len()));
            if unit.compressed.len() > limits::HUGE_UNIT || decoded > limits::HUGE_DECODED {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What no unit fills. Reads the whole table of pieces.
    ///
    /// # Errors
    /// Where the table is damaged, or they take more memory than there is.
    pub fn holes(&self) -> Result<Holes, Error> {
        let (mut filled, mut holes) = (0, Gathered::new(self.charge.budget()));
        let no_room = |source| Error::Memory { layer: self.header.blob, what: "where its files have holes", source };
        let Section { start, len } = self.header.pieces;
        for block in start / BLOCK as u64..(start + len).div_ceil(BLOCK as u64) {
            for piece in self.block(block)?.chunks_exact(Piece::LEN) {
                let piece = Piece::get(piece).ok_or_else(|| self.damaged("a piece is none"))?;
                if piece.range.start.saturating_sub(filled) >= FILE_BLOCK {
                    holes.add(ByteRange { start: filled, end: piece.range.start }).map_err(no_room)?;
                }
                filled = piece.range.end;
            }
        }
        let end = self.header.summary.layer_file_len;
        holes.add(ByteRange { start: filled.min(end), end }).map_err(no_room)?;
        holes.finish().map_err(no_room)
    }

    /// Whether all of the blob is fetched whatever is read of it, and that is more than a small layer's.
    ///
    /// # Errors
    /// Where the table is damaged.
    pub fn is_undivided(&self) -> Result<bool, Damaged> {
        let is_one = self.is_cut_by_us() && self.header.summary.units == 1;
        Ok(is_one && self.unit(0)?.compressed.len() > limits::UNDIVIDED)
    }

    /// Whether its units are what crfs has found, and not what the layer's writer has meant.
    fn is_cut_by_us(&self) -> bool {
        let format = self.header.summary.format;
        !self.has_spans() && matches!(format, super::Format::Tar | super::Format::TarGzip | super::Format::TarZstd)
    }

    /// What comes before a unit in the decoded data, as far as the unit refers to it: at most 32 KiB.
    ///
    /// # Errors
    /// Where there is no such window, or it is damaged.
    pub fn window(&self, window: Window) -> Result<Vec<u8>, Damaged> {
        let len = self.window_bytes(window.place(), 4)?;
        let len = tables::u32_at(&len, 0).unwrap_or(0);
        let packed = self.window_bytes(window.place().saturating_add(4), len)?;
        window::unpack(&packed).map_err(|error| self.damaged(format!("a window cannot be unpacked: {error}")))
    }

    /// Bytes of the windows, from as many blocks as they lie in.
    fn window_bytes(&self, place: u64, len: u32) -> Result<Vec<u8>, Damaged> {
        let windows = self.header.windows;
        let end = place.checked_add(len.into()).filter(|end| *end <= windows.len);
        let end = end.ok_or_else(|| self.damaged("a window is asked for that it does not have"))?;
        let (mut bytes, mut at, end) = (Vec::with_capacity(len as usize), windows.start + place, windows.start + end);
        while at < end {
            let block = self.block(at / BLOCK as u64)?;
            let in_block = (at % BLOCK as u64) as usize;
            let take = (BLOCK - in_block).min((end - at) as usize);
            bytes.extend_from_slice(block.get(in_block..in_block + take).unwrap_or_default());
            at += take as u64;
        }
        Ok(bytes)
    }

    /// The records of a table, sorted and apart, whose ranges share a byte with `range`.
    fn overlapping<R: Record>(
        &self,
        table: Section,
        range: ByteRange,
        of: impl Fn(&R) -> ByteRange,
    ) -> Result<Range<u32>, Damaged> {
        if range.is_empty() {
            return Ok(0..0);
        }
        let first = self.first_not(table, range.start, |record| of(record).end <= range.start)?;
        let last = self.first_not(table, range.end - 1, |record| of(record).start < range.end)?;
        Ok(first..last.max(first))
    }

    /// The first record that `before` does not hold for, which is in the block that may hold the last one that starts at or before `at`, or behind it.
    fn first_not<R: Record>(&self, table: Section, at: u64, before: impl Fn(&R) -> bool) -> Result<u32, Damaged> {
        let near = self.near::<R>(table, at)?;
        if near.is_empty() {
            return Ok(near.start);
        }
        let place = |record: u32| table.start + u64::from(record) * R::LEN as u64;
        let block = self.block(place(near.start) / BLOCK as u64)?;
        partition(near, |number| {
            steps::take();
            let in_block = (place(number) % BLOCK as u64) as usize;
            let record = block.get(in_block..in_block + R::LEN).and_then(R::get);
            record.map(|record| before(&record)).ok_or_else(|| self.damaged(format!("record {number} is none")))
        })
    }

    /// The records of the one block that may hold the last one that starts at or before `at`.
    fn near<R: Record>(&self, table: Section, at: u64) -> Result<Range<u32>, Damaged> {
        let block = |start: u64| (start / BLOCK as u64) as usize * BLOCK_DIGEST;
        let keys = self.digests.get(block(table.start)..block(table.start + table.padded())).unwrap_or_default();
        let starts_by =
            |block: u32| tables::u64_at(keys, block as usize * BLOCK_DIGEST + 32).is_some_and(|start| start <= at);
        let before = u64::from(partition(0..(keys.len() / BLOCK_DIGEST) as u32, |block| Ok(starts_by(block)))?);
        let per_block = (BLOCK / R::LEN) as u64;
        let count = table.len / R::LEN as u64;
        let start = before.saturating_sub(1) * per_block;
        Ok(start.min(count) as u32..(start + per_block).min(count) as u32)
    }

    fn record<R: Record>(&self, table: Section, number: u32) -> Result<R, Damaged> {
        steps::take();
        let at = u64::from(number) * R::LEN as u64;
        if at >= table.len {
            return Err(self.damaged(format!("a record {number} is asked for that it does not have")));
        }
        let at = table.start + at;
        let in_block = (at % BLOCK as u64) as usize;
        let get = |block: &Bytes| block.get(in_block..in_block + R::LEN).and_then(R::get);
        let record = match self.blocks.with(at / BLOCK as u64, get) {
            Some(record) => record,
            None => get(&self.block(at / BLOCK as u64)?),
        };
        record.ok_or_else(|| self.damaged(format!("record {number} is none")))
    }

    /// A block of the tables, verified.
    fn block(&self, number: u64) -> Result<Bytes, Damaged> {
        if let Some(block) = self.blocks.get(number) {
            return Ok(block);
        }
        let (digest, range) =
            self.stored_block(number).ok_or_else(|| self.damaged(format!("it has no block {number}")))?;
        let packed = self.read(range)?;
        let block = Some(packed).filter(|packed| Digest::of(packed).as_bytes() == digest);
        let block = block.and_then(|packed| tables::unpack(&packed).ok()).map(Bytes::from);
        let block = block.ok_or_else(|| self.damaged(format!("block {number} of its tables is damaged")))?;
        self.blocks.keep(number, block.clone());
        Ok(block)
    }

    /// The digest of what is stored of a block, and where that is.
    fn stored_block(&self, number: u64) -> Option<(&[u8], ByteRange)> {
        let at = usize::try_from(number).ok()?.checked_mul(BLOCK_DIGEST)?;
        let known = self.digests.get(at..at.checked_add(BLOCK_DIGEST)?)?;
        let before = at.checked_sub(8).map_or(Some(0), |end| tables::u64_at(&self.digests, end))?;
        let packed = self.header.entries.range().end;
        let range = ByteRange::new(packed.checked_add(before)?, packed.checked_add(tables::u64_at(known, 40)?)?)?;
        Some((known.get(..32)?, range))
    }

    fn read(&self, range: ByteRange) -> Result<Bytes, Damaged> {
        self.source().read_at(range).map_err(|error| self.damaged(format!("{range} cannot be read: {error}")))
    }

    fn damaged(&self, what: impl Into<String>) -> Damaged {
        Damaged { blob: self.header.blob, what: what.into() }
    }
}

/// Bytes that each layer takes that is open, whatever it holds.
const EACH_LAYER: u64 = 16 << 10;

/// A range of an index, read from one end to the other.
struct Parts<'a> {
    index: &'a StoredIndex,
    /// What was not read yet.
    range: ByteRange,
    part: Bytes,
    hash: Sha256,
}

impl Parts<'_> {
    const LEN: u64 = 256 << 10;
}

impl Read for Parts<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.part.is_empty() && !self.range.is_empty() {
            let ByteRange { start, end } = self.range;
            let next = start.saturating_add(Self::LEN).min(end);
            self.part = self.index.read(ByteRange { start, end: next }).map_err(io::Error::other)?;
            self.hash.update(&self.part);
            self.range.start = next;
        }
        let len = self.part.len().min(buffer.len());
        buffer.get_mut(..len).into_iter().for_each(|to| to.copy_from_slice(&self.part.split_to(len)));
        Ok(len)
    }
}

/// The first number of a range that `before` does not hold for.
fn partition(range: Range<u32>, before: impl Fn(u32) -> Result<bool, Damaged>) -> Result<u32, Damaged> {
    let Range { mut start, mut end } = range;
    while start < end {
        let middle = start + (end - start) / 2;
        if before(middle)? {
            start = middle + 1;
        } else {
            end = middle;
        }
    }
    Ok(start)
}

#[cfg(test)]
pub(crate) mod tests;
