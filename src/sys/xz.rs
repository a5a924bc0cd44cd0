//! xz and MicroLZMA within a bounded memory.

use std::io::{self, BufRead, Cursor, Read};

use liblzma::bufread::XzDecoder;
use liblzma::stream::{Filters, Stream};

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

/// The largest dictionary of MicroLZMA in EROFS (Linux, fs/erofs/erofs_fs.h).
const DICTIONARY: u32 = 8 << 20;

/// What a MicroLZMA stream unpacks to: LZMA of which the first byte, always 0, has the inverted properties instead. It has no end of its own.
pub(crate) struct MicroLzma<R: BufRead>(XzDecoder<io::Chain<Cursor<[u8; 1]>, R>>);

impl<R: BufRead> MicroLzma<R> {
    /// # Errors
    /// Where it begins as none does, or there is no memory.
    pub(crate) fn new(mut input: R) -> io::Result<Self> {
        let mut first = [0];
        input.read_exact(&mut first)?;
        let [dict0, dict1, dict2, dict3] = DICTIONARY.to_le_bytes();
        let mut filters = Filters::new();
        let [first] = first;
        filters.lzma1_properties(&[!first, dict0, dict1, dict2, dict3]).map_err(io::Error::other)?;
        let stream = Stream::new_raw_decoder(&filters).map_err(io::Error::other)?;
        Ok(Self(XzDecoder::new_stream(Cursor::new([0]).chain(input), stream)))
    }
}

impl<R: BufRead> Read for MicroLzma<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}
