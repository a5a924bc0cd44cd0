#![no_main]
//! The TOC of a zstd:chunked layer, from JSON to a decoded index.

use crfs_fuzz::{PAYLOAD, open_and_look};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    let stored = zstd::bulk::compress(json, 1).expect("memory");
    let toc = PAYLOAD as u64 + 8;
    let words = [toc, stored.len() as u64, json.len() as u64, 1, 0, 0, 0];
    let mut blob = vec![0; toc as usize];
    blob.extend_from_slice(&stored);
    blob.extend_from_slice(b"\x50\x2a\x4d\x18\x40\0\0\0");
    words.iter().for_each(|word| blob.extend_from_slice(&word.to_le_bytes()));
    blob.extend_from_slice(b"GNUlInUx");
    open_and_look(blob);
});
