//! Chunks: parts of a blob that are verified by themselves before anything in them is used, and what image they come to. The places of units
//! are those of that image, and not of the blob.
//!
//! ```text
//! chunk   64   u64 start, u64 end in the image; u64 start, u64 end in the blob; 32 bytes digest
//! ```

use sha2::{Digest as _, Sha256};

use super::record::{Record, put_range, range_at};
use crate::blob::{ByteRange, Digest};

/// Bytes of the longest salt.
pub(crate) const LONGEST_SALT: usize = 64;

/// How a chunk is stored, and what its digest is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packing {
    /// As it is; the digest is of its bytes.
    Stored,
    /// As zstd frames; the digest is of these.
    Zstd,
    /// The same without digests: what comes of them is verified by the checks that it fills.
    Frames,
    /// As it is, in blocks of 2^`bits` bytes. The digest is of the salt and of a block; where chunks are of `several` blocks, of the salt and of
    /// the block that their digests fill (dm-verity, format 1).
    Verity { bits: u8, several: bool, salt: Vec<u8> },
}

impl Packing {
    /// Whether bytes as they are stored have a chunk's digest.
    #[must_use]
    pub fn verify(&self, chunk: &Chunk, bytes: &[u8]) -> bool {
        let digest = chunk.digest;
        match self {
            Self::Frames => true,
            Self::Stored | Self::Zstd => Digest::of(bytes) == digest,
            Self::Verity { bits, several: false, salt } => of_block(bytes, 1 << bits, salt) == digest,
            Self::Verity { bits, several: true, salt } => of_several(bytes, 1 << bits, salt) == digest,
        }
    }

    /// Whether chunks are zstd frames.
    #[must_use]
    pub const fn is_zstd(&self) -> bool {
        matches!(self, Self::Zstd | Self::Frames)
    }

    /// Whether chunks are verified by themselves.
    #[must_use]
    pub const fn has_digests(&self) -> bool {
        !matches!(self, Self::Frames)
    }
}

/// The digest of the block that the digests of several fill.
fn of_several(bytes: &[u8], block: usize, salt: &[u8]) -> Digest {
    let digests: Vec<u8> =
        bytes.chunks(block).flat_map(|bytes| of_block(bytes, block, salt).as_bytes().to_vec()).collect();
    of_block(&digests, block, salt)
}

/// The digest of a salt and of a block that is filled up with zeros.
pub(crate) fn of_block(bytes: &[u8], block: usize, salt: &[u8]) -> Digest {
    let mut hash = Sha256::new().chain_update(salt).chain_update(bytes);
    hash.update(vec![0; block.saturating_sub(bytes.len())]);
    Digest::from_bytes(hash.finalize().into())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    pub image: ByteRange,
    pub blob: ByteRange,
    pub digest: Digest,
}

impl Record for Chunk {
    const LEN: usize = 64;
    const KEY: usize = 0;

    fn put(&self, out: &mut Vec<u8>) {
        put_range(self.image, out);
        put_range(self.blob, out);
        out.extend_from_slice(self.digest.as_bytes());
    }

    fn get(bytes: &[u8]) -> Option<Self> {
        let digest = Digest::from_bytes(*bytes.get(32..)?.first_chunk()?);
        Some(Self { image: range_at(bytes, 0)?, blob: range_at(bytes, 16)?, digest })
    }
}

/// All chunks of an image, in its order and in that of the blob.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    /// `None`: there are none, and the places of units are those of the blob.
    pub(crate) packing: Option<Packing>,
    pub(super) records: Vec<u8>,
}

impl Chunks {
    pub(crate) const fn new(packing: Packing) -> Self {
        Self { packing: Some(packing), records: Vec::new() }
    }

    /// Adds the next one; `None` where it does not lie directly behind the last in the image, or before its end in the blob.
    pub(crate) fn add(&mut self, chunk: &Chunk) -> Option<()> {
        let last = self.get(self.len().wrapping_sub(1));
        let (image, blob) = last.map_or((0, 0), |last| (last.image.end, last.blob.end));
        let is_next = chunk.image.start == image && chunk.blob.start >= blob;
        let fits = is_next && !chunk.image.is_empty() && !chunk.blob.is_empty();
        fits.then(|| chunk.put(&mut self.records))
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len() / Chunk::LEN
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.records.len() as u64
    }

    pub(crate) fn get(&self, number: usize) -> Option<Chunk> {
        let at = number.checked_mul(Chunk::LEN)?;
        Chunk::get(self.records.get(at..at.checked_add(Chunk::LEN)?)?)
    }

    /// Bytes of the image.
    pub(crate) fn image_len(&self) -> u64 {
        self.get(self.len().wrapping_sub(1)).map_or(0, |last| last.image.end)
    }

    /// The number of the chunk that has a byte of the image.
    pub(crate) fn find(&self, at: u64) -> Option<usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            if self.get(middle)?.image.end <= at { low = middle + 1 } else { high = middle }
        }
        self.get(low).is_some_and(|chunk| chunk.image.start <= at).then_some(low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange { start, end }
    }

    #[test]
    fn chunks_follow_each_other_and_are_found_by_place() {
        let mut chunks = Chunks::new(Packing::Zstd);
        let chunk = |image, blob| Chunk { image, blob, digest: Digest::of(b"x") };
        assert!(chunks.add(&chunk(range(0, 10), range(5, 7))).is_some());
        assert!(chunks.add(&chunk(range(10, 30), range(7, 9))).is_some());
        for (image, blob) in
            [(range(31, 40), range(9, 10)), (range(30, 40), range(8, 10)), (range(30, 30), range(9, 9))]
        {
            assert!(chunks.add(&chunk(image, blob)).is_none());
        }
        assert_eq!((chunks.len(), chunks.image_len()), (2, 30));
        assert_eq!([0, 9, 10, 29, 30].map(|at| chunks.find(at)), [Some(0), Some(0), Some(1), Some(1), None]);
        assert_eq!(Chunks::default().find(0), None);
        let empty = Chunk { image: range(0, 1), blob: range(0, 1), digest: Digest::from_bytes([0; 32]) };
        assert!(
            !Packing::Stored.verify(&empty, b"x") && !Packing::Zstd.verify(&empty, b"x"),
            "a digest of zeros is one"
        );
    }

    #[test]
    fn a_chunk_of_verity_is_a_block_or_the_digests_of_several() {
        let packing = |several| Packing::Verity { bits: 12, several, salt: vec![1, 2] };
        let bytes = vec![7; 4096 * 2 + 5];
        let digests: Vec<u8> =
            bytes.chunks(4096).flat_map(|block| of_block(block, 4096, &[1, 2]).as_bytes().to_vec()).collect();
        let digest = of_block(&digests, 4096, &[1, 2]);
        let whole = range(0, bytes.len() as u64);
        assert!(packing(true).verify(&Chunk { image: whole, blob: whole, digest }, &bytes));
        assert!(!packing(true).verify(&Chunk { image: whole, blob: whole, digest }, &bytes[1..]));
        let first = Digest::of(&[&[1, 2][..], &[7; 4096]].concat());
        assert!(
            packing(false)
                .verify(&Chunk { image: range(0, 4096), blob: range(0, 4096), digest: first }, &bytes[..4096])
        );
    }
}
