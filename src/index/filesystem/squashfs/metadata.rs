//! Blocks of metadata, and what is read across them.

use std::cell::RefCell;

use bytes::Bytes;

use super::super::codec::{self, How};
use super::super::image::{EACH_LOOK, Image, u16_at};
use super::super::{Bad, broken};

/// Bytes of a block when it is unpacked, at most; and the bit of its length that says that it is not packed.
const BLOCK: u64 = 8192;
const NOT_PACKED: u16 = 1 << 15;

/// Looks that unpacking one takes as long as.
const UNPACKING: u64 = 64;

/// Blocks that are kept unpacked: those of inodes, directories and xattrs are read in turns.
const KEPT: usize = 64;

/// A block: where it is, what it holds, and where the next one is.
type Kept = Option<(u64, Bytes, u64)>;

pub(super) struct Metadata<'a> {
    image: &'a Image<'a>,
    how: How,
    kept: RefCell<Vec<Kept>>,
}

/// A place in metadata.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor {
    /// Where its block is in the image.
    block: u64,
    offset: usize,
}

impl Cursor {
    /// By a reference into a table.
    pub(super) fn new(table: u64, reference: u64) -> Result<Self, Bad> {
        let block = table.checked_add(reference >> 16).ok_or_else(|| broken("its metadata is far beyond its end"))?;
        Ok(Self { block, offset: (reference & 0xffff) as usize })
    }
}

impl<'a> Metadata<'a> {
    pub(super) fn new(image: &'a Image<'a>, how: How) -> Self {
        Self { image, how, kept: RefCell::new(vec![None; KEPT]) }
    }

    pub(super) const fn image(&self) -> &'a Image<'a> {
        self.image
    }

    pub(super) const fn how(&self) -> How {
        self.how
    }

    /// So many bytes from the cursor on, which goes on behind them.
    pub(super) fn read(&self, cursor: &mut Cursor, len: usize) -> Result<Vec<u8>, Bad> {
        self.image.look(1 + len as u64 / EACH_LOOK)?;
        let mut bytes = Vec::with_capacity(len.min(BLOCK as usize));
        while bytes.len() < len {
            let (block, next) = self.block(cursor.block)?;
            let Some(rest) = block.get(cursor.offset..).filter(|rest| !rest.is_empty()) else {
                if cursor.offset > block.len() || block.is_empty() {
                    return Err(broken("a place in its metadata is behind its block"));
                }
                *cursor = Cursor { block: next, offset: 0 };
                continue;
            };
            let take = rest.len().min(len - bytes.len());
            bytes.extend_from_slice(rest.get(..take).unwrap_or_default());
            cursor.offset += take;
        }
        Ok(bytes)
    }

    fn block(&self, at: u64) -> Result<(Bytes, u64), Bad> {
        let mut kept = self.kept.borrow_mut();
        // Blocks are of any length.
        let slot = kept.get_mut((at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize % KEPT);
        let slot = slot.ok_or_else(|| broken("no metadata is kept"))?;
        if let Some((_, block, next)) = slot.as_ref().filter(|(place, ..)| *place == at) {
            return Ok((block.clone(), *next));
        }
        self.image.look(UNPACKING)?;
        let head = u16_at(&self.image.read(at, 2)?, 0);
        let len = u64::from(head & !NOT_PACKED);
        if len == 0 || len > BLOCK {
            return Err(broken(format!("the block of metadata at {at} has {len} bytes")));
        }
        let stored = self.image.read(at + 2, len as usize)?;
        let block = match head & NOT_PACKED {
            0 => {
                let unpacked = codec::unpack_up_to(self.how, &stored, BLOCK);
                let failed = |error| broken(format!("the block of metadata at {at} cannot be unpacked: {error}"));
                Bytes::from(unpacked.map_err(failed)?)
            }
            _ => Bytes::from(stored),
        };
        let next = at + 2 + len;
        *slot = Some((at, block.clone(), next));
        Ok((block, next))
    }
}
