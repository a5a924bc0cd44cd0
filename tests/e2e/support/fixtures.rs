//! Which fixtures crfs serves, and what vouches for their TOCs. (tests/fixtures/README.md says how each was made.)

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::Lab;

/// One image of tests/fixtures.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fixture {
    /// The directory, which is `TREE-FORMAT`.
    pub(crate) name: &'static str,
    /// Whether the manifest names a digest for each TOC. Otherwise only the whole blob's own digest vouches for it.
    pub(crate) vouched: bool,
}

const fn vouched(name: &'static str) -> Fixture {
    Fixture { name, vouched: true }
}

const fn unvouched(name: &'static str) -> Fixture {
    Fixture { name, vouched: false }
}

/// Every fixture with a table of contents of its own.
pub(crate) const LAZY: &[Fixture] = &[
    unvouched("big-stargz"),
    unvouched("sink-stargz"),
    unvouched("twice-stargz"),
    vouched("big-estargz"),
    vouched("late-estargz"),
    vouched("sink-estargz"),
    vouched("sink-estargz-ext"),
    vouched("sink-estargz-lossless"),
    vouched("sink-estargz-min"),
    vouched("sink-estargz-small"),
    vouched("sink-index"),
    vouched("twice-estargz"),
    vouched("twice-estargz-lossless"),
    vouched("big-zc-stargz"),
    vouched("sink-zc-stargz"),
    vouched("twice-zc-stargz"),
    vouched("built-zc-podman43"),
    vouched("odd-zc-podman43"),
    vouched("sink-zc-podman43"),
    unvouched("sink-zc-bare"),
    vouched("sink-zc-148"),
    vouched("big-zc-new"),
    vouched("late-zc-new"),
    vouched("odd-zc-new"),
    vouched("sink-zc-new"),
];

/// Every fixture with plain layers, some of them beside others, and some with a SOCI index.
pub(crate) const PLAIN: &[&str] = &[
    "big-gz",
    "big-soci1",
    "big-zst",
    "built-gz",
    "gnu-gz",
    "gnu-zst",
    "late-gz",
    "late-tar",
    "late-zst",
    "odd-gz",
    "odd-soci2-tar",
    "odd-tar",
    "odd-zst",
    "raw-gz",
    "raw-tar",
    "raw-zst",
    "sink-docker",
    "sink-gz",
    "sink-gz-gnu",
    "sink-gz-multi",
    "sink-gz-pigz",
    "sink-mixed",
    "sink-soci1",
    "sink-soci2",
    "sink-zst",
    "sink-zst-frames",
    "twice-gz",
    "twice-gz-multi",
    "twice-soci2-multi",
    "twice-soci2-tar",
    "twice-tar",
    "twice-zst",
];

/// The tree that an image must look like: the name's first word.
pub(crate) fn tree(fixture: &str) -> &str {
    fixture.split(['-', '.']).next().unwrap()
}

impl Fixture {
    /// The tree that it must look like: the name's first word.
    pub(crate) fn tree(self) -> &'static str {
        tree(self.name)
    }

    /// The options without which a lazy mount of it is refused.
    pub(crate) fn trust(self) -> &'static [&'static str] {
        if self.vouched { &[] } else { &["--insecure-unverified-toc"] }
    }
}

impl Lab {
    /// The layout of a fixture, as an image reference.
    pub(crate) fn layout(&self, name: &str) -> String {
        format!("oci:{}:latest", self.dir_of(name).display())
    }

    /// The layers of a fixture with one manifest, the lowest first: digest and size.
    pub(crate) fn layers(&self, name: &str) -> Vec<(String, u64)> {
        let dir = self.dir_of(name);
        let index = json(dir.join("index.json"));
        let images = index["manifests"].as_array().unwrap();
        let latest = images.iter().find(|image| image["annotations"]["org.opencontainers.image.ref.name"] == "latest");
        let hex = latest.unwrap()["digest"].as_str().unwrap().replace(':', "/");
        let manifest = json(dir.join("blobs").join(hex));
        let layer = |layer: &Value| (layer["digest"].as_str().unwrap().to_owned(), layer["size"].as_u64().unwrap());
        manifest["layers"].as_array().unwrap().iter().map(layer).collect()
    }

    /// One field of one line of an expected listing.
    pub(crate) fn expected(&self, tree: &str, path: &str, field: &str) -> Value {
        let text = fs::read_to_string(crate::fixtures::fixtures().join(format!("{tree}.expected.jsonl"))).unwrap();
        let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.find(|line| line["path"] == path).unwrap()[field].clone()
    }
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).unwrap()
}
