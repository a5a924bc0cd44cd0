//! The on-disk store: documents of registries, layer indexes, layer files and their presence. One directory for all mounts of a user,
//! used by many processes at once, within one limit for everything in it.
//!
//! Below the directory, in `v2` (one for each layout of what follows, so that two versions of crfs can share the directory):
//!
//! ```text
//! crfs-cache                               the directory is crfs's (dir/shape.rs)
//! space                                    how much room is taken, and the logical clock (space.rs)
//! documents/<hex>                          a manifest or image index, by its sha256
//! names/<sha256 of name and platform>      the digest that a reference was last resolved to (documents.rs)
//! layers/<blob>/<toc-<hex> | ztoc-<hex> | own>
//!                                 index    the encoded layer index (index/stored)
//!                                 data     the layer file, sparse; whoever uses it holds a shared lock of it
//!                                 sums     of a zTOC's layer: the digests of the checks of `data` that are there (layer.rs)
//!                                 present  which checks of `data` are there, in groups that are evicted at once (presence.rs)
//! ```
//!
//! Nothing here is trusted when it is read back: documents are checked by digest, indexes by their own digests, data by the checks of
//! its index at the first use in a process. So nothing is ever synced, and a crash can lose data but not falsify it. Nothing here fails
//! a caller either: what cannot be kept is fetched again.

mod dir;
mod documents;
mod evict;
mod groups;
mod images;
mod layer;
mod lock;
mod presence;
mod report;
mod sealed;
mod space;
mod spool;
mod staged;
mod store;
mod stored;
mod sums;
mod verified;

#[cfg(test)]
mod tests;

pub use layer::{Disk, Epoch, LayerFile, State};
pub use report::{Cleared, LayerUse, Report, Usage, Verification, Verified, Wrong, clear, show, verify};
pub use space::{Limits, Taken};
pub(crate) use spool::Spool;
pub use staged::{Adopted, Staged};

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::blob::{ByteRange, ByteSource, FileSource};
use crate::index::{Damaged, LayerKey, StoredIndex};
use crate::sys::limit;
use dir::Dir;
use groups::Groups;
use store::Store;
use stored::layer_dir;

/// The version of everything below the directory: of the paths, of the files, and of where the bytes of a layer lie in its layer file.
pub const LAYOUT: &str = "v2";

/// A cache directory, or none where it could not be had. Cheap to clone.
#[derive(Clone)]
pub struct Cache {
    store: Option<Arc<Store>>,
}

impl Cache {
    /// Opens the cache, making its directory where it is missing. Where that fails a warning is logged and nothing will be kept.
    ///
    /// `size`: bytes for everything below the directory; `None`: the smaller of 10 GiB and a tenth of the filesystem.
    #[must_use]
    pub fn open(path: &Path, size: Option<u64>) -> Self {
        Self::with(path, move |dir| store::limits(dir, size))
    }

    /// A cache that keeps nothing.
    #[must_use]
    pub const fn none() -> Self {
        Self { store: None }
    }

