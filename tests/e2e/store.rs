//! podman's additional image store with real podman: what podman shows and does of images that were never pulled.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::image;
use crate::support::lab::skip;
use crate::support::podman::{Podman, Store};
use crate::support::registry::Access;
use crate::support::{LAZY, Lab, PLAIN, Proxy, Registry, busy, fixtures, run};

const BUSY: &str = "localhost/busy:1";

#[test]
fn podman_runs_what_it_never_pulled() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    assert_eq!(podman.image(BUSY), None);
    let id = store.add(BUSY, &lab.layout("busy"));
    assert_eq!(podman.image(BUSY), Some(format!("{BUSY} {} true", &id[..12])));

    let script =
        "cat /proc/self/mounts | grep -c '^overlay / '; echo written > /bin/new; cat /bin/new; ls /bin | wc -l";
    assert_eq!(podman.run(&[], BUSY, script).ok(), format!("1\nwritten\n{}\n", busy::FILES + 1));
    assert_eq!(
        podman.run(&[], BUSY, "ls /bin | wc -l").ok(),
        format!("{}\n", busy::FILES),
        "what one wrote is no other's"
    );
    let shown: Value = serde_json::from_str(&podman.podman(&["inspect", BUSY]).ok()).unwrap();
    assert_eq!((&shown[0]["Id"], &shown[0]["RootFS"]["Layers"][0]), (&json!(id), &json!(diff_ids(&lab, "busy")[0])));

    podman.start("one", BUSY);
    assert_eq!(podman.podman(&["exec", "one", "/bin/busybox", "echo", "in it"]).ok(), "in it\n");
    podman.podman(&["exec", "one", "/bin/busybox", "sh", "-c", "echo new > /new; rm /bin/zcat"]).ok();
    let mut changes: Vec<_> = podman.podman(&["diff", "one"]).ok().lines().map(str::to_owned).collect();
    changes.sort();
    assert!(changes.contains(&"A /new".to_owned()) && changes.contains(&"D /bin/zcat".to_owned()), "{changes:?}");
    assert!(changes.iter().all(|change| !change.contains("/busybox")), "{changes:?}");
    podman.podman(&["commit", "-q", "one", "localhost/committed:1"]).ok();
    assert_eq!(podman.run(&[], "localhost/committed:1", "cat /new; ls /bin/zcat || :").ok(), "new\n");
    let refused = podman.podman(&["rmi", BUSY]);
    assert!(!refused.good() && refused.stderr.contains("read-only"), "{refused}");
}

#[test]
fn podman_builds_from_it() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    store.add(BUSY, &lab.layout("busy"));
    let dir = lab.fresh("build");
    let file = format!("FROM {BUSY}\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo built > /built\"]\n");
    fs::write(dir.join("Containerfile"), file).unwrap();
    let dir = dir.to_str().unwrap();
    let limits = ["--network=none", "--ulimit=nofile=20000:20000", "--ulimit=nproc=1000:1000"];
    let built = podman.podman(&[&["build", "-q", "-t", "localhost/built:1"][..], &limits, &[dir]].concat());
    built.ok();
    assert_eq!(
        podman.run(&[], "localhost/built:1", "cat /built; ls /bin | wc -l").ok(),
        format!("built\n{}\n", busy::FILES)
    );
}

/// trusted.* xattrs of images are not shown by a store: its layers may be below overlays of users, who could not copy them up.
#[test]
fn every_image_looks_right() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    let all = LAZY.iter().map(|fixture| fixture.name).chain(PLAIN.iter().copied());
    for fixture in all.filter(|name| fixtures::tree(name) != "odd") {
        let name = format!("localhost/{}:1", fixture.to_lowercase());
        store.add(&name, &lab.layout(fixture));
        {
            let mounted = podman.mount(&name);
            if let Err(differences) = lab.differences(&mounted.dir, fixtures::tree(fixture), &["--overlay"]) {
                panic!("{fixture}: {differences}");
            }
        }
        store.crfs("rm", &["--podman-root", podman.graph().to_str().unwrap(), &name]).ok();
    }
}

/// Adding reads tables of contents, and a container what it needs.
#[test]
fn only_what_is_needed_is_fetched() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let registry = Registry::new(&lab, Access::Open);
    let proxy = Proxy::new(registry.port());
    let big = proxy.through(&registry.push(&lab, "big-estargz"));
    let sent = || proxy.blobs().iter().map(|asked| asked.sent).sum::<u64>();
    store.crfs("add", &["--whole-layer-below=0", &big]).ok();
    let size: u64 = lab.layers("big-estargz").iter().map(|(_, size)| size).sum();
    assert!(sent() < size, "{} of {size}", sent());
}

