//! The on-disk store: documents of registries, layer indexes, layer files and their presence. One directory for all mounts of a user.
//!
//! Below the directory, in `v1` (one for each layout of what follows, so that two versions of crfs can share the directory):
//!
//! ```text
//! documents/<hex>                          a manifest or image index, by its sha256
//! names/<sha256 of name and platform>      the digest that a reference was last resolved to
//! layers/<blob>/<toc-<hex> | own>/index    the encoded layer index (index/stored)
//!                                 data     the layer file, sparse
//!                                 present  one byte for each check: 1 where its range of `data` was verified and written
//! ```
//!
//! Nothing here is trusted when it is read back: documents are checked by digest, indexes by their own digests, data by the checks of
//! its index at the first use in a process. So nothing is ever synced, and a crash can lose data but not falsify it. Nothing here fails
//! a caller either: what cannot be kept is fetched again.

mod dir;
mod documents;
mod layer;

pub use layer::{LayerFile, State};

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::blob::{ByteRange, ByteSource, SourceError};
use crate::index::{Identity, LayerKey};
use dir::Dir;

/// The version of everything below the directory: of the paths, of the files, and of where the bytes of a layer lie in its layer file.
const LAYOUT: &str = "v1";

/// A cache directory, or none where it could not be had. Cheap to clone.
#[derive(Clone)]
pub struct Cache {
    dir: Option<Arc<Dir>>,
}

impl Cache {
    /// Opens the cache, making its directory where it is missing. Where that fails a warning is logged and nothing will be kept.
    #[must_use]
    pub fn open(path: &Path) -> Self {
        match Dir::create(&path.join(LAYOUT)) {
            Ok(dir) => Self { dir: Some(Arc::new(dir)) },
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the cache directory cannot be used; going on without a cache");
                Self { dir: None }
            }
        }
    }

    /// The encoded index kept under `key`; not checked yet.
    #[must_use]
    pub fn index(&self, key: &LayerKey) -> Option<Arc<dyn ByteSource>> {
        let file = self.dir.as_ref()?.open(&layer_path(key, "index")).ok()?;
        let size = file.metadata().ok()?.len();
        Some(Arc::new(FileSource { file, size }))
    }

    pub fn put_index(&self, key: &LayerKey, encoded: &[u8]) {
        let Some(dir) = &self.dir else { return };
        if let Err(error) = dir.write(&layer_path(key, "index"), encoded) {
            tracing::warn!(blob = %key.blob, %error, "the layer's index cannot be cached");
        }
    }

    /// Removes an index that turned out to be damaged.
    pub fn drop_index(&self, key: &LayerKey) {
        if let Some(dir) = &self.dir {
            let _ = dir.remove(&layer_path(key, "index"));
        }
    }

    /// The layer file of `key`, shared with every process that has it; without a key (nothing vouches for the index) one of its own that
    /// nobody else sees and that ends with the process.
    #[must_use]
    pub fn layer_file(&self, key: Option<&LayerKey>, len: u64, checks: u32) -> LayerFile {
        let Some(dir) = &self.dir else { return LayerFile::nowhere(checks) };
        let opened = match key {
            Some(key) => LayerFile::shared(dir, &layer_path(key, "data"), &layer_path(key, "present"), len, checks),
            None => LayerFile::private(dir, len, checks),
        };
        opened.unwrap_or_else(|error| {
            tracing::warn!(%error, "the layer's contents cannot be cached");
            LayerFile::nowhere(checks)
        })
    }

    /// A file without a name for contents that are too large to wait in memory for their check.
    pub(crate) fn spool(&self) -> io::Result<File> {
        match &self.dir {
            Some(dir) => dir.unnamed(),
            None => tempfile::tempfile(),
        }
    }
}

fn layer_path(key: &LayerKey, file: &str) -> PathBuf {
    let identity = match key.identity {
        Identity::Toc(digest) => format!("toc-{}", digest.hex()),
        Identity::Own => "own".to_owned(),
    };
    Path::new("layers").join(key.blob.hex()).join(identity).join(file)
}

/// A file of the cache as "read bytes at".
struct FileSource {
    file: File,
    size: u64,
}

impl ByteSource for FileSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, range: ByteRange) -> Result<Bytes, SourceError> {
        if range.end > self.size {
            return Err(format!("{range} of {} bytes", self.size).into());
        }
        let mut bytes = BytesMut::zeroed(usize::try_from(range.len())?);
        self.file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes.freeze())
    }
}
