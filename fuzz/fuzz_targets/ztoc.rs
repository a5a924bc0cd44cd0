#![no_main]
//! A zTOC: flatbuffers, checkpoints, spans and entries. The first four bytes are the size of the blob that it is said to be of.

use bytes::Bytes;
use crfs::index::read_ztoc_for_fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((size, ztoc)) = input.split_first_chunk::<4>() else { return };
    let size = u64::from(u32::from_le_bytes(*size));
    let Some((spans, places, decoded_size)) = read_ztoc_for_fuzzing(&Bytes::copy_from_slice(ztoc), size) else {
        return;
    };
    let mut before = None;
    for (compressed, decoded) in &spans {
        assert!(compressed.start <= compressed.end && compressed.end <= size && *decoded <= decoded_size);
        if let Some((end, at)) = before {
            assert!((end == compressed.start || end == compressed.start + 1) && at <= *decoded);
        } else {
            assert_eq!(*decoded, 0);
        }
        before = Some((compressed.end, *decoded));
    }
    assert_eq!(before.map(|(end, _)| end), Some(size));
    let mut end = 0;
    for place in places {
        assert!(place.start >= end && place.start <= place.end && place.end <= decoded_size);
        end = place.end;
    }
});
