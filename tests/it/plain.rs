//! Plain layers through all stages but the kernel: read once in one pass, then lazily by the index that was made of them; and whatever is
//! wrong with the blob, the network or the cache meanwhile.

mod hostile;
mod stale;
mod trees;
mod trouble;

use std::path::PathBuf;
use std::sync::Arc;

use crfs::blob::Digest;
use crfs::cache::{LAYOUT, clear};
use crfs::image::inspect::{LayerInspection, inspect};
use crfs::image::options::ImageOptions;
use crfs::image::{Event, Report};

use crate::contents::{Opened, image_options, open, walk};
use crate::image::{File, Layer, config, gzip, manifest_with, noise, plain, ramp, skippable, tar, zstd};
use crate::registry::{OCI_MANIFEST, Registry};
use crate::support::within;

/// A compressor, or none.
type Compress = fn(&[u8]) -> Vec<u8>;

const COMPRESSORS: [(&str, Compress); 7] = [
    ("tar", |tar| tar.to_vec()),
    ("gzip", gzip),
    ("gzip, 100 members", members),
    ("gzip, stored blocks", stored),
    ("gzip, garbage behind it", |tar| [&gzip(tar), b"garbage".as_slice()].concat()),
    ("zstd, one frame", zstd),
    ("zstd, many frames", frames),
];

/// Cut anywhere, so that nearly all of the cuts are inside of a file.
fn members(tar: &[u8]) -> Vec<u8> {
    tar.chunks(tar.len().div_ceil(100).max(1)).flat_map(gzip).collect()
}

fn stored(tar: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::read::GzEncoder::new(tar, flate2::Compression::none());
    let mut blob = Vec::new();
    std::io::Read::read_to_end(&mut encoder, &mut blob).unwrap();
    blob
}

fn frames(tar: &[u8]) -> Vec<u8> {
    tar.chunks(700_001).flat_map(|part| [skippable(b"something"), zstd(part), zstd(&[])].concat()).collect()
}

/// Of which the larger ones take more than one unit.
fn files() -> Vec<File> {
    vec![
        File { name: "empty", content: Vec::new() },
        File { name: "small", content: ramp(37, 1) },
        File { name: "noise", content: noise((3 << 20) + 1, 3) },
        File { name: "zeros", content: vec![0; 1 << 20] },
        File { name: "ramp", content: ramp(5 << 20, 4) },
        File { name: "last", content: noise(5, 5) },
    ]
}

/// A registry, the contents of its images, and a cache directory.
struct Lab {
    registry: Registry,
    files: Vec<File>,
    temp: tempfile::TempDir,
}

impl Lab {
    async fn new() -> Self {
        Self { registry: Registry::start().await, files: files(), temp: tempfile::tempdir().unwrap() }
    }

    /// The files as one layer, which is the image.
    fn push(&self, compress: Compress) -> Layer {
        let tar = tar(&self.files);
        let layer = plain(compress(&tar));
        self.push_image("a", &[&layer], &[Digest::of(&tar)]);
        layer
    }

    fn push_image(&self, name: &str, layers: &[&Layer], diff_ids: &[Digest]) {
        let config = config(diff_ids);
        let blobs: Vec<_> = layers.iter().map(|layer| layer.blob.as_slice()).chain([config.as_slice()]).collect();
        self.registry.push(name, "1", OCI_MANIFEST, &manifest_with(&config, layers), &blobs);
    }

    fn cache(&self) -> PathBuf {
        self.temp.path().join("cache")
    }

    fn options(&self) -> ImageOptions {
        ImageOptions { insecure_unverified_toc: false, ..image_options(&self.registry, self.cache()) }
    }

    async fn open(&self) -> Opened {
        open(&self.options()).await.unwrap()
    }

    /// The message with which it is refused.
    async fn refusal(&self) -> String {
        open(&self.options()).await.err().expect("it opened").chain()
    }

