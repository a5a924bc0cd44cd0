//! zstd: frames, empty and skippable ones among them.

use std::io;

use zstd::stream::raw::{Decoder, Operation as _};

use super::{Event, Output, SMALL_SPAN, Start, Tell};

pub(crate) struct Zstd {
    decoder: Decoder<'static>,
    output: Output,
    consumed: u64,
    /// Whether the next byte starts a frame.
    is_between: bool,
}

impl Zstd {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { decoder: Decoder::new()?, output: Output::new(), consumed: 0, is_between: true })
    }

    pub(super) fn push(&mut self, mut input: &[u8], tell: Tell<'_>) -> io::Result<()> {
        while !(input.is_empty() && self.is_between) {
            if self.is_between && self.output.is_due(SMALL_SPAN) {
                self.output.start(self.consumed, Start::Zstd, tell)?;
            }
            let room = self.output.room();
            let size = room.len();
            let status = self.decoder.run_on_buffers(input, room)?;
            input = input.get(status.bytes_read..).unwrap_or_default();
            self.consumed += status.bytes_read as u64;
            self.is_between = status.remaining == 0;
            self.output.advance(status.bytes_written, tell)?;
            // Where the output is full the decoder may have more of it without any input.
            if input.is_empty() && status.bytes_written < size {
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
