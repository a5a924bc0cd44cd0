//! stargz (google/crfs, 2019) and eStargz (stargz-snapshotter docs/estargz.md, v0.15), its external TOC included.
//!
//! ```text
//! | member: tar headers | member: chunk, padding, headers | ... | member: tar entry stargz.index.json | footer |
//! ```
//!
//! Each chunk that has no innerOffset starts a gzip member; several small files may share one. The TOC is the tar's last entry, in a
//! member of its own; with an external TOC that entry is the whole of another blob.

use std::io::Read;

use flate2::bufread::GzDecoder;

use super::builder::Layer;
use super::error::{Error, Problem, Rejected};
use super::limits;
use super::parse::{self, Payload};
use super::source::Stored;
use crate::blob::Digest;
use crate::budget::Charge;
use crate::sys::expansion::check_table;

/// The entry that has the TOC.
pub(super) const TOC_NAME: &[u8] = b"stargz.index.json";
const TAR_BLOCK: usize = 512;

/// Parses the TOC in a gzip member. `named`: the digest of its JSON by the manifest.
pub(super) fn layer(
    member: &Stored,
    named: Option<Digest>,
    payload: Payload,
    blob: Digest,
    charge: Charge,
) -> Result<Layer, Error> {
    let mut tar = GzDecoder::new(member.reader());
    let len = json_len(&mut tar).map_err(|problem| match (named, problem) {
        // Whether it is that of the manifest cannot be told.
        (Some(_), Problem::NotTheTocEntry) => Error::TocDamaged { layer: blob },
        (_, problem) => Rejected::from(problem).at(blob),
    })?;
    check_table(member.len(), len).map_err(|wide| Rejected::from(Problem::from(wide)).at(blob))?;
    parse::layer(tar.take(len), len, named, payload, blob, charge)
}

/// Reads the header of the TOC's tar entry (POSIX ustar): the name at 0, the size in octal at 124, the type at 156.
fn json_len(tar: &mut impl Read) -> Result<u64, Problem> {
    let mut header = [0; TAR_BLOCK];
    tar.read_exact(&mut header).map_err(|_| Problem::NotTheTocEntry)?;
    let name = header.split(|byte| *byte == 0).next();
    let is_file = matches!(header.get(156), Some(b'0' | 0));
    let size = header
        .get(124..136)
        .and_then(octal)
        .filter(|_| is_file && name == Some(TOC_NAME))
        .ok_or(Problem::NotTheTocEntry)?;
    if size > limits::TOC_DECODED {
        return Err(Problem::TocTooLarge { len: size, limit: limits::TOC_DECODED });
    }
    Ok(size)
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    u64::from_str_radix(text, 8).ok().filter(|_| !text.starts_with('+'))
}
