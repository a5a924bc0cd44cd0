//! What a store holds of memory, and of its records, while images come and go.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Error;
use super::Store;
use super::lock::Lock;
use super::open::Listing;
use super::paths::Paths;
use super::records::Records;
use super::records::tests::source;
use super::resume;
use crate::blob::{ByteRange, Digest};
use crate::budget::DEFAULT_LIMIT;
use crate::cache::Cache;
use crate::image::options::ImageOptions;
use crate::image::{Event, Report};
use crate::kernel::mounts::Device;
use crate::registry::ImageRef;
use crate::serve::Activity;
use crate::threads;

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

/// A fixture as an image of a store.
fn fixture(name: &str) -> ImageOptions {
    of_layout(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name))
}

fn of_layout(dir: PathBuf) -> ImageOptions {
    let image = ImageRef::Layout { dir, tag: Some("latest".into()) };
    ImageOptions { image, memory_limit: DEFAULT_LIMIT, io_deadline: LIMIT, ..source() }
}

fn store(dir: &Path) -> Store {
    let paths = Paths::new(&dir.join("store"), None);
    paths.create().unwrap();
    let lock = Lock::take(&paths).unwrap().unwrap();
    Store::new(paths, Cache::of_any_size(&dir.join("cache")), None, lock).unwrap()
}

fn activity(store: &Store) -> Activity {
    store.trees.past().and(Activity::of(&store.trees.contents()))
}

fn quiet() -> Report {
    Arc::new(|_| Ok(()))
}

async fn add(store: &Store, source: ImageOptions, name: &str) -> Result<Listing, Error> {
    store.add(source, Some(name.to_owned()), false, &quiet()).await
}

/// Until whatever a task that has ended held is dropped.
async fn until_nothing_is_taken(store: &Store) {
    let nothing = async {
        while store.memory().used() > 0 {
            tokio::task::yield_now().await;
        }
    };
    let taken = tokio::time::timeout(LIMIT, nothing).await;
    assert!(taken.is_ok(), "{} bytes stay taken", store.memory().used());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_removed_images_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    add(&store, fixture("sink-estargz"), "localhost/one:1").await.unwrap();
    let one = store.memory().used();
    let layers = store.trees.contents().len();
    assert!(one > 0);
    for round in 0..3 {
        let (name, before) = (format!("localhost/other:{round}"), activity(&store).stats);
        add(&store, fixture("late-zc-new"), &name).await.unwrap();
        assert!(store.memory().used() > one);
        let read = store.trees.contents().into_iter().skip(layers).map(|layer| async move {
            drop(layer.read(ByteRange { start: 0, end: 1 }).await);
        });
        futures_util::future::join_all(read).await;
        let done = activity(&store).stats;
        store.remove(&[name], &[], &quiet()).await.unwrap();
        assert!(tokio::task::block_in_place(|| store.sweep_due(&mut store.records.blocking_lock(), |_| true)));
        assert!(store.close_left_over().await);
        assert_eq!(store.memory().used(), one, "round {round}");
        assert!(store.trees.contents().len() == layers && done.served + done.errors > before.served + before.errors);
        assert_eq!((activity(&store).stats, store.trees.images()), (done, 1), "what was done stays counted");
    }
}

/// What the kernel knows somebody may have open.
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_layer_stays_while_the_kernel_knows_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    add(&store, fixture("late-zc-new"), "localhost/late:1").await.unwrap();
    let layers = store.records.lock().await.layers.len();
    let number = store.records.lock().await.layers[0].number;
    let forest = store.trees.forest();
    forest.remember(crate::fs::forest::root_of(number));
    store.remove(&["localhost/late:1".to_owned()], &[], &quiet()).await.unwrap();
    assert!(tokio::task::block_in_place(|| store.sweep_due(&mut store.records.blocking_lock(), |_| true)));
    assert!(!store.close_left_over().await && store.trees.is_open(number));
    assert!(layers > 1 && store.trees.planted().len() == 1, "the others are closed");
    forest.forget(crate::fs::forest::root_of(number), 1);
    assert!(store.close_left_over().await);
    until_nothing_is_taken(&store).await;
}