/// The layers of podman's own store.
fn own_layers(podman: &Podman) -> usize {
    let layers: Vec<Value> = read_json(&podman.graph().join("overlay-layers/layers.json"));
    layers.len()
}

/// An image that shares layers is pulled without them: podman takes the store's, and fetches those only of which it does not know whose blobs they are.
#[test]
fn layers_of_the_store_are_not_pulled() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    let registry = Registry::new(&lab, Access::Open);
    let proxy = Proxy::new(registry.port());
    let image = proxy.through(&registry.push_layout(&derived(&lab, "busy", 2), "derived"));
    let base = &lab.layers("busy")[0].0;
    // Gives how often the base was asked for.
    let pull = || {
        let before = proxy.blob(base).len();
        podman.podman(&["pull", "-q", "--tls-verify=false", &image]).ok();
        assert_eq!(podman.run(&[], &image, "cat /file-1").ok(), "1");
        assert_eq!(own_layers(&podman), 2);
        podman.podman(&["rmi", &image]).ok();
        proxy.blob(base).len() - before
    };
    store.add(BUSY, &lab.layout("busy"));
    assert_ne!(pull(), 0, "podman cannot know yet that it has it");
    assert_eq!(pull(), 0, "podman has seen the blob");
    podman.forget_blobs();
    store.crfs("add", &["--full", "--name", BUSY, &lab.layout("busy")]).ok();
    assert_eq!(pull(), 0, "the store says whose blob it is");
}

#[test]
fn a_hundred_layers_and_ten_containers_at_once() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    // As long as the default root, which the labs' are not.
    let short = tempfile::Builder::new().prefix("c").rand_bytes(6).tempdir().unwrap();
    let root = short.path().join("store");
    symlink(store.root(), &root).unwrap();
    assert!(root.as_os_str().len() <= "/var/lib/crfs/store".len());
    let podman = Podman::at(&lab, &root);
    store.add("localhost/hundred:1", &layout(&derived(&lab, "busy", 99)));
    let script = "cat /file-1 /file-99; ls / | grep -c file-; md5sum /bin/busybox | cut -c1-4";
    let containers: Vec<_> = (0..10)
        .map(|_| {
            let mut command = podman.running(&[], "localhost/hundred:1", script);
            std::thread::spawn(move || run(&mut command).ok())
        })
        .collect();
    let outputs: Vec<_> = containers.into_iter().map(|container| container.join().unwrap()).collect();
    assert!(outputs[0].starts_with("19999\n"), "{}", outputs[0]);
    assert!(outputs.iter().all(|output| *output == outputs[0]), "{outputs:?}");
}

#[test]
fn images_share_layers_and_have_several_names() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    store.add(BUSY, &lab.layout("busy"));
    let one = store.add("localhost/one:1", &layout(&derived(&lab, "busy", 1)));
    store.add("localhost/one:2", &layout(&derived(&lab, "busy", 1)));
    let layers: Vec<Value> = read_json(&store.path("overlay-layers/layers.json"));
    assert_eq!(layers.len(), 2, "{layers:?}");
    let of_one = store.list().into_iter().find(|image| image["id"] == json!(one)).unwrap();
    assert_eq!(of_one["names"], json!(["localhost/one:1", "localhost/one:2"]));
    let graph = podman.graph();
    let remove = |name: &str| store.crfs("rm", &["--podman-root", graph.to_str().unwrap(), name]);
    let mistyped = remove(BUSY);
    assert!(mistyped.status == Some(2) && mistyped.stderr.contains(graph.to_str().unwrap()), "{mistyped}");
    podman.podman(&["images"]).ok();
    remove(BUSY).ok();
    assert_eq!(podman.run(&[], "localhost/one:2", "cat /file-1").ok(), "1");
    remove("localhost/one:1").ok();
    assert_eq!(podman.image("localhost/one:1"), None);
    podman.start("user", "localhost/one:2");
    let refused = remove("localhost/one:2").refused();
    assert!(refused.contains("the container user") && refused.contains("podman rm"), "{refused}");
    podman.podman(&["rm", "-f", "-t", "0", "user"]).ok();
    remove("localhost/one:2").ok();
    assert_eq!(podman.image("localhost/"), None);
    assert!(remove("localhost/one:2").refused().contains("crfs store ls"));
}

