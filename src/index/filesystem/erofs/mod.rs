//! EROFS (Linux, fs/erofs/erofs_fs.h): an image in little endian, of blocks.
//!
//! ```text
//! 1024          superblock: magic, features, size of a block, root, where inodes and shared xattrs begin, the packed inode
//! nid * 32      an inode, from the start of the inodes on: 32 or 64 bytes, its xattrs, then what its layout needs there
//! layouts       plain blocks | the same and a tail behind the inode | chunks by a table | packed, with an index of clusters (clusters.rs)
//! directory     blocks of: {u64 nid, u16 where its name is, u8 type, u8} for each entry, then the names
//! ```

mod clusters;
mod data;
mod extents;
mod super_block;
mod xattrs;

use std::cell::OnceCell;

use self::super_block::SuperBlock;
use super::contents::Extent;
use super::image::{Image, u8_at, u16_at, u32_at, u64_at};
use super::{Bad, EachExtent, EachName, Enough, Inode, Kind, Layout, broken, device_of, kind_of, unread};
use crate::budget::Charge;
use crate::index::error::Problem;
use crate::index::{Time, limits};

/// Bytes for each inode number.
const SLOT: u64 = 32;

/// Bytes of a directory that are held at once: some 10 million names.
const DIRECTORY: u64 = 256 << 20;

/// An inode as the image has it.
#[derive(Debug, Clone, Copy)]
struct Raw {
    nid: u64,
    layout: u16,
    /// Where what its layout needs begins: behind its xattrs.
    end: u64,
    /// Bytes of its xattrs, and where they begin.
    xattrs: (u64, u64),
    mode: u16,
    links: u32,
    size: u64,
    /// Its block, device or description of chunks, and the upper bits of a block.
    word: u32,
    upper: u64,
    uid: u32,
    gid: u32,
    mtime: Time,
}

/// Layouts of an inode's data.
const PLAIN: u16 = 0;
const PACKED_FULL: u16 = 1;
const INLINE: u16 = 2;
const PACKED_COMPACT: u16 = 3;
const CHUNKS: u16 = 4;

pub(super) struct Erofs<'a> {
    image: &'a Image<'a>,
    super_block: SuperBlock,
    /// Where what is in the packed inode is, once somebody asks.
    fragments: OnceCell<(Vec<Extent>, Charge)>,
    prefixes: OnceCell<Vec<Vec<u8>>>,
    charge: Charge,
}

impl<'a> Erofs<'a> {
    pub(super) fn open(image: &'a Image<'a>, charge: &Charge) -> Result<Self, Bad> {
        let super_block = SuperBlock::read(image)?;
        let (fragments, prefixes) = (OnceCell::new(), OnceCell::new());
        Ok(Self { image, super_block, fragments, prefixes, charge: charge.beside() })
    }

    /// Where a block begins.
    fn block(&self, number: u64) -> Result<u64, Bad> {
        let at =
            number.checked_shl(self.super_block.block_bits).filter(|at| at >> self.super_block.block_bits == number);
        at.ok_or_else(|| broken(format!("block {number} is far beyond its end")))
    }

    const fn block_size(&self) -> u64 {
        1 << self.super_block.block_bits
    }

    fn raw(&self, nid: u64) -> Result<Raw, Bad> {
        let far = || broken(format!("inode {nid} is far beyond its end"));
        let at = nid.checked_mul(SLOT).and_then(|at| at.checked_add(self.super_block.inodes)).ok_or_else(far)?;
        let head = self.image.read(at, 32)?;
        let (format, xattr_count) = (u16_at(&head, 0), u16_at(&head, 2));
        // Of a compact inode of a wide image: where the upper bits of a block are, or (of a directory) that it does not name itself.
        let flag = if self.super_block.is_wide { 0b1_0000 } else { 0 };
        if format & !(0b1111 | flag) != 0 {
            return Err(unread(format!("inodes of the format {format:#x}")));
        }
        let is_extended = format & 1 == 1;
        let len = if is_extended { 64 } else { 32 };
        let all = self.image.read(at, len)?;
        let xattr_len = u64::from(xattr_count).checked_sub(1).map_or(0, |count| 12 + count * 4);
        let xattrs = (at + len as u64, xattr_len);
        let mut raw = Raw {
            nid,
            layout: format >> 1 & 7,
            end: xattrs.0 + xattr_len,
            xattrs,
            mode: u16_at(&all, 4),
            links: u32::from(u16_at(&all, 6)),
            size: u64::from(u32_at(&all, 8)),
            word: u32_at(&all, 16),
            upper: 0,
            uid: u32::from(u16_at(&all, 24)),
            gid: u32::from(u16_at(&all, 26)),
            mtime: self.super_block.time,
        };
        if self.super_block.is_wide {
            let is_alone = !is_extended && format & flag != 0 && raw.mode & 0o170_000 != 0o040_000;
            if is_extended || is_alone {
                raw.upper = u64::from(u16_at(&all, 6)) << 32;
            }
            raw.links = if is_alone { 1 } else { raw.links };
            raw.mtime.secs = raw.mtime.secs.saturating_add(i64::from(u32_at(&all, 12)));
        }
        if is_extended {
            let mtime = Time { secs: u64_at(&all, 32) as i64, nanos: u32_at(&all, 40) };
            let (size, links) = (u64_at(&all, 8), u32_at(&all, 44));
            raw = Raw { size, links, uid: u32_at(&all, 24), gid: u32_at(&all, 28), mtime, ..raw };
        }
        if raw.mtime.nanos > 999_999_999 || raw.size > limits::OFFSET {
            return Err(broken(format!("inode {nid} has an impossible time or size")));
        }
        Ok(raw)
    }

