//! crfs under overlayfs, the kernel's and fuse-overlayfs: as containers use it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;
use std::process::Command;

use crate::readers::drop_caches;
use crate::support::mount::{Merger, until_gone};
use crate::support::{Lab, Mount, Overlay, busy, run};

const MERGERS: [Merger; 2] = [Merger::Kernel, Merger::FuseOverlayfs];

/// Each layer of an image, mounted alone.
fn layer_mounts(lab: &Lab, fixture: &str) -> Vec<Mount> {
    let layer = |n: usize| lab.mount(&lab.layout(fixture), &["--layer", &n.to_string()]);
    (0..lab.layers(fixture).len()).map(layer).collect()
}

fn over(lab: &Lab, merger: Merger, lowers: &[Mount]) -> Overlay {
    let dirs: Vec<_> = lowers.iter().map(Mount::dir).collect();
    Overlay::new(lab, merger, &dirs)
}

#[test]
fn each_layer_alone_is_a_lower_directory() {
    let Some(lab) = Lab::new() else { return };
    for (fixture, tree) in [
        ("sink-estargz", "sink"),
        ("sink-zc-new", "sink"),
        ("sink-estargz-lossless", "sink"),
        ("late-estargz", "late"),
        ("late-zc-new", "late"),
    ] {
        for (n, mount) in layer_mounts(&lab, fixture).iter().enumerate() {
            lab.assert_equal(mount.dir(), tree, &["--layer", &(n + 1).to_string()]);
        }
    }
}

#[test]
fn a_layer_is_found_by_its_digest_too() {
    let Some(lab) = Lab::new() else { return };
    let image = lab.layout("late-zc-new");
    let (digest, _) = lab.layers("late-zc-new").remove(1);
    lab.assert_equal(lab.mount(&image, &["--layer", &digest]).dir(), "late", &["--layer", "2"]);
    for missing in ["2", "sha256:0000000000000000000000000000000000000000000000000000000000000000"] {
        let refused = lab.try_mount(&image, &lab.fresh("cache"), &["--layer", missing]);
        let message = refused.err().expect("mounted a layer that is not there").refused();
        assert!(message.contains(missing), "{message}");
    }
}

#[test]
fn layers_merged_by_overlayfs_are_the_image() {
    let Some(lab) = Lab::new() else { return };
    for (fixture, tree) in [("sink-estargz", "sink"), ("sink-zc-new", "sink"), ("late-zc-new", "late")] {
        let lowers = layer_mounts(&lab, fixture);
        for merger in MERGERS {
            let merged = over(&lab, merger, &lowers);
            lab.assert_equal(merged.dir(), tree, &["--overlay"]);
            drop_caches();
            lab.assert_equal(merged.dir(), tree, &["--overlay"]);
        }
    }
}

#[test]
fn the_merged_view_is_one_lower_directory() {
    let Some(lab) = Lab::new() else { return };
    for (fixture, tree) in [("sink-zc-new", "sink"), ("big-estargz", "big"), ("twice-estargz", "twice")] {
        let lower = [lab.mount(&lab.layout(fixture), &[])];
        for merger in MERGERS {
            let merged = over(&lab, merger, &lower);
            lab.assert_equal(merged.dir(), tree, &["--overlay"]);
        }
    }
}

#[test]
fn overlays_can_be_written_to() {
    let Some(lab) = Lab::new() else { return };
    let lower = [lab.mount(&lab.layout("big-zc-new"), &["--whole-layer-below", "0"])];
    for merger in MERGERS {
        let merged = over(&lab, merger, &lower);
        change(&merged);
        drop_caches();
        changed(&merged);
        // What is below has not changed.
        lab.assert_equal(lower[0].dir(), "big", &[]);
    }
}

