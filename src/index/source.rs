//! The few reads that opening a layer takes.

use std::io::{BufRead, Read};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::error::{Error, Problem, Rejected};
use super::{Descriptor, limits};
use crate::blob::{ByteRange, ByteSource, Digest};
use crate::budget::Charge;

/// A blob of which a part was read.
pub(super) struct Blob<'a> {
    pub(super) layer: &'a Descriptor,
    source: &'a dyn ByteSource,
    start: u64,
    bytes: Bytes,
}

/// A tail read where the position of the TOC is not known: the TOC is usually in it, and most of the blob is not.
const TAIL_SHARE: u64 = 32;
const TAIL_LEAST: u64 = 16 << 10;
const TAIL_MOST: u64 = 1 << 20;

impl<'a> Blob<'a> {
    /// Reads the whole blob, and sees to it that it is the one that the manifest means.
    pub(super) fn whole(layer: &'a Descriptor, source: &'a dyn ByteSource) -> Result<Self, Error> {
        let blob = Self::read_from(layer, source, ByteRange { start: 0, end: layer.size })?;
        match Digest::of(&blob.bytes) {
            got if got == layer.digest => Ok(blob),
            got => Err(Error::BlobDigest { layer: layer.digest, got }),
        }
    }

    /// Bytes that are read of its end: as much as a TOC may take where the manifest says that there is one, else no more than tells that.
    pub(super) fn tail_len(layer: &Descriptor, has_toc: bool) -> u64 {
        let share = if has_toc { layer.size / TAIL_SHARE } else { 0 };
        share.clamp(TAIL_LEAST, TAIL_MOST).min(layer.size)
    }

    /// Reads so much of the end of the blob.
    pub(super) fn tail(layer: &'a Descriptor, source: &'a dyn ByteSource, len: u64) -> Result<Self, Error> {
        Self::read_from(layer, source, ByteRange { start: layer.size - len, end: layer.size })
    }

    /// Reads nothing yet.
    pub(super) fn nothing(layer: &'a Descriptor, source: &'a dyn ByteSource) -> Self {
        Self { layer, source, start: layer.size, bytes: Bytes::new() }
    }

    fn read_from(layer: &'a Descriptor, source: &'a dyn ByteSource, range: ByteRange) -> Result<Self, Error> {
        let bytes = fetch(layer, source, range)?;
        Ok(Self { layer, source, start: range.start, bytes })
    }

    /// What was read.
    pub(super) const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The whole blob, where what was read happens to be all of it and to have its digest.
    pub(super) fn if_whole(&self) -> Option<&Bytes> {
        (self.start == 0 && Digest::of(&self.bytes) == self.layer.digest).then_some(&self.bytes)
    }

    /// A range that the blob says its TOC has; only what is missing of it is read.
    pub(super) fn toc(&self, range: ByteRange, charge: &mut Charge) -> Result<Stored, Error> {
        let refused = |problem: Problem| Rejected::from(problem).at(self.layer.digest);
        if range.is_empty() || range.end > self.layer.size {
            return Err(refused(Problem::Position(range)));
        }
        if range.len() > limits::TOC_COMPRESSED {
            return Err(refused(Problem::TocTooLarge { len: range.len(), limit: limits::TOC_COMPRESSED }));
        }
        let covered = charge.cover(range.len(), 0);
        covered.map_err(|source| Error::Memory { layer: self.layer.digest, what: "its table of contents", source })?;
        let known = range.intersection(&ByteRange { start: self.start, end: self.start + self.bytes.len() as u64 });
        if known.end < range.end || known.is_empty() {
            return Ok(Stored([fetch(self.layer, self.source, range)?, Bytes::new()]));
        }
        let missing = ByteRange { start: range.start, end: known.start };
        let head = if missing.is_empty() { Bytes::new() } else { fetch(self.layer, self.source, missing)? };
        let known = self.bytes.slice((known.start - self.start) as usize..(known.end - self.start) as usize);
        Ok(Stored([head, known]))
    }
}

fn fetch(layer: &Descriptor, source: &dyn ByteSource, range: ByteRange) -> Result<Bytes, Error> {
    let failed = |source| Error::Read { layer: layer.digest, range, source };
    let bytes = source.read_at(range).map_err(failed)?;
    if bytes.len() as u64 == range.len() { Ok(bytes) } else { Err(failed("fewer bytes than asked for".into())) }
}

/// Bytes that tell what a TOC is compressed with.
const HEAD: u64 = 32;

/// A TOC as it is stored, in up to two parts.
pub(super) struct Stored(pub(super) [Bytes; 2]);

impl Stored {
    pub(super) fn len(&self) -> u64 {
        self.0.iter().map(|part| part.len() as u64).sum()
    }

    /// Its first bytes.
    pub(super) fn head(&self) -> Vec<u8> {
        let mut head = Vec::new();
        // Memory fails no read.
        let _read = self.reader().take(HEAD).read_to_end(&mut head);
        head
    }

    pub(super) fn digest(&self) -> Digest {
        let hasher = self.0.iter().fold(Sha256::new(), |hasher, part| hasher.chain_update(part));
        Digest::from_bytes(hasher.finalize().into())
    }

    pub(super) fn reader(&self) -> impl BufRead {
        let [head, tail] = &self.0;
        head.as_ref().chain(tail.as_ref())
    }
}
