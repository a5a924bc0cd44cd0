//! Layers that are served by zTOCs: what is seen by them, who else sees that, and what happens when they are wrong.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use crfs::blob::Digest;
use crfs::cache::{LAYOUT, clear};
use crfs::image::options::ImageOptions;
use crfs::index::Trust;
use crfs::registry::SociChoice;
use serde_json::{Value, json};

use crate::contents::{Opened, image_options, open, walk};
use crate::image::{File, config, manifest_with, noise, plain, ramp};
use crate::registry::{Fault, Lasting, Lie, OCI_INDEX, OCI_MANIFEST, On, Registry};
use crate::ztoc::{Told, WRITERS, Writer};

/// Bytes of the tar in a span.
const SPAN: usize = 64 << 10;

/// Of the size of each other are `good` and `evil`; of `twice` a span refers back to the one before.
fn files(seed: u64) -> Vec<File> {
    vec![
        File { name: "empty", content: Vec::new() },
        File { name: "good", content: noise(30_000, seed) },
        File { name: "evil", content: noise(30_000, seed + 10) },
        File { name: "twice", content: noise(20_000, seed + 20).repeat(12) },
        File { name: "ramp", content: ramp(3 * SPAN, 4) },
        File { name: "last", content: noise(5, seed + 30) },
    ]
}

/// A registry, a layer in it, and a cache directory.
struct Lab {
    registry: Registry,
    files: Vec<File>,
    told: Told,
    temp: tempfile::TempDir,
}

impl Lab {
    async fn new(write: Writer) -> Self {
        Self::of(write, 1).await
    }

    /// With contents of its own.
    async fn of(write: Writer, seed: u64) -> Self {
        let files = files(seed);
        let told = write(&files, SPAN);
        Self { registry: Registry::start().await, files, told, temp: tempfile::tempdir().unwrap() }
    }

    fn layer(&self) -> Digest {
        Digest::of(&self.told.blob)
    }

    /// Pushes an image of the layer. Gives its digest.
    fn push(&self, name: &str, annotations: &Value) -> Digest {
        let config = config(&[Digest::of(&self.told.tar)]);
        let layer = plain(self.told.blob.clone());
        let mut manifest: Value = serde_json::from_slice(&manifest_with(&config, &[&layer])).unwrap();
        manifest["annotations"] = annotations.clone();
        self.registry.push(name, "1", OCI_MANIFEST, manifest.to_string().as_bytes(), &[&layer.blob, &config])
    }

    /// Pushes a SOCI index of a zTOC. Gives its descriptor.
    fn push_index(&self, name: &str, version: u32, subject: Option<Digest>, ztoc: &[u8]) -> Value {
        self.push_index_of(name, version, subject, (Digest::of(ztoc), ztoc.len()), ztoc)
    }

    /// The same with a zTOC that is another than it says.
    fn push_index_of(
        &self,
        name: &str,
        version: u32,
        subject: Option<Digest>,
        (digest, size): (Digest, usize),
        ztoc: &[u8],
    ) -> Value {
        let config = json!({"mediaType": format!("application/vnd.amazon.soci.index.v{version}+json"),
            "digest": Digest::of(b"{}").to_string(), "size": 2});
        let layer = json!({"mediaType": "application/octet-stream", "digest": digest.to_string(), "size": size,
            "annotations": {"com.amazon.soci.image-layer-digest": self.layer().to_string()}});
        let mut index = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]});
        if let Some(subject) = subject {
            index["subject"] = json!({"mediaType": OCI_MANIFEST, "digest": subject.to_string(), "size": 1});
        }
        let index = index.to_string().into_bytes();
        let tag = Digest::of(&index).hex();
        let digest = self.registry.push(name, &tag, OCI_MANIFEST, &index, &[b"{}"]);
        self.registry.replace_blob(&Digest::of(ztoc), ztoc);
        json!({"mediaType": OCI_MANIFEST, "digest": digest.to_string(), "size": index.len(),
            "artifactType": "application/vnd.amazon.soci.index.v1+json"})
    }

    /// An image whose manifest names a SOCI index of this zTOC, whose digest it gives.
    fn push_annotated(&self, name: &str, told: &Told) -> Digest {
        let ztoc = told.ztoc();
        let index = self.push_index(name, 2, None, &ztoc);
        self.push(name, &json!({"com.amazon.soci.index-digest": index["digest"]}));
        Digest::of(&ztoc)
    }

    fn cache(&self) -> PathBuf {
        self.temp.path().join("cache")
    }

    fn options(&self, name: &str) -> ImageOptions {
        let image = format!("{}/{name}:1", self.registry.host()).parse().unwrap();
        ImageOptions { image, insecure_unverified_toc: false, ..image_options(&self.registry, self.cache()) }
    }

    async fn open(&self, name: &str) -> Opened {
        open(&self.options(name)).await.unwrap()
    }

    async fn read(&self, opened: &Opened, name: &str) -> Vec<u8> {
        opened.read(name, 0, u64::MAX).await.unwrap().to_vec()
    }

    fn content(&self, name: &str) -> &[u8] {
        &self.files.iter().find(|file| file.name == name).unwrap().content
    }

    async fn assert_right(&self, opened: &Opened) {
        for file in &self.files {
            assert!(self.read(opened, file.name).await == file.content, "{} differs", file.name);
        }
    }

    /// By which keys there is anything of the layer in the cache.
    fn keys(&self) -> Vec<String> {
        let layer = self.cache().join(LAYOUT).join("layers").join(self.layer().hex());
        let files = if layer.exists() { walk(&layer) } else { Vec::new() };
        let key =
            |path: PathBuf| path.strip_prefix(&layer).unwrap().iter().next().unwrap().to_str().unwrap().to_owned();
        let keys: std::collections::BTreeSet<_> = files.into_iter().map(key).collect();
        keys.into_iter().collect()
    }

    /// Requests for the blob.
    fn asked(&self) -> usize {
        self.registry.requests_to(&self.layer().to_string()).len()
    }
}

