//! Where verified bytes are for those who wait for them.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::cache::Spool;

/// Bytes that are kept in memory.
pub(super) const MEMORY: u64 = 64 << 20;

/// Files that are kept open for checks that the cache would not have.
const FILES: u32 = 4;

/// What a file counts for, so that [`FILES`] of them fill the memory there is for such checks.
const FILE_WEIGHT: u32 = (MEMORY / FILES as u64) as u32;

/// Where the verified bytes of a check are.
#[derive(Clone)]
pub(super) enum Kept {
    /// Where another process may evict them.
    LayerFile,
    Memory(Bytes),
    /// They are many.
    File(Arc<Spool>),
}

impl Kept {
    /// Bytes of memory that it takes, or that it counts for.
    pub(super) fn weight(&self) -> u32 {
        match self {
            Self::Memory(bytes) => u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            Self::File(_) => FILE_WEIGHT,
            Self::LayerFile => 1,
        }
    }

    /// Reads from `offset` on in the check. `None`: they are in the layer file.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Option<io::Result<()>> {
        match self {
            Self::LayerFile => None,
            Self::File(file) => Some(file.read_exact_at(buffer, offset)),
            Self::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let part = bytes.get(start..).and_then(|rest| rest.get(..buffer.len()));
                Some(part.map(|part| buffer.copy_from_slice(part)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into()))
            }
        }
    }
}
