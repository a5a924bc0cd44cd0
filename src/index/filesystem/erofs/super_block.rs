//! The superblock: what an image uses, and where its parts are.

use super::super::image::{Image, u8_at, u16_at, u32_at, u64_at};
use super::super::{Bad, broken, unread};
use crate::index::Time;

/// Where it is, and its length without extensions.
const AT: u64 = 1024;
const LEN: usize = 128;
const MAGIC: u32 = 0xe0f5_e1e2;

/// Features that a reader must know.
const ZERO_PADDING: u32 = 0x1;
const DEVICES: u32 = 0x8;
const FRAGMENTS: u32 = 0x20;
const LONG_PREFIXES: u32 = 0x40;
const WIDE: u32 = 0x80;
const METABOX: u32 = 0x100;
/// Configurations of compressors and big clusters, chunks, devices or a second compressor, tails of packed files behind inodes, fragments or
/// extents that share clusters.
const KNOWN: u32 = ZERO_PADDING | 0x2 | 0x4 | DEVICES | 0x10 | FRAGMENTS | LONG_PREFIXES | WIDE;

/// Of those that a reader need not know: names of long prefixes are not in the packed inode.
const PLAIN_PREFIXES: u32 = 0x10;

#[derive(Debug, Clone, Copy)]
pub(super) struct SuperBlock {
    pub(super) block_bits: u32,
    /// Addresses have 48 bits.
    pub(super) is_wide: bool,
    pub(super) root: u64,
    pub(super) time: Time,
    /// Where inode 0 would be, and the first shared xattr.
    pub(super) inodes: u64,
    pub(super) shared_xattrs: u64,
    /// The inode in which fragments are.
    pub(super) packed: Option<u64>,
    pub(super) zero_padding: bool,
    /// How many names of long prefixes there are, where, and whether that is in the packed inode.
    pub(super) prefixes: u8,
    pub(super) prefixes_at: u64,
    pub(super) prefixes_packed: bool,
}

impl SuperBlock {
    pub(super) fn read(image: &Image<'_>) -> Result<Self, Bad> {
        let bytes = image.read(AT, LEN)?;
        if u32_at(&bytes, 0) != MAGIC {
            return Err(broken("it has no superblock of EROFS"));
        }
        let (compat, features) = (u32_at(&bytes, 8), u32_at(&bytes, 80));
        if features & METABOX != 0 {
            return Err(unread("a metabox"));
        }
        if features & !KNOWN != 0 {
            return Err(unread(format!("features of EROFS that came later ({features:#x})")));
        }
        if features & DEVICES != 0 && u16_at(&bytes, 86) > 0 {
            return Err(unread("further devices"));
        }
        let block_bits = u32::from(u8_at(&bytes, 12));
        if !(9..=16).contains(&block_bits) || u8_at(&bytes, 89) != 0 {
            return Err(broken(format!("its blocks have 2^{block_bits} bytes")));
        }
        let (is_wide, wide_root) = (features & WIDE != 0, u64_at(&bytes, 112));
        let time = Time { secs: u64_at(&bytes, 24) as i64, nanos: u32_at(&bytes, 32) };
        let packed = Some(u64_at(&bytes, 96)).filter(|nid| features & FRAGMENTS != 0 && *nid > 0);
        let prefixes = if features & LONG_PREFIXES != 0 { u8_at(&bytes, 91) } else { 0 };
        Ok(Self {
            block_bits,
            is_wide,
            root: if is_wide && wide_root != 0 { wide_root } else { u64::from(u16_at(&bytes, 14)) },
            time,
            inodes: u64::from(u32_at(&bytes, 40)) << block_bits,
            shared_xattrs: u64::from(u32_at(&bytes, 44)) << block_bits,
            packed,
            zero_padding: features & ZERO_PADDING != 0,
            prefixes,
            prefixes_at: u64::from(u32_at(&bytes, 92)) * 4,
            prefixes_packed: packed.is_some() && compat & PLAIN_PREFIXES == 0,
        })
    }

    /// Bytes of the largest directory that an image of so many bytes has. None is packed, as mkfs writes them; a little one may be all the same.
    pub(super) const fn directories_limit(&self, image: u64) -> u64 {
        image.saturating_mul(4)
    }
}
