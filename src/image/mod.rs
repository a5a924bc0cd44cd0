//! Opens images: from a reference to a tree that can be served or looked into. Knows nothing of servers, and of the kernel nothing.

mod again;
pub(crate) mod config;
mod distinct;
pub mod engine;
mod error;
pub(crate) mod escape;
mod event;
pub mod heat;
mod here;
pub mod indexes;
pub mod inspect;
pub(crate) mod known;
pub(crate) mod layer;
pub mod look;
pub(crate) mod lowers;
pub mod options;
pub(crate) mod past_caches;
pub(crate) mod pending;
mod reading;
mod reindex;
pub(crate) mod short;
pub(crate) mod silence;
pub(crate) mod tar_splits;
mod toc;
mod whole;
mod why;
pub(crate) mod wire;

#[cfg(fuzzing)]
pub use config::started_for_fuzzing as started_of_config_for_fuzzing;
pub use error::Error;
pub use escape::escape;
pub use event::{Event, LayerRead, Report};
