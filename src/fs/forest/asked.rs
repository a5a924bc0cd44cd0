//! Names that are there once somebody asks for them, in a store: whoever answers for them may have to fetch something first.
//!
//! ```text
//! 1 root ─ layers    ASKED          is never listed
//!             `── NAME ...          as the one who answers has it; its numbers have the highest bit
//! ```

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::Made;

/// The directory that holds them.
pub(crate) const ROOT: u64 = 1 << 63;

/// Who answers.
pub(crate) trait Asked: Send + Sync {
    /// What a node is, if there is one by that number.
    fn made(&self, number: u64) -> Option<Made>;

    /// What a name stands for. Waits for nothing.
    fn find(&self, dir: u64, name: &[u8]) -> Finding;

    /// Hears that somebody has tried to make a file, which is then said not to be there.
    fn create(&self, dir: u64, name: &[u8]) -> BoxFuture<'static, ()>;

    /// Hears that somebody has tried to remove a directory, which is then said not to be there.
    fn remove(&self, dir: u64, name: &[u8]) -> BoxFuture<'static, ()>;

    /// Bytes of a file, fewer at its end; `None`: they cannot be had.
    fn read(&self, number: u64, offset: u64, size: u32) -> BoxFuture<'static, Option<Bytes>>;

    /// The kernel is told of a node.
    fn remember(&self, number: u64);

    /// It has forgotten that so many times.
    fn forget(&self, number: u64, times: u64);
}

/// What a name stands for.
pub(crate) enum Finding {
    Nothing,
    /// The number of a node, which may be one of a view.
    There(u64),
    Later(BoxFuture<'static, Option<u64>>),
}

/// Whether a number is one of these. The upper half of others is the number of a layer, of which no store has 2^31.
pub(super) const fn is_number(number: u64) -> bool {
    number & ROOT != 0
}
