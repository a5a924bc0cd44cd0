//! What the targets share: a layer around a TOC, and a look at everything that an index says.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use crfs::blob::{ByteRange, Digest};
use crfs::budget::{Budget, DEFAULT_LIMIT};
use crfs::fetch::Units;
use crfs::index::{
    CheckKind, Child, Descriptor, Entries, Format, Found, Identity, Kind, LayerKey, Options, StoredIndex, open,
    read_filesystem_for_fuzzing,
};

/// Bytes before the TOC: offsets of entries may be up to here.
pub const PAYLOAD: usize = 4096;

/// Opens a blob, and looks at everything where it opens.
pub fn open_and_look(blob: Vec<u8>) {
    let blob = Bytes::from(blob);
    let layer = Descriptor {
        digest: Digest::of(&blob),
        size: blob.len() as u64,
        media_type: String::new(),
        annotations: BTreeMap::new(),
    };
    let options = Options {
        whole_layer_below: 0,
        insecure_unverified_toc: true,
        memory: Budget::of_process().of_image(DEFAULT_LIMIT),
    };
    let Ok(Found::Indexed(opened)) = open(&layer, &blob, &|_, _| Err("none".into()), &options) else { return };
    let key = opened.identity.map(|identity| LayerKey { blob: layer.digest, identity });
    let index =
        StoredIndex::open(Arc::new(opened.encoded), &layer.digest, key.as_ref()).expect("what was encoded just now");
    let entries = index.entries().expect("what was encoded just now");
    look(&index, &entries, PAYLOAD as u64).expect("what was encoded just now");
}

/// What must hold of any index that opens: the tree ends, names are valid, checks tile files, units lie in the payload.
pub fn look(index: &StoredIndex, entries: &Entries, payload: u64) -> Result<(), crfs::index::Damaged> {
    let mut names = 0;
    let mut todo = vec![Entries::ROOT];
    while let Some(dir) = todo.pop() {
        for (name, child) in entries.children(dir) {
            names += 1;
            assert!(!name.is_empty() && name.len() <= 255 && !name.contains(&b'/') && !name.contains(&0));
            let Child::Node(node) = child else { continue };
            assert!(entries.xattrs(node).all(|(name, _)| !name.is_empty()));
            match entries.kind(node) {
                Kind::Dir { .. } => todo.push(node),
                Kind::File { start, size } if payload > 0 => assert_covered(index, start, size)?,
                _ => {}
            }
        }
    }
    assert_eq!(names, entries.names());
    let mut at = 0;
    for unit in 0..index.summary().units.min(4096) {
        let unit = index.unit(unit)?;
        if payload > 0 {
            assert!(unit.compressed.start >= at && unit.compressed.end <= payload && !unit.compressed.is_empty());
            at = unit.compressed.end;
        }
    }
    Ok(())
}

fn assert_covered(index: &StoredIndex, start: u64, size: u64) -> Result<(), crfs::index::Damaged> {
    let range = ByteRange::at(start, size).expect("a file in the layer file");
    assert!(range.end <= index.summary().layer_file_len && start % 4096 == 0);
    let mut at = start;
    for check in index.checks_over(range)? {
        let check = index.check(check)?;
        assert_eq!(check.range.start, at);
        at = check.range.end;
        let units = index.units_over(check.range)?;
        assert_eq!(units.is_empty(), check.kind == CheckKind::Hole);
    }
    assert_eq!(at, range.end);
    Ok(())
}

/// What must hold of an image: it is read or refused, and each unit of its index decodes to what was read of it.
pub fn read_image(format: Format, image: Vec<u8>) {
    let image = Bytes::from(image);
    let mut file = BTreeMap::new();
    let keep = |at: u64, bytes: &[u8]| file.extend((at..).zip(bytes.iter().copied()));
    let Some(encoded) = read_filesystem_for_fuzzing(format, &image, keep) else { return };
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
}

/// A tar whose headers have the checksums that they should have, but for those that have a space there.
pub fn with_right_checksums(mut tar: Vec<u8>) -> Vec<u8> {
    for block in tar.chunks_exact_mut(512).filter(|block| block[148] != b' ' && block.iter().any(|byte| *byte != 0)) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }
    tar
}
