#![no_main]
//! Whole blobs: footers, and what they lead to.

use crfs::index::Footer;
use crfs_fuzz::open_and_look;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|blob: &[u8]| {
    if let Some(Footer::ZstdChunked(position)) = Footer::find(blob) {
        assert!(position.stored.start <= position.stored.end);
    }
    open_and_look(blob.to_vec());
});
