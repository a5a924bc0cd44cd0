//! A store and the podman of an ordinary user.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::support::lab::{CRFS, skip};
use crate::support::podman::Store;
use crate::support::{Lab, busy, run};

fn rootless(how: &str) {
    let Some(lab) = Lab::new() else { return };
    if Store::unserved(&lab).is_none() {
        return;
    }
    if !Path::new("/usr/bin/newuidmap").exists() {
        let _skipped: Option<()> = skip("there is no newuidmap: install the package uidmap");
        return;
    }
    // The repository may lie where others cannot go.
    let (crfs, image, more, dir) = (lab.path("crfs"), lab.path("image"), lab.path("more"), lab.fresh("user"));
    fs::copy(CRFS, &crfs).unwrap();
    for (fixture, copy) in [("busy", &image), ("late-zc-new", &more)] {
        run(Command::new("cp").arg("-rL").arg(lab.dir_of(fixture)).arg(copy)).ok();
        run(Command::new("chmod").args(["-R", "a+rX"]).arg(copy)).ok();
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/support/rootless-store.sh");
    run(Command::new("sh")
        .arg(script)
        .arg(how)
        .arg(&dir)
        .arg(&crfs)
        .arg(&image)
        .arg(&more)
        .arg(busy::FILES.to_string()))
    .ok();
}

/// By kernel overlayfs and by fuse-overlayfs.
#[test]
fn a_user_has_a_store_of_their_own() {
    rootless("own");
}

#[test]
fn root_gives_a_user_the_store() {
    rootless("shared");
}
