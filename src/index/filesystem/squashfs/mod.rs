//! squashfs 4.0 (Linux, fs/squashfs/squashfs_fs.h): little endian, tables of packed metadata behind the contents.
//!
//! ```text
//! 0           superblock: magic, size of a block, compressor, root, where the tables are
//! blocks      of files, each packed by itself; fragments: blocks of the ends of several files
//! metadata    blocks of 8 KiB, packed by themselves: u16 length (the upper bit: not packed), and so many bytes
//! reference   u48 where a block of metadata is in its table, u16 where in what it unpacks to
//! ```

mod inode;
mod metadata;
mod tables;

use self::inode::{Raw, What};
use self::metadata::{Cursor, Metadata};
use self::tables::Tables;
use super::codec::How;
use super::contents::{Extent, From};
use super::image::{Image, u16_at, u32_at, u64_at};
use super::{Bad, EachExtent, EachName, Enough, Inode, Layout, broken, unread};
use crate::blob::ByteRange;
use crate::budget::Charge;
use crate::index::limits;

const MAGIC: u32 = 0x7371_7368;
const LEN: usize = 96;

/// A block that is not packed, in its length.
const NOT_PACKED: u32 = 1 << 24;

/// No fragment.
const NONE: u32 = u32::MAX;

pub(super) struct Squashfs<'a> {
    image: &'a Image<'a>,
    metadata: Metadata<'a>,
    block_size: u64,
    root: u64,
    inodes: u64,
    directories: u64,
    tables: Tables,
}

impl<'a> Squashfs<'a> {
    pub(super) fn open(image: &'a Image<'a>, charge: &Charge) -> Result<Self, Bad> {
        let bytes = image.read(0, LEN)?;
        let major = u16_at(&bytes, 28);
        if u32_at(&bytes, 0) != MAGIC || u16_at(&bytes, 30) != 0 {
            return Err(broken("it has no superblock of squashfs"));
        }
        if major != 4 {
            return Err(unread(format!("version {major} of squashfs")));
        }
        let how = match u16_at(&bytes, 20) {
            1 => How::Zlib,
            2 => return Err(unread("lzma (of squashfs before 4.0)")),
            3 => return Err(unread("lzo")),
            4 => How::Xz,
            5 => How::Lz4,
            6 => How::Zstd,
            other => return Err(unread(format!("a compressor with the number {other}"))),
        };
        let block_size = u64::from(u32_at(&bytes, 12));
        if !block_size.is_power_of_two() || !(4096..=1 << 20).contains(&block_size) {
            return Err(broken(format!("its blocks have {block_size} bytes")));
        }
        let metadata = Metadata::new(image, how);
        let tables = Tables::read(&metadata, &bytes, charge)?;
        let (root, inodes, directories) = (u64_at(&bytes, 32), u64_at(&bytes, 64), u64_at(&bytes, 72));
        Ok(Self { image, metadata, block_size, root, inodes, directories, tables })
    }

    fn raw(&self, id: u64) -> Result<(Raw, Cursor), Bad> {
        let mut cursor = Cursor::new(self.inodes, id)?;
        let raw = Raw::read(&self.metadata, &mut cursor)?;
        Ok((raw, cursor))
    }

    /// A file's blocks, and where they begin; the list of their lengths is at `cursor`.
    fn blocks(
        &self,
        (start, size, count): (u64, u64, u64),
        cursor: &mut Cursor,
        each: EachExtent<'_>,
    ) -> Result<Enough, Bad> {
        let (mut at, mut place) = (0, start);
        for _ in 0..count {
            let word = u32_at(&self.metadata.read(cursor, 4)?, 0);
            let len = self.block_size.min(size - at);
            let stored = u64::from(word & !NOT_PACKED);
            let from = match word {
                0 => From::Hole,
                word => self.block(place, stored, word & NOT_PACKED != 0, len, 0)?,
            };
            if each(Extent { at, len, from })? == Enough::Yes {
                return Ok(Enough::Yes);
            }
            (at, place) = (at + len, place.saturating_add(stored));
        }
        Ok(Enough::No)
    }

