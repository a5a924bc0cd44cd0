//! One header block of a tar (crate::tar has its fields).
//!
//! GNU's map of a sparse file: 4 pairs of 12 bytes at 386, whether more follow at 482, the file's size at 483; a block of more has 21 pairs and says
//! at 504 whether another follows.

use crate::index::error::Problem;
use crate::index::error::shown;
use crate::index::toc::EntryType;
use crate::index::{Time, limits};
use crate::tar::{self, Block, Layout, base_256, text};

/// What a header is for, by its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// pax records for the next entry.
    Local,
    /// pax records for all entries that follow.
    Global,
    /// The next entry's name is the contents (GNU).
    LongName,
    /// The next entry's link target is the contents (GNU).
    LongLink,
    /// The volume's name (GNU): it describes nothing in the tree.
    Label,
    Entry(EntryType),
    /// A file with holes (GNU).
    Sparse,
    /// A directory that lists in its contents what it held (GNU, incremental backups).
    DumpDirectory,
}

#[derive(Debug)]
pub(super) struct Header<'a>(pub(super) &'a Block);

impl<'a> Header<'a> {
    /// Sees to it that this is a header.
    pub(super) fn check(&self) -> Result<(), Problem> {
        tar::check(self.0).map_err(|sum| Problem::Checksum { said: shown(self.field(148, 8)), sum })
    }

    pub(super) fn purpose(&self) -> Result<Purpose, Problem> {
        let kind = self.field(156, 1).first().copied().unwrap_or_default();
        Ok(match kind {
            // X is what Solaris called x.
            b'x' | b'X' => Purpose::Local,
            b'g' => Purpose::Global,
            b'L' => Purpose::LongName,
            b'K' => Purpose::LongLink,
            b'V' => Purpose::Label,
            b'0' | 0 | b'7' => Purpose::Entry(EntryType::File),
            b'1' => Purpose::Entry(EntryType::HardLink),
            b'2' => Purpose::Entry(EntryType::Symlink),
            b'3' => Purpose::Entry(EntryType::Char),
            b'4' => Purpose::Entry(EntryType::Block),
            b'5' => Purpose::Entry(EntryType::Dir),
            b'6' => Purpose::Entry(EntryType::Fifo),
            // star has another map under the same type.
            b'S' if self.layout() == Layout::Gnu => Purpose::Sparse,
            b'D' => Purpose::DumpDirectory,
            other => return Err(Problem::Type(char::from(other).to_string())),
        })
    }

    /// Puts the name, with its prefix, into `out`.
    pub(super) fn name_into(&self, out: &mut Vec<u8>) -> Result<(), Problem> {
        if self.layout() == Layout::Gnu {
            self.check_times()?;
        }
        tar::name_into(self.0, out);
        Ok(())
    }

    /// In GNU's headers two times are where the prefix is in others. Go before 1.8 wrote prefixes there (golang.org/issue/12594): GNU tar
    /// reads such a name as a shorter one, so it is refused.
    fn check_times(&self) -> Result<(), Problem> {
        for (key, at) in [("atime", 345), ("ctime", 357)] {
            // No text begins like a number of base 256, and that is a time however large it is.
            if !matches!(self.field(at, 1), [0 | 0x80 | 0xff]) {
                self.number(key, at, 12)?;
            }
        }
        Ok(())
    }

    pub(super) fn link(&self) -> &'a [u8] {
        text(self.field(157, 100))
    }

    pub(super) fn size(&self) -> Result<u64, Problem> {
        self.unsigned("size", 124, 12, limits::OFFSET)
    }

    pub(super) fn mode(&self) -> Result<u16, Problem> {
        // Type bits may be above the permissions.
        Ok((self.unsigned("mode", 100, 8, limits::OFFSET)? & 0o7777) as u16)
    }

    pub(super) fn uid(&self) -> Result<u64, Problem> {
        self.unsigned("uid", 108, 8, u32::MAX.into())
    }

    pub(super) fn gid(&self) -> Result<u64, Problem> {
        self.unsigned("gid", 116, 8, u32::MAX.into())
    }

    /// Seconds since 1970. What has more bits than the kernel's is the first or last time that the kernel can hold.
    pub(super) fn mtime(&self) -> Result<Time, Problem> {
        let field = self.field(136, 12);
        match field.first() {
            Some(first @ 0x80..) if base_256(field).is_none() => Ok(Time::nearest(first & 0x40 == 0)),
            _ => self.number("mtime", 136, 12).map(|secs| Time { secs, nanos: 0 }),
        }
    }

    /// Device numbers; v7 had none.
    pub(super) fn major(&self) -> Result<u64, Problem> {
        if self.layout() == Layout::V7 { Ok(0) } else { self.unsigned("devmajor", 329, 8, u32::MAX.into()) }
    }

    pub(super) fn minor(&self) -> Result<u64, Problem> {
        if self.layout() == Layout::V7 { Ok(0) } else { self.unsigned("devminor", 337, 8, u32::MAX.into()) }
    }

    /// The size of a sparse file with its holes.
    pub(super) fn real_size(&self) -> Result<u64, Problem> {
        self.unsigned("realsize", 483, 12, limits::OFFSET)
    }

    /// The `number`th pair (place, length) of a sparse file's map, in a header (4) or a block of more of them (21).
    pub(super) fn sparse_pair(&self, first: usize, number: usize) -> Result<Option<(u64, u64)>, Problem> {
        let at = first + number * 24;
        if self.field(at, 1) == [0] || self.field(at + 12, 1) == [0] {
            return Ok(None);
        }
        let place = self.unsigned("offset", at, 12, limits::OFFSET)?;
        let len = self.unsigned("numbytes", at + 12, 12, limits::OFFSET)?;
        Ok(Some((place, len)))
    }

    pub(super) fn flag(&self, at: usize) -> bool {
        self.field(at, 1) != [0]
    }

    fn layout(&self) -> Layout {
        Layout::of(self.0)
    }

    fn field(&self, at: usize, len: usize) -> &'a [u8] {
        tar::field(self.0, at, len)
    }

    fn unsigned(&self, key: &'static str, at: usize, len: usize, limit: u64) -> Result<u64, Problem> {
        let number = self.number(key, at, len)?;
        let value = u64::try_from(number).map_err(|_| Problem::Value { key, found: number.to_string() })?;
        if value <= limit { Ok(value) } else { Err(Problem::Number { key, value, limit }) }
    }

    fn number(&self, key: &'static str, at: usize, len: usize) -> Result<i64, Problem> {
        let field = self.field(at, len);
        tar::number(field).ok_or_else(|| Problem::Value { key, found: shown(field) })
    }
}
