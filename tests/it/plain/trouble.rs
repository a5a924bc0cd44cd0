//! Networks and caches that fail while a layer is read whole.

use std::time::Duration;

use crfs::blob::Digest;
use crfs::cache::clear;
use crfs::image::options::ImageOptions;

use super::{COMPRESSORS, Lab};
use crate::contents::{FORMATS, image_options, open};
use crate::image::{File, gzip, manifest, noise, plain, ramp, tar, zstd};
use crate::registry::{Fault, Lasting, Lie, OCI_MANIFEST, On, Registry};
use crate::support::within;

#[tokio::test]
async fn a_blob_whose_last_byte_is_wrong_is_never_seen() {
    for (what, compress) in COMPRESSORS {
        let lab = Lab::new().await;
        let layer = lab.push(compress);
        let digest = layer.digest();
        let mut wrong = layer.blob.clone();
        *wrong.last_mut().unwrap() ^= 1;
        lab.registry.replace_blob(&digest, &wrong);
        let text = lab.refusal().await;
        assert!(text.contains("wrong bytes") && text.contains(&Digest::of(&wrong).to_string()), "{what}: {text}");
        assert!(lab.kept().is_empty(), "{what}: {:?}", lab.kept());
        let asked = lab.registry.requests_to(&digest.to_string());
        assert_eq!(asked.len(), 3, "{what}: its end, all of it, and all of it past caches");
        assert_eq!(asked[2].header("cache-control"), Some("no-cache"), "{what}");

        lab.registry.replace_blob(&digest, &layer.blob);
        lab.assert_right(&lab.open().await).await;
    }
}

#[tokio::test]
async fn a_cache_on_the_way_that_is_wrong_is_passed_by() {
    for (_, compress) in COMPRESSORS {
        for (lasting, lie) in [(Lasting::UntilNoCache, Lie::LastByte), (Lasting::Always, Lie::WrongBytesInCaches)] {
            let lab = Lab::new().await;
            lab.push(compress);
            lab.registry.fault(Fault::new(On::Blobs, lasting, lie));
            let opened = lab.open().await;
            lab.registry.clear_faults();
            lab.assert_right(&opened).await;
        }
    }
}

#[tokio::test]
async fn what_breaks_off_in_the_middle_goes_on_from_there() {
    for (what, compress) in [COMPRESSORS[0], COMPRESSORS[2], COMPRESSORS[5]] {
        let lab = Lab::new().await;
        let layer = lab.push(compress);
        for at in [1, 1 << 20] {
            lab.registry.fault(Fault::times(1, On::Blobs, Lie::Cut(at)));
            lab.registry.fault(Fault::times(1, On::Blobs, Lie::Reset(at)));
        }
        lab.assert_right(&lab.open().await).await;
        let (_, sent) = lab.sent(&layer);
        assert!(sent < layer.blob.len() as u64 * 3 / 2 + (1 << 20), "{what}: {sent} bytes");
    }
}

#[tokio::test]
async fn a_body_that_stalls_is_asked_for_again() {
    let lab = Lab::new().await;
    let layer = lab.push(gzip);
    // The first is for the end, which is looked at.
    let stall = Fault::times(2, On::Blobs, Lie::Stall(60_000)).about(&layer.digest().to_string());
    lab.registry.fault(stall);
    let options = ImageOptions { io_deadline: Duration::from_secs(8), ..lab.options() };
    lab.assert_right(&open(&options).await.unwrap()).await;
}

