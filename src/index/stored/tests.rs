//! Whatever goes into an encoded index comes out again, or it is damaged: never anything else.

use std::sync::Arc;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::index::builder::{Builder, Layer};
use crate::index::toc;
use crate::index::{Format, Identity, NodeId};

const BLOB: &[u8] = b"some blob";

/// A TOC of these entries: a name, a kind, a size, and whether it goes where the one before it went.
fn layer(entries: &[(String, u8, u64, bool)]) -> Layer {
    let mut builder = Builder::new(Codec::Gzip, 1 << 40);
    let (mut offset, mut inner) = (100, 0);
    let digest = Digest::of(b"chunk");
    let mut lines = Vec::new();
    for (number, (name, kind, size, shares)) in entries.iter().enumerate() {
        let common = format!(
            r#""name":"{name}","mode":{},"uid":{number},"xattrs":{{"user.{}":"YQ=="}}"#,
            number % 4096,
            kind % 3
        );
        let line = match kind {
            0 => format!(r#"{{{common},"type":"dir"}}"#),
            1 => format!(r#"{{{common},"type":"symlink","linkName":"{number}"}}"#),
            2 => format!(r#"{{{common},"type":"hardlink","linkName":"missing/{number}"}}"#),
            3 => format!(
                r#"{{{common},"type":"char","devMajor":{number},"devMinor":7,"modtime":"1969-01-01T00:00:00.{number}Z"}}"#
            ),
            _ => {
                if *shares {
                    inner += 10_000;
                } else {
                    (offset, inner) = (offset + 50, 0);
                }
                format!(
                    r#"{{{common},"type":"reg","size":{size},"digest":"{digest}","offset":{offset},"innerOffset":{inner}}}"#
                )
            }
        };
        lines.push(line);
    }
    let json = format!(r#"{{"entries":[{}]}}"#, lines.join(","));
    toc::parse(json.as_bytes(), &mut |entry| builder.add(entry)).unwrap();
    builder.finish().unwrap()
}

/// The units and checks of a layer of so many small files, all in one unit, or each in one of its own.
pub(crate) fn of_small_files(files: u32, in_one: bool) -> StoredIndex {
    let mut layer = layer(&[]);
    let unit = |at: Range<u32>| Unit {
        compressed: ByteRange { start: u64::from(at.start) * 50, end: u64::from(at.end) * 50 },
        codec: Codec::Gzip,
        pieces: at,
    };
    for file in 0..files {
        let start = u64::from(file) * 4096;
        let range = ByteRange { start, end: start + 100 };
        let (unit_of, in_unit) = if in_one { (0, u64::from(file) * 1000) } else { (file, 0) };
        layer.tables.piece(&Piece { unit: unit_of, in_unit, range });
        layer.tables.check(&Check { range, kind: CheckKind::Digest(Digest::of(b"file")) });
        layer.layer_file_len = range.end;
        if !in_one {
            layer.tables.unit(&unit(file..file + 1));
        }
    }
    if in_one {
        layer.tables.unit(&unit(0..files));
    }
    let identity = Some(Identity::Own);
    let encoded = encode(Digest::of(BLOB), identity, Format::EStargz, 77, None, layer).unwrap();
    open(encoded.bytes, identity).unwrap()
}

/// Names that never need a directory of what is none: files end in a digit, directories do not.
fn entries() -> impl Strategy<Value = Vec<(String, u8, u64, bool)>> {
    let entry = ("[ab](/[ab]){0,3}", 0u8..8, 0u64..9000, any::<bool>(), 0u8..10);
    let entry = entry.prop_map(|(dir, kind, size, shares, name)| match kind {
        0 => (dir, kind, size, shares),
        _ => (format!("{dir}/{}{name}", if name == 9 { ".wh." } else { "" }), kind, size, shares),
    });
    vec(entry, 0..60)
}

fn encoded(entries: &[(String, u8, u64, bool)], identity: Option<Identity>) -> Bytes {
    encode(Digest::of(BLOB), identity, Format::EStargz, 77, None, layer(entries)).unwrap().bytes
}

fn open(bytes: Bytes, identity: Option<Identity>) -> Result<StoredIndex, Damaged> {
    let key = identity.map(|identity| LayerKey { blob: Digest::of(BLOB), identity });
    StoredIndex::open(Arc::new(bytes), &Digest::of(BLOB), key.as_ref())
}

/// All that an index says.
type Everything = (Summary, Entries, Vec<Unit>, Vec<Piece>, Vec<Check>);

fn everything(index: &StoredIndex) -> Result<Everything, Error> {
    let summary = *index.summary();
    let units = (0..summary.units).map(|unit| index.unit(unit)).collect::<Result<Vec<_>, _>>()?;
    let pieces = (0..units.last().map_or(0, |unit| unit.pieces.end))
        .map(|piece| index.piece(piece))
        .collect::<Result<_, Damaged>>()?;
    let checks = (0..summary.checks).map(|check| index.check(check)).collect::<Result<_, _>>()?;
    Ok((summary, index.entries()?, units, pieces, checks))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn entries_come_back_equal_and_the_same_toc_gives_the_same_bytes(entries in entries()) {
        let identity = Some(Identity::Toc(Digest::of(b"toc")));
        let built = layer(&entries);
        let bytes = encoded(&entries, identity);
        prop_assert_eq!(&bytes, &encoded(&entries, identity));
        let index = open(bytes, identity).unwrap();
        prop_assert_eq!(&index.entries().unwrap(), &built.entries);
        for dir in (0..built.entries.len() as u32).map(NodeId) {
            for (name, child) in built.entries.children(dir) {
                prop_assert_eq!(built.entries.child(dir, name), Some(child));
            }
            prop_assert_eq!(built.entries.child(dir, b"no such name"), None);
        }
        prop_assert_eq!(index.summary().layer_file_len, built.layer_file_len);
        prop_assert_eq!(index.summary().toc_len, 77);
    }

    #[test]
    fn lookups_find_what_looking_at_every_record_finds(entries in entries(), start in 0u64..60_000, len in 0u64..9_000) {
        let index = open(encoded(&entries, None), None).unwrap();
        let (_, _, units, pieces, checks) = everything(&index).unwrap();
        let range = ByteRange { start, end: start + len };
        let touches = |other: &ByteRange| other.start < range.end && range.start < other.end;
        let numbers = |found: Range<u32>| found.collect::<Vec<_>>();
        let of_checks: Vec<_> = (0u32..).zip(&checks).filter(|(_, check)| touches(&check.range)).map(|(i, _)| i).collect();
        prop_assert_eq!(numbers(index.checks_over(range).unwrap()), of_checks);
        let mut of_units: Vec<_> = pieces.iter().filter(|piece| touches(&piece.range)).map(|piece| piece.unit).collect();
        of_units.dedup();
        prop_assert_eq!(numbers(index.units_over(range).unwrap()), of_units);
        let in_blob: Vec<_> = (0u32..).zip(&units).filter(|(_, unit)| touches(&unit.compressed)).map(|(i, _)| i).collect();
        prop_assert_eq!(numbers(index.units_in_blob(range).unwrap()), in_blob);
    }

    #[test]
    fn damage_is_noticed_or_harmless(entries in entries(), at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<bool>()) {
        let whole = encoded(&entries, None);
        let mut damaged = whole.to_vec();
        let at = at.index(damaged.len());
        if cut { damaged.truncate(at) } else { damaged[at] ^= 1 << bit }
        let right = everything(&open(whole, None).unwrap()).unwrap();
        if let Ok(index) = open(damaged.into(), None) {
            if let Ok(got) = everything(&index) {
                prop_assert_eq!(got, right);
            }
        }
    }
}

/// With one bit flipped.
fn whole_with(whole: &Bytes, at: usize) -> Bytes {
    let mut damaged = whole.to_vec();
    damaged[at] ^= 0x10;
    damaged.into()
}

#[test]
fn every_bit_of_a_small_index_is_checked() {
    let entries = [("a".to_owned(), 0, 0, false), ("a/1".to_owned(), 7, 5000, false)];
    let whole = encoded(&entries, None);
    let header = super::header::LEN;
    for at in 0..whole.len() {
        let got = open(whole_with(&whole, at), None).map_err(Error::from).and_then(|index| everything(&index));
        let verified = open(whole_with(&whole, at), None).and_then(|index| index.verify());
        assert_eq!(verified.is_ok(), got.is_ok(), "byte {at}: verify sees what reading sees");
        assert!(got.unwrap_err().to_string().contains(&Digest::of(BLOB).to_string()), "byte {at}");
    }
    for len in [0, 1, header - 1, header, whole.len() - 1] {
        assert!(open(whole.slice(..len), None).is_err(), "{len}");
    }
    assert!(open([&whole[..], b"x"].concat().into(), None).is_err());
}

#[test]
fn an_index_serves_its_own_key_only() {
    let toc = |text: &[u8]| Some(Identity::Toc(Digest::of(text)));
    for made in [None, toc(b"1"), Some(Identity::Own)] {
        for asked in [None, toc(b"1"), toc(b"2"), Some(Identity::Own)] {
            assert_eq!(open(encoded(&[], made), asked).is_ok(), made == asked, "{made:?} {asked:?}");
        }
    }
    let other = StoredIndex::open(Arc::new(encoded(&[], None)), &Digest::of(b"another blob"), None);
    assert!(other.is_err());
}

/// As it happens to one in the cache, which is then made again of the blob.
#[test]
fn a_damaged_index_goes_on_with_the_same_and_with_no_other() {
    let entries = |name: &str| [(name.to_owned(), 7, 5, false)];
    let whole = encoded(&entries("1"), Some(Identity::Own));
    // Where what is there is looked at when it is read, and not when it is opened.
    let damaged = (0..whole.len()).filter_map(|at| open(whole_with(&whole, at), Some(Identity::Own)).ok());
    let index = damaged.last().unwrap();
    assert!(index.verify().is_err());
    for other in [encoded(&entries("2"), Some(Identity::Own)), whole.slice(..header::LEN), Bytes::new()] {
        assert!(!index.replace(Arc::new(other)) && index.verify().is_err());
    }
    assert!(index.replace(Arc::new(whole.clone())));
    assert_eq!(everything(&index).unwrap(), everything(&open(whole, Some(Identity::Own)).unwrap()).unwrap());
}

#[test]
fn records_that_are_not_there_are_damage() {
    let index = open(encoded(&[("1".to_owned(), 7, 5, false)], None), None).unwrap();
    assert!(index.unit(0).is_ok() && index.unit(1).is_err() && index.unit(u32::MAX).is_err());
    assert!(index.check(1).is_err() && index.piece(1).is_err());
    assert_eq!(index.checks_over(ByteRange { start: 0, end: u64::MAX }).unwrap(), 0..1);
    assert_eq!(index.units_over(ByteRange { start: 5, end: u64::MAX }).unwrap(), 0..0);
}

/// A source that counts what is read of it.
struct Counting(Bytes, std::sync::atomic::AtomicUsize);

impl ByteSource for Counting {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, range: ByteRange) -> Result<Bytes, crate::blob::SourceError> {
        self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.0.read_at(range)
    }
}

#[test]
fn a_lookup_reads_a_block_and_finds_what_is_there_across_blocks() {
    let count: u32 = 5000;
    let entries: Vec<_> = (0..count).map(|i| (format!("f{i}"), 7, u64::from(1 + i % 5000), i % 3 == 1)).collect();
    let bytes = encoded(&entries, None);
    let (_, _, units, pieces, checks) = everything(&open(bytes.clone(), None).unwrap()).unwrap();
    open(bytes.clone(), None).unwrap().verify().unwrap();
    for i in [0, 1, 1023, 1024, 1025, 2047, 2048, 3333, 4095, 4096, 4998, 4999] {
        let source = Arc::new(Counting(bytes.clone(), std::sync::atomic::AtomicUsize::new(0)));
        let counted = Arc::clone(&source) as Arc<dyn ByteSource>;
        let index = StoredIndex::open(counted, &Digest::of(BLOB), None).unwrap();
        let check = &checks[i as usize];
        assert_eq!(index.checks_over(check.range).unwrap(), i..i + 1);
        assert_eq!(source.1.load(std::sync::atomic::Ordering::Relaxed), 3, "header, block digests and one block");
        let gap = ByteRange { start: check.range.end, end: check.range.end.next_multiple_of(4096) };
        assert!(index.checks_over(gap).unwrap().is_empty());
        let unit = pieces[i as usize].unit;
        assert_eq!(index.units_over(check.range).unwrap(), unit..unit + 1);
        assert_eq!(index.units_in_blob(units[unit as usize].compressed).unwrap(), unit..unit + 1);
        let two = ByteRange { start: check.range.end - 1, end: check.range.end + 8192 };
        let next = checks.iter().take_while(|check| check.range.start < two.end).count() as u32;
        assert_eq!(index.checks_over(two).unwrap(), i..next);
    }
}
