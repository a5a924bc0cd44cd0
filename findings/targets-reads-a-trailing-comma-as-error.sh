#!/usr/bin/env bash
# tracing-subscriber 0.3.23: `Targets` reads what stands behind a trailing comma as the level ERROR.
#
# "info," is "info" and an empty directive. The empty one is no mistake to it, but the default level ERROR, and replaces the one before: warnings
# and infos are gone without a word. EnvFilter of the same crate leaves empty directives out, so who replaces it by the lighter Targets loses the
# logs of those whose RUST_LOG ends with a comma or has two in a row.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "comma"
version = "0.0.0"
edition = "2021"

[dependencies]
tracing-core = "=0.1.36"
tracing-subscriber = { version = "=0.3.23", features = ["env-filter"] }
TOML
cat >src/main.rs <<'RUST'
use tracing_core::LevelFilter;
use tracing_subscriber::filter::{EnvFilter, Targets};

fn main() {
    for text in ["info", "info,", "info,,hyper=off"] {
        let targets = text.parse::<Targets>().map(|targets| targets.default_level());
        let filter = text.parse::<EnvFilter>().map(|filter| filter.max_level_hint());
        println!("{text}: Targets {targets:?}, EnvFilter {filter:?}");
        assert_eq!(targets.unwrap(), Some(if text == "info" { LevelFilter::INFO } else { LevelFilter::ERROR }));
        assert_eq!(filter.unwrap(), Some(LevelFilter::INFO));
    }
}
RUST
cargo run --quiet
echo "as found: a trailing comma is the level ERROR"
