//! Files without a name, for contents that are too large to wait in memory for their check.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::store::Store;

/// A file without a name. The room that it takes is counted until it is dropped.
pub(crate) struct Spool {
    file: File,
    store: Option<Arc<Store>>,
    taken: u64,
}

impl Spool {
    pub(super) fn new(store: Option<&Arc<Store>>) -> io::Result<Self> {
        let file = match store {
            Some(store) => store.dir.unnamed()?,
            None => tempfile::tempfile()?,
        };
        Ok(Self { file, store: store.cloned(), taken: 0 })
    }

    /// Adds bytes at the end.
    ///
    /// # Errors
    /// Where the disk fails, or the cache has no room for them.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(store) = &self.store {
            let len = bytes.len() as u64;
            if !store.take_unnamed(len) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.taken += len;
        }
        self.file.write_all(bytes)
    }

    /// # Errors
    /// Where the disk fails, or there are not as many bytes.
    pub(crate) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Some(store) = &self.store {
            store.give_back(self.taken);
        }
    }
}
