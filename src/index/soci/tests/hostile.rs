//! What is accepted, and what is refused with a word about why.

use super::super::*;
use super::made::{BLOB, FILE, Made, MadeEntry, digest, gzip, tar};
use std::collections::BTreeMap;

use crate::budget::{Budget, Charge};
use crate::index::toc::EntryType;
use crate::index::{Descriptor, open_ztoc};

type Shown = (ByteRange, u64, u8, bool);

fn spans(made: &Made<'_>) -> Vec<Shown> {
    let shown = |span: &Span| (span.compressed, span.decoded, span.bits, span.window.is_some());
    made.read().unwrap().spans.iter().map(shown).collect()
}

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange { start, end }
}

fn with_checkpoints(checkpoints: &[(i64, i64, u8)]) -> Made<'static> {
    let count = checkpoints.len();
    Made {
        max_span_id: count as i32 - 1,
        digests: vec![digest(); count],
        checkpoints: gzip(count as i32, checkpoints),
        ..Made::default()
    }
}

#[test]
fn both_encodings_of_checkpoints_say_the_same() {
    let whole = Made::default();
    let implied = Made { checkpoints: gzip(2, &[(500, 2500, 3)]), ..Made::default() };
    let expected = vec![(range(10, 500), 0, 0, false), (range(499, BLOB), 2500, 3, true)];
    assert_eq!(spans(&whole), expected);
    assert_eq!(spans(&implied), expected);
}

#[test]
fn spans_may_decode_to_nothing() {
    // Of an empty first member, and behind the end of the tar.
    let made = with_checkpoints(&[(20, 0, 0), (60, 0, 0), (500, 6000, 1)]);
    let expected = [(range(20, 60), 0, 0, false), (range(60, 500), 0, 0, false), (range(499, BLOB), 6000, 1, true)];
    assert_eq!(spans(&made), expected);
    assert_eq!(made.read().unwrap().decoded_size, 6000);
    assert_eq!(spans(&with_checkpoints(&[(10, 0, 0), (1000, 5000, 0)]))[1].0, range(BLOB, BLOB));
}

#[test]
fn a_plain_tar_has_spans_of_one_size() {
    let made = |span_size, size, count: usize| Made {
        algorithm: 2,
        decoded: 900,
        max_span_id: count as i32 - 1,
        digests: vec![digest(); count],
        checkpoints: tar(2, span_size, size),
        ..Made::default()
    };
    let ztoc = made(400, 1000, 3).read().unwrap();
    assert_eq!((ztoc.compression, ztoc.decoded_size), (Compression::Uncompressed, BLOB));
    let ranges: Vec<_> = ztoc.spans.iter().map(|span| (span.compressed, span.decoded)).collect();
    assert_eq!(ranges, [(range(0, 400), 0), (range(400, 800), 400), (range(800, 1000), 800)]);
    assert_eq!(made(i64::MAX, 1000, 1).read().unwrap().spans.len(), 1);
    for (span_size, size, count) in [(0, 1000, 1), (-1, 1000, 1), (400, 1000, 2), (400, 1001, 3), (400, -1, 3)] {
        assert!(made(span_size, size, count).refusal().starts_with(": the zTOC "), "{span_size} {size} {count}");
    }
    let other = Made { checkpoints: tar(3, 400, 1000), ..made(400, 1000, 3) };
    assert!(other.refusal().contains("version of its checkpoints is 3"));
    let cut = Made { checkpoints: vec![1; 8], ..made(400, 1000, 3) };
    assert!(cut.refusal().contains("is malformed"), "{}", cut.refusal());
    assert!(Made { decoded: 1001, ..made(400, 1000, 3) }.refusal().contains("uncompressed_archive_size is 1001"));
}

