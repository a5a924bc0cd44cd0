#![no_main]
//! An encoded index whose digests are right and whose contents are anything.
//!
//! Input: u16 length of the entries, the entries (as they are before compression), the tables in turn of 64 bytes.

use std::sync::Arc;

use bytes::Bytes;
use crfs::blob::{ByteRange, Digest};
use crfs::index::{Codec, StoredIndex};
use libfuzzer_sys::fuzz_target;

const BLOCK: usize = 64 << 10;

/// Units, pieces, checks, windows.
const TABLES: usize = 4;

fn index(entries: &[u8], tables: &[u8]) -> Vec<u8> {
    let entries = zstd::bulk::compress(entries, 1).expect("memory");
    let records = (tables.len() / 64 * 64).max(64);
    let (mut digests, mut packed) = (Vec::new(), Vec::new());
    for shift in 0..TABLES {
        let mut table = tables.to_vec();
        table.resize(records, 0);
        table.rotate_left(shift * 32 % records);
        keep(&table, &mut digests, &mut packed);
    }
    let mut out = b"crfs index\n\0\0\0\0\0".to_vec();
    let put =
        |out: &mut Vec<u8>, words: &[u64]| words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    put(&mut out, &[2, 6]);
    out.extend_from_slice(Digest::of(b"blob").as_bytes());
    out.resize(104, 0);
    let (names, digests_end) = (entries_names(&entries), 512 + digests.len() as u64);
    put(&mut out, &[1 << 40, names, 0, 0, 0, 512, digests.len() as u64, digests_end, entries.len() as u64]);
    let section = |table: usize| [(table * BLOCK) as u64, records as u64];
    (0..3).for_each(|table| put(&mut out, &section(table)));
    out.extend_from_slice(Digest::of(&digests).as_bytes());
    out.extend_from_slice(Digest::of(&entries).as_bytes());
    put(&mut out, &section(3));
    out.resize(480, 0);
    let sum = Digest::of(&out);
    out.extend_from_slice(sum.as_bytes());
    [out, digests, entries, packed].concat()
}

/// Packs a block, and keeps its digest, a key that leads lookups anywhere, and where it ends.
fn keep(block: &[u8], digests: &mut Vec<u8>, packed: &mut Vec<u8>) {
    let stored = zstd::bulk::compress(block, 1).expect("memory");
    packed.extend_from_slice(&stored);
    digests.extend_from_slice(Digest::of(&stored).as_bytes());
    digests.extend_from_slice(&block[..8]);
    digests.extend_from_slice(&(packed.len() as u64).to_le_bytes());
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
    index.verify().expect("digests that are right");
    for start in [0, 4096, 1 << 30] {
        let range = ByteRange { start, end: start + 100_000 };
        let _ = (index.checks_over(range), index.units_over(range), index.units_in_blob(range));
    }
    let _ = index.has_huge_unit();
    for unit in (0..index.summary().units.min(64)).filter_map(|unit| index.unit(unit).ok()) {
        if let Codec::Deflate { window: Some(window), .. } = unit.codec {
            assert!(index.window(window).is_ok_and(|window| window.len() <= 32 << 10) || index.window(window).is_err());
        }
    }
    if let Ok(entries) = index.entries() {
        let _ = crfs_fuzz::look(&index, &entries, 0);
    }
});
