//! How much more a blob may unpack to than it has bytes: what moves nothing but the CPU has an end.
//!
//! zstd makes 128 KiB of zeros of 4 bytes, so 200 GB of them come in 6.5 MB. gzip never packs more than 1032 to 1: whoever sends that much of it has
//! the network to wait for. So a blob may unpack to [`RATIO`] times what has come of it, whatever packs it. Beyond that all layers of an image share
//! [`BEYOND`]: what a layer unpacks to where it is nothing but zeros for a while is paid back by what follows.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Unpacked bytes for each byte that has come: a little more than gzip's largest.
const RATIO: u64 = 1100;

/// Unpacked bytes beyond that, of all layers of an image together; of an archive as well.
const BEYOND: u64 = 16 << 30;

/// The same of a table of contents, or a tar-split: they take more time for a byte, and are no files of zeros.
const BEYOND_TABLE: u64 = 64 << 20;

/// What is taken of the common allowance at least.
const STEP: u64 = 1 << 20;

/// So much comes of so little that it is not unpacked any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "its first {packed} bytes unpack to more than {unpacked} bytes: crfs unpacks {} times what it has read, and {} GiB more, and stops there",
    RATIO, BEYOND >> 30
)]
pub struct Expands {
    pub packed: u64,
    pub unpacked: u64,
}

/// What the layers of an image may unpack to beyond [`RATIO`]. Clones share it.
#[derive(Debug, Clone)]
pub struct Allowance(Arc<AtomicU64>);

impl Default for Allowance {
    fn default() -> Self {
        Self::of(BEYOND)
    }
}

impl Allowance {
    fn of(bytes: u64) -> Self {
        Self(Arc::new(AtomicU64::new(bytes)))
    }

    /// One that is used up sooner.
    #[cfg(test)]
    pub(crate) fn small(bytes: u64) -> Self {
        Self::of(bytes)
    }

    /// Takes so much of it, if it is there.
    fn take(&self, bytes: u64) -> bool {
        let less = |left: u64| left.checked_sub(bytes);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What one blob has unpacked to so far. What it has taken of the allowance is given back with it, unless it is kept.
#[derive(Debug)]
pub(crate) struct Meter {
    packed: u64,
    unpacked: u64,
    allowance: Allowance,
    /// Of the allowance.
    taken: u64,
}

impl Meter {
    pub(crate) fn new(allowance: &Allowance) -> Self {
        Self { packed: 0, unpacked: 0, allowance: allowance.clone(), taken: 0 }
    }

    /// The blob is done with: what it has taken of the allowance counts for the image from now on. Else another try has it again.
    pub(crate) fn keep(mut self) {
        self.taken = 0;
    }

    /// So many more bytes of the blob have come.
    pub(crate) fn packed(&mut self, bytes: usize) {
        self.packed = self.packed.saturating_add(bytes as u64);
    }

    /// They have unpacked to so many more.
    ///
    /// # Errors
    /// [`Expands`], where that is too much.
    pub(crate) fn unpacked(&mut self, bytes: usize) -> io::Result<()> {
        self.unpacked = self.unpacked.saturating_add(bytes as u64);
        let beyond = self.unpacked.saturating_sub(self.packed.saturating_mul(RATIO));
        if let Some(more) = beyond.checked_sub(self.taken).filter(|more| *more > 0) {
            let more = more.max(STEP);
            if !self.allowance.take(more) {
                let Self { packed, unpacked, .. } = *self;
                return Err(io::Error::other(Expands { packed, unpacked }));
            }
            self.taken = self.taken.saturating_add(more);
        } else if self.taken - beyond > STEP {
            self.allowance.give_back(self.taken - beyond);
            self.taken = beyond;
        }
        Ok(())
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.allowance.give_back(self.taken);
    }
}

/// Whether a table of contents, or a tar-split, of so many packed bytes may unpack to so many.
///
/// # Errors
/// Where it may not.
pub(crate) fn check_table(packed: u64, unpacked: u64) -> Result<(), WideTable> {
    let limit = table_limit(packed);
    if unpacked > limit { Err(WideTable { packed, unpacked, limit }) } else { Ok(()) }
}

/// What so many packed bytes of such may unpack to.
pub(crate) const fn table_limit(packed: u64) -> u64 {
    packed.saturating_mul(RATIO).saturating_add(BEYOND_TABLE)
}

/// A table of contents that unpacks to too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{packed} bytes unpack to {unpacked}, and crfs reads {limit} of so many at most")]
pub struct WideTable {
    packed: u64,
    unpacked: u64,
    limit: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expands(error: &io::Error) -> Option<&Expands> {
        error.get_ref()?.downcast_ref()
    }

    #[test]
    fn what_gzip_can_make_is_never_too_much() {
        let mut meter = Meter::new(&Allowance::small(0));
        for _ in 0..1000 {
            meter.packed(1 << 20);
            meter.unpacked(1032 << 20).unwrap();
        }
    }

    #[test]
    fn zeros_that_are_paid_back_take_nothing_for_good() {
        let allowance = Allowance::small(1 << 30);
        let mut meter = Meter::new(&allowance);
        for _ in 0..100 {
            meter.packed(10);
            meter.unpacked(1 << 30).unwrap();
            meter.packed(1 << 20);
            meter.unpacked(1).unwrap();
        }
        assert!(allowance.take((1 << 30) - STEP), "it is whole again");
    }

    #[test]
    fn the_layers_of_an_image_share_what_is_beyond() {
        let allowance = Allowance::small(100 << 20);
        let [mut first, mut second] = [(); 2].map(|()| Meter::new(&allowance));
        for meter in [&mut first, &mut second] {
            meter.packed(1000);
            (0..49).for_each(|_| meter.unpacked(1 << 20).unwrap());
        }
        let error = (0..10).find_map(|_| second.unpacked(1 << 20).err()).unwrap();
        let found = expands(&error).unwrap();
        assert!(found.packed == 1000 && found.unpacked > 49 << 20, "{error}");
        assert!(error.to_string().contains("1100 times") && error.to_string().contains("16 GiB"), "{error}");
        // What has had its part is at work still.
        first.unpacked(1 << 10).unwrap_or_default();
    }

    #[test]
    fn a_try_that_fails_takes_nothing_from_the_next() {
        let allowance = Allowance::small(10 << 20);
        for _ in 0..3 {
            let mut meter = Meter::new(&allowance);
            meter.unpacked(9 << 20).unwrap();
        }
        let mut meter = Meter::new(&allowance);
        meter.unpacked(9 << 20).unwrap();
        meter.keep();
        assert!(Meter::new(&allowance).unpacked(9 << 20).is_err());
    }

    #[test]
    fn a_table_is_bounded_by_its_size() {
        assert!(check_table(0, 64 << 20).is_ok() && check_table(4 << 20, 4 << 30).is_ok());
        let error = check_table(100_000, 1 << 30).unwrap_err().to_string();
        assert!(error.contains("100000 bytes") && error.contains("1073741824"), "{error}");
    }
}
