//! gzip, whatever wrote it: members, blocks of any kind and size, and what follows the last member and is none.

use std::io;

use super::{Event, Output, SPAN, Start, Tell};
use crate::index::plain::window::{self, Checkpoint};
use crate::sys::inflate::{Inflate, Stop, WINDOW, Wrapping};

/// Compressed bytes of a unit at least, for the next one to start with a window: where text is packed well, windows would be more than a hundredth
/// of the blob; and what a round trip costs anyway is no less.
pub(super) const LEAST: u64 = if cfg!(fuzzing) { 1 << 10 } else { 320 << 10 };

/// So many spans are a unit, however few bytes of the blob they are: it is decompressed from its start.
const MOST_SPANS: u64 = 4;

/// Compressed bytes looked at to find what of a window is needed. Those of so much output are far fewer, unless somebody wants to be a nuisance.
const LOOKAHEAD: usize = 256 << 10;

/// A window of which it is not known yet what is needed.
struct Waiting {
    unit: u32,
    checkpoint: Checkpoint,
    /// Compressed bytes since.
    following: Vec<u8>,
    /// Where in the output nothing can refer to it any more.
    until: u64,
}

/// Where in the members the next byte is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In a header, if there is one.
    Header,
    Data,
    /// Behind what is no member.
    Over,
}

pub(crate) struct Gzip {
    inflate: Inflate,
    output: Output,
    consumed: u64,
    last_byte: u8,
    place: Place,
    /// Where the last member that is whole has ended.
    end: Option<u64>,
    waiting: Option<Waiting>,
    /// Where in the blob the last unit has started.
    unit: u64,
}

impl Gzip {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            inflate: Inflate::new(Wrapping::Gzip)?,
            output: Output::new(),
            consumed: 0,
            last_byte: 0,
            place: Place::Header,
            end: None,
            waiting: None,
            unit: 0,
        })
    }

    pub(super) fn push(&mut self, mut input: &[u8], tell: Tell<'_>) -> io::Result<()> {
        while self.place != Place::Over {
            let room = self.output.room();
            let size = room.len();
            let step = match self.inflate.step(input, room) {
                Ok(step) => step,
                // As gzip(1) has it: what follows a member and is none is no part of the data.
                Err(_) if self.place == Place::Header && self.end.is_some() => {
                    self.place = Place::Over;
                    break;
                }
                Err(error) => return Err(error),
            };
            if step.consumed + step.produced == 0 {
                break;
            }
            let (taken, rest) = input.split_at(step.consumed.min(input.len()));
            self.take(taken);
            input = rest;
            self.output.advance(step.produced, tell)?;
            self.settle(false, tell)?;
            match step.stop {
                // Where the output is full there may be more of it without any input.
                Stop::Midway if input.is_empty() && step.produced < size => break,
                Stop::Midway => {}
                Stop::Block { unused } => self.block(unused, tell)?,
                Stop::End => self.member_ended(tell)?,
            }
        }
        Ok(())
    }

    fn take(&mut self, taken: &[u8]) {
        self.consumed += taken.len() as u64;
        self.last_byte = taken.last().copied().unwrap_or(self.last_byte);
        if let Some(waiting) = &mut self.waiting {
            waiting.following.extend_from_slice(taken);
        }
    }

    /// Behind a block, or behind a member's header.
    fn block(&mut self, bits: u8, tell: Tell<'_>) -> io::Result<()> {
        let is_first = self.place == Place::Header;
        self.place = Place::Data;
        if !self.is_due(is_first) {
            return Ok(());
        }
        self.settle(true, tell)?;
        let compressed = self.consumed.saturating_sub(u64::from(bits > 0));
        let unit = self.output.start(compressed, Start::Deflate { bits }, tell)?;
        self.unit = compressed;
        if !is_first {
            let checkpoint = Checkpoint { bits, first: self.last_byte, window: self.inflate.window() };
            let until = self.output.produced + WINDOW as u64;
            self.waiting = Some(Waiting { unit, checkpoint, following: Vec::new(), until });
        }
        Ok(())
    }

    /// Whether a unit is to start here; the first block of a member needs no window.
    fn is_due(&self, is_first: bool) -> bool {
        let is_worth_a_window = || self.consumed.saturating_sub(self.unit) >= LEAST;
        self.output.is_due(SPAN) && (is_first || is_worth_a_window() || self.output.is_due(MOST_SPANS * SPAN))
    }

    fn member_ended(&mut self, tell: Tell<'_>) -> io::Result<()> {
        self.settle(true, tell)?;
        self.inflate.reset();
        self.place = Place::Header;
        self.end = Some(self.consumed);
        Ok(())
    }

    /// Tells of the window that waits, when nothing can refer to it any more.
    fn settle(&mut self, is_over: bool, tell: Tell<'_>) -> io::Result<()> {
        let is_settled = |waiting: &mut Waiting| {
            is_over || self.output.produced >= waiting.until || waiting.following.len() >= LOOKAHEAD
        };
        let Some(waiting) = self.waiting.take_if(is_settled) else { return Ok(()) };
        let Waiting { unit, mut checkpoint, following, until } = waiting;
        if is_over || self.output.produced >= until {
            checkpoint.prune(&following)?;
        }
        tell(Event::Window { unit, packed: window::pack(&checkpoint.window)? })
    }

    pub(super) fn finish(mut self, tell: Tell<'_>) -> io::Result<()> {
        self.output.flush(tell)?;
        match self.end {
            Some(compressed) if self.place != Place::Data => tell(Event::End { compressed }),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}
