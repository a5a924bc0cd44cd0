//! Bytes that stay in memory, and are charged for as long as they do.

use std::fs::File;
use std::io::{self, Read};

use bytes::Bytes;

use crate::blob::{ByteRange, ByteSource, SourceError};
use crate::budget::{Budget, Charge, Exceeded};

/// A small blob, or an index that no cache keeps.
pub(super) struct Here {
    bytes: Bytes,
    charge: Charge,
}

impl Here {
    /// # Errors
    /// Where the image must not take so much memory.
    pub(super) fn new(bytes: Bytes, memory: &Budget) -> Result<Self, Exceeded> {
        let mut charge = memory.charge(0);
        charge.settle(bytes.len() as u64, 0)?;
        Ok(Self { bytes, charge })
    }

    /// All of a file.
    ///
    /// # Errors
    /// Where it cannot be read, or the image must not take so much memory.
    pub(super) fn read(file: &File, memory: &Budget) -> io::Result<Self> {
        let len = file.metadata()?.len();
        let mut charge = memory.charge(0);
        charge.settle(len, 0).map_err(io::Error::other)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(usize::try_from(len).map_err(io::Error::other)?).map_err(io::Error::other)?;
        file.take(len).read_to_end(&mut bytes)?;
        Ok(Self { bytes: bytes.into(), charge })
    }

    /// What has a charge of its own already.
    pub(super) const fn charged(bytes: Bytes, charge: Charge) -> Self {
        Self { bytes, charge }
    }
}

impl ByteSource for Here {
    fn size(&self) -> u64 {
        self.bytes.size()
    }

    fn read_at(&self, range: ByteRange) -> Result<Bytes, SourceError> {
        self.bytes.read_at(range)
    }
}

impl std::fmt::Debug for Here {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Here").field("len", &self.bytes.len()).field("charge", &self.charge).finish()
    }
}
