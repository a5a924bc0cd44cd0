//! What a starting server tells whoever waits for it.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::blob::Digest;

/// One step of a mount. From a background server they come as JSON lines on its standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The reference was resolved.
    Resolved { name: String, digest: Digest, layers: usize },
    /// So many layers are open.
    Opened { layers: usize, of: usize, fetched: u64 },
    /// The mount point can be used.
    Ready(Ready),
    /// It will not be: why, with its causes, on one line.
    Failed { message: String },
}

/// What was mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    pub name: String,
    pub digest: Digest,
    pub layers: usize,
    /// Those of them whose contents are fetched when they are read; the others were read whole.
    pub lazy: usize,
    /// Bytes asked of the registry so far.
    pub fetched: u64,
    /// The process that serves.
    pub pid: u32,
}

/// Takes the events; fails where nobody listens any more.
pub type Report = Arc<dyn Fn(&Event) -> io::Result<()> + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_lines_of_json() {
        let digest = Digest::of(b"");
        let ready = Ready { name: "n".into(), digest, layers: 3, lazy: 2, fetched: 9, pid: 7 };
        let events = [
            Event::Resolved { name: "n".into(), digest, layers: 3 },
            Event::Opened { layers: 1, of: 3, fetched: 5 },
            Event::Ready(ready),
            Event::Failed { message: "a\nb".into() },
        ];
        for event in events {
            let line = serde_json::to_string(&event).unwrap();
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
        }
    }
}
