//! Tables of owners, fragments and xattrs: lists of where their blocks of metadata are.

use super::super::image::{u16_at, u32_at, u64_at};
use super::super::{Bad, broken, few};
use super::metadata::{Cursor, Metadata};
use crate::budget::Charge;
use crate::index::error::Problem;
use crate::index::limits;
use crate::index::xattrs::Xattr;

/// No table.
const NONE: u64 = u64::MAX;

/// Bytes of a block of metadata when it is unpacked.
const BLOCK: u64 = 8192;

const ID: u64 = 4;
const FRAGMENT: u64 = 16;
const XATTRS: u64 = 16;

/// The value of an xattr is elsewhere; and the part of a type that says with what a name begins.
const ELSEWHERE: u16 = 0x100;
const PREFIX: u16 = 0xff;

/// Where the blocks of a table are, and how many records it has.
#[derive(Debug, Default)]
struct Table {
    blocks: Vec<u64>,
    records: u64,
}

#[derive(Debug)]
pub(super) struct Tables {
    ids: Table,
    fragments: Table,
    xattrs: Table,
    /// Where the xattrs themselves begin.
    xattrs_at: u64,
    _charge: Charge,
}

impl Tables {
    pub(super) fn read(metadata: &Metadata<'_>, super_block: &[u8], charge: &Charge) -> Result<Self, Bad> {
        let mut charge = charge.beside();
        let ids = Table::read(metadata, u64_at(super_block, 48), u64::from(u16_at(super_block, 26)), ID, &mut charge)?;
        let (at, count) = (u64_at(super_block, 80), u64::from(u32_at(super_block, 16)));
        let fragments =
            if at == NONE { Table::default() } else { Table::read(metadata, at, count, FRAGMENT, &mut charge)? };
        let (mut xattrs, mut xattrs_at) = (Table::default(), 0);
        let at = u64_at(super_block, 56);
        if at != NONE {
            let head = metadata.image().read(at, 16)?;
            xattrs_at = u64_at(&head, 0);
            xattrs = Table::read(metadata, at + 16, u64::from(u32_at(&head, 8)), XATTRS, &mut charge)?;
        }
        Ok(Self { ids, fragments, xattrs, xattrs_at, _charge: charge })
    }

    pub(super) fn id(&self, metadata: &Metadata<'_>, number: u16) -> Result<u32, Bad> {
        Ok(u32_at(&self.ids.record(metadata, u64::from(number), ID)?, 0))
    }

    /// Where a fragment's block is, and its length.
    pub(super) fn fragment(&self, metadata: &Metadata<'_>, number: u32) -> Result<(u64, u32), Bad> {
        let record = self.fragments.record(metadata, u64::from(number), FRAGMENT)?;
        Ok((u64_at(&record, 0), u32_at(&record, 8)))
    }

    pub(super) fn xattrs(&self, metadata: &Metadata<'_>, number: u32) -> Result<Vec<Xattr>, Bad> {
        if number == u32::MAX {
            return Ok(Vec::new());
        }
        let record = self.xattrs.record(metadata, u64::from(number), XATTRS)?;
        let (reference, count) = (u64_at(&record, 0), u32_at(&record, 8));
        let mut cursor = Cursor::new(self.xattrs_at, reference)?;
        let (mut xattrs, mut names, mut values) = (Vec::new(), 0, 0);
        for _ in 0..count {
            let head = metadata.read(&mut cursor, 4)?;
            let (kind, len) = (u16_at(&head, 0), usize::from(u16_at(&head, 2)));
            names += len + 1;
            if names > limits::XATTR_LIST {
                return Err(broken("the names of an inode's xattrs are longer than Linux allows"));
            }
            let name = metadata.read(&mut cursor, len)?;
            let value = self.value(metadata, &mut cursor, kind & ELSEWHERE != 0)?;
            values = few(values + value.len())?;
            if let Some(prefix) = prefix(kind) {
                xattrs.push(([prefix, &name].concat(), value));
            }
        }
        Ok(xattrs)
    }

    fn value(&self, metadata: &Metadata<'_>, cursor: &mut Cursor, is_elsewhere: bool) -> Result<Vec<u8>, Bad> {
        let len = metadata.read(cursor, 4)?;
        let len = u32_at(&len, 0) as usize;
        if is_elsewhere {
            let reference = u64_at(&metadata.read(cursor, 8)?, 0);
            let mut there = Cursor::new(self.xattrs_at, reference)?;
            return self.value(metadata, &mut there, false);
        }
        if len > limits::XATTR_VALUE {
            return Err(broken(format!("the value of an xattr has {len} bytes")));
        }
        metadata.read(cursor, len)
    }
}

impl Table {
    fn read(metadata: &Metadata<'_>, at: u64, records: u64, len: u64, charge: &mut Charge) -> Result<Self, Bad> {
        let list = (records * len).div_ceil(BLOCK) * 8;
        metadata.image().range(at, list)?;
        let held = charge.bytes() + list;
        charge.cover(held, held).map_err(Problem::from)?;
        let list = metadata.image().read(at, list as usize)?;
        let blocks = list.chunks_exact(8).map(|place| u64_at(place, 0)).collect();
        Ok(Self { blocks, records })
    }

    fn record(&self, metadata: &Metadata<'_>, number: u64, len: u64) -> Result<Vec<u8>, Bad> {
        let place = number * len;
        let block = self.blocks.get((place / BLOCK) as usize).filter(|_| number < self.records);
        let block =
            block.ok_or_else(|| broken(format!("a record {number} is asked for that its table does not have")))?;
        let mut cursor = Cursor::new(*block, place % BLOCK)?;
        metadata.read(&mut cursor, len as usize)
    }
}

fn prefix(kind: u16) -> Option<&'static [u8]> {
    Some(match kind & PREFIX {
        0 => b"user.",
        1 => b"trusted.",
        2 => b"security.",
        _ => return None,
    })
}
