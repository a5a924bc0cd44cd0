//! What is put together of a tar-split and of the files of a layer is the tar.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io::{Read, Seek};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::Value;

use super::crc::Crc;
use super::*;
use crate::blob::Digest;
use crate::budget::{Budget, Charge};
use crate::index::tar::tests::{GNU, Head, pax};
use crate::index::{Event, Format, Identity, LayerKey, Made, Split, StoredIndex, Unpacker, limits, make, split};

/// A layer by its own index, as podman would see it.
struct View {
    entries: Entries,
    contents: Vec<u8>,
}

impl View {
    /// Opens a file by its path: through directories only, for what a symlink leads to is not the layer's.
    fn read(&self, path: &[u8]) -> Option<&[u8]> {
        let mut at = Entries::ROOT;
        for name in path.split(|byte| *byte == b'/') {
            let child = self.entries.children(at).find(|(found, _)| *found == name);
            let Some((_, Child::Node(node))) = child else { return None };
            at = node;
        }
        let Kind::File { start, size } = self.entries.kind(at) else { return None };
        self.contents.get(start as usize..(start + size) as usize)
    }
}

fn order(raw: BTreeSet<u64>) -> Order {
    Order { file: tempfile::tempfile().unwrap(), raw }
}

fn events(blob: &[u8], format: Format) -> VecDeque<Event> {
    let mut events = VecDeque::new();
    let mut unpacker = Unpacker::new(format).unwrap();
    let tell = &mut |event| {
        events.push_back(event);
        Ok(())
    };
    unpacker.push(blob, tell).unwrap();
    unpacker.finish(tell).unwrap();
    events
}

/// One pass that makes the index as well. `None`: it is no layer.
fn made(tar: &[u8]) -> Option<(View, Result<TarSplit, NoTarSplit>)> {
    let (blob, mut events, mut contents) = (Digest::of(tar), events(tar, Format::Tar), Vec::new());
    let keep = &mut |at: u64, bytes: &[u8]| {
        contents.resize(at as usize, 0);
        contents.extend_from_slice(bytes);
    };
    let made =
        make(blob, Format::Tar, &mut || Ok(events.pop_front()), keep, Some(order(BTreeSet::new())), Charge::default());
    let Made { encoded, split, diff_id, .. } = made.ok()?;
    assert_eq!(diff_id, blob);
    let index = StoredIndex::open(Arc::new(encoded), &blob, Some(&LayerKey { blob, identity: Identity::Own })).unwrap();
    contents.resize(index.summary().layer_file_len as usize, 0);
    Some((View { entries: index.entries().unwrap(), contents }, split.unwrap()))
}

/// A pass for the tar-split alone.
fn again(tar: &[u8], raw: BTreeSet<u64>) -> Result<TarSplit, NoTarSplit> {
    charged(tar, raw, Charge::default())
}

fn charged(tar: &[u8], raw: BTreeSet<u64>, charge: Charge) -> Result<TarSplit, NoTarSplit> {
    let mut events = events(tar, Format::Tar);
    let made = split(Digest::of(tar), &mut || Ok(events.pop_front()), order(raw), charge);
    let Split { diff_id, split } = made.ok().unwrap();
    assert_eq!(diff_id, Digest::of(tar));
    split
}