    /// What `crfs inspect` says of the first layer.
    async fn inspect(&self) -> LayerInspection {
        let options = self.options();
        let inspecting =
            tokio::task::spawn_blocking(move || inspect(&options, &(Arc::new(|_: &Event| Ok(())) as Report)));
        within(inspecting).await.unwrap().unwrap().layers.remove(0)
    }

    async fn assert_right(&self, opened: &Opened) {
        for file in &self.files {
            let read = opened.read(file.name, 0, u64::MAX).await.unwrap();
            assert!(read == file.content, "{} differs", file.name);
        }
    }

    /// What the cache has of layers.
    fn kept(&self) -> Vec<PathBuf> {
        let layers = self.cache().join(LAYOUT).join("layers");
        if layers.exists() { walk(&layers) } else { Vec::new() }
    }

    /// Requests for the blob, and its bytes that were sent.
    fn sent(&self, layer: &Layer) -> (usize, u64) {
        let digest = layer.digest();
        (self.registry.requests_to(&digest.to_string()).len(), self.registry.sent(&digest))
    }
}

#[tokio::test]
async fn it_is_read_once_then_from_the_cache_and_then_in_parts() {
    for (what, compress) in COMPRESSORS {
        let lab = Lab::new().await;
        let layer = lab.push(compress);
        let opened = lab.open().await;
        // The end was looked at first, where a table of contents would be.
        let (_, sent) = lab.sent(&layer);
        assert!(sent <= layer.blob.len() as u64 + (1 << 20), "{what}: {sent} bytes");
        lab.assert_right(&opened).await;
        assert_eq!(lab.sent(&layer).1, sent, "{what}: all was kept");
        drop(opened);

        let opened = lab.open().await;
        lab.assert_right(&opened).await;
        assert_eq!(lab.sent(&layer).1, sent, "{what}: the second mount has the index and the contents");
        drop(opened);

        clear(&lab.cache(), true).unwrap();
        let opened = lab.open().await;
        assert_eq!(lab.sent(&layer).1, sent, "{what}: the index is still there");
        assert_eq!(opened.read("last", 0, 9).await.unwrap(), lab.files[5].content, "{what}");
        assert!(lab.sent(&layer).1 > sent, "{what}: the contents are not");
        lab.assert_right(&opened).await;
        drop(opened);

        lab.registry.go_down().await;
        lab.assert_right(&lab.open().await).await;
    }
}

#[tokio::test]
async fn a_small_read_of_a_cold_layer_fetches_two_units_at_most() {
    let lab = Lab::new().await;
    for compress in [COMPRESSORS[0].1, members, frames] {
        let layer = lab.push(compress);
        drop(lab.open().await);
        clear(&lab.cache(), true).unwrap();
        let opened = lab.open().await;
        let (_, before) = lab.sent(&layer);
        assert_eq!(opened.read("noise", 2 << 20, 10).await.unwrap()[..], lab.files[2].content[2 << 20..][..10]);
        let (_, sent) = lab.sent(&layer);
        // A unit has 2 MiB of output, or a little more, and noise does not compress.
        assert!(sent - before <= (5 << 20), "{} bytes", sent - before);
    }
}

#[tokio::test]
async fn a_layer_of_one_frame_is_not_called_lazy() {
    let lab = Lab::new().await;
    for (compress, is_lazy) in [(zstd as Compress, false), (frames, true), (members, true)] {
        let layer = lab.push(compress);
        drop(lab.open().await);
        assert_eq!(lab.open().await.image.layers[0].is_lazy(), is_lazy);
        let inspected = lab.inspect().await;
        assert_eq!((inspected.lazy, inspected.advice.is_some()), (is_lazy, !is_lazy), "{}", inspected.reason);
        assert_eq!(inspected.reason.contains("unpacked from its start"), !is_lazy, "{}", layer.media_type);
    }
}

