//! pax records (POSIX.1-2017, pax, "pax Extended Header"): `LENGTH KEY=VALUE\n`, keys and values as bytes.
//!
//! A record without a value says that nothing is said: the header's own field counts. An xattr's record without a value is an empty
//! xattr, as GNU tar writes and reads it. Unknown keys are passed over, `hdrcharset` among them.

use crate::index::error::shown;
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::index::error::Problem;
use crate::index::xattrs::Xattr;
use crate::index::{Time, limits};
use crate::tar::{self, decimal};

/// The records that crfs has a use for, each a place in [`Fields`].
#[derive(Debug, Clone, Copy)]
pub(super) enum Key {
    Path,
    LinkPath,
    Size,
    Uid,
    Gid,
    Mtime,
    Major,
    Minor,
    SparseMajor,
    SparseMinor,
    SparseName,
    SparseSize,
    SparseRealSize,
    SparseMap,
    SparseBlocks,
}

const KEYS: [(&str, Key); COUNT] = [
    ("path", Key::Path),
    ("linkpath", Key::LinkPath),
    ("size", Key::Size),
    ("uid", Key::Uid),
    ("gid", Key::Gid),
    ("mtime", Key::Mtime),
    ("SCHILY.devmajor", Key::Major),
    ("SCHILY.devminor", Key::Minor),
    ("GNU.sparse.major", Key::SparseMajor),
    ("GNU.sparse.minor", Key::SparseMinor),
    ("GNU.sparse.name", Key::SparseName),
    ("GNU.sparse.size", Key::SparseSize),
    ("GNU.sparse.realsize", Key::SparseRealSize),
    ("GNU.sparse.map", Key::SparseMap),
    ("GNU.sparse.numblocks", Key::SparseBlocks),
];

const COUNT: usize = 15;

/// A sparse map of version 0.0 is spread over as many of these two in turn as there are parts.
const SPARSE_PAIR: [&[u8]; 2] = [b"GNU.sparse.offset", b"GNU.sparse.numbytes"];

const XATTR: &[u8] = b"SCHILY.xattr.";
/// libarchive's spelling of the same: the name is encoded as in a URL, the value in base64.
const LIBARCHIVE_XATTR: &[u8] = b"LIBARCHIVE.xattr.";

/// libarchive leaves the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The beginning of all keys of sparse maps.
const SPARSE: &[u8] = b"GNU.sparse.";

/// A value of each key.
type Fields<T> = [Option<T>; COUNT];

/// What global headers say of all entries that follow.
#[derive(Debug, Default)]
pub(super) struct Globals {
    fields: Fields<Vec<u8>>,
    xattrs: Vec<Xattr>,
    /// Bytes of both, and of what entries were given of them.
    len: usize,
    given: u64,
}

impl Globals {
    /// Takes the records of one more global header: they replace those of the same keys.
    pub(super) fn take(&mut self, raw: &[u8]) -> Result<(), Problem> {
        let mut xattrs = Vec::new();
        let records = Records::of(self, raw, &mut xattrs)?;
        for (key, _) in split(raw).flatten() {
            if [&b"path"[..], b"linkpath", b"size"].contains(&key) || key.starts_with(SPARSE) {
                return Err(Problem::GlobalRecord(shown(key)));
            }
        }
        let fields = records.fields.map(|field| field.map(<[u8]>::to_vec));
        let lengths = fields.iter().flatten().map(Vec::len);
        let len = lengths.chain(xattrs.iter().map(|(name, value)| name.len() + value.len())).sum::<usize>();
        if len > limits::TAR_GLOBALS {
            return Err(Problem::TooMany { what: "bytes of global pax records", limit: limits::TAR_GLOBALS });
        }
        if xattrs.len() > limits::TAR_GLOBAL_XATTRS {
            return Err(Problem::TooMany { what: "global xattrs", limit: limits::TAR_GLOBAL_XATTRS });
        }
        *self = Self { fields, xattrs, len, given: self.given };
        Ok(())
    }

    /// An entry is given what they say.
    pub(super) fn give(&mut self) -> Result<(), Problem> {
        self.given = self.given.saturating_add(self.len as u64);
        let limit = limits::TAR_GLOBALS_GIVEN;
        let what = "bytes that global pax records give to all entries";
        if self.given > limit { Err(Problem::TooMany { what, limit: limit as usize }) } else { Ok(()) }
    }
}

