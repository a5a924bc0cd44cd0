//! One header block of a tar.
//!
//! ```text
//!        0    100  108 116 124  136   148      156  157  257   263     265   297   329      337      345       500
//! v7     name mode uid gid size mtime checksum type link
//! ustar  name mode uid gid size mtime checksum type link magic version uname gname devmajor devminor prefix
//! GNU    name mode uid gid size mtime checksum type link magic version uname gname devmajor devminor atime ctime ... map
//! ```
//!
//! POSIX.1-2017 (pax, "ustar Interchange Format") and the GNU tar 1.34 manual, "Basic Tar Format". GNU's map of a sparse file: 4 pairs
//! of 12 bytes at 386, whether more follow at 482, the file's size at 483; a block of more has 21 pairs and says at 504 whether another follows.

use crate::index::error::Problem;
use crate::index::error::shown;
use crate::index::toc::EntryType;
use crate::index::{Time, limits};

/// Bytes of a block: headers are one, contents are padded to a multiple.
pub(super) const BLOCK: usize = 512;

pub(super) type Block = [u8; BLOCK];

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

/// What the fields from 257 on are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    V7,
    Ustar,
    /// As ustar, with a shorter prefix (star, J. Schilling).
    Star,
    Gnu,
}

#[derive(Debug)]
pub(super) struct Header<'a>(pub(super) &'a Block);

impl<'a> Header<'a> {
    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// Sees to it that this is a header: POSIX sums unsigned bytes, old programs summed signed ones.
    pub(super) fn check(&self) -> Result<(), Problem> {
        let (mut unsigned, mut negative) = (0_u64, 0_u64);
        for byte in self.0 {
            unsigned += u64::from(*byte);
            negative += u64::from(*byte >> 7) << 8;
        }
        for byte in self.field(148, 8) {
            unsigned = unsigned + u64::from(b' ') - u64::from(*byte);
            negative -= u64::from(*byte >> 7) << 8;
        }
        match octal(self.field(148, 8)) {
            Some(said) if said == unsigned || said.checked_add(negative) == Some(unsigned) => Ok(()),
            _ => Err(Problem::Checksum { said: shown(self.field(148, 8)), sum: unsigned }),
        }
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
        out.clear();
        let prefix = match self.layout() {
            Layout::V7 => &[],
            Layout::Ustar => text(self.field(345, 155)),
            Layout::Star => text(self.field(345, 131)),
            Layout::Gnu => self.no_prefix()?,
        };
        if !prefix.is_empty() {
            out.extend_from_slice(prefix);
            out.push(b'/');
        }
        out.extend_from_slice(text(self.field(0, 100)));
        Ok(())
    }

    /// In GNU's headers two times are where the prefix is in others. Go before 1.8 wrote prefixes there (golang.org/issue/12594): GNU tar
    /// reads such a name as a shorter one, so it is refused.
    fn no_prefix(&self) -> Result<&'a [u8], Problem> {
        for (key, at) in [("atime", 345), ("ctime", 357)] {
            // No text begins like a number of base 256, and that is a time however large it is.
            if !matches!(self.field(at, 1), [0 | 0x80 | 0xff]) {
                self.number(key, at, 12)?;
            }
        }
        Ok(&[])
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
        match self.field(257, 8) {
            b"ustar  \0" => Layout::Gnu,
            magic if !magic.starts_with(b"ustar\0") => Layout::V7,
            _ if self.field(508, 4) == b"tar\0" => Layout::Star,
            _ => Layout::Ustar,
        }
    }

    fn field(&self, at: usize, len: usize) -> &'a [u8] {
        self.0.get(at..at + len).unwrap_or_default()
    }

    fn unsigned(&self, key: &'static str, at: usize, len: usize, limit: u64) -> Result<u64, Problem> {
        let number = self.number(key, at, len)?;
        let value = u64::try_from(number).map_err(|_| Problem::Value { key, found: number.to_string() })?;
        if value <= limit { Ok(value) } else { Err(Problem::Number { key, value, limit }) }
    }

    fn number(&self, key: &'static str, at: usize, len: usize) -> Result<i64, Problem> {
        let field = self.field(at, len);
        let number = match field.first() {
            Some(first) if *first >= 0x80 => base_256(field),
            _ => octal(field).and_then(|number| i64::try_from(number).ok()),
        };
        number.ok_or_else(|| Problem::Value { key, found: shown(field) })
    }
}

/// A field's bytes up to its NUL, if it has one.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits with spaces and NULs around them; none is 0.
fn octal(field: &[u8]) -> Option<u64> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_blank(byte)).unwrap_or(field.len());
    let digits = text(field.get(start..)?).trim_ascii_end();
    digits.iter().try_fold(0_u64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// GNU's two's complement, the first bit set as a mark, the second one the sign.
fn base_256(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    let sign = if first & 0x40 == 0 { 0 } else { -0x80 };
    let first = i64::from(first & 0x7f) + sign;
    rest.iter().try_fold(first, |value, byte| value.checked_mul(256)?.checked_add(i64::from(*byte)))
}
