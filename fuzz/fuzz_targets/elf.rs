#![no_main]
//! A file of an image that may be a program: what it needs is little, however it is made, or it is not known.

use crfs::blob::ByteRange;
use crfs::fetch::LONGEST_PATH;
use crfs::fetch::elf::needed;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let read = |range: ByteRange| {
        let end = usize::try_from(range.end).unwrap_or(usize::MAX).min(file.len());
        Some(file[usize::try_from(range.start).unwrap_or(usize::MAX).min(end)..end].to_vec())
    };
    let Ok(found) = needed(&read) else { return };
    assert!(found.libraries.len() <= 256 && found.search.len() <= 64);
    let paths = found.interpreter.iter().chain(&found.libraries).chain(&found.search);
    assert!(paths.into_iter().all(|path| path.len() <= LONGEST_PATH));
});
