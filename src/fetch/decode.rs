//! One unit of a blob into the pieces of files that it holds.

use std::io::{self, BufRead, Read};

use crate::index::{self, Codec, Piece};
use crate::sys::frames::{Frames, Unpacked};
use crate::sys::inflate::{Inflate, Stop, Wrapping};
use crate::sys::xz;

/// Decoded bytes are handed on in parts of at most this size.
const PART: usize = 64 << 10;

/// Decodes units one after the other; what a decoder needs is made once for all of them.
pub struct Units {
    part: Vec<u8>,
    zstd: Frames,
}

impl Units {
    /// # Errors
    /// Where there is no memory for a decoder.
    pub fn new() -> io::Result<Self> {
        Ok(Self { part: vec![0; PART], zstd: Frames::new(index::MAX_UNIT_WINDOW)? })
    }

    /// Decodes one unit, of which `input` has the bytes and no more, and hands each piece's bytes to `sink`, with their place in the layer file, in
    /// order. `window`: what comes before it, where its codec needs that.
    ///
    /// Reads no further than the last piece: what else a unit decodes to (tar headers, padding) is nobody's, so a unit that would decode to
    /// more than its index says costs nothing.
    ///
    /// # Errors
    /// Where the input is not of that codec or ends early, or `sink` fails.
    pub fn decode(
        &mut self,
        codec: Codec,
        window: &[u8],
        input: impl BufRead,
        pieces: &[Piece],
        sink: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        match codec {
            // A member, not the whole stream: what follows belongs to the next unit.
            Codec::Gzip => cut(flate2::bufread::GzDecoder::new(input), &mut self.part, pieces, sink),
            Codec::Zstd => {
                self.zstd.restart()?;
                cut(Unpacked::new(input, &mut self.zstd), &mut self.part, pieces, sink)
            }
            Codec::Stored => cut(input, &mut self.part, pieces, sink),
            Codec::Zlib => cut(flate2::bufread::ZlibDecoder::new(input), &mut self.part, pieces, sink),
            Codec::Inflate => cut(flate2::bufread::DeflateDecoder::new(input), &mut self.part, pieces, sink),
            Codec::Xz => cut(xz::Decoder::new(input)?, &mut self.part, pieces, sink),
            Codec::Lz4 { unpacked } => cut(&lz4(input, unpacked)?[..], &mut self.part, pieces, sink),
            Codec::PaddedLz4 { unpacked } => cut(&lz4(past_zeros(input)?, unpacked)?[..], &mut self.part, pieces, sink),
            Codec::MicroLzma => cut(xz::MicroLzma::new(past_zeros(input)?)?, &mut self.part, pieces, sink),
            Codec::PaddedInflate => {
                cut(flate2::bufread::DeflateDecoder::new(past_zeros(input)?), &mut self.part, pieces, sink)
            }
            Codec::PaddedZstd => {
                self.zstd.restart()?;
                cut(Unpacked::new(past_zeros(input)?, &mut self.zstd), &mut self.part, pieces, sink)
            }
            Codec::Deflate { bits, .. } => cut(Span::new(input, bits, window)?, &mut self.part, pieces, sink),
        }
    }
}

/// What comes behind the zeros that fill a block.
fn past_zeros<R: BufRead>(mut input: R) -> io::Result<R> {
    loop {
        let bytes = input.fill_buf()?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        if zeros == 0 || zeros < bytes.len() {
            input.consume(zeros);
            return Ok(input);
        }
        input.consume(zeros);
    }
}

/// What an lz4 block unpacks to: it is unpacked as a whole.
fn lz4(mut input: impl BufRead, unpacked: u32) -> io::Result<Vec<u8>> {
    let mut packed = Vec::new();
    input.read_to_end(&mut packed)?;
    let mut bytes = vec![0; unpacked as usize];
    let len = lz4_flex::block::decompress_into(&packed, &mut bytes).map_err(io::Error::other)?;
    bytes.truncate(len);
    Ok(bytes)
}

/// What comes behind deflate data.
enum Behind {
    /// It is not over.
    Nothing,
    /// A gzip member's trailer, of which so many bytes are left.
    Trailer(usize),
    /// Further members.
    Members(Inflate),
}

