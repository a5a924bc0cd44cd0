//! What comes of a blob in chunks: each is verified as it is stored, then unpacked, and only then anything in it is used.
//!
//! ```text
//! blob    | chunk 3 (zstd) | chunk 4 (zstd) | ...     comes
//! image   |    chunk 3    |    chunk 4    | ...       goes on, to units whose places are those of the image
//! ```

use std::io::{self, Cursor, Read};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::Layer;
use super::coming::Coming;
use crate::blob::ByteRange;
use crate::index::{Chunk, MAX_UNIT_WINDOW};
use crate::metrics::METRICS;
use crate::sys::frames::{Frames, Unpacked};

/// Bytes that are unpacked at a time.
const PART: usize = 64 << 10;

/// Bytes of a chunk that wait in memory to be verified. What has larger ones (an image in one zstd frame) is kept while it is mounted.
const LARGEST: u64 = 64 << 20;

/// A chunk that is being unpacked, and what of it did not come out yet.
struct Open {
    unpacked: Unpacked<Cursor<Bytes>, Frames>,
    left: u64,
}

pub(super) struct Chunked {
    layer: Arc<Layer>,
    /// The next chunk by number.
    next: u32,
    /// Bytes of the blob that came and were not used.
    stored: Bytes,
    /// Where they are in it.
    at: u64,
    open: Option<Open>,
    is_wrong: bool,
}

/// What a run in the image takes of the blob, and where that begins in the image.
pub(super) struct Place {
    pub(super) blob: ByteRange,
    pub(super) image: u64,
}

impl Layer {
    /// Where the bytes of the places of some units are in the blob: those of all chunks that they touch.
    pub(super) fn place(&self, units: ByteRange) -> Result<Place, super::Error> {
        if self.index.packing().is_none() {
            return Ok(Place { blob: units, image: units.start });
        }
        let chunks = self.index.chunks_over(units)?;
        let last = chunks.end.checked_sub(1).filter(|last| *last >= chunks.start);
        let last = last.ok_or(super::Error::NotInIndex { layer: *self.digest(), range: units })?;
        let (first, last) = (self.index.chunk(chunks.start)?, self.index.chunk(last)?);
        Ok(Place { blob: ByteRange { start: first.blob.start, end: last.blob.end }, image: first.image.start })
    }
}

impl Chunked {
    /// Of a layer with chunks, from where in the image and in the blob bytes come.
    pub(super) fn new(layer: &Arc<Layer>, image: u64, blob: u64) -> Result<Self, super::Error> {
        let next = layer.index.chunks_over(ByteRange { start: image, end: image.saturating_add(1) })?.start;
        Ok(Self { layer: Arc::clone(layer), next, stored: Bytes::new(), at: blob, open: None, is_wrong: false })
    }

    /// The next bytes of the image; `None`: no more come.
    pub(super) fn next(&mut self, parts: &mut Coming) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(open) = &mut self.open {
                if let Some(part) = open.next()? {
                    return Ok(Some(part));
                }
                self.open = None;
            }
            if self.is_wrong || self.next >= self.layer.index.chunks() {
                return Ok(None);
            }
            let chunk = self.layer.index.chunk(self.next).map_err(io::Error::other)?;
            let Some(stored) = self.chunk(parts, chunk.blob)? else { return Ok(None) };
            if let Some(bytes) = self.take(parts, &chunk, stored)? {
                return Ok(Some(bytes));
            }
        }
    }

    /// A chunk all of which came: it is verified, and unpacked from here on where it is packed.
    fn take(&mut self, parts: &mut Coming, chunk: &Chunk, stored: Bytes) -> io::Result<Option<Bytes>> {
        let Some(packing) = self.layer.index.packing() else { return Err(io::ErrorKind::InvalidInput.into()) };
        self.next = self.next.saturating_add(1);
        if !packing.verify(chunk, &stored) {
            METRICS.wrong.inc_by(chunk.image.len());
            self.is_wrong = true;
            // The connection serves others when all of it was read.
            while parts.next()?.is_some() {}
            return Err(io::Error::other(format!("the chunk at {} has another digest", chunk.blob)));
        }
        if !packing.is_zstd() {
            return Ok(Some(stored));
        }
        let unpacked = Unpacked::new(Cursor::new(stored), Frames::new(MAX_UNIT_WINDOW)?);
        self.open = Some(Open { unpacked, left: chunk.image.len() });
        Ok(None)
    }

    /// All bytes of a range of the blob; `None` where not all of them come.
    fn chunk(&mut self, parts: &mut Coming, range: ByteRange) -> io::Result<Option<Bytes>> {
        if range.len() > LARGEST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut chunk = BytesMut::new();
        while self.at < range.end {
            if self.stored.is_empty() {
                let Some(next) = parts.next()? else { return Ok(None) };
                self.stored = next;
            }
            let skip = range.start.saturating_sub(self.at);
            let want = if skip > 0 { skip } else { range.end - self.at };
            let take = usize::try_from(want).unwrap_or(usize::MAX).min(self.stored.len());
            let part = self.stored.split_to(take);
            self.at += take as u64;
            if skip == 0 {
                // What came as one is not copied.
                if chunk.is_empty() && self.at == range.end {
                    return Ok(Some(part));
                }
                chunk.extend_from_slice(&part);
            }
        }
        Ok(Some(chunk.freeze()))
    }
}

impl Open {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut part = vec![0; usize::try_from(self.left).unwrap_or(PART).min(PART)];
        if part.is_empty() {
            return Ok(None);
        }
        let len = self.unpacked.read(&mut part)?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        part.truncate(len);
        self.left -= len as u64;
        Ok(Some(part.into()))
    }
}
