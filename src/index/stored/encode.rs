//! Writes an encoded index.

use bytes::Bytes;

use super::entries;
use super::header::{self, Header, Section};
use super::tables::{BLOCK, BLOCK_DIGEST, Check, Piece, Record, Tables, Unit, u64_at};
use crate::blob::Digest;
use crate::index::builder::Layer;
use crate::index::{Format, Identity, Summary};

/// Encodes the index of `blob`, of which `toc_len` bytes are the TOC. The same input gives the same bytes.
///
/// # Errors
/// Where zstd has no memory.
pub(crate) fn encode(
    blob: Digest,
    identity: Option<Identity>,
    format: Format,
    toc_len: u64,
    layer: Layer,
) -> std::io::Result<Bytes> {
    let Layer { entries, tables, layer_file_len, prefetch, .. } = layer;
    let names = entries.names() as u64;
    let entries = {
        let compressed = entries::encode(&entries)?;
        drop(entries);
        compressed
    };
    let summary = Summary {
        format,
        layer_file_len,
        entries: names,
        units: (tables.units.len() / Unit::LEN) as u32,
        checks: (tables.checks.len() / Check::LEN) as u32,
        toc_len,
        prefetch,
    };
    Ok(assemble(blob, identity, summary, &entries, tables))
}

fn assemble(blob: Digest, identity: Option<Identity>, summary: Summary, compressed: &[u8], tables: Tables) -> Bytes {
    let sections = Sections::of(compressed, &tables);
    let Sections { digests, entries, units, pieces, checks } = sections;
    let mut out = Vec::with_capacity((checks.start + checks.padded()) as usize);
    out.resize(entries.start as usize, 0);
    out.extend_from_slice(compressed);
    let Tables { units: unit_table, pieces: piece_table, checks: check_table } = tables;
    // Each table is dropped when it was copied: together they are most of the memory.
    for table in [unit_table, piece_table, check_table] {
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        out.extend_from_slice(&table);
    }
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    let block_digests = block_digests(&out, &sections);
    let (digests_digest, entries_digest) = (Digest::of(&block_digests), Digest::of(compressed));
    let header =
        Header { blob, identity, summary, digests, entries, units, pieces, checks, digests_digest, entries_digest };
    let head = header.put().into_iter().chain(block_digests);
    out.iter_mut().zip(head).for_each(|(to, from)| *to = from);
    out.into()
}

/// The digest of each block of the tables, and where the range of its first record starts.
fn block_digests(out: &[u8], sections: &Sections) -> Vec<u8> {
    let tables = [(sections.units, Unit::KEY), (sections.pieces, Piece::KEY), (sections.checks, Check::KEY)];
    let mut all = Vec::with_capacity(sections.digests.len as usize);
    for (table, key) in tables {
        let padded = table.start as usize..(table.start + table.padded()) as usize;
        for block in out.get(padded).unwrap_or_default().chunks(BLOCK) {
            all.extend_from_slice(Digest::of(block).as_bytes());
            all.extend_from_slice(&u64_at(block, key).unwrap_or(0).to_le_bytes());
        }
    }
    all
}

/// Where everything comes to lie.
#[derive(Clone, Copy)]
struct Sections {
    digests: Section,
    entries: Section,
    units: Section,
    pieces: Section,
    checks: Section,
}

impl Sections {
    fn of(entries: &[u8], tables: &Tables) -> Self {
        let len = |bytes: &[u8]| Section { start: 0, len: bytes.len() as u64 };
        let (entries, mut units) = (len(entries), len(&tables.units));
        let (mut pieces, mut checks) = (len(&tables.pieces), len(&tables.checks));
        let blocks = (units.padded() + pieces.padded() + checks.padded()) / BLOCK as u64;
        let digests = Section { start: header::LEN as u64, len: blocks * BLOCK_DIGEST as u64 };
        let entries = Section { start: digests.start + digests.len, ..entries };
        units.start = (entries.start + entries.len).next_multiple_of(BLOCK as u64);
        pieces.start = units.start + units.padded();
        checks.start = pieces.start + pieces.padded();
        Self { digests, entries, units, pieces, checks }
    }
}
