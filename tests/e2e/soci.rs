//! Layers with the zTOCs that soci-snapshotter made, and docker archives: each looks exactly like its expected listing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::readers::drop_caches;
use crate::support::registry::Access;
use crate::support::{Lab, Registry};

/// Every fixture with zTOCs, and the options with which they are used. Their image indexes are all for one platform.
const SOCI: [(&str, &[&str]); 6] = [
    ("big-soci1", &["--soci-v1"]),
    ("sink-soci1", &["--soci-v1"]),
    ("sink-soci2", &[]),
    ("odd-soci2-tar", &[]),
    ("twice-soci2-tar", &[]),
    ("twice-soci2-multi", &[]),
];

const PLATFORM: [&str; 2] = ["--platform", "linux/amd64"];

const LAZILY: [&str; 4] = ["--whole-layer-below", "0", "--prefetch", "none"];

/// The listing that a fixture must look like.
fn tree(fixture: &str) -> &str {
    fixture.split('-').next().unwrap()
}

/// What vouches for the layers that a cache has something of: `own`, `toc` or `ztoc`.
fn kept(cache: &Path) -> BTreeSet<String> {
    let below = |dir: &Path| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let layouts = below(cache).into_iter().map(|layout| layout.join("layers")).filter(|layers| layers.exists());
    let keys = layouts.flat_map(|layers| below(&layers)).flat_map(|layer| below(&layer));
    keys.map(|key| key.file_name().unwrap().to_str().unwrap().split('-').next().unwrap().to_owned()).collect()
}

/// Mounts it, compares, and unmounts.
#[track_caller]
fn equals(lab: &Lab, image: &str, cache: &Path, fixture: &str, options: &[&str]) {
    drop_caches();
    let mount = lab.mount_with(image, cache, &[&PLATFORM, options].concat());
    lab.assert_equal(mount.dir(), tree(fixture), &[]);
    mount.umount().ok();
}

#[track_caller]
fn clear(lab: &Lab, cache: &Path) {
    lab.crfs(&["cache", "clear", "--contents", "--cache-dir", cache.to_str().unwrap()]).ok();
}

