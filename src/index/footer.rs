//! The last bytes of a blob, which say where its TOC is.
//!
//! ```text
//! gzip family: an empty gzip member (RFC 1952) with an extra field
//!   1f 8b 08 04 | 00 00 00 00 | 00 | ff | XLEN u16 | extra | 01 00 00 ff ff | 00 * 8
//!   stargz (google/crfs, 2019)   47 bytes   extra: %016x "STARGZ"
//!   eStargz                      51 bytes   extra: "SG" u16 22  %016x "STARGZ"
//!   eStargz, external TOC        46 bytes   extra: "SG" u16 17  "STARGZEXTERNALTOC"
//! zstd:chunked: a skippable frame (RFC 8878), u64 little endian
//!   50 2a 4d 18 | u32 payload length | payload
//!   40 bytes   TOC offset, stored length, decoded length, type 1, "GnUlInUx"
//!   56 bytes   the same, and 16 zeros
//!   64 bytes   TOC offset, stored length, decoded length, type 1, tar-split offset, 2 lengths, "GNUlInUx"
//! ```

use crate::blob::ByteRange;

/// Where a blob's TOC is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Footer {
    /// The offset of the gzip member that holds it.
    Stargz {
        toc: u64,
    },
    /// The offset of the gzip member that holds it.
    EStargz {
        toc: u64,
    },
    /// In another image.
    External,
    ZstdChunked(TocPosition),
}

/// Where a zstd:chunked blob has its TOC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TocPosition {
    /// The compressed JSON in the blob.
    pub stored: ByteRange,
    /// Bytes of the JSON.
    pub decoded: u64,
}

impl Footer {
    /// Bytes of the footer in the gzip family, which the TOC ends before.
    pub(crate) const fn len(&self) -> u64 {
        match self {
            Self::Stargz { .. } => 47,
            Self::EStargz { .. } => 51,
            Self::External => 46,
            Self::ZstdChunked(_) => 0,
        }
    }

    /// The footer at the end of `tail`, the last bytes of a blob.
    #[must_use]
    pub fn find(tail: &[u8]) -> Option<Self> {
        let last = |len: usize| tail.len().checked_sub(len).and_then(|start| tail.get(start..));
        last(51)
            .and_then(estargz)
            .or_else(|| last(47).and_then(stargz))
            .or_else(|| last(46).and_then(external))
            .or_else(|| {
                [72, 64, 48].into_iter().find_map(|len| last(len).and_then(zstd_chunked)).map(Self::ZstdChunked)
            })
    }
}

/// The extra field of an empty gzip member.
fn gzip_extra(member: &[u8]) -> Option<&[u8]> {
    let rest = member.strip_prefix(b"\x1f\x8b\x08\x04\0\0\0\0\0\xff")?;
    let (len, rest) = rest.split_first_chunk::<2>()?;
    let (extra, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
    (rest == b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0").then_some(extra)
}

/// The one subfield `SG` of an extra field.
fn subfield(extra: &[u8]) -> Option<&[u8]> {
    let (len, field) = extra.strip_prefix(b"SG")?.split_first_chunk::<2>()?;
    (usize::from(u16::from_le_bytes(*len)) == field.len()).then_some(field)
}

/// `%016xSTARGZ`
fn offset(field: &[u8]) -> Option<u64> {
    let digits = field.strip_suffix(b"STARGZ").filter(|digits| digits.len() == 16)?;
    digits.iter().try_fold(0, |value: u64, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u64::from(digit))
    })
}

fn stargz(member: &[u8]) -> Option<Footer> {
    Some(Footer::Stargz { toc: offset(gzip_extra(member)?)? })
}

fn estargz(member: &[u8]) -> Option<Footer> {
    Some(Footer::EStargz { toc: offset(subfield(gzip_extra(member)?)?)? })
}

fn external(member: &[u8]) -> Option<Footer> {
    (subfield(gzip_extra(member)?)? == b"STARGZEXTERNALTOC").then_some(Footer::External)
}

/// Where a zstd:chunked blob has its tar-split, if its last bytes say so: only the longest of its footers does.
pub(super) fn tar_split(tail: &[u8]) -> Option<TocPosition> {
    let payload =
        skippable(tail.get(tail.len().checked_sub(72)?..)?).filter(|payload| payload.ends_with(b"GNUlInUx"))?;
    let stored = ByteRange::at(word(payload, 4)?, word(payload, 5)?)?;
    (!stored.is_empty()).then_some(TocPosition { stored, decoded: word(payload, 6)? })
}

/// The payload of a skippable frame.
fn skippable(frame: &[u8]) -> Option<&[u8]> {
    let (len, payload) = frame.strip_prefix(b"\x50\x2a\x4d\x18")?.split_first_chunk::<4>()?;
    (u32::from_le_bytes(*len) as usize == payload.len()).then_some(payload)
}

