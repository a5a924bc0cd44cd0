//! The words every part of crfs shares: digests, byte ranges, "read bytes at" and the documents a registry is remembered by.
//!
//! Nothing here knows a format or a network; everything may import it.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// A sha256 digest, written `sha256:` and 64 lower-case hexadecimal digits (OCI image specification 1.1, "Digests").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Why a text is not a digest that crfs can check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a sha256 digest (sha256: and 64 hexadecimal digits)")]
pub struct DigestError {
    text: String,
}

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hexadecimal digits alone, as blob files are named in an OCI layout.
    #[must_use]
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let error = || DigestError { text: text.chars().take(160).collect() };
        let hex = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64).ok_or_else(error)?;
        let mut bytes = [0u8; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
            let digits = pair.iter().try_fold(0u8, |value, digit| match digit {
                b'0'..=b'9' => Some(value << 4 | (digit - b'0')),
                b'a'..=b'f' => Some(value << 4 | (digit - b'a' + 10)),
                _ => None,
            });
            *byte = digits.ok_or_else(error)?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A half-open range of bytes: `start` is in it, `end` is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    pub start: u64,
    pub end: u64,
}

impl ByteRange {
    /// `None` where the end would lie before the start.
    #[must_use]
    pub const fn new(start: u64, end: u64) -> Option<Self> {
        if start <= end { Some(Self { start, end }) } else { None }
    }

    /// `None` where the end does not fit into 64 bits.
    #[must_use]
    pub const fn at(start: u64, len: u64) -> Option<Self> {
        match start.checked_add(len) {
            Some(end) => Some(Self { start, end }),
            None => None,
        }
    }

    #[must_use]
    pub const fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.end <= self.start
    }

    /// The part that both have; empty (at this range's start) where they have none.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        if start < end { Self { start, end } } else { Self { start: self.start, end: self.start } }
    }

    #[must_use]
    pub const fn contains(&self, other: &Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {}..{}", self.start, self.end)
    }
}

/// An error of whatever is behind a [`ByteSource`]; its text names the blob.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// "Read bytes at": all that a format knows of where its bytes come from.
///
/// Blocking, so never to be called on an async runtime's own threads.
pub trait ByteSource: Send + Sync {
    /// The number of bytes there are.
    fn size(&self) -> u64;

    /// Exactly the bytes of `range`, never fewer.
    ///
    /// # Errors
    /// Where `range` passes the end, or the bytes cannot be had.
    fn read_at(&self, range: ByteRange) -> Result<Bytes, SourceError>;

    /// Where the bytes are, where that is not the file that they are of.
    fn place(&self) -> Option<&Path> {
        None
    }
}

impl ByteSource for Bytes {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, range: ByteRange) -> Result<Bytes, SourceError> {
        let slice = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        match slice {
            Some((start, end)) if start <= end && end <= self.len() => Ok(self.slice(start..end)),
            _ => Err(format!("{range} of {} bytes", self.len()).into()),
        }
    }
}

/// The first `size` bytes of a file.
pub(crate) struct FileSource {
    file: File,
    size: u64,
}

impl FileSource {
    pub(crate) const fn new(file: File, size: u64) -> Self {
        Self { file, size }
    }

    pub(crate) fn into_file(self) -> File {
        self.file
    }
}

impl ByteSource for FileSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, range: ByteRange) -> Result<Bytes, SourceError> {
        read_file(&self.file, self.size, range)
    }
}

/// Exactly the bytes of `range` of a file that has `size` of them.
pub(crate) fn read_file(file: &File, size: u64, range: ByteRange) -> Result<Bytes, SourceError> {
    if range.end > size {
        return Err(format!("{range} of {size} bytes").into());
    }
    let mut bytes = BytesMut::zeroed(usize::try_from(range.len())?);
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes.freeze())
}

/// What outlives a process of what registries said: documents by digest, and which digest a name had last.
///
/// Nothing here fails: what cannot be kept is asked for again.
pub trait Documents: Send + Sync {
    /// The document of that digest, checked against it.
    fn get(&self, digest: &Digest) -> Option<Bytes>;

    fn put(&self, digest: &Digest, document: &[u8]);

    /// The digest that `name` (a canonical reference, with platform) was last resolved to.
    fn resolved(&self, name: &str) -> Option<Digest>;

    fn remember(&self, name: &str, digest: &Digest);

    /// The directory in which they are, where they are on disk.
    fn dir(&self) -> Option<PathBuf> {
        None
    }

    /// Room on disk for what can only be read in order; it is given back when nobody has it any more.
    ///
    /// # Errors
    /// Where there is none.
    fn scratch(&self) -> io::Result<Box<dyn Scratch>> {
        Err(io::ErrorKind::StorageFull.into())
    }
}

/// A file without a name that is being written.
pub trait Scratch: Send {
    /// Adds bytes at the end.
    ///
    /// # Errors
    /// Where the disk fails, or there is no room for them.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// All that was written.
    fn finish(self: Box<Self>) -> Arc<dyn ByteSource>;
}

/// How a file or a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Gzip,
    Zstd,
    /// In a way that crfs does not read: its name, and what unpacks it.
    Other(&'static str, &'static str),
}

impl Packing {
    /// So many bytes tell.
    pub(crate) const LONGEST_MAGIC: u64 = 6;

    /// By its first bytes, whatever its name or type says.
    pub(crate) const fn of(head: &[u8]) -> Option<Self> {
        match head {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            // A frame, or a skippable one (RFC 8878, section 3.1).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Other("xz", "xz -dk")),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31 | 0x17, ..] => Some(Self::Other("bzip2", "bzip2 -dk")),
            [0x04, 0x22, 0x4d, 0x18, ..] => Some(Self::Other("lz4", "lz4 -dk")),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_round_trip_and_refuse_what_they_cannot_check() {
        let digest = Digest::of(b"abc");
        let text = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse::<Digest>().unwrap(), digest);
        for wrong in ["", "sha256:", "sha512:ba78", &text.to_uppercase(), &text[..70], &format!("{text}0")] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn ranges_never_overflow() {
        assert_eq!(ByteRange::at(u64::MAX, 1), None);
        assert_eq!(ByteRange::new(2, 1), None);
        let range = ByteRange { start: 10, end: 20 };
        assert_eq!(range.intersection(&ByteRange { start: 15, end: 30 }), ByteRange { start: 15, end: 20 });
        assert!(range.intersection(&ByteRange { start: 20, end: 30 }).is_empty());
    }

    #[test]
    fn bytes_refuse_to_read_past_their_end() {
        let bytes = Bytes::from_static(b"0123456789");
        assert_eq!(bytes.read_at(ByteRange { start: 2, end: 4 }).unwrap(), "23");
        assert!(bytes.read_at(ByteRange { start: 2, end: 11 }).is_err());
    }

    #[test]
    fn tars_are_not_taken_for_compressed() {
        for head in [&b""[..], b"BZhelp", b"index.json", b"\x1f", b"./", b"\x28\xb5", b"file\0\0"] {
            assert_eq!(Packing::of(head), None);
        }
        assert_eq!(Packing::of(b"\x1f\x8b\x08"), Some(Packing::Gzip));
        assert_eq!(Packing::of(b"\x5f\x2a\x4d\x18"), Some(Packing::Zstd));
    }
}
