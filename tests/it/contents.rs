//! Images through all stages but the kernel: resolved, opened, read through the fetch engine and the cache, while the registry lies.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crfs::cache::LAYOUT;
use crfs::fetch::Readahead;
use crfs::fs::view::{LastSymlink, ReadError, View};
use crfs::image::engine::{Engine, OpenImage};
use crfs::image::options::ImageOptions;
use crfs::image::{Error, Event, Report};
use crfs::index::{Identity, Trust};
use crfs::registry::SociChoice;

use crate::image::{File, Layer, estargz, manifest, noise, ramp, stargz, zstd_chunked};
use crate::registry::{Fault, Lie, On, Registry};
use crate::support::{hours, until, until_later, within};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CHUNK: usize = 10_000;

/// A layer format's writer.
pub(crate) type Writer = fn(&[File], usize) -> Layer;

pub(crate) const FORMATS: [(&str, Writer); 3] =
    [("estargz", estargz), ("zstd:chunked", zstd_chunked), ("stargz", stargz)];

/// Files of one chunk and of many, that do and do not compress, and an empty one.
fn files() -> Vec<File> {
    vec![
        File { name: "empty", content: Vec::new() },
        File { name: "small", content: ramp(37, 1) },
        File { name: "one", content: ramp(CHUNK, 2) },
        File { name: "many", content: noise(CHUNK * 20 + 1, 3) },
        File { name: "ramp", content: ramp(CHUNK * 7, 4) },
        File { name: "last", content: noise(5, 5) },
    ]
}

/// A registry with one image of one layer, and a cache directory.
pub(crate) struct Lab {
    pub(crate) registry: Registry,
    pub(crate) layer: Layer,
    pub(crate) files: Vec<File>,
    temp: tempfile::TempDir,
}

impl Lab {
    pub(crate) async fn new(write: Writer) -> Self {
        Self::with(write, files()).await
    }

    pub(crate) async fn with(write: Writer, files: Vec<File>) -> Self {
        let registry = Registry::start().await;
        let lab = Self { registry, layer: write(&files, CHUNK), files, temp: tempfile::tempdir().unwrap() };
        lab.push(&lab.layer);
        lab
    }

    /// With an image of an empty layer, to be replaced.
    pub(crate) async fn empty() -> Self {
        Self::with(estargz, Vec::new()).await
    }

    /// Makes it the only layer of the image.
    pub(crate) fn push(&self, layer: &Layer) {
        self.registry.push("a", "1", OCI_MANIFEST, &manifest(&[layer]), &[&layer.blob]);
    }

    fn cache(&self) -> PathBuf {
        self.temp.path().join("cache")
    }

    pub(crate) fn options(&self) -> ImageOptions {
        image_options(&self.registry, self.cache())
    }

    pub(crate) async fn open(&self) -> Opened {
        open(&self.options()).await.unwrap()
    }

    /// Every file equals what was written.
    pub(crate) async fn assert_right(&self, opened: &Opened) {
        for file in &self.files {
            let read = opened.read(file.name, 0, u64::MAX).await.unwrap();
            assert!(read == file.content, "{} differs", file.name);
        }
    }

    pub(crate) fn content(&self, name: &str) -> &[u8] {
        &self.files.iter().find(|file| file.name == name).unwrap().content
    }

    /// Requests for the blob, and its bytes that were sent.
    pub(crate) fn sent(&self) -> (usize, u64) {
        let digest = self.layer.digest();
        (self.registry.requests_to(&digest.to_string()).len(), self.registry.sent(&digest))
    }
}

/// For the image that the registry has as `a:1`.
pub(crate) fn image_options(registry: &Registry, cache_dir: PathBuf) -> ImageOptions {
    ImageOptions {
        image: format!("{}/a:1", registry.host()).parse().unwrap(),
        platform: "linux/amd64".parse().unwrap(),
        auth_files: Vec::new(),
        places: crfs::registry::Places::default(),
        cache_dir,
        cache_size: None,
        io_deadline: Duration::from_secs(20),
        whole_layer_below: 0,
        insecure_unverified_toc: true,
        memory_limit: crfs::budget::DEFAULT_LIMIT,
        soci: Some(SociChoice::Annotated),
    }
}

pub(crate) struct Opened {
    pub(crate) image: OpenImage,
    view: Arc<View>,
    pub(crate) around: Arc<Readahead>,
}

