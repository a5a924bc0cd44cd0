//! Inodes: of each type a short form, and a long one with xattrs.
//!
//! ```text
//! all       u16 type, u16 mode, u16 owner and u16 group by their place in a table, u32 time, u32 number
//! dir       u32 block, u32 links, u16 length, u16 offset, u32 parent          long: u32 links, length, block, parent; u16, offset; u32 xattrs
//! file      u32 block, fragment, offset in it, length                         long: u64 block, length, holes; u32 links, fragment, offset, xattrs
//! symlink   u32 links, u32 length, target                                     long: u32 xattrs behind the target
//! device    u32 links, u32 device                                             long: u32 xattrs
//! others    u32 links                                                         long: u32 xattrs
//! ```

use super::super::image::{u16_at, u32_at, u64_at};
use super::super::{Bad, Inode, Kind, broken, device_of};
use super::metadata::{Cursor, Metadata};
use crate::index::xattrs::Xattr;
use crate::index::{Time, limits};

/// What an inode holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    Dir { start: u32, offset: u16, len: u64 },
    File { start: u64, size: u64, fragment: u32, offset: u32 },
    Symlink { len: u32 },
    Other,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Raw {
    kind: Kind,
    mode: u16,
    pub(super) uid: u16,
    pub(super) gid: u16,
    mtime: u32,
    links: u32,
    device: u32,
    pub(super) xattrs: u32,
    pub(super) what: What,
}

/// No xattrs.
const NONE: u32 = u32::MAX;

impl Raw {
    /// The inode at the cursor, which goes on behind it: at a symlink's target, and a file's list of blocks.
    pub(super) fn read(metadata: &Metadata<'_>, cursor: &mut Cursor) -> Result<Self, Bad> {
        let head = metadata.read(cursor, 16)?;
        let number = u16_at(&head, 0);
        let kind = match number {
            1 | 8 => Kind::Dir,
            2 | 9 => Kind::File,
            3 | 10 => Kind::Symlink,
            4 | 11 => Kind::Block,
            5 | 12 => Kind::Char,
            6 | 13 => Kind::Fifo,
            7 | 14 => Kind::Socket,
            other => return Err(broken(format!("an inode has the type {other}"))),
        };
        let mut raw = Self {
            kind,
            mode: u16_at(&head, 2),
            uid: u16_at(&head, 4),
            gid: u16_at(&head, 6),
            mtime: u32_at(&head, 8),
            links: 1,
            device: 0,
            xattrs: NONE,
            what: What::Other,
        };
        raw.rest(metadata, cursor, number > 7)?;
        Ok(raw)
    }

    fn rest(&mut self, metadata: &Metadata<'_>, cursor: &mut Cursor, is_long: bool) -> Result<(), Bad> {
        match self.kind {
            Kind::Dir => self.dir(metadata, cursor, is_long),
            Kind::File => self.file(metadata, cursor, is_long),
            Kind::Symlink => {
                let body = metadata.read(cursor, 8)?;
                let len = u32_at(&body, 4);
                (self.links, self.what) = (u32_at(&body, 0), What::Symlink { len });
                if is_long && len as usize <= limits::SYMLINK {
                    let mut behind = *cursor;
                    metadata.read(&mut behind, len as usize)?;
                    self.xattrs = u32_at(&metadata.read(&mut behind, 4)?, 0);
                }
                Ok(())
            }
            Kind::Block | Kind::Char => {
                let body = metadata.read(cursor, if is_long { 12 } else { 8 })?;
                (self.links, self.device) = (u32_at(&body, 0), u32_at(&body, 4));
                self.xattrs = if is_long { u32_at(&body, 8) } else { NONE };
                Ok(())
            }
            Kind::Fifo | Kind::Socket => {
                let body = metadata.read(cursor, if is_long { 8 } else { 4 })?;
                self.links = u32_at(&body, 0);
                self.xattrs = if is_long { u32_at(&body, 4) } else { NONE };
                Ok(())
            }
        }
    }

    fn dir(&mut self, metadata: &Metadata<'_>, cursor: &mut Cursor, is_long: bool) -> Result<(), Bad> {
        if is_long {
            let body = metadata.read(cursor, 24)?;
            let (start, offset, len) = (u32_at(&body, 8), u16_at(&body, 18), u64::from(u32_at(&body, 4)));
            self.xattrs = u32_at(&body, 20);
            self.what = What::Dir { start, offset, len };
        } else {
            let body = metadata.read(cursor, 16)?;
            let (start, offset, len) = (u32_at(&body, 0), u16_at(&body, 10), u64::from(u16_at(&body, 8)));
            self.what = What::Dir { start, offset, len };
        }
        Ok(())
    }

    fn file(&mut self, metadata: &Metadata<'_>, cursor: &mut Cursor, is_long: bool) -> Result<(), Bad> {
        if is_long {
            let body = metadata.read(cursor, 40)?;
            let (start, size, fragment, offset) =
                (u64_at(&body, 0), u64_at(&body, 8), u32_at(&body, 28), u32_at(&body, 32));
            (self.links, self.xattrs) = (u32_at(&body, 24), u32_at(&body, 36));
            self.what = What::File { start, size, fragment, offset };
        } else {
            let body = metadata.read(cursor, 16)?;
            let (start, size) = (u64::from(u32_at(&body, 0)), u64::from(u32_at(&body, 12)));
            self.what = What::File { start, size, fragment: u32_at(&body, 4), offset: u32_at(&body, 8) };
        }
        Ok(())
    }

    pub(super) fn inode(&self, uid: u32, gid: u32, xattrs: Vec<Xattr>) -> Inode {
        let size = if let What::File { size, .. } = self.what { size } else { 0 };
        // A 32-bit number of seconds without a sign.
        let mtime = Time { secs: i64::from(self.mtime), nanos: 0 };
        let device = if matches!(self.kind, Kind::Char | Kind::Block) { device_of(self.device) } else { (0, 0) };
        let (kind, mode) = (self.kind, self.mode);
        Inode { kind, mode, uid, gid, mtime, size, device, is_linked: self.links > 1, xattrs }
    }
}