fn word(payload: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*payload.get(at * 8..)?.first_chunk::<8>()?))
}

fn zstd_chunked(frame: &[u8]) -> Option<TocPosition> {
    let payload = skippable(frame)?;
    let word = |at: usize| word(payload, at);
    let signed = match payload.len() {
        40 => payload.ends_with(b"GnUlInUx"),
        56 => payload.get(32..)? == b"GnUlInUx\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        64 => payload.ends_with(b"GNUlInUx"),
        _ => false,
    };
    let stored = ByteRange::at(word(0)?, word(1)?)?;
    (signed && word(3)? == 1).then_some(TocPosition { stored, decoded: word(2)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gzip(extra: &[u8]) -> Vec<u8> {
        let mut member = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff".to_vec();
        member.extend_from_slice(&(extra.len() as u16).to_le_bytes());
        member.extend_from_slice(extra);
        member.extend_from_slice(b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0");
        member
    }

    fn zstd(words: &[u64], magic: &[u8], zeros: usize) -> Vec<u8> {
        let mut payload: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        payload.extend_from_slice(magic);
        payload.extend(std::iter::repeat_n(0, zeros));
        let mut frame = b"\x50\x2a\x4d\x18".to_vec();
        frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        frame.extend_from_slice(&payload);
        frame
    }

    fn all() -> Vec<(Vec<u8>, Footer)> {
        let chunked = Footer::ZstdChunked(TocPosition { stored: ByteRange { start: 100, end: 150 }, decoded: 900 });
        vec![
            (gzip(b"00000000000ef5a7STARGZ"), Footer::Stargz { toc: 0xef5a7 }),
            (gzip(b"SG\x16\x00000000000000ef5aSTARGZ"), Footer::EStargz { toc: 0xef5a }),
            (gzip(b"SG\x11\0STARGZEXTERNALTOC"), Footer::External),
            (zstd(&[100, 50, 900, 1], b"GnUlInUx", 0), chunked),
            (zstd(&[100, 50, 900, 1], b"GnUlInUx", 16), chunked),
            (zstd(&[100, 50, 900, 1, 160, 7, 70], b"GNUlInUx", 0), chunked),
        ]
    }

    #[test]
    fn the_six_footers_are_found_behind_any_bytes() {
        for (bytes, footer) in all() {
            assert_eq!(Footer::find(&bytes), Some(footer));
            assert_eq!(Footer::find(&[&b"before"[..], &bytes].concat()), Some(footer));
            assert_eq!(Footer::find(&[&bytes[..], b"x"].concat()), None);
        }
    }

    #[test]
    fn only_the_longest_footer_says_where_the_tar_split_is() {
        let found: Vec<_> =
            all().into_iter().filter_map(|(bytes, _)| tar_split(&[&b"before"[..], &bytes].concat())).collect();
        assert_eq!(found, [TocPosition { stored: ByteRange { start: 160, end: 167 }, decoded: 70 }]);
        assert_eq!(tar_split(&zstd(&[100, 50, 900, 1, 0, 0, 0], b"GNUlInUx", 0)), None);
        assert_eq!(tar_split(&zstd(&[100, 50, 900, 1, u64::MAX, 7, 70], b"GNUlInUx", 0)), None);
    }

    #[test]
    fn a_footer_with_a_flipped_bit_is_none_or_says_another_place() {
        for (bytes, footer) in all() {
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= 0x80;
                let found = Footer::find(&damaged);
                // The three lengths of the tar-split are of no use here.
                let is_unused = matches!(footer, Footer::ZstdChunked(_)) && bytes.len() == 72 && (40..64).contains(&at);
                assert!(found.is_none() || found != Some(footer) || is_unused, "{footer:?} byte {at}");
                assert_eq!(Footer::find(&bytes[..at]), None);
            }
        }
    }

    #[test]
    fn numbers_are_read_strictly() {
        assert_eq!(Footer::find(&gzip(b"00000000000EF5A7STARGZ")), None);
        assert_eq!(Footer::find(&gzip(b"SG\x16\0 00000000000ef5aSTARGZ")), None);
        assert_eq!(Footer::find(&zstd(&[u64::MAX, 50, 900, 1], b"GnUlInUx", 0)), None);
        assert_eq!(Footer::find(&zstd(&[100, 50, 900, 2], b"GnUlInUx", 0)), None);
        assert_eq!(Footer::find(&zstd(&[100, 50, 900, 1], b"GNUlInUx", 0)), None);
        assert_eq!(Footer::find(b""), None);
    }
}