/// As if it was mounted.
const DEVICE: Device = Device { major: 0, minor: u32::MAX };

/// The same store, as a process has it that goes on with it. What it has opened, and may show.
async fn goes_on(dir: &Path) -> Arc<Store> {
    let paths = Paths::new(&dir.join("store"), None);
    let lock = Lock::take(&paths).unwrap().unwrap();
    let store = Arc::new(Store::handed(paths, Cache::of_any_size(&dir.join("cache")), None, lock).unwrap());
    store.open_known().await;
    resume::read_again(&store, DEVICE).await.unwrap();
    store
}

/// Somebody may run from it, whoever serves it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_a_removed_image_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let number = {
        let store = store(dir.path());
        store.device.set(DEVICE).unwrap();
        add(&store, fixture("late-zc-new"), "localhost/late:1").await.unwrap();
        let number = store.records.lock().await.layers[0].number;
        store.trees.forest().remember(crate::fs::forest::root_of(number));
        store.remove(&["localhost/late:1".to_owned()], &[], &quiet()).await.unwrap();
        assert!(tokio::task::block_in_place(|| store.sweep_due(&mut store.records.blocking_lock(), |_| true)));
        assert!(!store.close_left_over().await);
        number
    };
    let store = goes_on(dir.path()).await;
    assert!(store.trees.is_open(number) && store.list().await.is_empty());
    let before = Records::read(&store.paths.records()).unwrap();
    assert_eq!((before.left.len(), before.retired.len()), (1, 1));
    // Nobody knows it any more: there is no kernel that could be asked.
    assert!(store.close_left_over().await);
    let after = Records::read(&store.paths.records()).unwrap();
    assert_eq!((after.left.len(), after.retired.len()), (0, 0));
    assert!(!store.trees.is_open(number));
}

/// The kernel has been told of the other one, and keeps that.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_with_another_tree_is_not_shown_by_the_number_of_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let other = Digest::of(b"another tree");
    let (first, top) = {
        let store = store(dir.path());
        add(&store, fixture("late-zc-new"), "localhost/late:1").await.unwrap();
        let mut records = store.records.lock().await.clone();
        let (first, top) = (records.layers[0].number, records.layers[1].number);
        // Of the upper one nobody has been told yet.
        let tree = std::mem::take(&mut records.layers[1].tree);
        records.write(&store.paths.records()).unwrap();
        let store_dir = store.paths.records();
        drop(store);
        let going_on = goes_on(dir.path()).await;
        assert!(going_on.trees.is_open(first) && going_on.trees.is_open(top));
        let written = Records::read(&store_dir).unwrap();
        assert_eq!(written.layers[1].tree, tree, "it is on the disk before anybody is told");
        let mut records = written;
        records.set_tree(first, other);
        records.write(&store_dir).unwrap();
        (first, top)
    };
    let store = goes_on(dir.path()).await;
    assert!(!store.trees.is_open(first) && !store.trees.is_open(top), "the upper one may show the root of the lower");
    let listed = store.list().await;
    assert!(listed[0].problem.as_deref().is_some_and(|problem| problem.contains("is not what containers were shown")));
    // Added again, it has another number.
    add(&store, fixture("late-zc-new"), "localhost/late:1").await.unwrap();
    let records = store.records.lock().await.clone();
    let number = records.layers[0].number;
    assert!(store.trees.is_open(number) && number > top && store.list().await[0].served);
}

