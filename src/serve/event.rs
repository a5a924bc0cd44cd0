//! What a starting server tells whoever waits for it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::blob::Digest;
use crate::image;
use crate::kernel::mounts::Identity;

/// One step of a mount. From a background server they come as JSON lines on its standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// It is about to be mounted, with this as its source.
    Mounting { source: String },
    /// It is mounted, and not yet served.
    Mounted { mount: Identity },
    /// The mount point can be used.
    Ready(Ready),
    /// It will not be: why, with its causes, on one line.
    Failed { message: String },
    /// The image is being opened.
    #[serde(untagged)]
    Image(image::Event),
}

/// What was mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    pub name: String,
    pub digest: Digest,
    pub layers: usize,
    /// Those of them whose contents are fetched when they are read; the others were read whole.
    pub lazy: usize,
    /// Those of which their host has sent all when it was asked for a part.
    pub sent_whole: usize,
    /// Bytes asked of the registry so far.
    pub fetched: u64,
    /// The process that the mount ends with.
    pub pid: u32,
}

/// The mount deadline: time in which layers are read whole does not count, as long as bytes come.
pub(super) struct Deadline {
    limit: Duration,
    /// When it began, or the last bytes came.
    since: Mutex<Instant>,
}

impl Deadline {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, since: Mutex::new(Instant::now()) }
    }

    pub(super) fn heard(&self, event: &Event) {
        if matches!(event, Event::Image(image::Event::Reading { .. })) {
            *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
    }

    /// Returns when it has passed.
    pub(super) async fn passed(&self, grace: Duration) {
        let limit = self.limit.saturating_add(grace);
        loop {
            let since = *self.since.lock().unwrap_or_else(PoisonError::into_inner);
            let left = limit.saturating_sub(since.elapsed());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }
}

/// Takes the events; fails where nobody listens any more.
pub type Report = Arc<dyn Fn(&Event) -> io::Result<()> + Send + Sync>;

/// Tells what an image tells as well.
pub(super) fn of_image(report: &Report) -> image::Report {
    let report = Arc::clone(report);
    Arc::new(move |event| report(&Event::Image(event.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::mounts::Device;

    #[tokio::test(start_paused = true)]
    async fn the_deadline_counts_time_in_which_nothing_is_read() {
        let deadline = Deadline::new(Duration::from_secs(60));
        let start = Instant::now();
        let read = async {
            for bytes in 0..5 {
                tokio::time::sleep(Duration::from_secs(50)).await;
                deadline.heard(&Event::Image(image::Event::Reading { bytes, of: 9, layers: Vec::new() }));
                deadline.heard(&Event::Image(image::Event::Opened { layers: 1, of: 2, fetched: 3 }));
            }
        };
        tokio::join!(read, deadline.passed(Duration::from_secs(5)));
        assert_eq!(start.elapsed(), Duration::from_secs(250 + 65));
    }

    #[test]
    fn events_are_lines_of_json() {
        let digest = Digest::of(b"");
        let ready = Ready { name: "n".into(), digest, layers: 3, lazy: 2, sent_whole: 1, fetched: 9, pid: 7 };
        let device = Device { major: 0, minor: 52 };
        let mount = Identity { id: 97, device, source: "n@s".into(), user: Some(0) };
        let layer = image::LayerRead { number: 1, digest, bytes: 1, of: 2, done: false };
        let events = [
            Event::Image(image::Event::Resolved { name: "n".into(), digest, layers: 3 }),
            Event::Image(image::Event::Opened { layers: 1, of: 3, fetched: 5 }),
            Event::Image(image::Event::Reading { bytes: 1, of: 2, layers: vec![layer] }),
            Event::Image(image::Event::Reading { bytes: 1, of: 2, layers: Vec::new() }),
            Event::Mounting { source: "n@s".into() },
            Event::Mounted { mount },
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
