#![no_main]
//! A file of an image that may name others: its words are few, short, of it, and each is there once.

use crfs::fetch::words::words;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let found = words(file);
    assert!(found.len() <= 2048);
    let of_file = file.as_ptr_range();
    for word in &found {
        assert!((2..=64).contains(&word.len()) && of_file.contains(&word.as_ptr()));
    }
    let mut each = found.clone();
    each.sort_unstable();
    each.dedup();
    assert_eq!(each.len(), found.len());
});
