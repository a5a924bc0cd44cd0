//! The stream that a tar is read from: how far it was read, and reads that never want more memory than there are bytes.

use std::io::{self, BufRead, ErrorKind};

use super::Fault;
use crate::index::error::Problem;
use crate::index::limits;
use crate::tar::{BLOCK, Block};

#[derive(Debug)]
pub(super) struct Stream<R> {
    inner: R,
    /// Bytes that were read.
    at: u64,
}

impl<R: BufRead> Stream<R> {
    pub(super) const fn new(inner: R) -> Self {
        Self { inner, at: 0 }
    }

    pub(super) const fn at(&self) -> u64 {
        self.at
    }

    pub(super) fn into_inner(self) -> R {
        self.inner
    }

    /// Hands on the next `len` bytes, in runs as the stream's own buffer has them, each with its place in the stream.
    pub(super) fn runs(
        &mut self,
        mut len: u64,
        mut sink: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), Fault> {
        while len > 0 {
            let run = match self.inner.fill_buf() {
                Ok([]) => return Err(Problem::Truncated.into()),
                Ok(run) => run,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let run = usize::try_from(len).ok().and_then(|len| run.get(..len)).unwrap_or(run);
            let used = run.len();
            sink(self.at, run)?;
            self.inner.consume(used);
            len = len.saturating_sub(used as u64);
            self.at = self.at.saturating_add(used as u64);
        }
        Ok(())
    }

    pub(super) fn skip(&mut self, len: u64) -> Result<(), Fault> {
        self.runs(len, |_, _| Ok(()))
    }

    pub(super) fn block(&mut self, block: &mut Block) -> Result<(), Fault> {
        let mut rest = block.as_mut_slice();
        self.runs(BLOCK as u64, |_, run| {
            let (filled, left) = std::mem::take(&mut rest).split_at_mut_checked(run.len()).unwrap_or_default();
            filled.copy_from_slice(run);
            rest = left;
            Ok(())
        })
    }

    /// Whether the stream ends here.
    pub(super) fn is_at_end(&mut self) -> Result<bool, Fault> {
        loop {
            match self.inner.fill_buf() {
                Ok(run) => return Ok(run.is_empty()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads the contents of a header that describes another one into `out`, and passes over the padding.
    pub(super) fn extension(&mut self, size: u64, out: &mut Vec<u8>) -> Result<(), Fault> {
        out.clear();
        if size > limits::TAR_EXTENSION {
            return Err(Problem::Number { key: "size", value: size, limit: limits::TAR_EXTENSION }.into());
        }
        self.runs(size, |_, run| {
            out.extend_from_slice(run);
            Ok(())
        })?;
        self.skip(padding(size))
    }
}

/// Bytes from the end of contents of `size` bytes to the next block.
pub(super) const fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}
