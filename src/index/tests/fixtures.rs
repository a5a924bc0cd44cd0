//! Every image of these formats in tests/fixtures, layer by layer: every unit is decoded and every check's digest taken; single
//! layers are compared with their listings.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::Value;

use super::{Counted, INSECURE, NEVER_WHOLE, WHOLE, fixtures_dir, indexed, stored};
use crate::blob::{ByteRange, Digest, SourceError};
use crate::budget::Budget;
use crate::index::{Admit, Found, Identity, open, open_whole};
use crate::index::{
    Check, CheckKind, Child, Codec, Descriptor, Entries, Error, Kind, NodeId, StoredIndex, Trust, Unit,
};

/// An image of the fixtures, and whether the manifest names its TOCs.
const IMAGES: [(&str, bool); 24] = [
    ("big-estargz", true),
    ("big-stargz", false),
    ("big-zc-new", true),
    ("big-zc-stargz", true),
    ("built-zc-podman43", true),
    ("late-estargz", true),
    ("late-zc-new", true),
    ("odd-zc-new", true),
    ("odd-zc-podman43", true),
    ("sink-estargz", true),
    ("sink-estargz-ext", true),
    ("sink-estargz-lossless", true),
    ("sink-estargz-min", true),
    ("sink-estargz-small", true),
    ("sink-stargz", false),
    ("sink-zc-148", true),
    ("sink-zc-bare", false),
    ("sink-zc-new", true),
    ("sink-zc-podman43", true),
    ("sink-zc-stargz", true),
    ("twice-estargz", true),
    ("twice-estargz-lossless", true),
    ("twice-stargz", false),
    ("twice-zc-stargz", true),
];

fn blob(image: &Path, digest: &Digest) -> Bytes {
    std::fs::read(image.join("blobs/sha256").join(digest.hex())).unwrap().into()
}

fn digest(value: &Value) -> Digest {
    value["digest"].as_str().unwrap().parse().unwrap()
}

fn descriptor(value: &Value) -> Descriptor {
    let annotations = value["annotations"].as_object();
    let annotations =
        annotations.into_iter().flatten().map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned())).collect();
    let media_type = value["mediaType"].as_str().unwrap().to_owned();
    Descriptor { digest: digest(value), size: value["size"].as_u64().unwrap(), media_type, annotations }
}

/// The layers of the manifest under a tag.
fn layers(image: &Path, tag: &str) -> Vec<Descriptor> {
    let index: Value = serde_json::from_slice(&std::fs::read(image.join("index.json")).unwrap()).unwrap();
    let manifests = index["manifests"].as_array().unwrap();
    let named = |manifest: &&Value| manifest["annotations"]["org.opencontainers.image.ref.name"] == tag;
    let Some(manifest) = manifests.iter().find(named) else { return Vec::new() };
    let manifest: Value = serde_json::from_slice(&blob(image, &digest(manifest))).unwrap();
    manifest["layers"].as_array().unwrap().iter().map(descriptor).collect()
}

fn open_layer(image: &Path, layer: &Descriptor, options: &super::Options) -> (Result<Found, Error>, Vec<ByteRange>) {
    let source = Counted::new(blob(image, &layer.digest));
    let external = |layer: &Descriptor, _: Admit<'_>| -> Result<Bytes, SourceError> {
        let tocs = layers(image, "latest-esgztoc");
        let names = |toc: &&Descriptor| {
            toc.annotations["containerd.io/snapshot/stargz/layer.digest"] == layer.digest.to_string()
        };
        Ok(blob(image, &tocs.iter().find(names).ok_or("no TOC")?.digest))
    };
    (open(layer, &source, &external, options), source.reads())
}