/// What all records together say of one entry, but for its xattrs.
#[derive(Debug)]
pub(super) struct Records<'a> {
    fields: Fields<&'a [u8]>,
    /// The places and lengths, in turn, of a sparse map of version 0.0.
    pub(super) sparse: Vec<u64>,
}

impl<'a> Records<'a> {
    /// What the local header `raw` says (empty where there is none), and for the rest the global ones. Xattrs go to `xattrs`, each once.
    pub(super) fn of(globals: &'a Globals, raw: &'a [u8], xattrs: &mut Vec<Xattr>) -> Result<Self, Problem> {
        let fields = globals.fields.each_ref().map(Option::as_deref);
        xattrs.clone_from(&globals.xattrs);
        let mut records = Self { fields, sparse: Vec::new() };
        let mut from_libarchive = Vec::new();
        for record in split(raw) {
            let (key, value) = record?;
            if let Some(name) = key.strip_prefix(XATTR) {
                xattrs.push((name.to_vec(), value.to_vec()));
            } else if let Some(name) = key.strip_prefix(LIBARCHIVE_XATTR) {
                from_libarchive.push(libarchive_xattr(name, value)?);
            } else if let Some(half) = SPARSE_PAIR.iter().position(|name| *name == key) {
                records.add_sparse(half, value)?;
            } else if let Some((_, key)) = KEYS.iter().find(|(name, _)| name.as_bytes() == key) {
                records.set(*key, value);
            }
        }
        each_once(xattrs, from_libarchive);
        Ok(records)
    }

    pub(super) fn get(&self, key: Key) -> Option<&'a [u8]> {
        self.fields.get(key as usize).copied().flatten()
    }

    /// A record that is a decimal number up to `limit`.
    pub(super) fn number(&self, key: Key, limit: u64) -> Result<Option<u64>, Problem> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let name = KEYS.get(key as usize).map_or("", |(name, _)| name);
        let number = decimal(value).ok_or_else(|| Problem::Value { key: name, found: shown(value) })?;
        if number <= limit { Ok(Some(number)) } else { Err(Problem::Number { key: name, value: number, limit }) }
    }

    pub(super) fn mtime(&self) -> Result<Option<Time>, Problem> {
        let Some(value) = self.get(Key::Mtime) else { return Ok(None) };
        time(value).map(Some).ok_or_else(|| Problem::Value { key: "mtime", found: shown(value) })
    }

    pub(super) fn says_sparse(&self) -> bool {
        !self.sparse.is_empty() || self.fields.iter().skip(Key::SparseMajor as usize).any(Option::is_some)
    }

    fn set(&mut self, key: Key, value: &'a [u8]) {
        if let Some(field) = self.fields.get_mut(key as usize) {
            *field = Some(value).filter(|value| !value.is_empty());
        }
    }

    fn add_sparse(&mut self, half: usize, value: &[u8]) -> Result<(), Problem> {
        if self.sparse.len() % 2 != half {
            return Err(Problem::SparseMap("has a place without a length"));
        }
        self.sparse.push(decimal(value).ok_or(Problem::SparseMap("has something else than numbers"))?);
        Ok(())
    }
}

/// Sees to it that these are records.
pub(super) fn check(raw: &[u8]) -> Result<(), Problem> {
    split(raw).try_for_each(|record| record.map(drop))
}

/// The records of a header: key and value of each.
fn split(raw: &[u8]) -> impl Iterator<Item = Result<tar::Record<'_>, Problem>> {
    tar::records(raw).map(|record| record.map_err(|at| Problem::PaxRecord { at }))
}

/// Seconds with a fraction, perhaps negative. What a nanosecond cannot hold is rounded down; what the kernel cannot hold is
/// the first or last time that it can.
fn time(text: &[u8]) -> Option<Time> {
    let (is_negative, text) = text.strip_prefix(b"-").map_or((false, text), |text| (true, text));
    let dot = text.iter().position(|byte| *byte == b'.').unwrap_or(text.len());
    let (whole, fraction) = (text.get(..dot)?, text.get(dot + 1..).unwrap_or_default());
    if whole.is_empty() || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
        return None;
    }
    let Some(whole) = decimal(whole).and_then(|whole| i64::try_from(whole).ok()) else {
        return Some(Time::nearest(!is_negative));
    };
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanos = digits.fold(0, |nanos, digit| nanos * 10 + u32::from(digit - b'0'));
    let is_cut = fraction.iter().skip(9).any(|digit| *digit != b'0');
    Some(match (is_negative, nanos + u32::from(is_negative && is_cut)) {
        (false, nanos) => Time { secs: whole, nanos },
        (true, 0) => Time { secs: -whole, nanos: 0 },
        (true, nanos) => Time { secs: (-whole).saturating_sub(1), nanos: 1_000_000_000 - nanos },
    })
}

