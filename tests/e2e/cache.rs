//! One cache under several mounts: within its limit, never wrong, and looked after while it is in use.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::readers::drop_caches;
use crate::support::command::{Finished, send};
use crate::support::mount::until_gone;
use crate::support::registry::Access;
use crate::support::{Lab, Registry, until};

const LAZILY: [&str; 4] = ["--whole-layer-below", "0", "--prefetch", "none"];
const MIB: u64 = 1 << 20;

/// `crfs cache COMMAND --json` of a cache.
#[track_caller]
fn cache(lab: &Lab, command: &str, cache: &Path, options: &[&str]) -> Finished {
    lab.crfs(&[&["cache", command, "--json", "--cache-dir", cache.to_str().unwrap()], options].concat())
}

#[track_caller]
fn parsed(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished}"))
}

/// Bytes on the disk, as du(1) counts them.
fn du(path: &Path) -> u64 {
    let Ok(found) = fs::symlink_metadata(path) else { return 0 };
    // What is evicted or removed meanwhile counts for nothing.
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    found.blocks() * 512 + entries.map(|entry| du(&entry.path())).sum::<u64>()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn a_cache_is_shown_verified_and_cleared_while_it_is_mounted() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    let (image, dir) = (registry.push(&lab, "big-zc-new"), lab.fresh("cache"));
    let mount = lab.mount_with(&image, &dir, &LAZILY);
    lab.assert_equal(mount.dir(), "big", &[]);
    let blob = &lab.layers("big-zc-new")[0].0;
    let shown = |options: &[&str]| {
        let usage = parsed(&cache(&lab, "show", &dir, options));
        let layer = usage["layers"].as_array().unwrap().iter().find(|layer| layer["blob"] == blob.as_str()).cloned();
        (usage, layer)
    };

    let (usage, layer) = shown(&["--cache-size", "1G"]);
    let layer = layer.unwrap();
    assert_eq!((&usage["limit"], &layer["in_use"]), (&(1u64 << 30).into(), &true.into()), "{usage}");
    assert_eq!(layer["images"], serde_json::json!([image]), "{usage}");
    let size = &layer["contents_size"];
    assert!(layer["contents"].as_u64().unwrap() > 8 * MIB && layer["index"].as_u64().unwrap() > 0, "{usage}");
    assert!(usage["total"].as_u64().unwrap().abs_diff(du(&dir)) <= 16_384, "{usage}, du {}", du(&dir));
    let text = lab.crfs(&["cache", "show", "--cache-dir", dir.to_str().unwrap()]).ok();
    assert!(text.contains(blob) && text.contains(&format!("  yes     {image}\n")), "{text}");
    let verified = cache(&lab, "verify", &dir, &[]);
    assert!(verified.good() && parsed(&verified)["bytes"].as_u64().unwrap() > 8 * MIB, "{verified}");

    let cleared = cache(&lab, "clear", &dir, &["--contents"]);
    assert!(parsed(&cleared)["freed"].as_u64().unwrap() > 8 * MIB && parsed(&cleared)["in_use"] == 1, "{cleared}");
    drop_caches();
    lab.assert_equal(mount.dir(), "big", &[]);
    cache(&lab, "clear", &dir, &[]).ok();
    assert!(shown(&[]).1.is_some(), "its index is in use");
    drop_caches();
    lab.assert_equal(mount.dir(), "big", &[]);
    let pid = mount.pid();
    mount.umount().ok();
    until_gone(pid);
    cache(&lab, "clear", &dir, &["--contents"]).ok();
    let (usage, layer) = shown(&[]);
    let layer = layer.unwrap();
    assert_eq!((&layer["contents"], &layer["contents_size"]), (&0.into(), size), "{usage}");
    cache(&lab, "clear", &dir, &[]).ok();
    let (usage, layer) = shown(&[]);
    assert!(layer.is_none() && usage["total"].as_u64().unwrap() < MIB, "{usage}");
    assert_eq!(parsed(&cache(&lab, "show", &dir.join("none"), &[]))["total"], 0);
}

