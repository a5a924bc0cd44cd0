//! crfs: a lazy-pull filesystem for container images.
//!
//! Data flows one way, and so do the imports (docs/design.md has the whole picture):
//!
//! ```text
//! reference -> registry -> index -> tree -> frontend                     metadata, once, at mount
//! frontend  -> fetch -> registry -> decode -> verify -> cache -> frontend   data, at read
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

pub mod blob;
pub mod budget;
pub mod cache;
pub mod cli;
pub mod doctor;
pub mod errors;
pub mod fetch;
pub mod fs;
pub mod image;
pub mod index;
pub mod keeper;
pub mod kernel;
pub mod metrics;
pub mod podman;
pub mod registry;
pub mod serve;
#[cfg(feature = "snapshotter")]
pub mod snapshotter;
pub mod sys;
mod tar;
pub mod threads;
mod toml_file;
