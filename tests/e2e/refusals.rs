//! What is not served is refused before anything is mounted, and the message says what it is and what to do.

use std::fs;

use crate::image::{File, gzip, noise, plain, tar};
use crate::lying::{Fault, Lie, On};
use crate::support::lies::Liar;
use crate::support::registry::Access;
use crate::support::{Lab, Mount, Registry};

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
fn layers_of_other_compressors_by_what_they_are() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    for (magic, name) in [(b"\xfd7zXZ\0".as_slice(), "xz"), (b"BZh91AY&SY", "bzip2")] {
        let layer = plain([magic, &noise(5000, 1)].concat());
        for whole in [&["--whole-layer-below", "0"] as &[&str], &[]] {
            let message = refusal(&lab, &liar.push(&[&layer]), whole);
            assert!(message.contains(name) && message.contains(&layer.digest().to_string()), "{message}");
        }
    }
}

#[test]
fn a_layer_that_is_not_what_the_manifest_names() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let layer = plain(gzip(&tar(&[File { name: "file", content: noise(3 << 20, 1) }])));
    let image = liar.push(&[&layer]);
    let mut wrong = layer.blob.clone();
    *wrong.last_mut().unwrap() ^= 1;
    liar.replace_blob(&layer.digest(), &wrong);
    let message = refusal(&lab, &image, &[]);
    assert!(message.contains("wrong bytes") && message.contains(&layer.digest().to_string()), "{message}");
}

/// What is in flight when a mount is refused ends without a word. Many mounts at once, so that their threads are late.
#[test]
fn a_layer_that_is_refused_while_the_config_is_waited_for() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let layer = plain(gzip(&tar(&[File { name: "file", content: noise(2 << 20, 1) }])));
    let image = liar.push(&[&layer]);
    let (about, refused) = (layer.digest().to_string(), Lie::Status(403, Vec::new()));
    liar.fault(Fault::always(On::Blobs, refused).about(&about));
    liar.fault(Fault::always(On::Blobs, Lie::Silence));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let message = refusal(&lab, &image, &[]);
                    assert!(message.contains("denies access (403)"), "{message}");
                    assert_eq!(message.lines().count(), 1, "{message}");
                }
            });
        }
    });
    liar.clear_faults();
    liar.fault(Fault::always(On::Blobs, Lie::Silence));
    let message = refusal(&lab, &image, &["--mount-deadline", "1s"]);
    assert!(message.contains("--mount-deadline") && message.lines().count() == 1, "{message}");
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
