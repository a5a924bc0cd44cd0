#![no_main]
//! A tar-split that a blob carries: what is written of it says the same, and is written the same again.

use crfs::index::rewrite_tar_split_for_fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let Some((written, len)) = rewrite_tar_split_for_fuzzing(text) else { return };
    let again = rewrite_tar_split_for_fuzzing(&written);
    assert!(again == Some((written, len)), "what was written is right");
});
