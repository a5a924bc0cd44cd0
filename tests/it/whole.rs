//! Hosts that send the whole blob when they are asked for a part, as caches do that have not got it yet, or that refuse ranges: it is read once, to
//! its end, for all who want any of it, and kept.

use std::sync::Arc;

use crfs::blob::Digest;
use tokio::sync::Semaphore;

use crate::contents::{Lab, Writer, open, open_guessing};
use crate::image::{File, config, estargz, gzip, manifest_with, noise, plain, stargz, tar, zstd_chunked};
use crate::registry::{Fault, Lie, OCI_MANIFEST, On};
use crate::support::{until, within};

/// A host that refuses ranges, too, is asked once for a part.
const HOSTS: [(Lie, usize); 2] = [(Lie::Whole, 1), (Lie::RefusesRanges(400), 2)];

/// With a config, by which a layer without a table of contents is told to be right.
async fn lab(write: Writer, files: Option<Vec<File>>) -> Lab {
    let lab = match files {
        Some(files) => Lab::with(write, files).await,
        None => Lab::new(write).await,
    };
    let config = config(&[Digest::of(&tar(&lab.files))]);
    let manifest = manifest_with(&config, &[&lab.layer]);
    lab.registry.push("a", "1", OCI_MANIFEST, &manifest, &[&lab.layer.blob, &config]);
    lab
}

#[tokio::test]
async fn a_layer_that_comes_whole_is_opened_read_once_and_kept() {
    for (format, write) in [("estargz", estargz as Writer), ("zstd:chunked", zstd_chunked)] {
        for (lie, requests) in HOSTS {
            let lab = lab(write, None).await;
            lab.registry.fault(Fault::always(On::Blobs, lie.clone()));
            let opened = lab.open().await;
            let layer = &opened.image.layers[0];
            assert!(layer.sent_whole && !layer.is_lazy(), "{format}");
            lab.assert_right(&opened).await;
            let len = lab.layer.blob.len() as u64;
            assert_eq!(lab.sent(), (requests, len), "{format}, {lie:?}");
            until(|| layer.contents.is_kept().unwrap()).await;
            lab.registry.go_down().await;
            let again = lab.open().await;
            lab.assert_right(&again).await;
            assert!(!again.image.layers[0].sent_whole, "{format}: nobody was asked");
        }
    }
}

#[tokio::test]
async fn a_plain_layer_that_comes_whole_is_indexed_while_it_comes() {
    let files = vec![File { name: "a", content: noise(3 << 20, 1) }];
    let lab = lab(|files, _| plain(gzip(&tar(files))), Some(files)).await;
    lab.registry.fault(Fault::always(On::Blobs, Lie::Whole));
    let opened = lab.open().await;
    lab.assert_right(&opened).await;
    assert!(opened.image.layers[0].sent_whole);
    assert_eq!(lab.sent(), (1, lab.layer.blob.len() as u64));
}

/// Its end says that there is a table of contents, which is not there.
#[tokio::test]
async fn what_a_blob_is_shows_at_its_end_also_when_it_comes_whole() {
    let mut said = Vec::new();
    for lie in [None, Some(Lie::Whole)] {
        let write: Writer = |files, chunk| {
            let other = stargz(files, chunk).blob;
            plain([gzip(&tar(files)), other[other.len() - 47..].to_vec()].concat())
        };
        let lab = lab(write, None).await;
        lie.into_iter().for_each(|lie| lab.registry.fault(Fault::always(On::Blobs, lie)));
        let mut options = lab.options();
        options.insecure_unverified_toc = false;
        said.push(open(&options).await.err().unwrap().chain());
    }
    assert!(said[0].contains("TOC") && said[0] == said[1], "{said:?}");
}

