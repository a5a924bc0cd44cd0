//! What an image may take of memory: a layer that would take more is refused by name, whatever its format, also where an earlier mount has indexed it.

use crfs::image::options::ImageOptions;

use crate::contents::{Lab, open};
use crate::evil::{self, Evil, WRITERS};
use crate::image::{Layer, config, estargz, manifest_with};
use crate::registry::OCI_MANIFEST;

/// Bytes that the evil layers would take at least.
const TAKEN: usize = 16 << 20;

const SMALL: u64 = 4 << 20;
const LARGE: u64 = 96 << 20;

/// Pushes an image of these layers, whose config does not say what they are unpacked.
fn push(lab: &Lab, layers: &[&Layer]) {
    let config = config(&[]);
    let blobs: Vec<_> = layers.iter().map(|layer| &layer.blob[..]).chain([&config[..]]).collect();
    lab.registry.push("a", "1", OCI_MANIFEST, &manifest_with(&config, layers), &blobs);
}

fn within(lab: &Lab, memory_limit: u64) -> ImageOptions {
    ImageOptions { memory_limit, ..lab.options() }
}

async fn assert_refused(lab: &Lab, layer: &Layer, what: &str) {
    let Err(error) = open(&within(lab, SMALL)).await else { panic!("{what}: it opened") };
    let text = error.chain();
    assert!(text.contains(&layer.digest().to_string()) && text.contains("--memory-limit"), "{what}: {text:.600}");
    assert!(text.contains("more than 4 MiB"), "{what}: {text:.600}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_takes_too_much_is_refused_by_name_in_every_format() {
    for (format, write) in WRITERS {
        for evil in Evil::ALL {
            let lab = Lab::empty().await;
            let layer = write(evil, evil.entries(TAKEN));
            push(&lab, &[&layer]);
            assert_refused(&lab, &layer, &format!("{format} {evil:?}")).await;
            // No lower layer has what these link to.
            if evil == Evil::Below {
                continue;
            }
            let opened = open(&within(&lab, LARGE)).await;
            let opened = opened.unwrap_or_else(|error| panic!("{format} {evil:?}: {}", error.chain()));
            assert!(!opened.names("/").is_empty());
            drop(opened);
            assert_refused(&lab, &layer, &format!("{format} {evil:?}, from the cache")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_pack_to_nothing_are_worth_nothing_from_the_cache_either() {
    let lab = Lab::empty().await;
    let layer = evil::zstd_chunked(Evil::Repeated, Evil::Repeated.entries(TAKEN));
    assert!(layer.blob.len() < 100_000, "{} bytes", layer.blob.len());
    push(&lab, &[&layer]);
    assert_refused(&lab, &layer, "from its TOC").await;
    drop(open(&within(&lab, LARGE)).await.unwrap());
    assert_refused(&lab, &layer, "from the cache").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_fit_one_by_one_and_not_together_are_refused() {
    let lab = Lab::empty().await;
    let layers: Vec<_> = (3..7).map(|share| evil::estargz(Evil::Xattrs, Evil::Xattrs.entries(TAKEN) / share)).collect();
    push(&lab, &layers.iter().collect::<Vec<_>>());
    let Err(error) = open(&within(&lab, 10 << 20)).await else { panic!("it opened") };
    assert!(error.chain().contains("--memory-limit"), "{}", error.chain());
    open(&within(&lab, LARGE)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_image_needs_none_of_it() {
    let lab = Lab::new(estargz).await;
    let opened = open(&within(&lab, 1 << 20)).await.unwrap();
    lab.assert_right(&opened).await;
}
