//! Every limit on what a layer's TOC may ask for, in one place.
//!
//! A TOC is hostile input until its digest is confirmed, and large even where it is honest. The limits are generous (podman
//! gives up at a TOC of 50 MiB; a layer of 2,000,000 entries opens here with room to spare) and they bound memory together:
//! what [`open`](fn@super::open) holds is at most the compressed TOC, some 200 bytes and its name for each entry, and 128 bytes for
//! each chunk. The decoded TOC is never held, only the entry at hand.

/// Directory entries of one layer, made-up parents included. At some 200 bytes each while building: 3.2 GiB at worst.
pub(crate) const ENTRIES: usize = 16 << 20;

/// Chunks of one layer: 1 TiB of contents in zstd:chunked's mean chunks of 64 KiB. 128 bytes each in the index: 2 GiB at worst.
pub(crate) const CHUNKS: usize = 16 << 20;

/// Chunks of one gzip member or zstd frame: reading one of them brings all. Writers that let files share members end one after some 50 KB.
pub(crate) const UNIT_PIECES: u32 = 64 << 10;

/// Decoded bytes of a unit that no chunk of a TOC has (tar headers, padding), and all of those of a zTOC's span: they are decoded to be thrown
/// away, so this bounds what a compressed run of zeros can cost a reader. (Units of our own index are bounded by [`HUGE_DECODED`].)
pub(crate) const UNIT_SKIPPED: u64 = 256 << 20;

/// Bytes of one name (Linux: `NAME_MAX`).
pub(crate) const NAME: usize = 255;

/// Bytes of a cleaned path (Linux: `PATH_MAX`).
pub(crate) const PATH: usize = 4096;

/// Bytes of a symlink's target (Linux: `PATH_MAX` less its NUL).
pub(crate) const SYMLINK: usize = 4095;

/// Symlinks that one path may lead through (Linux: `MAXSYMLINKS`).
pub(crate) const SYMLINKS: usize = 40;

/// Names that the targets of these may add to one path. It bounds the time that a path takes.
pub(crate) const SYMLINK_NAMES: usize = 16 << 10;

/// The same of all paths of a layer: each of [`ENTRIES`] may lead through a symlink or two, as below `lib -> usr/lib`.
pub(crate) const WALKED_NAMES: u64 = 64 << 20;

/// Bytes of a TOC as the registry stores it. It is held in memory while it is parsed; an eStargz entry takes 90 to 130 bytes,
/// so this is good for four million of them.
pub(crate) const TOC_COMPRESSED: u64 = 512 << 20;

/// Bytes of a TOC's JSON. It is streamed, so this bounds time, not memory: a compressed TOC of nothing but spaces ends here.
pub(crate) const TOC_DECODED: u64 = 4 << 30;

/// Bytes of JSON that one entry may take, its xattrs in base64 included; also the longest string, key or skipped value.
pub(crate) const ENTRY_JSON: u64 = 4 << 20;

/// Bytes of all names, link targets and paths of a layer.
pub(crate) const NAMES: usize = 1 << 30;

/// Bytes of an xattr's value (Linux: `XATTR_SIZE_MAX`).
pub(crate) const XATTR_VALUE: usize = 64 << 10;

/// Bytes of an entry's xattr names, each with its NUL (Linux: `XATTR_LIST_MAX`).
pub(crate) const XATTR_LIST: usize = 64 << 10;

/// Bytes of all different sets of xattrs of a layer, names and values.
pub(crate) const XATTRS: usize = 1 << 30;

/// Xattrs of all entries of a layer, equal ones too: each takes some 0.3 us. A real entry has three at most.
pub(crate) const XATTRS_GIVEN: usize = 16 << 20;

/// The largest size and offset, in bytes: what `off_t` holds.
pub(crate) const OFFSET: u64 = i64::MAX as u64;

/// Bytes of one header of a tar that describes another one: pax records, a GNU long name (Go's and libarchive's limit, too).
pub(crate) const TAR_EXTENSION: u64 = 1 << 20;

/// Headers of a tar that describe others, before one entry. Real ones have at most five: g, x, K, L and a second x.
pub(crate) const TAR_EXTENSIONS: u32 = 256;

/// Bytes of what a tar's global headers say of all entries, names and values: each entry may get a copy.
pub(crate) const TAR_GLOBALS: usize = 64 << 10;

/// Xattrs that a tar's global headers give to all entries: each gets them, so that they cost time for every entry.
pub(crate) const TAR_GLOBAL_XATTRS: usize = 64;

/// Bytes that a tar's global headers give to all entries together. A time that all have takes some 20 for each.
pub(crate) const TAR_GLOBALS_GIVEN: u64 = 4 << 30;

/// Stored parts of a sparse file in a tar: 16 bytes each in memory.
pub(crate) const SPARSE_PARTS: usize = 1 << 20;

/// Bytes of a tar-split's segments, and those among them that are neither headers nor padding: contents that podman could not read by their names,
/// and what follows the end of a tar. They are written to disk, and read by podman one segment at a time.
pub(crate) const TAR_SPLIT_SEGMENTS: u64 = 4 << 30;
pub(crate) const TAR_SPLIT_CONTENTS: u64 = 64 << 20;

/// Bytes of a tar-split that a blob carries, compressed, which are held in memory, and decompressed, which are not: good for some 500,000 entries.
/// What is larger takes a full read.
pub(crate) const TAR_SPLIT_STORED: u64 = 64 << 20;
pub(crate) const TAR_SPLIT_DECODED: u64 = 1 << 30;

/// Bytes of a layer file: 2^32 blocks of 4 KiB, so that a block number takes 32 bits.
pub(crate) const LAYER_FILE: u64 = 16 << 40;

/// The largest numbers of a device (Linux: `MAJOR` has 12 bits, `MINOR` 20).
pub(crate) const MAJOR: u32 = (1 << 12) - 1;
pub(crate) const MINOR: u32 = (1 << 20) - 1;

/// Compressed and decoded bytes of a unit above which what it yields is kept for as long as the layer is mounted: reading one file would cost
/// all of it.
pub(crate) const HUGE_UNIT: u64 = 16 << 20;
pub(crate) const HUGE_DECODED: u64 = 64 << 20;

/// Compressed bytes of a layer of one unit above which it is not called lazy: what a read of a layer in parts brings as well.
pub(crate) const UNDIVIDED: u64 = 1 << 20;

/// Bytes of a zstd window that are kept while a layer is read whole.
pub(crate) const ZSTD_WINDOW: u64 = crate::sys::frames::LARGEST_WINDOW;

/// The same while a unit is decoded for a reader: many are at a time. A unit of our own index unpacks to [`HUGE_DECODED`] at
/// most.
pub(crate) const UNIT_WINDOW: u64 = 128 << 20;
