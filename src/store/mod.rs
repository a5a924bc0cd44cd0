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
mod lock;
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

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use tokio::sync::{Notify, Semaphore, watch};

use self::apart::Readers;
use self::contents::Wants;
use self::lock::Lock;
use self::records::Records;
use self::stubs::Stubs;
use self::trees::Trees;
use crate::blob::Digest;
use crate::cache::Cache;
use crate::image::engine::Common;
use crate::kernel::mounts::Device;
use crate::registry::Hosts;

/// A store that this process may change.
struct Store {
    paths: Paths,
    common: Common,
    records: tokio::sync::Mutex<Records>,
    trees: Trees,
    /// What is mounted, once it is.
    device: OnceLock<Device>,
    /// Why a layer is not open.
    problems: Mutex<HashMap<Digest, String>>,
    /// Images that are being opened, by their manifests.
    opening: Mutex<HashSet<Digest>>,
    /// Since when no image has a layer.
    unused: Mutex<HashMap<Digest, Instant>>,
    stubs: Stubs,
    /// Images were removed: what is left of them can go later.
    removed: Notify,
    /// Those of the users that have the store, by their names.
    user_stubs: Mutex<BTreeMap<String, Stubs>>,
    /// Layers were opened: their blobs may carry tar-splits.
    opened: Notify,
    /// Those that read such tar-splits.
    carried_reads: Semaphore,
    lock: Lock,
    /// Whether a server does what it is asked for by now.
    ready: watch::Sender<bool>,
    /// Who reads images, if that is not this process.
    readers: Option<Readers>,
}

impl Store {
    /// `wants`: who joins layers to images, where more is to be fetched than what is read.
    fn new(paths: Paths, cache: Cache, wants: Option<Wants>, lock: Lock) -> Result<Self, Error> {
        let mount = paths.mount();
        open::clear_point(&mount)?;
        let stubs = Stubs::open(&mount, None).map_err(|source| Error::File { path: mount, source })?;
        files::remove_unfinished(&paths);
        let records = Records::read(&paths.records())?;
        let trees = Trees::new(wants);
        trees.show(&records);
        let common = Common::new(cache, Hosts::default());
        let (problems, opening, unused) = (Mutex::default(), Mutex::default(), Mutex::default());
        let user_stubs = Mutex::new(share::stubs_again(&paths, &records));
        let records = tokio::sync::Mutex::new(records);
        let device = OnceLock::new();
        let (removed, opened, carried_reads) = (Notify::new(), Notify::new(), Semaphore::new(carried::READS));
        Ok(Self {
            paths,
            common,
            records,
            trees,
            device,
            problems,
            opening,
            unused,
            stubs,
            user_stubs,
            removed,
            opened,
            carried_reads,
            lock,
            ready: watch::Sender::default(),
            readers: None,
        })
    }
}

#[cfg(test)]
mod tests;