/// Opened by an index that is cached, so that the first request is a reader's.
#[tokio::test]
async fn readers_at_once_of_a_layer_that_comes_whole_share_one_download() {
    for write in [estargz, zstd_chunked] {
        for guesses in [false, true] {
            let lab = lab(write, None).await;
            drop(lab.open().await);
            let (_, before) = lab.sent();
            lab.registry.fault(Fault::always(On::Blobs, Lie::Whole));
            let options = lab.options();
            let opened = if guesses { open_guessing(&options).await } else { open(&options).await };
            let opened = Arc::new(opened.unwrap());
            let readers = (0..64u64).map(|reader| {
                let (opened, name) = (Arc::clone(&opened), if reader % 2 == 0 { "many" } else { "ramp" });
                let offset = reader * 1009;
                tokio::spawn(async move { (name, offset, opened.read(name, offset, u64::MAX).await.unwrap()) })
            });
            for reader in readers.collect::<Vec<_>>() {
                let (name, offset, read) = within(reader).await.unwrap();
                assert!(read == lab.content(name)[offset as usize..], "{name}");
            }
            lab.assert_right(&opened).await;
            let len = lab.layer.blob.len() as u64;
            // All but the end is in the cache: what nobody has asked for came with it, to the last byte.
            assert_eq!(lab.sent().1 - before, len, "guesses: {guesses}");
            assert!(opened.image.layers[0].contents.is_kept().unwrap());
        }
    }
}

/// Its host's answer may be long on its way.
#[tokio::test]
async fn what_comes_whole_to_one_who_is_late_is_not_read_again() {
    for write in [estargz, zstd_chunked] {
        let lab = lab(write, None).await;
        let opened = Arc::new(lab.open().await);
        let before = opened.image.layers[0].contents.stats().fetched;
        let gate = Arc::new(Semaphore::new(0));
        lab.registry.fault(Fault::times(1, On::Blobs, Lie::WholeBehind(Arc::clone(&gate))));
        lab.registry.fault(Fault::always(On::Blobs, Lie::Whole));
        let (requests, _) = lab.sent();
        let late = tokio::spawn({
            let opened = Arc::clone(&opened);
            async move { opened.read("last", 0, u64::MAX).await.unwrap() }
        });
        until(|| lab.sent().0 > requests).await;
        assert!(opened.read("many", 0, u64::MAX).await.unwrap() == lab.content("many"));
        until(|| opened.image.layers[0].contents.is_kept().unwrap()).await;
        gate.add_permits(1);
        assert_eq!(within(late).await.unwrap(), lab.content("last"));
        lab.assert_right(&opened).await;
        let fetched = opened.image.layers[0].contents.stats().fetched - before;
        assert!(fetched < 2 * lab.layer.blob.len() as u64, "{fetched}");
    }
}

/// Each hands its part over to whoever reads the layer, which may have passed it by then.
#[tokio::test]
async fn readers_at_once_of_a_layer_that_comes_whole_and_cannot_be_kept_are_all_served() {
    for write in [estargz, zstd_chunked] {
        let lab = lab(write, None).await;
        let mut options = lab.options();
        options.cache_dir = "/proc/nowhere".into();
        let opened = Arc::new(open(&options).await.unwrap());
        lab.registry.fault(Fault::always(On::Blobs, Lie::Whole));
        let readers = (0..60).map(|reader| {
            let (opened, offset) = (Arc::clone(&opened), reader * 3200);
            tokio::spawn(async move { (offset, opened.read("many", offset, 3200).await.unwrap()) })
        });
        for reader in readers.collect::<Vec<_>>() {
            let (offset, read) = within(reader).await.unwrap();
            let all = lab.content("many");
            let end = all.len().min(offset as usize + 3200);
            assert!(read == all[offset as usize..end], "{offset}");
        }
    }
}

#[tokio::test]
async fn a_reader_does_not_wait_for_what_lies_behind() {
    let lab = lab(zstd_chunked, None).await;
    drop(lab.open().await);
    lab.registry.fault(Fault::always(On::Blobs, Lie::WholeUntil(150_000, false)));
    let opened = lab.open().await;
    assert_eq!(opened.read("one", 0, 100).await.unwrap(), lab.content("one")[..100]);
    assert!(!opened.image.layers[0].contents.is_kept().unwrap());
}

#[tokio::test]
async fn a_cache_that_is_filled_is_read_lazily_again() {
    let lab = lab(zstd_chunked, None).await;
    drop(lab.open().await);
    lab.registry.fault(Fault::always(On::Blobs, Lie::Whole));
    // What no cache keeps is read again.
    let mut options = lab.options();
    options.cache_dir = "/proc/nowhere".into();
    let filled = open(&options).await.unwrap();
    lab.assert_right(&filled).await;
    lab.registry.clear_faults();
    let before = lab.sent().1;
    let opened = lab.open().await;
    assert_eq!(opened.read("last", 0, u64::MAX).await.unwrap(), lab.content("last"));
    assert!(lab.sent().1 - before < 10_000);
}
