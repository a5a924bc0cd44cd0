//! `crfs metrics` tells what the registry says as well.

use std::fs;
use std::process::Command;

use crate::image::{File, noise, zstd_chunked};
use crate::lying::{Fault, Lie, On};
use crate::support::lab::CRFS;
use crate::support::lies::Liar;
use crate::support::podman::Store;
use crate::support::tree::{Entry, push};
use crate::support::{Lab, run};

/// The sum of a metric's series that have all of these labels.
fn sum(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let has = |line: &str| labels.iter().all(|(label, value)| line.contains(&format!("{label}={value:?}")));
    let series = text.lines().filter(|line| line.starts_with(&format!("{name}{{")) && has(line));
    series.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[test]
fn a_mount_counts_what_its_registry_counts() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let content = noise(300_000, 1);
    let layer = zstd_chunked(&[File { name: "file", content: content.clone() }], 10_000);
    let image = liar.push(&[&layer]);
    let mount = lab.mount(&image, &["--prefetch", "none", "--whole-layer-below", "0"]);
    let id = mount.status().unwrap()["id"].as_str().unwrap().to_owned();
    let host = liar.host();
    liar.fault(Fault::times(1, On::Blobs, Lie::Status(503, Vec::new())));
    assert!(fs::read(mount.path("file")).unwrap() == content);
    let text = lab.crfs(&["metrics"]).ok();
    let own = |name: &str, labels: &[(&str, &str)]| sum(&text, name, &[labels, &[("server", &id)]].concat());
    assert_eq!(own("crfs_server", &[("kind", "mount")]), 1.0, "{text}");
    assert_eq!(own("crfs_requests_total", &[("host", &host)]), liar.requests().len() as f64, "{text}");
    assert_eq!(own("crfs_requests_total", &[("status", "503")]), 1.0, "{text}");
    assert_eq!(own("crfs_retries_total", &[("host", &host)]), 1.0, "{text}");
    assert_eq!(own("crfs_requests_in_flight", &[]), 0.0, "{text}");
    assert_eq!(own("crfs_received_bytes_total", &[]), liar.sent(&layer.digest()) as f64, "{text}");
    assert!(own("crfs_verified_bytes_total", &[]) >= 300_000.0 && own("crfs_served_bytes_total", &[]) >= 300_000.0);
    assert_eq!(own("crfs_wrong_bytes_total", &[]), 0.0);
    assert_eq!(own("crfs_layers_total", &[("format", "zstd:chunked"), ("how", "lazy")]), 1.0, "{text}");
    assert!(own("crfs_read_seconds_count", &[("from", "fetch")]) >= 1.0 && own("crfs_cache_bytes", &[]) >= 300_000.0);
    let types = text.lines().filter(|line| line.starts_with("# TYPE"));
    let mut named: Vec<_> = types.clone().collect();
    named.dedup();
    assert_eq!(named.len(), types.count(), "each metric once");
}

#[test]
fn a_store_tells_its_metrics_too() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let liar = Liar::new();
    store.add("localhost/counted:1", &push(&liar, &[&[Entry::file("file", noise(10_000, 1))]]));
    let root = store.root().to_str().unwrap();
    let text = run(Command::new(CRFS).args(["metrics", "--root", root])).ok();
    assert_eq!(sum(&text, "crfs_server", &[("server", root), ("kind", "store")]), 1.0, "{text}");
    assert_eq!(sum(&text, "crfs_layers_total", &[("server", root)]), 1.0, "{text}");
    // Most of them were made by the process that has read the image.
    let host = liar.host();
    assert_eq!(sum(&text, "crfs_requests_total", &[("host", &host)]), liar.requests().len() as f64, "{text}");
}
