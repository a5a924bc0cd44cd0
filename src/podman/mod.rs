//! podman's additional image store: images that podman runs and that were never pulled.
//!
//! ```text
//! ROOT/                                  --root, for storage.conf's additionalimagestores
//!     overlay-images/images.json, .lock  real files, so that podman never needs a server to read them (files.rs, lists.rs)
//!     overlay-images/<image id>/         manifest and config, byte for byte
//!     overlay-layers/layers.json, .lock
//!     overlay-layers/<layer id>.tar-split.gz      of layers that podman can push (tar_splits.rs)
//!     overlay/                           one FUSE mount (trees.rs), and what shows without it (stubs.rs)
//!         <layer id>/{diff/, link, lower, merged/}
//!         l/<link> -> ../<layer id>/diff
//!         layers/                        what podman asks for while it pulls (layers)
//!     layers -> overlay/layers           for storage.conf's additionallayerstores
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
pub mod held;
mod idmap;
mod layers;
mod lists;
mod lock;
mod lockfile;
mod open;
mod paths;
mod records;
mod refer;
mod remove;
mod resume;
mod serve;
mod share;
mod stubs;
mod sweep;
mod tar_splits;
mod trees;

pub mod commands;
pub mod places;

pub use apart::{SUBCOMMAND as READER, read};
pub use error::Error;
pub use idmap::{SUBCOMMAND as NAMESPACE, can_map_owners, hold_namespace};
pub use layers::LayerOptions;
pub use paths::Paths;
pub use resume::resume;
pub use serve::{Ready, ServeOptions, WORKER, become_keeper, clear_away, serve, start_keeper};

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use self::apart::Readers;
use self::carried::Carried;
use self::contents::Wants;
use self::layers::Layers;
use self::lock::Lock;
use self::open::Openings;
use self::records::Records;
use self::stubs::{AllStubs, Stubs};
use self::sweep::Sweeping;
use self::trees::Trees;
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
    openings: Openings,
    sweeping: Sweeping,
    stubs: AllStubs,
    carried: Carried,
    lock: Lock,
    /// Whether a server does what it is asked for by now.
    ready: watch::Sender<bool>,
    /// Who reads images, if that is not this process.
    readers: Option<Readers>,
    /// Whether it goes on with what another process has served, so that the kernel knows of that.
    goes_on: bool,
    /// Who answers podman where it asks for layers of images that it pulls.
    layers: OnceLock<Arc<Layers>>,
}

impl Store {
    /// `wants`: who joins layers to images, where more is to be fetched than what is read.
    fn new(paths: Paths, cache: Cache, wants: Option<Wants>, lock: Lock) -> Result<Self, Error> {
        let mount = paths.mount();
        open::clear_point(&mount)?;
        let stubs = Stubs::open(&mount, None).map_err(|source| Error::File { path: mount, source })?;
        files::remove_unfinished(&paths);
        let mut records = Records::read(&paths.records())?;
        // The mount is gone, and who has known them with it.
        records.left.clear();
        let stubs = AllStubs::new(stubs, share::stubs_again(&paths, &records));
        let mut store = Self::of(paths, cache, wants, lock, records);
        store.stubs = stubs;
        Ok(store)
    }

    /// One that another process has served until now, or still serves: nothing of it is changed yet.
    fn handed(paths: Paths, cache: Cache, wants: Option<Wants>, lock: Lock) -> Result<Self, Error> {
        let records = Records::read(&paths.records())?;
        Ok(Self { goes_on: true, ..Self::of(paths, cache, wants, lock, records) })
    }

    fn of(paths: Paths, cache: Cache, wants: Option<Wants>, lock: Lock, records: Records) -> Self {
        let trees = Trees::new(wants);
        trees.show(&records);
        Self {
            paths,
            common: Common::new(cache, Hosts::default()),
            records: tokio::sync::Mutex::new(records),
            trees,
            device: OnceLock::new(),
            openings: Openings::default(),
            sweeping: Sweeping::default(),
            stubs: AllStubs::default(),
            carried: Carried::default(),
            lock,
            ready: watch::Sender::default(),
            readers: None,
            goes_on: false,
            layers: OnceLock::new(),
        }
    }
}

#[cfg(test)]
mod tests;