/// Decodes a unit as far as its pieces reach.
fn decode(unit: &Unit, blob: &[u8], len: u64) -> Vec<u8> {
    let compressed = &blob[unit.compressed.start as usize..unit.compressed.end as usize];
    let mut out = Vec::new();
    let read = match unit.codec {
        Codec::Gzip => flate2::bufread::MultiGzDecoder::new(compressed).take(len).read_to_end(&mut out),
        Codec::Zstd => {
            zstd::stream::read::Decoder::with_buffer(compressed).unwrap().single_frame().take(len).read_to_end(&mut out)
        }
        _ => unreachable!("no TOC has such units"),
    };
    assert_eq!(read.unwrap() as u64, len);
    out
}

/// The layer file, made from all units, all checks right. Returns which bytes are covered by checks.
fn layer_file(index: &StoredIndex, blob: &[u8]) -> (Vec<u8>, Vec<Check>) {
    let summary = *index.summary();
    let mut file = vec![0; summary.layer_file_len as usize];
    let mut pieces = 0;
    for number in 0..summary.units {
        let unit = index.unit(number).unwrap();
        assert_eq!(unit.pieces.start, pieces);
        pieces = unit.pieces.end;
        let of_unit: Vec<_> = unit.pieces.clone().map(|piece| index.piece(piece).unwrap()).collect();
        let last = of_unit.last().unwrap();
        let decoded = decode(&unit, blob, last.in_unit + last.range.len());
        for piece in of_unit {
            assert_eq!(piece.unit, number);
            let from = &decoded[piece.in_unit as usize..][..piece.range.len() as usize];
            file[piece.range.start as usize..piece.range.end as usize].copy_from_slice(from);
        }
    }
    let checks: Vec<_> = (0..summary.checks).map(|check| index.check(check).unwrap()).collect();
    for check in &checks {
        let bytes = &file[check.range.start as usize..check.range.end as usize];
        match check.kind {
            CheckKind::Digest(digest) => assert_eq!(Digest::of(bytes), digest, "{check:?}"),
            CheckKind::Span(_) | CheckKind::Vouched => unreachable!("no TOC has such checks"),
            CheckKind::Hole => assert!(bytes.iter().all(|byte| *byte == 0), "{check:?}"),
        }
    }
    (file, checks)
}

/// Every file lies under checks from its first to its last byte, and lookups by range agree.
fn assert_covered(index: &StoredIndex, entries: &Entries, checks: &[Check]) {
    for node in 0..entries.len() {
        let Kind::File { start, size } = entries.kind(NodeId(node as u32)) else { continue };
        assert_eq!(start % 4096, 0);
        let range = ByteRange::at(start, size).unwrap();
        let over = index.checks_over(range).unwrap();
        let mut at = start;
        for check in &checks[over.start as usize..over.end as usize] {
            assert_eq!(check.range.start, at);
            at = check.range.end;
        }
        assert_eq!(at, range.end);
        for unit in index.units_over(range).unwrap() {
            let unit = index.unit(unit).unwrap();
            assert!(
                unit.pieces.clone().any(|piece| !index.piece(piece).unwrap().range.intersection(&range).is_empty())
            );
            assert!(!index.units_in_blob(unit.compressed).unwrap().is_empty());
        }
    }
}

#[test]
fn every_layer_opens_with_every_digest_right_and_looks_as_it_is_listed() {
    let fixtures = fixtures_dir();
    let mut compared = 0;
    for (name, named) in &IMAGES {
        let image = fixtures.join(name);
        for (number, layer) in layers(&image, "latest").iter().enumerate() {
            let (opened, reads) = open_layer(&image, layer, if *named { &NEVER_WHOLE } else { &INSECURE });
            let opened = indexed(opened).unwrap_or_else(|error| panic!("{name} layer {number}: {error}"));
            let has_position = layer.annotations.keys().any(|key| key.ends_with("manifest-position"));
            assert!(reads.len() <= if has_position { 1 } else { 2 }, "{name} layer {number}: {reads:?}");
            let bytes: u64 = reads.iter().map(ByteRange::len).sum();
            assert!(bytes < layer.size || layer.size < 16 << 10, "{name} layer {number}: {bytes} of {}", layer.size);
            let is_whole = reads.contains(&ByteRange { start: 0, end: layer.size });
            let unnamed = if is_whole { Trust::Blob } else { Trust::Unverified };
            assert_eq!(opened.trust, if *named { Trust::Manifest } else { unnamed });
            assert_eq!(opened.identity.is_some(), *named || is_whole);
            let index = stored(layer, &opened);
            let (file, checks) = layer_file(&index, &blob(&image, &layer.digest));
            let entries = index.entries().unwrap();
            assert_covered(&index, &entries, &checks);
            if let Some(listing) = listing(&fixtures, name, number + 1) {
                compare(&format!("{name} layer {}", number + 1), &mut Listing::of(&entries, &file), &listing);
                compared += 1;
            }
        }
    }
    assert!(compared > 50, "{compared}");
}

