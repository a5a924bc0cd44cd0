//! For whom something is asked for: a reader, or nobody in particular. What the engine knows of readahead, which is built on it.

use std::ops::Range;

use super::plan::Tail;
use crate::blob::ByteRange;
use crate::index::Damaged;

/// A read, which says what else to fetch, and is told what it missed.
pub(super) trait Reading: Send + Sync {
    /// How far behind a miss to go on asking.
    fn tail(&self) -> Result<Option<Tail>, Damaged>;

    /// A request was planned for this read.
    fn asked(&self, planned: &Planned);

    /// The read was looked for in the cache, and requests for what it missed are under way.
    fn noticed(&self, range: ByteRange, checks: Range<u32>, missed: bool);
}

/// A request that nobody waits for; dropped when it is over.
pub(super) trait Guess: Send + Sync {
    /// So many bytes came.
    fn arrived(&self, bytes: u64);
}

/// What a request is to bring.
#[derive(Debug, Default)]
pub(super) struct Planned {
    /// All bytes of it, those of the units that a reader needs, and of these the share of what it reads.
    pub(super) bytes: u64,
    pub(super) needed: u64,
    pub(super) used: u64,
    /// The checks that nobody has asked for, with their share of the bytes.
    pub(super) guessed: Vec<(u32, u64)>,
}
