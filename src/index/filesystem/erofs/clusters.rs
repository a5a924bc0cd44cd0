//! Packed files: an index of logical clusters says where each extent begins, and which physical cluster it is packed in.
//!
//! ```text
//! header    8 bytes: fragment's place or length of the inline tail, advice, algorithms, size of clusters
//! full      8 bytes for each logical cluster: u16 type and flags, u16 where in it an extent begins, u32 block, or two distances
//! compact   2 or 4 bytes for each, 16 or 2 of them in a group that ends with a u32 block; from 32-byte boundaries on those of 2
//! type      0 plain, 1 packed, 3 packed by the second algorithm: an extent begins here; 2: one goes on
//! ```

use super::super::codec::How;
use super::super::contents::{Extent, From};
use super::super::image::{u16_at, u32_at, u64_at};
use super::super::{Bad, EachExtent, Enough, broken, unread};
use super::{Erofs, PACKED_FULL, Raw, aligned, byte};
use crate::blob::ByteRange;

/// What the header advises.
const COMPACT_2B: u16 = 0x1;
const BIG: [u16; 2] = [0x2, 0x4];
const INLINE_TAIL: u16 = 0x8;
pub(super) const INTERLACED: u16 = 0x10;
pub(super) const FRAGMENT: u16 = 0x20;
/// Of a file with a full index: it has a list of extents instead.
const EXTENTS: u16 = 0x1;

/// Says that a distance is a number of blocks.
const IS_COUNT: u32 = 1 << 11;

/// Bytes that a physical cluster unpacks to at most (erofs-utils).
const MOST: u64 = 12 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Packed { second: bool },
    Goes,
}

/// A logical cluster's record.
#[derive(Debug, Clone, Copy)]
struct Cluster {
    kind: Kind,
    /// Where in it an extent begins.
    offset: u64,
    block: u64,
    /// Blocks of the physical cluster of the extent that goes on here, if this says so.
    count: u64,
}

/// A file's index.
struct Index {
    /// Where the records begin.
    start: u64,
    advice: u16,
    algorithms: u8,
    cluster_bits: u32,
    is_full: bool,
    /// Clusters, and of a compact index those of 4 bytes at its beginning and those of 2 behind them.
    count: u64,
    initial: u64,
    short: u64,
    /// Bytes of the tail that follows the records.
    inline_tail: u64,
    fragment: u64,
    /// All of it is a fragment.
    is_fragment: bool,
}