/// The listing of a layer: one of its own, or the tree's where there is only one layer.
fn listing(fixtures: &Path, image: &str, number: usize) -> Option<PathBuf> {
    let tree = image.split('-').next()?;
    let of_layer = format!("{tree}.layer{number}.expected.jsonl");
    let of_tree = ["twice", "big"].contains(&tree).then(|| format!("{tree}.expected.jsonl"));
    [Some(of_layer), of_tree].into_iter().flatten().map(|name| fixtures.join(name)).find(|path| path.exists())
}

#[test]
fn a_layer_read_whole_gives_the_same_index_and_is_trusted() {
    let fixtures = fixtures_dir();
    for (name, named) in &IMAGES {
        let image = fixtures.join(name);
        for layer in layers(&image, "latest") {
            let (whole, reads) = open_layer(&image, &layer, &WHOLE);
            let whole = indexed(whole).unwrap();
            assert_eq!(reads, [ByteRange { start: 0, end: layer.size }]);
            assert_eq!(whole.trust, if *named { Trust::Manifest } else { Trust::Blob });
            assert!(whole.identity.is_some() && whole.blob.is_some());
            let (lazy, _) = open_layer(&image, &layer, if *named { &NEVER_WHOLE } else { &INSECURE });
            let lazy = indexed(lazy).unwrap();
            assert_eq!(stored(&layer, &whole).entries().unwrap(), stored(&layer, &lazy).entries().unwrap());
            if *named {
                assert_eq!(whole.encoded, lazy.encoded);
            }
        }
    }
}

#[test]
fn what_nothing_vouches_for_is_known_as_such_with_one_read() {
    let fixtures = fixtures_dir();
    for name in ["big-stargz", "sink-stargz", "sink-zc-bare", "twice-stargz"] {
        let image = fixtures.join(name);
        for layer in layers(&image, "latest") {
            let (found, reads) = open_layer(&image, &layer, &NEVER_WHOLE);
            match found.unwrap() {
                Found::Unvouched(_) => assert!(layer.size > 16 << 10, "{name}"),
                // The tail was all of it.
                Found::Indexed(opened) => {
                    assert_eq!((opened.trust, opened.identity), (Trust::Blob, Some(Identity::Own)))
                }
                Found::Plain { .. } => panic!("{name}"),
            }
            assert_eq!(reads.len(), 1, "{name}");
            let held = blob(&image, &layer.digest);
            let whole = open_whole(&layer, &held, &Budget::UNLIMITED).unwrap();
            assert_eq!((whole.trust, whole.identity), (Trust::Blob, Some(Identity::Own)));
        }
    }
}

#[test]
fn layers_without_a_toc_are_plain() {
    let fixtures = fixtures_dir();
    for (name, number) in [("odd-gz", 0), ("raw-zst", 0), ("sink-mixed", 2), ("sink-docker", 0), ("sink-mixed", 3)] {
        let image = fixtures.join(name);
        let layer = &layers(&image, "latest")[number];
        for options in [&NEVER_WHOLE, &WHOLE, &INSECURE] {
            let Ok(Found::Plain { blob: held }) = open_layer(&image, layer, options).0 else { panic!("{name}") };
            assert!(held.is_some() || layer.size > 16 << 10, "{name}");
            assert!(held.is_none_or(|held| held == blob(&image, &layer.digest)), "{name}");
        }
    }
}

