#![no_main]
//! A tar stream: reading ends, sparse parts lie in the file in order, contents fill them, whatever is read and however the stream is cut.
//!
//! Input: a byte that says how the stream is cut, one whose bits say which contents are read, the tar. Its checksums are made right, since no
//! search would find them; a header that has a space for its checksum keeps it.

use std::io::BufReader;

use crfs::blob::ByteRange;
use crfs::index::read_tar_for_fuzzing;
use crfs_fuzz::with_right_checksums;
use libfuzzer_sys::fuzz_target;

type Seen = (u64, Vec<ByteRange>, Vec<(u64, u64, u64)>);

/// All entries, runs that follow each other made one.
fn read(tar: &[u8], part: usize, read: u8) -> (Vec<Seen>, Result<(), String>) {
    let mut all = Vec::new();
    let mut number = 0;
    let is_read = || {
        number += 1;
        read >> (number % 8) & 1 == 1
    };
    let end = read_tar_for_fuzzing(BufReader::with_capacity(part, tar), is_read, |size, stored, runs| {
        let mut joined: Vec<(u64, u64, u64)> = Vec::new();
        for (at, place, len) in runs {
            match joined.last_mut() {
                Some((start, from, sum)) if *start + *sum == *at && *from + *sum == *place => *sum += len,
                _ => joined.push((*at, *place, *len)),
            }
        }
        all.push((size, stored.to_vec(), joined));
    });
    (all, end)
}

fuzz_target!(|input: &[u8]| {
    let [cut, mask, tar @ ..] = input else { return };
    let tar = with_right_checksums(tar.to_vec());
    let (all, end) = read(&tar, 1 + usize::from(*cut) * 7, *mask);
    let mut floor = 0;
    for (size, stored, runs) in &all {
        let mut at = 0;
        for part in stored {
            assert!(part.start >= at && !part.is_empty() && part.end <= *size, "in order, within the file");
            at = part.end;
        }
        if runs.is_empty() {
            continue;
        }
        assert!(runs.len() == stored.len(), "each part whole");
        for ((at, place, len), part) in runs.iter().zip(stored) {
            assert!(*at == part.start && *len == part.len() && *place >= floor, "each part whole, in stream order");
            floor = place + len;
        }
        assert!(floor <= tar.len() as u64);
    }
    let (again, whole) = read(&tar, 1 << 20, *mask);
    assert!(again == all && whole == end, "the same, however it is cut");
});
