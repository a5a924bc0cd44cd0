//! Spans from checkpoints (soci-snapshotter, ztoc/compression/gzip_zinfo.c and tar_zinfo.go).

use bytes::Bytes;
use flatbuffers::root_with_opts;

use super::ztoc_generated::ztoc::{CompressionInfo, TarZinfo};
use super::{Span, ZtocProblem, size, verifier_options};
use crate::blob::{ByteRange, Digest};
use crate::sys::inflate::WINDOW;

/// Bytes before the first checkpoint: i32 count, i64 span size.
const HEADER: usize = 4 + 8;

/// Bytes of a checkpoint.
const CHECKPOINT: usize = 8 + 8 + 1 + WINDOW;

/// The smallest gzip header (RFC 1952), which the first version takes every header to be.
const GZIP_HEADER: i64 = 10;

/// Both have the same form, the first was never written.
const TAR_VERSIONS: std::ops::RangeInclusive<i32> = 1..=2;

struct Checkpoint {
    /// Where in the blob the decoder goes on.
    start: i64,
    /// Where in the tar stream that is.
    out: i64,
    bits: u8,
    window: Option<Bytes>,
}

/// The spans between the checkpoints of a gzip blob. What they start with is as large as a pointer may be; they tile the blob behind its header.
pub(super) fn of_gzip(
    info: &CompressionInfo<'_>,
    buffer: &Bytes,
    digests: &[Digest],
    blob_size: u64,
) -> Result<Vec<Span>, ZtocProblem> {
    let bytes = info.checkpoints().ok_or(ZtocProblem::Missing("checkpoints"))?.bytes();
    let checkpoints = checkpoints(&buffer.slice_ref(bytes), digests.len())?;
    let mut spans: Vec<Span> = Vec::with_capacity(checkpoints.len());
    for (number, (checkpoint, digest)) in checkpoints.into_iter().zip(digests).enumerate() {
        let Checkpoint { start, out, bits, window } = checkpoint;
        let impossible = ZtocProblem::Checkpoint { number, start, out, bits };
        let place = u64::try_from(start).ok().zip(u64::try_from(out).ok()).filter(|(start, _)| *start <= blob_size);
        let Some((end_of_last, decoded)) = place else { return Err(impossible) };
        let first = end_of_last.checked_sub(u64::from(bits != 0));
        let before = spans.last().map_or((0, 0), |last| (last.compressed.end, last.decoded));
        // The first starts with the stream, behind a header; the others behind the one before.
        let fits = end_of_last > before.0 && decoded >= before.1 && (number > 0 || decoded == 0) && bits < 8;
        let Some(start) = first.filter(|_| fits) else { return Err(impossible) };
        if let Some(last) = spans.last_mut() {
            last.compressed.end = end_of_last;
        }
        // Until the next one is read, `end` is where this one goes on, so that the next must lie behind.
        let compressed = ByteRange { start, end: end_of_last };
        spans.push(Span { compressed, decoded, bits, window: window.filter(|_| decoded > 0), digest: *digest });
    }
    if let Some(last) = spans.last_mut() {
        last.compressed.end = blob_size;
    }
    Ok(spans)
}

/// Both encodings: with the first checkpoint, or without.
fn checkpoints(bytes: &Bytes, spans: usize) -> Result<Vec<Checkpoint>, ZtocProblem> {
    let wrong = || ZtocProblem::Checkpoints { bytes: bytes.len(), spans };
    let count = bytes.first_chunk::<4>().map(|count| i32::from_le_bytes(*count)).ok_or_else(wrong)?;
    let records = bytes.get(HEADER..).ok_or_else(wrong)?.chunks_exact(CHECKPOINT);
    let implied = spans.checked_sub(records.len()).filter(|missing| *missing <= 1);
    let whole = records.remainder().is_empty() && usize::try_from(count) == Ok(spans) && spans > 0;
    let implied = implied.filter(|_| whole).ok_or_else(wrong)?;
    let first = (implied == 1).then_some(Checkpoint { start: GZIP_HEADER, out: 0, bits: 0, window: None });
    let written = records.map(|record| checkpoint(bytes, record).ok_or_else(wrong));
    first.map(Ok).into_iter().chain(written).collect()
}

fn checkpoint(bytes: &Bytes, record: &[u8]) -> Option<Checkpoint> {
    let (start, rest) = record.split_first_chunk::<8>()?;
    let (out, rest) = rest.split_first_chunk::<8>()?;
    let (bits, window) = rest.split_first()?;
    let (start, out) = (i64::from_le_bytes(*start), i64::from_le_bytes(*out));
    Some(Checkpoint { start, out, bits: *bits, window: Some(bytes.slice_ref(window)) })
}

/// The spans of a plain tar: of one size, but for the last.
pub(super) fn of_tar(info: &CompressionInfo<'_>, digests: &[Digest], blob_size: u64) -> Result<Vec<Span>, ZtocProblem> {
    let bytes = info.checkpoints().ok_or(ZtocProblem::Missing("checkpoints"))?.bytes();
    let zinfo =
        root_with_opts::<TarZinfo<'_>>(&verifier_options(bytes.len()), bytes).map_err(ZtocProblem::malformed)?;
    if !TAR_VERSIONS.contains(&zinfo.version()) {
        return Err(ZtocProblem::Value { key: "the version of its checkpoints", value: zinfo.version().into() });
    }
    let said = size("size", zinfo.size())?;
    if said != blob_size {
        return Err(ZtocProblem::OtherBlob { said, is: blob_size });
    }
    let span = size("span_size", zinfo.span_size())?;
    let count = blob_size.checked_next_multiple_of(span).and_then(|end| end.checked_div(span)).unwrap_or(0);
    if count != digests.len() as u64 || count == 0 {
        return Err(ZtocProblem::Value { key: "span_size", value: zinfo.span_size() });
    }
    let mut at = 0u64;
    let span = digests.iter().map(|digest| {
        let start = at;
        at = blob_size.min(at.saturating_add(span));
        Span { compressed: ByteRange { start, end: at }, decoded: start, bits: 0, window: None, digest: *digest }
    });
    Ok(span.collect())
}
