//! What is not served is refused before anything is mounted, and the message says what it is and what to do.

use std::fs;

use crate::support::registry::Access;
use crate::support::{LAZY, Lab, Mount, Registry};

/// The message with which a mount is refused. Nothing may be mounted, nor said on stdout.
#[track_caller]
fn refusal(lab: &Lab, image: &str, options: &[&str]) -> String {
    match lab.try_mount(image, &lab.fresh("cache"), options) {
        Ok(mount) => panic!("{image} was mounted: {}", mount.line),
        Err(finished) => {
            assert_eq!(finished.stdout, "", "{finished}");
            finished.refused()
        }
    }
}

#[test]
fn a_toc_that_nothing_vouches_for() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    for fixture in LAZY.iter().filter(|fixture| !fixture.vouched) {
        for image in [lab.layout(fixture.name), registry.push(&lab, fixture.name)] {
            let message = refusal(&lab, &image, &["--whole-layer-below", "0"]);
            assert!(message.contains("--insecure-unverified-toc"), "{}: {message}", fixture.name);
            assert!(names_one(&message, &lab.layers(fixture.name)), "names no layer: {message}");
        }
    }
}

#[test]
fn plain_layers_by_what_they_are() {
    let Some(lab) = Lab::new() else { return };
    // Which layers of the four hold something that cannot be served. sink-mixed: its third is a plain tar.
    // sink-docker: Docker's types around plain gzip.
    for (fixture, plain, what) in [
        ("sink-gz", 0..3, "gzip"),
        ("sink-zst", 0..3, "zstd"),
        ("sink-tar", 0..3, "tar"),
        ("sink-mixed", 2..3, "tar"),
        ("sink-docker", 0..3, "gzip"),
    ] {
        for options in [&["--whole-layer-below", "0"] as &[&str], &[]] {
            let message = refusal(&lab, &lab.layout(fixture), options);
            assert!(names_one(&message, &lab.layers(fixture)[plain.clone()]), "{fixture}: names no layer: {message}");
            assert!(message.contains(what), "{fixture}: does not say {what}: {message}");
        }
    }
}

/// Layers are opened in parallel, so that any of those that are refused may be the first.
fn names_one(message: &str, layers: &[(String, u64)]) -> bool {
    layers.iter().any(|(digest, _)| message.contains(digest))
}

#[test]
fn an_image_that_is_not_there() {
    let Some(lab) = Lab::new() else { return };
    let mut registry = Registry::new(&lab, Access::Open);
    let missing = format!("{}/no/such:image", registry.host());
    assert!(refusal(&lab, &missing, &[]).contains("no/such"));
    assert!(refusal(&lab, "oci:/no/such/layout:latest", &[]).contains("/no/such/layout"));
    let untagged = lab.layout("late-estargz").replace(":latest", ":earliest");
    assert!(refusal(&lab, &untagged, &[]).contains("earliest"));
    registry.stop();
    let message = refusal(&lab, &missing, &["--mount-deadline", "2s"]);
    assert!(message.contains(&registry.host()), "{message}");
}

#[test]
fn a_directory_that_cannot_be_mounted_at() {
    let Some(lab) = Lab::new() else { return };
    let image = lab.layout("late-estargz");
    let cache = lab.fresh("cache").display().to_string();
    let file = lab.path("a-file");
    fs::write(&file, "").unwrap();
    for wrong in [lab.path("missing"), file] {
        let wrong = wrong.to_str().unwrap();
        let message = lab.crfs(&["mount", "--cache-dir", &cache, &image, wrong]).refused();
        assert!(message.contains(wrong), "{message}");
    }
}

#[test]
fn wrong_usage_ends_with_2() {
    let Some(lab) = Lab::new() else { return };
    let image = lab.layout("late-estargz");
    let dir = lab.fresh("mount").display().to_string();
    for arguments in [
        &["mount"] as &[&str],
        &["mount", &image],
        &["mount", "--whole-layer-below", "much", &image, &dir],
        &["mount", "--io-deadline", "soon", &image, &dir],
        &["mount", "--prefetch", "some", &image, &dir],
        &["mount", "--frontend", "nfs", &image, &dir],
        &["mount", "--no-such-option", &image, &dir],
        &["no-such-command"],
        &[],
    ] {
        let finished = lab.crfs(arguments);
        drop(Mount::new(dir.clone().into(), String::new()));
        assert_eq!(finished.status, Some(2), "{finished}");
        assert!(!finished.stderr.is_empty(), "{finished}");
    }
}
