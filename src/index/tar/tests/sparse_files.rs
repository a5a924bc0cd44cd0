//! The four kinds of maps, right and wrong.

use super::*;
use crate::budget::Budget;
use crate::index::limits;

/// Place and length of a part.
type Pair = (u64, u64);

/// A GNU header of a sparse file, and the blocks that continue its map.
fn gnu(pairs: &[Pair], real_size: u64, stored: u64) -> Vec<u8> {
    let octal = |number: u64| format!("{number:011o}\0").into_bytes();
    let pair = |(place, len): &Pair| [octal(*place), octal(*len)].concat();
    let (in_header, rest) = pairs.split_at(pairs.len().min(4));
    let map: Vec<u8> = in_header.iter().flat_map(pair).collect();
    let head = Head::new(b'S', b"s").put(257, GNU).put(386, &map).put(483, &octal(real_size)).size(stored);
    let mut out = head.put(482, &[u8::from(!rest.is_empty())]).done();
    let blocks: Vec<_> = rest.chunks(21).collect();
    for (number, chunk) in blocks.iter().enumerate() {
        let mut block: Vec<u8> = chunk.iter().flat_map(pair).collect();
        block.resize(512, 0);
        block[504] = u8::from(number + 1 < blocks.len());
        out.extend(block);
    }
    out
}

/// The same as pax records of version 0.0, 0.1 or 1.0, up to the stored parts.
fn pax_map(version: &str, pairs: &[Pair], real_size: u64, stored: u64) -> Vec<u8> {
    let join = |between: &str| {
        pairs.iter().map(|(place, len)| format!("{place}{between}{len}")).collect::<Vec<_>>().join(between)
    };
    let size = real_size.to_string().into_bytes();
    let blocks = pairs.len().to_string().into_bytes();
    let mut records = record("GNU.sparse.name", b"real");
    let mut front = Vec::new();
    match version {
        "0.0" => {
            records.extend([record("GNU.sparse.size", &size), record("GNU.sparse.numblocks", &blocks)].concat());
            for (place, len) in pairs {
                records.extend(record("GNU.sparse.offset", place.to_string().as_bytes()));
                records.extend(record("GNU.sparse.numbytes", len.to_string().as_bytes()));
            }
        }
        "0.1" => {
            records.extend([record("GNU.sparse.size", &size), record("GNU.sparse.numblocks", &blocks)].concat());
            records.extend(record("GNU.sparse.map", join(",").as_bytes()));
        }
        _ => {
            records.extend([record("GNU.sparse.major", b"1"), record("GNU.sparse.minor", b"0")].concat());
            records.extend(record("GNU.sparse.realsize", &size));
            front = padded(format!("{}\n{}\n", pairs.len(), join("\n")).as_bytes());
        }
    }
    let head = Head::new(b'0', b"GNUSparseFile.0/s").size(stored + front.len() as u64).done();
    [Head::new(b'x', b"x").with(&records), head, front].concat()
}

/// A sparse file in each of the four ways.
fn all_ways(pairs: &[Pair], real_size: u64, stored: u64) -> [Vec<u8>; 4] {
    let pax = |version| pax_map(version, pairs, real_size, stored);
    [gnu(pairs, real_size, stored), pax("0.0"), pax("0.1"), pax("1.0")]
}

#[test]
fn parts_are_where_the_map_says() {
    let pairs: Vec<_> = (0..60).map(|part| (part * 2048 + 512, 512)).chain([(200_000, 700), (300_000, 0)]).collect();
    let stored: Vec<u8> = (0..60 * 512 + 700).map(|at| (at / 512) as u8 + 1).collect();
    for head in all_ways(&pairs, 300_000, stored.len() as u64) {
        let tar = [head, padded(&stored), Head::new(b'0', b"next").done()].concat();
        let all = read(&tar).unwrap();
        let file = all[0].file();
        assert_eq!((file.len(), all[0].stored.len()), (300_000, 61));
        for (number, (place, len)) in pairs.iter().enumerate() {
            let part = &file[*place as usize..(place + len) as usize];
            assert!(part.iter().take(512).all(|byte| *byte == number as u8 + 1));
        }
        assert_eq!(file.iter().filter(|byte| **byte != 0).count(), stored.len());
        assert_eq!(all[1].name, b"next");
    }
}

#[test]
fn a_file_may_be_one_hole_or_have_none() {
    for head in all_ways(&[(1 << 32, 0)], 1 << 32, 0) {
        let entry = one(&[head]);
        assert_eq!((entry.size, entry.stored.as_slice(), entry.kind), (1 << 32, &[][..], Some(EntryType::File)));
    }
    for head in all_ways(&[(0, 512), (512, 512), (1024, 3)], 1027, 1027) {
        let entry = one(&[head, vec![1; 1536]]);
        assert_eq!(entry.stored, [ByteRange { start: 0, end: 1027 }]);
        assert_eq!(entry.contents, [1; 1027]);
    }
}