fn trust(opened: &Opened) -> Trust {
    opened.image.layers[0].trust
}

fn key(ztoc: Digest) -> String {
    format!("ztoc-{}", ztoc.hex())
}

#[tokio::test]
async fn a_layer_with_a_ztoc_is_lazy_from_the_start() {
    for (what, write) in WRITERS {
        let lab = Lab::new(write).await;
        let ztoc = lab.push_annotated("a", &lab.told);
        let opened = lab.open("a").await;
        assert_eq!((trust(&opened), lab.asked()), (Trust::Soci, 0), "{what}: only the zTOC was read");
        assert_eq!(opened.read("last", 0, 9).await.unwrap(), lab.content("last"));
        let ranges = lab.told.ranges();
        let longest = ranges.iter().map(|range| range.len()).max().unwrap();
        let sent = lab.registry.sent(&lab.layer());
        assert!(sent <= 2 * longest as u64, "{what}: {sent} bytes for a small file");
        lab.assert_right(&opened).await;
        let twice = lab.content("twice");
        for (offset, len) in [(0, 1), (19_999, 2), (SPAN - 5, 10), (twice.len() - 1, 1)] {
            let read = opened.read("twice", offset as u64, len as u64).await.unwrap();
            assert!(read == twice[offset..offset + len], "{what}: {len} bytes at {offset}");
        }
        drop(opened);

        let requests = lab.registry.requests().len();
        let opened = lab.open("a").await;
        lab.assert_right(&opened).await;
        assert_eq!(trust(&opened), Trust::Soci);
        // The tag is asked for each time.
        assert!(lab.registry.requests().len() <= requests + 1, "{what}: index and contents are cached");
        drop(opened);
        assert_eq!(lab.keys(), [key(ztoc)]);
        lab.registry.go_down().await;
        lab.assert_right(&lab.open("a").await).await;
        lab.registry.come_up();

        clear(&lab.cache(), true).unwrap();
        let opened = lab.open("a").await;
        assert_eq!(lab.registry.requests_to(&ztoc.to_string()).len(), 1, "{what}: the index is still there");
        lab.assert_right(&opened).await;
    }
}

#[tokio::test]
async fn large_spans_are_no_reason_to_read_a_layer_whole() {
    for (what, write) in WRITERS {
        let files =
            vec![File { name: "huge", content: noise(18 << 20, 1) }, File { name: "last", content: ramp(10, 2) }];
        let told = write(&files, 17 << 20);
        let lab = Lab { files, told, ..Lab::new(write).await };
        lab.push_annotated("a", &lab.told);
        for mount in ["first", "second"] {
            let opened = lab.open("a").await;
            assert_eq!((trust(&opened), lab.asked()), (Trust::Soci, 0), "{what}: the {mount} mount");
        }
        lab.assert_right(&lab.open("a").await).await;
    }
}

