//! Which image is opened, and how: plain structs, made by cli/, handed to servers as JSON.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::wire;
use crate::budget::DEFAULT_LIMIT;
use crate::registry::{ImageRef, Places, Platform, SociChoice};

/// Which image, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageOptions {
    /// Paths in it are absolute: the server leaves the directory it was started in.
    #[serde(with = "wire::image")]
    pub image: ImageRef,
    #[serde(with = "wire::WirePlatform")]
    pub platform: Platform,
    /// Credential files in the order they are asked.
    #[serde(with = "wire::paths")]
    pub auth_files: Vec<PathBuf>,
    /// What says how registries are reached.
    #[serde(flatten, with = "wire::WirePlaces")]
    pub places: Places,
    #[serde(with = "wire::path")]
    pub cache_dir: PathBuf,
    /// Bytes for all that is in it; `None`: what fits the filesystem.
    pub cache_size: Option<u64>,
    /// Longest time without progress.
    pub io_deadline: Duration,
    /// Blobs smaller than this many bytes are read whole, in one request.
    pub whole_layer_below: u64,
    pub insecure_unverified_toc: bool,
    /// Bytes of memory that the image may take beyond what its entries are worth.
    #[serde(default = "memory_limit")]
    pub memory_limit: u64,
    /// Which SOCI index is used for layers without a table of contents; `None`: none.
    pub soci: Option<SociChoice>,
}

/// What an older crfs did not write down.
const fn memory_limit() -> u64 {
    DEFAULT_LIMIT
}
