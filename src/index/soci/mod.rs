//! The zTOC of a gzip or plain tar layer, as soci-snapshotter makes it (commit 77fb426, ztoc/; version 0.9): entries of the tar, and spans of
//! the blob that can be decoded by themselves.
//!
//! ```text
//! Ztoc (flatbuffers, ztoc.fbs)
//!   version, compressed_archive_size, uncompressed_archive_size
//!   toc.metadata: an entry of the tar each, in its order, with the place of its contents in the tar
//!   compression_info: a sha256 for each span of the blob, and the checkpoints
//!
//! gzip      i32 count, i64 span size, then for each checkpoint        (little endian)
//!           i64 in, i64 out, u8 bits, 32768 bytes of window
//!           count - 1 checkpoints: the first, in 10 and out 0, is left out
//!
//! blob      | header |   span 0   |   span 1   |  ...  | span n, trailer |
//!                    in 0         in 1                 in n              size
//!           bits: so many high bits of the byte before `in` belong to the span, which starts with that byte
//!
//! plain tar flatbuffers {version, span size, size}: spans of equal size
//! ```
//!
//! Nothing here has a digest of decoded bytes, and the windows decide what is decoded: a zTOC is trusted as far as its own digest is.

#[rustfmt::skip]
#[allow(
    clippy::all,
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    unsafe_code,
    unsafe_op_in_unsafe_fn,
    unreachable_pub,
    dead_code,
    reason = "generated; crfs reads buffers only through what verifies them"
)]
mod ztoc_generated;

mod entry;
mod make;
mod problem;
mod spans;

use bytes::Bytes;
use flatbuffers::VerifierOptions;

pub(crate) use make::index;
pub use problem::ZtocProblem;

use self::ztoc_generated::ztoc::{self as generated, CompressionAlgorithm, root_as_ztoc_with_opts};
use super::error::{Problem, Rejected};
use super::limits;
use super::toc::TocEntry;
use crate::blob::{ByteRange, Digest};
use crate::budget::Charge;

/// Bytes of the largest zTOC that is read: 32 KiB for each span.
pub(crate) const LARGEST: u64 = limits::TOC_COMPRESSED;

/// Bytes for a span while a zTOC is read, but for its window, which stays where it is.
const EACH_SPAN: usize = 256;

/// The only version that there is.
const VERSION: &str = "0.9";

/// Tables in tables: a record in an entry in the list in the zTOC.
const DEPTH: usize = 4;

/// A zTOC that was looked through: everything but the entries.
#[derive(Debug)]
pub(crate) struct Ztoc {
    /// Bytes of the tar stream; of a gzip layer at least those up to the end of the tar, zero blocks behind it left out.
    pub(crate) decoded_size: u64,
    pub(crate) compression: Compression,
    /// In the order of the blob.
    pub(crate) spans: Vec<Span>,
    bytes: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Gzip,
    Uncompressed,
}

/// A part of the blob that can be decoded by itself. It may decode to nothing.
#[derive(Debug)]
pub(crate) struct Span {
    /// What the digest covers. The last byte of a span is the first of the next one as well, where that one has `bits`.
    pub(crate) compressed: ByteRange,
    /// Where in the tar stream it starts. It ends where the next one starts, the last with the stream.
    pub(crate) decoded: u64,
    /// So many high bits of its first byte belong to it; 0: the whole byte.
    pub(crate) bits: u8,
    /// The 32 KiB of the tar stream before it; `None` where nothing is before it.
    pub(crate) window: Option<Bytes>,
    pub(crate) digest: Digest,
}

/// Reads the zTOC of a blob of that size.
///
/// # Errors
/// Where it is malformed, of another blob, or its spans are impossible.
pub(crate) fn read(bytes: &Bytes, blob_size: u64, charge: &mut Charge) -> Result<Ztoc, Rejected> {
    Ok(read_spans(bytes, blob_size, charge)?)
}

fn read_spans(bytes: &Bytes, blob_size: u64, charge: &mut Charge) -> Result<Ztoc, Problem> {
    let ztoc = root(bytes)?;
    let info = ztoc.compression_info().ok_or(ZtocProblem::Missing("compression_info"))?;
    let compressed_size = size("compressed_archive_size", ztoc.compressed_archive_size())?;
    let declared = size("uncompressed_archive_size", ztoc.uncompressed_archive_size())?;
    if compressed_size != blob_size {
        return Err(ZtocProblem::OtherBlob { said: compressed_size, is: blob_size }.into());
    }
    let count = info.span_digests().map_or(0, |digests| digests.len());
    charge.cover((count * EACH_SPAN) as u64, u64::MAX)?;
    let digests = digests(&info)?;
    let (compression, spans) = match info.compression_algorithm() {
        CompressionAlgorithm::Gzip => (Compression::Gzip, spans::of_gzip(&info, bytes, &digests, blob_size)?),
        CompressionAlgorithm::Uncompressed => (Compression::Uncompressed, spans::of_tar(&info, &digests, blob_size)?),
        other => return Err(ZtocProblem::Compression(other.0).into()),
    };
    let decoded_size = match compression {
        Compression::Uncompressed if declared > blob_size => {
            return Err(ZtocProblem::Value {
                key: "uncompressed_archive_size",
                value: ztoc.uncompressed_archive_size(),
            }
            .into());
        }
        Compression::Uncompressed => blob_size,
        // A checkpoint may lie among the zero blocks that the declared size leaves out.
        Compression::Gzip => spans.last().map_or(declared, |last| last.decoded.max(declared)),
    };
    Ok(Ztoc { decoded_size, compression, spans, bytes: bytes.clone() })
}

