//! zstd:chunked (containers/storage docs/containers-storage-zstd-chunked.md, v1.59; and stargz-snapshotter's estargz/zstdchunked, v0.15).
//!
//! ```text
//! | frame: tar headers | frame: chunk | frame: chunk | frame: headers | ... | skippable: TOC | skippable: tar-split | skippable: footer |
//! ```
//!
//! Each chunk is a zstd frame, except "zeros" chunks, which are read as holes. Positions are those of the payload of a skippable
//! frame, whose header takes 8 bytes.

use super::builder::Layer;
use super::error::{Error, Problem, Rejected};
use super::footer::TocPosition;
use super::limits;
use super::parse::{self, Payload};
use super::source::Stored;
use super::stored::Codec;
use crate::blob::Digest;
use crate::budget::Charge;
use crate::sys::expansion::check_table;
use crate::sys::frames;

/// Bytes before the payload of a skippable frame (RFC 8878, 3.1.2).
const SKIPPABLE_HEADER: u64 = 8;

/// Parses the TOC. `checksum` and `toc_digest`: the digests by the manifest of the TOC as it is stored, and of its JSON.
pub(super) fn layer(
    toc: &Stored,
    position: TocPosition,
    checksum: Option<Digest>,
    toc_digest: Option<Digest>,
    blob: Digest,
    charge: Charge,
) -> Result<Layer, Error> {
    if let Some(named) = checksum {
        let got = toc.digest();
        if got != named {
            return Err(Error::TocDigest { layer: blob, named, got });
        }
    }
    if position.decoded > limits::TOC_DECODED {
        let problem = Problem::TocTooLarge { len: position.decoded, limit: limits::TOC_DECODED };
        return Err(Rejected::from(problem).at(blob));
    }
    check_table(toc.len(), position.decoded).map_err(|wide| Rejected::from(Problem::from(wide)).at(blob))?;
    let window = frames::window(&toc.head()).map_or(0, |window| window.min(position.decoded));
    let mut of_window = charge.beside();
    let covered = of_window.cover(window, 0);
    covered.map_err(|source| Error::Memory { layer: blob, what: "the zstd window of its TOC", source })?;
    let json = zstd::stream::read::Decoder::with_buffer(toc.reader());
    let json = json.map_err(|error| Rejected::from(Problem::Json(serde::de::Error::custom(error))).at(blob))?;
    let payload = Payload { codec: Codec::Zstd, end: position.stored.start.saturating_sub(SKIPPABLE_HEADER) };
    parse::layer(json.single_frame(), position.decoded, toc_digest, payload, blob, charge)
}
