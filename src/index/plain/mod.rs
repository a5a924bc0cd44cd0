//! Layers without a table of contents: tar, tar+gzip and tar+zstd, indexed in one pass over the blob.
//!
//! ```text
//! download -> unpack -> events -> stream -> tar reader -> make -> an encoded index, and the contents
//! ```
//!
//! What is made of a blob counts only when the blob had the digest that the manifest names: until then nothing of it is to be shown.

#[cfg(fuzzing)]
pub(super) mod fuzzing;
mod make;
mod stream;
mod unpack;
pub(super) mod window;

pub(crate) use make::{Failed, Keep, make, split};
pub use make::{Made, Split};
pub(crate) use unpack::{Event, Unpacker};
