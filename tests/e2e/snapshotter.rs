//! containerd's snapshotter, as containerd asks it: layers that are there without having been pulled, and what is left when something ends.

use std::collections::BTreeMap;
use std::fs;

use nix::sys::signal::Signal;
use sha2::{Digest as _, Sha256};

use crate::readers::drop_caches;
use crate::support::command::send;
use crate::support::mount::until_gone;
use crate::support::podman::detach_below;
use crate::support::registry::Access;
use crate::support::snapshots::{EXISTS, Snapshotter};
use crate::support::{Lab, Proxy, Registry, until};

/// An image in a registry, as containerd names what it wants of it.
struct Image {
    labels: BTreeMap<String, String>,
    layers: Vec<String>,
}

fn image(lab: &Lab, registry: &Registry, proxy: &Proxy, fixture: &str) -> Image {
    let reference = proxy.through(&registry.push(lab, fixture));
    let manifest = manifest_digest(lab, fixture);
    let layers = lab.layers(fixture).into_iter().map(|(digest, _)| digest).collect();
    let labels = [("image-ref", reference), ("manifest-digest", manifest)];
    let labels = labels.map(|(name, value)| (format!("containerd.io/snapshot/cri.{name}"), value));
    Image { labels: labels.into_iter().collect(), layers }
}

fn manifest_digest(lab: &Lab, fixture: &str) -> String {
    let index = fs::read(lab.dir_of(fixture).join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    index["manifests"][0]["digest"].as_str().unwrap().to_owned()
}

/// Asks for all layers, as a pull does. Gives the chain of their snapshots.
#[track_caller]
fn pull(snapshotter: &Snapshotter, image: &Image) -> Vec<String> {
    let mut chain: Vec<String> = Vec::new();
    for layer in &image.layers {
        let parent = chain.last().cloned().unwrap_or_default();
        let id = Sha256::digest(format!("{parent} {layer}"));
        let id = format!("sha256:{}", id.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        let mut labels = image.labels.clone();
        labels.insert("containerd.io/snapshot.ref".into(), id.clone());
        labels.insert("containerd.io/snapshot/cri.layer-digest".into(), layer.clone());
        let key = format!("default/1/extract-1 {id}");
        let refused =
            snapshotter.call("Prepare", &[(2, &key), (3, &parent)], &labels).expect_err("it is to be unpacked");
        assert_eq!(refused.0, EXISTS, "{refused:?}");
        let filter = format!(r#"labels."containerd.io/snapshot.ref"=={id},parent=="{parent}""#);
        let listed = snapshotter.call("List", &[(2, &filter)], &BTreeMap::new()).unwrap();
        assert!(String::from_utf8_lossy(&listed).contains(&id), "{listed:?}");
        chain.push(id);
    }
    chain
}

#[track_caller]
fn start(snapshotter: &Snapshotter, lab: &Lab, key: &str, top: &str) -> std::path::PathBuf {
    let response = snapshotter.call("Prepare", &[(2, key), (3, top)], &BTreeMap::new()).unwrap();
    snapshotter.mount(lab, &response)
}

#[test]
fn images_of_all_kinds_are_there_without_a_pull() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    let proxy = Proxy::new(registry.port());
    let snapshotter = Snapshotter::new(&lab);
    for fixture in ["sink-estargz", "sink-gz", "sink-zc-new", "sink-zst", "sink-mixed", "sink-stargz"] {
        let image = image(&lab, &registry, &proxy, fixture);
        let chain = pull(&snapshotter, &image);
        let merged = start(&snapshotter, &lab, &format!("default/2/{fixture}"), chain.last().unwrap());
        lab.assert_equal(&merged, "sink", &["--overlay"]);
        fs::write(merged.join("written"), "x").unwrap();
    }
}

#[test]
fn one_pull_asks_for_the_manifest_once() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    let proxy = Proxy::new(registry.port());
    let snapshotter = Snapshotter::new(&lab);
    let image = image(&lab, &registry, &proxy, "sink-estargz");
    pull(&snapshotter, &image);
    let manifests = proxy.asked().into_iter().filter(|asked| asked.path.contains("/manifests/")).count();
    assert_eq!(manifests, 1);
    // A second pull, of another namespace, asks for nothing.
    let asked = proxy.asked().len();
    pull(&snapshotter, &image);
    assert_eq!(proxy.asked().len(), asked);
}

#[test]
fn containers_go_on_whatever_ends() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    let proxy = Proxy::new(registry.port());
    let mut snapshotter = Snapshotter::new(&lab);
    let image = image(&lab, &registry, &proxy, "sink-mixed");
    let chain = pull(&snapshotter, &image);
    let merged = start(&snapshotter, &lab, "default/2/c", chain.last().unwrap());
    // The front.
    snapshotter.end(Signal::SIGKILL);
    lab.assert_equal(&merged, "sink", &["--overlay"]);
    snapshotter.serve();
    let (server, keeper) = snapshotter.server().unwrap();
    // The server of the layers.
    send(server, Signal::SIGKILL);
    until_gone(server);
    drop_caches();
    lab.assert_equal(&merged, "sink", &["--overlay"]);
    let other = until("another server", || snapshotter.server().filter(|(other, _)| *other != server));
    assert_eq!(other.1, keeper);
    let mounts = snapshotter.call("Mounts", &[(2, "default/2/c")], &BTreeMap::new()).unwrap();
    assert!(String::from_utf8_lossy(&mounts).contains("lowerdir="));
    pull(&snapshotter, &image);
}

