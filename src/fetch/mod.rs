//! The fetch engine: which units a read needs, in few large requests, single-flight; decoded, verified, kept; the waiters woken.
//!
//! ```text
//! Layer::read -> checks over the range -> there? -> bytes from the layer file
//!                                      -> not there -> plan (runs of units) -> Job -> Assembler -> there
//! ```

mod assemble;
mod decode;
mod error;
mod flight;
mod job;
mod layer;
mod plan;
mod prefetch;
mod source;

pub use decode::decode_unit;
pub use error::Error;
pub use layer::{Engine, Layer, Reindex, Stats};
pub use prefetch::{Prefetch, prefetch};
pub use source::Source;