pub(crate) async fn open(options: &ImageOptions) -> Result<Opened, Error> {
    open_within(options, Duration::from_millis(500)).await
}

/// Gives up a registry that gives no sign of life for `resolve_within`.
pub(crate) async fn open_within(options: &ImageOptions, resolve_within: Duration) -> Result<Opened, Error> {
    open_with(options, resolve_within, false).await
}

/// As a mount does it, which guesses what is read next.
pub(crate) async fn open_guessing(options: &ImageOptions) -> Result<Opened, Error> {
    open_with(options, Duration::from_millis(500), true).await
}

pub(crate) async fn open_with(
    options: &ImageOptions,
    resolve_within: Duration,
    guesses: bool,
) -> Result<Opened, Error> {
    within(async {
        let engine = Arc::new(Engine::new(options, resolve_within)?);
        let report: Report = Arc::new(|_: &Event| Ok(()));
        let image = engine.open(engine.resolve(&report).await?, 0, &report).await?;
        let (image, view, around) =
            tokio::task::spawn_blocking(move || image.view(None, guesses).map(|(view, around)| (image, view, around)))
                .await
                .unwrap()?;
        Ok(Opened { image, view: Arc::new(view), around })
    })
    .await
}

impl Opened {
    pub(crate) async fn read(&self, name: &str, offset: u64, len: u64) -> Result<Bytes, ReadError> {
        let ino = self.view.resolve(name.as_bytes(), LastSymlink::Keep).unwrap();
        within(self.view.read(ino, offset, len)).await
    }

    /// What is in a directory.
    pub(crate) fn names(&self, dir: &str) -> Vec<&str> {
        let ino = self.view.resolve(dir.as_bytes(), LastSymlink::Keep).unwrap();
        self.view.tree().children(ino, 0).map(|(name, _)| std::str::from_utf8(name).unwrap()).collect()
    }
}

#[tokio::test]
async fn every_format_gives_every_byte_once_and_then_from_the_cache() {
    for (format, write) in FORMATS {
        let lab = Lab::new(write).await;
        let opened = lab.open().await;
        lab.assert_right(&opened).await;
        let (requests, sent) = lab.sent();
        // The tail, read to find the TOC, may have been of the payload too.
        assert!(sent <= lab.layer.blob.len() as u64 + (16 << 10), "{format}: {sent} bytes were sent");
        lab.assert_right(&opened).await;
        assert_eq!(lab.sent(), (requests, sent), "{format}: the second time from the cache");
        let stats = opened.image.layers[0].contents.stats();
        assert_eq!((stats.fetched, stats.requests), (sent, requests as u64), "{format}");
        assert_eq!(stats.served, 2 * lab.files.iter().map(|file| file.content.len() as u64).sum::<u64>());
    }
}

#[tokio::test]
async fn a_layer_that_the_manifest_names_again_is_opened_once() {
    for (format, write) in FORMATS {
        let lab = Lab::new(write).await;
        lab.open().await;
        let once = lab.sent();
        let temp = tempfile::tempdir().unwrap();
        let other = estargz(&[File { name: "other", content: ramp(9, 9) }], CHUNK);
        let layers = [&lab.layer, &other, &lab.layer, &lab.layer];
        lab.registry.push("a", "1", OCI_MANIFEST, &manifest(&layers), &[&lab.layer.blob, &other.blob]);
        let before = lab.sent();
        let opened = open(&image_options(&lab.registry, temp.path().to_owned())).await.unwrap();
        assert_eq!((lab.sent().0 - before.0, lab.sent().1 - before.1), once, "{format}");
        assert_eq!(
            opened.image.layers.iter().map(|layer| layer.layer.digest).collect::<Vec<_>>(),
            layers.map(Layer::digest)
        );
        assert_eq!(opened.read("other", 0, 9).await.unwrap(), ramp(9, 9));
        lab.assert_right(&opened).await;
    }
}

#[tokio::test]
async fn parts_of_files_are_right_wherever_they_start_and_end() {
    for (format, write) in FORMATS {
        let lab = Lab::new(write).await;
        let opened = lab.open().await;
        let content = lab.content("many");
        for (offset, len) in [(CHUNK * 5 - 1, 2), (CHUNK * 3, CHUNK), (CHUNK * 20, 1), (7, CHUNK * 4), (0, 1)] {
            let read = opened.read("many", offset as u64, len as u64).await.unwrap();
            assert!(read == content[offset..offset + len], "{format}: {len} bytes at {offset}");
        }
    }
}

