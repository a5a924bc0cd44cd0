//! podman's additional image store: images that podman runs and that were never pulled.
//!
//! ```text
//! ROOT/                                  --root, for storage.conf's additionalimagestores
//!     overlay-images/images.json, .lock  real files, so that podman never needs a server to read them (files.rs, podman.rs)
//!     overlay-images/<image id>/         manifest and config, byte for byte
//!     overlay-layers/layers.json, .lock
//!     overlay-layers/<layer id>.tar-split.gz      of layers that podman can push (tar_splits.rs)
//!     overlay/                           one FUSE mount (trees.rs), and what shows without it (stubs.rs)
//!         <layer id>/{diff/, link, lower, merged/}
//!         l/<link> -> ../<layer id>/diff
//!     crfs.lock                          held by whoever changes the store: a server, or a command where none runs
//!     users/<name>/                      the same for a user, by clones (share.rs)
//! ROOT/crfs/                             --state, for its owner alone
//!     store.json                         what the store holds, and where it came from (records.rs)
//!     control.sock, server.log
//! ```
//!
//! store.json is the truth; images.json and layers.json follow from it. An image is added from below: its layers are served, then named in
//! layers.json, then the image in images.json. It goes the other way, and its layers stay for a while after it.
//!
//! The layout is that of containers/storage 1.43 (podman 4.3.1), and what later versions up to 1.62 read of it; docs/podman.md says more.

mod add;
mod apart;
mod carried;
mod contents;
mod control;
mod error;
mod files;
mod guard;
mod idmap;
mod lockfile;
mod open;
mod paths;
mod podman;
mod records;
mod refer;
mod remove;
mod serve;
mod share;
mod stubs;
mod tar_splits;
mod trees;

pub mod commands;
pub mod places;

pub use apart::{SUBCOMMAND as READER, read};
pub use error::Error;
pub use guard::{SUBCOMMAND as GUARD, guard};
pub use idmap::{SUBCOMMAND as NAMESPACE, hold_namespace};
pub use paths::Paths;
pub use serve::{ServeOptions, serve};

#[cfg(test)]
mod tests;
