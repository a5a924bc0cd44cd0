//! A layer format in, a layer index out. One file per format; no network, no FUSE, no inodes.

mod annotations;
mod builder;
mod entries;
mod error;
mod estargz;
mod footer;
mod foreign;
mod limits;
mod names;
mod open;
mod parse;
mod source;
mod stored;
mod time;
mod toc;
mod xattrs;
mod zstd_chunked;

pub use entries::{Child, Entries, Kind, Meta, NodeId, Time};
pub use error::{Error, Problem};
pub use footer::{Footer, TocPosition};
/// The largest TOC that is read, in bytes as the registry stores it.
pub const MAX_TOC_STORED: u64 = limits::TOC_COMPRESSED;

pub use stored::{Check, CheckKind, Codec, Damaged, Piece, StoredIndex, Unit};

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;

use crate::blob::{ByteRange, ByteSource, Digest, SourceError};

/// What a layer index is known by: which blob it describes, and who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerKey {
    pub blob: Digest,
    pub identity: Identity,
}

/// The identity of an index (docs/design.md, "Cache").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The TOC's digest as the manifest names it.
    Toc(Digest),
    /// Made from a blob whose own digest was confirmed.
    Own,
}

/// The formats that crfs serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Stargz,
    EStargz,
    EStargzExternalToc,
    ZstdChunked,
    /// A layer without any entry, whatever its format.
    Empty,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stargz => "stargz",
            Self::EStargz => "estargz",
            Self::EStargzExternalToc => "estargz (external TOC)",
            Self::ZstdChunked => "zstd:chunked",
            Self::Empty => "empty",
        })
    }
}

/// Who vouches for the TOC of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The manifest names the TOC's digest.
    Manifest,
    /// The whole blob was read and has its digest.
    Blob,
    /// Nobody: `--insecure-unverified-toc`.
    Unverified,
}

/// A layer as its manifest describes it.
#[derive(Debug, Clone)]
pub struct Descriptor {
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    pub media_type: String,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Blobs smaller than this many bytes are read whole, in one request.
    pub whole_layer_below: u64,
    /// Serve a layer although nothing vouches for its TOC.
    pub insecure_unverified_toc: bool,
}

/// What opening a layer gives.
pub struct Opened {
    pub format: Format,
    pub trust: Trust,
    /// `None` where nothing vouches for the TOC: such an index must not enter the shared cache.
    pub identity: Option<Identity>,
    /// The index, encoded for [`StoredIndex::open`].
    pub encoded: Bytes,
    /// The whole blob, where it was read and its digest was right.
    pub blob: Option<Bytes>,
}

/// Finds the TOC of an external-TOC eStargz layer: given the layer, the bytes of the layer blob of the `-esgztoc` image that names it.
pub type ExternalToc<'a> = &'a (dyn Fn(&Descriptor) -> Result<Bytes, SourceError> + Sync);

/// The identity that the manifest alone gives the index of this layer; `None` where it names no TOC digest.
///
/// # Errors
/// Where it names one that is none.
pub fn named_identity(layer: &Descriptor) -> Result<Option<Identity>, Error> {
    Ok(annotations::Named::of(layer)?.identity())
}

/// Reads the TOC of a layer with at most two reads of `source` and makes its index.
///
/// # Errors
/// Where the layer is of no format that crfs reads, nothing vouches for its TOC, or its TOC is not well-formed.
pub fn open(
    layer: &Descriptor,
    source: &dyn ByteSource,
    external: ExternalToc<'_>,
    options: &Options,
) -> Result<Opened, Error> {
    open::open(layer, source, external, options)
}

/// What the header of an encoded index says of the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    pub format: Format,
    /// Bytes of the layer file.
    pub layer_file_len: u64,
    /// Names in the tree: hard links and whiteouts are counted, the root and what is hidden are not.
    pub entries: u64,
    pub units: u32,
    pub checks: u32,
    /// Bytes of the TOC as stored in the registry (compressed).
    pub toc_len: u64,
    /// The part of the blob that a landmark wants prefetched.
    pub prefetch: Option<ByteRange>,
}

#[cfg(test)]
mod tests;