impl Ztoc {
    /// Gives every entry in the order of the tar; its `offset` is that of its contents in the tar stream.
    ///
    /// # Errors
    /// Those of `each`, and where an entry is impossible by itself or its contents are not behind those of the one before it.
    pub(crate) fn entries(&self, each: &mut dyn FnMut(&mut TocEntry) -> Result<(), Rejected>) -> Result<(), Rejected> {
        let ztoc = root(&self.bytes)?;
        let toc = ztoc.toc().ok_or(Problem::from(ZtocProblem::Missing("toc")))?;
        let mut entry = TocEntry::default();
        let mut end = 0;
        for metadata in toc.metadata().into_iter().flatten() {
            entry.clear();
            let name = metadata.name().map_or(&[][..], |name| name.bytes());
            let filled = entry::fill(&mut entry, &metadata);
            let contents = filled.and_then(|()| contents(&entry, end, self.decoded_size));
            end = contents.map_err(|problem| Rejected::entry(name, problem))?.end;
            each(&mut entry)?;
        }
        Ok(())
    }
}

/// Where an entry's contents are in the tar stream: behind those of the one before it.
fn contents(entry: &TocEntry, before: u64, decoded_size: u64) -> Result<ByteRange, Problem> {
    let place = ByteRange::at(entry.offset, entry.size).filter(|place| place.end <= decoded_size);
    let place = place.ok_or(ZtocProblem::Contents { offset: entry.offset, len: entry.size, size: decoded_size })?;
    if place.start < before {
        return Err(ZtocProblem::Order { offset: place.start, before }.into());
    }
    Ok(place)
}

/// The root of the buffer, verified: work and depth are bounded by the buffer's size, even where its tables share parts.
fn root(bytes: &Bytes) -> Result<generated::Ztoc<'_>, Problem> {
    let len = bytes.len() as u64;
    if len > LARGEST {
        return Err(Problem::TocTooLarge { len, limit: LARGEST });
    }
    let ztoc = root_as_ztoc_with_opts(&verifier_options(bytes.len()), bytes).map_err(ZtocProblem::malformed)?;
    match ztoc.version() {
        Some(VERSION) => Ok(ztoc),
        other => Err(ZtocProblem::Version(problem::shortened(other.unwrap_or_default())).into()),
    }
}

fn verifier_options(len: usize) -> VerifierOptions {
    VerifierOptions {
        max_depth: DEPTH,
        // A table takes four bytes at least; each is looked at once where a writer shares none.
        max_tables: len / 4,
        // Vtables are shared by all tables of a kind.
        max_apparent_size: len.saturating_mul(16),
        ignore_missing_null_terminator: true,
    }
}

/// A size or an offset: written with a sign, never negative.
fn size(key: &'static str, value: i64) -> Result<u64, ZtocProblem> {
    u64::try_from(value).map_err(|_| ZtocProblem::Value { key, value })
}

/// The digests of all spans.
fn digests(info: &generated::CompressionInfo<'_>) -> Result<Vec<Digest>, ZtocProblem> {
    let texts = info.span_digests().ok_or(ZtocProblem::Missing("span_digests"))?;
    let last = info.max_span_id();
    if usize::try_from(last).ok().and_then(|last| last.checked_add(1)) != Some(texts.len()) {
        return Err(ZtocProblem::Digests { digests: texts.len(), last });
    }
    let digest = |text: &str| text.parse().map_err(|_| ZtocProblem::Digest(problem::shortened(text)));
    texts.iter().map(digest).collect()
}

/// Reads a whole zTOC for the fuzz target, which cannot see this module: its spans (in the blob, in the tar), and where each entry's contents are.
#[cfg(fuzzing)]
pub fn read_for_fuzzing(bytes: &Bytes, blob_size: u64) -> Option<(Vec<(ByteRange, u64)>, Vec<ByteRange>, u64)> {
    let ztoc = read(bytes, blob_size, &mut Charge::default()).ok()?;
    let mut places = Vec::new();
    let each = &mut |entry: &mut TocEntry| {
        places.push(ByteRange { start: entry.offset, end: entry.offset + entry.size });
        Ok(())
    };
    ztoc.entries(each).ok()?;
    Some((ztoc.spans.iter().map(|span| (span.compressed, span.decoded)).collect(), places, ztoc.decoded_size))
}

#[cfg(test)]
mod tests;
