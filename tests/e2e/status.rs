//! `crfs status` shows mounts and stores alike, and those that do not answer.

use std::fs;
use std::io::Write;
use std::ops::Deref;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::image::{File, config, manifest_with, noise, zstd_chunked};
use crate::lying::OCI_MANIFEST;
use crate::support::command::{Finished, send};
use crate::support::lab::CRFS;
use crate::support::lies::Liar;
use crate::support::podman::Store;
use crate::support::{Lab, run};

const SIZE: usize = 300_000;

/// What `crfs status --json` says of the store.
#[track_caller]
fn status_of(store: &Store) -> Option<Value> {
    let all: Vec<Value> = serde_json::from_str(&asked("status", &["--json"], store).ok()).unwrap();
    all.into_iter().find(|one| one["dir"].as_str().map(Path::new) == Some(store.root()))
}

fn asked(command: &str, more: &[&str], store: &Store) -> Finished {
    run(Command::new(CRFS).arg(command).args(more).arg("--root").arg(store.root()))
}

/// Of the only layer of a store.
fn layer_dir(store: &Store) -> PathBuf {
    let entries = fs::read_dir(store.path("overlay")).unwrap().map(|entry| entry.unwrap());
    let mut layers = entries.filter(|entry| entry.file_name().len() == 64);
    layers.next().unwrap().path().join("diff")
}

/// Adds an image of which nothing is fetched before it is read.
fn add(liar: &Liar, store: &Store) -> Vec<u8> {
    let content = noise(SIZE, 1);
    let layer = zstd_chunked(&[File { name: "file", content: content.clone() }], 10_000);
    let config = config(&[layer.digest()]);
    let manifest = manifest_with(&config, &[&layer]);
    Deref::deref(liar).push("a", "1", OCI_MANIFEST, &manifest, &[&layer.blob, &config]);
    let image = format!("{}/a:1", liar.host());
    store.crfs("add", &["--whole-layer-below", "0", "--name", "localhost/shown:1", &image]).ok();
    content
}

#[test]
fn a_store_is_shown_beside_mounts_with_what_it_did() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::new(&lab) else { return };
    let liar = Liar::new();
    let content = add(&liar, &store);
    let root = store.root().to_str().unwrap().to_owned();
    for _ in 0..2 {
        assert!(fs::read(layer_dir(&store).join("file")).unwrap() == content);
    }
    let status = status_of(&store).unwrap();
    let expected = [("kind", "store"), ("state", "serving"), ("id", &root), ("frontend", "fuse")];
    assert!(expected.iter().all(|(field, value)| status[field] == **value), "{status}");
    assert_eq!((&status["image"], &status["last_error"]), (&Value::Null, &Value::Null), "{status}");
    let number = |field: &str| status[field].as_u64().unwrap_or_else(|| panic!("no {field} in {status}"));
    assert_eq!((number("images"), number("layers")), (1, 1), "{status}");
    assert_eq!(number("pid"), u64::from(store.pid()), "{status}");
    assert!(number("served") >= SIZE as u64 && number("fetched") > 0 && number("requests") > 0, "{status}");
    let metrics = asked("metrics", &[], &store).ok();
    let served = format!("crfs_served_bytes_total{{server={root:?}}} {}", number("served"));
    assert!(metrics.lines().any(|line| line == served), "{served} is not in {metrics}");
    let mount = lab.mount(&lab.layout("late-zc-new"), &[]);
    let text = asked("status", &[], &store).ok();
    let line = |dir: &str| text.lines().find(|line| line.ends_with(dir)).unwrap_or_else(|| panic!("{dir}: {text}"));
    assert!(line(&root).starts_with("serving  store") && line(&root).contains("  1 image  "), "{text}");
    assert!(line(mount.dir().to_str().unwrap()).starts_with("serving  mount"), "{text}");
    assert_eq!(mount.status().unwrap()["kind"], "mount");
    store.end(Signal::SIGTERM);
    assert_eq!(status_of(&store), None);
}

#[test]
fn a_stopped_store_is_silent_and_others_are_told_of() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let mount = lab.mount(&lab.layout("late-zc-new"), &[]);
    send(store.pid(), Signal::SIGSTOP);
    let status = status_of(&store);
    let text = asked("status", &[], &store);
    let metrics = asked("metrics", &[], &store);
    send(store.pid(), Signal::SIGCONT);
    let status = status.unwrap();
    assert_eq!((&status["state"], status["pid"].as_u64()), (&"silent".into(), Some(store.pid().into())), "{status}");
    assert!(status["last_error"].as_str().unwrap().contains("has not answered for 2 s"), "{status}");
    assert!(text.ok().contains(mount.dir().to_str().unwrap()));
    assert!(!metrics.good() && metrics.stderr.contains("has not answered for 2 s"), "{metrics}");
    assert!(metrics.stdout.contains("kind=\"mount\""), "{metrics}");
}

/// As a server of the first version has it: whoever connects is told its figures, and another socket tells metrics.
#[test]
fn a_server_of_an_older_crfs_is_named() {
    let Some(lab) = Lab::new() else { return };
    let mount = lab.mount(&lab.layout("late-zc-new"), &[]);
    let id = mount.status().unwrap()["id"].as_str().unwrap().to_owned();
    let socket = Path::new("/run/crfs").join(&id).join("control.sock");
    fs::remove_file(&socket).unwrap();
    let older = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        for stream in older.incoming() {
            let told = br#"{"served":1,"fetched":2,"cached":3,"requests":4,"errors":0,"unkept":0,"last_error":null}"#;
            // Whoever asked may be gone.
            let _told = stream.unwrap().write_all(told);
        }
    });
    let status = mount.status().unwrap();
    assert_eq!(status["state"], "silent", "{status}");
    assert!(status["last_error"].as_str().unwrap().contains("another version of crfs"), "{status}");
    let metrics = run(Command::new(CRFS).arg("metrics"));
    assert!(!metrics.good() && metrics.stderr.contains("another version of crfs"), "{metrics}");
    assert!(fs::read_dir(mount.dir()).unwrap().count() > 0, "it serves");
    mount.umount().ok();
    assert!(!mount.is_mounted() && !socket.exists());
}