/// An image that is refused when its layers are open already, and one of which an upper layer cannot be opened.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_image_leaves_nothing_taken_and_the_next_is_added() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let id = add(&store, fixture("late-zc-new"), "localhost/late:1").await.unwrap().id;
    store.remove(&["localhost/late:1".to_owned()], &[], &quiet()).await.unwrap();
    assert!(tokio::task::block_in_place(|| store.sweep_due(&mut store.records.blocking_lock(), |_| true)));
    assert!(store.close_left_over().await);
    let place = store.paths.image(&id);
    fs::remove_dir_all(&place).unwrap();
    fs::write(&place, "no directory").unwrap();
    let refused = add(&store, fixture("late-zc-new"), "localhost/late:1").await;
    assert!(matches!(refused, Err(Error::File { .. })), "{refused:?}");
    until_nothing_is_taken(&store).await;
    assert!(store.trees.planted().is_empty());
    // Whatever the kernel remembers of it must come to mean nothing else.
    let next = store.records.lock().await.clone().take_number(|number| store.trees.was_given(number));
    assert!(store.trees.was_given(next - 1) && !store.trees.was_given(next));
    fs::remove_file(&place).unwrap();

    let damaged = copy(&fixture("sink-estargz"), dir.path());
    let refused = add(&store, damaged, "localhost/sink:1").await;
    assert!(matches!(refused, Err(Error::Layer { number, .. }) if number > 0), "{refused:?}");
    until_nothing_is_taken(&store).await;
    add(&store, fixture("sink-estargz"), "localhost/sink:1").await.unwrap();
    assert!(store.memory().used() > 0);
}

/// The same image, with an uppermost layer of other bytes.
fn copy(of: &ImageOptions, to: &Path) -> ImageOptions {
    let ImageRef::Layout { dir, .. } = &of.image else { panic!() };
    let to = to.join("damaged");
    let blobs = |dir: &Path| dir.join("blobs/sha256");
    fs::create_dir_all(blobs(&to)).unwrap();
    for file in ["index.json", "oci-layout"] {
        fs::copy(dir.join(file), to.join(file)).unwrap();
    }
    for blob in fs::read_dir(blobs(dir)).unwrap() {
        let blob = blob.unwrap();
        fs::copy(blob.path(), blobs(&to).join(blob.file_name())).unwrap();
    }
    let json = |path: PathBuf| serde_json::from_slice::<serde_json::Value>(&fs::read(path).unwrap()).unwrap();
    let path = |digest: &serde_json::Value| blobs(&to).join(digest.as_str().unwrap().trim_start_matches("sha256:"));
    let manifest = json(path(&json(to.join("index.json"))["manifests"][0]["digest"]));
    let top = path(&manifest["layers"].as_array().unwrap().last().unwrap()["digest"]);
    let len = fs::metadata(&top).unwrap().len();
    fs::write(&top, vec![7; usize::try_from(len).unwrap()]).unwrap();
    of_layout(to)
}

/// Who waits for a place to build has nothing that others need.
#[tokio::test(flavor = "multi_thread")]
async fn the_records_are_free_while_a_layer_waits_to_be_built() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(store(dir.path()));
    // From then on its indexes are cached, and need no place.
    add(&store, fixture("late-zc-new"), "localhost/late:1").await.unwrap();
    store.remove(&["localhost/late:1".to_owned()], &[], &quiet()).await.unwrap();
    assert!(tokio::task::block_in_place(|| store.sweep_due(&mut store.records.blocking_lock(), |_| true)));
    assert!(store.close_left_over().await);

    let places = tokio::task::block_in_place(|| (0..8).map(|_| store.memory().build(0)).collect::<Vec<_>>());
    let (tell, mut opened) = tokio::sync::mpsc::unbounded_channel();
    let report: Report = Arc::new(move |event| {
        if let Event::Opened { layers, of, .. } = event {
            let _heard = tell.send(layers == of);
        }
        Ok(())
    });
    let adding = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.add(fixture("late-zc-new"), Some("localhost/late:1".to_owned()), false, &report).await }
    });
    while !opened.recv().await.unwrap() {}
    // It comes to wait sooner or later, with these or with the records.
    let asking = async {
        let is_waiting = || threads::figures().iter().any(|work| work.name == "opening" && work.idle < work.threads);
        while !is_waiting() {
            store.list().await;
            tokio::task::yield_now().await;
        }
        store.list().await
    };
    let listed = tokio::time::timeout(LIMIT, asking).await;
    drop(places);
    assert!(listed.is_ok_and(|listed| listed.is_empty()), "the records are held");
    assert!(adding.await.unwrap().is_ok());
}