/// Each of three mounts reads three times what the cache may hold, at once.
#[test]
fn several_mounts_share_a_cache_that_is_far_too_small() {
    const LIMIT: u64 = 5 * MIB;
    let Some(lab) = Lab::new() else { return };
    let dir = lab.fresh("cache");
    let options = [&LAZILY as &[&str], &["--cache-size", "5M"]].concat();
    let fixtures = ["big-zc-new", "big-zc-new", "big-estargz"];
    let mounts = fixtures.map(|fixture| lab.mount_with(&lab.layout(fixture), &dir, &options));
    let (done, worst) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                worst.fetch_max(du(&dir), Ordering::Relaxed);
            }
        });
        let readers: Vec<_> = mounts
            .iter()
            .map(|mount| {
                scope.spawn(|| {
                    for _ in 0..3 {
                        drop_caches();
                        lab.differences(mount.dir(), "big", &[])?;
                    }
                    Ok::<_, String>(())
                })
            })
            .collect();
        let read: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        done.store(true, Ordering::Relaxed);
        assert!(read.iter().all(Result::is_ok), "{read:?}");
    });
    let worst = worst.into_inner();
    assert!(worst > LIMIT / 4 && worst <= LIMIT + LIMIT / 20, "du was {worst} at times");
    assert!(mounts.iter().all(|mount| mount.counter("errors") == 0));
    cache(&lab, "verify", &dir, &[]).ok();
}

#[test]
fn a_flipped_bit_in_any_file_is_found_and_never_served() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    let (image, dir) = (registry.push(&lab, "big-zc-new"), lab.fresh("cache"));
    let mount = lab.mount_with(&image, &dir, &LAZILY);
    lab.assert_equal(mount.dir(), "big", &[]);
    let pid = mount.pid();
    mount.umount().ok();
    until_gone(pid);
    let flipped: Vec<_> = files(&dir).into_iter().filter(|path| flip(path)).collect();
    assert!(flipped.len() >= 5, "index, data, present, a manifest, a name: {flipped:?}");
    let verified = cache(&lab, "verify", &dir, &[]);
    assert_eq!(verified.status, Some(1), "{verified}");
    let wrong = parsed(&verified)["wrong"].clone();
    // Of a layer whose index is damaged nothing else can be told.
    for path in flipped.iter().filter(|path| !["data", "present"].iter().any(|name| path.ends_with(name))) {
        assert!(wrong.as_array().unwrap().iter().any(|one| one["path"] == path.to_str().unwrap()), "{path:?}: {wrong}");
    }
    drop_caches();
    let mount = lab.mount_with(&image, &dir, &LAZILY);
    let verified = cache(&lab, "verify", &dir, &[]);
    for name in ["data", "present"] {
        let path = flipped.iter().find(|path| path.ends_with(name)).unwrap();
        let named = parsed(&verified)["wrong"].to_string();
        assert!(named.contains(path.to_str().unwrap()), "{path:?}: {verified}");
    }
    lab.assert_equal(mount.dir(), "big", &[]);
    drop_caches();
    lab.assert_equal(mount.dir(), "big", &[]);
    assert_eq!(mount.counter("errors"), 0);
    cache(&lab, "clear", &dir, &["--contents"]).ok();
    lab.assert_equal(mount.dir(), "big", &[]);
}

/// Flips a bit of the first byte that is stored of a layer's contents, and of one in the middle of any other file.
fn flip(path: &Path) -> bool {
    // Whose the directory is, its mark says by being there.
    if path.ends_with("space") || path.ends_with("crfs-cache") {
        return false;
    }
    let file = File::options().read(true).write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len();
    let at = match path.file_name().unwrap().to_str().unwrap() {
        "data" => nix::unistd::lseek(&file, 0, nix::unistd::Whence::SeekData).unwrap().unsigned_abs(),
        // The last checks' bytes: those of groups may change at any time.
        "present" => len - 1,
        _ => len / 2,
    };
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    true
}

#[test]
fn servers_killed_while_they_store_leave_nothing_wrong() {
    let Some(lab) = Lab::new() else { return };
    let dir = lab.fresh("cache");
    let image = lab.layout("big-zc-new");
    let options = [&LAZILY as &[&str], &["--cache-size", "12M"]].concat();
    for turn in 0..12 {
        let mount = lab.mount_with(&image, &dir, &options);
        let pid = mount.pid();
        let path = mount.path("big/ramp-8400953");
        let reader = thread::spawn(move || fs::read(path).ok());
        // A little further into what it stores each time, however fast that goes.
        until("something stored", || {
            let stored = parsed(&cache(&lab, "show", &dir, &[]))["total"].as_u64().unwrap();
            (stored > turn * 700_000 || reader.is_finished()).then_some(())
        });
        // The next one goes on where this one stopped.
        send(pid, Signal::SIGKILL);
        until_gone(pid);
        let read = reader.join().unwrap();
        assert!(read.is_none_or(|read| read.len() == 8_400_953));
        mount.umount().ok();
        cache(&lab, "verify", &dir, &[]).ok();
        if turn % 4 == 3 {
            cache(&lab, "clear", &dir, &["--contents"]).ok();
        }
    }
    let mount = lab.mount_with(&image, &dir, &options);
    lab.assert_equal(mount.dir(), "big", &[]);
    assert!(du(&dir) <= 12 * MIB + 12 * MIB / 20);
}
