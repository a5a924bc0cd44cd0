//! `crfs metrics` tells what the registry says as well.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::image::{File, noise, zstd_chunked};
use crate::lying::{Fault, Lie, On};
use crate::support::lab::CRFS;
use crate::support::lies::Liar;
use crate::support::podman::Store;
use crate::support::tree::{Entry, push};
use crate::support::{Lab, run, until};

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

/// A port of loopback at which nobody listens.
fn free() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// What a real client of HTTP gets: the type of the content, and the content.
#[track_caller]
fn scraped(address: &str) -> (String, String) {
    const CLIENT: &str = "import sys, urllib.request as http; told = http.urlopen(sys.argv[1], timeout=60); \
                          print(told.headers['content-type']); print(told.read().decode(), end='')";
    let said = run(Command::new("python3").args(["-c", CLIENT, &format!("http://{address}/metrics")])).ok();
    let (kind, text) = said.split_once('\n').unwrap();
    (kind.to_owned(), text.to_owned())
}

#[test]
fn prometheus_may_ask_a_mount_by_http_and_nobody_disturbs_it() {
    let Some(lab) = Lab::new() else { return };
    let address = free();
    let mount = lab.mount(&lab.layout("late-zc-new"), &["--metrics-listen", &address]);
    let id = mount.status().unwrap()["id"].as_str().unwrap().to_owned();
    // Some that say nothing, and one that does not come to an end.
    let silent: Vec<_> = (0..40).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let mut endless = TcpStream::connect(&address).unwrap();
    let mut refused = String::new();
    let line = [b'x'; 4096];
    // Reset, or told so.
    while endless.write_all(&line).is_ok() {}
    let _reset = endless.read_to_string(&mut refused);
    let (kind, text) = scraped(&address);
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(sum(&text, "crfs_server", &[("server", &id), ("kind", "mount")]), 1.0, "{text}");
    lab.assert_equal(mount.dir(), "late", &[]);

    let message = lab.try_mount(&lab.layout("late-zc-new"), &lab.fresh("cache"), &["--metrics-listen", &address]);
    let message = message.err().unwrap().refused();
    assert!(message.contains("--metrics-listen") && message.contains(&address), "{message}");

    // A client that stays does not keep the server.
    let pid = mount.pid();
    mount.umount().ok();
    until("the end of the server", || (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
    assert!(TcpStream::connect(&address).is_err());
    drop(silent);
}

#[test]
fn metrics_are_for_this_machine() {
    let Some(lab) = Lab::new() else { return };
    for address in ["0.0.0.0:9155", "[::]:9155", "localhost:9155", "/run/x"] {
        let mount = lab.try_mount(&lab.layout("late-zc-new"), &lab.fresh("cache"), &["--metrics-listen", address]);
        let refused = mount.err().unwrap();
        assert_eq!(refused.status, Some(2), "{refused}");
        assert!(refused.stderr.contains("127.0.0.1:PORT"), "{refused}");
    }
}

#[test]
fn prometheus_may_ask_a_store_by_http() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::unserved(&lab) else { return };
    let (address, socket) = (free(), lab.path("metrics.sock"));
    store.serve_with(&["--metrics-listen", &address]);
    let (_, text) = scraped(&address);
    assert_eq!(sum(&text, "crfs_server", &[("kind", "store")]), 1.0, "{text}");
    store.end(Signal::SIGTERM);
    store.serve_with(&["--metrics-listen", &format!("unix:{}", socket.display())]);
    let mut client = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    client.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut told = String::new();
    client.read_to_string(&mut told).unwrap();
    assert!(told.starts_with("HTTP/1.1 200 OK\r\n") && told.contains("crfs_server{"), "{told}");
    store.end(Signal::SIGTERM);
    assert!(!socket.exists());
}
