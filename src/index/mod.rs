//! A layer format in, a layer index out. One file per format; no network, no FUSE, no inodes.

pub(crate) mod acl;
mod annotations;
mod builder;
mod chunk_index;
mod entries;
mod error;
mod estargz;
mod filesystem;
mod footer;
mod foreign;
mod holes;
mod limits;
mod names;
pub(crate) mod once;
mod open;
mod parse;
mod plain;
mod soci;
mod source;
mod stored;
mod tar;
mod tar_split;
pub(crate) mod time;
mod toc;
mod verity;
mod xattrs;
mod zstd_chunked;

pub use annotations::podman_asks;
pub use entries::{Child, Entries, Kind, Meta, NodeId, Time};
pub use error::{Damaged, Error, Problem};
pub(crate) use filesystem::{Frames, make as make_of_filesystem, make_unpacked as make_of_unpacked_filesystem};
pub use footer::{Footer, TocPosition};
pub use holes::Holes;
pub use soci::ZtocProblem;
/// The largest TOC that is read, in bytes as the registry stores it.
pub const MAX_TOC_STORED: u64 = limits::TOC_COMPRESSED;
/// The annotation by which a layer's descriptor is told here which layer is its chunk index.
pub(crate) const CHUNK_INDEX_LAYER: &str = chunk_index::LAYER;
/// The largest chunk index that is read, in bytes.
pub(crate) const MAX_CHUNK_INDEX: u64 = chunk_index::LARGEST;
/// Bytes at its beginning that a layer is recognised by.
pub(crate) const HEAD: usize = foreign::HEAD;
/// Symlinks that one path may lead through.
pub(crate) const MAX_SYMLINKS: usize = limits::SYMLINKS;
/// Bytes of a zstd window that are kept while a unit is decoded.
pub(crate) const MAX_UNIT_WINDOW: u64 = limits::UNIT_WINDOW;

#[cfg(fuzzing)]
pub use chunk_index::read_for_fuzzing as read_chunk_index_for_fuzzing;
#[cfg(fuzzing)]
pub use filesystem::fuzzing::read as read_filesystem_for_fuzzing;
#[cfg(fuzzing)]
pub use plain::fuzzing::{Unpacked, unpack as unpack_for_fuzzing};
pub(crate) use plain::{Event, Failed, Unpacker, make, split};
pub use plain::{Made, Split};
#[cfg(fuzzing)]
pub use soci::read_for_fuzzing as read_ztoc_for_fuzzing;
pub(crate) use stored::Chunks;
#[cfg(test)]
pub(crate) use stored::tests::of_small_files;
pub use stored::{Check, CheckKind, Chunk, Codec, Of, Packing, Piece, StoredIndex, Unit, Window};
#[cfg(fuzzing)]
pub use tar::read_for_fuzzing as read_tar_for_fuzzing;
#[cfg(fuzzing)]
pub use tar_split::carried::rewrite_for_fuzzing as rewrite_tar_split_for_fuzzing;
pub use tar_split::{NoTarSplit, TarSplit};
pub(crate) use tar_split::{Order as TarSplitOrder, carried as carried_tar_split};
#[cfg(fuzzing)]
pub use verity::read_for_fuzzing as read_hash_tree_for_fuzzing;

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::blob::{ByteRange, ByteSource, Digest, SourceError};
use crate::budget::{Budget, Charge};

/// What a layer index is known by: which blob it describes, and who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerKey {
    pub blob: Digest,
    pub identity: Identity,
}

/// The identity of an index (docs/design.md, "Cache").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Identity {
    /// The TOC's digest as the manifest names it.
    Toc(Digest),
    /// Made from a blob whose own digest was confirmed.
    Own,
    /// The digest of the zTOC that it was made from.
    Ztoc(Digest),
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
    /// A tar without a table of contents, not compressed.
    Tar,
    TarGzip,
    TarZstd,
    /// Filesystem images.
    Erofs,
    Squashfs,
}

impl Format {
    /// What people call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stargz => "stargz",
            Self::EStargz => "estargz",
            Self::EStargzExternalToc => "estargz (external TOC)",
            Self::ZstdChunked => "zstd:chunked",
            Self::Empty => "empty",
            Self::Tar => "tar",
            Self::TarGzip => "tar+gzip",
            Self::TarZstd => "tar+zstd",
            Self::Erofs => "erofs",
            Self::Squashfs => "squashfs",
        }
    }
}