/// Bytes of a gzip member's trailer (RFC 1952, section 2.3.1).
const TRAILER: usize = 8;

/// Deflate blocks from a checkpoint on, decoded, and the gzip members behind them.
struct Span<R> {
    input: R,
    blocks: Inflate,
    behind: Behind,
}

impl<R: BufRead> Span<R> {
    fn new(mut input: R, bits: u8, window: &[u8]) -> io::Result<Self> {
        let mut first = [0];
        if bits > 0 {
            input.read_exact(&mut first)?;
        }
        let [first] = first;
        let blocks = Inflate::resumed(bits, first, window)?;
        Ok(Self { input, blocks, behind: Behind::Nothing })
    }

    /// The next step; `None` at the end of the input.
    fn step(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let input = self.input.fill_buf()?;
        let inflate = match &mut self.behind {
            Behind::Nothing => &mut self.blocks,
            Behind::Members(members) => members,
            Behind::Trailer(_) if input.is_empty() => return Ok(None),
            Behind::Trailer(left) => {
                let skipped = input.len().min(*left);
                *left -= skipped;
                if *left == 0 {
                    self.behind = Behind::Members(Inflate::new(Wrapping::Gzip)?);
                }
                self.input.consume(skipped);
                return Ok(Some(0));
            }
        };
        let step = inflate.step(input, buffer)?;
        self.input.consume(step.consumed);
        match &mut self.behind {
            behind @ Behind::Nothing if step.stop == Stop::End => *behind = Behind::Trailer(TRAILER),
            Behind::Members(members) if step.stop == Stop::End => members.reset(),
            _ => {}
        }
        let has_moved = step.consumed + step.produced > 0 || step.stop == Stop::End;
        Ok(has_moved.then_some(step.produced))
    }
}

impl<R: BufRead> Read for Span<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !buffer.is_empty() {
            match self.step(buffer)? {
                Some(0) => {}
                produced => return Ok(produced.unwrap_or(0)),
            }
        }
        Ok(0)
    }
}

