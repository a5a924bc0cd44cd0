//! What readahead asks of a layer.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::super::lacking::Presence;
use crate::blob::ByteRange;
use crate::cache::Epoch;
use crate::index::Damaged;

/// The units of one layer, in the order of its blob and of its layer file.
pub(super) trait Units: Send + Sync {
    /// Whether reading what is missing costs a round trip.
    fn is_remote(&self) -> bool;

    /// Compressed bytes that come in a round trip; 0 until that is known.
    fn per_round_trip(&self) -> u64;

    /// Compressed bytes that come in so much time; 0 until that is known.
    fn carries(&self, time: Duration) -> u64;

    /// How many there are.
    fn count(&self) -> u32;

    /// Those that hold a range of the layer file.
    fn over(&self, range: ByteRange) -> Result<Range<u32>, Damaged>;

    /// Compressed bytes from the first to the last of some.
    fn size(&self, units: &Range<u32>) -> Result<u64, Damaged>;

    /// The last unit before `end` that ends within `bytes` from the start of `unit`; itself at least.
    fn forward(&self, unit: u32, bytes: u64, end: u32) -> Result<u32, Damaged>;

    /// The last unit before `end` that is whole in the slice in which `unit` ends; itself at least.
    fn to_slice_end(&self, unit: u32, end: u32) -> Result<u32, Damaged>;

    /// The first unit from `start` on that starts within `bytes` before the end of `unit`; itself at most.
    fn backward(&self, unit: u32, bytes: u64, start: u32) -> Result<u32, Damaged>;

    /// What of it is missing, by looks at no more than so many of its checks, the first ones left out; and how many were looked at.
    fn look_at(&self, unit: u32, skipped: u32, most: u32) -> Result<(Presence, u32), Damaged>;

    /// What was here is here still for as long as this stays the same.
    fn epoch(&self) -> Epoch;

    /// The checks that cover a range of the layer file.
    fn checks(&self, range: ByteRange) -> Result<Range<u32>, Damaged>;

    /// Whether all of these checks were found right; holes need not be.
    fn has(&self, checks: &Range<u32>) -> Result<bool, Damaged>;

    /// The bytes of a range of the layer file, if all of them are here and were verified.
    fn peek(self: Arc<Self>, range: ByteRange) -> Option<Vec<u8>>;
}
