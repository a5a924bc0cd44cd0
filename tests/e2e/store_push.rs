//! podman pushes and saves images of a store, and images that are built on them: of what crfs gives it, it makes each layer's tar, byte for byte.

use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::store::{derived, layout, with_layers};
use crate::support::podman::{Podman, Store};
use crate::support::registry::Access;
use crate::support::{LAZY, Lab, PLAIN, Proxy, Registry, until};

/// What podman says where it has no tar-split and the destination lacks the layer.
const WITHOUT: &str = "Digest did not match, expected";

/// The diffIDs of a config, and the digests of what the layers of its manifest unpack to.
#[track_caller]
fn diff_ids(manifest: &Value, blob: impl Fn(&str) -> Vec<u8>) -> (Vec<String>, Vec<String>) {
    let bytes = |descriptor: &Value| blob(descriptor["digest"].as_str().unwrap());
    let config: Value = serde_json::from_slice(&bytes(&manifest["config"])).unwrap();
    let named = config["rootfs"]["diff_ids"].as_array().unwrap().iter();
    let unpacked = |layer: &Value| {
        let mut tar = bytes(layer);
        if tar.starts_with(&[0x1f, 0x8b]) {
            let packed = std::mem::take(&mut tar);
            flate2::read::MultiGzDecoder::new(&packed[..]).read_to_end(&mut tar).unwrap();
        }
        crfs::blob::Digest::of(&tar).to_string()
    };
    let layers = manifest["layers"].as_array().unwrap().iter().map(unpacked).collect();
    (named.map(|id| id.as_str().unwrap().to_owned()).collect(), layers)
}

/// Pushes an image to a registry that has nothing, and compares what has come.
#[track_caller]
fn push(lab: &Lab, podman: &Podman, image: &str) {
    let registry = Registry::new(lab, Access::Open);
    let pushed = podman.podman(&["push", "-q", "--tls-verify=false", image, &format!("{}/x:1", registry.host())]);
    assert!(pushed.good(), "{image}: {pushed}");
    let (named, unpacked) = diff_ids(&registry.manifest("x", "1"), |digest| registry.blob(digest));
    assert_eq!(named, unpacked, "{image}");
}

/// Saves an image without compressing it, which is less work, and compares what has come.
#[track_caller]
fn save(lab: &Lab, podman: &Podman, image: &str) {
    let dir = lab.fresh("saved").join("image");
    let options = ["save", "-q", "--format=oci-dir", "--uncompressed", "-o", dir.to_str().unwrap(), image];
    podman.podman(&options).ok();
    let blob = |digest: &str| fs::read(dir.join("blobs").join(digest.replace(':', "/"))).unwrap();
    let (named, unpacked) = diff_ids(&oci_manifest(&dir), blob);
    assert_eq!(named, unpacked, "{image}");
    fs::remove_dir_all(dir).unwrap();
}

/// That podman cannot.
#[track_caller]
fn push_refused(lab: &Lab, podman: &Podman, image: &str) -> String {
    let registry = Registry::new(lab, Access::Open);
    let pushed = podman.podman(&["push", "-q", "--tls-verify=false", image, &format!("{}/x:1", registry.host())]);
    assert!(!pushed.good(), "{image}: {pushed}");
    pushed.stderr
}

/// Builds an image that has one file more than another.
#[track_caller]
fn build_on(lab: &Lab, podman: &Podman, image: &str) -> String {
    let dir = lab.fresh("build");
    fs::write(dir.join("Containerfile"), format!("FROM {image}\nCOPY added /added\n")).unwrap();
    fs::write(dir.join("added"), "added").unwrap();
    let built = image.replace("localhost/", "localhost/on-");
    podman.podman(&["build", "-q", "-t", &built, dir.to_str().unwrap()]).ok();
    built
}

#[track_caller]
fn add_full(store: &Store, name: &str, image: &str) -> Value {
    let text = store.crfs("add", &["--full", "--json", "--name", name, image]).ok();
    let added: Value = serde_json::from_str(&text).unwrap();
    added[0].clone()
}