/// The same image by other layers is not mixed with it.
#[test]
fn other_layers_of_the_same_image_are_refused() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::unserved(&lab) else { return };
    assert_eq!(diff_ids(&lab, "sink-zc-new"), diff_ids(&lab, "sink-gz"));
    store.add("localhost/sink:1", &lab.layout("sink-zc-new"));
    let refused = store.crfs("add", &[&lab.layout("sink-gz")]).refused();
    assert!(refused.contains("localhost/sink:1") && refused.contains("crfs store rm"), "{refused}");
    assert_eq!(store.list().len(), 1);
}

/// The same image by the same blob, of which more is known than before: with a table of contents that nothing vouched for, and then read whole.
#[test]
fn what_vouches_for_a_layer_may_get_better() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    let (name, image) = ("localhost/sink:1", lab.layout("sink-stargz"));
    let add = |options: &[&str]| store.crfs("add", &[&["--name", name], options, &[&image]].concat()).ok();
    let pushable = || store.list()[0]["pushable"] == json!(true);
    let tar_splits = || {
        let names = fs::read_dir(store.path("overlay-layers")).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().ends_with(".tar-split.gz")).count()
    };
    add(&["--full", "--insecure-unverified-toc", "--whole-layer-below=0"]);
    let all = tar_splits();
    assert!(pushable() && all == lab.layers("sink-stargz").len());
    let mounted = podman.mount(name);
    add(&[]);
    assert!(!pushable() && tar_splits() < all, "it names files of other contents");
    add(&["--full"]);
    assert!(pushable());
    lab.assert_equal(&mounted.dir, "sink", &["--overlay"]);
    lab.assert_equal(&podman.mount(name).dir, "sink", &["--overlay"]);
    let layers: Vec<Value> = read_json(&store.path("overlay-layers/layers.json"));
    assert_eq!((layers.len(), store.list().len()), (lab.layers("sink-stargz").len(), 1));
}

#[test]
fn containers_in_user_namespaces_see_the_right_owners() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let mut podman = Podman::new(&lab, &store);
    store.add(BUSY, &lab.layout("busy"));
    // Whom the automatic namespaces belong to; only these commands see it.
    let ids = lab.path("subids");
    fs::write(&ids, "containers:200000:1000000\n").unwrap();
    let bind = |file: &str| format!("mount --bind {} {file}", ids.display());
    let script = format!("{} && {} && exec \"$@\"", bind("/etc/subuid"), bind("/etc/subgid"));
    if !Path::new("/etc/subuid").exists() {
        let _skipped: Option<()> = skip("there is no /etc/subuid: install the package uidmap");
        return;
    }
    podman.under =
        ["unshare", "--mount", "--propagation=unchanged", "sh", "-c", &script, "sh"].map(str::to_owned).into();
    let script = "stat -c %u:%g:%a /bin/busybox /bin; echo x > /bin/new; chown 5:6 /bin/new; chown 7:8 /bin/busybox; \
                  stat -c %u:%g /bin/new /bin/busybox; md5sum < /bin/sh; id -u";
    let plain = podman.run(&[], BUSY, script).ok();
    let first = |options: &[&str]| podman.run(options, BUSY, "awk '{ print $2 }' /proc/self/uid_map").ok();
    assert_eq!(first(&[]), "0\n");
    for (options, start) in
        [(&["--uidmap=0:300000:65536", "--gidmap=0:300000:65536"][..], "300000\n"), (&["--userns=auto"], "200000\n")]
    {
        assert_eq!(podman.run(options, BUSY, script).ok(), plain, "{options:?}");
        assert_eq!(first(options), start, "{options:?}");
    }
}

#[test]
fn fuse_overlayfs_may_mount_the_layers() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store).with("--storage-opt=overlay.mount_program=/usr/bin/fuse-overlayfs");
    store.add("localhost/sink:1", &lab.layout("sink-zc-new"));
    {
        let mounted = podman.mount("localhost/sink:1");
        lab.assert_equal(&mounted.dir, "sink", &["--overlay"]);
    }
    store.add(BUSY, &lab.layout("busy"));
    assert_eq!(
        podman.run(&[], BUSY, "echo x > /bin/new; rm /bin/zcat; ls /bin | wc -l").ok(),
        format!("{}\n", busy::FILES)
    );
}

