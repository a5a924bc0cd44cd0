//! zstd frames (RFC 8878), decoded within a bounded memory.
//!
//! ```text
//! | magic 28 b5 2f fd | descriptor | window | dictionary | content size | blocks ...
//!                       bits 7-6: 1 (or none), 2, 4, 8 bytes of content size; bit 5: no window, that is all of the content
//!                       bits 1-0: 0, 1, 2, 4 bytes of dictionary
//! ```
//!
//! A decoder keeps as much of what it has decoded as the window is large. It takes the memory for that as it fills it, so a
//! frame with a large window and little in it needs little.

use std::borrow::BorrowMut;
use std::io::{self, BufRead, Read};

use zstd::stream::raw::{self, DParameter, Operation as _};

/// Bytes of the longest header.
const HEADER: usize = 18;

/// The largest window that libzstd takes, as a power of 2.
const WINDOW_LOG: u32 = 31;

/// What a decoder may keep from one blob to the next.
const KEPT: u64 = 128 << 20;

/// Bytes of a zstd window that are kept while a layer or an archive is read whole: as much as podman takes (`zstd --long=29`). The window may be
/// larger where the frame unpacks to no more than this.
pub(crate) const LARGEST_WINDOW: u64 = 512 << 20;

/// The frame needs more of what was decoded than may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a zstd window of {window} bytes, and at most {limit} are kept")]
pub(crate) struct WideWindow {
    pub(crate) window: u64,
    pub(crate) limit: u64,
}

/// What a step has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) consumed: usize,
    pub(crate) produced: usize,
    /// A frame has ended.
    pub(crate) is_between: bool,
}

/// Decodes frames one after the other, empty and skippable ones among them.
pub(crate) struct Frames {
    decoder: raw::Decoder<'static>,
    /// Bytes of a window at most.
    limit: u64,
    /// The first bytes of the frame at hand.
    head: Vec<u8>,
    /// Once enough of it is there.
    window: Option<u64>,
    /// Bytes of the frame so far.
    decoded: u64,
    /// The largest window since the decoder was made, and what was filled of one at most.
    widest: u64,
    held: u64,
}

impl Frames {
    /// # Errors
    /// Where there is no memory.
    pub(crate) fn new(limit: u64) -> io::Result<Self> {
        let decoder = decoder()?;
        Ok(Self { decoder, limit, head: Vec::with_capacity(HEADER), window: None, decoded: 0, widest: 0, held: 0 })
    }

    /// Starts anew with another blob.
    ///
    /// # Errors
    /// Where there is no memory.
    pub(crate) fn restart(&mut self) -> io::Result<()> {
        if self.widest > KEPT {
            *self = Self::new(self.limit)?;
        }
        self.end_frame();
        self.decoder.reinit()
    }

    /// Bytes that the decoder keeps of what it has decoded. It gives none of them back.
    pub(crate) const fn held(&self) -> u64 {
        self.held
    }

