//! Writes an encoded index.

use bytes::Bytes;

use super::chunks::{Chunk, Chunks};
use super::entries;
use super::header::{self, Header, Section};
use super::room::Room;
use super::tables::{self, BLOCK, BLOCK_DIGEST, Check, Piece, Record, Tables, Unit, u64_at};
use crate::blob::Digest;
use crate::budget::Charge;
use crate::index::builder::Layer;
use crate::index::{Error, Format, Identity, Summary};

/// An index that was made just now.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) bytes: Bytes,
    /// For the bytes.
    pub(crate) charge: Charge,
}

/// Encodes the index of `blob`, of which `toc_len` bytes are the TOC, and whose tar stream has the digest `diff_id`, if that is known. The same input gives the same bytes.
///
/// # Errors
/// Where zstd has no memory, or the index takes more than there is.
pub(crate) fn encode(
    blob: Digest,
    identity: Option<Identity>,
    format: Format,
    toc_len: u64,
    diff_id: Option<Digest>,
    layer: Layer,
) -> Result<Encoded, Error> {
    let failed = |source| Error::Encode { layer: blob, source };
    let Layer { entries, tables, layer_file_len, prefetch, share, charge, .. } = layer;
    let honest = (entries.names() as u64 * HONEST).saturating_add(share.min(tables.bytes()));
    let mut room = Room { charge: charge.beside(), honest };
    let no_room = |source| Error::Memory { layer: blob, what: "its index", source };
    let names = entries.names() as u64;
    let entries = {
        let compressed = entries::encode(&entries, &mut room).map_err(failed)?;
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
        diff_id,
    };
    room.cover(entries.len() + tables.bytes() as usize).map_err(no_room)?;
    let bytes = assemble(blob, identity, summary, &entries, tables).map_err(failed)?;
    let Room { charge: mut of_bytes, honest } = room;
    of_bytes.settle(bytes.len() as u64, honest).map_err(no_room)?;
    drop(charge);
    Ok(Encoded { bytes, charge: of_bytes })
}

/// What an entry of an honest layer takes in an encoded index, of one file with one chunk, before it is packed.
const HONEST: u64 = Tables::EACH + 64;

fn assemble(
    blob: Digest,
    identity: Option<Identity>,
    summary: Summary,
    compressed: &[u8],
    tables: Tables,
) -> std::io::Result<Bytes> {
    let sections = Sections::of(compressed, &tables);
    let Sections { digests, entries, units, pieces, checks, windows, chunks } = sections;
    let Tables { units: unit_table, pieces: piece_table, checks: check_table, windows: window_table, chunks: parts } =
        tables;
    let Chunks { packing, records: chunk_table } = parts;
    let mut blocks = Blocks::default();
    // Each table is dropped when it was packed: together they are most of the memory. Nothing is looked up in the windows.
    for (table, key) in [
        (unit_table, Unit::KEY),
        (piece_table, Piece::KEY),
        (check_table, Check::KEY),
        (window_table, 0),
        (chunk_table, Chunk::KEY),
    ] {
        table.chunks(BLOCK).try_for_each(|block| blocks.add(block, key))?;
    }
    let (digests_digest, entries_digest) = (Digest::of(&blocks.digests), Digest::of(compressed));
    let header = Header {
        blob,
        identity,
        summary,
        digests,
        entries,
        units,
        pieces,
        checks,
        digests_digest,
        entries_digest,
        windows,
        chunks,
        packing,
    };
    Ok([&header.put()[..], &blocks.digests, compressed, &blocks.packed].concat().into())
}

#[derive(Default)]
struct Blocks {
    digests: Vec<u8>,
    packed: Vec<u8>,
}

impl Blocks {
    /// `key`: where in a record the start is of the range that it is looked up by.
    fn add(&mut self, block: &[u8], key: usize) -> std::io::Result<()> {
        let packed = tables::pack(block)?;
        self.packed.extend_from_slice(&packed);
        self.digests.extend_from_slice(Digest::of(&packed).as_bytes());
        self.digests.extend_from_slice(&u64_at(block, key).unwrap_or(0).to_le_bytes());
        self.digests.extend_from_slice(&(self.packed.len() as u64).to_le_bytes());
        Ok(())
    }
}

/// Where everything comes to lie; the tables one after the other as they are unpacked.
#[derive(Clone, Copy)]
struct Sections {
    digests: Section,
    entries: Section,
    units: Section,
    pieces: Section,
    checks: Section,
    windows: Section,
    chunks: Section,
}

impl Sections {
    fn of(entries: &[u8], tables: &Tables) -> Self {
        let len = |bytes: &[u8]| Section { start: 0, len: bytes.len() as u64 };
        let (entries, units) = (len(entries), len(&tables.units));
        let (mut pieces, mut checks, mut windows) = (len(&tables.pieces), len(&tables.checks), len(&tables.windows));
        pieces.start = units.start + units.padded();
        checks.start = pieces.start + pieces.padded();
        windows.start = checks.start + checks.padded();
        let mut chunks = len(&tables.chunks.records);
        chunks.start = windows.start + windows.padded();
        let blocks = (chunks.start + chunks.padded()) / BLOCK as u64;
        let digests = Section { start: header::LEN as u64, len: blocks * BLOCK_DIGEST as u64 };
        let entries = Section { start: digests.start + digests.len, ..entries };
        Self { digests, entries, units, pieces, checks, windows, chunks }
    }
}
