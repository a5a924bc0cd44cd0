//! The released binary against the real world: mounts, a real registry, overlayfs, ordinary users, and images that others' writers made.
//!
//! Needs root, /dev/fuse and the packages that scripts/test installs.
//! What is missing is said, and the test skipped; with CI=true it fails instead.
//!
//! Nothing here asserts a duration or sleeps to be in time: what must happen is waited for, for at most [`support::command::HANG`].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod archives;
mod budget;
mod cache;
mod causes;
mod commands;
mod configuration;
mod doctor;
#[path = "../it/evil.rs"]
#[allow(dead_code)]
mod evil;
mod explain;
mod faults;
mod filesystems;
#[path = "../it/fixtures.rs"]
mod fixtures;
mod formats;
mod heat;
mod idmap;
#[path = "../it/image.rs"]
#[allow(dead_code)]
mod image;
mod keeper;
mod keeper_shelf;
mod keeper_tells;
mod kernel;
mod lazy;
mod life;
#[path = "../it/registry/mod.rs"]
#[allow(dead_code)]
mod lying;
mod metrics;
mod mirrors;
mod mount_helper;
mod namespaces;
mod offline;
mod options;
mod ordinary_user;
mod ours;
mod overlay;
mod packages;
mod plain;
mod progress;
mod readers;
mod refusals;
mod snapshotter;
mod soci;
mod status;
mod stopped;
mod store;
mod store_kept;
mod store_layers;
mod store_life;
mod store_push;
mod store_readers;
mod store_users;
mod support;
mod surroundings;
#[path = "../it/tls_front.rs"]
mod tls_front;
mod vouched;
mod writers;
mod wrong_uses;
