//! The body of a request as it arrives.

use std::io::{self, BufRead, Cursor, Read};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

use super::chunked::Chunked;
use super::coming::Coming;
use crate::blob::ByteRange;
use crate::registry;

/// The body as it arrives, for a decoder that reads and waits.
pub(super) struct Arrival {
    parts: Coming,
    /// What the parts go through first, where the layer's units are in chunks.
    chunked: Option<Chunked>,
    part: Bytes,
    /// Place of the first byte not yet read: in the blob, or in the image that its chunks are of.
    position: u64,
    /// The byte before that.
    last: u8,
}

impl Arrival {
    /// Of bytes from `position` on.
    pub(super) const fn new(
        receiver: mpsc::Receiver<Result<Bytes, registry::Error>>,
        position: u64,
        chunked: Option<Chunked>,
    ) -> Self {
        Self { parts: Coming::new(receiver), chunked, part: Bytes::new(), position, last: 0 }
    }

    /// Why no more comes.
    pub(super) fn into_error(self) -> Option<registry::Error> {
        self.parts.into_error()
    }

    /// The bytes of a unit. It may start with the byte that the one before has ended with.
    pub(super) fn unit(&mut self, compressed: ByteRange) -> io::Result<impl BufRead> {
        let mut again = Vec::new();
        if compressed.start.checked_add(1) == Some(self.position) {
            again.push(self.last);
        } else {
            self.skip_to(compressed.start)?;
        }
        let rest = compressed.end.saturating_sub(self.position);
        Ok(Read::chain(Cursor::new(again), self.take(rest)))
    }

    /// Whether no more comes, since that has failed.
    pub(super) const fn has_failed(&self) -> bool {
        self.parts.has_failed()
    }

    /// The bytes of a part of a unit, as far as they come.
    pub(super) fn bytes(&mut self, part: ByteRange) -> Bytes {
        let mut bytes = Vec::new();
        if let Ok(mut input) = self.unit(part) {
            let _cut_short = input.read_to_end(&mut bytes);
        }
        bytes.into()
    }

    fn skip_to(&mut self, position: u64) -> io::Result<()> {
        let skip = position.checked_sub(self.position).ok_or(io::ErrorKind::InvalidInput)?;
        let skipped = io::copy(&mut self.by_ref().take(skip), &mut io::sink())?;
        if skipped == skip { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

impl BufRead for Arrival {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.part.is_empty() {
            let next = match &mut self.chunked {
                Some(chunked) => chunked.next(&mut self.parts)?,
                None => self.parts.next()?,
            };
            let Some(part) = next else { break };
            self.part = part;
        }
        Ok(&self.part)
    }

    fn consume(&mut self, amount: usize) {
        let amount = amount.min(self.part.len());
        self.last = self.part.get(..amount).and_then(|read| read.last()).copied().unwrap_or(self.last);
        self.part.advance(amount);
        self.position += amount as u64;
    }
}

impl Read for Arrival {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}