#[test]
fn what_podman_reads_is_for_everybody_and_outside_of_the_mount() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let id = store.add(BUSY, &lab.layout("busy"));
    let device = |name: &str| fs::metadata(store.path(name)).unwrap().dev();
    let files = [
        "overlay-images/images.json",
        "overlay-images/images.lock",
        "overlay-layers/layers.json",
        "overlay-layers/layers.lock",
    ];
    for file in files {
        let metadata = fs::metadata(store.path(file)).unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.dev()), (0o644, device("")), "{file}");
    }
    assert_ne!(device("overlay"), device(""));
    let manifest = fs::read(store.path(&format!("overlay-images/{id}/manifest"))).unwrap();
    assert!(serde_json::from_slice::<Value>(&manifest).is_ok());
    let layers: Vec<Value> = read_json(&store.path("overlay-layers/layers.json"));
    let dir = store.path("overlay").join(layers[0]["id"].as_str().unwrap());
    let link = fs::read_to_string(dir.join("link")).unwrap();
    assert_eq!(fs::canonicalize(store.path("overlay/l").join(&link)).unwrap(), dir.join("diff"));
    assert_eq!((layers[0]["uidset"].clone(), layers[0]["gidset"].clone()), (json!([0]), json!([0])));
    for name in ["", "diff"] {
        let metadata = fs::metadata(dir.join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (0, 0, 0o755), "{name}");
    }
}

pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The blob of a layout that a digest names.
fn blob(layout: &Path, digest: &Value) -> Vec<u8> {
    fs::read(layout.join("blobs").join(digest.as_str().unwrap().replace(':', "/"))).unwrap()
}

fn manifest_of(layout: &Path) -> Value {
    let index: Value = read_json(&layout.join("index.json"));
    serde_json::from_slice(&blob(layout, &index["manifests"][0]["digest"])).unwrap()
}

fn diff_ids(lab: &Lab, fixture: &str) -> Vec<Value> {
    let layout = lab.dir_of(fixture);
    let config: Value = serde_json::from_slice(&blob(&layout, &manifest_of(&layout)["config"]["digest"])).unwrap();
    config["rootfs"]["diff_ids"].as_array().unwrap().clone()
}

/// A layout with that fixture's layers and so many on top, each with one file that holds its number.
pub(crate) fn derived(lab: &Lab, fixture: &str, layers: usize) -> PathBuf {
    with_layers(lab, fixture, layers, false)
}

/// The same with those layers below, where `below`.
pub(crate) fn with_layers(lab: &Lab, fixture: &str, layers: usize, below: bool) -> PathBuf {
    let dir = lab.fresh("layout");
    let base = lab.dir_of(fixture);
    run(Command::new("cp").arg("-rL").arg(base.join("blobs")).arg(&dir)).ok();
    let write = |bytes: &[u8]| {
        let digest = crfs::blob::Digest::of(bytes);
        fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"digest": digest.to_string(), "size": bytes.len()})
    };
    let with_type = |mut descriptor: Value, kind: &str| {
        descriptor["mediaType"] = json!(kind);
        descriptor
    };
    let mut manifest = manifest_of(&base);
    let mut config: Value = serde_json::from_slice(&blob(&base, &manifest["config"]["digest"])).unwrap();
    for number in 1..=layers {
        let tar = file_layer(number);
        let layer = with_type(write(&tar), "application/vnd.oci.image.layer.v1.tar");
        let diff_id = json!(crfs::blob::Digest::of(&tar).to_string());
        for (list, new) in [(&mut config["rootfs"]["diff_ids"], diff_id), (&mut manifest["layers"], layer)] {
            let list = list.as_array_mut().unwrap();
            list.insert(if below { 0 } else { list.len() }, new);
        }
    }
    config.as_object_mut().unwrap().remove("history");
    let kind = manifest["config"]["mediaType"].as_str().unwrap().to_owned();
    manifest["config"] = with_type(write(config.to_string().as_bytes()), &kind);
    let mut image = with_type(write(manifest.to_string().as_bytes()), "application/vnd.oci.image.manifest.v1+json");
    image["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": [image]}).to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    dir
}

/// The layer of such a layout that holds that number.
pub(crate) fn file_layer(number: usize) -> Vec<u8> {
    let name: &'static str = Box::leak(format!("file-{number}").into_boxed_str());
    image::tar(&[image::File { name, content: number.to_string().into_bytes() }])
}

pub(crate) fn layout(dir: &Path) -> String {
    format!("oci:{}:latest", dir.display())
}