    /// All of what an inode holds that is no file: at most `limit` bytes.
    fn all(&self, raw: &Raw, limit: u64) -> Result<Vec<u8>, Bad> {
        if raw.size > limit {
            return Err(Problem::Number { key: "size", value: raw.size, limit }.into());
        }
        let mut charge = self.charge.beside();
        charge.cover(raw.size, raw.size).map_err(Problem::from)?;
        let mut bytes = Vec::new();
        self.data(raw, &mut |extent| {
            if extent.at != bytes.len() as u64 {
                return Err(broken("the extents of a directory or symlink do not follow each other"));
            }
            self.read_extent(&extent, &mut bytes)?;
            Ok(Enough::No)
        })?;
        if bytes.len() as u64 == raw.size { Ok(bytes) } else { Err(broken("a directory or symlink is cut off")) }
    }

    /// Tells each entry of one block of a directory.
    fn list_block(&self, block: &[u8], each: EachName<'_>) -> Result<(), Bad> {
        const ENTRY: usize = 12;
        let bad = || broken("a block of a directory is malformed");
        let first = usize::from(u16_at(block, 8));
        if first < ENTRY || first % ENTRY != 0 || first > block.len() {
            return Err(bad());
        }
        let count = first / ENTRY;
        for number in 0..count {
            let entry = block.get(number * ENTRY..).ok_or_else(bad)?;
            let start = usize::from(u16_at(entry, 8));
            let end = if number + 1 < count { usize::from(u16_at(entry, 8 + ENTRY)) } else { block.len() };
            let name = block.get(start..end).filter(|name| !name.is_empty() && start >= first).ok_or_else(bad)?;
            // Only behind the last one there is something else.
            let len = if number + 1 < count { name.len() } else { name.iter().take_while(|byte| **byte != 0).count() };
            each(name.get(..len).unwrap_or(name), u64_at(entry, 0))?;
        }
        Ok(())
    }
}

impl Layout for Erofs<'_> {
    fn root(&self) -> u64 {
        self.super_block.root
    }

    fn inode(&self, id: u64) -> Result<Inode, Bad> {
        let raw = self.raw(id)?;
        let kind = kind_of(raw.mode)?;
        let device = if matches!(kind, Kind::Char | Kind::Block) { device_of(raw.word) } else { (0, 0) };
        let Raw { mode, uid, gid, mtime, size, .. } = raw;
        let (is_linked, xattrs) = (raw.links > 1, self.xattrs(&raw)?);
        Ok(Inode { kind, mode, uid, gid, mtime, size, device, is_linked, xattrs })
    }

    fn list(&self, id: u64, each: EachName<'_>) -> Result<(), Bad> {
        let raw = self.raw(id)?;
        let bytes = self.all(&raw, DIRECTORY.min(self.super_block.directories_limit(self.image.size())))?;
        bytes.chunks(self.block_size() as usize).try_for_each(|block| self.list_block(block, each))
    }

    fn target(&self, id: u64) -> Result<Vec<u8>, Bad> {
        self.all(&self.raw(id)?, limits::SYMLINK as u64)
    }

    fn extents(&self, id: u64, each: EachExtent<'_>) -> Result<(), Bad> {
        self.data(&self.raw(id)?, each)
    }
}

/// What follows an inode begins at a multiple of `to`.
const fn aligned(at: u64, to: u64) -> u64 {
    at.next_multiple_of(to)
}

/// A byte of an image's.
fn byte(bytes: &[u8], at: usize) -> u8 {
    u8_at(bytes, at)
}