#[tokio::test]
async fn opening_costs_one_request_with_a_position_and_at_most_two_without() {
    for (write, limit) in [(zstd_chunked as Writer, 1), (estargz, 2), (stargz, 2)] {
        let lab = Lab::new(write).await;
        lab.open().await;
        let (requests, sent) = lab.sent();
        assert!(requests <= limit && requests > 0, "{requests} requests");
        assert!(sent < lab.layer.blob.len() as u64 / 2, "{sent} bytes");
    }
}

#[tokio::test]
async fn a_small_layer_is_read_whole_in_one_request_and_then_never_asked_for() {
    for (format, write) in FORMATS {
        let lab = Lab::new(write).await;
        let mut options = lab.options();
        options.whole_layer_below = lab.layer.blob.len() as u64 + 1;
        options.insecure_unverified_toc = false;
        let opened = open(&options).await.unwrap();
        lab.assert_right(&opened).await;
        assert_eq!(lab.sent(), (1, lab.layer.blob.len() as u64), "{format}");
    }
}

#[tokio::test]
async fn many_readers_of_one_cold_file_send_no_byte_twice() {
    for (format, write) in FORMATS {
        let lab = Lab::new(write).await;
        let opened = Arc::new(lab.open().await);
        let (_, before) = lab.sent();
        let readers: Vec<_> = (0..64u64)
            .map(|reader| {
                let opened = Arc::clone(&opened);
                // Half of them from the start, the others each from somewhere else.
                let offset = (reader % 2) * reader * 3001;
                tokio::spawn(async move { (offset, opened.read("many", offset, u64::MAX).await.unwrap()) })
            })
            .collect();
        for reader in readers {
            let (offset, read) = within(reader).await.unwrap();
            assert!(read == lab.content("many")[offset as usize..], "{format}");
        }
        let sent = lab.sent().1 - before;
        assert!(sent <= lab.layer.blob.len() as u64, "{format}: {sent} of {} bytes", lab.layer.blob.len());
    }
}

#[tokio::test]
async fn a_reader_that_gives_up_does_not_stop_its_fetch() {
    let lab = Lab::new(estargz).await;
    let opened = lab.open().await;
    let ino = opened.view.resolve(b"many", LastSymlink::Keep).unwrap();
    let (_, before) = lab.sent();
    let read = opened.view.read(ino, 0, u64::MAX);
    // Polled until its request is on its way, then dropped.
    tokio::select! { _ = read => {}, () = until(|| lab.sent().1 > before) => {} }
    assert!(opened.read("many", 0, u64::MAX).await.unwrap() == lab.content("many"));
    assert!(lab.sent().1 - before <= lab.layer.blob.len() as u64);
}

#[tokio::test]
async fn wrong_bytes_are_fetched_once_more_and_never_served() {
    for (format, write) in FORMATS {
        let lab = Lab::new(write).await;
        let opened = lab.open().await;
        lab.registry.fault(Fault::times(1, On::Blobs, Lie::WrongBytes));
        assert!(opened.read("many", 0, u64::MAX).await.unwrap() == lab.content("many"), "{format}: wrong once");

        lab.registry.fault(Fault::always(On::Blobs, Lie::WrongBytes));
        let (before, _) = lab.sent();
        let error = opened.read("ramp", 0, 10).await.unwrap_err();
        let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
        assert!(text.contains("do not decode") && text.contains(&lab.layer.digest().to_string()), "{text}");
        assert_eq!(lab.sent().0, before + 2, "{format}: once, and once past caches");
        let asked = lab.registry.requests_to(&lab.layer.digest().to_string());
        assert_eq!(asked.last().unwrap().header("cache-control"), Some("no-cache"));

        lab.registry.clear_faults();
        lab.assert_right(&opened).await;
    }
}

#[tokio::test]
async fn a_cache_on_the_way_that_is_wrong_is_passed_by() {
    let lab = Lab::new(zstd_chunked).await;
    let opened = lab.open().await;
    lab.registry.fault(Fault::always(On::Blobs, Lie::WrongBytesInCaches));
    lab.assert_right(&opened).await;
}

