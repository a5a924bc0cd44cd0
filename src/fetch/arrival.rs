//! The body of a request as it arrives.

use std::io::{self, BufRead, Cursor, Read};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

use crate::blob::ByteRange;
use crate::registry;

/// The body as it arrives, for a decoder that reads and waits.
pub(super) struct Arrival {
    pub(super) parts: mpsc::Receiver<Result<Bytes, registry::Error>>,
    pub(super) part: Bytes,
    /// Place in the blob of the first byte not yet read.
    pub(super) position: u64,
    /// The byte before that.
    pub(super) last: u8,
    pub(super) error: Option<registry::Error>,
}

impl Arrival {
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
        self.error.is_some()
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
            match self.parts.blocking_recv() {
                Some(Ok(part)) => self.part = part,
                Some(Err(error)) => {
                    let text = error.to_string();
                    self.error = Some(error);
                    return Err(io::Error::other(text));
                }
                None => break,
            }
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
