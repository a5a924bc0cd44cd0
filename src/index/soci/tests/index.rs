//! Indexes from zTOCs: they say the same as those that crfs makes of the blobs themselves, and never less than they must.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use proptest::prelude::*;

use super::super::*;
use super::fixtures::ztocs;
use super::made::{BLOB, FILE, Made, MadeEntry, digest, gzip, tar};
use crate::budget::{Budget, Charge};
use crate::index::error::Error;
use crate::index::tests::fixtures_dir;
use crate::index::{
    CheckKind, Child, Codec, Descriptor, Entries, Format, Identity, LayerKey, Opened, StoredIndex, Trust, Unit,
    Unpacker, make, open_ztoc,
};
use crate::sys::inflate::{Inflate, Stop, WINDOW, Wrapping};

fn descriptor(digest: Digest, size: u64) -> Descriptor {
    Descriptor { digest, size, media_type: String::new(), annotations: BTreeMap::new() }
}

fn stored(blob: Digest, opened: &Opened) -> StoredIndex {
    let key = opened.identity.map(|identity| LayerKey { blob, identity });
    let index = StoredIndex::open(Arc::new(opened.encoded.clone()), &blob, key.as_ref()).unwrap();
    index.verify().unwrap();
    index
}

/// The index that crfs makes of the blob, and the layer file.
fn own(layer: &Bytes, format: Format) -> (StoredIndex, Vec<u8>) {
    let mut events = VecDeque::new();
    let mut unpacker = Unpacker::new(format).unwrap();
    let tell = &mut |event| {
        events.push_back(event);
        Ok(())
    };
    unpacker.push(layer, tell).unwrap();
    unpacker.finish(tell).unwrap();
    let (blob, mut file) = (Digest::of(layer), Vec::new());
    let keep = &mut |at: u64, bytes: &[u8]| {
        file.resize(at as usize, 0);
        file.extend_from_slice(bytes);
    };
    let made = make(blob, format, &mut || Ok(events.pop_front()), keep, None, Charge::default())
        .ok()
        .expect("the layer cannot be indexed");
    let key = LayerKey { blob, identity: Identity::Own };
    let index = StoredIndex::open(Arc::new(made.encoded), &blob, Some(&key)).unwrap();
    file.resize(index.summary().layer_file_len as usize, 0);
    (index, file)
}

/// What a span of a gzip blob decodes to: deflate from its first bit on, and the members behind it.
fn inflated(bytes: &[u8], bits: u8, window: &[u8]) -> Vec<u8> {
    let (mut inflate, mut is_raw) = (Inflate::new(Wrapping::Raw).unwrap(), true);
    inflate.set_window(window).unwrap();
    let mut at = usize::from(bits > 0);
    if bits > 0 {
        inflate.prime(bits, bytes[0]).unwrap();
    }
    let (mut out, mut part) = (Vec::new(), vec![0; 100_000]);
    loop {
        let step = inflate.step(&bytes[at..], &mut part).unwrap();
        at += step.consumed;
        out.extend_from_slice(&part[..step.produced]);
        match step.stop {
            Stop::End if is_raw => {
                (inflate, is_raw) = (Inflate::new(Wrapping::Gzip).unwrap(), false);
                // The trailer (RFC 1952), which raw deflate knows nothing of.
                at = bytes.len().min(at + 8);
            }
            Stop::End => inflate.reset(),
            _ if step.consumed + step.produced == 0 => return out,
            _ => {}
        }
    }
}

fn decoded(index: &StoredIndex, unit: &Unit, bytes: &[u8]) -> Vec<u8> {
    match unit.codec {
        Codec::Stored => bytes.to_vec(),
        Codec::Deflate { bits, window } => {
            let window = window.map_or_else(Vec::new, |window| index.window(window).unwrap());
            inflated(bytes, bits, &window)
        }
        codec => panic!("{codec:?}"),
    }
}

