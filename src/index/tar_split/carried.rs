//! The tar-split that a zstd:chunked blob carries, beside its TOC.
//!
//! It is somebody's word, and podman would open whatever a name in it leads to, `..` and symlinks included. So podman is given another one: each line
//! is read, checked and written anew, and files are named only as the layer's index has them. What it says of headers and CRCs stays a claim until
//! podman compares the digest of the tar.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::write::Sheet;
use super::{NoTarSplit, TarSplit};
use crate::blob::{ByteRange, Digest};
use crate::budget::Budget;
use crate::index::footer::{self, TocPosition};
use crate::index::{Descriptor, Entries, annotations, limits, names};
use crate::sys::expansion::table_limit;
use crate::sys::frames;

/// Bytes that tell what it is compressed with.
const HEAD: usize = 32;

/// Bytes of the longest footer, its frame's header included.
const FOOTER: u64 = 72;

/// Bytes of the longest line: what lies between two files is their headers, each with at most a MiB of pax records.
const LINE: u64 = 8 << 20;

/// Where a blob may have its tar-split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carried {
    /// Here.
    At(TocPosition),
    /// Its footer says so, or that there is none: [`in_footer`].
    SeeFooter(ByteRange),
}

/// Where a layer may have its tar-split, by its descriptor.
pub(crate) fn find(layer: &Descriptor) -> Carried {
    let footer = ByteRange { start: layer.size.saturating_sub(FOOTER), end: layer.size };
    annotations::tar_split(layer).map_or(Carried::SeeFooter(footer), Carried::At)
}

/// Where it is by the blob's footer, if there is one.
pub(crate) fn in_footer(layer: &Descriptor, footer: &[u8]) -> Option<TocPosition> {
    footer::tar_split(footer).filter(|position| position.stored.end <= layer.size)
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    name_raw: Option<Cow<'a, str>>,
    #[serde(default)]
    size: u64,
    #[serde(borrow, default)]
    payload: Option<Cow<'a, str>>,
}

const FILE: u8 = 1;
const SEGMENT: u8 = 2;

/// Whether so many bytes of it, stored as they are, are not too many to be read.
pub(crate) fn check_stored(len: u64) -> Result<(), NoTarSplit> {
    limit(len, limits::TAR_SPLIT_STORED)
}

fn limit(len: u64, limit: u64) -> Result<(), NoTarSplit> {
    if len > limit { Err(NoTarSplit::CarriedTooLarge { len, limit }) } else { Ok(()) }
}

/// Whether it is what the image names, where that names one (containers/storage 1.48 did). Later writers name it in the TOC, of which only the
/// index is kept.
pub(crate) fn check_digest(layer: &Descriptor, stored: &[u8]) -> Result<(), NoTarSplit> {
    let Some(named) = annotations::tar_split_checksum(layer) else { return Ok(()) };
    let got = Digest::of(stored);
    if *named == got.to_string() { Ok(()) } else { Err(NoTarSplit::OtherDigest { named: named.clone(), got }) }
}

/// Writes one that podman can be given, of `stored` bytes that unpack to `decoded`, for a layer with these entries.
pub(crate) fn convert(stored: &[u8], decoded: u64, entries: &Entries, file: File) -> Result<TarSplit, NoTarSplit> {
    let split = rewrite(stored, decoded, file, entries.budget())?;
    split.usable(entries).map_err(|_| NoTarSplit::Unreadable)
}

/// The same for a layer that has whatever is named.
pub(super) fn rewrite(stored: &[u8], decoded: u64, file: File, memory: &Budget) -> Result<TarSplit, NoTarSplit> {
    limit(decoded, limits::TAR_SPLIT_DECODED.min(table_limit(stored.len() as u64)))?;
    let len = stored.len() as u64;
    let window = frames::window(stored.get(..HEAD).unwrap_or(stored)).unwrap_or(0);
    let (mut of_bytes, charge) = (memory.charge(len), memory.charge(len));
    // The line at hand, and what it says.
    of_bytes.cover(len + window.min(decoded) + 2 * LINE.min(decoded), len)?;
    let text = zstd::stream::read::Decoder::with_buffer(stored).map_err(NoTarSplit::Undecodable)?;
    // What is longer is seen to be.
    let mut text = BufReader::new(text.take(decoded.saturating_add(1)));
    let (mut sheet, mut line) = (Sheet::new(file, charge), Vec::new());
    let (mut number, mut read) = (0_u64, 0_u64);
    loop {
        line.clear();
        let len = (&mut text).take(LINE).read_until(b'\n', &mut line).map_err(NoTarSplit::Undecodable)?;
        read = read.saturating_add(len as u64);
        match len {
            0 if read == decoded => return sheet.finish(),
            0 => return Err(malformed(number, format!("it has {read} bytes, and {decoded} by its position"))),
            _ => take(&mut sheet, &line, number)?,
        }
        number = number.saturating_add(1);
    }
}

fn malformed(line: u64, problem: impl ToString) -> NoTarSplit {
    NoTarSplit::Malformed { line, problem: problem.to_string() }
}

fn take(sheet: &mut Sheet, line: &[u8], number: u64) -> Result<(), NoTarSplit> {
    let decoded =
        |text: Option<&str>, problem| STANDARD.decode(text.unwrap_or_default()).map_err(|_| malformed(number, problem));
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| malformed(number, error))?;
    let payload = decoded(line.payload.as_deref(), "its payload is not base64")?;
    match line.kind {
        SEGMENT => sheet.segment(&payload),
        // An entry without contents: all of it is in segments.
        FILE if line.size == 0 => Ok(()),
        FILE => {
            let raw = decoded(line.name_raw.as_deref(), "its name is not base64")?;
            let name = if raw.is_empty() { line.name.as_bytes() } else { &raw };
            let mut path = Vec::new();
            names::clean_into(name, &mut path).map_err(|problem| malformed(number, problem))?;
            let crc = payload.try_into().map_err(|_| malformed(number, "its CRC does not have 8 bytes"))?;
            if sheet.replace(&path) {
                return Err(malformed(number, "it names a file twice"));
            }
            sheet.cover(0)?;
            sheet.name(&path, number, line.size)?;
            sheet.file(&path, line.size, u64::from_be_bytes(crc))
        }
        kind => Err(malformed(number, format!("the type {kind} is not known"))),
    }
}

/// Rewrites one for the fuzz target, which cannot see this module. Gives what was written, and how long the tar is.
#[cfg(fuzzing)]
pub fn rewrite_for_fuzzing(text: &[u8]) -> Option<(Vec<u8>, u64)> {
    use std::io::Seek;
    let stored = zstd::bulk::compress(text, 1).ok()?;
    let file = tempfile::tempfile().ok()?;
    let mut split = rewrite(&stored, text.len() as u64, file, &Budget::UNLIMITED).ok()?;
    let mut written = Vec::new();
    split.file.rewind().ok()?;
    flate2::read::GzDecoder::new(&split.file).read_to_end(&mut written).ok()?;
    Some((written, split.tar_len))
}
