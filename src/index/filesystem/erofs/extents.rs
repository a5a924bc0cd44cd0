//! Packed files of 48-bit images: a list of extents says where each is, to the byte.
//!
//! ```text
//! header    8   of the map: u32 how many, u16 advice, u16 more of how many, or the size of clusters
//! extent        of 4 bytes: one for each cluster, behind a u64 where the first is; each follows the one before
//!               8: one for each cluster, with a u32 where it is; 16 and 32: u64 where it is, and u32 or u64 where in the file
//! length        u32: 24 bits of bytes (0: a hole), from bit 28 on 0 for plain, or the compressor and 1
//! ```

use super::super::codec::How;
use super::super::contents::{Extent, From};
use super::super::image::{u16_at, u32_at, u64_at};
use super::super::{Bad, EachExtent, Enough, broken, unread};
use super::clusters::{FRAGMENT, INTERLACED};
use super::{Erofs, Raw, aligned, byte};
use crate::blob::ByteRange;

const LENGTH: u32 = (2 << 20) - 1;
const FORMAT: u32 = 28;

/// A file's list.
struct List {
    start: u64,
    record: u64,
    count: u64,
    advice: u16,
    cluster_bits: u32,
}

/// A record of it.
struct Record {
    length: u32,
    /// In the image, where it says so.
    at: Option<u64>,
    /// In the file.
    from: u64,
}

impl Erofs<'_> {
    /// `head`: of the map, which is at `start`.
    pub(super) fn extents_of(
        &self,
        raw: &Raw,
        (start, head): (u64, &[u8]),
        has_fragments: bool,
        each: EachExtent<'_>,
    ) -> Result<(), Bad> {
        let list = self.list_of(raw, start, head)?;
        let mut follows = if list.record == 4 { u64_at(&self.image.read(list.start - 8, 8)?, 0) } else { 0 };
        let mut next = self.record(&list, 0)?;
        for number in 0..list.count {
            let Record { length, at, from } = next;
            let is_last = number + 1 == list.count;
            let end = if is_last {
                raw.size
            } else {
                next = self.record(&list, number + 1)?;
                next.from
            };
            let part = ByteRange::new(from, end.min(raw.size)).filter(|part| !part.is_empty());
            let part = part.ok_or_else(|| broken(format!("the extents of inode {} do not ascend", raw.nid)))?;
            let place = at.unwrap_or(follows);
            follows = place.saturating_add(u64::from(length & LENGTH));
            let enough = if is_last && list.advice & FRAGMENT != 0 {
                let upper = if list.record > 4 { place << 32 } else { 0 };
                self.in_fragment(raw, part.start, u64::from(length) | upper, has_fragments, each)?
            } else {
                self.one(&list, length, place, part, each)?
            };
            if enough == Enough::Yes || end >= raw.size {
                break;
            }
        }
        Ok(())
    }

    fn list_of(&self, raw: &Raw, start: u64, head: &[u8]) -> Result<List, Bad> {
        let advice = u16_at(head, 4);
        if advice & !(0x7 | INTERLACED | FRAGMENT) != 0 {
            return Err(unread(format!("packed files of a later kind ({advice:#x})")));
        }
        let record = 4_u64 << (advice >> 1 & 3);
        let cluster_bits = self.super_block.block_bits + u32::from(byte(head, 7) & 15);
        let by_cluster = record < 16;
        let count = match by_cluster {
            true => raw.size.div_ceil(1 << cluster_bits),
            false => u64::from(u32_at(head, 0)) | u64::from(u16_at(head, 6)) << 32,
        };
        if count == 0 {
            return Err(broken(format!("inode {} has no extents", raw.nid)));
        }
        let start = aligned(start + 8, record) + if record == 4 { 8 } else { 0 };
        Ok(List { start, record, count, advice, cluster_bits })
    }

    fn record(&self, list: &List, number: u64) -> Result<Record, Bad> {
        let far = || broken("a list of extents is far beyond its end");
        let place = number.checked_mul(list.record).and_then(|at| at.checked_add(list.start)).ok_or_else(far)?;
        let bytes = self.image.read(place, list.record as usize)?;
        let (length, low) = (u32_at(&bytes, 0), u64::from(u32_at(&bytes, 4)));
        Ok(match list.record {
            4 | 8 => Record { length, at: (list.record == 8).then_some(low), from: number << list.cluster_bits },
            _ => Record {
                length,
                at: Some(low | u64::from(u32_at(&bytes, 8)) << 32),
                from: u64::from(u32_at(&bytes, 12)) | u64::from(u32_at(&bytes, 16)) << 32,
            },
        })
    }

    fn one(&self, list: &List, length: u32, at: u64, part: ByteRange, each: EachExtent<'_>) -> Result<Enough, Bad> {
        let (len, format) = (u64::from(length & LENGTH), length >> FORMAT);
        if len == 0 {
            return each(Extent { at: part.start, len: part.len(), from: From::Hole });
        }
        let block = self.image.range(at, len)?;
        if format == 0 {
            let is_aligned = (at | len) % self.block_size() == 0;
            return self.plain(list.advice & INTERLACED != 0 && is_aligned, block, part, each);
        }
        let how = match format - 1 {
            0 => How::Lz4,
            1 => How::MicroLzma,
            2 => How::Deflate,
            3 => How::Zstd,
            other => return Err(unread(format!("a compressor with the number {other}"))),
        };
        self.packed_as(how, block, part, each)
    }
}
