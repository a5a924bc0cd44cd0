//! Extended attributes: behind an inode, or shared by several and named by their place.
//!
//! ```text
//! behind an inode   u32 filter, u8 shared ones, 7 zeros; u32 for each of these; then entries
//! entry             u8 length of the name, u8 prefix, u16 length of the value, name, value; up to the next multiple of 4
//! ```

use super::super::image::{u8_at, u16_at, u32_at};
use super::super::{Bad, broken, few};
use super::{Erofs, Raw, aligned};
use crate::index::xattrs::Xattr;

const HEAD: u64 = 12;
const ENTRY: u64 = 4;

/// This bit of a prefix means one of the image's own.
const LONG: u8 = 0x80;

impl Erofs<'_> {
    pub(super) fn xattrs(&self, raw: &Raw) -> Result<Vec<Xattr>, Bad> {
        let (start, len) = raw.xattrs;
        if len == 0 {
            return Ok(Vec::new());
        }
        let end = start + len;
        let head = self.image.read(start, HEAD as usize)?;
        let shared = u64::from(u8_at(&head, 4));
        let mut at = start + HEAD + shared * 4;
        if at > end {
            return Err(broken("an inode shares more xattrs than it has room for"));
        }
        let (mut xattrs, mut values) = (Vec::new(), 0);
        for id in self.image.read(start + HEAD, shared as usize * 4)?.chunks_exact(4) {
            let place = self.super_block.shared_xattrs + u64::from(u32_at(id, 0)) * 4;
            let (xattr, len) = self.xattr(place)?;
            values = few(values + len as usize)?;
            xattrs.extend(xattr);
        }
        while at + ENTRY <= end {
            let (xattr, len) = self.xattr(at)?;
            at = aligned(at + len, 4);
            if at > end {
                return Err(broken("an xattr ends behind its inode"));
            }
            xattrs.extend(xattr);
        }
        Ok(xattrs)
    }

    /// An xattr and its length; `None` in place of one with a prefix that the kernel passes over.
    fn xattr(&self, at: u64) -> Result<(Option<Xattr>, u64), Bad> {
        let head = self.image.read(at, ENTRY as usize)?;
        let (name_len, value_len) = (usize::from(u8_at(&head, 0)), usize::from(u16_at(&head, 2)));
        let body = self.image.read(at + ENTRY, name_len + value_len)?;
        let (name, value) = body.split_at_checked(name_len).unwrap_or((body.as_slice(), Default::default()));
        let len = ENTRY + body.len() as u64;
        let prefix = match u8_at(&head, 1) {
            long if long & LONG != 0 => self.long_prefix(long & !LONG)?,
            short => prefix(short).map(<[u8]>::to_vec),
        };
        Ok((prefix.map(|prefix| ([prefix.as_slice(), name].concat(), value.to_vec())), len))
    }

    fn long_prefix(&self, number: u8) -> Result<Option<Vec<u8>>, Bad> {
        let prefixes = match self.prefixes.get() {
            Some(prefixes) => prefixes,
            None => {
                let read = self.read_prefixes()?;
                self.prefixes.get_or_init(|| read)
            }
        };
        Ok(prefixes.get(usize::from(number)).cloned())
    }

    /// The image's own prefixes: u16 length, u8 what they begin with, and so many bytes less one; up to the next multiple of 4.
    fn read_prefixes(&self) -> Result<Vec<Vec<u8>>, Bad> {
        let mut at = self.super_block.prefixes_at;
        let mut prefixes = Vec::new();
        for _ in 0..self.super_block.prefixes {
            let len = u64::from(u16_at(&self.prefix_bytes(at, 2)?, 0));
            if len == 0 || len > 256 {
                return Err(broken("a prefix of xattrs has an impossible length"));
            }
            let body = self.prefix_bytes(at + 2, len)?;
            let (base, rest) = body.split_first().ok_or_else(|| broken("a prefix of xattrs is empty"))?;
            let base = prefix(*base).ok_or_else(|| broken("a prefix of xattrs begins with none that is known"))?;
            prefixes.push([base, rest].concat());
            at = aligned(at + 2 + len, 4);
        }
        Ok(prefixes)
    }

    fn prefix_bytes(&self, at: u64, len: u64) -> Result<Vec<u8>, Bad> {
        match self.super_block.prefixes_packed {
            true => self.packed_bytes(at, len),
            false => self.image.read(at, len as usize),
        }
    }
}

fn prefix(number: u8) -> Option<&'static [u8]> {
    Some(match number {
        1 => b"user.",
        2 => b"system.posix_acl_access",
        3 => b"system.posix_acl_default",
        4 => b"trusted.",
        6 => b"security.",
        _ => return None,
    })
}