/// The layer above it sends nothing until a deadline that is never met.
#[tokio::test]
async fn a_layer_that_is_refused_is_told_without_waiting_for_those_above_it() {
    let lab = Lab::new().await;
    let tars = [3, 5].map(|seed| tar(&[File { name: "file", content: noise(50_000, seed) }]));
    let layers = [plain(gzip(&tars[0])), plain(gzip(&tars[1]))];
    lab.push_image("a", &[&layers[0], &layers[1]], &tars.map(|tar| Digest::of(&tar)));
    let about = |layer: usize, lie| Fault::always(On::Blobs, lie).about(&layers[layer].digest().to_string());
    lab.registry.fault(about(0, Lie::Status(404, Vec::new())));
    lab.registry.fault(about(1, Lie::Silence));
    let options = ImageOptions { io_deadline: Duration::from_secs(3600), ..lab.options() };
    let error = within(open(&options)).await.err().expect("it opened").chain();
    assert!(error.contains(&layers[0].digest().to_string()), "{error}");
}

#[tokio::test]
async fn what_was_complete_stays_when_the_registry_goes_away() {
    let lab = Lab::new().await;
    let all = tar(&lab.files);
    let first = tar(&[File { name: "first", content: ramp(5000, 9) }]);
    let (complete, broken) = (plain(gzip(&first)), plain(gzip(&all)));
    lab.push_image("a", &[&complete, &broken], &[Digest::of(&first), Digest::of(&all)]);
    let slow = Lie::Slow(64 << 10, Duration::from_millis(100));
    lab.registry.fault(Fault::always(On::Blobs, slow).about(&broken.digest().to_string()));

    let options = ImageOptions { io_deadline: Duration::from_secs(2), ..lab.options() };
    let trouble = async {
        while lab.kept().is_empty() || lab.sent(&broken).1 < 1 << 20 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        lab.registry.go_down().await;
    };
    let (opened, ()) = tokio::join!(open(&options), within(trouble));
    let text = opened.err().expect("it opened").chain();
    assert!(text.contains("nothing moved") && text.contains(&lab.registry.host()), "{text}");
    let of_broken = |path: &std::path::PathBuf| path.to_str().unwrap().contains(&broken.digest().hex());
    assert!(!lab.kept().iter().any(of_broken), "{:?}", lab.kept());

    lab.registry.come_up();
    lab.registry.clear_faults();
    let before = lab.sent(&complete);
    let opened = open(&options).await.unwrap();
    assert_eq!(opened.read("first", 0, 5000).await.unwrap()[..], ramp(5000, 9));
    assert_eq!(lab.sent(&complete), before);
    lab.assert_right(&opened).await;
}

#[tokio::test]
async fn without_room_in_the_cache_contents_are_fetched_when_they_are_read() {
    for (what, compress) in COMPRESSORS {
        let lab = Lab::new().await;
        let layer = lab.push(compress);
        let nowhere = ImageOptions { cache_dir: "/proc/nowhere".into(), ..lab.options() };
        let small = ImageOptions { cache_size: Some(2 << 20), ..lab.options() };
        for options in [nowhere, small] {
            let opened = open(&options).await.unwrap_or_else(|error| panic!("{what}: {}", error.chain()));
            let (_, before) = lab.sent(&layer);
            lab.assert_right(&opened).await;
            assert!(lab.sent(&layer).1 > before, "{what}: it was not all kept");
        }
    }
}

/// In one frame they would have to be decompressed from the start each time, and that is too large for it.
fn huge() -> Vec<File> {
    vec![File { name: "huge", content: noise(20 << 20, 1) }, File { name: "last", content: ramp(10, 2) }]
}

#[tokio::test]
async fn one_large_frame_needs_room_for_all_of_it() {
    let lab = Lab { files: huge(), ..Lab::new().await };
    let layer = lab.push(zstd);
    let needed = (20 << 20) + 4096;
    for options in [
        ImageOptions { cache_dir: "/proc/nowhere".into(), ..lab.options() },
        ImageOptions { cache_size: Some(8 << 20), ..lab.options() },
    ] {
        let text = open(&options).await.err().expect("it opened").chain();
        for part in [&layer.digest().to_string(), &needed.to_string(), "--cache-size", "--cache-dir"] {
            assert!(text.contains(part), "{part} in: {text}");
        }
    }
    lab.assert_right(&lab.open().await).await;
}

