//! zstd: frames, empty and skippable ones among them.

use std::io;

use super::{Event, Output, SMALL_SPAN, Start, Tell};
use crate::index::limits;
use crate::sys::frames::Frames;

pub(crate) struct Zstd {
    frames: Frames,
    output: Output,
    consumed: u64,
    /// Whether the next byte starts a frame.
    is_between: bool,
    /// What was told last of what the decoder keeps.
    held: u64,
}

/// Bytes more that the decoder keeps when that is told.
const HELD: u64 = 1 << 20;

impl Zstd {
    pub(super) fn new() -> io::Result<Self> {
        let frames = Frames::new(limits::ZSTD_WINDOW)?;
        Ok(Self { frames, output: Output::new(), consumed: 0, is_between: true, held: 0 })
    }

    pub(super) fn push(&mut self, mut input: &[u8], tell: Tell<'_>) -> io::Result<()> {
        while !(input.is_empty() && self.is_between) {
            if self.is_between && self.output.is_due(SMALL_SPAN) {
                self.output.start(self.consumed, Start::Zstd, tell)?;
            }
            let room = self.output.room();
            let size = room.len();
            let step = self.frames.step(input, room)?;
            input = input.get(step.consumed..).unwrap_or_default();
            self.consumed += step.consumed as u64;
            self.is_between = step.is_between;
            self.output.advance(step.produced, tell)?;
            if self.frames.held() - self.held >= HELD {
                self.held = self.frames.held();
                tell(Event::Holds(self.held))?;
            }
            // Where the output is full the decoder may have more of it without any input.
            if input.is_empty() && step.produced < size {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self, tell: Tell<'_>) -> io::Result<()> {
        if !self.is_between {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.output.flush(tell)?;
        tell(Event::End { compressed: self.consumed })
    }
}
