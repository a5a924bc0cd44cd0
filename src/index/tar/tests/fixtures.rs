//! The tars of tests/fixtures, compared with their listings.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::blob::Digest;
use crate::index::names;
use crate::index::tests::fixtures_dir;

/// The layers of the tree's image, as tars.
fn layers(fixtures: &Path, tree: &str) -> Vec<Vec<u8>> {
    let image = fixtures.join(format!("{tree}-gz"));
    let blob = |value: &Value| {
        let digest: Digest = value["digest"].as_str().unwrap().parse().unwrap();
        std::fs::read(image.join("blobs/sha256").join(digest.hex())).unwrap()
    };
    let unpacked = |value: &Value| {
        let mut tar = Vec::new();
        flate2::read::MultiGzDecoder::new(&blob(value)[..]).read_to_end(&mut tar).unwrap();
        tar
    };
    let index: Value = serde_json::from_slice(&std::fs::read(image.join("index.json")).unwrap()).unwrap();
    let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])).unwrap();
    manifest["layers"].as_array().unwrap().iter().map(unpacked).collect()
}

fn clean(name: &[u8]) -> Vec<u8> {
    let mut path = Vec::new();
    names::clean_into(name, &mut path).unwrap();
    path
}

/// Unpacks a layer onto what is there, as far as the listings need it: names lead to entries, hard links to their targets'.
fn unpack(tar: &[u8], tree: &mut BTreeMap<Vec<u8>, Seen>) {
    let mut added = BTreeMap::new();
    for entry in read(tar).unwrap() {
        let path = clean(&entry.name);
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap();
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            let hidden = [&path[..path.len() - name.len()], hidden].concat();
            let below = [hidden.as_slice(), b"/"].concat();
            tree.retain(|path, _| *path != hidden && !path.starts_with(&below));
        } else if entry.kind == Some(EntryType::HardLink) {
            let link = clean(&entry.link);
            let target: Option<&Seen> = added.get(&link).or_else(|| tree.get(&link));
            // The last header's time is that of all names.
            let target = Seen { mtime: entry.mtime, ..target.unwrap_or_else(|| panic!("{entry:?}")).clone() };
            added.insert(link, target.clone());
            added.insert(path, target);
        } else {
            added.insert(path, entry);
        }
    }
    tree.extend(added);
}

/// An entry in the terms of the listings.
fn line(entry: &Seen) -> Value {
    use base64::Engine as _;
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let is_overlays = |name: &[u8]| name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
    let xattrs = entry.xattrs.iter().filter(|(name, _)| !is_overlays(name));
    let xattrs = xattrs.map(|(name, value)| (String::from_utf8(name.clone()).unwrap(), base64(value).into()));
    let rdev = format!("{}:{}", entry.device.0, entry.device.1);
    let mut line = json!({
        "mode": format!("{:04o}", entry.mode), "uid": entry.owner.0, "gid": entry.owner.1,
        "mtime": format!("{}.{:09}", entry.mtime.secs, entry.mtime.nanos),
        "xattrs": xattrs.collect::<serde_json::Map<_, _>>(),
    });
    let kind = match entry.kind.unwrap() {
        EntryType::Dir => "dir",
        EntryType::File => {
            line["size"] = entry.size.into();
            line["sha256"] = Digest::of(&entry.file()).hex().into();
            "reg"
        }
        EntryType::Symlink => {
            line["target"] = shown(&entry.link).into();
            "symlink"
        }
        EntryType::Fifo => "fifo",
        EntryType::Socket => "sock",
        EntryType::Char => {
            line["rdev"] = rdev.into();
            "chr"
        }
        EntryType::Block => {
            line["rdev"] = rdev.into();
            "blk"
        }
        EntryType::HardLink | EntryType::Chunk => unreachable!(),
    };
    line["type"] = kind.into();
    line
}

/// Bytes as Python's surrogateescape has them, written as this listing's reader sees them.
fn shown(bytes: &[u8]) -> String {
    bytes.utf8_chunks().fold(String::new(), |text, chunk| {
        let invalid = chunk.invalid().iter().map(|byte| format!("\\udc{byte:02x}")).collect::<String>();
        text + chunk.valid() + &invalid
    })
}

/// The listing by path. Lone surrogates, which are no JSON, stay escaped.
fn listing(path: &Path) -> BTreeMap<String, Value> {
    let text = std::fs::read_to_string(path).unwrap().replace("\\udc", "\\\\udc");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.map(|line| (line["path"].as_str().unwrap().to_owned(), line)).collect()
}

/// Compares all that the listing says; what it cannot know of tars alone (whiteouts, roots that nobody made) is left out.
fn compare(what: &str, tree: BTreeMap<Vec<u8>, Seen>, mut listing: BTreeMap<String, Value>) {
    assert!(!tree.is_empty(), "{what}");
    for (path, entry) in tree {
        let path = format!("/{}", shown(&path));
        let want = listing.remove(&path).unwrap_or_else(|| panic!("{what}: {path} is not expected"));
        let mut got = line(&entry);
        if want["xattrs"]["trusted.overlay.opaque"] == "eQ==" {
            got["xattrs"]["trusted.overlay.opaque"] = "eQ==".into();
        }
        for (key, value) in want.as_object().unwrap() {
            let is_of_trees = ["path", "nlink", "ino_group", "implied", "xattrs_optional"].contains(&key.as_str());
            let is_optional = key == "xattrs" && want.get("xattrs_optional").is_some();
            if !is_of_trees && !is_optional {
                assert_eq!(&got[key], value, "{what}: {path}: {key}");
            }
        }
    }
    let is_made_up = |line: &&Value| line.get("mtime").is_none() || line["rdev"] == "0:0";
    let missing: Vec<_> = listing.values().filter(|line| !is_made_up(line)).collect();
    assert!(missing.is_empty(), "{what}: {missing:?}");
}

#[test]
fn layers_are_what_their_listings_say() {
    let fixtures = fixtures_dir();
    for (tree, layer_count) in [("sink", 3), ("late", 2)] {
        for (number, layer) in layers(&fixtures, tree).iter().take(layer_count).enumerate() {
            let name = format!("{tree}.layer{}.expected.jsonl", number + 1);
            let mut unpacked = BTreeMap::new();
            unpack(layer, &mut unpacked);
            compare(&name, unpacked, listing(&fixtures.join(&name)));
        }
    }
}

#[test]
fn trees_are_what_their_listings_say() {
    let fixtures = fixtures_dir();
    for tree in ["gnu", "odd", "raw", "twice"] {
        let mut unpacked = BTreeMap::new();
        for layer in layers(&fixtures, tree) {
            unpack(&layer, &mut unpacked);
        }
        let name = format!("{tree}.expected.jsonl");
        compare(&name, unpacked, listing(&fixtures.join(&name)));
    }
}

#[test]
fn an_empty_layer_has_no_entry() {
    let fixtures = fixtures_dir();
    assert_eq!(read(&layers(&fixtures, "sink")[3]).unwrap(), []);
}