/// zTOCs that say another thing than the layer, and a file that they show wrong.
fn lies(told: &Told) -> Vec<(Told, &'static str)> {
    let mut exchanged = told.clone();
    exchanged.exchange("good", "evil");
    let mut elsewhere = told.clone();
    elsewhere.files.iter_mut().filter(|file| file.0 == "ramp").for_each(|file| file.1 += 512);
    let mut lies = vec![(exchanged, "good"), (elsewhere, "ramp")];
    if !told.windows.is_empty() {
        let mut window = told.clone();
        window.windows.iter_mut().flatten().for_each(|byte| *byte ^= 1);
        lies.push((window, "twice"));
    }
    lies
}

#[tokio::test]
async fn what_a_lying_ztoc_shows_is_seen_by_nobody_else() {
    for (what, write) in WRITERS {
        let honest = write(&files(1), SPAN);
        for (lie, wrong) in lies(&honest) {
            let lab = Lab::new(write).await;
            let (evil, good) = (lab.push_annotated("lying", &lie), lab.push_annotated("honest", &lab.told));
            lab.push("plain", &json!({}));
            assert_ne!(evil, good);

            let opened = lab.open("lying").await;
            for file in &lab.files {
                let _either = opened.read(file.name, 0, u64::MAX).await;
            }
            // Nothing can tell: who names the zTOC is told what it says.
            assert!(lab.read(&opened, wrong).await != lab.content(wrong), "{what}: {wrong} is no lie");
            assert_eq!(lab.keys(), [key(evil)], "{what}");

            let others = lab.open("honest").await;
            assert_eq!(trust(&others), Trust::Soci);
            lab.assert_right(&others).await;
            let mut both = [key(evil), key(good)];
            both.sort();
            assert_eq!(lab.keys(), both, "{what}");

            let plain = lab.open("plain").await;
            assert_eq!(trust(&plain), Trust::Blob, "{what}");
            lab.assert_right(&plain).await;
            let never = ImageOptions { soci: None, ..lab.options("lying") };
            lab.assert_right(&open(&never).await.unwrap()).await;

            // A mount stays what it is; the next one has the layer's own index.
            assert!(lab.read(&opened, wrong).await != lab.content(wrong));
            let again = lab.open("lying").await;
            assert_eq!(trust(&again), Trust::Blob, "{what}");
            lab.assert_right(&again).await;
        }
    }
}

#[tokio::test]
async fn an_index_of_our_own_takes_the_place_of_a_lying_ztoc() {
    for (what, write) in WRITERS {
        let lab = Lab::new(write).await;
        let (lie, wrong) = lies(&lab.told).remove(0);
        let ztoc = lab.push_annotated("a", &lie);
        let opened = lab.open("a").await;
        assert!(lab.read(&opened, wrong).await != lab.content(wrong));
        drop(opened);

        let options = lab.options("a");
        let report = Arc::new(|_: &crfs::image::Event| Ok(())) as crfs::image::Report;
        let index = move || crfs::image::indexes::index(&options, None, &report);
        let indexed = tokio::task::spawn_blocking(index).await.unwrap().unwrap();
        assert!(indexed.layers[0].index_size.is_some(), "{what}: {indexed:?}");
        assert_eq!(lab.keys(), ["own".to_owned(), key(ztoc)]);

        let asked = lab.asked();
        let opened = lab.open("a").await;
        assert_eq!(trust(&opened), Trust::Blob, "{what}");
        lab.assert_right(&opened).await;
        assert_eq!(lab.asked(), asked, "{what}: it was kept when it was indexed");
    }
}

#[tokio::test]
async fn wrong_bytes_of_a_span_are_fetched_once_more_and_never_kept() {
    for (what, write) in WRITERS {
        let lab = Lab::new(write).await;
        lab.push_annotated("a", &lab.told);
        let of_layer = |lasting, lie| Fault::new(On::Blobs, lasting, lie).about(&lab.layer().to_string());
        // What is unpacked may be right where the last byte is not.
        for lie in [Lie::WrongBytes, Lie::LastByte] {
            let opened = lab.open("a").await;
            lab.registry.fault(of_layer(Lasting::Always, lie.clone()));
            for file in lab.files.iter().filter(|file| !file.content.is_empty()) {
                let asked = lab.asked();
                let error = opened.read(file.name, 0, 1).await.expect_err(file.name);
                let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
                assert!(text.contains(&lab.layer().to_string()), "{text}");
                let requests = lab.registry.requests_to(&lab.layer().to_string());
                assert!(requests.len() <= asked + 2, "{what}, {}: {} requests", file.name, requests.len() - asked);
                assert_eq!(requests.last().unwrap().header("cache-control"), Some("no-cache"));
            }
            drop(opened);
            lab.registry.clear_faults();
            lab.registry.go_down().await;
            let impatient = ImageOptions { io_deadline: Duration::from_millis(100), ..lab.options("a") };
            let opened = open(&impatient).await.unwrap();
            for file in lab.files.iter().filter(|file| !file.content.is_empty()) {
                assert!(opened.read(file.name, 0, 1).await.is_err(), "{what}: {} was kept", file.name);
            }
            lab.registry.come_up();
        }
        for lasting in [Lasting::Times(1), Lasting::UntilNoCache] {
            let opened = lab.open("a").await;
            lab.registry.fault(of_layer(lasting, Lie::WrongBytes));
            lab.assert_right(&opened).await;
            lab.registry.clear_faults();
            drop(opened);
            std::fs::remove_dir_all(lab.cache()).unwrap();
        }
    }
}