#[tokio::test]
async fn one_large_frame_stays_while_it_is_open() {
    let lab = Lab { files: huge(), ..Lab::new().await };
    let layer = lab.push(zstd);
    let options = ImageOptions { cache_size: Some(26 << 20), ..lab.options() };
    let opened = open(&options).await.unwrap();
    let sent = lab.sent(&layer);

    clear(&lab.cache(), true).unwrap();
    lab.assert_right(&opened).await;

    let other = Lab::new().await;
    other.push(gzip);
    let crowded = ImageOptions { cache_dir: lab.cache(), cache_size: Some(26 << 20), ..other.options() };
    let others = open(&crowded).await.unwrap();
    other.assert_right(&others).await;
    lab.registry.go_down().await;
    lab.assert_right(&opened).await;
    lab.registry.come_up();
    assert_eq!(lab.sent(&layer), sent);
    drop((opened, others));

    within(async {
        while clear(&lab.cache(), true).unwrap().in_use > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let opened = open(&options).await.unwrap();
    assert!(lab.sent(&layer).1 >= sent.1 + layer.blob.len() as u64, "it was read whole again");
    let sent = lab.sent(&layer);
    lab.assert_right(&opened).await;
    assert_eq!(lab.sent(&layer), sent);
}

#[tokio::test]
async fn two_that_read_the_same_layer_at_once_both_get_it() {
    let frame = Lab { files: huge(), ..Lab::new().await };
    frame.push(zstd);
    let gzipped = Lab::new().await;
    gzipped.push(gzip);
    for lab in [frame, gzipped] {
        let (one, other) = tokio::join!(lab.open(), lab.open());
        tokio::join!(lab.assert_right(&one), lab.assert_right(&other));
        assert_eq!(lab.kept().len(), 3, "index, data, presence: {:?}", lab.kept());
        drop((one, other));
        lab.registry.go_down().await;
        lab.assert_right(&lab.open().await).await;
    }
}

/// A layer that can only be unpacked from its start is lost when its contents are: those who all want to be the one that keeps them must
/// not remove one another's.
#[tokio::test(flavor = "multi_thread")]
async fn many_that_read_the_same_layer_again_at_once_all_get_it() {
    let lab = Lab { files: huge(), ..Lab::new().await };
    lab.push(zstd);
    for _ in 0..6 {
        let opened = futures_util::future::join_all((0..6).map(|_| lab.open())).await;
        futures_util::future::join_all(opened.iter().map(|opened| lab.assert_right(opened))).await;
        drop(opened);
        for index in lab.kept().iter().filter(|path| path.ends_with("index")) {
            std::fs::remove_file(index).unwrap();
        }
    }
}

#[tokio::test]
async fn an_image_may_have_the_same_layer_twice() {
    for (_, compress) in COMPRESSORS {
        let lab = Lab::new().await;
        let layer = lab.push(compress);
        let diff_id = Digest::of(&tar(&lab.files));
        lab.push_image("a", &[&layer, &layer], &[diff_id, diff_id]);
        lab.assert_right(&lab.open().await).await;
    }
}

#[tokio::test]
async fn large_chunks_of_a_layer_with_a_table_of_contents_are_no_reason_to_read_it_whole() {
    for (format, write) in FORMATS {
        let registry = Registry::start().await;
        let layer = write(&huge(), 18 << 20);
        registry.push("a", "1", OCI_MANIFEST, &manifest(&[&layer]), &[&layer.blob]);
        let temp = tempfile::tempdir().unwrap();
        let options = image_options(&registry, temp.path().to_owned());
        for _ in 0..2 {
            let opened = open(&options).await.unwrap();
            assert!(opened.image.layers[0].is_lazy());
            let sent = registry.sent(&layer.digest());
            assert!(sent < 3 << 20, "{format}: {sent} bytes were sent");
        }
    }
}