#[tokio::test]
async fn a_toc_that_is_wrong_in_a_cache_on_the_way_is_read_past_it() {
    for (write, whole) in [(zstd_chunked as Writer, 0), (estargz, 0), (zstd_chunked, u64::MAX), (stargz, u64::MAX)] {
        let lab = Lab::new(write).await;
        let options = ImageOptions { whole_layer_below: whole, insecure_unverified_toc: false, ..lab.options() };
        lab.registry.fault(Fault::always(On::Blobs, Lie::WrongBytesInCaches));
        lab.assert_right(&open(&options).await.unwrap()).await;
        lab.registry.clear_faults();
        lab.registry.fault(Fault::always(On::Blobs, Lie::WrongBytes));
        std::fs::remove_dir_all(lab.cache()).unwrap();
        assert!(open(&options).await.is_err(), "wrong everywhere");
    }
}

#[tokio::test]
async fn what_is_cached_needs_no_registry_and_the_rest_comes_back_with_it() {
    for (format, write) in FORMATS {
        let lab = Lab::new(write).await;
        let mut options = lab.options();
        options.whole_layer_below = if format == "stargz" { u64::MAX } else { 0 };
        options.io_deadline = Duration::from_millis(500);
        let opened = open(&options).await.unwrap();
        opened.read("many", 0, u64::MAX).await.unwrap();
        lab.registry.go_down().await;
        let again = open(&options).await.unwrap();
        assert!(again.read("many", 3, u64::MAX).await.unwrap() == lab.content("many")[3..], "{format}");
        assert!(again.read("ramp", 0, 1).await.is_err(), "{format}: not cached");
        lab.registry.come_up();
        // A failure answers the kernel's second try for a moment.
        within(async { while again.read("ramp", 0, 1).await.is_err() {} }).await;
        lab.assert_right(&again).await;
    }
}

#[tokio::test]
async fn resets_and_cuts_on_the_way_are_not_seen() {
    let lab = Lab::new(estargz).await;
    let opened = lab.open().await;
    for at in [0, 1, 4095, 50_000] {
        lab.registry.fault(Fault::times(1, On::Blobs, Lie::Reset(at)));
        lab.registry.fault(Fault::times(1, On::Blobs, Lie::Cut(at)));
    }
    lab.assert_right(&opened).await;
}

/// All files below a directory.
pub(crate) fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found
}

#[tokio::test]
async fn whatever_is_flipped_cut_or_replaced_in_the_cache_is_noticed() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 5] = [
        ("flipped", |path| {
            let mut bytes = std::fs::read(path).unwrap();
            for at in (0..bytes.len()).step_by(997) {
                bytes[at] ^= 0x10;
            }
            std::fs::write(path, bytes).unwrap();
        }),
        ("truncated", |path| {
            let len = std::fs::metadata(path).unwrap().len();
            std::fs::File::options().write(true).open(path).unwrap().set_len(len / 2).unwrap();
        }),
        ("emptied", |path| std::fs::write(path, b"").unwrap()),
        ("a symlink", |path| {
            std::fs::remove_file(path).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", path).unwrap();
        }),
        ("a directory", |path| {
            std::fs::remove_file(path).unwrap();
            std::fs::create_dir(path).unwrap();
        }),
    ];
    let passwd = std::fs::read("/etc/passwd").unwrap();
    for (what, damage) in damages {
        let lab = Lab::new(estargz).await;
        lab.assert_right(&lab.open().await).await;
        let files = walk(&lab.cache());
        assert_eq!(files.len(), 7, "manifest, name, index, data, presence, space, whose it is: {files:?}");
        for path in files {
            damage(&path);
            lab.assert_right(&lab.open().await).await;
            assert_eq!(std::fs::read("/etc/passwd").unwrap(), passwd, "{what}: {}", path.display());
        }
        // All of it was mended on the way.
        lab.registry.go_down().await;
        lab.assert_right(&lab.open().await).await;
    }
}

#[tokio::test]
async fn an_index_that_is_damaged_in_use_is_made_again() {
    let name = |number: usize| -> &'static str { format!("f{number}").leak() };
    let files: Vec<_> = (0..20_000).map(|number| File { name: name(number), content: ramp(9, number) }).collect();
    let lab = Lab::with(zstd_chunked, files).await;
    let opened = lab.open().await;
    let index = walk(&lab.cache()).into_iter().find(|path| path.ends_with("index")).unwrap();
    let mut bytes = std::fs::read(&index).unwrap();
    let tables = bytes.len() / 2;
    bytes[tables..].iter_mut().for_each(|byte| *byte = !*byte);
    // In place: the mount has the file open.
    std::fs::write(&index, bytes).unwrap();
    for file in lab.files.iter().step_by(997) {
        assert!(opened.read(file.name, 0, u64::MAX).await.unwrap() == file.content, "{}", file.name);
    }
    assert_eq!(opened.image.layers[0].contents.stats().errors, 0);
    lab.registry.go_down().await;
    assert_eq!(open(&lab.options()).await.unwrap().read(name(0), 0, 9).await.unwrap(), lab.files[0].content);
}

