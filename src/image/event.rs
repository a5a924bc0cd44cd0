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
    /// So many bytes are read of the `of` that layers without an index have.
    Reading { bytes: u64, of: u64 },
}

/// Takes the events; fails where nobody listens any more.
pub type Report = Arc<dyn Fn(&Event) -> io::Result<()> + Send + Sync>;
