//! What real tools wrote (tests/data/writers) looks as another program unpacks it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Lab, run};

/// Where each image is, and the listing of what is in it.
const IMAGES: [(&str, &str); 16] = [
    ("oci:crane", "two"),
    ("oci:crane-index", "two"),
    ("docker-archive:crane.tar", "two"),
    ("oci:regctl:docker", "two"),
    ("oci:regctl:zstd", "two"),
    ("oci:regctl:stale-zstd", "buildkit"),
    ("oci:regctl:stale-gzip", "stale-gzip"),
    ("oci:umoci:two", "two"),
    ("oci:umoci:repacked", "repacked"),
    ("oci:ko", "ko"),
    ("docker-archive:ko.tar", "ko"),
    ("oci:buildkit-gzip", "buildkit"),
    ("oci:buildkit-zstd", "buildkit"),
    ("oci:buildkit-estargz", "buildkit"),
    ("docker-archive:jib-docker.tar", "jib"),
    ("oci-archive:jib-oci.tar", "jib"),
];

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/writers")
}

/// An image among the data, as a reference.
fn reference(name: &str) -> String {
    let (transport, place) = name.split_once(':').unwrap();
    format!("{transport}:{}", data().join(place).display())
}

/// How a mount differs from a listing, line by line; `Ok` where it does not.
fn compare(dir: &Path, listing: &str) -> Result<(), String> {
    let expected = std::fs::read_to_string(data().join(format!("{listing}.jsonl"))).unwrap();
    let listed = run(Command::new(data().join("list")).arg(dir)).ok();
    let only = |these: &str, those: &str, sign: char| -> String {
        let lines = these.lines().filter(|line| !those.lines().any(|other| other == *line));
        lines.map(|line| format!("{sign} {line}\n")).collect()
    };
    let differences = only(&expected, &listed, '-') + &only(&listed, &expected, '+');
    if differences.is_empty() { Ok(()) } else { Err(differences) }
}

#[test]
fn every_writers_images_look_as_others_unpack_them() {
    let Some(lab) = Lab::new() else { return };
    let mut failures = Vec::new();
    for (name, listing) in IMAGES {
        for options in [&["--whole-layer-below", "0"][..], &[]] {
            let compared = match lab.try_mount(&reference(name), &lab.fresh("cache"), options) {
                Ok(mount) => compare(mount.dir(), listing),
                Err(finished) => Err(finished.to_string()),
            };
            failures.extend(compared.err().map(|difference| format!("{name} {options:?}:\n{difference}")));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn what_oras_pushed_is_called_an_artifact() {
    let Some(lab) = Lab::new() else { return };
    let artifacts = [
        ("file", "application/vnd.unknown.artifact.v1"),
        ("directory", "application/vnd.example.thing"),
        ("old", "application/vnd.unknown.config.v1+json"),
    ];
    for (tag, kind) in artifacts {
        let image = reference(&format!("oci:oras:{tag}"));
        let message = lab.try_mount(&image, &lab.fresh("cache"), &[]).err().expect("mounted an artifact").refused();
        assert!(message.contains("artifact") && message.contains(kind), "{message}");
    }
}
