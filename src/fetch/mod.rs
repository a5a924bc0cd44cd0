//! The fetch engine: which units a read needs, in few large requests, single-flight; decoded, verified, kept; the waiters woken.
//!
//! ```text
//! Layer::read -> checks over the range -> there? -> bytes from the layer file
//!                                      -> not there -> plan (runs of units) -> Job -> Assembler -> there
//! Readahead::read: the same for a file of an image, and guesses what is read next
//! ```

mod arrival;
mod aside;
mod asker;
mod assemble;
mod cached;
mod chunked;
mod coming;
mod decode;
mod error;
mod flight;
pub mod heat;
mod job;
mod kept;
mod lacking;
mod layer;
mod pass;
mod plan;
mod planning;
mod prefetch;
mod readahead;
mod seams;
mod shared;
mod source;
mod still;
mod unordered;
mod unpacking;
mod whole;

pub use crate::cache::Disk;
pub use decode::Units;
pub use error::Error;
pub use layer::{Doing, Engine, Layer, Reindex, Stats};
pub use pass::{Pass, PassError, Passed};
pub use prefetch::{Prefetch, prefetch};
pub use readahead::{Files, LONGEST_PATH, Node, Place, Readahead, elf, words};
pub use shared::Shared;
pub use source::{Held, Source};
