//! Tars that lie, end early or want too much.

use super::*;
use crate::index::limits;

#[test]
fn a_tar_that_ends_early_is_refused_with_the_header_that_it_ends_after() {
    let tar = [pax(b'x', &[("mtime", b"1")]), Head::new(b'0', b"a").with(&[1; 700]), Head::new(b'0', b"b").done()];
    let tar = tar.concat();
    let places = [0, 1024, 2560, 3072];
    for len in 0..tar.len() {
        let got = read(&tar[..len]);
        if [0, 2560].contains(&len) {
            assert!(got.is_ok(), "{len}");
            continue;
        }
        let Err(Error::Malformed { offset, problem, entry }) = got else { panic!("{len}") };
        let last = places.iter().rev().find(|place| (**place as usize) < len).unwrap();
        match problem {
            Problem::Truncated => assert_eq!(offset, *last, "{len}"),
            Problem::Dangling => assert_eq!((len, offset), (1024, 0)),
            other => panic!("{len}: {other:?}"),
        }
        assert_eq!(entry.is_some(), (1536..2560).contains(&len), "{len}");
    }
}

#[test]
fn an_error_is_the_last_word() {
    let mut reader = Reader::new(&b"too short"[..]);
    assert!(reader.next().is_err());
    assert!(reader.next().is_err());
    let tar = Head::new(b'0', b"a").with(b"abc");
    let mut reader = Reader::new(tar.as_slice());
    reader.next().unwrap();
    let full = reader.contents(&mut |_, _, _| Err(std::io::ErrorKind::StorageFull.into()));
    assert!(matches!(full, Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::StorageFull));
    assert!(reader.next().is_err());
}