#[test]
fn containers_start_again_after_a_reboot_without_the_registry() {
    let Some(lab) = Lab::new() else { return };
    let mut registry = Registry::new(&lab, Access::Open);
    let proxy = Proxy::new(registry.port());
    let mut snapshotter = Snapshotter::new(&lab);
    let image = image(&lab, &registry, &proxy, "sink-estargz");
    let chain = pull(&snapshotter, &image);
    let merged = start(&snapshotter, &lab, "default/2/c", chain.last().unwrap());
    lab.assert_equal(&merged, "sink", &["--overlay"]);
    fs::write(merged.join("written"), "kept").unwrap();
    detach_below(&merged);
    snapshotter.power_off();
    registry.stop();
    snapshotter.serve();
    let mounts = snapshotter.call("Mounts", &[(2, "default/2/c")], &BTreeMap::new()).unwrap();
    let merged = snapshotter.mount(&lab, &mounts);
    assert_eq!(fs::read_to_string(merged.join("written")).unwrap(), "kept");
    fs::remove_file(merged.join("written")).unwrap();
    lab.assert_equal(&merged, "sink", &["--overlay"]);
}

#[test]
fn what_is_removed_is_let_go_of() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    let proxy = Proxy::new(registry.port());
    let snapshotter = Snapshotter::new(&lab);
    let image = image(&lab, &registry, &proxy, "sink-estargz");
    let chain = pull(&snapshotter, &image);
    assert_eq!(snapshotter.held().iter().map(|(_, held)| *held).collect::<Vec<_>>(), [chain.len()]);
    let remove = |name: &str| snapshotter.call("Remove", &[(2, name)], &BTreeMap::new());
    assert!(remove(&chain[0]).is_err(), "it has a child");
    for name in chain.iter().rev() {
        remove(name).unwrap();
    }
    until("that nothing is held", || snapshotter.held().is_empty().then_some(()));
    // And is had again.
    let chain = pull(&snapshotter, &image);
    lab.assert_equal(&start(&snapshotter, &lab, "default/2/c", chain.last().unwrap()), "sink", &["--overlay"]);
}

#[test]
fn what_cannot_be_had_is_unpacked_by_containerd() {
    let Some(lab) = Lab::new() else { return };
    let snapshotter = Snapshotter::new(&lab);
    let digest = format!("sha256:{}", "0".repeat(64));
    let labels = [
        ("containerd.io/snapshot.ref", "sha256:c"),
        ("containerd.io/snapshot/cri.image-ref", "127.0.0.1:1/nowhere:latest"),
        ("containerd.io/snapshot/cri.layer-digest", &digest),
        ("containerd.io/snapshot/cri.manifest-digest", &digest),
    ];
    let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
    let mounts = snapshotter.call("Prepare", &[(2, "default/1/extract-1 c")], &labels).unwrap();
    let dir = snapshotter.mount(&lab, &mounts);
    fs::write(dir.join("unpacked"), "x").unwrap();
    snapshotter.call("Commit", &[(2, "default/2/c"), (3, "default/1/extract-1 c")], &BTreeMap::new()).unwrap();
    let stat = snapshotter.call("Stat", &[(2, "default/2/c")], &BTreeMap::new()).unwrap();
    assert!(String::from_utf8_lossy(&stat).contains("crfs.reason"));
}

#[test]
fn containerds_configuration_is_printed() {
    let Some(lab) = Lab::new() else { return };
    let text = lab.crfs(&["snapshotter", "config", "--containerd", "2.4"]).ok();
    assert!(
        text.contains("enable_remote_snapshot_annotations = \"true\"") && text.contains("/run/crfs/snapshotter.sock")
    );
    let refused = lab.crfs(&["snapshotter", "config", "--containerd", "new"]);
    assert!(!refused.good());
}