impl Erofs<'_> {
    /// A file that is packed, and whose end may be elsewhere.
    pub(super) fn clusters(&self, raw: &Raw, each: EachExtent<'_>) -> Result<(), Bad> {
        self.walk(raw, true, each)
    }

    /// The packed inode itself.
    pub(super) fn own_clusters(&self, raw: &Raw, each: EachExtent<'_>) -> Result<(), Bad> {
        self.walk(raw, false, each)
    }

    fn index(&self, raw: &Raw, start: u64, head: &[u8]) -> Result<Index, Bad> {
        let (advice, bits) = (u16_at(head, 4), byte(head, 7));
        let is_full = raw.layout == PACKED_FULL;
        if bits & 0x80 != 0 {
            let fragment = u64_at(head, 0) ^ 1 << 63;
            return Ok(Index { is_fragment: true, fragment, ..Index::of(raw, start, self.super_block.block_bits) });
        }
        if advice & !(COMPACT_2B | BIG[0] | BIG[1] | INLINE_TAIL | INTERLACED | FRAGMENT) != 0 {
            return Err(unread(format!("packed files of a later kind ({advice:#x})")));
        }
        let cluster_bits = self.super_block.block_bits + u32::from(bits & 7);
        let index = Index {
            start: if is_full { start + 16 } else { start + 8 },
            advice,
            algorithms: byte(head, 6),
            inline_tail: if advice & INLINE_TAIL != 0 { u64::from(u16_at(head, 2)) } else { 0 },
            fragment: u64::from(u32_at(head, 0)),
            ..Index::of(raw, start, cluster_bits)
        };
        Ok(if is_full { index } else { index.compact() })
    }

    fn walk(&self, raw: &Raw, has_fragments: bool, each: EachExtent<'_>) -> Result<(), Bad> {
        let start = aligned(raw.end, 8);
        let head = self.image.read(start, 8)?;
        let is_list = raw.layout == PACKED_FULL && u16_at(&head, 4) & EXTENTS != 0 && byte(&head, 7) & 0x80 == 0;
        if is_list {
            return self.extents_of(raw, (start, &head), has_fragments, each);
        }
        let index = self.index(raw, start, &head)?;
        if index.is_fragment {
            return self.in_fragment(raw, 0, index.fragment, has_fragments, each).map(drop);
        }
        let mut number = 0;
        let mut head = self.cluster(&index, 0)?;
        if head.kind == Kind::Goes || head.offset != 0 {
            return Err(broken(format!("the first extent of inode {} does not begin at its start", raw.nid)));
        }
        let mut start = 0;
        while start < raw.size {
            let (next, count) = self.next_head(&index, number)?;
            let end = match &next {
                Some((number, cluster)) => (number << index.cluster_bits) + cluster.offset,
                None => raw.size,
            };
            if end <= start {
                return Err(broken(format!("the extents of inode {} do not ascend", raw.nid)));
            }
            // What begins behind the end of a file is the end of it.
            let (end, is_last) = (end.min(raw.size), next.is_none() || end >= raw.size);
            let enough = if is_last && index.advice & FRAGMENT != 0 {
                // A full index has room for the upper half of its place.
                let upper = if index.is_full { head.block << 32 } else { 0 };
                self.in_fragment(raw, start, index.fragment | upper, has_fragments, each)?
            } else {
                self.extent(&index, &head, count, ByteRange { start, end }, is_last, each)?
            };
            let Some((next, cluster)) = next.filter(|_| enough == Enough::No && !is_last) else { break };
            (number, head, start) = (next, cluster, end);
        }
        Ok(())
    }

    pub(super) fn in_fragment(
        &self,
        raw: &Raw,
        start: u64,
        fragment: u64,
        has_fragments: bool,
        each: EachExtent<'_>,
    ) -> Result<Enough, Bad> {
        if !has_fragments {
            return Err(broken("the packed inode has a fragment of itself"));
        }
        let range =
            ByteRange::at(fragment, raw.size - start).ok_or_else(|| broken("a fragment is far beyond its end"))?;
        self.fragment(start, range, each)
    }

    /// The next cluster after `number` in which an extent begins; and the blocks of that in `number`, where that says more than one.
    fn next_head(&self, index: &Index, number: u64) -> Result<(Option<(u64, Cluster)>, u64), Bad> {
        let mut count = 0;
        for next in number + 1..index.count {
            let cluster = self.cluster(index, next)?;
            if cluster.kind != Kind::Goes {
                return Ok((Some((next, cluster)), count));
            }
            if next == number + 1 {
                count = cluster.count;
            }
        }
        Ok((None, count))
    }

    fn extent(
        &self,
        index: &Index,
        head: &Cluster,
        count: u64,
        part: ByteRange,
        is_last: bool,
        each: EachExtent<'_>,
    ) -> Result<Enough, Bad> {
        let is_big = match head.kind {
            Kind::Packed { second } => index.advice & if second { BIG[1] } else { BIG[0] } != 0,
            _ => false,
        };
        let (at, len) = if is_last && index.inline_tail > 0 {
            let at = index.end();
            if at % self.block_size() + index.inline_tail > self.block_size() {
                return Err(broken("the packed tail of a file ends in another block"));
            }
            (at, index.inline_tail)
        } else if is_big && count > 0 {
            (self.block(head.block)?, self.block(count)?)
        } else {
            (self.block(head.block)?, 1 << index.cluster_bits)
        };
        // The last cluster of an image may be cut off.
        let block = self.image.range(at, len)?;
        match head.kind {
            Kind::Packed { second } => self.packed(index, second, block, part, each),
            _ => self.plain(index.advice & INTERLACED != 0, block, part, each),
        }
    }

    /// An extent that is not packed; where it is interlaced, its bytes are where they would be in a block.
    pub(super) fn plain(
        &self,
        is_interlaced: bool,
        block: ByteRange,
        part: ByteRange,
        each: EachExtent<'_>,
    ) -> Result<Enough, Bad> {
        if part.len() > block.len() {
            return Err(broken("an extent that is not packed is longer than its blocks"));
        }
        let ByteRange { start: at, .. } = part;
        let in_block = at % self.block_size();
        let head = if is_interlaced && in_block > 0 { self.block_size() - in_block } else { 0 };
        let first = head.min(part.len());
        if first > 0 {
            let from = From::Stored { at: block.end.saturating_sub(head) };
            if head > block.len() {
                return Err(broken("an interlaced extent begins before its blocks"));
            }
            if each(Extent { at, len: first, from })? == Enough::Yes {
                return Ok(Enough::Yes);
            }
        }
        let len = part.len() - first;
        if len == 0 {
            return Ok(Enough::No);
        }
        each(Extent { at: at + first, len, from: From::Stored { at: block.start } })
    }

    fn packed(
        &self,
        index: &Index,
        second: bool,
        block: ByteRange,
        part: ByteRange,
        each: EachExtent<'_>,
    ) -> Result<Enough, Bad> {
        let how = match if second { index.algorithms >> 4 } else { index.algorithms & 15 } {
            0 => How::Lz4,
            1 => How::MicroLzma,
            2 => How::Deflate,
            3 => How::Zstd,
            other => return Err(unread(format!("a compressor with the number {other}"))),
        };
        self.packed_as(how, block, part, each)
    }

    pub(super) fn packed_as(
        &self,
        how: How,
        block: ByteRange,
        part: ByteRange,
        each: EachExtent<'_>,
    ) -> Result<Enough, Bad> {
        if !self.super_block.zero_padding {
            return Err(unread("lz4 with its padding behind (mkfs.erofs -Elegacy-compress)"));
        }
        // What fills a block comes before what is packed. Where only metadata is read, who unpacks it passes over that.
        if self.image.is_lazy() {
            let from = From::Packed { block, how: how.padded(), in_block: 0, most: MOST };
            return each(Extent { at: part.start, len: part.len(), from });
        }
        let padded = self.image.read(block.start, block.len().min(self.block_size()) as usize)?;
        let padding = padded.iter().take_while(|byte| **byte == 0).count() as u64;
        if padding == padded.len() as u64 {
            return Err(broken("a cluster holds nothing"));
        }
        let block = ByteRange { start: block.start + padding, end: block.end };
        each(Extent { at: part.start, len: part.len(), from: From::Packed { block, how, in_block: 0, most: MOST } })
    }

    fn cluster(&self, index: &Index, number: u64) -> Result<Cluster, Bad> {
        if index.is_full { self.full(index, number) } else { self.compact(index, number) }
    }

    fn full(&self, index: &Index, number: u64) -> Result<Cluster, Bad> {
        let record = self.image.read(index.start + number * 8, 8)?;
        let (advice, offset) = (u16_at(&record, 0), u64::from(u16_at(&record, 2)));
        let kind = kind(u32::from(advice) & 3);
        let distance = u32::from(u16_at(&record, 4));
        let count = if kind == Kind::Goes && distance & IS_COUNT != 0 { u64::from(distance & !IS_COUNT) } else { 0 };
        let block = u64::from(u32_at(&record, 4));
        index.sound(Cluster { kind, offset, block, count })
    }

    /// A record of a compact index: those before it in its group say which block is its own.
    fn compact(&self, index: &Index, number: u64) -> Result<Cluster, Bad> {
        let (place, record) = index.place(number);
        let records: u64 = if record == 2 { 16 } else { 2 };
        if (record == 4 && index.cluster_bits > 14) || (record == 2 && index.cluster_bits > 12) {
            return Err(unread("compact indexes of large clusters"));
        }
        let group_len = records * record;
        let group = place / group_len * group_len;
        let bytes = self.image.read(group, group_len as usize)?;
        let number = ((place - group) / record) as usize;
        let group = Group { bytes: &bytes, records: records as usize, low_bits: index.cluster_bits.max(12) };
        let (low, kind) = group.record(number);
        if kind == Kind::Goes {
            let count = if low & IS_COUNT != 0 { u64::from(low & !IS_COUNT) } else { 0 };
            return index.sound(Cluster { kind, offset: 0, block: 0, count });
        }
        let is_big = index.advice & BIG[0] != 0;
        let before = if is_big { group.blocks_before_big(number)? } else { group.blocks_before(number) };
        let base = u64::from(u32_at(&bytes, bytes.len() - 4));
        index.sound(Cluster { kind, offset: u64::from(low), block: base + before, count: 0 })
    }
}