/// `crfs inspect --json`: which index a mount would use of each layer.
#[track_caller]
fn indexes(lab: &Lab, image: &str, cache: &Path, options: &[&str]) -> Vec<String> {
    let arguments = [&["inspect", "--json", "--cache-dir", cache.to_str().unwrap()], &PLATFORM[..], options, &[image]];
    let json: Value = serde_json::from_str(&lab.crfs(&arguments.concat()).ok()).unwrap();
    let layers = json["layers"].as_array().unwrap();
    layers.iter().map(|layer| layer["index_from"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_fixture_with_ztocs_is_served_by_them() {
    let Some(lab) = Lab::new() else { return };
    for (fixture, options) in SOCI {
        let (image, cache) = (lab.layout(fixture), lab.fresh("cache"));
        let options = [&LAZILY as &[&str], options].concat();
        equals(&lab, &image, &cache, fixture, &options);
        assert_eq!(kept(&cache), BTreeSet::from(["ztoc".to_owned()]), "{fixture}");
        clear(&lab, &cache);
        equals(&lab, &image, &cache, fixture, &options);
        assert_eq!(kept(&cache), BTreeSet::from(["ztoc".to_owned()]), "{fixture}");
    }
}

#[test]
fn what_a_mount_says_that_it_fetched_has_the_ztocs() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    let mount = lab.mount(&registry.push(&lab, "big-soci1"), &[&LAZILY[..], &PLATFORM, &["--soci-v1"]].concat());
    // Of the layers themselves nothing.
    assert!(mount.line.contains("KiB fetched") || mount.line.contains("MiB fetched"), "{}", mount.line);
    mount.umount().ok();
}

#[test]
fn what_was_read_by_ztocs_needs_no_registry() {
    let Some(lab) = Lab::new() else { return };
    let mut registry = Registry::new(&lab, Access::Open);
    let images = SOCI.map(|(fixture, options)| {
        let (image, cache) = (registry.push(&lab, fixture), lab.fresh("cache"));
        let options = [&LAZILY as &[&str], options].concat();
        equals(&lab, &image, &cache, fixture, &options);
        (fixture, image, cache, options)
    });
    registry.stop();
    for (fixture, image, cache, options) in &images {
        let offline = [options, &["--io-deadline", "1s", "--mount-deadline", "10s"][..]].concat();
        equals(&lab, image, cache, fixture, &offline);
        assert_eq!(kept(cache), BTreeSet::from(["ztoc".to_owned()]), "{fixture}");
    }
}

#[test]
fn an_index_of_our_own_is_used_instead_of_ztocs() {
    let Some(lab) = Lab::new() else { return };
    for (fixture, options) in SOCI {
        let (image, cache) = (lab.layout(fixture), lab.fresh("cache"));
        let options = [&LAZILY as &[&str], options].concat();
        equals(&lab, &image, &cache, fixture, &options);
        lab.crfs(&[&["index", "--cache-dir", cache.to_str().unwrap()], &PLATFORM[..], &[&image]].concat()).ok();
        clear(&lab, &cache);
        equals(&lab, &image, &cache, fixture, &options);
        let used: BTreeSet<_> = indexes(&lab, &image, &cache, &[]).into_iter().collect();
        assert_eq!(used, BTreeSet::from(["own".to_owned()]), "{fixture}");
        lab.crfs(&["cache", "verify", "--cache-dir", cache.to_str().unwrap()]).ok();
    }
}

#[test]
fn inspect_says_that_an_index_is_from_soci() {
    let Some(lab) = Lab::new() else { return };
    for (fixture, options) in SOCI {
        let used = indexes(&lab, &lab.layout(fixture), &lab.fresh("cache"), options);
        assert!(!used.is_empty() && used.iter().all(|from| from == "soci"), "{fixture}: {used:?}");
    }
    for fixture in ["big-soci1", "sink-soci1"] {
        let used = indexes(&lab, &lab.layout(fixture), &lab.fresh("cache"), &[]);
        assert!(used.iter().all(|from| from == "none"), "{fixture} without --soci-v1: {used:?}");
    }
}

#[test]
fn an_index_of_version_1_is_for_those_who_ask_for_it() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    for fixture in ["big-soci1", "sink-soci1"] {
        let (image, cache) = (registry.push(&lab, fixture), lab.fresh("cache"));
        equals(&lab, &image, &cache, fixture, &LAZILY);
        assert_eq!(kept(&cache), BTreeSet::from(["own".to_owned()]), "{fixture}");

        let cache = lab.fresh("cache");
        let index = soci_index(&lab, fixture);
        equals(&lab, &image, &cache, fixture, &[&LAZILY as &[&str], &["--soci-index", &index]].concat());
        assert_eq!(kept(&cache), BTreeSet::from(["ztoc".to_owned()]), "{fixture}");
    }
    let missing = format!("sha256:{:064}", 1);
    let options = [&LAZILY as &[&str], &["--soci-index", &missing]].concat();
    let refused = lab.try_mount(&registry.push(&lab, "big-soci1"), &lab.fresh("cache"), &options);
    let message = refused.err().expect("mounted by an index that is not there").refused();
    assert!(message.contains(&missing), "{message}");
}

/// The digest of the SOCI index in a layout, which has no name there.
fn soci_index(lab: &Lab, fixture: &str) -> String {
    let dir = lab.dir_of(fixture);
    let json = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let digest = |entry: &Value| entry["digest"].as_str().unwrap().to_owned();
    let index = json(&dir.join("index.json"));
    let is_soci = |digest: &String| {
        let manifest = json(&dir.join("blobs").join(digest.replace(':', "/")));
        manifest["config"]["mediaType"].as_str().is_some_and(|kind| kind.contains("amazon.soci.index"))
    };
    index["manifests"].as_array().unwrap().iter().map(digest).find(is_soci).unwrap()
}

/// As `lab.layout`.
fn docker_archive(name: &str) -> String {
    format!("docker-archive:{}{name}", crate::fixtures::docker_archive().display())
}

#[test]
fn a_docker_archive_is_one_image_however_it_is_named() {
    let Some(lab) = Lab::new() else { return };
    let cache = lab.fresh("cache");
    let images = [":@0", "", ":fixtures.invalid/sink:latest"].map(docker_archive);
    assert_eq!(indexes(&lab, &images[0], &cache, &LAZILY[..2]), ["none"; 4]);
    equals(&lab, &images[0], &cache, "sink", &LAZILY);
    for image in &images {
        assert_eq!(indexes(&lab, image, &cache, &LAZILY[..2]), ["own"; 4], "{image}");
        clear(&lab, &cache);
        equals(&lab, image, &cache, "sink", &LAZILY);
    }
}

#[test]
fn a_name_that_a_docker_archive_does_not_have_is_refused_with_those_it_has() {
    let Some(lab) = Lab::new() else { return };
    for name in [":fixtures.invalid/sink:v2", ":another", ":@1"] {
        let refused = lab.try_mount(&docker_archive(name), &lab.fresh("cache"), &[]);
        let message = refused.err().expect("mounted what is not there").refused();
        assert!(message.contains("fixtures.invalid/sink:latest"), "{name}: {message}");
    }
}
