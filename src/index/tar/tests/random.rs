//! What a small writer writes is read back, however the stream is cut.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Writes an entry in one of the ways that real writers have: what does not fit into the header goes into pax records or GNU's headers.
fn write(entry: &Seen, is_gnu: bool, out: &mut Vec<u8>) {
    let kinds = [
        (EntryType::File, b'0'),
        (EntryType::Dir, b'5'),
        (EntryType::Symlink, b'2'),
        (EntryType::HardLink, b'1'),
        (EntryType::Char, b'3'),
        (EntryType::Block, b'4'),
        (EntryType::Fifo, b'6'),
    ];
    let letter = kinds.iter().find(|(kind, _)| Some(*kind) == entry.kind).unwrap().1;
    let mut head = Head::new(letter, &entry.name[..entry.name.len().min(100)]);
    head = head.put(157, &entry.link[..entry.link.len().min(100)]).put(100, format!("{:07o}\0", entry.mode).as_bytes());
    head = head.put(329, format!("{:07o}\0", entry.device.0).as_bytes());
    head = head.put(337, format!("{:07o}\0", entry.device.1).as_bytes());
    if is_gnu {
        let base_256 = |value: u32| [&[0x80, 0, 0, 0][..], &value.to_be_bytes()].concat();
        head = head.put(257, GNU).put(108, &base_256(entry.owner.0)).put(116, &base_256(entry.owner.1));
        let sign: [u8; 4] = if entry.mtime.secs < 0 { [0xff; 4] } else { [0x80, 0, 0, 0] };
        head = head.put(136, &[&sign[..], &entry.mtime.secs.to_be_bytes()].concat());
        for (kind, text) in [(b'L', &entry.name), (b'K', &entry.link)] {
            if text.len() > 100 {
                out.extend(Head::new(kind, b"././@LongLink").put(257, GNU).with(&[text.as_slice(), b"\0"].concat()));
            }
        }
    } else {
        let time = match entry.mtime {
            Time { secs, nanos } if secs < 0 && nanos > 0 => format!("-{}.{:09}", -(secs + 1), 1_000_000_000 - nanos),
            Time { secs, nanos } => format!("{secs}.{nanos:09}"),
        };
        let mut records = [record("path", &entry.name), record("linkpath", &entry.link)].concat();
        records.extend(record("uid", entry.owner.0.to_string().as_bytes()));
        records.extend(record("gid", entry.owner.1.to_string().as_bytes()));
        records.extend(record("mtime", time.as_bytes()));
        for (name, value) in &entry.xattrs {
            records.extend(record(&format!("SCHILY.xattr.{}", std::str::from_utf8(name).unwrap()), value));
        }
        out.extend(Head::new(b'x', b"x").with(&records));
    }
    out.extend(head.with(&entry.contents));
}

fn bytes(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    vec(1_u8.., len)
}

prop_compose! {
    fn entry()(
        kind in prop::sample::select(vec![
            EntryType::File, EntryType::File, EntryType::Dir, EntryType::Symlink, EntryType::HardLink, EntryType::Char,
            EntryType::Block, EntryType::Fifo,
        ]),
        name in bytes(1..300).prop_filter("a directory by its name", |name| name.last() != Some(&b'/')),
        link in bytes(1..300),
        contents in vec(any::<u8>(), 0..3000),
        (mode, owner, device) in (0_u16..0o10000, (0..u32::MAX, 0..u32::MAX), (0_u32..0o7777777, 0_u32..0o7777777)),
        (secs, nanos) in (any::<i32>(), 0_u32..1_000_000_000),
        xattrs in prop::collection::btree_map("user\\.[a-z]{1,4}", vec(any::<u8>(), 0..50), 0..4),
        is_gnu in any::<bool>(),
    ) -> (Seen, bool) {
        let is_file = kind == EntryType::File;
        let contents = if is_file { contents } else { Vec::new() };
        let is_link = matches!(kind, EntryType::Symlink | EntryType::HardLink);
        let is_device = matches!(kind, EntryType::Char | EntryType::Block);
        let stored = (!contents.is_empty()).then_some(ByteRange { start: 0, end: contents.len() as u64 });
        let seen = Seen {
            name,
            kind: Some(kind),
            size: contents.len() as u64,
            mtime: Time { secs: secs.into(), nanos: if is_gnu { 0 } else { nanos } },
            link: if is_link { link } else { Vec::new() },
            mode,
            owner,
            device: if is_device { device } else { (0, 0) },
            xattrs: xattrs.into_iter().filter(|_| !is_gnu).map(|(name, value)| (name.into_bytes(), value)).collect(),
            stored: stored.into_iter().collect(),
            contents,
            at: None,
        };
        (seen, is_gnu)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_written_is_read_however_the_stream_is_cut(
        mut entries in vec(entry(), 0..8),
        sizes in vec(1_usize..2000, 1..20),
    ) {
        let mut tar = Vec::new();
        for (entry, is_gnu) in &mut entries {
            write(entry, *is_gnu, &mut tar);
            let padded = entry.contents.len().next_multiple_of(512);
            entry.at = (!entry.contents.is_empty()).then_some((tar.len() - padded) as u64);
        }
        tar.extend([0; 1024]);
        tar.extend(b"behind the end");
        let mut reader = Reader::new(Cut::new(&tar, sizes));
        for (entry, _) in entries {
            prop_assert_eq!(seen(&mut reader).unwrap(), Some(entry));
        }
        prop_assert_eq!(seen(&mut reader).unwrap(), None);
        prop_assert_eq!(reader.into_inner().rest, b"behind the end");
    }

    #[test]
    fn a_changed_byte_never_panics(
        entries in vec(entry(), 1..4),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        has_right_checksum in any::<bool>(),
    ) {
        let mut tar = Vec::new();
        entries.iter().for_each(|(entry, is_gnu)| write(entry, *is_gnu, &mut tar));
        for (at, byte) in changes {
            let at = at.index(tar.len());
            tar[at] = byte;
            let block = at / 512 * 512;
            if has_right_checksum && &tar[block + 257..block + 262] == b"ustar" {
                let head = Head(tar[block..block + 512].try_into().unwrap()).done();
                tar[block..block + 512].copy_from_slice(&head);
            }
        }
        let _ = read(&tar);
    }
}