/// One layer in the terms of the listings.
struct Listing<'a> {
    entries: &'a Entries,
    file: &'a [u8],
    lines: BTreeMap<String, Value>,
    names: BTreeMap<NodeId, Vec<String>>,
}

impl Listing<'_> {
    fn of(entries: &Entries, file: &[u8]) -> BTreeMap<String, Value> {
        let mut listing = Listing { entries, file, lines: BTreeMap::new(), names: BTreeMap::new() };
        listing.add("/", Child::Node(Entries::ROOT));
        for names in listing.names.values() {
            for name in names {
                listing.lines.get_mut(name).unwrap()["nlink"] = names.len().into();
            }
        }
        listing.lines
    }

    fn add(&mut self, path: &str, child: Child<'_>) {
        let Child::Node(node) = child else {
            assert_eq!(child, Child::Whiteout, "{path}");
            self.lines.insert(path.to_owned(), serde_json::json!({"path": path, "type": "chr", "rdev": "0:0"}));
            return;
        };
        let line = self.line(path, node);
        self.lines.insert(path.to_owned(), line);
        if !matches!(self.entries.kind(node), Kind::Dir { .. }) {
            self.names.entry(node).or_default().push(path.to_owned());
        }
        for (name, child) in self.entries.children(node) {
            let name = std::str::from_utf8(name).unwrap();
            self.add(&format!("{}/{name}", path.trim_end_matches('/')), child);
        }
    }

    fn line(&self, path: &str, node: NodeId) -> Value {
        use base64::Engine as _;
        let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        let meta = self.entries.meta(node);
        let xattrs = self.entries.xattrs(node).map(|(k, v)| (String::from_utf8(k.to_vec()).unwrap(), base64(v).into()));
        let mut xattrs: serde_json::Map<_, _> = xattrs.collect();
        let mut line = serde_json::json!({
            "path": path, "mode": format!("{:04o}", meta.mode), "uid": meta.uid, "gid": meta.gid,
            "mtime": format!("{}.{:09}", meta.mtime.secs, meta.mtime.nanos),
        });
        let kind = match self.entries.kind(node) {
            Kind::Dir { opaque, .. } => {
                if opaque {
                    xattrs.insert("trusted.overlay.opaque".to_owned(), "eQ==".into());
                }
                "dir"
            }
            Kind::File { start, size } => {
                line["size"] = size.into();
                line["sha256"] = Digest::of(&self.file[start as usize..(start + size) as usize]).hex().into();
                "reg"
            }
            Kind::Symlink(target) => {
                line["target"] = std::str::from_utf8(target).unwrap().into();
                "symlink"
            }
            Kind::Char { major, minor } => {
                line["rdev"] = format!("{major}:{minor}").into();
                "chr"
            }
            Kind::Block { major, minor } => {
                line["rdev"] = format!("{major}:{minor}").into();
                "blk"
            }
            Kind::Socket => "sock",
            Kind::Fifo => "fifo",
        };
        line["type"] = kind.into();
        line["xattrs"] = xattrs.into();
        line
    }
}

fn compare(name: &str, got: &mut BTreeMap<String, Value>, listing: &Path) {
    for line in std::fs::read_to_string(listing).unwrap().lines() {
        let want: Value = serde_json::from_str(line).unwrap();
        let path = want["path"].as_str().unwrap();
        let line = got.remove(path).unwrap_or_else(|| panic!("{name}: {path} is missing"));
        for (key, value) in want.as_object().unwrap() {
            if !["ino_group", "implied", "xattrs_optional"].contains(&key.as_str()) {
                assert_eq!(&line[key], value, "{name}: {path}: {key}");
            }
        }
    }
    assert!(got.is_empty(), "{name}: not expected: {:?}", got.keys());
}