/// The layer file by the units, each decoded alone. Their checks are of their bytes in the blob, one each.
fn layer_file(index: &StoredIndex, layer: &Bytes) -> Vec<u8> {
    let summary = index.summary();
    assert_eq!(summary.units, summary.checks);
    let mut file = vec![0; summary.layer_file_len as usize];
    for number in 0..summary.units {
        let unit = index.unit(number).unwrap();
        let bytes = &layer[unit.compressed.start as usize..unit.compressed.end as usize];
        let out = decoded(index, &unit, bytes);
        let pieces: Vec<_> = unit.pieces.clone().map(|piece| index.piece(piece).unwrap()).collect();
        for piece in &pieces {
            assert_eq!(piece.unit, number);
            let part = &out[piece.in_unit as usize..][..piece.range.len() as usize];
            file[piece.range.start as usize..piece.range.end as usize].copy_from_slice(part);
        }
        let check = index.check(number).unwrap();
        assert_eq!(check.range, ByteRange { start: pieces[0].range.start, end: pieces.last().unwrap().range.end });
        assert_eq!(check.kind, CheckKind::Span(Digest::of(bytes)));
    }
    file
}

#[test]
fn every_ztoc_gives_the_index_that_its_layer_gives() {
    let dir = fixtures_dir();
    let (mut seen, mut units) = (0, 0);
    for (name, bytes, layer) in ztocs(&dir) {
        let (of, named) = (descriptor(Digest::of(&layer), layer.len() as u64), Digest::of(&bytes));
        let opened = open_ztoc(&of, named, &bytes, &Budget::UNLIMITED).unwrap();
        assert_eq!((opened.trust, opened.identity), (Trust::Soci, Some(Identity::Ztoc(named))), "{name}");
        let index = stored(of.digest, &opened);
        assert!(index.has_spans());
        let format = if layer.starts_with(&[0x1f, 0x8b]) { Format::TarGzip } else { Format::Tar };
        assert!([format, Format::Empty].contains(&opened.format), "{name}: {}", opened.format);
        let (own, file) = own(&layer, format);
        assert!(index.entries().unwrap() == own.entries().unwrap(), "{name}: the entries differ");
        assert_eq!(index.summary().diff_id, None, "nobody has seen all of it");
        assert!(layer_file(&index, &layer) == file, "{name}: the contents differ");
        units += index.summary().units;
        seen += 1;

        let other = Digest::of(b"another");
        let error = open_ztoc(&of, other, &bytes, &Budget::UNLIMITED).err().expect("a wrong digest");
        assert!(matches!(error, Error::TocDigest { named, .. } if named == other), "{error}");
        let larger = descriptor(of.digest, of.size + 1);
        assert!(open_ztoc(&larger, named, &bytes, &Budget::UNLIMITED).is_err(), "{name}: of another blob");
        let flipped: Bytes =
            bytes.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at == bytes.len() / 2)).collect();
        assert!(open_ztoc(&of, named, &flipped, &Budget::UNLIMITED).is_err());
    }
    eprintln!("{seen} zTOCs, {units} units");
    assert!(seen >= 13 && units >= 36, "{seen} zTOCs, {units} units");
}

fn opened(made: &Made<'_>) -> Result<StoredIndex, String> {
    let (bytes, blob) = (made.bytes(), Digest::of(b"blob"));
    let opened = open_ztoc(&descriptor(blob, BLOB), Digest::of(&bytes), &bytes, &Budget::UNLIMITED);
    opened.map(|opened| stored(blob, &opened)).map_err(|error| error.to_string())
}