fn lines(split: &mut TarSplit) -> Vec<Value> {
    let mut text = String::new();
    split.file.rewind().unwrap();
    flate2::read::GzDecoder::new(&split.file).read_to_string(&mut text).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// As podman does it.
fn assembled(split: &mut TarSplit, view: &View) -> Vec<u8> {
    let (mut tar, mut seen) = (Vec::new(), HashSet::new());
    for (position, line) in lines(split).into_iter().enumerate() {
        assert_eq!(line["position"], position);
        let bytes = |field: &str| STANDARD.decode(line[field].as_str().unwrap()).unwrap();
        if line["type"] == 2 {
            tar.extend(bytes("payload"));
            continue;
        }
        let name = line["name"].as_str().map_or_else(|| bytes("name_raw"), |name| name.as_bytes().to_vec());
        let contents = view.read(&name).unwrap_or_else(|| panic!("{line}"));
        assert_eq!(line["size"], contents.len());
        let mut crc = Crc::new();
        crc.update(contents);
        assert_eq!(bytes("payload"), crc.sum().to_be_bytes());
        tar.extend_from_slice(contents);
        assert!(seen.insert(name), "named twice: {line}");
    }
    assert_eq!(split.tar_len, tar.len() as u64);
    tar
}

/// By one pass, or two where the first cannot know what it must not name. Gives how many files the tar-split names.
fn check(tar: &[u8]) -> Option<usize> {
    let (view, first) = made(tar)?;
    let mut usable = first.unwrap();
    let unreadable = usable.unreadable(&view.entries);
    if !unreadable.is_empty() {
        usable = again(tar, unreadable).unwrap();
        assert_eq!(usable.unreadable(&view.entries), BTreeSet::new());
    }
    assert_eq!(assembled(&mut usable, &view), tar);
    Some(usable.files.len())
}

fn file(name: &str, contents: &[u8]) -> Vec<u8> {
    Head::new(b'0', name.as_bytes()).with(contents)
}

fn link(kind: u8, name: &str, target: &str) -> Vec<u8> {
    Head::new(kind, name.as_bytes()).put(157, target.as_bytes()).with(b"")
}

fn tar(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

#[test]
fn files_are_named_and_all_else_is_there() {
    let mut entries = vec![
        Head::new(b'5', b"d/").with(b""),
        file("./d/a", b"first"),
        pax(b'x', &[("path", b"d/\xff")]),
        file("x", b"not UTF-8"),
        file("empty", b""),
        link(b'1', "hard", "d/a"),
    ];
    let (view, split) = made(&tar(&entries)).unwrap();
    let mut split = split.unwrap();
    let named: Vec<_> = lines(&mut split).into_iter().filter(|line| line["type"] == 1).collect();
    assert_eq!((&named[0]["name"], &named[0]["size"]), (&Value::from("d/a"), &Value::from(5)));
    assert_eq!((&named[1]["name_raw"], named.len()), (&Value::from(STANDARD.encode(b"d/\xff")), 2));
    assert_eq!(assembled(&mut split, &view), tar(&entries));
    entries.push(vec![0; 20 * 512]);
    assert_eq!(check(&tar(&entries)), Some(2), "zeros behind the end");
    assert_eq!(check(b""), Some(0));
}

#[test]
fn what_has_no_name_of_its_own_is_not_named() {
    let sparse = |name: &str| {
        let head = Head::new(b'S', name.as_bytes()).put(257, GNU).put(386, b"00000001000\0").put(398, b"00000000003\0");
        head.put(483, b"00000002000\0").with(b"abc")
    };
    let directory = Head::new(b'5', b"a").with(b"");
    let cases: [(&str, Vec<Vec<u8>>, usize); 9] = [
        ("two of one name", vec![file("a", b"one"), file("b", b"two"), file("./a", b"six")], 2),
        ("a link instead of it", vec![file("b", b"two"), file("a", b"one"), link(b'1', "a", "b")], 1),
        ("a directory instead of it", vec![file("a", b"one"), directory.clone()], 0),
        ("its directory is gone", vec![file("a/b", b"one"), link(b'2', "a", "/etc")], 0),
        ("a sparse file", vec![sparse("a"), file("b", b"two")], 1),
        ("what eStargz adds", vec![file("stargz.index.json", b"{}"), file(".prefetch.landmark", b"\x0f")], 0),
        ("a whiteout with contents", vec![file(".wh.a", b"one")], 0),
        ("AUFS's own", vec![file(".wh..wh.plnk/1.2", b"one")], 0),
        ("a file again", vec![directory, link(b'2', "a", "b"), file("a", b"one")], 1),
    ];
    for (what, entries, named) in cases {
        assert_eq!(check(&tar(&entries)), Some(named), "{what}");
    }
}

#[test]
fn contents_that_are_not_named_have_a_limit() {
    let big = vec![7; limits::TAR_SPLIT_CONTENTS as usize + 1];
    for tar in [tar(&[file(".wh.a", &big)]), [tar(&[]), big.clone()].concat()] {
        let (_, split) = made(&tar).unwrap();
        let error = split.unwrap_err().to_string();
        assert!(error.contains("67108864 bytes of contents"), "{error}");
    }
    assert_eq!(check(&tar(&[file("a", &big)])), Some(1));
}

/// podman could not load a store that has one.
#[test]
fn a_tar_that_is_too_long_for_podman_has_no_tar_split() {
    let mut sheet = write::Sheet::new(tempfile::tempfile().unwrap(), Charge::default());
    sheet.file(b"a", limits::OFFSET - 1, 0).unwrap();
    sheet.segment(b"b").unwrap();
    let refused = [sheet.segment(b"c"), sheet.file(b"d", u64::MAX, 0)].map(|refused| refused.unwrap_err().to_string());
    assert!(refused.iter().all(|text| text.contains("more than 9223372036854775807 bytes")), "{refused:?}");
}

#[test]
fn what_a_blob_carries_must_be_what_the_image_names() {
    let key = "io.github.containers.zstd-chunked.tarsplit-checksum".to_owned();
    let check = |named: Option<&str>| {
        let annotations = named.map(|named| (key.clone(), named.to_owned())).into_iter().collect();
        let layer =
            crate::index::Descriptor { digest: Digest::of(b""), size: 9, media_type: String::new(), annotations };
        carried::check_digest(&layer, b"stored")
    };
    assert!(check(None).is_ok() && check(Some(&Digest::of(b"stored").to_string())).is_ok());
    for wrong in [&*Digest::of(b"other").to_string(), "sha512:00", ""] {
        let problem = check(Some(wrong)).unwrap_err();
        assert!(problem.may_be_wrong_bytes() && problem.may_pass(), "{problem}");
    }
}

fn entry() -> impl Strategy<Value = Vec<u8>> {
    let names = ["a", "b", "./a", "d", "d/", "d/a", "./d/b", "d/d/a", ".wh.a", "d/.wh..wh..opq", "stargz.index.json"];
    let name = prop::sample::select(names.to_vec());
    let contents = prop_oneof![vec(any::<u8>(), 0..4), vec(any::<u8>(), 500..530), vec(Just(0), 0..9000)];
    let kind = prop::sample::select(b"0000005126".to_vec());
    (kind, name, prop::sample::select(names.to_vec()), contents, any::<bool>()).prop_map(
        |(kind, name, target, contents, is_named_by_pax)| {
            let contents = if kind == b'0' && !name.ends_with('/') { contents } else { Vec::new() };
            let mut bytes = Vec::new();
            if is_named_by_pax {
                bytes = pax(b'x', &[("path", name.as_bytes()), ("SCHILY.xattr.user.x", b"\0\xff")]);
            }
            bytes.extend(Head::new(kind, name.as_bytes()).put(157, target.as_bytes()).with(&contents));
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_tar_comes_back_byte_for_byte(entries in vec(entry(), 0..12), end in prop_oneof![Just(0_usize), 2..30_usize], rest in vec(any::<u8>(), 0..700)) {
        let mut tar = entries.concat();
        if end > 0 {
            tar.resize(tar.len() + end * 512, 0);
            tar.extend(rest);
        }
        check(&tar);
    }

    #[test]
    fn changed_lines_never_panic(entries in vec(entry(), 0..4), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let tar = tar(&entries);
        if let Some((view, Ok(mut split))) = made(&tar) {
            let mut text = text(&mut split).into_bytes();
            let at = at.index(text.len());
            text[at] = byte;
            let stored = zstd::bulk::compress(&text, 1).unwrap();
            let file = tempfile::tempfile().unwrap();
            if let Ok(mut split) = carried::convert(&stored, text.len() as u64, &view.entries, file) {
                prop_assert_eq!(split.unreadable(&view.entries), BTreeSet::new());
                lines(&mut split);
            }
        }
    }
}

/// What a blob carries, of these lines.
fn carried_by(lines: &str) -> (Vec<u8>, u64) {
    (zstd::bulk::compress(lines.as_bytes(), 1).unwrap(), lines.len() as u64)
}

fn text(split: &mut TarSplit) -> String {
    lines(split).into_iter().map(|line| format!("{line}\n")).collect()
}

fn converted(text: &str, view: &View) -> Result<TarSplit, NoTarSplit> {
    let (stored, decoded) = carried_by(text);
    carried::convert(&stored, decoded, &view.entries, tempfile::tempfile().unwrap())
}

#[test]
fn what_a_blob_carries_is_written_anew() {
    let tar = tar(&[file("./d/a", b"first"), pax(b'x', &[("path", b"\xff")]), file("x", b"raw"), file("empty", b"")]);
    let (view, split) = made(&tar).unwrap();
    let text = text(&mut split.unwrap());
    // As tar-split writes it: names as they are in the tar, entries without contents, too.
    let carried =
        text.replace("\"d/a\"", "\"./d/a\"") + "{\"type\":1,\"name\":\"empty\",\"payload\":null,\"position\":9}\n";
    let mut split = converted(&carried, &view).unwrap();
    assert_eq!(assembled(&mut split, &view), tar);
}

#[test]
fn what_a_blob_carries_names_nothing_but_the_layers_files() {
    let entries = [file("a", b"12345"), link(b'2', "l", "/etc"), Head::new(b'5', b"d").with(b"")];
    let (view, _) = made(&tar(&entries)).unwrap();
    let named =
        |name: &str, size: u64| format!(r#"{{"type":1,"name":"{name}","size":{size},"payload":"AAAAAAAAAAA="}}"#);
    assert!(converted(&named("./a", 5), &view).is_ok() && converted("", &view).is_ok());
    for (name, size) in [("a", 4), ("b", 5), ("l/passwd", 5), ("l", 4), ("d", 5), ("", 5), ("a/a", 5)] {
        let error = converted(&named(name, size), &view).unwrap_err();
        assert!(matches!(error, NoTarSplit::Unreadable), "{name}: {error}");
    }
    let twice = [named("a", 5), named("./a", 5)].join("\n");
    let no_crc = r#"{"type":1,"name":"a","size":5,"payload":"AAAA"}"#;
    for (text, problem) in [
        (named("../a", 5).as_str(), "line 0: its name or link leads out of the root"),
        (&twice, "line 1: it names a file twice"),
        (no_crc, "its CRC"),
        (r#"{"type":2,"payload":"?"}"#, "not base64"),
        (r#"{"type":3}"#, "the type 3 is not known"),
        (r#"{"payload":""}"#, "missing field `type`"),
        (r#"{"type":2,"payload":"AA"#, "EOF"),
        ("hello", "line 0"),
    ] {
        let error = converted(text, &view).unwrap_err().to_string();
        assert!(error.contains(problem), "{text}: {error}");
    }
}

#[test]
fn what_a_blob_carries_has_limits() {
    let (view, _) = made(&tar(&[])).unwrap();
    let file = || tempfile::tempfile().unwrap();
    let convert = |stored: &[u8], decoded| carried::convert(stored, decoded, &view.entries, file()).unwrap_err();
    let segment = r#"{"type":2,"payload":"AAAA"}"#;
    let (stored, decoded) = carried_by(segment);
    for wrong in [decoded - 1, decoded + 1] {
        assert!(convert(&stored, wrong).to_string().contains("bytes, and"), "{wrong}");
    }
    assert!(matches!(convert(&stored, limits::TAR_SPLIT_DECODED + 1), NoTarSplit::CarriedTooLarge { .. }));
    assert!(matches!(convert(b"no frame", decoded), NoTarSplit::Undecodable(_)));
    assert!(matches!(convert(&stored[..stored.len() - 1], decoded), NoTarSplit::Undecodable(_)));
    let long = carried_by(&format!("\"{}\"", "x".repeat(9 << 20)));
    assert!(matches!(convert(&long.0, long.1), NoTarSplit::Malformed { line: 0, .. }));
    assert!(carried::check_stored(limits::TAR_SPLIT_STORED).is_ok());
    assert!(carried::check_stored(limits::TAR_SPLIT_STORED + 1).is_err());
}

/// Every plain layer of other people's writers.
#[test]
fn tars_of_other_writers_come_back() {
    let fixtures = crate::index::tests::fixtures_dir();
    let mut named = BTreeMap::new();
    for image in ["sink-gz", "twice-gz", "late-gz", "odd-gz", "raw-gz", "gnu-gz"] {
        for blob in std::fs::read_dir(fixtures.join(image).join("blobs/sha256")).unwrap() {
            let bytes = std::fs::read(blob.unwrap().path()).unwrap();
            if !bytes.starts_with(b"{") {
                let mut tar = Vec::new();
                flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut tar).unwrap();
                *named.entry(image).or_insert(0) += check(&tar).unwrap();
            }
        }
    }
    assert!(named.values().all(|named| *named > 0), "{named:?}");
}

#[test]
fn files_that_take_too_much_memory_cost_the_tar_split_and_not_the_layer() {
    let tar = [(0..1000).flat_map(|number| file(&number.to_string(), b"x")).collect(), vec![0; 1024]].concat();
    let within = |limit, stored| charged(&tar, BTreeSet::new(), Budget::of_process().of_image(limit).charge(stored));
    let refused = within(100 << 10, 0).unwrap_err();
    assert!(matches!(refused, NoTarSplit::Memory(Exceeded::Image { .. })), "{refused}");
    // What an honest layer has of files takes nothing of it.
    assert_eq!(within(100 << 10, tar.len() as u64).unwrap().files.len(), 1000);
    let image = Budget::of_process().of_image(200 << 10);
    let split = charged(&tar, BTreeSet::new(), image.charge(0)).unwrap();
    assert!(image.used() > 100 << 10, "as long as it is known what it names");
    let (view, _) = made(&tar).unwrap();
    let _split = split.usable(&view.entries).unwrap();
    assert_eq!(image.used(), 0);
    // The same one, where a blob carries it.
    let lines = (0..1000).map(|number| {
        format!(r#"{{"type":1,"name":"{number}","size":1,"payload":"{}"}}"#, STANDARD.encode([0; 8])) + "\n"
    });
    let text = lines.collect::<String>();
    let stored = zstd::bulk::compress(text.as_bytes(), 1).unwrap();
    let file = || tempfile::tempfile().unwrap();
    let rewrite =
        |limit| carried::rewrite(&stored, text.len() as u64, file(), &Budget::of_process().of_image(limit)).map(drop);
    assert!(matches!(rewrite(100 << 10), Err(NoTarSplit::Memory(_))));
    rewrite(1 << 20).unwrap();
}
