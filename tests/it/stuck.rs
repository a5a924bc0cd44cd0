//! One layer that cannot be had: what becomes of those who wait for it, and of the others.

use std::sync::Arc;
use std::time::Duration;

use crfs::fetch::{Prefetch, prefetch};
use crfs::image::options::ImageOptions;

use crate::contents::{Opened, image_options, open, open_guessing};
use crate::image::{File, Layer, manifest, noise, zstd_chunked};
use crate::registry::{Fault, Lie, OCI_MANIFEST, On, Registry};
use crate::support::{until, until_later};

const CHUNK: usize = 10_000;

/// Files of each layer.
const FILES: u64 = 60;
const MANY: u64 = 500;

fn name(layer: &str, number: u64) -> &'static str {
    format!("{layer}/{number:02}").leak()
}

fn content(number: u64) -> Vec<u8> {
    noise(3000, number)
}

fn layer(of: &str, files: u64) -> Layer {
    let files = (0..files).map(|number| File { name: name(of, number), content: content(number) });
    zstd_chunked(&files.collect::<Vec<_>>(), CHUNK)
}

/// A registry with an image of two layers: the one that cannot be had, and the other.
struct Two {
    registry: Registry,
    bad: Layer,
    good: Layer,
    temp: tempfile::TempDir,
}

impl Two {
    async fn new() -> Self {
        Self::of(FILES).await
    }

    async fn of(files: u64) -> Self {
        let registry = Registry::start().await;
        let (bad, good) = (layer("bad", files), layer("good", files));
        registry.push("a", "1", OCI_MANIFEST, &manifest(&[&bad, &good]), &[&bad.blob, &good.blob]);
        Self { registry, bad, good, temp: tempfile::tempdir().unwrap() }
    }

    fn options(&self) -> ImageOptions {
        image_options(&self.registry, self.temp.path().join("cache"))
    }

    fn strike(&self, lie: Lie) {
        self.registry.fault(Fault::always(On::Blobs, lie).about(&self.bad.digest().to_string()));
    }

    fn requests(&self, layer: &Layer) -> usize {
        self.registry.requests_to(&layer.digest().to_string()).len()
    }
}

async fn read_right(opened: &Opened, layer: &str) {
    for number in 0..FILES {
        assert!(opened.read(name(layer, number), 0, u64::MAX).await.unwrap() == content(number), "{layer} {number}");
    }
}

/// All at once, of a layer that gives too little at each try: everybody hears of it within about one deadline, and not one after the other, which
/// would take so long that the test were taken to hang.
#[tokio::test(flavor = "multi_thread")]
async fn those_who_wait_for_their_turn_wait_no_longer_than_others() {
    for lie in [Lie::Stall(100), Lie::Slow(1, Duration::from_secs(1))] {
        let two = Two::of(MANY).await;
        let options = ImageOptions { io_deadline: Duration::from_secs(1), ..two.options() };
        let opened = Arc::new(open(&options).await.unwrap());
        two.strike(lie);
        let read = |number| {
            let opened = Arc::clone(&opened);
            tokio::spawn(async move { opened.read(name("bad", number), 0, u64::MAX).await })
        };
        let readers: Vec<_> = (0..MANY).map(read).collect();
        for reader in readers {
            assert!(reader.await.unwrap().is_err());
        }
    }
}

/// The clock is a paused one.
#[tokio::test]
async fn guesses_of_a_stuck_layer_take_no_room_from_the_others() {
    let two = Two::new().await;
    let opened = Arc::new(open_guessing(&two.options()).await.unwrap());
    two.strike(Lie::Silence);
    let before = two.requests(&two.bad);
    let reader = Arc::clone(&opened);
    let stuck = tokio::spawn(async move { reader.read(name("bad", 0), 0, u64::MAX).await });
    // What was read, and what is guessed.
    until(|| two.requests(&two.bad) > before + 1).await;
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(5)).await;
    tokio::time::resume();
    let before = two.requests(&two.good);
    read_right(&opened, "good").await;
    let requests = two.requests(&two.good) - before;
    tokio::time::pause();
    assert!(requests < FILES as usize / 2, "{requests} requests for {FILES} files");
    assert!(stuck.await.unwrap().is_err());
}

/// The clock is a paused one.
#[tokio::test]
async fn prefetch_goes_past_a_layer_that_is_gone() {
    let two = Two::new().await;
    let opened = open(&two.options()).await.unwrap();
    two.strike(Lie::Status(404, Vec::new()));
    let layers: Vec<_> = opened.image.layers.iter().map(|layer| Arc::clone(&layer.contents)).collect();
    let good = Arc::clone(&layers[1]);
    let prefetch = tokio::spawn(prefetch(layers, Prefetch::All));
    tokio::time::pause();
    until_later(|| good.is_kept().unwrap()).await;
    tokio::time::resume();
    prefetch.abort();
    two.registry.go_down().await;
    read_right(&opened, "good").await;
}
