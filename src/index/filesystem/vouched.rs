//! The bytes of an image of which parts are read, each of them verified: what its metadata is read from where a chunk index or a hash tree
//! vouches for it.

use std::io::{Cursor, Read};
use std::sync::{Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

use crate::blob::{ByteRange, ByteSource, SourceError};
use crate::index::limits;
use crate::index::stored::chunks::{Chunk, Chunks};
use crate::sys::frames::{Frames, Unpacked};

/// Bytes of chunks that are kept as the image has them, and how many of them.
const KEPT: u64 = 16 << 20;
const MOST_KEPT: usize = 1024;

/// Bytes that are asked for at once: the first, and the most where one part after the other is read.
const FIRST: u64 = 32 << 10;
const MOST: u64 = 1 << 20;

/// Chunks were read that do not have their digests.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the chunk at {0} does not have the digest that the manifest vouches for")]
pub(super) struct WrongChunk(ByteRange);

#[derive(Default)]
struct State {
    /// By number, what was used last at the end.
    kept: Vec<(usize, Bytes)>,
    /// The chunk behind what was read last, and how much was read at once.
    next: usize,
    window: u64,
}

pub(super) struct Vouched<'a> {
    blob: &'a dyn ByteSource,
    chunks: &'a Chunks,
    state: Mutex<State>,
}

impl<'a> Vouched<'a> {
    pub(super) fn new(blob: &'a dyn ByteSource, chunks: &'a Chunks) -> Self {
        Self { blob, chunks, state: Mutex::default() }
    }

    fn chunk(&self, number: usize) -> Result<Bytes, SourceError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = state.kept.iter().rposition(|(kept, _)| *kept == number) {
            let found = state.kept.remove(place);
            let bytes = found.1.clone();
            state.kept.push(found);
            return Ok(bytes);
        }
        state.window = if number == state.next { (state.window * 2).clamp(FIRST, MOST) } else { FIRST };
        let read = self.read(number, state.window)?;
        state.next = number + read.len();
        let first = read.first().cloned().ok_or("a chunk is asked for that there is not")?;
        // Last, so that it is kept longest.
        state.kept.extend(read.into_iter().enumerate().rev().map(|(place, bytes)| (number + place, bytes)));
        let mut held = state.kept.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
        while held > KEPT.max(first.len() as u64) || state.kept.len() > MOST_KEPT {
            held -= state.kept.remove(0).1.len() as u64;
        }
        Ok(first)
    }

    /// So many bytes of chunks that lie side by side, one of them at least.
    fn read(&self, number: usize, window: u64) -> Result<Vec<Bytes>, SourceError> {
        let first = self.chunks.get(number).ok_or("a chunk is asked for that there is not")?;
        let (mut range, mut all) = (first.blob, vec![first]);
        while let Some(next) = self.chunks.get(number + all.len()) {
            if next.blob.start != range.end || next.blob.end - range.start > window {
                break;
            }
            range.end = next.blob.end;
            all.push(next);
        }
        let bytes = self.blob.read_at(range)?;
        let part = |chunk: &Chunk| {
            let start = usize::try_from(chunk.blob.start - range.start).ok()?;
            let end = usize::try_from(chunk.blob.end - range.start).ok()?;
            (end <= bytes.len()).then(|| bytes.slice(start..end))
        };
        all.iter().map(|chunk| self.verified(chunk, part(chunk).ok_or("fewer bytes than asked for")?)).collect()
    }

    /// What the image has of a chunk.
    fn verified(&self, chunk: &Chunk, stored: Bytes) -> Result<Bytes, SourceError> {
        let packing = self.chunks.packing.as_ref().ok_or("there are no chunks")?;
        if !packing.verify(chunk, &stored) {
            return Err(WrongChunk(chunk.blob).into());
        }
        if !packing.is_zstd() {
            return Ok(stored);
        }
        let mut bytes = Vec::new();
        let unpacked = Unpacked::new(Cursor::new(stored), Frames::new(limits::UNIT_WINDOW)?);
        unpacked.take(chunk.image.len()).read_to_end(&mut bytes)?;
        if bytes.len() as u64 == chunk.image.len() { Ok(bytes.into()) } else { Err("a chunk is cut off".into()) }
    }
}

impl ByteSource for Vouched<'_> {
    fn size(&self) -> u64 {
        self.chunks.image_len()
    }

    fn read_at(&self, range: ByteRange) -> Result<Bytes, SourceError> {
        let (mut bytes, mut at) = (BytesMut::new(), range.start);
        while at < range.end {
            let number = self.chunks.find(at).ok_or("behind the end of the image")?;
            let image = self.chunks.get(number).ok_or("behind the end of the image")?.image;
            let chunk = self.chunk(number)?;
            let (from, to) = ((at - image.start) as usize, (range.end.min(image.end) - image.start) as usize);
            let part = chunk.get(from..to).ok_or("a chunk is cut off")?;
            if part.len() as u64 == range.len() {
                return Ok(chunk.slice(from..to));
            }
            bytes.extend_from_slice(part);
            at = image.end;
        }
        Ok(bytes.freeze())
    }
}