/// A manifest that names a blob of another image, and a place in it where a file of that image has the bytes of a table of contents.
#[tokio::test]
async fn one_image_cannot_bring_an_index_for_the_blob_of_another() {
    let toc = br#"{"version":1,"entries":[{"name":"evil","type":"symlink","linkName":"/bin/sh"}]}"#;
    let stored = zstd::encode_all(&toc[..], 1).unwrap();
    let lab = Lab::with(zstd_chunked, vec![File { name: "file", content: stored.clone() }]).await;
    let mut layer = lab.layer.clone();
    let at = layer.blob.windows(stored.len()).position(|part| part == stored).expect("zstd keeps it as it is");
    layer.annotations.retain(|name, _| name.ends_with("position"));
    let position = format!("{at}:{}:{}:1", stored.len(), toc.len());
    layer.annotations.values_mut().for_each(|value| value.clone_from(&position));
    lab.registry.push("evil", "1", OCI_MANIFEST, &manifest(&[&layer]), &[&layer.blob]);
    layer.annotations.clear();
    lab.push(&layer);

    let honest = ImageOptions { whole_layer_below: u64::MAX, insecure_unverified_toc: false, ..lab.options() };
    let image = format!("{}/evil:1", lab.registry.host()).parse().unwrap();
    let evil = ImageOptions { image, insecure_unverified_toc: true, ..honest.clone() };
    let insecure = ImageOptions { whole_layer_below: 0, ..evil.clone() };
    let shown = open(&insecure).await.unwrap();
    assert!(shown.view.resolve(b"evil", LastSymlink::Keep).is_ok(), "it is a table of contents");
    for options in [&evil, &honest] {
        lab.assert_right(&open(options).await.unwrap()).await;
    }
}

#[tokio::test]
async fn a_bad_chunk_does_not_make_prefetch_fail_readers_of_good_ones() {
    let lab = Lab::new(zstd_chunked).await;
    let mut layer = lab.layer.clone();
    // In the middle of "many", which is most of the blob.
    let middle = layer.blob.len() / 2;
    layer.blob[middle] ^= 1;
    lab.push(&layer);
    let opened = Arc::new(lab.open().await);
    let contents = Arc::clone(&opened.image.layers[0].contents);
    let prefetch = tokio::spawn(crfs::fetch::prefetch(vec![contents], crfs::fetch::Prefetch::All));
    let readers = lab.files.iter().filter(|file| file.name != "many").map(|file| file.name);
    for name in readers.flat_map(|name| [name; 10]) {
        assert!(opened.read(name, 0, u64::MAX).await.unwrap() == lab.content(name), "{name}");
    }
    assert!(opened.read("many", 0, u64::MAX).await.is_err());
    prefetch.abort();
}

/// The clock is a paused one, which goes on by itself while everybody sleeps.
#[tokio::test]
async fn prefetch_outlasts_a_registry_that_is_down_for_an_hour() {
    let lab = Lab::new(zstd_chunked).await;
    let opened = lab.open().await;
    lab.registry.go_down().await;
    let contents = Arc::clone(&opened.image.layers[0].contents);
    let prefetch = tokio::spawn(crfs::fetch::prefetch(vec![contents], crfs::fetch::Prefetch::All));
    tokio::time::pause();
    hours(1).await;
    assert!(!prefetch.is_finished());
    lab.registry.come_up();
    until_later(|| prefetch.is_finished()).await;
    prefetch.await.unwrap();
    tokio::time::resume();
    lab.registry.go_down().await;
    lab.assert_right(&opened).await;
}