    /// Decodes some of `input` into `output`.
    ///
    /// # Errors
    /// Where the input is damaged, or needs too large a window.
    pub(crate) fn step(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<Step> {
        if self.window.is_none() {
            self.look(input)?;
        }
        let status = self.decoder.run_on_buffers(input, output)?;
        self.decoded = self.decoded.saturating_add(status.bytes_written as u64);
        self.held = self.held.max(self.decoded.min(self.window.unwrap_or(0)));
        self.check(self.decoded)?;
        let is_between = status.remaining == 0;
        if is_between {
            self.end_frame();
        }
        Ok(Step { consumed: status.bytes_read, produced: status.bytes_written, is_between })
    }

    fn end_frame(&mut self) {
        self.head.clear();
        (self.window, self.decoded) = (None, 0);
    }

    /// Looks at the header, which is always taken first.
    fn look(&mut self, input: &[u8]) -> io::Result<()> {
        let missing = HEADER.saturating_sub(self.head.len());
        self.head.extend_from_slice(input.get(..missing).unwrap_or(input));
        let Some(Header { window, content }) = header(&self.head) else { return Ok(()) };
        self.window = Some(window);
        self.widest = self.widest.max(window);
        // libzstd would refuse it with other words.
        self.check(if window > 1 << WINDOW_LOG { u64::MAX } else { content.unwrap_or(0) })
    }

    /// Whether a frame of so many bytes can be decoded.
    fn check(&self, decoded: u64) -> io::Result<()> {
        let (window, limit) = (self.window.unwrap_or(0), self.limit);
        if window.min(decoded) > limit { Err(io::Error::other(WideWindow { window, limit })) } else { Ok(()) }
    }
}

/// What the frames of an input decode to.
pub(crate) struct Unpacked<R, F> {
    input: R,
    frames: F,
    is_between: bool,
}

impl<R: BufRead, F: BorrowMut<Frames>> Unpacked<R, F> {
    /// `frames`: with nothing in it yet.
    pub(crate) const fn new(input: R, frames: F) -> Self {
        Self { input, frames, is_between: true }
    }
}

impl<R: BufRead, F: BorrowMut<Frames>> Read for Unpacked<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !buffer.is_empty() {
            let input = self.input.fill_buf()?;
            let is_over = input.is_empty();
            if is_over && self.is_between {
                break;
            }
            let step = self.frames.borrow_mut().step(input, buffer)?;
            self.input.consume(step.consumed);
            self.is_between = step.is_between;
            if step.produced > 0 {
                return Ok(step.produced);
            }
            if is_over && !step.is_between {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(0)
    }
}

fn decoder() -> io::Result<raw::Decoder<'static>> {
    let mut decoder = raw::Decoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
    Ok(decoder)
}

/// Bytes that a decoder of the frame that starts so may keep. `None`: that does not tell.
pub(crate) fn window(head: &[u8]) -> Option<u64> {
    header(head).map(|header| header.window)
}

/// What a frame says of its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    window: u64,
    content: Option<u64>,
}

