//! zlib's inflate, with what a safe interface to it lacks: where deflate blocks end, and how to go on from there (zlib 1.3, zlib.h:
//! `Z_BLOCK`, `inflatePrime`, `inflateSetDictionary`, `inflateGetDictionary`).

use std::ffi::c_int;
use std::io;

use libz_rs_sys as zlib;

/// Bytes of output that deflate can refer back to (RFC 1951, section 2).
pub(crate) const WINDOW: usize = 32 << 10;

/// What surrounds the deflate data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrapping {
    /// Nothing.
    Raw,
    /// A member's header and trailer (RFC 1952), whose checksum is checked.
    Gzip,
}

impl Wrapping {
    /// zlib's `windowBits`.
    const fn bits(self) -> c_int {
        match self {
            Self::Raw => -15,
            Self::Gzip => 15 + 16,
        }
    }
}

/// Where a step has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// For want of input or of room for output.
    Midway,
    /// Behind a block, or behind the header, so that the next byte of output starts a block: `unused` bits of the last byte that was
    /// consumed belong to what follows.
    Block { unused: u8 },
    /// Behind the deflate data, and the trailer if there is one.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) consumed: usize,
    pub(crate) produced: usize,
    pub(crate) stop: Stop,
}

/// A decompressor.
pub(crate) struct Inflate {
    /// In a place of its own, since zlib's state points back to it.
    stream: Box<zlib::z_stream>,
    wrapping: Wrapping,
}

// SAFETY: the stream's pointers lead to its own state, which nothing else has, and to buffers only while `step` runs.
#[allow(unsafe_code)]
unsafe impl Send for Inflate {}

impl Inflate {
    /// # Errors
    /// Where there is no memory.
    #[allow(unsafe_code)]
    pub(crate) fn new(wrapping: Wrapping) -> io::Result<Self> {
        let mut stream = Box::<zlib::z_stream>::default();
        let size = c_int::try_from(size_of::<zlib::z_stream>()).map_err(io::Error::other)?;
        // SAFETY: `stream` is a z_stream as its Default makes it, with the allocator of Rust; the version and the size are the library's own.
        let made = unsafe { zlib::inflateInit2_(&mut *stream, wrapping.bits(), zlib::zlibVersion(), size) };
        match made {
            zlib::Z_OK => Ok(Self { stream, wrapping }),
            _ => Err(io::ErrorKind::OutOfMemory.into()),
        }
    }

    /// One for raw data that goes on where other was stopped behind a block: at the upper `bits` bits of the byte `first` (0: at the byte behind it),
    /// after the output `window`.
    ///
    /// # Errors
    /// Where there is no memory, or `bits` is no part of a byte.
    pub(crate) fn resumed(bits: u8, first: u8, window: &[u8]) -> io::Result<Self> {
        let mut inflate = Self::new(Wrapping::Raw)?;
        if !window.is_empty() {
            inflate.set_window(window)?;
        }
        if bits > 0 {
            inflate.prime(bits, first)?;
        }
        Ok(inflate)
    }

    /// Starts anew.
    #[allow(unsafe_code)]
    pub(crate) fn reset(&mut self) {
        // SAFETY: the stream was initialised and not ended. It cannot fail on such a one.
        let _always_ok = unsafe { zlib::inflateReset2(&mut *self.stream, self.wrapping.bits()) };
    }

