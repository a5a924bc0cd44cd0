#![no_main]
//! A dm-verity tree behind an image: it is refused, or each block of the image has its digest or not.

use bytes::Bytes;
use crfs::index::read_hash_tree_for_fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((offset, blob)) = input.split_first_chunk() else { return };
    let offset = u64::from(u32::from_le_bytes(*offset));
    read_hash_tree_for_fuzzing(&Bytes::copy_from_slice(blob), offset);
});
