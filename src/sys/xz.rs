//! xz within a bounded memory.

use std::io::{self, BufRead, Read};

use liblzma::bufread::XzDecoder;
use liblzma::stream::Stream;

/// Memory that a decoder takes at most: a block of squashfs has at most 1 MiB, and no larger dictionary is of use to it.
const MEMORY: u64 = 16 << 20;

/// What an .xz stream unpacks to.
pub(crate) struct Decoder<R: BufRead>(XzDecoder<R>);

impl<R: BufRead> Decoder<R> {
    /// # Errors
    /// Where there is no memory.
    pub(crate) fn new(input: R) -> io::Result<Self> {
        let stream = Stream::new_stream_decoder(MEMORY, 0).map_err(io::Error::other)?;
        Ok(Self(XzDecoder::new_stream(input, stream)))
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}
