//! The registry goes away: what is cached goes on, what is not is EIO, and everything works again when it is back.

use std::fs;
use std::io;
use std::path::Path;

use crate::readers::drop_caches;
use crate::support::mount::ReadOnly;
use crate::support::registry::Access;
use crate::support::{Lab, Registry};

const LAZILY: [&str; 4] = ["--whole-layer-below", "0", "--prefetch", "none"];

fn errno(path: &Path) -> Option<i32> {
    fs::read(path).err().as_ref().and_then(io::Error::raw_os_error)
}

#[test]
fn the_registry_dies_and_comes_back() {
    let Some(lab) = Lab::new() else { return };
    let mut registry = Registry::new(&lab, Access::Open);
    let options = [&LAZILY as &[&str], &["--io-deadline", "1s"]].concat();
    let mount = lab.mount(&registry.push(&lab, "big-zc-new"), &options);
    let cached = mount.path("big/after");
    let uncached = mount.path("big/ramp-4194304");
    let before = fs::read(&cached).unwrap();

    registry.stop();
    drop_caches();
    assert_eq!(fs::metadata(&uncached).unwrap().len(), 4_194_304, "metadata");
    assert_eq!(fs::read_dir(mount.path("big")).unwrap().count(), 5, "a listing");
    assert_eq!(fs::read(&cached).unwrap(), before, "cached contents");
    assert_eq!(errno(&uncached), Some(nix::libc::EIO), "uncached contents");
    assert_eq!(errno(&uncached), Some(nix::libc::EIO), "and again");
    let status = mount.status().unwrap();
    assert!(status["errors"].as_u64().unwrap() > 0 && status["last_error"].is_string(), "{status}");

    registry.start();
    lab.assert_equal(mount.dir(), "big", &[]);
}

#[test]
fn a_frozen_registry_is_eio_at_the_deadline() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    let options = [&LAZILY as &[&str], &["--io-deadline", "1s"]].concat();
    let mount = lab.mount(&registry.push(&lab, "big-estargz"), &options);
    registry.freeze();
    assert_eq!(errno(&mount.path("big/ramp-4194304")), Some(nix::libc::EIO));
    registry.thaw();
    lab.assert_equal(mount.dir(), "big", &[]);
}

#[test]
fn what_is_wholly_cached_needs_no_registry() {
    let Some(lab) = Lab::new() else { return };
    let mut registry = Registry::new(&lab, Access::Open);
    let images: Vec<_> =
        [("sink-zc-new", "sink"), ("sink-estargz-ext", "sink"), ("big-estargz", "big"), ("late-zc-new", "late")]
            .map(|(fixture, tree)| (registry.push(&lab, fixture), tree, lab.fresh("cache")))
            .into();
    for whole in [&LAZILY as &[&str], &[]] {
        for (image, tree, cache) in &images {
            let mount = lab.mount_with(image, cache, whole);
            lab.assert_equal(mount.dir(), tree, &[]);
        }
        registry.stop();
        for (image, tree, cache) in &images {
            let mount =
                lab.mount_with(image, cache, &[whole, &["--io-deadline", "1s", "--mount-deadline", "10s"]].concat());
            lab.assert_equal(mount.dir(), tree, &[]);
        }
        registry.start();
    }
}

/// A cache that cannot be written to is still read.
#[test]
fn a_read_only_cache_is_enough() {
    let Some(lab) = Lab::new() else { return };
    let mut registry = Registry::new(&lab, Access::Open);
    let (image, cache) = (registry.push(&lab, "sink-zc-new"), lab.fresh("cache"));
    let mount = lab.mount_with(&image, &cache, &LAZILY);
    lab.assert_equal(mount.dir(), "sink", &[]);
    mount.umount().ok();
    registry.stop();
    let _read_only = ReadOnly::new(&cache);
    let deadlines = ["--io-deadline", "1s", "--mount-deadline", "10s"];
    let mount = lab.mount_with(&image, &cache, &[&LAZILY as &[&str], &deadlines].concat());
    lab.assert_equal(mount.dir(), "sink", &[]);
    mount.umount().ok();
}

/// An entry of the cache that is not what it was is fetched again, never served.
#[test]
fn a_damaged_cache_is_noticed() {
    let Some(lab) = Lab::new() else { return };
    let cache = lab.fresh("cache");
    let image = lab.layout("big-zc-new");
    let mount = lab.mount_with(&image, &cache, &LAZILY);
    lab.assert_equal(mount.dir(), "big", &[]);
    mount.umount().ok();
    for damage in [flip as fn(&Path), truncate] {
        drop_caches();
        each_file(&cache, &damage);
        let mount = lab.mount_with(&image, &cache, &LAZILY);
        lab.assert_equal(mount.dir(), "big", &[]);
        mount.umount().ok();
    }
}

fn each_file(dir: &Path, damage: &impl Fn(&Path)) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => each_file(&entry.path(), damage),
            kind if kind.is_file() => damage(&entry.path()),
            _ => {}
        }
    }
}

/// Flips one bit in the middle, in the first data of a sparse file.
fn flip(path: &Path) {
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    if file.read_at(&mut byte, middle).unwrap() == 1 {
        file.write_at(&[byte[0] ^ 1], middle).unwrap();
    }
}

/// Cuts the second half off.
fn truncate(path: &Path) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
}
