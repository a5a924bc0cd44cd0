//! Where an inode's data is, if that is not packed; and what is in the packed inode, which holds the ends of others.

use super::super::contents::{Extent, From};
use super::super::image::{u16_at, u32_at};
use super::super::{Bad, EachExtent, Enough, broken, unread};
use super::{CHUNKS, Erofs, INLINE, PACKED_COMPACT, PACKED_FULL, PLAIN, Raw, aligned};
use crate::index::error::Problem;

/// No block: a hole.
const NOWHERE: u32 = u32::MAX;

/// Of the description of chunks: its bits of a chunk's size over a block's, that the table has 8 bytes for each, and what came later.
const CHUNK_BITS: u32 = 0x1f;
const CHUNK_INDEXES: u32 = 0x20;
const CHUNK_WIDE: u32 = 0x40;

impl Erofs<'_> {
    /// Tells where an inode's data is, in order, until `each` has enough.
    pub(super) fn data(&self, raw: &Raw, each: EachExtent<'_>) -> Result<(), Bad> {
        if raw.size == 0 {
            return Ok(());
        }
        match raw.layout {
            PLAIN => self.flat(raw, raw.size, each).map(drop),
            INLINE => self.inline(raw, each),
            CHUNKS => self.chunks(raw, each),
            PACKED_FULL | PACKED_COMPACT => self.clusters(raw, each),
            other => Err(broken(format!("inode {} has the layout {other}", raw.nid))),
        }
    }

    /// The first bytes of it, in blocks side by side.
    fn flat(&self, raw: &Raw, len: u64, each: EachExtent<'_>) -> Result<Enough, Bad> {
        if len == 0 {
            return Ok(Enough::No);
        }
        let from = match raw.word {
            NOWHERE => From::Hole,
            block => From::Stored { at: self.image.range(self.block(u64::from(block) | raw.upper)?, len)?.start },
        };
        each(Extent { at: 0, len, from })
    }

    /// All but the last block of it is elsewhere.
    fn inline(&self, raw: &Raw, each: EachExtent<'_>) -> Result<(), Bad> {
        let tail = (raw.size - 1) % self.block_size() + 1;
        let at = raw.size - tail;
        let room = self.block_size() - raw.end % self.block_size();
        if tail > room {
            return Err(broken(format!("the tail of inode {} ends in another block", raw.nid)));
        }
        if self.flat(raw, at, each)? == Enough::No {
            let from = From::Stored { at: self.image.range(raw.end, tail)?.start };
            each(Extent { at, len: tail, from })?;
        }
        Ok(())
    }

    fn chunks(&self, raw: &Raw, each: EachExtent<'_>) -> Result<(), Bad> {
        let format = raw.word & 0xffff;
        let wide = if self.super_block.is_wide { CHUNK_WIDE } else { 0 };
        if format & !(CHUNK_BITS | CHUNK_INDEXES | wide) != 0 {
            return Err(unread("chunks of a later format"));
        }
        let has_indexes = format & CHUNK_INDEXES != 0;
        let (record, bits) = (if has_indexes { 8 } else { 4 }, self.super_block.block_bits + (format & CHUNK_BITS));
        let table = aligned(raw.end, record);
        let (mut at, mut number) = (0, 0);
        while at < raw.size {
            let bytes = self.image.read(table + number * record, record as usize)?;
            let len = 1_u64.checked_shl(bits).map_or(raw.size - at, |chunk| chunk.min(raw.size - at));
            let block = u32_at(&bytes, if has_indexes { 4 } else { 0 });
            if has_indexes && u16_at(&bytes, 2) != 0 && block != NOWHERE {
                return Err(unread("further devices"));
            }
            let upper = if has_indexes && format & CHUNK_WIDE != 0 { u64::from(u16_at(&bytes, 0)) << 32 } else { 0 };
            let from = match block {
                NOWHERE => From::Hole,
                block => From::Stored { at: self.image.range(self.block(u64::from(block) | upper)?, len)?.start },
            };
            if each(Extent { at, len, from })? == Enough::Yes {
                break;
            }
            (at, number) = (at + len, number + 1);
        }
        Ok(())
    }

    /// Appends what an extent holds.
    pub(super) fn read_extent(&self, extent: &Extent, to: &mut Vec<u8>) -> Result<(), Bad> {
        match extent.from {
            From::Hole => to.resize(to.len() + extent.len as usize, 0),
            From::Stored { at } => to.extend_from_slice(&self.image.read(at, extent.len as usize)?),
            From::Packed { block, how, in_block, most } => {
                let end = in_block.saturating_add(extent.len);
                let bytes = self.image.unpacked(block, how, end, most)?;
                to.extend_from_slice(bytes.get(in_block as usize..end as usize).unwrap_or_default());
            }
        }
        Ok(())
    }

    /// Where the packed inode is. It has no fragments of its own.
    fn fragments(&self) -> Result<&[Extent], Bad> {
        if let Some((extents, _)) = self.fragments.get() {
            return Ok(extents);
        }
        let nid =
            self.super_block.packed.ok_or_else(|| broken("it has fragments of a packed inode that it has not"))?;
        let raw = self.raw(nid)?;
        let (mut extents, mut charge) = (Vec::new(), self.charge.beside());
        let mut push = |extent: Extent| -> Result<Enough, Bad> {
            extents.push(extent);
            let covered = charge.cover((extents.len() * size_of::<Extent>()) as u64, u64::MAX);
            covered.map(|()| Enough::No).map_err(|exceeded| Problem::from(exceeded).into())
        };
        match raw.layout {
            PACKED_FULL | PACKED_COMPACT if raw.size > 0 => self.own_clusters(&raw, &mut push)?,
            _ => self.data(&raw, &mut push)?,
        }
        // Those that read it do so in this thread.
        let (extents, _) = self.fragments.get_or_init(|| (extents, charge));
        Ok(extents)
    }

    /// The part of a file at `at` that is in the packed inode.
    pub(super) fn fragment(&self, at: u64, range: crate::blob::ByteRange, each: EachExtent<'_>) -> Result<Enough, Bad> {
        let extents = self.fragments()?;
        let first = extents.partition_point(|extent| extent.at + extent.len <= range.start);
        let mut done = range.start;
        for extent in extents.get(first..).unwrap_or_default() {
            if done >= range.end {
                break;
            }
            let Some(skip) = done.checked_sub(extent.at) else { break };
            let len = (extent.len - skip.min(extent.len)).min(range.end - done);
            let from = match extent.from {
                From::Hole => From::Hole,
                From::Stored { at } => From::Stored { at: at + skip },
                From::Packed { block, how, in_block, most } => {
                    From::Packed { block, how, in_block: in_block + skip, most }
                }
            };
            if each(Extent { at: at + (done - range.start), len, from })? == Enough::Yes {
                return Ok(Enough::Yes);
            }
            done += len;
        }
        if done == range.end { Ok(Enough::No) } else { Err(broken("a fragment ends behind the packed inode")) }
    }

    /// Bytes of the packed inode.
    pub(super) fn packed_bytes(&self, at: u64, len: u64) -> Result<Vec<u8>, Bad> {
        let range = crate::blob::ByteRange::at(at, len).ok_or_else(|| broken("a fragment is far beyond its end"))?;
        let mut bytes = Vec::new();
        self.fragment(0, range, &mut |extent| {
            self.read_extent(&extent, &mut bytes)?;
            Ok(Enough::No)
        })?;
        Ok(bytes)
    }
}
