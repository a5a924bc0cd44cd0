#![no_main]
//! A chunk index: it is refused, or its chunks follow each other in the image, and ascend in the blob before the index.

use crfs::index::read_chunk_index_for_fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((end, index)) = input.split_first_chunk() else { return };
    let end = u64::from_le_bytes(*end);
    let Some(chunks) = read_chunk_index_for_fuzzing(index, end) else { return };
    assert!(!chunks.is_empty());
    let (mut blob, mut image) = (0, 0);
    for (stored, unpacked) in chunks {
        assert!(stored.start >= blob && stored.end <= end && stored.start < stored.end);
        assert!(unpacked.start == image && unpacked.start < unpacked.end);
        (blob, image) = (stored.end, unpacked.end);
    }
});