    fn with(path: &Path, limits: impl FnOnce(&Dir) -> Limits + Send + 'static) -> Self {
        let asked = path.to_owned();
        let opened = limit::answered(PATIENCE, move || {
            let dir = Dir::create(&asked, LAYOUT)?;
            dir.adopt()?;
            let (is_coherent, limits) = (dir.is_coherent(), limits(&dir));
            Ok((dir, limits, is_coherent))
        });
        let counted = opened.and_then(|(dir, limits, is_coherent)| {
            if !is_coherent {
                tracing::warn!(
                    path = %path.display(),
                    "the cache is on a network filesystem: contents stay in it only while they are mounted; give crfs a local --cache-dir"
                );
            }
            limit::answered(PATIENCE_TO_COUNT, move || Ok(Store::open(dir, limits)))
        });
        match counted {
            Ok(store) => Self { store: Some(Arc::new(store)) },
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the cache directory cannot be used; going on without a cache");
                Self { store: None }
            }
        }
    }

    /// For tests, which must not depend on how full the disk is.
    #[cfg(test)]
    pub(crate) fn of_size(path: &Path, limit: u64) -> Self {
        Self::with(path, move |_| Limits { limit, floor: 0 })
    }

    #[cfg(test)]
    pub(crate) fn of_any_size(path: &Path) -> Self {
        Self::of_size(path, 1 << 40)
    }

    /// Its directory, where there is one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.store.as_ref().map(|store| store.dir.path())
    }

    /// Comes back once its disk has answered.
    pub(crate) fn ask_disk(&self) {
        if let Some(store) = &self.store {
            store.dir.ask_disk();
        }
    }

    /// How much of its room is taken; `None`: there is no cache, or that is changing this moment.
    #[must_use]
    pub fn room(&self) -> Option<Taken> {
        self.store.as_ref()?.taken()
    }

    /// The encoded index kept under `key`; not checked yet.
    #[must_use]
    pub fn index(&self, key: &LayerKey) -> Option<Arc<dyn ByteSource>> {
        Some(Arc::new(open_index(&self.store.as_ref()?.dir, &layer_dir(key))?))
    }

    pub fn put_index(&self, key: &LayerKey, encoded: &[u8]) {
        let Some(store) = &self.store else { return };
        if let Err(error) = store.write(&layer_dir(key).join("index"), encoded) {
            tracing::warn!(blob = %key.blob, %error, "the layer's index cannot be cached");
        }
    }

    /// Removes an index that turned out to be damaged.
    pub fn drop_index(&self, key: &LayerKey) {
        if let Some(store) = &self.store {
            let _ = store.dir.remove(&layer_dir(key).join("index"));
        }
    }

    /// The layer file that belongs to an index: that of `key`, shared with every process that has it; without a key (nothing vouches for
    /// the index) one of its own that nobody else sees and that ends with the process.
    #[must_use]
    pub fn layer_file(&self, key: Option<&LayerKey>, index: &StoredIndex) -> LayerFile {
        match Groups::of(index) {
            Ok(groups) => self.layer_file_of(key, groups, index.keeps_sums()),
            Err(error) => {
                tracing::warn!(%error, "the layer's contents cannot be cached");
                LayerFile::nowhere(Groups::none())
            }
        }
    }

    fn layer_file_of(&self, key: Option<&LayerKey>, groups: Groups, has_sums: bool) -> LayerFile {
        let Some(store) = self.store.clone() else { return LayerFile::nowhere(groups) };
        let opened = match key.filter(|_| store.dir.is_coherent()) {
            Some(key) => LayerFile::shared(store, &layer_dir(key), groups.clone(), has_sums),
            None => LayerFile::private(store, groups.clone()),
        };
        opened.unwrap_or_else(|error| {
            tracing::warn!(%error, "the layer's contents cannot be cached");
            LayerFile::nowhere(groups)
        })
    }

    /// Room for contents of which it is not known yet whether they are right; `is_needed`: it may be that they cannot be had again in parts.
    pub(crate) fn stage(&self, is_needed: bool) -> io::Result<Staged> {
        let store = self.store.as_ref().filter(|store| store.dir.is_coherent());
        Staged::new(store.ok_or(io::ErrorKind::Unsupported)?, is_needed)
    }

    /// Staged contents are those of the index, to be kept under `key`. What of them is not kept is fetched again. They stay as they are until
    /// what is given back is dropped.
    pub fn adopt(&self, key: &LayerKey, index: &StoredIndex, staged: Staged) -> Option<Adopted> {
        let store = self.store.as_ref()?;
        let adopt = || {
            let checks = stored_checks(index, staged.end()).map_err(io::Error::other)?;
            let groups = Groups::of(index).map_err(io::Error::other)?;
            let is_needed = index.has_huge_unit().map_err(io::Error::other)?;
            staged.adopt(store, &layer_dir(key), &groups, checks, is_needed)
        };
        let adopted = adopt().inspect_err(|error| {
            tracing::warn!(blob = %key.blob, %error, "the layer's contents cannot be cached");
        });
        let adopted = adopted.ok()?;
        if adopted.is_none() {
            tracing::debug!(blob = %key.blob, "another process uses the layer already");
        }
        adopted
    }

    /// A private layer file with checks that start at these places.
    #[cfg(test)]
    pub(crate) fn private_layer_file(&self, len: u64, starts: &[u64]) -> LayerFile {
        self.layer_file_of(None, Groups::new(len, starts), false)
    }

    /// A file without a name for contents that are too large to wait in memory for their check.
    pub(crate) fn spool(&self) -> io::Result<Spool> {
        Spool::new(self.store.as_ref())
    }
}

/// How long a cache's filesystem may take to open a directory.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it may take until all that is in the cache is counted.
const PATIENCE_TO_COUNT: Duration = Duration::from_secs(60);

/// The checks, from the first on, that lie before `end` of the layer file.
fn stored_checks(index: &StoredIndex, end: u64) -> Result<u32, Damaged> {
    let over = index.checks_over(ByteRange { start: 0, end })?;
    match over.end.checked_sub(1) {
        Some(last) if index.check(last)?.range.end > end => Ok(last),
        _ => Ok(over.end),
    }
}

/// The index of a layer.
fn open_index(dir: &Dir, layer: &Path) -> Option<FileSource> {
    let file = dir.open(&layer.join("index")).ok()?;
    let size = file.metadata().ok()?.len();
    Some(FileSource::new(file, size))
}