fn libarchive_xattr(name: &[u8], value: &[u8]) -> Result<Xattr, Problem> {
    let refused = |what| Problem::Xattr { name: shown(name), what };
    let value = BASE64.decode(value).map_err(|_| refused("its value is not base64"))?;
    Ok((url_decoded(name).ok_or_else(|| refused("its name is not encoded as in a URL"))?, value))
}

fn url_decoded(name: &[u8]) -> Option<Vec<u8>> {
    let hex = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        if *byte != b'%' {
            decoded.push(*byte);
            continue;
        }
        let ([high, low], tail) = rest.split_first_chunk::<2>()?;
        decoded.push(hex(*high)? << 4 | hex(*low)?);
        rest = tail;
    }
    Some(decoded)
}

/// Keeps one xattr of each name, the last; of those that libarchive spells in its own way, only what has no other spelling.
fn each_once(xattrs: &mut Vec<Xattr>, mut from_libarchive: Vec<Xattr>) {
    if !from_libarchive.is_empty() {
        from_libarchive.append(xattrs);
        *xattrs = from_libarchive;
    }
    if xattrs.len() < 2 {
        return;
    }
    xattrs.sort_by(|a, b| a.0.cmp(&b.0));
    xattrs.dedup_by(|later, kept| {
        let is_same = later.0 == kept.0;
        if is_same {
            std::mem::swap(&mut later.1, &mut kept.1);
        }
        is_same
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Option<(i64, u32)> {
        time(text.as_bytes()).map(|time| (time.secs, time.nanos))
    }

    #[test]
    fn times_before_1970_count_up_from_the_second_below() {
        assert_eq!(at("-0.25"), Some((-1, 750_000_000)));
        assert_eq!(at("-1.5"), Some((-2, 500_000_000)));
        assert_eq!(at("-7"), Some((-7, 0)));
        assert_eq!(at("-0"), Some((0, 0)));
        assert_eq!(at("0.5"), Some((0, 500_000_000)));
        assert_eq!(at("1600000000.000000001"), Some((1_600_000_000, 1)));
    }

    #[test]
    fn what_is_finer_than_a_nanosecond_is_rounded_down() {
        assert_eq!(at("1.9999999999"), Some((1, 999_999_999)));
        assert_eq!(at("-1.9999999991"), Some((-2, 0)));
        assert_eq!(at("-1.9999999990"), Some((-2, 1)));
        assert_eq!(at("-0.0000000001"), Some((-1, 999_999_999)));
    }

    #[test]
    fn what_the_kernel_cannot_hold_is_the_nearest_that_it_can() {
        let digits = "9".repeat(300);
        assert_eq!(at("9223372036854775807.25"), Some((i64::MAX, 250_000_000)));
        for text in ["9223372036854775808", &digits, &format!("{digits}.5")] {
            assert_eq!(at(text), Some((i64::MAX, 999_999_999)), "{text}");
            assert_eq!(at(&format!("-{text}")), Some((i64::MIN, 0)), "-{text}");
        }
        assert_eq!(at("-9223372036854775807.5"), Some((i64::MIN, 500_000_000)));
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in ["", "-", ".5", "1.5e3", "+1", "1,5", " 1", "1.-5", "9223372036854775808x", "--1", "nan"] {
            assert_eq!(at(text), None, "{text}");
        }
        assert_eq!(at("1."), Some((1, 0)));
    }

    #[test]
    fn libarchive_encodes_names_and_values() {
        let xattr = libarchive_xattr(b"user.%00%fF%3d", b"aGk").unwrap();
        assert_eq!(xattr, (b"user.\0\xff=".to_vec(), b"hi".to_vec()));
        assert!(libarchive_xattr(b"user.%4", b"").is_err());
        assert!(libarchive_xattr(b"user.%zz", b"").is_err());
        assert!(libarchive_xattr(b"user.a", b"!").is_err());
    }
}