#[tokio::test]
async fn damage_to_what_is_cached_by_a_ztoc_is_noticed_by_the_next_process() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, &str, Damage); 6] = [
        ("data", "flipped", |bytes| bytes.iter_mut().step_by(1000).for_each(|byte| *byte ^= 1)),
        ("data", "one bit", |bytes| bytes[5000] ^= 0x10),
        ("data", "cut", |bytes| bytes.truncate(10_000)),
        ("sums", "flipped", |bytes| bytes.iter_mut().step_by(32).for_each(|byte| *byte ^= 1)),
        ("sums", "zeros", |bytes| bytes.fill(0)),
        ("sums", "empty", Vec::clear),
    ];
    for (_, write) in WRITERS {
        let lab = Lab::new(write).await;
        let ztoc = lab.push_annotated("a", &lab.told);
        let dir = lab.cache().join(LAYOUT).join("layers").join(lab.layer().hex()).join(key(ztoc));
        lab.assert_right(&lab.open("a").await).await;
        for (name, what, damage) in damages {
            let mut bytes = std::fs::read(dir.join(name)).unwrap();
            damage(&mut bytes);
            std::fs::write(dir.join(name), bytes).unwrap();
            let asked = lab.asked();
            lab.assert_right(&lab.open("a").await).await;
            assert!(lab.asked() > asked, "{name} {what}: nothing was fetched again");
            lab.registry.go_down().await;
            lab.assert_right(&lab.open("a").await).await;
            lab.registry.come_up();
        }
        for name in ["sums", "index"] {
            std::fs::remove_file(dir.join(name)).unwrap();
            lab.assert_right(&lab.open("a").await).await;
        }
        assert_eq!(lab.keys(), [key(ztoc)]);
    }
}

/// All warnings of this process.
fn warnings() -> String {
    static TEXT: OnceLock<Arc<Mutex<Vec<u8>>>> = OnceLock::new();
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let text = TEXT.get_or_init(|| {
        let text = Arc::<Mutex<Vec<u8>>>::default();
        let sink = Arc::clone(&text);
        let warnings = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_ansi(false);
        warnings.with_writer(move || Sink(Arc::clone(&sink))).try_init().unwrap();
        text
    });
    String::from_utf8(text.lock().unwrap().clone()).unwrap()
}

/// What is wrong, the zTOC's digest and size by the index, and its bytes, if it is there.
type Row<'a> = (&'a str, (Digest, usize), Option<&'a [u8]>);

#[tokio::test]
async fn a_ztoc_that_cannot_be_used_is_as_none() {
    warnings();
    for (seed, (what, write)) in (100..).zip(WRITERS) {
        let lab = Lab::of(write, seed).await;
        let ztoc = lab.told.ztoc();
        let of = |bytes: &[u8]| (Digest::of(bytes), bytes.len());
        let other = write(&files(seed + 1000)[..3], SPAN).ztoc();
        let mut sparse = lab.told.clone();
        sparse.files[1].1 = 1 << 40;
        let (sparse, cut) = (sparse.ztoc(), &ztoc[..ztoc.len() / 2]);
        let mut flipped = ztoc.clone();
        flipped[ztoc.len() / 2] ^= 1;
        // What the SOCI index says, and what the registry has.
        let rows: [Row<'_>; 7] = [
            ("missing", of(b"missing"), None),
            ("wrong bytes", of(&ztoc), Some(&flipped)),
            ("another size", (Digest::of(&ztoc), ztoc.len() - 1), Some(&ztoc)),
            ("of another layer", of(&other), Some(&other)),
            ("contents behind the end", of(&sparse), Some(&sparse)),
            ("cut", of(cut), Some(cut)),
            ("huge", (Digest::of(b"huge"), 1 << 40), None),
        ];
        for (why, named, bytes) in rows {
            let index = lab.push_index_of("a", 2, None, named, bytes.unwrap_or_default());
            bytes.iter().for_each(|bytes| lab.registry.replace_blob(&named.0, bytes));
            lab.push("a", &json!({"com.amazon.soci.index-digest": index["digest"]}));
            let before = warnings().len();
            let opened = lab.open("a").await;
            assert_eq!(trust(&opened), Trust::Blob, "{what}, {why}");
            lab.assert_right(&opened).await;
            let warned = warnings().split_off(before);
            let of_layer = |line: &str| line.contains(&lab.layer().to_string()) && line.contains("zTOC");
            assert!(warned.lines().any(of_layer), "{what}, {why}: {warned}");
            assert_eq!(lab.keys(), ["own"], "{what}, {why}");
            drop(opened);
            std::fs::remove_dir_all(lab.cache()).unwrap();
        }
    }
}