fn cut(
    mut decoded: impl Read,
    part: &mut [u8],
    pieces: &[Piece],
    sink: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut position = 0u64;
    for piece in pieces {
        let skip = piece.in_unit.checked_sub(position).ok_or(io::ErrorKind::InvalidInput)?;
        let skipped = io::copy(&mut decoded.by_ref().take(skip), &mut io::sink())?;
        if skipped != skip {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut at = piece.range.start;
        while at < piece.range.end {
            let wanted = usize::try_from(piece.range.end - at).unwrap_or(PART).min(PART);
            let part = part.get_mut(..wanted).ok_or(io::ErrorKind::InvalidInput)?;
            decoded.read_exact(part)?;
            sink(at, part)?;
            at += wanted as u64;
        }
        position = piece.in_unit.checked_add(piece.range.len()).ok_or(io::ErrorKind::InvalidInput)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::ByteRange;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn piece(in_unit: u64, at: u64, len: u64) -> Piece {
        Piece { unit: 0, in_unit, range: ByteRange { start: at, end: at + len } }
    }

    fn decode(codec: Codec, input: &[u8], pieces: &[Piece]) -> io::Result<Vec<(u64, Vec<u8>)>> {
        let mut out = Vec::new();
        Units::new()?.decode(codec, &[], input, pieces, &mut |at, bytes| {
            out.push((at, bytes.to_vec()));
            Ok(())
        })?;
        Ok(out)
    }

    #[test]
    fn pieces_come_out_of_the_middle_of_either_codec() {
        let content = b"header--one--padding--two--rest";
        let pieces = [piece(8, 0, 3), piece(22, 4096, 3)];
        let wanted = vec![(0, b"one".to_vec()), (4096, b"two".to_vec())];
        assert_eq!(decode(Codec::Gzip, &gzip(content), &pieces).unwrap(), wanted);
        assert_eq!(decode(Codec::Zstd, &zstd::encode_all(&content[..], 1).unwrap(), &pieces).unwrap(), wanted);
    }

    #[test]
    fn a_member_never_runs_into_the_next_one_and_frames_go_on() {
        let both = [gzip(b"first"), gzip(b"second")].concat();
        assert_eq!(decode(Codec::Gzip, &both, &[piece(0, 0, 5)]).unwrap(), [(0, b"first".to_vec())]);
        assert!(decode(Codec::Gzip, &both, &[piece(0, 0, 6)]).is_err());
        let frames = [&b"first"[..], b"", b"second"].map(|part| zstd::encode_all(part, 1).unwrap()).concat();
        assert_eq!(decode(Codec::Zstd, &frames, &[piece(3, 0, 4)]).unwrap(), [(0, b"stse".to_vec())]);
        assert!(decode(Codec::Zstd, &frames, &[piece(0, 0, 12)]).is_err());
    }

    #[test]
    fn a_span_goes_on_through_members() {
        let members = [gzip(b"first"), gzip(b""), gzip(b"second")].concat();
        let span = Codec::Deflate { bits: 0, window: None };
        assert_eq!(decode(span, &members[10..], &[piece(3, 0, 4)]).unwrap(), [(0, b"stse".to_vec())]);
        assert!(decode(span, &members[10..], &[piece(0, 0, 12)]).is_err());
        assert_eq!(decode(Codec::Stored, b"abcdef", &[piece(1, 9, 2)]).unwrap(), [(9, b"bc".to_vec())]);
    }

    #[test]
    fn a_broken_unit_does_not_spoil_the_next_one() {
        let good = zstd::encode_all(&b"good"[..], 1).unwrap();
        let mut units = Units::new().unwrap();
        for broken in [&good[..good.len() - 1], b"no frame", b""] {
            assert!(units.decode(Codec::Zstd, &[], broken, &[piece(0, 0, 4)], &mut |_, _| Ok(())).is_err());
            let mut seen = Vec::new();
            let keep = &mut |_, bytes: &[u8]| {
                seen.extend_from_slice(bytes);
                Ok(())
            };
            units.decode(Codec::Zstd, &[], &good[..], &[piece(0, 0, 4)], keep).unwrap();
            assert_eq!(seen, b"good");
        }
    }

    #[test]
    fn zeros_that_fill_a_block_are_passed_over() {
        let content = b"some words, and some words again, and some words".repeat(9);
        let (zstd, lz4) = (zstd::encode_all(&content[..], 1).unwrap(), lz4_flex::block::compress(&content));
        let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        deflate.write_all(&content).unwrap();
        let wanted = vec![(7, content[3..20].to_vec())];
        for (codec, packed) in [
            (Codec::PaddedZstd, zstd),
            (Codec::PaddedLz4 { unpacked: 1 << 20 }, lz4),
            (Codec::PaddedInflate, deflate.finish().unwrap()),
        ] {
            for zeros in [0, 1, 4000] {
                let block = [vec![0; zeros], packed.clone()].concat();
                assert_eq!(decode(codec, &block, &[piece(3, 7, 17)]).unwrap(), wanted, "{codec:?} {zeros}");
            }
            assert!(decode(codec, &[0; 4096], &[piece(3, 7, 17)]).is_err());
        }
    }

    #[test]
    fn a_bomb_costs_only_what_was_declared() {
        let bomb = gzip(&vec![0; 64 << 20]);
        let mut seen = 0;
        let mut units = Units::new().unwrap();
        let count = &mut |_, bytes: &[u8]| {
            seen += bytes.len();
            Ok(())
        };
        units.decode(Codec::Gzip, &[], &bomb[..], &[piece(0, 0, 10)], count).unwrap();
        assert_eq!(seen, 10);
    }

    #[test]
    fn a_cut_unit_gives_all_of_its_bytes_or_an_error() {
        let content: Vec<u8> = (0..=255u8).cycle().take(2000).collect();
        for (codec, unit) in [(Codec::Gzip, gzip(&content)), (Codec::Zstd, zstd::encode_all(&content[..], 3).unwrap())]
        {
            for cut in 0..=unit.len() {
                match decode(codec, &unit[..cut], &[piece(0, 0, 2000)]) {
                    Ok(parts) => assert_eq!(parts, [(0, content.clone())], "cut at {cut}"),
                    Err(_) => assert!(cut < unit.len()),
                }
            }
        }
    }
}