#[test]
fn messages_say_where_and_which() {
    let tar = [Head::new(b'0', b"a").with(b"a"), Head::new(b'0', b"b\n").put(108, b"-1").done()].concat();
    let error = read(&tar).unwrap_err().to_string();
    assert_eq!(error, r#"tar header at byte 1024: entry "b\n": uid is "-100000\0""#);
    let error = read(&[Head::new(b'0', b"a").done(), vec![b'!'; 512]].concat()).unwrap_err().to_string();
    assert!(error.starts_with("tar header at byte 512: it is not a tar header"), "{error}");
}

#[test]
fn zeros_are_the_end_or_an_error() {
    let file = || Head::new(b'0', b"a").done();
    assert!(matches!(wrong(&[file(), vec![0; 512], file()]), (512, Problem::LoneZeroBlock)));
    assert!(matches!(read(&[file(), vec![0; 700]].concat()), Err(Error::Malformed { offset: 512, .. })));
}

#[test]
fn what_describes_nothing_is_refused() {
    assert!(matches!(wrong(&[pax(b'x', &[("path", b"a")])]), (_, Problem::Dangling)));
    assert!(matches!(wrong(&[Head::new(b'L', b"l").with(b"name\0")]), (_, Problem::Dangling)));
    assert!(read(&pax(b'g', &[("comment", b"a git archive of nothing")])).unwrap().is_empty());
}

#[test]
fn headers_that_describe_are_bounded_in_number_and_size() {
    let x = pax(b'x', &[("mtime", b"1")]);
    let file = Head::new(b'0', b"a").done();
    let limit = limits::TAR_EXTENSIONS as usize;
    assert_eq!(one(&[x.repeat(limit), file.clone()]).mtime.secs, 1);
    let (offset, problem) = wrong(&[x.repeat(limit + 1), file.clone()]);
    assert!(matches!(problem, Problem::TooMany { .. }));
    assert_eq!(offset, (limit * x.len()) as u64);
    let long = |len: u64| [Head::new(b'L', b"l").with(&vec![b'n'; len as usize]), file.clone()];
    assert_eq!(one(&long(limits::TAR_EXTENSION)).name.len() as u64, limits::TAR_EXTENSION);
    assert!(matches!(wrong(&long(limits::TAR_EXTENSION + 1)), (0, Problem::Number { key: "size", .. })));
    let huge = Head::new(b'x', b"x").put(124, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff").done();
    assert!(matches!(wrong(&[huge]), (0, Problem::Number { key: "size", .. })));
}

#[test]
fn what_holds_for_all_entries_is_bounded() {
    let value = vec![b'v'; 60 << 10];
    let global = |key| pax(b'g', &[(key, &value)]);
    let (a, b) = ("SCHILY.xattr.user.a", "SCHILY.xattr.user.b");
    assert_eq!(one(&[global(a), global(a), Head::new(b'0', b"a").done()]).xattrs.len(), 1);
    let both = wrong(&[global(a), global(b), Head::new(b'0', b"a").done()]);
    assert!(matches!(both.1, Problem::TooMany { limit: limits::TAR_GLOBALS, .. }));
    for key in ["path", "linkpath", "size", "GNU.sparse.map", "GNU.sparse.offset"] {
        let one = wrong(&[pax(b'g', &[(key, b"1")]), Head::new(b'0', b"a").done()]);
        assert!(matches!(one, (0, Problem::GlobalRecord(_))), "{key}");
    }
    let comments = global("comment").repeat(200);
    assert_eq!(one(&[comments, Head::new(b'0', b"a").done()]).name, b"a");
}

#[test]
fn what_global_headers_give_to_all_entries_has_an_end() {
    let value = vec![b'v'; 60_000];
    let entry = Head::new(b'0', b"a").done();
    let tar = [pax(b'g', &[("SCHILY.xattr.user.a", &value)]), entry.repeat(72_000)].concat();
    let mut reader = Reader::new(&tar[..]);
    let mut count = 0_u64;
    let error = loop {
        match reader.next() {
            Ok(entry) => count += u64::from(entry.is_some()),
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("4294967296 bytes that global pax records"), "{error}");
    assert_eq!(count, (4 << 30) / 60_006, "of its name and its value");
}

#[test]
fn records_that_are_no_records_are_refused_where_they_are() {
    let x = Head::new(b'x', b"x").with(b"6 a=b\n9 short\n");
    let tar = [Head::new(b'0', b"a").done(), x, Head::new(b'0', b"b").done()];
    assert!(matches!(wrong(&tar), (512, Problem::PaxRecord { at: 6 })));
    let values: [(&str, &[u8]); 6] = [
        ("size", b"-1"),
        ("size", b"9223372036854775808"),
        ("uid", b"4294967296"),
        ("gid", b"1.0"),
        ("mtime", b"now"),
        ("mtime", b"1 "),
    ];
    for value in values {
        let (offset, problem) = wrong(&[pax(b'x', &[value]), Head::new(b'0', b"b").done()]);
        assert_eq!(offset, 1024);
        assert!(matches!(problem, Problem::Value { key, .. } | Problem::Number { key, .. } if key == value.0));
    }
    let xattr = pax(b'x', &[("LIBARCHIVE.xattr.user.a", b"?")]);
    assert!(matches!(wrong(&[xattr, Head::new(b'0', b"b").done()]), (1024, Problem::Xattr { .. })));
}

#[test]
fn a_size_that_no_stream_holds_ends_with_the_stream() {
    let huge = Head::new(b'0', b"a").put(124, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff").done();
    assert!(matches!(wrong(std::slice::from_ref(&huge)), (0, Problem::Truncated)));
    let mut reader = Reader::new(huge.as_slice());
    reader.next().unwrap();
    assert_eq!(reader.stored(), [ByteRange { start: 0, end: i64::MAX as u64 }]);
    assert!(matches!(reader.next(), Err(Error::Malformed { problem: Problem::Truncated, .. })));
    let dump = Head::new(b'D', b"a").put(124, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff").done();
    assert!(matches!(wrong(&[dump]), (0, Problem::Truncated)));
}