impl Index {
    const fn of(raw: &Raw, start: u64, cluster_bits: u32) -> Self {
        Self {
            start,
            advice: 0,
            algorithms: 0,
            cluster_bits,
            is_full: raw.layout == PACKED_FULL,
            count: raw.size.div_ceil(1 << cluster_bits),
            initial: 0,
            short: 0,
            inline_tail: 0,
            fragment: 0,
            is_fragment: false,
        }
    }

    /// Those of 4 bytes at the beginning reach to a multiple of 32 bytes.
    fn compact(mut self) -> Self {
        self.initial = (32 - self.start % 32) / 4 % 8;
        if self.advice & COMPACT_2B != 0 && self.initial < self.count {
            self.short = (self.count - self.initial) / 16 * 16;
        }
        self
    }

    /// Where a compact record is, and its bytes.
    fn place(&self, number: u64) -> (u64, u64) {
        let Some(behind) = number.checked_sub(self.initial) else { return (self.start + number * 4, 4) };
        let start = self.start + self.initial * 4;
        match behind.checked_sub(self.short) {
            None => (start + behind * 2, 2),
            Some(behind) => (start + self.short * 2 + behind * 4, 4),
        }
    }

    /// Where the records end: that of the last cluster, with its group.
    fn end(&self) -> u64 {
        let last = self.count.saturating_sub(1);
        if self.is_full {
            return self.start + (last + 1) * 8;
        }
        let (place, record) = self.place(last);
        let group = if record == 2 { 32 } else { 8 };
        place / group * group + group
    }

