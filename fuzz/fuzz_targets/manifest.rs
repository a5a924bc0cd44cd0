#![no_main]
//! A manifest or an index: read or refused, and read alike with white space around it.

use crfs::registry::fuzzing::manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|document: &[u8]| {
    let Some(entries) = manifest(document) else { return };
    assert!(entries <= document.len(), "an entry takes bytes");
    let spaced = [b" \n".as_slice(), document, b"\t"].concat();
    assert_eq!(manifest(&spaced), Some(entries));
});
