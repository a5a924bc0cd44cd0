#![no_main]
//! The config of an image: what its command may be is little, and absolute.

use crfs::image::started_of_config_for_fuzzing as started;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|config: &[u8]| {
    let Some(words) = started(config) else { return };
    assert!(words.len() <= 4);
    assert!(words.iter().all(|paths| paths.len() <= 64 && paths.iter().all(|path| path.contains('/'))));
});
