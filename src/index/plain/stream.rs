//! The tar stream as unpacking tells it: bytes to read, and beside them the units that they are of.

use std::cell::RefCell;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

use super::unpack::{Event, Start};
use crate::blob::Digest;

/// A unit as it is told of.
#[derive(Debug)]
pub(super) struct Span {
    pub(super) compressed: u64,
    /// Where its first byte is in the tar stream.
    pub(super) decoded: u64,
    pub(super) start: Start,
    /// Packed; empty where nothing before it is needed.
    pub(super) window: Vec<u8>,
}

/// The units that have started; those who read the stream's bytes look here which unit they are of: the last.
#[derive(Debug, Default)]
pub(super) struct Spans {
    pub(super) all: Vec<Span>,
    /// Where the last one ends in the blob.
    pub(super) end: u64,
}

/// Where the next event is had from; `None` after the last.
pub(crate) type Events<'a> = &'a mut dyn FnMut() -> io::Result<Option<Event>>;

pub(super) struct Stream<'a> {
    events: Events<'a>,
    spans: Rc<RefCell<Spans>>,
    part: Vec<u8>,
    at: usize,
    hash: Sha256,
}

impl<'a> Stream<'a> {
    pub(super) fn new(events: Events<'a>) -> Self {
        Self { events, spans: Rc::default(), part: Vec::new(), at: 0, hash: Sha256::new() }
    }

    pub(super) fn spans(&self) -> Rc<RefCell<Spans>> {
        Rc::clone(&self.spans)
    }

    /// Reads what is left. Gives the digest of all bytes of the stream.
    pub(super) fn finish(mut self) -> io::Result<Digest> {
        while let Some(len) = Some(self.fill_buf()?.len()).filter(|len| *len > 0) {
            self.consume(len);
        }
        Ok(Digest::from_bytes(self.hash.finalize().into()))
    }
}

impl BufRead for Stream<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at >= self.part.len() {
            let Some(event) = (self.events)()? else { return Ok(&[]) };
            let mut spans = self.spans.borrow_mut();
            match event {
                Event::Bytes(bytes) => {
                    self.hash.update(&bytes);
                    (self.part, self.at) = (bytes, 0);
                }
                Event::Unit { compressed, decoded, start } => {
                    spans.all.push(Span { compressed, decoded, start, window: Vec::new() });
                }
                Event::Window { unit, packed } => {
                    spans.all.get_mut(unit as usize).ok_or(io::ErrorKind::InvalidData)?.window = packed;
                }
                Event::End { compressed } => spans.end = compressed,
            }
        }
        Ok(self.part.get(self.at..).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        self.at = self.at.saturating_add(amount).min(self.part.len());
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}
