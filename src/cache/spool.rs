//! Files without a name, for contents that are too large to wait in memory for their check.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use super::space::PAGE;
use super::store::Store;
use crate::blob::{ByteRange, ByteSource, Scratch, SourceError, read_file};

/// A file without a name. The room that it takes is counted until it is dropped.
pub(crate) struct Spool {
    file: File,
    store: Option<Arc<Store>>,
    taken: u64,
    /// Bytes that were appended.
    len: u64,
}

impl Spool {
    pub(super) fn new(store: Option<&Arc<Store>>) -> io::Result<Self> {
        let file = match store {
            Some(store) => store.dir.unnamed()?,
            None => tempfile::tempfile()?,
        };
        Ok(Self { file, store: store.cloned(), taken: 0, len: 0 })
    }

    /// Adds bytes at the end.
    ///
    /// # Errors
    /// Where the disk fails, or the cache has no room for them.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.take(bytes.len() as u64)?;
        self.file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Puts bytes at a place.
    ///
    /// # Errors
    /// The same.
    pub(super) fn put(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let end = at.checked_add(bytes.len() as u64).ok_or(io::ErrorKind::InvalidInput)?;
        self.take(end.next_multiple_of(PAGE) - at / PAGE * PAGE)?;
        self.file.write_all_at(bytes, at)
    }

    fn take(&mut self, len: u64) -> io::Result<()> {
        if let Some(store) = &self.store {
            if !store.take_unnamed(len) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.taken += len;
        }
        Ok(())
    }

    /// Bytes of room that it has.
    pub(super) const fn taken(&self) -> u64 {
        self.taken
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// It has a name from now on.
    pub(super) fn now_named(&mut self) {
        if let Some(store) = &self.store {
            store.name(std::mem::take(&mut self.taken));
        }
    }

    /// # Errors
    /// Where the disk fails, or there are not as many bytes.
    pub(crate) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

impl ByteSource for Spool {
    fn size(&self) -> u64 {
        self.len
    }

    fn read_at(&self, range: ByteRange) -> Result<Bytes, SourceError> {
        read_file(&self.file, self.len, range)
    }
}

impl Scratch for Spool {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        Spool::append(self, bytes)
    }

    fn finish(self: Box<Self>) -> Arc<dyn ByteSource> {
        Arc::new(*self)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Some(store) = &self.store {
            store.give_back(self.taken);
        }
    }
}
