//! How filesystem images pack blocks. The same codecs unpack a unit later (fetch/decode.rs); here a block is unpacked as a whole.

use std::io::{self, Read};

use crate::index::stored::Codec;
use crate::sys::xz;

/// How a block is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Zlib,
    /// Deflate without anything around it.
    Deflate,
    Lz4,
    Xz,
    Zstd,
    /// The same behind zeros that fill a block.
    PaddedLz4,
    PaddedDeflate,
    PaddedZstd,
    MicroLzma,
}

impl How {
    /// The codec of a unit that unpacks to so many bytes.
    pub(super) const fn codec(self, unpacked: u32) -> Codec {
        match self {
            Self::Zlib => Codec::Zlib,
            Self::Deflate => Codec::Inflate,
            Self::Lz4 => Codec::Lz4 { unpacked },
            Self::Xz => Codec::Xz,
            Self::Zstd => Codec::Zstd,
            Self::PaddedLz4 => Codec::PaddedLz4 { unpacked },
            Self::PaddedDeflate => Codec::PaddedInflate,
            Self::PaddedZstd => Codec::PaddedZstd,
            Self::MicroLzma => Codec::MicroLzma,
        }
    }

    /// The same behind zeros; only EROFS has such.
    pub(super) const fn padded(self) -> Self {
        match self {
            Self::Lz4 => Self::PaddedLz4,
            Self::Deflate => Self::PaddedDeflate,
            Self::Zstd => Self::PaddedZstd,
            other => other,
        }
    }

    /// What is packed, and how, once the zeros before it are gone.
    fn bare(self, packed: &[u8]) -> (Self, &[u8]) {
        let bare = match self {
            Self::PaddedLz4 => Self::Lz4,
            Self::PaddedDeflate => Self::Deflate,
            Self::PaddedZstd => Self::Zstd,
            Self::MicroLzma => Self::MicroLzma,
            other => return (other, packed),
        };
        let zeros = packed.iter().take_while(|byte| **byte == 0).count();
        (bare, packed.get(zeros..).unwrap_or_default())
    }
}

/// All bytes of a block, of which there are `needed` at least and `most` at most.
pub(super) fn unpack(how: How, packed: &[u8], needed: u64, most: u64) -> io::Result<Vec<u8>> {
    let (how, packed) = how.bare(packed);
    let bytes = match how {
        How::Zlib => all(flate2::bufread::ZlibDecoder::new(packed), most),
        How::Deflate | How::PaddedDeflate => all(flate2::bufread::DeflateDecoder::new(packed), most),
        How::Xz => all(xz::Decoder::new(packed)?, most),
        // It does not say where it ends.
        How::MicroLzma => all(xz::MicroLzma::new(packed)?, needed),
        // A block mostly has what is needed of it and no more.
        How::Lz4 | How::PaddedLz4 => {
            lz4(packed, needed).or_else(|error| if most > needed { lz4(packed, most) } else { Err(error) })
        }
        How::Zstd | How::PaddedZstd => {
            zstd(packed, needed).or_else(|error| if most > needed { zstd(packed, most) } else { Err(error) })
        }
    }?;
    if (bytes.len() as u64) < needed { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
}

fn all(decoder: impl Read, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    decoder.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn lz4(packed: &[u8], room: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(room).unwrap_or(usize::MAX)];
    let len = lz4_flex::block::decompress_into(packed, &mut bytes).map_err(io::Error::other)?;
    bytes.truncate(len);
    bytes.shrink_to_fit();
    Ok(bytes)
}

fn zstd(packed: &[u8], room: u64) -> io::Result<Vec<u8>> {
    zstd::bulk::decompress(packed, usize::try_from(room).unwrap_or(usize::MAX))
}

/// All bytes of a block, whatever there are up to `most`.
pub(super) fn unpack_up_to(how: How, packed: &[u8], most: u64) -> io::Result<Vec<u8>> {
    match how {
        How::Lz4 => lz4(packed, most),
        How::Zstd => zstd(packed, most),
        _ => unpack(how, packed, 0, most),
    }
}
