//! The fields of a tar's header, and pax records: what the reader of layers and the one of archives have in common.
//!
//! ```text
//!        0    100  108 116 124  136   148      156  157  257   263     265   297   329      337      345       500
//! v7     name mode uid gid size mtime checksum type link
//! ustar  name mode uid gid size mtime checksum type link magic version uname gname devmajor devminor prefix
//! GNU    name mode uid gid size mtime checksum type link magic version uname gname devmajor devminor atime ctime ... map
//! ```
//!
//! POSIX.1-2017 (pax, "ustar Interchange Format" and "pax Extended Header") and the GNU tar 1.34 manual, "Basic Tar Format".

/// Bytes of a block: headers are one, contents are padded to a multiple.
pub(crate) const BLOCK: usize = 512;

pub(crate) type Block = [u8; BLOCK];

/// What the fields from 257 on are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    V7,
    Ustar,
    /// As ustar, with a shorter prefix (star, J. Schilling).
    Star,
    Gnu,
}

impl Layout {
    pub(crate) fn of(block: &Block) -> Self {
        match field(block, 257, 8) {
            b"ustar  \0" => Self::Gnu,
            magic if !magic.starts_with(b"ustar\0") => Self::V7,
            _ if field(block, 508, 4) == b"tar\0" => Self::Star,
            _ => Self::Ustar,
        }
    }
}

pub(crate) fn is_zero(block: &Block) -> bool {
    block.iter().all(|byte| *byte == 0)
}

pub(crate) fn field(block: &Block, at: usize, len: usize) -> &[u8] {
    block.get(at..at + len).unwrap_or_default()
}

/// A field's bytes up to its NUL, if it has one.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// What stands before the name, with a slash between. GNU's headers have times there.
pub(crate) fn prefix(block: &Block) -> &[u8] {
    match Layout::of(block) {
        Layout::V7 | Layout::Gnu => &[],
        Layout::Ustar => text(field(block, 345, 155)),
        Layout::Star => text(field(block, 345, 131)),
    }
}

/// Puts the name, with its prefix, into `out`.
pub(crate) fn name_into(block: &Block, out: &mut Vec<u8>) {
    out.clear();
    let prefix = prefix(block);
    if !prefix.is_empty() {
        out.extend_from_slice(prefix);
        out.push(b'/');
    }
    out.extend_from_slice(text(field(block, 0, 100)));
}

/// Sees to it that this is a header: POSIX sums unsigned bytes, old programs summed signed ones.
///
/// # Errors
/// The sum that it should have.
pub(crate) fn check(block: &Block) -> Result<(), u64> {
    let (mut unsigned, mut negative) = (0_u64, 0_u64);
    for byte in block {
        unsigned += u64::from(*byte);
        negative += u64::from(*byte >> 7) << 8;
    }
    for byte in field(block, 148, 8) {
        unsigned = unsigned + u64::from(b' ') - u64::from(*byte);
        negative -= u64::from(*byte >> 7) << 8;
    }
    match octal(field(block, 148, 8)) {
        Some(said) if said == unsigned || said.checked_add(negative) == Some(unsigned) => Ok(()),
        _ => Err(unsigned),
    }
}

/// Octal, or GNU's base 256 where the first bit is set.
pub(crate) fn number(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if *first >= 0x80 => base_256(field),
        _ => octal(field).and_then(|number| i64::try_from(number).ok()),
    }
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
pub(crate) fn base_256(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    let sign = if first & 0x40 == 0 { 0 } else { -0x80 };
    let first = i64::from(first & 0x7f) + sign;
    rest.iter().try_fold(first, |value, byte| value.checked_mul(256)?.checked_add(i64::from(*byte)))
}

/// A pax record: its key and its value.
pub(crate) type Record<'a> = (&'a [u8], &'a [u8]);

/// The records of a pax header, `LENGTH KEY=VALUE\n` each. After the place of something that is none there is nothing more.
pub(crate) fn records(raw: &[u8]) -> impl Iterator<Item = Result<Record<'_>, usize>> {
    let mut rest = raw;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let at = raw.len() - rest.len();
        let Some((record, tail)) = first(rest) else {
            rest = &[];
            return Some(Err(at));
        };
        rest = tail;
        Some(Ok(record))
    })
}

/// The first record, and what follows it.
fn first(raw: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let space = raw.iter().take(20).position(|byte| *byte == b' ')?;
    let len = usize::try_from(decimal(raw.get(..space)?)?).ok()?;
    let (record, rest) = raw.split_at_checked(len)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (record.get(..equals)?, record.get(equals + 1..)?);
    (!key.is_empty() && !key.contains(&0)).then_some(((key, value), rest))
}

/// Nothing but decimal digits, at least one.
pub(crate) fn decimal(digits: &[u8]) -> Option<u64> {
    let add = |value: u64, digit: &u8| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    };
    if digits.is_empty() { None } else { digits.iter().try_fold(0, add) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_records_are_refused_where_they_are() {
        let check = |raw: &[u8]| records(raw).try_for_each(|record| record.map(drop));
        assert!(check(b"").is_ok());
        assert!(check(b"6 a=b\n").is_ok());
        assert!(check(b"5 a=\n").is_ok());
        for record in
            ["6 a=b", "7 a=b\n", "6 a=b\n7 a=b\n", "a=b\n", "5 ab\n", "5 =b\n", "0 \n", " 6 a=b\n", "-6 a=b\n", "\0"]
        {
            let at = if record.starts_with("6 a=b\n") { 6 } else { 0 };
            assert_eq!(check(record.as_bytes()), Err(at), "{record:?}");
        }
        assert!(check(b"99999999999999999999 a=b\n").is_err());
    }

    #[test]
    fn a_value_may_hold_anything() {
        let raw = b"11 a=b=\n\0\xff\n6 c=d\n";
        let records: Vec<_> = records(raw).map(Result::unwrap).collect();
        assert_eq!(records, [(&b"a"[..], &b"b=\n\0\xff"[..]), (b"c", b"d")]);
    }

    #[test]
    fn numbers_are_octal_or_of_base_256() {
        assert_eq!(number(b" 0000644\0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"0000008\0"), None);
        assert_eq!(number(b"9"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 2, 0, 0, 0, 1]), Some(0x2_0000_0001));
        assert_eq!(number(&[0xff; 12]), Some(-1));
    }
}