#[tokio::test]
async fn a_layer_that_is_read_whole_because_it_is_small_is_asked_for_once() {
    for (what, compress) in COMPRESSORS {
        let lab = Lab::new().await;
        let layer = lab.push(compress);
        let options = ImageOptions { whole_layer_below: u64::MAX, ..lab.options() };
        lab.assert_right(&open(&options).await.unwrap()).await;
        assert_eq!(lab.sent(&layer), (1, layer.blob.len() as u64), "{what}");
        clear(&lab.cache(), true).unwrap();
        lab.assert_right(&open(&options).await.unwrap()).await;
    }
}

#[tokio::test]
async fn a_layer_with_nothing_in_it_is_served() {
    for (what, compress) in COMPRESSORS {
        for tar in [vec![0; 1024], vec![0; 512], vec![0; 10_240], Vec::new()] {
            let lab = Lab { files: Vec::new(), ..Lab::new().await };
            let layer = plain(compress(&tar));
            if layer.blob.is_empty() {
                continue;
            }
            lab.push_image("a", &[&layer], &[Digest::of(&tar)]);
            let opened = open(&lab.options()).await;
            assert!(opened.is_ok(), "{what}, {} bytes: {}", tar.len(), opened.err().unwrap().chain());
        }
    }
}

#[tokio::test]
async fn another_diff_id_is_refused_with_both() {
    for (what, compress) in COMPRESSORS {
        let lab = Lab::new().await;
        let layer = lab.push(compress);
        let (right, wrong) = (Digest::of(&tar(&lab.files)), Digest::of(b"another"));
        lab.push_image("a", &[&layer], &[wrong]);
        let text = lab.refusal().await;
        for digest in [layer.digest(), right, wrong] {
            assert!(text.contains(&digest.to_string()), "{what}: {text}");
        }
        assert!(lab.kept().is_empty(), "{what}: {:?}", lab.kept());
    }
}

/// An index of one image must not make another one right.
#[tokio::test]
async fn what_one_image_says_of_a_blob_holds_for_it_alone() {
    let lab = Lab::new().await;
    let layer = lab.push(gzip);
    lab.push_image("lying", &[&layer], &[Digest::of(b"another")]);
    let image = format!("{}/lying:1", lab.registry.host()).parse().unwrap();
    let lying = ImageOptions { image, ..lab.options() };
    for _ in 0..2 {
        let text = open(&lying).await.err().expect("it opened").chain();
        assert!(text.contains(&Digest::of(b"another").to_string()), "{text}");
        // The second time there is an index.
        lab.assert_right(&lab.open().await).await;
    }
}

#[tokio::test]
async fn a_config_of_other_layers_is_refused_by_what_it_says() {
    let lab = Lab::new().await;
    let (tar, digest) = (tar(&lab.files), Digest::of(&tar(&lab.files)));
    let layer = plain(gzip(&tar));
    lab.push_image("a", &[&layer], &[digest]);
    drop(lab.open().await);
    for (layers, named) in [(&[&layer][..], 2), (&[&layer, &layer], 1), (&[&layer, &layer], 3), (&[], 1)] {
        lab.push_image("a", layers, &vec![digest; named]);
        let message = lab.refusal().await;
        let said = format!("names {named} layers, and the manifest {}", layers.len());
        assert!(message.contains(&said), "{message}");
    }
    lab.push_image("a", &[], &[]);
    drop(lab.open().await);
}

#[tokio::test]
async fn a_config_that_cannot_be_read_is_refused_by_what_is_wrong_with_it() {
    let lab = Lab::new().await;
    let layer = plain(gzip(&tar(&lab.files)));
    let push = |config: &[u8]| {
        lab.registry.push("a", "1", OCI_MANIFEST, &manifest_with(config, &[&layer]), &[&layer.blob, config]);
    };
    push(br#"{"config": {"Env": 7}}"#);
    let message = lab.refusal().await;
    assert!(message.contains("env: invalid type: integer `7`"), "{message}");
    push(b"{\"config\": {\"Env\": [null], \"Labels\": {\"\xff\": 1e999}}, \"author\": \"\\udfff\"}");
    lab.assert_right(&lab.open().await).await;
}