fn entry(name: &'static [u8], offset: i64, size: i64) -> MadeEntry<'static> {
    MadeEntry { name, offset, size, ..FILE }
}

#[test]
fn names_lead_where_they_lead_in_a_tar() {
    let entries = vec![
        MadeEntry { kind: "dir", ..entry(b"usr/lib", 0, 0) },
        MadeEntry { kind: "symlink", link: b"usr/lib", ..entry(b"lib", 0, 0) },
        entry(b"lib/a", 512, 10),
        MadeEntry { kind: "hardlink", link: b"lib/a", ..entry(b"b", 1024, 0) },
        entry(b"lib/.wh.a", 1536, 0),
    ];
    let index = opened(&Made { entries, ..Made::default() }).unwrap();
    let entries = index.entries().unwrap();
    let names = |dir| entries.children(dir).map(|(name, _)| name.to_vec()).collect::<Vec<_>>();
    assert_eq!(names(Entries::ROOT), [&b"b"[..], b"lib", b"usr"]);
    let mut dir = Entries::ROOT;
    for name in [&b"usr"[..], b"lib"] {
        let found = entries.children(dir).find(|(other, _)| *other == name);
        let Some((_, Child::Node(node))) = found else { panic!("{found:?}") };
        dir = node;
    }
    assert_eq!(names(dir), [b"a"]);
}

#[test]
fn a_file_is_cut_where_its_spans_are() {
    let entries = vec![entry(b"a", 512, 10), entry(b"b", 2000, 1000), entry(b"empty", 3500, 0), entry(b"c", 4990, 10)];
    let index = opened(&Made { entries, ..Made::default() }).unwrap();
    assert_eq!((index.summary().units, index.summary().checks, index.summary().layer_file_len), (2, 2, 12_288));
    let pieces = |unit| -> Vec<_> {
        let pieces = index.unit(unit).unwrap().pieces.map(|piece| index.piece(piece).unwrap());
        pieces.map(|piece| (piece.in_unit, piece.range.start, piece.range.len())).collect()
    };
    assert_eq!(pieces(0), [(512, 0, 10), (2000, 4096, 500)]);
    assert_eq!(pieces(1), [(0, 4596, 500), (2490, 8192, 10)]);
    let span = CheckKind::Span(digest().parse().unwrap());
    let checks = [0, 1].map(|number| index.check(number).unwrap());
    assert_eq!(checks.map(|check| check.kind), [span; 2]);
    assert_eq!(checks.map(|check| (check.range.start, check.range.end)), [(0, 4596), (4596, 8202)]);
    assert_eq!(index.units_over(ByteRange { start: 4096, end: 5096 }).unwrap(), 0..2);
    let Codec::Deflate { bits: 3, window: Some(window) } = index.unit(1).unwrap().codec else { panic!("no window") };
    assert_eq!(index.window(window).unwrap(), [b'w'; WINDOW]);
}

#[test]
fn spans_that_nothing_is_in_are_no_units() {
    let made = |entries| Made {
        max_span_id: 3,
        digests: ["0", "1", "2", "3"].map(|text| Digest::of(text.as_bytes()).to_string()).into(),
        checkpoints: gzip(4, &[(10, 0, 0), (100, 1000, 0), (200, 1000, 1), (500, 3000, 2)]),
        entries,
        ..Made::default()
    };
    let index = opened(&made(vec![entry(b"a", 1500, 10), entry(b"b", 4000, 10)])).unwrap();
    let digests = [0, 1].map(|number| index.check(number).unwrap().kind);
    assert_eq!(digests, ["2", "3"].map(|text| CheckKind::Span(Digest::of(text.as_bytes()))));
    // Across one that decodes to nothing.
    let index = opened(&made(vec![entry(b"a", 900, 200)])).unwrap();
    let digests = [0, 1].map(|number| index.check(number).unwrap().kind);
    assert_eq!(digests, ["0", "2"].map(|text| CheckKind::Span(Digest::of(text.as_bytes()))));
    assert_eq!(index.summary().units, 2);
    assert_eq!(opened(&made(Vec::new())).unwrap().summary().units, 0);
}

#[test]
fn contents_outside_of_the_spans_or_of_each_other_are_refused() {
    let of_tar = |span_size, entries| Made {
        algorithm: 2,
        decoded: 1000,
        max_span_id: 2,
        digests: vec![digest(); 3],
        checkpoints: tar(2, span_size, 1000),
        entries,
        ..Made::default()
    };
    let of_gzip = |checkpoints: &[(i64, i64, u8)]| Made { checkpoints: gzip(2, checkpoints), ..Made::default() };
    let name = |made: &Made<'_>| opened(made).err().expect("it opened");
    for made in [
        Made { entries: vec![entry(b"evil", 4901, 100)], ..Made::default() },
        Made { entries: vec![entry(b"evil", i64::MAX - 1, 100)], ..Made::default() },
        Made { entries: vec![FILE, entry(b"evil", 600, 100)], ..Made::default() },
        Made { entries: vec![entry(b"a", 2400, 200), entry(b"evil", 2500, 1)], ..Made::default() },
        of_tar(400, vec![entry(b"evil", 901, 100)]),
        of_tar(400, vec![FILE, entry(b"evil", 611, 1)]),
        // In a span that starts where the blob ends.
        Made { entries: vec![FILE, entry(b"evil", 2600, 100)], ..of_gzip(&[(10, 0, 0), (1000, 2500, 0)]) },
        // Larger than any layer may be.
        Made { decoded: i64::MAX, entries: vec![entry(b"evil", 0, i64::MAX)], ..Made::default() },
    ] {
        let text = name(&made);
        assert!(text.contains("evil"), "{text}");
    }
    for made in [
        of_tar(300, vec![FILE]),
        of_tar(500, vec![FILE]),
        of_gzip(&[(10, 0, 0), (1001, 2500, 0)]),
        of_gzip(&[(10, 1, 0), (500, 2500, 0)]),
        of_gzip(&[(500, 0, 0), (10, 2500, 0)]),
    ] {
        let text = name(&made);
        assert!(text.contains("zTOC"), "{text}");
    }
    for made in
        [of_tar(400, vec![FILE]), of_gzip(&[(10, 0, 0), (500, 2500, 0)]), of_gzip(&[(10, 0, 0), (1000, 2500, 3)])]
    {
        opened(&made).unwrap();
    }
}

/// Whatever it was made of: every byte of every piece has one check, and every unit lies in the blob.
fn is_sound(index: &StoredIndex) -> Result<(), Error> {
    let summary = *index.summary();
    let (mut end, mut blob) = (0, 0);
    for number in 0..summary.units {
        let (unit, check) = (index.unit(number)?, index.check(number)?);
        assert!(unit.compressed.end <= BLOB && unit.compressed.start < unit.compressed.end);
        assert!(unit.compressed.start + 1 >= blob, "but for the byte that they may share");
        blob = unit.compressed.end;
        for piece in unit.pieces {
            let piece = index.piece(piece)?;
            assert!(
                piece.range.start >= end
                    && !piece.range.is_empty()
                    && check.range.intersection(&piece.range) == piece.range
            );
            end = piece.range.end;
        }
        assert!(check.range.end <= summary.layer_file_len);
    }
    index.entries().map(drop)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_ztoc_is_more_than_an_error(
        checkpoints in proptest::collection::vec((0i64..1010, 0i64..5100, 0u8..9), 0..6),
        is_sorted in any::<bool>(),
        files in proptest::collection::vec((0i64..5100, 0i64..400), 0..12),
        tell in any::<bool>(),
    ) {
        let (mut checkpoints, mut files) = (checkpoints, files);
        if is_sorted {
            let mut places: Vec<_> = checkpoints.iter().map(|checkpoint| checkpoint.1).collect();
            places.sort_unstable();
            checkpoints.sort_unstable();
            checkpoints.iter_mut().zip(places).for_each(|(checkpoint, place)| checkpoint.1 = place);
            checkpoints.iter_mut().take(1).for_each(|first| *first = (10, 0, 0));
            files.sort_unstable();
            let starts: Vec<_> = files.iter().skip(1).map(|file| file.0).chain([5000]).collect();
            files.iter_mut().zip(starts).filter(|_| tell).for_each(|(file, next)| file.1 = file.1.min(next - file.0).max(0));
        }
        let count = checkpoints.len();
        const NAMES: [&[u8]; 12] = [b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h", b"i", b"j", b"k", b"a"];
        let entries = files.iter().zip(NAMES).map(|((offset, size), name)| entry(name, *offset, *size)).collect();
        let made = Made {
            max_span_id: count as i32 - 1,
            digests: vec![digest(); count],
            checkpoints: gzip(count as i32, &checkpoints),
            entries,
            ..Made::default()
        };
        if let Ok(index) = opened(&made) {
            is_sound(&index).unwrap();
        }
    }
}
