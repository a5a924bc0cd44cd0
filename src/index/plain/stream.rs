//! The tar stream as unpacking tells it: bytes to read, and beside them the units that they are of.

use std::cell::RefCell;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

use super::unpack::{Event, Start};
use crate::blob::Digest;
use crate::budget::Charge;

/// Bytes for a unit, but for its window: what is kept of it here, and in the tables.
const EACH_SPAN: usize = 128;

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
    /// For the units and their windows.
    charge: Charge,
    held: u64,
    /// For what the decoder keeps.
    of_decoder: Charge,
}

impl<'a> Stream<'a> {
    pub(super) fn new(events: Events<'a>, layer: &Charge) -> Self {
        let (spans, hash) = (Rc::default(), Sha256::new());
        let (charge, of_decoder) = (layer.beside_windows(0), layer.beside_decoder());
        Self { events, spans, part: Vec::new(), at: 0, hash, charge, held: 0, of_decoder }
    }

    fn cover(&mut self, more: usize) -> io::Result<()> {
        self.held += more as u64;
        self.charge.cover(self.held, u64::MAX).map_err(io::Error::other)
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
            match &event {
                Event::Unit { .. } => self.cover(EACH_SPAN)?,
                Event::Window { packed, .. } => self.cover(packed.len())?,
                Event::Holds(bytes) => self.of_decoder.cover(*bytes, u64::MAX).map_err(io::Error::other)?,
                Event::Bytes(_) | Event::End { .. } => {}
            }
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
                Event::Holds(_) => {}
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