    /// Lets the first block start in the middle of a byte: at its upper `bits` bits. Raw data only, before any other input.
    ///
    /// # Errors
    /// Where `bits` is no part of a byte.
    #[allow(unsafe_code)]
    pub(crate) fn prime(&mut self, bits: u8, byte: u8) -> io::Result<()> {
        let rest = 8u8.checked_sub(bits).map(|shift| c_int::from(byte).wrapping_shr(shift.into()));
        let rest = rest.ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: the stream was initialised and not ended.
        match unsafe { zlib::inflatePrime(&mut *self.stream, bits.into(), rest) } {
            zlib::Z_OK => Ok(()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Sets what the output before the first byte was; raw data only. Of more than [`WINDOW`] bytes the last ones count.
    ///
    /// # Errors
    /// Where zlib has no memory for it.
    #[allow(unsafe_code)]
    pub(crate) fn set_window(&mut self, window: &[u8]) -> io::Result<()> {
        let last = window.get(window.len().saturating_sub(WINDOW)..).unwrap_or_default();
        // SAFETY: the pointer and the length are those of `last`, which zlib copies.
        let set = unsafe { zlib::inflateSetDictionary(&mut *self.stream, last.as_ptr(), last.len() as zlib::uInt) };
        if set == zlib::Z_OK { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    /// The output that the next block can refer to: at most [`WINDOW`] bytes.
    #[allow(unsafe_code)]
    pub(crate) fn window(&mut self) -> Vec<u8> {
        let mut window = vec![0; WINDOW];
        let mut len: zlib::uInt = 0;
        // SAFETY: zlib writes at most its window, which is WINDOW bytes as `bits` sets it, and its length into `len`.
        let got = unsafe { zlib::inflateGetDictionary(&*self.stream, window.as_mut_ptr(), &mut len) };
        window.truncate(if got == zlib::Z_OK { len as usize } else { 0 });
        window
    }

    /// Decompresses a part, up to the end of a block at most.
    ///
    /// # Errors
    /// Where the input is not deflate data, or its checksum is wrong.
    #[allow(unsafe_code)]
    pub(crate) fn step(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<Step> {
        let input = input.get(..LARGEST).unwrap_or(input);
        let room = output.len().min(LARGEST);
        self.stream.next_in = input.as_ptr();
        self.stream.avail_in = input.len() as zlib::uInt;
        self.stream.next_out = output.as_mut_ptr();
        self.stream.avail_out = room as zlib::uInt;
        // SAFETY: both pointers and lengths are those of slices that live until the call returns; `next_out` is not read by zlib but
        // where it has written.
        let status = unsafe { zlib::inflate(&mut *self.stream, zlib::Z_BLOCK) };
        let consumed = input.len() - self.stream.avail_in as usize;
        let produced = room - self.stream.avail_out as usize;
        self.stream.next_in = std::ptr::null();
        self.stream.next_out = std::ptr::null_mut();
        let stop = match status {
            zlib::Z_STREAM_END => Stop::End,
            zlib::Z_OK | zlib::Z_BUF_ERROR => self.stop(),
            zlib::Z_NEED_DICT => return Err(bad("it needs a dictionary")),
            zlib::Z_MEM_ERROR => return Err(io::ErrorKind::OutOfMemory.into()),
            _ => return Err(bad("the deflate data is damaged")),
        };
        Ok(Step { consumed, produced, stop })
    }

    /// zlib.h on `data_type`: the unused bits of the last byte, 64 more while the last block is decoded, 128 more behind a block or header.
    fn stop(&self) -> Stop {
        let flags = self.stream.data_type;
        let unused = u8::try_from(flags & 63).unwrap_or(u8::MAX);
        if flags & 128 != 0 && flags & 64 == 0 && unused < 8 { Stop::Block { unused } } else { Stop::Midway }
    }
}

/// What one step takes and gives at most, so that it fits zlib's 32 bits.
const LARGEST: usize = 1 << 30;

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Drop for Inflate {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: the stream was initialised, and is ended here and nowhere else.
        let _freed = unsafe { zlib::inflateEnd(&mut *self.stream) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Text that compresses into many blocks that refer to each other.
    fn content() -> Vec<u8> {
        let mut state = 1u32;
        let mut word = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 20
        };
        (0..200_000).flat_map(|_| format!("{:x} ", word()).into_bytes()).collect()
    }

    /// Place in the input, unused bits, place in the output, window.
    type Block = (usize, u8, usize, Vec<u8>);

    /// Decompresses and tells of every block.
    fn blocks(compressed: &[u8]) -> (Vec<u8>, Vec<Block>) {
        let mut inflate = Inflate::new(Wrapping::Gzip).unwrap();
        let (mut at, mut out, mut found) = (0, Vec::new(), Vec::new());
        let mut buffer = vec![0; 1000];
        loop {
            let end = (at + 777).min(compressed.len());
            let step = inflate.step(&compressed[at..end], &mut buffer).unwrap();
            at += step.consumed;
            out.extend_from_slice(&buffer[..step.produced]);
            match step.stop {
                Stop::End => return (out, found),
                Stop::Block { unused } => found.push((at, unused, out.len(), inflate.window())),
                Stop::Midway => assert!(step.consumed + step.produced > 0),
            }
        }
    }

    #[test]
    fn decompression_goes_on_from_every_block() {
        let content = content();
        let compressed = gzip(&content);
        let (out, found) = blocks(&compressed);
        assert_eq!(out, content);
        assert!(found.len() > 5 && found.iter().any(|(_, unused, ..)| *unused != 0));
        let mut inflate = Inflate::new(Wrapping::Raw).unwrap();
        for (at, unused, place, window) in found {
            assert_eq!(window, content[place.saturating_sub(WINDOW)..place]);
            inflate.reset();
            inflate.set_window(&window).unwrap();
            inflate.prime(unused, compressed[at - 1]).unwrap();
            let mut rest = vec![0; content.len()];
            let (mut at, mut got) = (at, 0);
            loop {
                let step = inflate.step(&compressed[at..], &mut rest[got..]).unwrap();
                (at, got) = (at + step.consumed, got + step.produced);
                if step.stop == Stop::End {
                    break;
                }
            }
            assert!(rest[..got] == content[place..], "from {place}");
            assert_eq!(compressed.len() - at, 8, "the trailer is left");
        }
    }

    #[test]
    fn damage_is_an_error() {
        let mut compressed = gzip(b"some text");
        let last = compressed.len() - 1;
        compressed[last] ^= 1;
        let mut inflate = Inflate::new(Wrapping::Gzip).unwrap();
        let mut out = [0; 100];
        let mut at = 0;
        let failed = loop {
            match inflate.step(&compressed[at..], &mut out) {
                Ok(step) if step.stop == Stop::End => break false,
                Ok(step) => at += step.consumed,
                Err(_) => break true,
            }
        };
        assert!(failed);
        assert!(Inflate::new(Wrapping::Raw).unwrap().prime(9, 0).is_err());
    }
}
