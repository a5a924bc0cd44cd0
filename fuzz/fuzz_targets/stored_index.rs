#![no_main]
//! An encoded index whose digests are right and whose contents are anything.
//!
//! Input: u16 length of the entries, the entries (as they are before compression), the tables in turn of 64 bytes.

use std::sync::Arc;

use bytes::Bytes;
use crfs::blob::{ByteRange, Digest};
use crfs::index::StoredIndex;
use libfuzzer_sys::fuzz_target;

const BLOCK: usize = 64 << 10;

fn index(entries: &[u8], tables: &[u8]) -> Vec<u8> {
    let entries = zstd::bulk::compress(entries, 1).expect("memory");
    let records = tables.len() / 64 * 64;
    let digests = 3 * 40;
    let start = (512 + digests + entries.len()).next_multiple_of(BLOCK);
    let mut blocks = Vec::new();
    for shift in 0..3 {
        let mut table = tables[..records].to_vec();
        table.rotate_left(shift * 32 % records.max(1));
        table.resize(BLOCK, 0);
        blocks.extend(table);
    }
    let table_digests: Vec<u8> = blocks.chunks(BLOCK).flat_map(kept).collect();
    let mut out = b"crfs index\n\0\0\0\0\0".to_vec();
    let put =
        |out: &mut Vec<u8>, words: &[u64]| words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    put(&mut out, &[1, 0]);
    out.extend_from_slice(Digest::of(b"blob").as_bytes());
    out.resize(104, 0);
    let names = entries_names(&entries);
    put(&mut out, &[1 << 40, names, 0, 0, 0, 512, digests as u64, 512 + digests as u64, entries.len() as u64]);
    let records = records.max(64);
    (0..3).for_each(|table| put(&mut out, &[(start + table * BLOCK) as u64, records as u64]));
    out.extend_from_slice(Digest::of(&table_digests).as_bytes());
    out.extend_from_slice(Digest::of(&entries).as_bytes());
    out.resize(480, 0);
    let sum = Digest::of(&out);
    out.extend_from_slice(sum.as_bytes());
    out.extend_from_slice(&table_digests);
    out.extend_from_slice(&entries);
    out.resize(start, 0);
    out.extend_from_slice(&blocks);
    out
}

/// What is kept of a block: its digest, and a key that leads lookups anywhere.
fn kept(block: &[u8]) -> [u8; 40] {
    let mut kept = [0; 40];
    kept[..32].copy_from_slice(Digest::of(block).as_bytes());
    kept[32..].copy_from_slice(&block[..8]);
    kept
}

/// What the entries say of their own number, so that it does not stop them.
fn entries_names(entries: &[u8]) -> u64 {
    let raw = zstd::bulk::decompress(entries, 1 << 17).unwrap_or_default();
    raw.get(4..8).map_or(0, |count| u32::from_le_bytes([count[0], count[1], count[2], count[3]]).into())
}

fuzz_target!(|data: &[u8]| {
    let Some((len, data)) = data.split_first_chunk::<2>() else { return };
    let (entries, tables) = data.split_at(usize::from(u16::from_le_bytes(*len)).min(data.len()));
    let tables = &tables[..tables.len().min(BLOCK)];
    let source = Arc::new(Bytes::from(index(entries, tables)));
    let index = StoredIndex::open(source, &Digest::of(b"blob"), None).expect("a header that is right");
    for start in [0, 4096, 1 << 30] {
        let range = ByteRange { start, end: start + 100_000 };
        let _ = (index.checks_over(range), index.units_over(range), index.units_in_blob(range));
    }
    if let Ok(entries) = index.entries() {
        let _ = crfs_fuzz::look(&index, &entries, 0);
    }
});