#[test]
fn the_name_of_the_map_beats_the_path() {
    let tar = [pax_map("1.0", &[], 10, 0)].concat();
    assert_eq!(one(&[tar]).name, b"real");
    let old = [pax(b'x', &[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"9")]), Head::new(b'0', b"a").with(b"x")];
    let entry = one(&old);
    assert_eq!((entry.name.as_slice(), entry.file().as_slice()), (&b"a"[..], &b"x\0\0\0\0\0\0\0\0"[..]));
}

#[test]
fn maps_that_lie_are_refused() {
    let cases: [(&[Pair], u64, u64); 7] = [
        (&[(0, 512), (100, 512)], 4096, 1024),
        (&[(1024, 512), (0, 512)], 4096, 1024),
        (&[(1024, 512), (512, 0)], 4096, 512),
        (&[(4096, 512)], 4096, 512),
        (&[(0, 512)], 4096, 1024),
        (&[(0, 1024)], 4096, 512),
        (&[(0, 100), (512, 100)], 4096, 200),
    ];
    for (pairs, real_size, stored) in cases {
        for head in all_ways(pairs, real_size, stored) {
            assert!(matches!(wrong(&[head, vec![1; 2048]]), (_, Problem::SparseMap(_))), "{pairs:?}");
        }
    }
    let huge = u64::MAX / 2;
    for head in all_ways(&[(huge, huge)], huge, 0).into_iter().skip(1) {
        assert!(matches!(wrong(&[head]), (_, Problem::SparseMap(_))));
    }
}

#[test]
fn maps_that_are_none_are_refused() {
    let records = |records: &[(&str, &[u8])]| wrong(&[pax(b'x', records), Head::new(b'0', b"a").with(&[b'1'; 600])]).1;
    let map = |map: &[u8]| records(&[("GNU.sparse.map", map), ("GNU.sparse.size", b"600")]);
    for wrong in [&b"0"[..], b"0,", b"0,1,2", b"a,1", b",", b"0,600,"] {
        assert!(matches!(map(wrong), Problem::SparseMap(_)), "{wrong:?}");
    }
    assert!(matches!(records(&[("GNU.sparse.numbytes", b"1")]), Problem::SparseMap(_)));
    assert!(matches!(records(&[("GNU.sparse.offset", b"1")]), Problem::SparseMap(_)));
    let other_count: &[(&str, &[u8])] = &[("GNU.sparse.map", b"0,600"), ("GNU.sparse.numblocks", b"2")];
    assert!(matches!(records(other_count), Problem::SparseMap(_)));
    let version: &[(&str, &[u8])] = &[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")];
    assert!(matches!(records(version), Problem::Value { key: "GNU.sparse.major", .. }));
    let dir = wrong(&[pax(b'x', &[("GNU.sparse.map", b"0,1")]), Head::new(b'5', b"a").done()]);
    assert!(matches!(dir, (1024, Problem::SparseMap(_))));
}

#[test]
fn maps_in_front_of_the_contents_end_with_them() {
    let version: &[(&str, &[u8])] = &[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")];
    let front = |front: &[u8]| wrong(&[pax(b'x', version), Head::new(b'0', b"a").with(front)]).1;
    let block = |start: &[u8]| [start, &[b'0'; 512][start.len()..]].concat();
    assert!(matches!(front(b"0\n"), Problem::SparseMap(_)));
    for start in [&b"-1\n"[..], b"\n", b"1\n0\n", b"1\nx\n0\n", b"99999999999999999999\n", &[b'1'; 30]] {
        assert!(matches!(front(&block(start)), Problem::SparseMap(_)), "{start:?}");
    }
    let many = format!("{}\n", limits::SPARSE_PARTS + 1);
    assert!(matches!(front(&block(many.as_bytes())), Problem::TooMany { .. }));
}

#[test]
fn a_map_that_goes_on_for_ever_is_refused() {
    struct Endless(Vec<u8>, usize);
    impl Read for Endless {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            unreachable!()
        }
    }
    impl BufRead for Endless {
        fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
            Ok(&self.0[self.1..])
        }
        fn consume(&mut self, used: usize) {
            self.1 += used;
            if self.1 == self.0.len() {
                self.0 = vec![0; 512];
                self.0[504] = 1;
                self.1 = 0;
            }
        }
    }
    let mut head = gnu(&[], 0, 0);
    head.truncate(512);
    let head = Head(head.try_into().unwrap()).put(482, &[1]).done();
    let refused = Reader::new(Endless(head, 0)).next().unwrap_err();
    assert!(matches!(refused, Error::Malformed { offset: 0, problem: Problem::TooMany { .. }, .. }));
}

#[test]
fn a_map_that_takes_too_much_memory_is_refused() {
    let pairs: Vec<_> = (0..1000).map(|part| (part * 2048, 512)).collect();
    for head in all_ways(&pairs, 1000 * 2048, 1000 * 512) {
        let tar = [head, vec![1; 1000 * 512]].concat();
        let read =
            |limit| Reader::new(&tar[..]).charged(Budget::of_process().of_image(limit).charge(0)).next().map(drop);
        read(16_000).unwrap();
        assert!(matches!(read(15_999), Err(Error::Malformed { problem: Problem::Memory(_), .. })));
    }
}