#[test]
fn impossible_spans_are_refused() {
    for checkpoints in [
        &[(10, 1, 0)][..],
        &[(0, 0, 0)],
        &[(-10, 0, 0)],
        &[(1001, 0, 0)],
        &[(10, 0, 8)],
        &[(10, 0, 0), (10, 5, 0)],
        &[(10, 0, 0), (9, 5, 0)],
        &[(10, 0, 0), (500, -1, 0)],
        &[(10, 0, 0), (500, 100, 0), (600, 99, 0)],
        &[(10, 0, 0), (i64::MAX, 100, 0)],
        &[(10, 0, 0), (i64::MIN, i64::MIN, 255)],
    ] {
        let refusal = with_checkpoints(checkpoints).refusal();
        assert!(refusal.contains("impossible checkpoint"), "{checkpoints:?}: {refusal}");
    }
    let mut cut = Made::default();
    cut.checkpoints.pop();
    let (one, none) = (gzip(2, &[]), Vec::new());
    let (count, negative) = (gzip(3, &[(10, 0, 0), (500, 2500, 3)]), gzip(-1, &[(10, 0, 0), (500, 2500, 3)]));
    for checkpoints in [cut.checkpoints, one, none, count, negative] {
        let made = Made { checkpoints, ..Made::default() };
        assert!(made.refusal().contains("bytes of checkpoints"), "{}", made.refusal());
    }
    let empty = Made { max_span_id: -1, digests: Vec::new(), checkpoints: gzip(0, &[]), ..Made::default() };
    assert!(empty.refusal().contains("has 0 span digests"), "{}", empty.refusal());
}

#[test]
fn what_is_unknown_or_does_not_fit_is_refused() {
    let none = || vec!["sha512:00".to_owned(), digest()];
    for (made, says) in [
        (Made { version: "1.0", ..Made::default() }, "is of version \"1.0\""),
        (Made { version: "", ..Made::default() }, "is of version \"\""),
        (Made { algorithm: 3, ..Made::default() }, "names compression 3"),
        (Made { compressed: 999, ..Made::default() }, "a blob of 999 bytes, and this one has 1000"),
        (Made { compressed: -1, ..Made::default() }, "compressed_archive_size is -1"),
        (Made { decoded: -1, ..Made::default() }, "uncompressed_archive_size is -1"),
        (Made { max_span_id: 2, ..Made::default() }, "2 span digests, and its last span is number 2"),
        (Made { max_span_id: i32::MAX, ..Made::default() }, "last span is number 2147483647"),
        (Made { max_span_id: -2, ..Made::default() }, "last span is number -2"),
        (Made { digests: none(), ..Made::default() }, "span digest \"sha512:00\""),
    ] {
        assert!(made.refusal().contains(says), "{}", made.refusal());
    }
}

#[test]
fn an_entry_is_what_the_tar_says() {
    let records: [(&[u8], &[u8]); 4] = [
        (b"SCHILY.xattr.security.capability", b"\x01\0\0\x02\xff"),
        (b"SCHILY.xattr.user.\xfe", b""),
        (b"mtime", b"1.5"),
        (b"LIBARCHIVE.xattr.user.a", b"YQ"),
    ];
    let device = MadeEntry { name: b"dev\xff", kind: "char", offset: 1024, size: 9, major: 5, ..FILE };
    let made = Made { entries: vec![MadeEntry { records: &records, ..FILE }, device], ..Made::default() };
    let mut seen = Vec::new();
    let ztoc = made.read().unwrap();
    let each = &mut |entry: &mut TocEntry| {
        let time = (entry.mtime.secs, entry.mtime.nanos);
        let numbers = (entry.size, entry.mode, entry.uid, entry.major, entry.offset);
        seen.push((entry.name.clone(), entry.kind, time, numbers, entry.xattrs.clone()));
        Ok(())
    };
    ztoc.entries(each).unwrap();
    let time = (1_600_000_000, 250_000_000);
    let xattrs =
        vec![(b"security.capability".to_vec(), b"\x01\0\0\x02\xff".to_vec()), (b"user.\xfe".to_vec(), Vec::new())];
    assert_eq!(seen[0], (b"file".to_vec(), Some(EntryType::File), time, (100, 0o4755, 7, 0, 512), xattrs));
    assert_eq!(seen[1], (b"dev\xff".to_vec(), Some(EntryType::Char), time, (0, 0o4755, 7, 5, 1024), Vec::new()));
}

