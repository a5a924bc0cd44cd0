//! Names, numbers, owners and times, in every spelling.

use super::*;

#[test]
fn a_tar_ends_with_zeros_or_with_its_stream() {
    let file = Head::new(b'0', b"a").with(b"abc");
    for blocks in [0, 1, 2, 20] {
        let tar = [file.clone(), vec![0; blocks * 512]].concat();
        assert_eq!(read(&tar).unwrap().len(), 1, "{blocks}");
        assert_eq!(read(&vec![0; blocks * 512]).unwrap(), []);
    }
}

#[test]
fn what_is_behind_the_end_is_given_back() {
    let tar = [Head::new(b'0', b"a").with(b"abc"), vec![0; 1024], b"rest".to_vec()].concat();
    let mut reader = Reader::new(tar.as_slice());
    assert!(reader.next().unwrap().is_some());
    assert!(reader.next().unwrap().is_none());
    assert!(reader.next().unwrap().is_none());
    assert_eq!(reader.into_inner(), b"rest");
}

#[test]
fn contents_that_nobody_reads_are_passed_over() {
    let tar = [Head::new(b'0', b"a").with(&[7; 1000]), Head::new(b'0', b"b").with(b"b")].concat();
    let mut reader = Reader::new(tar.as_slice());
    reader.next().unwrap();
    reader.next().unwrap();
    let mut got = Vec::new();
    for _ in 0..2 {
        let mut keep = |at, place, bytes: &[u8]| {
            got.push((at, place, bytes.to_vec()));
            Ok(())
        };
        reader.contents(&mut keep).unwrap();
    }
    assert_eq!(got, [(0, 2048, b"b".to_vec())]);
}

#[test]
fn a_header_has_what_an_entry_needs() {
    let head = Head::new(b'3', b"dev").put(100, b"0104755\0").put(108, b"   1750 ").put(116, b"\0\0\x00017\0\0\0");
    let entry = one(&[head.put(329, b"0000010\0").put(337, b"0000377 ").done()]);
    assert_eq!((entry.kind, entry.mode), (Some(EntryType::Char), 0o4755));
    assert_eq!((entry.owner, entry.device), ((1000, 15), (8, 255)));
    assert_eq!(entry.mtime, Time { secs: 7, nanos: 0 });
    let old = Head::new(b'4', b"dev").put(257, &[0; 8]).put(329, b"garbage").done();
    assert_eq!(one(&[old]).device, (0, 0));
}

#[test]
fn names_have_a_prefix_in_posix_headers_only() {
    let name = |head: Head| one(&[head.done()]).name;
    let head = Head::new(b'0', &[b'n'; 100]).put(345, b"pre/fix");
    assert_eq!(name(head.clone()), [b"pre/fix/", &[b'n'; 100][..]].concat());
    assert_eq!(name(head.clone().put(345, &[b'p'; 155])).len(), 256);
    assert_eq!(name(head.clone().put(345, &[b'p'; 155]).put(508, b"tar\0")).len(), 232);
    assert_eq!(name(head.clone().put(257, &[0; 8])), [b'n'; 100]);
    let times = Head::new(b'0', b"n").put(257, GNU).put(345, b"00000000001 00000000002\0");
    assert_eq!(name(times), b"n");
    assert!(matches!(wrong(&[head.put(257, GNU).done()]), (0, Problem::Value { key: "atime", .. })));
}

