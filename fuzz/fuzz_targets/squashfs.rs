#![no_main]
//! An image of squashfs: it is read or refused, within the memory of an image; and each unit of its index decodes to what was read of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use crfs::blob::Digest;
use crfs::fetch::Units;
use crfs::index::{Format, Identity, LayerKey, StoredIndex, read_filesystem_for_fuzzing};
use crfs_fuzz::look;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut image = input.to_vec();
    image.resize(image.len().max(96), 0);
    image[..4].copy_from_slice(b"hsqs");
    image[28..32].copy_from_slice(&[4, 0, 0, 0]);
    let image = Bytes::from(image);
    let mut file = BTreeMap::new();
    let keep = |at: u64, bytes: &[u8]| file.extend((at..).zip(bytes.iter().copied()));
    let Some(encoded) = read_filesystem_for_fuzzing(Format::Squashfs, &image, keep) else { return };
    let blob = Digest::of(&image);
    let key = LayerKey { blob, identity: Identity::Own };
    let index = StoredIndex::open(Arc::new(encoded), &blob, Some(&key)).expect("what was encoded just now");
    let entries = index.entries().expect("what was encoded just now");
    look(&index, &entries, 0).expect("what was encoded just now");
    let mut units = Units::new().expect("memory");
    for number in 0..index.summary().units.min(256) {
        let unit = index.unit(number).expect("a unit");
        let pieces: Vec<_> = unit.pieces.clone().map(|piece| index.piece(piece).expect("a piece")).collect();
        let compressed = &image[unit.compressed.start as usize..unit.compressed.end as usize];
        let decoded = units.decode(unit.codec, &[], compressed, &pieces, &mut |at, bytes| {
            let is_same = |(byte, at): (&u8, u64)| *byte == file.get(&at).copied().unwrap_or(0);
            assert!(bytes.iter().zip(at..).all(is_same), "unit {number}");
            Ok(())
        });
        decoded.expect("what was unpacked before");
    }
});