/// Reads a header. `None`: more of it is needed.
fn header(head: &[u8]) -> Option<Header> {
    let (magic, rest) = head.split_first_chunk::<4>()?;
    if magic != b"\x28\xb5\x2f\xfd" {
        return Some(Header { window: 0, content: None });
    }
    let (descriptor, mut rest) = rest.split_first()?;
    let is_single = descriptor & 0x20 != 0;
    let mut window = 0;
    if !is_single {
        let (byte, behind) = rest.split_first()?;
        let base = 1_u64 << (10 + (byte >> 3));
        (window, rest) = (base + base / 8 * u64::from(byte & 7), behind);
    }
    let dictionary = [0, 1, 2, 4].get(usize::from(descriptor & 3))?;
    let rest = rest.get(*dictionary..)?;
    let content = match descriptor >> 6 {
        0 if !is_single => None,
        0 => Some(u64::from(*rest.first()?)),
        1 => Some(u64::from(u16::from_le_bytes(*rest.first_chunk()?)) + 256),
        2 => Some(u64::from(u32::from_le_bytes(*rest.first_chunk()?))),
        _ => Some(u64::from_le_bytes(*rest.first_chunk()?)),
    };
    Some(Header { window: content.filter(|_| is_single).unwrap_or(window), content })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use zstd::stream::raw::CParameter;

    use super::*;

    /// A frame of `content` with a window of `1 << log` bytes, which says or does not say how long it is.
    fn frame(content: &[u8], log: u32, says_size: bool) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.set_parameter(CParameter::WindowLog(log)).unwrap();
        encoder.set_parameter(CParameter::ContentSizeFlag(says_size)).unwrap();
        if says_size {
            encoder.set_pledged_src_size(Some(content.len() as u64)).unwrap();
        }
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    /// The header of a frame with a window of 2 GiB, and with a window of all of its content.
    fn wide(size: u64) -> [Vec<u8>; 2] {
        let of = |descriptor: u8, window: &[u8]| {
            [&[0x28, 0xb5, 0x2f, 0xfd, descriptor][..], window, &size.to_le_bytes()].concat()
        };
        [of(0xc0, &[21 << 3]), of(0xe0, &[])]
    }

    fn decode(frames: &mut Frames, mut input: &[u8], part: usize) -> io::Result<Vec<u8>> {
        let (mut all, mut output) = (Vec::new(), vec![0; 1 << 16]);
        loop {
            let step = frames.step(input.get(..part).unwrap_or(input), &mut output)?;
            input = &input[step.consumed..];
            all.extend_from_slice(&output[..step.produced]);
            if input.is_empty() && step.produced < output.len() {
                return Ok(all);
            }
        }
    }

    #[test]
    fn frames_are_read_to_the_end_of_the_last_one() {
        let content: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
        let whole = [frame(&content, 20, false), frame(b"", 10, true), frame(b"next", 10, true)].concat();
        let read = |input: &[u8]| {
            let mut all = Vec::new();
            let input = io::BufReader::with_capacity(7, input);
            Unpacked::new(input, Frames::new(1 << 20)?).read_to_end(&mut all).map(|_| all)
        };
        assert_eq!(read(&whole).unwrap(), [&content[..], b"next"].concat());
        assert_eq!(read(b"").unwrap(), b"");
        for cut in [whole.len() - 1, 5, 1] {
            assert_eq!(read(&whole[..cut]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{cut}");
        }
        assert!(read(&[&whole[..], b"no frame"].concat()).is_err());
    }

    #[test]
    fn headers_say_how_large_window_and_content_are() {
        let content = vec![7; 300_000];
        for (log, says_size) in [(17, true), (17, false), (27, false), (31, false)] {
            let frame = frame(&content, log, says_size);
            let found = header(&frame).unwrap();
            assert_eq!(found, Header { window: 1 << log, content: says_size.then_some(300_000) });
            let len = (0..frame.len()).find(|len| header(&frame[..*len]).is_some()).unwrap();
            assert!(len <= HEADER && header(&frame[..len]) == Some(found));
        }
        for len in [1, 255, 256, 70_000] {
            let found = header(&zstd::bulk::compress(&vec![1; len], 1).unwrap()).unwrap();
            assert_eq!(found.content, Some(len as u64));
        }
        assert_eq!(header(&[0x52, 0x2a, 0x4d, 0x18]), Some(Header { window: 0, content: None }));
        assert_eq!(header(&[0x28, 0xb5, 0x2f, 0xfd, 0, 0xff]).unwrap().window, (1 << 41) + 7 * (1 << 38));
    }

    #[test]
    fn a_large_window_with_little_in_it_is_decoded() {
        let content: Vec<u8> = (0..3 << 20).map(|at: u32| (at % 251) as u8).collect();
        let mut frames = Frames::new(4 << 20).unwrap();
        for log in [27, 28, 29, 30, 31] {
            for says_size in [true, false] {
                let frame = [frame(&content, log, says_size), frame(b"next", 10, says_size)].concat();
                for part in [1 << 20, 7] {
                    let decoded = decode(&mut frames, &frame, part).unwrap();
                    assert!(decoded.starts_with(&content) && decoded.ends_with(b"next"), "{log} {says_size} {part}");
                    frames.restart().unwrap();
                }
            }
        }
    }

    #[test]
    fn a_window_of_which_more_is_needed_than_may_be_kept_is_refused_by_name() {
        let mut frames = Frames::new(1 << 20).unwrap();
        let refused = |frames: &mut Frames, input: &[u8], part| {
            let error = decode(frames, input, part).unwrap_err();
            frames.restart().unwrap();
            *error.get_ref().unwrap().downcast_ref::<WideWindow>().unwrap()
        };
        let content = vec![3; (1 << 20) + 1];
        for says_size in [true, false] {
            let frame = frame(&content, 23, says_size);
            let found = refused(&mut frames, &frame, 5);
            assert!(found.window > 1 << 20 && found.limit == 1 << 20, "{found:?}");
        }
        for header in wide(1 << 40) {
            assert!(refused(&mut frames, &header, 3).window >= 1 << 31);
        }
        let beyond = [0x28, 0xb5, 0x2f, 0xfd, 0, 22 << 3, 0];
        assert_eq!(refused(&mut frames, &beyond, 100).window, 1 << 32);
        let within = frame(&content, 20, false);
        assert_eq!(decode(&mut frames, &within, 1 << 20).unwrap(), content);
    }
}
