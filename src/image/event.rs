//! What whoever waits for an image is told meanwhile.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::blob::Digest;

/// One step of opening an image. From another process they come as JSON lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The reference was resolved.
    Resolved { name: String, digest: Digest, layers: usize },
    /// So many layers are open.
    Opened { layers: usize, of: usize, fetched: u64 },
    /// So many bytes are read of the `of` that layers without an index have; and of which layers, as far as there is news of them.
    Reading {
        bytes: u64,
        of: u64,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        layers: Vec<LayerRead>,
    },
}

/// How far a layer is read that is read whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRead {
    /// Its number in the image, 0 the lowest.
    pub number: usize,
    pub digest: Digest,
    pub bytes: u64,
    /// Bytes of the blob, once for each time that it is read.
    pub of: u64,
    /// It is over, well or not.
    pub done: bool,
}

/// Takes the events; fails where nobody listens any more.
pub type Report = Arc<dyn Fn(&Event) -> io::Result<()> + Send + Sync>;