    /// `len` bytes from `in_block` on of a block.
    fn block(&self, at: u64, stored: u64, is_plain: bool, len: u64, in_block: u64) -> Result<From, Bad> {
        let block = self.image.range(at, stored)?;
        if !is_plain {
            let how = self.metadata.how();
            return Ok(From::Packed { block, how, in_block, most: self.block_size });
        }
        let part = ByteRange::at(block.start.saturating_add(in_block), len).filter(|part| block.contains(part));
        let part = part.ok_or_else(|| broken("a block is shorter than what a file has of it"))?;
        Ok(From::Stored { at: part.start })
    }
}

impl Layout for Squashfs<'_> {
    fn root(&self) -> u64 {
        self.root
    }

    fn inode(&self, id: u64) -> Result<Inode, Bad> {
        let (raw, _) = self.raw(id)?;
        let uid = self.tables.id(&self.metadata, raw.uid)?;
        let gid = self.tables.id(&self.metadata, raw.gid)?;
        let xattrs = self.tables.xattrs(&self.metadata, raw.xattrs)?;
        Ok(raw.inode(uid, gid, xattrs))
    }

    fn list(&self, id: u64, each: EachName<'_>) -> Result<(), Bad> {
        let (raw, _) = self.raw(id)?;
        let What::Dir { start, offset, len } = raw.what else {
            return Err(broken("what should be a directory is none"));
        };
        // The length counts two entries that are not there.
        let Some(mut left) = len.checked_sub(3) else { return Ok(()) };
        let reference = u64::from(start) << 16 | u64::from(offset);
        let mut cursor = Cursor::new(self.directories, reference)?;
        while left > 0 {
            let head = self.metadata.read(&mut cursor, 12)?;
            let (count, inodes) = (u64::from(u32_at(&head, 0)) + 1, u64::from(u32_at(&head, 4)));
            left = left.checked_sub(12).filter(|_| count <= 256).ok_or_else(|| broken("a directory is malformed"))?;
            for _ in 0..count {
                let entry = self.metadata.read(&mut cursor, 8)?;
                let len = usize::from(u16_at(&entry, 6)) + 1;
                left = left.checked_sub(8 + len as u64).ok_or_else(|| broken("a directory is longer than it says"))?;
                let name = self.metadata.read(&mut cursor, len)?;
                each(&name, inodes << 16 | u64::from(u16_at(&entry, 0)))?;
            }
        }
        Ok(())
    }

    fn target(&self, id: u64) -> Result<Vec<u8>, Bad> {
        let (raw, mut cursor) = self.raw(id)?;
        match raw.what {
            What::Symlink { len } if len as usize <= limits::SYMLINK => self.metadata.read(&mut cursor, len as usize),
            _ => Err(broken("the target of a symlink is too long")),
        }
    }

    fn extents(&self, id: u64, each: EachExtent<'_>) -> Result<(), Bad> {
        let (raw, mut cursor) = self.raw(id)?;
        let What::File { start, size, fragment, offset } = raw.what else {
            return Err(broken("what should be a file is none"));
        };
        let whole = size / self.block_size;
        let count = if fragment == NONE { size.div_ceil(self.block_size) } else { whole };
        if self.blocks((start, size, count), &mut cursor, each)? == Enough::Yes || fragment == NONE {
            return Ok(());
        }
        let at = whole * self.block_size;
        let len = size - at;
        if len > 0 {
            let (place, word) = self.tables.fragment(&self.metadata, fragment)?;
            let (stored, is_plain) = (u64::from(word & !NOT_PACKED), word & NOT_PACKED != 0);
            let from = self.block(place, stored, is_plain, len, u64::from(offset))?;
            each(Extent { at, len, from })?;
        }
        Ok(())
    }
}