    fn sound(&self, cluster: Cluster) -> Result<Cluster, Bad> {
        let is_within = cluster.kind == Kind::Goes || cluster.offset < 1 << self.cluster_bits;
        if is_within { Ok(cluster) } else { Err(broken("an extent begins outside of its cluster")) }
    }
}

fn kind(number: u32) -> Kind {
    match number {
        0 => Kind::Plain,
        1 => Kind::Packed { second: false },
        3 => Kind::Packed { second: true },
        _ => Kind::Goes,
    }
}

/// Records of a compact index that share a block number.
struct Group<'a> {
    bytes: &'a [u8],
    records: usize,
    low_bits: u32,
}

impl Group<'_> {
    /// The low bits of a record, and its type above them.
    fn record(&self, number: usize) -> (u32, Kind) {
        let bits = (self.bytes.len() - 4) * 8 / self.records;
        let at = number * bits;
        let word = u32_at(self.bytes, at / 8) >> (at % 8);
        (word & ((1 << self.low_bits) - 1), kind(word >> self.low_bits & 3))
    }

    /// Physical clusters of a block each, up to this one.
    fn blocks_before(&self, number: usize) -> u64 {
        let (mut blocks, mut at) = (1, number as i64);
        while at > 0 {
            at -= 1;
            let (low, kind) = self.record(at as usize);
            if kind == Kind::Goes {
                at -= i64::from(low);
            }
            if at >= 0 {
                blocks += 1;
            }
        }
        blocks
    }

    /// The same where clusters have several blocks.
    fn blocks_before_big(&self, number: usize) -> Result<u64, Bad> {
        let (mut blocks, mut at) = (0, number as i64);
        while at > 0 {
            at -= 1;
            let (low, kind) = self.record(at as usize);
            if kind != Kind::Goes {
                blocks += 1;
            } else if low & IS_COUNT != 0 {
                at -= 1;
                blocks += u64::from(low & !IS_COUNT);
            } else if low <= 1 {
                return Err(broken("a compact index has a distance that big clusters cannot have"));
            } else {
                at -= i64::from(low) - 2;
            }
        }
        Ok(blocks)
    }
}