#[tokio::test]
async fn a_ztoc_that_is_wrong_in_a_cache_on_the_way_is_read_past_it() {
    let lab = Lab::new(Told::gzip).await;
    let ztoc = lab.push_annotated("a", &lab.told);
    lab.registry.fault(Fault::always(On::Blobs, Lie::WrongBytesInCaches).about(&ztoc.to_string()));
    let opened = lab.open("a").await;
    assert_eq!(trust(&opened), Trust::Soci);
    lab.assert_right(&opened).await;
}

fn listed(entries: &[&Value]) -> Vec<u8> {
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).to_string().into_bytes()
}

#[tokio::test]
async fn an_index_that_refers_to_the_image_is_used_only_when_asked_for() {
    for by_tag in [false, true] {
        let lab = Lab::new(Told::gzip).await;
        let image = lab.push("a", &json!({}));
        let ztoc = lab.told.ztoc();
        let index = lab.push_index("a", 1, Some(image), &ztoc);
        if by_tag {
            lab.registry.push("a", &image.to_string().replace(':', "-"), OCI_INDEX, &listed(&[&index]), &[]);
        } else {
            lab.registry.push_referrers("a", &image, &listed(&[&index]));
        }
        let referring = ImageOptions { soci: Some(SociChoice::Referring), ..lab.options("a") };
        let opened = open(&referring).await.unwrap();
        assert_eq!(trust(&opened), Trust::Soci);
        lab.assert_right(&opened).await;
        assert_eq!(lab.keys(), [key(Digest::of(&ztoc))]);
        let asked =
            (lab.registry.requests_to("/referrers/").len(), lab.registry.requests_to("/manifests/sha256-").len());
        assert_eq!(asked, (1, usize::from(by_tag)));
        drop(opened);

        lab.registry.go_down().await;
        let opened = open(&referring).await.unwrap();
        assert_eq!(trust(&opened), Trust::Soci, "offline");
        lab.assert_right(&opened).await;
        lab.registry.come_up();
        drop(opened);

        let opened = lab.open("a").await;
        assert_eq!(trust(&opened), Trust::Blob, "without the option");
        lab.assert_right(&opened).await;
        assert_eq!(lab.keys(), ["own".to_owned(), key(Digest::of(&ztoc))]);
    }
}

#[tokio::test]
async fn an_index_that_the_user_names_is_used_or_the_mount_fails() {
    let lab = Lab::new(Told::stored).await;
    let annotated = lab.push_annotated("a", &lies(&lab.told).remove(0).0);
    let mut named = lab.told.clone();
    // Of the same layer, and another zTOC.
    named.files.pop();
    let named = named.ztoc();
    let index = lab.push_index("a", 2, None, &named);
    let options = |digest: Digest| ImageOptions { soci: Some(SociChoice::Digest(digest)), ..lab.options("a") };
    let given: Digest = index["digest"].as_str().unwrap().parse().unwrap();
    let opened = open(&options(given)).await.unwrap();
    assert_eq!((trust(&opened), lab.keys()), (Trust::Soci, vec![key(Digest::of(&named))]));
    for file in lab.files.iter().filter(|file| file.name != "last") {
        assert!(lab.read(&opened, file.name).await == file.content, "{}", file.name);
    }
    assert!(lab.registry.requests_to(&annotated.to_string()).is_empty());
    for digest in [Digest::of(b"missing"), annotated] {
        let error = open(&options(digest)).await.err().expect("it opened").chain();
        assert!(error.contains(&digest.to_string()), "{error}");
    }
    let never = open(&ImageOptions { soci: None, ..lab.options("a") }).await.unwrap();
    assert_eq!(trust(&never), Trust::Blob);
    lab.assert_right(&never).await;
}