/// The clock is a paused one, which goes on by itself while everybody sleeps.
#[tokio::test]
async fn prefetch_comes_back_to_what_was_bad() {
    let lab = Lab::new(zstd_chunked).await;
    let opened = lab.open().await;
    lab.registry.fault(Fault::always(On::Blobs, Lie::WrongBytes));
    let contents = Arc::clone(&opened.image.layers[0].contents);
    let prefetch = tokio::spawn(crfs::fetch::prefetch(vec![contents], crfs::fetch::Prefetch::All));
    tokio::time::pause();
    hours(24).await;
    let (_, sent) = lab.sent();
    assert!(sent < 100 * lab.layer.blob.len() as u64, "what is bad for a day is not asked for all day: {sent}");
    assert!(!prefetch.is_finished());
    lab.registry.clear_faults();
    until_later(|| prefetch.is_finished()).await;
    prefetch.await.unwrap();
    tokio::time::resume();
    lab.registry.go_down().await;
    lab.assert_right(&opened).await;
}

/// A warm cache, a new mount, and many who read at once: each check is verified once, and nobody waits for ever.
#[tokio::test(flavor = "multi_thread")]
async fn many_readers_of_a_warm_cache_all_get_through() {
    let lab = Lab::new(zstd_chunked).await;
    lab.assert_right(&lab.open().await).await;
    lab.registry.go_down().await;
    let opened = Arc::new(lab.open().await);
    let readers: Vec<_> = (0..300u64)
        .map(|reader| {
            let opened = Arc::clone(&opened);
            tokio::spawn(async move { opened.read("many", reader * 601, u64::MAX).await.unwrap().len() as u64 })
        })
        .collect();
    let size = lab.content("many").len() as u64;
    for (reader, read) in (0..).zip(readers) {
        assert_eq!(within(read).await.unwrap(), size - reader * 601);
    }
}

#[tokio::test]
async fn without_a_cache_everything_can_be_read_all_the_same() {
    for (_, write) in FORMATS {
        let lab = Lab::new(write).await;
        let options = ImageOptions { cache_dir: "/proc/nowhere".into(), ..lab.options() };
        let opened = open(&options).await.unwrap();
        lab.assert_right(&opened).await;
        for offset in 0..20 {
            let read = opened.read("many", offset * 10_001, 5).await.unwrap();
            assert!(read == lab.content("many")[offset as usize * 10_001..][..5]);
        }
    }
}

#[tokio::test]
async fn what_was_read_although_nothing_vouches_for_it_stays_out_of_the_cache() {
    let lab = Lab::new(stargz).await;
    lab.assert_right(&lab.open().await).await;
    assert!(!lab.cache().join(LAYOUT).join("layers").exists(), "{:?}", walk(&lab.cache()));
}

/// Without that option the blob itself vouches for it, which takes all of it, once.
#[tokio::test]
async fn a_toc_that_nothing_vouches_for_counts_when_the_whole_blob_was_right() {
    let lab = Lab::new(stargz).await;
    let strict = ImageOptions { insecure_unverified_toc: false, ..lab.options() };
    let opened = open(&strict).await.unwrap();
    let (_, sent) = lab.sent();
    assert!(sent < lab.layer.blob.len() as u64 + (1 << 20), "the tail and the blob, not {sent} bytes");
    lab.assert_right(&opened).await;
    assert_eq!(lab.sent().1, sent, "the blob is kept while it is mounted");
    drop(opened);

    let again = open(&strict).await.unwrap();
    assert_eq!(lab.sent().1, sent, "its index is kept");
    lab.assert_right(&again).await;

    let mut wrong = lab.layer.blob.clone();
    wrong[CHUNK] ^= 1;
    lab.registry.replace_blob(&lab.layer.digest(), &wrong);
    std::fs::remove_dir_all(lab.cache()).unwrap();
    let text = open(&strict).await.err().unwrap().chain();
    assert!(text.contains("wrong bytes") && text.contains(&lab.layer.digest().to_string()), "{text}");
    assert!(!lab.cache().join(LAYOUT).join("layers").exists(), "{:?}", walk(&lab.cache()));
}

#[tokio::test]
async fn a_toc_whose_digest_is_wrong_counts_only_where_the_blob_vouches_for_it() {
    for (format, write) in [FORMATS[0], FORMATS[1]] {
        let lab = Lab::new(write).await;
        let mut layer = lab.layer.clone();
        let wrong = crfs::blob::Digest::of(b"another").to_string();
        for (name, value) in &mut layer.annotations {
            if name.ends_with("digest") || name.ends_with("checksum") {
                value.clone_from(&wrong);
            }
        }
        lab.push(&layer);
        let opened = lab.open().await;
        let open = &opened.image.layers[0];
        assert_eq!((open.trust, open.identity), (Trust::Blob, Some(Identity::Own)), "{format}");
        lab.assert_right(&opened).await;
    }
}