fn tar_splits(store: &Store) -> Vec<String> {
    let entries = fs::read_dir(store.path("overlay-layers")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".tar-split.gz")).collect()
}

/// What podman saves it makes as what it pushes.
#[test]
fn every_image_that_was_read_whole_is_saved() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    let all = LAZY.iter().map(|fixture| fixture.name).chain(PLAIN.iter().copied());
    // Its config names another diffID than its first layer has (tests/fixtures/README.md).
    for fixture in all.filter(|name| *name != "odd-zc-podman43") {
        let name = format!("localhost/{}:1", fixture.to_lowercase());
        assert_eq!(add_full(&store, &name, &lab.layout(fixture))["pushable"], json!(true), "{fixture}");
        save(&lab, &podman, &name);
        store.crfs("rm", &["--podman-root", podman.graph().to_str().unwrap(), &name]).ok();
    }
    let refused = store.crfs("add", &["--full", &lab.layout("odd-zc-podman43")]).refused();
    assert!(refused.contains("the image's config names"), "{refused}");
}

#[test]
fn what_is_built_on_it_is_pushed_from_every_format() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    for fixture in ["sink-estargz", "sink-stargz", "sink-zc-podman43", "late-tar", "sink-gz", "sink-zst", "sink-docker"]
    {
        let name = format!("localhost/{}:1", fixture.to_lowercase());
        add_full(&store, &name, &lab.layout(fixture));
        let built = build_on(&lab, &podman, &name);
        push(&lab, &podman, &built);
        podman.podman(&["rmi", &built]).ok();
        store.crfs("rm", &["--podman-root", podman.graph().to_str().unwrap(), &name]).ok();
    }
}

#[test]
fn saved_images_have_the_layers_that_their_configs_name() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    for (fixture, is_docker) in [("sink-estargz", true), ("big-zc-new", false), ("twice-gz", true)] {
        let name = format!("localhost/{fixture}:1");
        add_full(&store, &name, &lab.layout(fixture));
        let formats = [&["--format=oci-dir"][..], &["--format=oci-dir", "--uncompressed"], &["--format=docker-dir"]];
        // podman saves no layers that were zstd in docker's formats.
        for options in &formats[..if is_docker { 3 } else { 2 }] {
            let dir = lab.fresh("saved").join("image");
            podman.podman(&[&["save", "-q", "-o", dir.to_str().unwrap()], *options, &[&name]].concat()).ok();
            let (manifest, blobs) = match options[0].ends_with("oci-dir") {
                true => (oci_manifest(&dir), dir.join("blobs/sha256")),
                false => (serde_json::from_slice(&fs::read(dir.join("manifest.json")).unwrap()).unwrap(), dir.clone()),
            };
            let blob = |digest: &str| fs::read(blobs.join(digest.strip_prefix("sha256:").unwrap())).unwrap();
            let (named, unpacked) = diff_ids(&manifest, blob);
            assert_eq!(named, unpacked, "{fixture} {options:?}");
        }
        if !is_docker {
            continue;
        }
        let archive = lab.fresh("saved").join("image.tar");
        podman.podman(&["save", "-q", "-o", archive.to_str().unwrap(), &name]).ok();
        // Which reads all layers and compares their digests.
        lab.crfs(&[
            "index",
            &format!("docker-archive:{}", archive.display()),
            "--cache-dir",
            lab.fresh("cache").to_str().unwrap(),
        ])
        .ok();
    }
}

fn oci_manifest(dir: &Path) -> Value {
    let index: Value = serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap();
    let hex = index["manifests"][0]["digest"].as_str().unwrap().replace(':', "/");
    serde_json::from_slice(&fs::read(dir.join("blobs").join(hex)).unwrap()).unwrap()
}