/// Write, copy-up, chmod, rename and remove, on files that only the lower has, one of them not yet fetched by anybody.
fn change(merged: &Overlay) {
    let path = |name: &str| merged.path("big").join(name);
    fs::write(path("new"), "new").unwrap();
    let mut appended = fs::OpenOptions::new().append(true).open(path("ramp-4194304")).unwrap();
    std::io::Write::write_all(&mut appended, b"and more").unwrap();
    fs::set_permissions(path("zeros"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(path("after"), path("moved")).unwrap();
    fs::remove_file(path("ramp-4194305")).unwrap();
    fs::create_dir(path("directory")).unwrap();
    fs::hard_link(path("moved"), path("directory/link")).unwrap();
}

fn changed(merged: &Overlay) {
    let path = |name: &str| merged.path("big").join(name);
    assert_eq!(fs::read(path("new")).unwrap(), b"new");
    let appended = fs::read(path("ramp-4194304")).unwrap();
    assert_eq!(appended.len(), 4_194_304 + 8);
    assert!(appended.ends_with(b"and more"));
    assert_eq!(fs::metadata(path("zeros")).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(fs::read(path("zeros")).unwrap(), vec![0; 4_500_000]);
    assert_eq!(fs::read(path("moved")).unwrap().len(), 18);
    assert!(!path("after").exists() && !path("ramp-4194305").exists());
    assert_eq!(fs::read(path("directory/link")).unwrap().len(), 18);
}

/// Every kind of file in sink is copied up, and owners, times, capabilities and other xattrs go with it.
#[test]
fn everything_can_be_copied_up() {
    let Some(lab) = Lab::new() else { return };
    let lower = [lab.mount(&lab.layout("sink-zc-new"), &[])];
    let merged = over(&lab, Merger::Kernel, &lower);
    copy_up(merged.dir());
    drop_caches();
    lab.assert_equal(merged.dir(), "sink", &["--overlay"]);
}

/// Gives every entry below the mode, or a symlink the owner, that it has. Hard links are left out: overlayfs parts them when it copies up.
fn copy_up(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            copy_up(&path);
        } else if metadata.nlink() > 1 {
            continue;
        }
        if metadata.is_symlink() {
            lchown(&path, Some(metadata.uid()), Some(metadata.gid())).unwrap();
        } else {
            fs::set_permissions(&path, metadata.permissions()).unwrap();
        }
    }
}

#[test]
fn an_overlay_lives_on_when_its_lower_is_unmounted() {
    let Some(lab) = Lab::new() else { return };
    let lower = [lab.mount(&lab.layout("big-zc-new"), &["--whole-layer-below", "0"])];
    let merged = over(&lab, Merger::Kernel, &lower);
    let pid = lower[0].pid();
    let said = lower[0].umount().ok();
    assert!(said.contains("still in use"), "{said}");
    assert!(!lower[0].is_mounted());
    // Contents that nobody had read before: the server must still be there.
    lab.assert_equal(merged.dir(), "big", &["--overlay"]);
    drop(merged);
    until_gone(pid);
}

#[test]
fn programs_run_in_it() {
    let Some(lab) = Lab::new() else { return };
    if busy::is_there().is_none() {
        return;
    }
    for options in [&["--whole-layer-below", "0"] as &[&str], &[]] {
        let programs = lab.mount(&lab.layout("busy"), options);
        let sink = lab.mount(&lab.layout("sink-zc-new"), options);
        for merger in [None, Some(Merger::Kernel), Some(Merger::FuseOverlayfs)] {
            let alone = merger.map(|merger| Overlay::new(&lab, merger, &[programs.dir()]));
            let root = alone.as_ref().map_or(programs.dir(), Overlay::dir);
            let files = chroot(root, "/bin/busybox", "find /bin -type f | wc -l");
            assert_eq!(files.trim(), busy::FILES.to_string(), "{merger:?}");
            assert_eq!(chroot(root, "/bin/sh", "echo $((6 * 7)) | cat"), "42\n", "{merger:?}");
            let Some(merger) = merger else { continue };
            let both = Overlay::new(&lab, merger, &[sink.dir(), programs.dir()]);
            assert_eq!(
                chroot(both.dir(), "/bin/sh", "cat /etc/group"),
                fs::read_to_string(sink.path("etc/group")).unwrap()
            );
        }
    }
}

fn chroot(root: &Path, shell: &str, script: &str) -> String {
    let applet: &[&str] = if shell.ends_with("busybox") { &["sh"] } else { &[] };
    run(Command::new("chroot").arg(root).arg(shell).args(applet).args(["-c", script])).ok()
}
