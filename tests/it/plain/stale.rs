//! Layers that somebody has rewritten, with the annotations of what they were before.

use crfs::blob::Digest;
use crfs::cache::clear;
use crfs::image::inspect::IndexFrom;
use crfs::image::options::ImageOptions;
use crfs::index::Trust;

use super::{Lab, members};
use crate::contents::open;
use crate::image::{Layer, estargz, gzip, plain, tar, zstd, zstd_chunked};
use crate::registry::{Fault, Lie, On};

const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
const CHECKSUM: &str = "io.github.containers.zstd-chunked.manifest-checksum";
const POSITION: &str = "io.github.containers.zstd-chunked.manifest-position";
const CHUNK: usize = 100_000;

/// The footer that sends a reader to the image with the TOC.
const EXTERNAL: &[u8] =
    b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x15\0SG\x11\0STARGZEXTERNALTOC\x01\0\0\xff\xff\0\0\0\0\0\0\0\0";

fn annotated(mut layer: Layer, annotations: &[(&str, &str)]) -> Layer {
    layer.annotations.extend(annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    layer
}

/// Layers that hold the files of the lab, none of which has the TOC that its annotations name.
fn stale(lab: &Lab) -> Vec<(&'static str, Layer)> {
    let tar = tar(&lab.files);
    let other = Digest::of(b"another").to_string();
    let other = other.as_str();
    let chunked = |position| [(CHECKSUM, other), (POSITION, position)];
    let external = [gzip(&tar), EXTERNAL.to_vec()].concat();
    vec![
        ("gzip", annotated(plain(gzip(&tar)), &[(TOC_DIGEST, other)])),
        ("tar", annotated(plain(tar.clone()), &[(TOC_DIGEST, other)])),
        ("zstd, a position in the blob", annotated(plain(zstd(&tar)), &chunked("900:50:70:1"))),
        ("zstd, a position behind it", annotated(plain(zstd(&tar)), &chunked("99999999999:50:70:1"))),
        ("zstd, a position that was cut", annotated(plain(zstd(&tar)), &chunked("900:50"))),
        ("zstd, no position", annotated(plain(zstd(&tar)), &[(CHECKSUM, other)])),
        ("eStargz with another TOC", annotated(estargz(&lab.files, CHUNK), &[(TOC_DIGEST, other)])),
        ("zstd:chunked with another TOC", annotated(zstd_chunked(&lab.files, CHUNK), &[(CHECKSUM, other)])),
        ("no image with an external TOC", annotated(plain(external), &[(TOC_DIGEST, other)])),
    ]
}

#[tokio::test]
async fn a_layer_without_the_toc_that_its_annotations_name_is_read_whole_once() {
    let layers = stale(&Lab::new().await);
    for (what, layer) in &layers {
        for whole_layer_below in [0, u64::MAX] {
            let lab = Lab::new().await;
            lab.push_image("a", &[layer], &[Digest::of(&tar(&lab.files))]);
            let options = ImageOptions { whole_layer_below, ..lab.options() };
            let opened = open(&options).await.unwrap_or_else(|error| panic!("{what}: {}", error.chain()));
            lab.assert_right(&opened).await;
            assert_eq!(opened.image.layers[0].trust, Trust::Blob, "{what}");
            let kept = lab.kept();
            assert!(
                !kept.is_empty() && kept.iter().all(|path| path.iter().any(|name| name == "own")),
                "{what}: {kept:?}"
            );
            drop(opened);

            // The index is looked for before what the annotations name.
            let before = lab.sent(layer);
            let opened = open(&options).await.unwrap();
            assert!(opened.image.layers[0].misfit.is_some(), "{what}");
            assert_eq!(lab.sent(layer), before, "{what}");
            drop(opened);
            clear(&lab.cache(), true).unwrap();
            lab.assert_right(&open(&options).await.unwrap()).await;
        }
    }
}

#[tokio::test]
async fn inspect_says_that_an_annotation_does_not_fit() {
    let lab = Lab::new().await;
    let tar = tar(&lab.files);
    let other = Digest::of(b"another").to_string();
    let layer = annotated(plain(members(&tar)), &[(TOC_DIGEST, &other)]);
    lab.push_image("a", &[&layer], &[Digest::of(&tar)]);
    let first = lab.inspect().await;
    // It was looked at before, at the end and where its table of contents is said to be.
    assert!(!first.lazy && first.wait >= layer.blob.len() as u64 && first.index_from == IndexFrom::None, "{first:?}");
    assert!(first.reason.contains("not used") && first.reason.contains("no TOC"), "{}", first.reason);
    assert!(first.advice.unwrap().contains("annotations"));
    drop(lab.open().await);
    let second = lab.inspect().await;
    assert!(second.lazy && second.index_from == IndexFrom::Own, "{second:?}");
    assert!(second.reason.contains("not used") && second.reason.contains("read whole before"), "{}", second.reason);
}

#[tokio::test]
async fn annotations_of_another_compression_are_not_even_looked_at() {
    let lab = Lab::new().await;
    let (tar, other) = (tar(&lab.files), Digest::of(b"another").to_string());
    let from_zstd = annotated(plain(gzip(&tar)), &[(CHECKSUM, &other), (POSITION, "900:50:70:1")]);
    let from_gzip = annotated(plain(zstd(&tar)), &[(TOC_DIGEST, &other)]);
    for layer in [from_zstd, from_gzip] {
        lab.push_image("a", &[&layer], &[Digest::of(&tar)]);
        lab.assert_right(&lab.open().await).await;
        assert_eq!(lab.sent(&layer).0, 2, "its end, and all of it");
        assert!(lab.open().await.image.layers[0].misfit.is_none());
    }
}

#[tokio::test]
async fn wrong_bytes_on_the_way_are_read_past_caches_and_make_no_annotation_stale() {
    for write in [estargz, zstd_chunked] {
        let lab = Lab::new().await;
        let layer = write(&lab.files, CHUNK);
        lab.push_image("a", &[&layer], &[Digest::of(b"")]);
        lab.registry.fault(Fault::always(On::Blobs, Lie::WrongBytesInCaches));
        let opened = lab.open().await;
        let open = &opened.image.layers[0];
        assert!(open.trust == Trust::Manifest && open.misfit.is_none(), "{:?}", open.misfit);
        assert!(lab.sent(&layer).1 < layer.blob.len() as u64 / 2, "the TOC was enough");
        lab.assert_right(&opened).await;
    }
}

#[tokio::test]
async fn a_blob_that_is_wrong_is_not_taken_for_a_rewritten_one() {
    for write in [estargz, zstd_chunked] {
        let lab = Lab::new().await;
        let layer = write(&lab.files, CHUNK);
        lab.push_image("a", &[&layer], &[Digest::of(b"")]);
        let mut wrong = layer.blob.clone();
        wrong.reverse();
        lab.registry.replace_blob(&layer.digest(), &wrong);
        let text = lab.refusal().await;
        assert!(text.contains(&Digest::of(&wrong).to_string()) && text.contains("wrong bytes"), "{text}");
        assert!(lab.kept().is_empty(), "{:?}", lab.kept());
    }
}

#[tokio::test]
async fn a_toc_digest_that_is_none_leaves_the_layer_to_its_own_digest() {
    for (key, value) in [(TOC_DIGEST, ""), (TOC_DIGEST, "sha512:00"), (CHECKSUM, "none")] {
        for whole_layer_below in [0, u64::MAX] {
            let lab = Lab::new().await;
            let tar = tar(&lab.files);
            let packed = if key == CHECKSUM { zstd(&tar) } else { gzip(&tar) };
            lab.push_image("a", &[&annotated(plain(packed), &[(key, value)])], &[Digest::of(&tar)]);
            for _ in 0..2 {
                let opened = open(&ImageOptions { whole_layer_below, ..lab.options() }).await;
                let opened = opened.unwrap_or_else(|error| panic!("{key}={value}: {}", error.chain()));
                assert_eq!(opened.image.layers[0].trust, Trust::Blob);
                lab.assert_right(&opened).await;
            }
        }
    }
}