/// `add` alone stays lazy, and podman says so when it pushes; `add --full` of the same image mends it, and reads each layer once.
#[test]
fn an_image_that_is_there_is_read_whole_later() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    let registry = Registry::new(&lab, Access::Open);
    let proxy = Proxy::new(registry.port());
    let image = proxy.through(&registry.push(&lab, "big-estargz"));
    let add = |full: &[&str]| {
        let options = [&["--whole-layer-below=0", "--json", "--name=localhost/big:1"], full, &[&image]].concat();
        let added: Value = serde_json::from_str(&store.crfs("add", &options).ok()).unwrap();
        added[0]["pushable"] == json!(true)
    };
    let sent = || proxy.blobs().iter().map(|asked| asked.sent).sum::<u64>();
    let size: u64 = lab.layers("big-estargz").iter().map(|(_, size)| size).sum();
    assert!(!add(&[]));
    let lazily = sent();
    assert!(lazily < size && tar_splits(&store).is_empty(), "{lazily} of {size}");
    let built = build_on(&lab, &podman, "localhost/big:1");
    let refused = push_refused(&lab, &podman, &built);
    assert!(refused.contains(WITHOUT), "{refused}");

    let before = sent();
    assert!(add(&["--full"]));
    let whole = sent() - before;
    assert!(whole >= size && whole < size + size / 8 + lazily, "{whole} of {size}");
    push(&lab, &podman, &built);
    let before = sent();
    assert!(add(&["--full"]) && sent() - before <= lazily, "it was read once");

    store.end(Signal::SIGKILL);
    store.serve();
    push(&lab, &podman, &built);
}

/// A plain layer is read whole when it is added, and its tar-split comes of that.
#[test]
fn plain_layers_are_pushed_without_full() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    for (fixture, pushable) in [("sink-gz", true), ("late-tar", true), ("big-zst", true), ("twice-gz", false)] {
        let name = format!("localhost/{fixture}:1");
        let id = store.add(&name, &lab.layout(fixture));
        let added = store.list().into_iter().find(|image| image["id"] == id).unwrap();
        assert_eq!(added["pushable"], json!(pushable), "{fixture}");
        if pushable {
            push(&lab, &podman, &name);
        }
    }
    // Which of two files of one name counts the tar's end tells: such a layer must be read twice.
    let refused = push_refused(&lab, &podman, "localhost/twice-gz:1");
    assert!(refused.contains(WITHOUT), "{refused}");
}

/// Layers that images share have one tar-split, which goes with the last of them.
#[test]
fn tar_splits_are_shared_and_go_with_their_layers() {
    let Some(lab) = Lab::new() else { return };
    // By a server: it has a cache of its own. The machine's may have indexed the plain layers before.
    let Some(mut store) = Store::new(&lab) else { return };
    add_full(&store, "localhost/busy:1", &lab.layout("busy"));
    assert_eq!(tar_splits(&store).len(), 1);
    let two = layout(&derived(&lab, "busy", 2));
    let text = store.crfs("add", &["--json", "--name=localhost/two:1", &two]).ok();
    let pushable = &serde_json::from_str::<Value>(&text).unwrap()[0]["pushable"];
    assert_eq!(*pushable, json!(true), "its other layers are plain");
    let splits = tar_splits(&store);
    assert_eq!(splits.len(), 3);
    let podman = Podman::new(&lab, &store);
    for split in &splits {
        let metadata = fs::metadata(store.path("overlay-layers").join(split)).unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o600, "contents of files can be in it");
    }
    push(&lab, &podman, "localhost/two:1");
    store.crfs("rm", &["--podman-root", podman.graph().to_str().unwrap(), "localhost/two:1"]).ok();
    push(&lab, &podman, "localhost/busy:1");
    store.end(Signal::SIGKILL);
    // The next server finds the layers that no image has any more, and what was theirs.
    store.serve();
    until("the tar-splits of layers that are gone", || (tar_splits(&store).len() == 1).then_some(()));
    push(&lab, &podman, "localhost/busy:1");
}