#[test]
fn base_256_goes_both_ways() {
    let mtime = |field: &[u8]| one(&[Head::new(b'0', b"a").put(136, field).done()]).mtime.secs;
    assert_eq!(mtime(&[0xff; 12]), -1);
    assert_eq!(mtime(b"\x80\0\0\0\x01\0\0\0\0\0\0\0"), 1 << 56);
    assert_eq!(mtime(b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0"), i64::MIN);
    let uid = one(&[Head::new(b'0', b"a").put(108, b"\x80\0\0\0\xff\xff\xff\xfe").done()]).owner.0;
    assert_eq!(uid, u32::MAX - 1);
    let bad = |at, field: &[u8]| wrong(&[Head::new(b'0', b"a").put(at, field).done()]).1;
    assert!(matches!(bad(108, b"\x80\0\0\x01\0\0\0\0"), Problem::Number { key: "uid", .. }));
    assert!(matches!(bad(116, &[0xff; 8]), Problem::Value { key: "gid", .. }));
    assert!(matches!(bad(124, &[0xff; 12]), Problem::Value { key: "size", .. }));
    assert!(matches!(bad(100, b"00006x4\0"), Problem::Value { key: "mode", .. }));
    assert!(matches!(bad(100, b"00 0644\0"), Problem::Value { key: "mode", .. }));
    assert!(matches!(bad(124, b"-0000000001\0"), Problem::Value { key: "size", .. }));
}

#[test]
fn times_beyond_the_kernels_are_its_first_and_last() {
    let mtime = |field: &[u8]| one(&[Head::new(b'0', b"a").put(136, field).done()]).mtime;
    for field in [b"\x80\0\0\0\x80\0\0\0\0\0\0\0", b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"] {
        assert_eq!(mtime(field), Time::LATEST);
    }
    for field in [b"\xff\xff\xff\xff\x7f\0\0\0\0\0\0\0", b"\xc0\0\0\0\0\0\0\0\0\0\0\0"] {
        assert_eq!(mtime(field), Time::EARLIEST);
    }
    for (at, field) in
        [(345, b"\x80\x7f\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), (357, b"\xff\x80\0\0\0\0\0\0\0\0\0\0")]
    {
        assert_eq!(one(&[Head::new(b'0', b"n").put(257, GNU).put(at, field).done()]).name, b"n", "nobody keeps these");
    }
    // What is no time of a GNU header is a prefix that Go once wrote there.
    let prefix = Head::new(b'0', b"n").put(257, GNU).put(345, "\u{fffd}/directory".as_bytes());
    assert!(matches!(wrong(&[prefix.done()]), (0, Problem::Value { key: "atime", .. })));
}

#[test]
fn checksums_of_signed_bytes_are_right_too() {
    let mut tar = Head::new(b'0', b"n\xe9\xff").done();
    let sum = |tar: &[u8]| u32::from_str_radix(std::str::from_utf8(&tar[148..154]).unwrap(), 8).unwrap();
    let signed = sum(&tar) - 512;
    tar[148..154].copy_from_slice(format!("{signed:06o}").as_bytes());
    assert_eq!(one(&[tar.clone()]).name, b"n\xe9\xff");
    tar[148..154].copy_from_slice(format!("{:06o}", signed + 256).as_bytes());
    assert!(matches!(wrong(&[tar]), (0, Problem::Checksum { .. })));
}

#[test]
fn types_are_what_gnu_tar_and_go_take_them_for() {
    let kind = |head: Vec<u8>| one(&[head]).kind.unwrap();
    for (letter, expected) in [
        (b'0', EntryType::File),
        (0, EntryType::File),
        (b'7', EntryType::File),
        (b'1', EntryType::HardLink),
        (b'2', EntryType::Symlink),
        (b'4', EntryType::Block),
        (b'5', EntryType::Dir),
        (b'6', EntryType::Fifo),
    ] {
        assert_eq!(kind(Head::new(letter, b"a").done()), expected);
    }
    assert_eq!(kind(Head::new(0, b"a/").done()), EntryType::Dir);
    assert_eq!(kind(Head::new(b'0', b"a/").done()), EntryType::Dir);
    assert_eq!(kind(Head::new(b'D', b"a/").put(257, GNU).with(b"Yname\0\0")), EntryType::Dir);
    let with = Head::new(b'0', b"a/").with(b"abc");
    assert!(matches!(wrong(&[with]), (0, Problem::DirectoryWithContents { size: 3 })));
    for letter in b"MNZ9S" {
        let head = Head::new(*letter, b"a").done();
        assert!(matches!(wrong(&[head]), (0, Problem::Type(found)) if found.as_bytes() == [*letter]));
    }
}

#[test]
fn what_has_no_contents_has_none_whatever_its_size() {
    for letter in b"123456" {
        let tar = [Head::new(*letter, b"a").put(157, b"to").size(700).done(), Head::new(b'0', b"b").with(b"b")];
        let all = read(&tar.concat()).unwrap();
        assert_eq!((all[0].size, all[0].stored.len()), (0, 0));
        assert_eq!((all[1].name.as_slice(), all[1].contents.as_slice()), (&b"b"[..], &b"b"[..]));
    }
}

#[test]
fn a_label_is_no_entry_and_takes_its_long_name() {
    let long = Head::new(b'L', b"././@LongLink").put(257, GNU).with(b"label\0");
    let label = Head::new(b'V', b"lab").put(257, GNU).done();
    assert_eq!(one(&[long, label, Head::new(b'0', b"a").done()]).name, b"a");
}

#[test]
fn long_names_beat_the_header_and_records_beat_them() {
    let long = |kind, name: &[u8]| Head::new(kind, b"././@LongLink").put(257, GNU).with(name);
    let link = || Head::new(b'2', b"short").put(157, b"to").done();
    let entry = one(&[long(b'K', b"far\0"), long(b'L', b"first\0"), long(b'L', b"second\0more"), link()]);
    assert_eq!((entry.name.as_slice(), entry.link.as_slice()), (&b"second"[..], &b"far"[..]));
    let both = pax(b'x', &[("path", b"pax"), ("linkpath", b"\xff")]);
    for order in [[long(b'L', b"long\0"), both.clone()], [both, long(b'L', b"long\0")]] {
        let entry = one(&[order.concat(), long(b'K', b"far\0"), link()]);
        assert_eq!((entry.name.as_slice(), entry.link.as_slice()), (&b"pax"[..], &b"\xff"[..]));
    }
    assert_eq!(one(&[long(b'L', b""), link()]).name, b"short");
}

#[test]
fn records_beat_the_header() {
    let records: &[(&str, &[u8])] = &[
        ("size", b"5"),
        ("uid", b"4294967294"),
        ("gid", b"77"),
        ("mtime", b"-0.25"),
        ("atime", b"nonsense is ignored"),
        ("hdrcharset", b"BINARY"),
        ("uname", b"x"),
    ];
    let tar = [pax(b'x', records), Head::new(b'0', b"a").put(108, &[0xff; 8]).size(3).done(), padded(b"12345")];
    let entry = one(&tar);
    assert_eq!((entry.contents.as_slice(), entry.owner), (&b"12345"[..], (u32::MAX - 1, 77)));
    assert_eq!(entry.mtime, Time { secs: -1, nanos: 750_000_000 });
    let device = pax(b'x', &[("SCHILY.devmajor", b"1"), ("SCHILY.devminor", b"9")]);
    assert_eq!(one(&[device, Head::new(b'3', b"d").done()]).device, (1, 9));
}

#[test]
fn local_records_beat_global_ones_and_none_restores_the_header() {
    let global = [
        pax(b'g', &[("mtime", b"1.5"), ("uid", b"1"), ("gid", b"1"), ("SCHILY.xattr.user.g", b"g")]),
        pax(b'g', &[("uid", b"2"), ("comment", b"c")]),
    ]
    .concat();
    let local = pax(b'x', &[("uid", b"3"), ("mtime", b""), ("SCHILY.xattr.user.g", b"l")]);
    let tar = [global, local, Head::new(b'0', b"a").done(), Head::new(b'0', b"b").done()];
    let all = read(&tar.concat()).unwrap();
    assert_eq!((all[0].owner, all[0].mtime), ((3, 1), Time { secs: 7, nanos: 0 }));
    assert_eq!(all[0].xattrs, [(b"user.g".to_vec(), b"l".to_vec())]);
    assert_eq!((all[1].owner, all[1].mtime), ((2, 1), Time { secs: 1, nanos: 500_000_000 }));
    assert_eq!(all[1].xattrs, [(b"user.g".to_vec(), b"g".to_vec())]);
}

#[test]
fn of_several_local_headers_the_last_counts_alone() {
    let tar = [pax(b'x', &[("path", b"first"), ("uid", b"1")]), pax(b'X', &[("path", b"last")])];
    let entry = one(&[tar.concat(), Head::new(b'0', b"a").done()]);
    assert_eq!((entry.name.as_slice(), entry.owner.0), (&b"last"[..], 0));
}

#[test]
fn each_xattr_comes_once() {
    let records: &[(&str, &[u8])] = &[
        ("SCHILY.xattr.user.b", b"first"),
        ("SCHILY.xattr.user.b", b"\0\xfflast\n"),
        ("SCHILY.xattr.user.empty", b""),
        ("LIBARCHIVE.xattr.user.b", b"bm90"),
        ("LIBARCHIVE.xattr.user.%61%3d", b"b25seQ"),
    ];
    let entry = one(&[pax(b'x', records), Head::new(b'0', b"a").done()]);
    let xattrs = [("user.a=", &b"only"[..]), ("user.b", b"\0\xfflast\n"), ("user.empty", b"")];
    assert_eq!(entry.xattrs, xattrs.map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec())));
}

#[test]
fn an_owner_that_nobody_can_be_is_the_one_who_unpacks() {
    let head = Head::new(b'0', b"a").put(108, b"\x80\0\0\0\xff\xff\xff\xff").done();
    assert_eq!(one(&[pax(b'x', &[("gid", b"4294967295")]), head]).owner, (0, 0));
}
