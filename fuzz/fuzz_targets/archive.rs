#![no_main]
//! An archive of images: its files lie within it, in order, and do not overlap.

use bytes::Bytes;
use crfs::registry::fuzzing::archive;
use crfs_fuzz::with_right_checksums;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|tar: &[u8]| {
    let tar = with_right_checksums(tar.to_vec());
    let size = tar.len() as u64;
    let Some(files) = archive(Bytes::from(tar)) else { return };
    let mut at = 0;
    for file in files {
        assert!(at <= file.start && file.start <= file.end && file.end <= size);
        at = file.end;
    }
});
