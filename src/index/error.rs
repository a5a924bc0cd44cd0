//! Why a layer has no index: facts as fields, and in the message what to do about it.

use super::ZtocProblem;
use crate::blob::{ByteRange, Digest, SourceError};
use crate::budget::Exceeded;
use crate::sys::expansion::{Expands, WideTable};

/// The encoded index is not (or no longer) what was written: it is to be made again.
#[derive(Debug, thiserror::Error)]
#[error("index of {blob}: {what}")]
pub struct Damaged {
    pub blob: Digest,
    pub what: String,
}

/// Why a layer has no index.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("layer {layer}: {range} cannot be read")]
    Read { layer: Digest, range: ByteRange, source: SourceError },
    #[error("layer {layer} has {got} bytes where it is stored, but {said} by its manifest")]
    Size { layer: Digest, said: u64, got: u64 },
    #[error("layer {layer}: what was read has the digest {got}; the registry or something before it sends wrong bytes")]
    BlobDigest { layer: Digest, got: Digest },
    #[error("layer {layer}: its TOC has the digest {got}, but the manifest names {named}")]
    TocDigest { layer: Digest, named: Digest, got: Digest },
    #[error(
        "layer {layer} is {what}: crfs serves tar, tar+gzip and tar+zstd layers, with an index or without, and EROFS and squashfs ones; convert the image to one of these"
    )]
    Foreign { layer: Digest, what: String },
    #[error("layer {layer}: its {what} cannot be used: {problem}")]
    Unvouched { layer: Digest, what: &'static str, problem: String },
    #[error("layer {layer}: it has no TOC where it should have one")]
    NoToc { layer: Digest },
    #[error("layer {layer}: what it has as its TOC cannot be decompressed")]
    TocDamaged { layer: Digest },
    #[error(
        "layer {layer}: its blob has the digest that the manifest names, but cannot be decompressed; push the image again"
    )]
    Undecodable { layer: Digest, source: std::io::Error },
    #[error(
        "layer {layer} is compressed by zstd with a window of {} MiB, of which crfs would have to keep more than {} MiB in memory: push it again, \
         compressed with a window of {1} MiB at most (`zstd --long=29`)", window >> 20, limit >> 20
    )]
    Window { layer: Digest, window: u64, limit: u64 },
    #[error(
        "layer {layer}: {found}, for all layers of an image together; push it again with its files of zeros as sparse ones (`tar --sparse`), or \
         compressed by gzip"
    )]
    Expands { layer: Digest, found: Expands },
    #[error(
        "layer {layer}: unpacked it has the digest {got}, but the image's config names {named}; push the image again"
    )]
    DiffId { layer: Digest, named: Digest, got: Digest },
    #[error("layer {layer}: annotation {key}={value:?} is not {wanted}")]
    Annotation { layer: Digest, key: String, value: String, wanted: &'static str },
    #[error("layer {layer}: its TOC image cannot be used")]
    ExternalToc { layer: Digest, source: SourceError },
    #[error(
        "layer {layer}: the cache has no room for its {needed} bytes, all of which are needed to index a filesystem image"
    )]
    NoRoom { layer: Digest, needed: u64, source: std::io::Error },
    #[error("layer {layer}: its index cannot be made")]
    Encode { layer: Digest, source: std::io::Error },
    #[error("layer {layer}: {what}")]
    Memory { layer: Digest, what: &'static str, source: Exceeded },
    #[error(transparent)]
    Damaged(#[from] Damaged),
    #[error("layer {layer}: {}{problem}", near(.entry.as_deref()))]
    Toc {
        layer: Digest,
        /// The entry that is at fault, escaped.
        entry: Option<String>,
        problem: Problem,
    },
}

fn near(entry: Option<&str>) -> String {
    entry.map(|entry| format!("entry {entry}: ")).unwrap_or_default()
}

impl Error {
    /// Whether other bytes came than the manifest has digests of, so that a read past caches may mend it.
    #[must_use]
    pub const fn is_wrong_bytes(&self) -> bool {
        matches!(
            self,
            Self::BlobDigest { .. }
                | Self::TocDigest { .. }
                | Self::NoToc { .. }
                | Self::TocDamaged { .. }
                | Self::Unvouched { .. }
        )
    }

    /// Whether the layer may be another one than that which the manifest's annotations were written for.
    #[must_use]
    pub const fn is_misfit(&self) -> bool {
        matches!(
            self,
            Self::Annotation { .. }
                | Self::TocDigest { .. }
                | Self::NoToc { .. }
                | Self::TocDamaged { .. }
                | Self::ExternalToc { .. }
                | Self::Unvouched { .. }
        )
    }
}

/// What is wrong with a TOC or with one of its entries.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("the layer says that its TOC is at {0}, which no blob of its size can hold")]
    Position(ByteRange),
    #[error("a TOC of {len} bytes, more than the {limit} that crfs reads")]
    TocTooLarge { len: u64, limit: u64 },
    #[error("the TOC is too large: {0}")]
    TocExpands(#[from] WideTable),
    #[error("the TOC is longer or shorter than the {said} bytes that the layer declares")]
    DecodedLength { said: u64 },
    #[error("the TOC is not stored as a tar entry stargz.index.json")]
    NotTheTocEntry,
    #[error("the TOC cannot be parsed: {0}")]
    Json(serde_json::Error),
    #[error("TOC version {0} is not known")]
    Version(u64),
    #[error("the TOC has no list of entries")]
    NoEntries,
    #[error("the TOC has two lists of entries")]
    TwoEntries,
    #[error("more than {limit} {what}")]
    TooMany { what: &'static str, limit: usize },

    #[error("at byte {offset} of the tar: {problem}")]
    Tar {
        /// Of the entry's header.
        offset: u64,
        problem: Box<Problem>,
    },

    #[error("a window cannot be compressed: {0}")]
    Window(std::io::Error),

    #[error("it has no name")]
    NoName,
    #[error("its name or link leads out of the root by \"..\"")]
    DotDot,
    #[error("its name or link contains a NUL")]
    Nul,
    #[error("a name of {len} bytes (the limit is 255)")]
    NameTooLong { len: usize },
    #[error("a path of {len} bytes (the limit is 4096)")]
    PathTooLong { len: usize },
    #[error("a symlink target of {len} bytes (1 to 4095 are possible)")]
    SymlinkTarget { len: usize },
    #[error("{key} is {found}")]
    Value { key: &'static str, found: String },
    #[error("{key} is {value}, more than {limit}")]
    Number { key: &'static str, value: u64, limit: u64 },
    #[error("the type {0:?} is not known")]
    Type(String),
    #[error("the chunk type {0:?} is not known")]
    ChunkType(String),
    #[error("xattr {name}: {what}")]
    Xattr { name: String, what: &'static str },
    #[error("it replaces the root, which must be a directory")]
    RootNotADirectory,
    #[error("its parent {0} is not a directory")]
    ParentNotADirectory(String),
    #[error("its path leads through more than {limit} symlinks, or in a circle")]
    TooManySymlinks { limit: usize },
    #[error("its path leads through more than {limit} names by way of symlinks")]
    LongWay { limit: usize },
    #[error("a whiteout of nothing that a layer can have: {0}")]
    Whiteout(String),
    #[error("a hard link to the directory {0}")]
    LinkToDirectory(String),
    #[error("a hard link to the whiteout {0}")]
    LinkToWhiteout(String),
    #[error("a hard link that leads back to itself by way of {0}")]
    LinkCycle(String),

    #[error("a chunk that does not follow its file")]
    StrayChunk,
    #[error("its chunks leave a gap at byte {at}")]
    Gap { at: u64 },
    #[error("its chunks overlap at byte {at}")]
    Overlap { at: u64 },
    #[error("nothing says where its contents are in the blob")]
    NoOffset,
    #[error("its contents are said to be at byte {offset} of the blob, before those of the entry that precedes it")]
    Order { offset: u64 },
    #[error("its contents are said to be at {0}, outside of the blob's payload")]
    OutsideBlob(ByteRange),
    #[error("its contents overlap others in the decoded data that starts at byte {offset} of the blob")]
    UnitOverlap { offset: u64 },
    #[error("no digest covers byte {at} and on")]
    NoDigest { at: u64 },

    #[error("it is not a tar header: its checksum is {said}, but its bytes come to {sum}")]
    Checksum { said: String, sum: u64 },
    #[error("the tar ends in the middle of it")]
    Truncated,
    #[error("what follows a block of zeros is neither another one nor the end")]
    LoneZeroBlock,
    #[error("it describes an entry that does not follow")]
    Dangling,
    #[error("its pax record at byte {at} is malformed")]
    PaxRecord { at: usize },
    #[error("a global pax header says {0} of all files")]
    GlobalRecord(String),
    #[error("its map of a sparse file {0}")]
    SparseMap(&'static str),
    #[error("it is named as a directory and has {size} bytes of contents")]
    DirectoryWithContents { size: u64 },

    #[error("the filesystem image is malformed: {0}; push the image again")]
    Filesystem(String),
    #[error("the filesystem image uses {0}, which crfs does not read; make it without")]
    FilesystemFeature(String),

    #[error("with it, {0}")]
    Memory(#[from] Exceeded),

    #[error("the zTOC {0}")]
    Ztoc(#[from] ZtocProblem),
}

/// A [`Problem`] and the entry that has it, on its way to the layer's name.
#[derive(Debug)]
pub(crate) struct Rejected {
    pub(crate) entry: Option<String>,
    pub(crate) problem: Problem,
}

impl Rejected {
    pub(crate) fn entry(raw_name: &[u8], problem: Problem) -> Self {
        Self { entry: Some(shown(raw_name)), problem }
    }

    pub(crate) fn at(self, layer: Digest) -> Error {
        Error::Toc { layer, entry: self.entry, problem: self.problem }
    }
}

impl From<Problem> for Rejected {
    fn from(problem: Problem) -> Self {
        Self { entry: None, problem }
    }
}

/// A name as messages show it: escaped, and cut where it is very long.
pub(crate) fn shown(raw: &[u8]) -> String {
    const LONGEST: usize = 1024;
    let text = String::from_utf8_lossy(raw.get(..LONGEST).unwrap_or(raw));
    let cut = if raw.len() > LONGEST { "..." } else { "" };
    format!("\"{}\"{cut}", text.escape_debug())
}