#[test]
fn impossible_entries_are_refused_by_name() {
    let sparse: [(&[u8], &[u8]); 1] = [(b"GNU.sparse.major", b"1")];
    for (entry, says) in [
        (MadeEntry { kind: "link", ..FILE }, "the type \"link\" is not known"),
        (MadeEntry { size: -1, ..FILE }, "uncompressed_size is -1"),
        (MadeEntry { offset: -1, ..FILE }, "uncompressed_offset is -1"),
        (MadeEntry { size: 4489, ..FILE }, "4489 bytes, at byte 512 of a tar of 5000 bytes"),
        (MadeEntry { size: i64::MAX, offset: i64::MAX, ..FILE }, "of a tar of 5000 bytes"),
        (MadeEntry { kind: "dir", offset: 5001, ..FILE }, "at byte 5001 of a tar"),
        (MadeEntry { mtime: "yesterday", ..FILE }, "mod_time is \"yesterday\""),
        (MadeEntry { kind: "block", major: -1, ..FILE }, "devmajor is -1"),
        (MadeEntry { records: &sparse, ..FILE }, "sparse file"),
    ] {
        let refusal = Made { entries: vec![entry], ..Made::default() }.refusal();
        assert!(refusal.starts_with("\"file\": ") && refusal.contains(says), "{refusal}");
    }
    let again = Made { entries: vec![FILE, MadeEntry { name: b"second", offset: 611, ..FILE }], ..Made::default() };
    assert!(
        again.refusal().starts_with("\"second\": ") && again.refusal().contains("end at 612"),
        "{}",
        again.refusal()
    );
}

#[test]
fn an_entry_says_no_more_than_one_of_a_tar_could() {
    let value = vec![b'x'; 60_000];
    let names: Vec<_> = (0..100).map(|number| format!("SCHILY.xattr.user.{number}").into_bytes()).collect();
    let records: Vec<_> = names.iter().map(|name| (&name[..], &value[..])).collect();
    let refusal = |records| Made { entries: vec![MadeEntry { records, ..FILE }], ..Made::default() }.refusal();
    assert!(refusal(&records).contains("bytes of xattrs"), "{}", refusal(&records));
}

#[test]
fn what_takes_more_memory_than_it_may_is_refused() {
    let values: Vec<_> = (0..40).map(|number| vec![number; 60_000]).collect();
    let records: Vec<_> = values.iter().map(|value| [(&b"SCHILY.xattr.user.x"[..], &value[..])]).collect();
    let names: Vec<_> = (0..40).map(|number| format!("dir-{number}")).collect();
    let entries = names.iter().zip(&records).map(|(name, records)| MadeEntry {
        name: name.as_bytes(),
        kind: "dir",
        records,
        ..FILE
    });
    let bytes = Made { entries: entries.collect(), ..Made::default() }.bytes();
    let digest = Digest::of(b"blob");
    let layer = Descriptor { digest, size: BLOB, media_type: String::new(), annotations: BTreeMap::new() };
    let index = |limit| open_ztoc(&layer, Digest::of(&bytes), &bytes, &Budget::of_process().of_image(limit));
    assert!(index(4 << 20).is_ok());
    let text = index(1 << 20).err().unwrap().to_string();
    assert!(text.contains(&digest.to_string()) && text.contains("--memory-limit"), "{text}");
}

#[test]
fn times_that_cannot_be_written_are_left_out() {
    let made = Made { entries: vec![MadeEntry { mtime: "", ..FILE }], ..Made::default() };
    let each = &mut |entry: &mut TocEntry| {
        assert_eq!((entry.mtime.secs, entry.mtime.nanos), (0, 0));
        Ok(())
    };
    made.read().unwrap().entries(each).unwrap();
}

#[test]
fn no_cut_or_changed_byte_is_more_than_an_error() {
    let bytes = Made { checkpoints: tar(2, 400, 1000), algorithm: 2, decoded: 1000, ..Made::default() };
    let bytes = Made { max_span_id: 2, digests: vec![digest(); 3], ..bytes }.bytes();
    let look = |bytes: Bytes| {
        read(&bytes, BLOB, &mut Charge::default()).and_then(|ztoc| ztoc.entries(&mut |_| Ok(()))).is_ok()
    };
    assert!(look(bytes.clone()));
    let cut = (0..bytes.len()).filter(|len| look(bytes.slice(..*len))).count();
    assert!(cut < bytes.len() / 2, "{cut}");
    let mut refused = 0;
    for at in 0..bytes.len() {
        for flip in [1, 0x80, 0xff] {
            let mut changed = bytes.to_vec();
            changed[at] ^= flip;
            refused += usize::from(!look(changed.into()));
        }
    }
    assert!(refused > bytes.len(), "{refused}");
}
