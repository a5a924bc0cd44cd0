//! A blob that is a run of bytes in a file, of a directory or of an archive.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::Error;
use crate::blob::{ByteRange, ByteSource};

/// A run of bytes in a file: a blob of a directory or of an archive.
pub(super) struct FileBlob {
    pub(super) path: PathBuf,
    file: Arc<dyn ByteSource>,
    offset: u64,
    pub(super) size: u64,
}

impl FileBlob {
    pub(super) const fn new(path: PathBuf, file: Arc<dyn ByteSource>, place: ByteRange) -> Self {
        Self { path, file, offset: place.start, size: place.len() }
    }

    /// What is waited for where its bytes do not come.
    pub(super) fn place(&self) -> &Path {
        self.file.place().unwrap_or(&self.path)
    }

    /// Exactly the bytes of a range. Blocking.
    pub(super) fn read(&self, range: ByteRange) -> Result<Bytes, Error> {
        let error = |source| Error::File { path: self.path.clone(), what: "cannot be read", source };
        let start = self.offset.checked_add(range.start).and_then(|start| ByteRange::at(start, range.len()));
        let place = start.ok_or_else(|| error(std::io::ErrorKind::InvalidInput.into()))?;
        self.file.read_at(place).map_err(|source| error(std::io::Error::other(source)))
    }
}
