//! Tests of crfs from outside, against a registry that lies (registry/).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::print_stderr)]

mod around;
mod auth;
mod budget;
mod contents;
mod crowds;
mod ending;
mod evil;
mod faults;
mod fixtures;
mod hostile;
mod image;
mod local;
mod mirrors;
mod plain;
mod ranges;
mod redirects;
mod registry;
mod resolve;
mod slices;
mod soci;
mod soci_mounts;
mod stuck;
mod support;
mod tls;
mod tls_front;
mod whole;
mod ztoc;