/// podman copies a layer of the store where an image that it pulls has it on top of something else. It does not look at what comes out, so that has to be right.
#[test]
fn a_layer_that_podman_copies_from_the_store_is_pushed() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    let registry = Registry::new(&lab, Access::Open);
    let proxy = Proxy::new(registry.port());
    for fixture in ["sink-estargz", "sink-zc-new", "sink-gz"] {
        add_full(&store, "localhost/base:1", &lab.layout(fixture));
        let image = proxy.through(&registry.push_layout(&with_layers(&lab, fixture, 1, true), fixture));
        podman.podman(&["pull", "-q", "--tls-verify=false", &image]).ok();
        for (blob, _) in lab.layers(fixture) {
            assert_eq!(proxy.blob(&blob).len(), 0, "{fixture}");
        }
        store.crfs("rm", &["--podman-root", podman.graph().to_str().unwrap(), "localhost/base:1"]).ok();
        assert_eq!(fs::read(podman.mount(&image).dir.join("file-1")).unwrap(), b"1");
        push(&lab, &podman, &image);
        podman.podman(&["rmi", &image]).ok();
        podman.forget_blobs();
    }
}

/// What zstd:chunked blobs carry a server gives to podman without reading the layers.
#[test]
fn a_tar_split_that_the_blob_carries_is_enough() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    let registry = Registry::new(&lab, Access::Open);
    let proxy = Proxy::new(registry.port());
    let pushable = |name: &str| {
        let listed = store.list().into_iter().find(|image| image["names"][0] == name).unwrap();
        (listed["pushable"] == json!(true)).then_some(())
    };
    for fixture in ["sink-zc-new", "big-zc-new", "sink-zc-148"] {
        let name = format!("localhost/{fixture}:1");
        let image = proxy.through(&registry.push(&lab, fixture));
        store.crfs("add", &["--whole-layer-below=0", "--name", &name, &image]).ok();
        let (base, size) = lab.layers(fixture)[0].clone();
        let sent = || proxy.blob(&base).iter().map(|asked| asked.sent).sum::<u64>();
        until("the tar-splits that the blobs carry", || pushable(&name));
        assert!(sent() < size, "{fixture}: {} of {size}", sent());
        push(&lab, &podman, &build_on(&lab, &podman, &name));
        // It is replaced by one that is known to be right.
        let before = sent();
        assert_eq!(add_full(&store, &name, &image)["pushable"], json!(true));
        assert!(sent() - before >= size, "{fixture}");
        push(&lab, &podman, &name);
        podman.podman(&["rmi", &name.replace("localhost/", "localhost/on-")]).ok();
        store.crfs("rm", &["--podman-root", podman.graph().to_str().unwrap(), &name]).ok();
    }
}

/// podman compares what it has made with the diffID: what is damaged is not pushed.
#[test]
fn a_damaged_tar_split_pushes_nothing_wrong() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    add_full(&store, "localhost/late:1", &lab.layout("late-gz"));
    let split = store.path("overlay-layers").join(&tar_splits(&store)[0]);
    let mut text = String::new();
    flate2::read::GzDecoder::new(fs::File::open(&split).unwrap()).read_to_string(&mut text).unwrap();
    let (first, rest) = text.split_once("\"payload\":\"").unwrap();
    let damaged = format!("{first}\"payload\":\"AAAA{}", &rest[4..]);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, damaged.as_bytes()).unwrap();
    fs::write(&split, packed.finish().unwrap()).unwrap();
    fs::set_permissions(&split, Permissions::from_mode(0o600)).unwrap();
    let refused = push_refused(&lab, &podman, "localhost/late:1");
    assert!(refused.contains(WITHOUT), "{refused}");
    // The next server says so where it is gone, and takes away what a killed one has not put in its place.
    store.end(Signal::SIGKILL);
    let left = store.path("overlay-layers/.new-left01");
    fs::rename(&split, &left).unwrap();
    store.serve();
    assert!(store.list()[0]["pushable"] == json!(false) && !left.exists());
}
