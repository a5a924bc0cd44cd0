#!/usr/bin/env bash
# moka 0.12.16: what `invalidate` has taken out of a `sync::Cache` is dropped only when no thread of the process looks into any map of crossbeam's kind.
#
# The key is gone at once, the counts are right after `run_pending_tasks`, and yet the value lives for as long as some thread is "pinned"
# (crossbeam-epoch), be it for another cache. A value that holds a file, a lock or room on a disk gives it back then, and not before.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "late"
version = "0.0.0"
edition = "2021"

[dependencies]
moka = { version = "=0.12.16", features = ["sync"] }
crossbeam-epoch = "=0.9.21"
TOML
cat >src/main.rs <<'RUST'
use std::sync::{Arc, Weak};

fn after_invalidate(of: &moka::sync::Cache<u8, Arc<()>>) -> Weak<()> {
    let value = Arc::new(());
    let weak = Arc::downgrade(&value);
    of.insert(1, value);
    of.run_pending_tasks();
    of.invalidate(&1);
    assert!(!of.contains_key(&1));
    churn(of);
    assert_eq!(of.entry_count(), 0);
    weak
}

/// Work that lets garbage go where it may.
fn churn(of: &moka::sync::Cache<u8, Arc<()>>) {
    for _ in 0..10_000 {
        of.run_pending_tasks();
        crossbeam_epoch::pin().flush();
    }
}

fn main() {
    let cache = moka::sync::Cache::new(10);
    let (is_pinned, pinned) = std::sync::mpsc::channel();
    let (end, ends) = std::sync::mpsc::channel::<()>();
    let other = std::thread::spawn(move || {
        let guard = crossbeam_epoch::pin();
        is_pinned.send(()).unwrap();
        let _end = ends.recv();
        drop(guard);
    });
    pinned.recv().unwrap();
    let value = after_invalidate(&cache);
    let during = value.upgrade().is_some();
    drop(end);
    other.join().unwrap();
    churn(&cache);
    println!("while another thread is pinned: {}, later: {}", if during { "lives" } else { "dropped" },
        if value.upgrade().is_some() { "lives" } else { "dropped" });
}
RUST
said=$(CARGO_TARGET_DIR=$place/target cargo run --quiet --release)
echo "$said"
if [ "$said" != "while another thread is pinned: lives, later: dropped" ]; then
  echo "moka behaves otherwise now"
  exit 1
fi
echo "as found: it is dropped late"