impl Format {
    /// Whether a layer of it is an image of a filesystem, and no tar.
    #[must_use]
    pub const fn is_filesystem(self) -> bool {
        matches!(self, Self::Erofs | Self::Squashfs)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who vouches for the TOC of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// The manifest names the TOC's digest.
    Manifest,
    /// The whole blob was read and has its digest.
    Blob,
    /// A SOCI index has the digest of its zTOC, which has digests of compressed bytes alone.
    Soci,
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

#[derive(Debug, Clone)]
pub struct Options {
    /// Blobs smaller than this many bytes are read whole, in one request.
    pub whole_layer_below: u64,
    /// Serve a layer although nothing vouches for its TOC.
    pub insecure_unverified_toc: bool,
    /// Within which layers are indexed.
    pub memory: Budget,
}

/// What a look at a layer finds.
pub enum Found {
    Indexed(Opened),
    /// There is no TOC: only reading all of it can make an index. `blob`: all of it, where it was read and its digest was right.
    Plain {
        blob: Option<Bytes>,
    },
    /// There is one that counts only when the whole blob was read and had its digest.
    Unvouched(Format),
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
    /// For these bytes.
    pub charge: Charge,
}

/// Finds the TOC of an external-TOC eStargz layer: given the layer, the bytes of the layer blob of the `-esgztoc` image that names it. How many they are is
/// told before they are fetched, and they are not where that is an error.
pub type ExternalToc<'a> = &'a (dyn Fn(&Descriptor, Admit<'_>) -> Result<Bytes, SourceError> + Sync);

/// Waits until there is room for so many bytes.
pub type Admit<'a> = &'a mut dyn FnMut(u64) -> Result<(), SourceError>;

/// The identity that the manifest alone gives the index of this layer; `None` where it names no TOC digest, or one that is none: the blob's own
/// digest vouches for the layer, then.
#[must_use]
pub fn named_identity(layer: &Descriptor) -> Option<Identity> {
    annotations::Named::of(layer).ok()?.identity()
}

/// Reads the TOC of a layer with at most two reads of `source` and makes its index.
///
/// # Errors
/// Where the layer is of no format that crfs reads, or its TOC is not well-formed.
pub fn open(
    layer: &Descriptor,
    source: &dyn ByteSource,
    external: ExternalToc<'_>,
    options: &Options,
) -> Result<Found, Error> {
    open::open(layer, source, external, options)
}

/// The same for a layer whose TOC is not the one that its manifest names: as for one of which the manifest names none, but
/// with nothing unverified.
///
/// # Errors
/// As [`open`](fn@open).
pub fn open_unnamed(layer: &Descriptor, source: &dyn ByteSource, options: &Options) -> Result<Found, Error> {
    open::open_unnamed(layer, source, options)
}

/// Reads the TOC of a layer of which `source` has all bytes, and these the layer's digest, which vouches for the TOC.
///
/// # Errors
/// As [`open`](fn@open).
pub fn open_whole(layer: &Descriptor, source: &dyn ByteSource, memory: &Budget) -> Result<Opened, Error> {
    open::open_whole(layer, source, memory)
}

/// Bytes of the largest zTOC that is read.
pub const MAX_ZTOC: u64 = soci::LARGEST;

/// Makes the index of a layer from its zTOC of that digest. Nothing but the digests in it tells what its spans are, so that what is served by it is
/// trusted as far as the zTOC is.
///
/// # Errors
/// Where the bytes have another digest, or are no zTOC of this layer.
pub fn open_ztoc(layer: &Descriptor, digest: Digest, bytes: &Bytes, memory: &Budget) -> Result<Opened, Error> {
    match Digest::of(bytes) {
        got if got == digest => soci::index(layer, digest, bytes, memory),
        got => Err(Error::TocDigest { layer: layer.digest, named: digest, got }),
    }
}

/// What a blob without a TOC is by its first bytes.
///
/// # Errors
/// Where it is of no format that crfs reads.
pub(crate) fn plain_format(layer: &Descriptor, head: &[u8]) -> Result<Format, Error> {
    foreign::format(layer, head).map_err(|what| Error::Foreign { layer: layer.digest, what })
}

/// Whether what begins so is a zstd stream.
pub(crate) fn is_in_zstd(head: &[u8]) -> bool {
    crate::blob::Packing::of(head) == Some(crate::blob::Packing::Zstd)
}

/// Which filesystem image begins so.
///
/// # Errors
/// Where none does.
pub(crate) fn format_of_image(layer: &Descriptor, head: &[u8]) -> Result<Format, Error> {
    foreign::of_image(head).map_err(|what| Error::Foreign { layer: layer.digest, what })
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
    /// The digest of the decoded layer, where all of it was read to make the index.
    pub diff_id: Option<Digest>,
}

#[cfg(test)]
mod tests;
