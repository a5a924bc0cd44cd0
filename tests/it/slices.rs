//! What a cache on the way would fetch that keeps blobs in slices: requests that follow one another share no slice, since it would fetch that for each of
//! them.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use crfs::cache::clear;
use crfs::fetch::{Prefetch, prefetch};

use crate::contents::{Lab, Opened, Writer, open_guessing};
use crate::image::{File, config, estargz, manifest_with, noise, plain, tar, zstd_chunked};
use crate::registry::{Fault, Lie, OCI_MANIFEST, On};
use crate::support::{until_later, within};

const SLICE: u64 = 1 << 20;

/// What the kernel asks for at a time.
const READ: usize = 128 << 10;

/// Chunks that are cut by the end of each slice, by that of some, and that are longer than one.
const WRITERS: [(&str, Writer); 4] = [
    ("estargz", |files, _| estargz(files, 70_000)),
    ("estargz, long chunks", |files, _| estargz(files, 1_500_000)),
    ("zstd:chunked", |files, _| zstd_chunked(files, 300_001)),
    ("gzip", |files, _| plain(gzip_of_short_blocks(&tar(files)))),
];

/// The fastest level makes one block of all that does not compress.
fn gzip_of_short_blocks(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn files() -> Vec<File> {
    let names = ["a", "b", "c", "d", "e", "f"];
    names.into_iter().zip(1..).map(|(name, seed)| File { name, content: noise(1_400_000, seed) }).collect()
}

/// A layer that is opened by its index, and none of whose contents are here.
async fn cold(write: Writer, files: Vec<File>) -> (Lab, Opened) {
    let lab = Lab::with(write, files).await;
    let config = config(&[crfs::blob::Digest::of(&tar(&lab.files))]);
    let manifest = manifest_with(&config, &[&lab.layer]);
    lab.registry.push("a", "1", OCI_MANIFEST, &manifest, &[&lab.layer.blob, &config]);
    let mut options = lab.options();
    options.insecure_unverified_toc = false;
    drop(crate::contents::open(&options).await.unwrap());
    clear(&options.cache_dir, true).unwrap();
    let opened = open_guessing(&options).await.unwrap();
    (lab, opened)
}

/// The first and the last byte that each request for the blob asked for, of those behind the first `before`.
fn asked(lab: &Lab, before: usize) -> Vec<(u64, u64)> {
    let requests = lab.registry.requests_to(&lab.layer.digest().to_string());
    let ranges = requests[before..].iter().map(|request| {
        let (first, last) = request.header("range").unwrap().strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        (first.parse().unwrap(), last.parse().unwrap())
    });
    let mut ranges: Vec<_> = ranges.collect();
    ranges.sort_unstable();
    ranges
}

/// How many requests touch each slice.
fn touched(asked: &[(u64, u64)]) -> BTreeMap<u64, usize> {
    let mut touched = BTreeMap::new();
    for (first, last) in asked {
        (first / SLICE..=last / SLICE).for_each(|slice| *touched.entry(slice).or_default() += 1);
    }
    touched
}

/// But for one that two units have bits of.
fn assert_no_byte_twice(what: &str, asked: &[(u64, u64)]) {
    assert!(asked.windows(2).all(|two| two[0].1 <= two[1].0), "{what}: {asked:?}");
}

fn start_prefetch(opened: &Opened) -> tokio::task::JoinHandle<()> {
    let contents = Arc::clone(&opened.image.layers[0].contents);
    tokio::spawn(prefetch(vec![contents], Prefetch::All))
}

#[tokio::test(flavor = "multi_thread")]
async fn prefetch_asks_for_each_slice_once() {
    for (format, write) in WRITERS {
        let (lab, opened) = cold(write, files()).await;
        let before = lab.sent().0;
        within(start_prefetch(&opened)).await.unwrap();
        let asked = asked(&lab, before);
        assert!(asked.len() > 3, "{format}: {asked:?}");
        assert_no_byte_twice(format, &asked);
        let touched = touched(&asked);
        assert!(touched.values().all(|requests| *requests == 1), "{format}: {touched:?}");
        lab.registry.go_down().await;
        lab.assert_right(&opened).await;
    }
}

/// Up to the third slice it may be read in any order; and the end of a large file is looked at when it is opened.
#[tokio::test(flavor = "multi_thread")]
async fn who_reads_a_large_file_in_order_asks_for_each_slice_once() {
    let content = noise(16 << 20, 9);
    for (format, write) in WRITERS {
        let (lab, opened) = cold(write, vec![File { name: "large", content: content.clone() }]).await;
        let before = lab.sent().0;
        for at in (0..content.len()).step_by(READ) {
            let read = opened.read("large", at as u64, READ as u64).await.unwrap();
            assert!(read == content[at..at + READ], "{format}: {at}");
        }
        let asked = asked(&lab, before);
        assert_no_byte_twice(format, &asked);
        let touched = touched(&asked);
        let twice: Vec<_> = touched.range(3..15).filter(|(_, requests)| **requests > 1).collect();
        assert!(twice.is_empty(), "{format}: {touched:?}, {asked:?}");
    }
}

/// Its neighbour has a part of a unit then that is wrong, or does not come.
#[tokio::test]
async fn whatever_a_request_brings_instead_its_neighbours_come_right() {
    let lies = [
        Lie::WrongBytes,
        Lie::WrongBytesInCaches,
        Lie::LastByte,
        Lie::Status(404, Vec::new()),
        Lie::Cut(1000),
        Lie::Whole,
    ];
    for (format, write) in WRITERS {
        for lie in lies.clone() {
            let what = format!("{format}, {lie:?}");
            let (lab, opened) = cold(write, files()).await;
            lab.registry.fault(Fault::times(1, On::Blobs, lie).behind(2));
            tokio::time::pause();
            let prefetch = start_prefetch(&opened);
            until_later(|| prefetch.is_finished()).await;
            prefetch.await.unwrap();
            tokio::time::resume();
            assert!(opened.image.layers[0].contents.is_kept().unwrap(), "{what}");
            lab.registry.go_down().await;
            lab.assert_right(&opened).await;
        }
    }
}

/// What nobody goes on behind is read all the same, without what is known of it already.
#[tokio::test(flavor = "multi_thread")]
async fn who_stops_in_order_and_comes_back_asks_for_no_byte_twice() {
    let content = noise(8 << 20, 9);
    let (lab, opened) = cold(WRITERS[0].1, vec![File { name: "large", content: content.clone() }]).await;
    let before = lab.sent().0;
    for at in (0..3 << 20).step_by(READ).chain((4 << 20..content.len()).step_by(READ).rev()) {
        assert!(opened.read("large", at as u64, READ as u64).await.unwrap() == content[at..at + READ], "{at}");
    }
    lab.assert_right(&opened).await;
    assert_no_byte_twice("estargz", &asked(&lab, before));
}
