//! A blob in, as it is downloaded; the tar stream out, and where it can be decompressed from later.
//!
//! ```text
//! gzip    units start behind a deflate block, with the window that follows refers to, or at a member (RFC 1951, RFC 1952)
//! zstd    units start with a frame (RFC 8878)
//! none    units start anywhere
//! ```

mod gzip;
mod zstd;

use std::io;

use self::gzip::Gzip;
use self::zstd::Zstd;
use crate::index::Format;

/// Decoded bytes of one unit at least, but for the last one: what a cold read decompresses at most before it comes to what it wants, and
/// what the window of a checkpoint, some 10 KiB, is kept for.
///
/// A fuzzer's inputs are small.
const SPAN: u64 = if cfg!(fuzzing) { 4 << 10 } else { 1 << 20 };

/// Bytes of one unit of a tar that is not compressed, and of the frames that one unit is made of at least.
const SMALL_SPAN: u64 = if cfg!(fuzzing) { 1 << 10 } else { 512 << 10 };

/// Decoded bytes that are handed on at a time.
const PART: usize = 112 << 10;

/// How a unit is decoded from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    Stored,
    Zstd,
    /// At so many bits of the unit's first byte, or at the byte itself: 0.
    Deflate {
        bits: u8,
    },
}

/// What unpacking tells, in the order of the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A unit starts: at this place of the blob and of the tar stream.
    Unit { compressed: u64, decoded: u64, start: Start },
    /// The next bytes of the tar stream, all of one unit.
    Bytes(Vec<u8>),
    /// The packed window of a unit that has started, by its number.
    Window { unit: u32, packed: Vec<u8> },
    /// The decoder keeps so many bytes of what it has told.
    Holds(u64),
    /// No more follows what ends at this place of the blob.
    End { compressed: u64 },
}

/// Takes what unpacking tells; an error ends it.
pub(crate) type Tell<'a> = &'a mut dyn FnMut(Event) -> io::Result<()>;

pub(crate) enum Unpacker {
    Gzip(Box<Gzip>),
    Zstd(Box<Zstd>),
    Stored { at: u64 },
}

impl Unpacker {
    /// # Errors
    /// Where there is no memory.
    pub(crate) fn new(format: Format) -> io::Result<Self> {
        Ok(match format {
            Format::TarGzip => Self::Gzip(Box::new(Gzip::new()?)),
            Format::TarZstd => Self::Zstd(Box::new(Zstd::new()?)),
            _ => Self::Stored { at: 0 },
        })
    }

    /// Takes the next bytes of the blob.
    ///
    /// # Errors
    /// Where they are damaged, or `tell` fails.
    pub(crate) fn push(&mut self, input: &[u8], tell: Tell<'_>) -> io::Result<()> {
        match self {
            Self::Gzip(gzip) => gzip.push(input, tell),
            Self::Zstd(zstd) => zstd.push(input, tell),
            Self::Stored { at } => stored(at, input, tell),
        }
    }

    /// The blob is over.
    ///
    /// # Errors
    /// Where it ends too early, or `tell` fails.
    pub(crate) fn finish(self, tell: Tell<'_>) -> io::Result<()> {
        match self {
            Self::Gzip(gzip) => gzip.finish(tell),
            Self::Zstd(zstd) => zstd.finish(tell),
            Self::Stored { at } => tell(Event::End { compressed: at }),
        }
    }
}

fn stored(at: &mut u64, mut input: &[u8], tell: Tell<'_>) -> io::Result<()> {
    while !input.is_empty() {
        let in_unit = *at % SMALL_SPAN;
        if in_unit == 0 {
            tell(Event::Unit { compressed: *at, decoded: *at, start: Start::Stored })?;
        }
        let room = usize::try_from(SMALL_SPAN - in_unit).unwrap_or(PART).min(PART);
        let (part, rest) = input.split_at(room.min(input.len()));
        tell(Event::Bytes(part.to_vec()))?;
        *at += part.len() as u64;
        input = rest;
    }
    Ok(())
}

/// Decoded bytes on their way.
struct Output {
    buffer: Vec<u8>,
    filled: usize,
    /// Of the whole stream, those in the buffer included.
    produced: u64,
    /// Where the last unit has started.
    unit: u64,
    units: u32,
}

impl Output {
    fn new() -> Self {
        Self { buffer: vec![0; PART], filled: 0, produced: 0, unit: 0, units: 0 }
    }

    fn room(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.filled..).unwrap_or_default()
    }

    /// So many bytes of the room are filled.
    fn advance(&mut self, produced: usize, tell: Tell<'_>) -> io::Result<()> {
        self.filled += produced;
        self.produced += produced as u64;
        if self.filled >= PART { self.flush(tell) } else { Ok(()) }
    }

    fn flush(&mut self, tell: Tell<'_>) -> io::Result<()> {
        if self.filled == 0 {
            return Ok(());
        }
        let mut full = std::mem::replace(&mut self.buffer, vec![0; PART]);
        full.truncate(std::mem::take(&mut self.filled));
        tell(Event::Bytes(full))
    }

    /// Whether a unit is to start that can start here.
    fn is_due(&self, span: u64) -> bool {
        self.units == 0 || self.produced - self.unit >= span
    }

    /// Starts a unit. Gives its number.
    fn start(&mut self, compressed: u64, start: Start, tell: Tell<'_>) -> io::Result<u32> {
        self.flush(tell)?;
        tell(Event::Unit { compressed, decoded: self.produced, start })?;
        self.unit = self.produced;
        let number = self.units;
        self.units = number.checked_add(1).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(number)
    }
}

#[cfg(test)]
mod tests;
