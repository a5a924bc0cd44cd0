//! What a server serves, as the frame of all servers sees it (server.rs): what tells it from others, the layers that it reads, and what it may be asked
//! besides what all are asked.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::fetch::{Layer, Stats};
use crate::image::Report;
use crate::image::engine::Common;
use crate::kernel::fusedev::Detach;
use crate::registry::EndpointReport;

/// One kind of server.
pub(crate) trait Service: Send + Sync + 'static {
    /// What it is called in `crfs status` and its metrics.
    const KIND: &'static str;
    /// What it is asked besides, and what it answers to that.
    type Request: DeserializeOwned + Send + Sync;
    type Answer: Serialize + Send + Sync;

    /// What tells it from others of this user.
    fn id(&self) -> String;

    fn common(&self) -> &Common;

    fn images(&self) -> usize;

    /// The contents of the layers that can be read. Waits for no disk.
    fn layers(&self) -> Vec<Arc<Layer>>;

    /// Layers of images that podman has pulled by itself, where it can.
    fn pulled(&self) -> Option<usize> {
        None
    }

    /// What was done by layers that it has no more.
    fn past(&self) -> Activity {
        Activity::default()
    }

    /// Why it does not leave because somebody asks for it; `None`: it does, where nobody uses it.
    fn stays(&self) -> Option<&'static str> {
        None
    }

    /// Lets go of what keeps the mount in use and is its own, when the server is to end.
    fn let_go(&self, _how: Detach) {}

    /// Comes back once the disk has answered that a request is worked on with.
    fn ask_disk(&self) {}

    /// Does what is asked for. `report` hears how far it is. Where it cannot be done, says why.
    fn perform(
        self: Arc<Self>,
        request: Self::Request,
        report: Report,
    ) -> impl Future<Output = Result<Self::Answer, String>> + Send;
}

/// What a server is asked, or answers, that does no more than all do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Nothing {}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) frontend: String,
    /// Seconds since 1970.
    pub(crate) started: u64,
    /// `None`: it ends with this process.
    #[serde(default)]
    pub(crate) kept: Option<Kept>,
    pub(crate) images: usize,
    /// Those that can be read.
    pub(crate) layers: usize,
    #[serde(default)]
    pub(crate) pulled: Option<usize>,
    #[serde(default)]
    pub(crate) endpoints: Vec<EndpointReport>,
    #[serde(flatten)]
    pub(crate) activity: Activity,
}

/// Who keeps a mount, whatever becomes of the process that serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// The process.
    pub(crate) keeper: u32,
    /// How many have served before this one.
    pub(crate) restarts: u32,
    /// How many of them have gone for an upgrade.
    pub(crate) upgrades: u32,
}

/// What became of reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    #[serde(flatten)]
    pub stats: Stats,
    pub last_error: Option<String>,
}

impl Activity {
    /// What layers have done.
    pub(crate) fn of<'a>(layers: impl IntoIterator<Item = &'a Arc<Layer>>) -> Self {
        let of_layer = |layer: &Arc<Layer>| Self { stats: layer.stats(), last_error: layer.last_error() };
        layers.into_iter().fold(Self::default(), |sum, layer| sum.and(of_layer(layer)))
    }

    /// Both together; of two last errors, the other's.
    pub(crate) fn and(self, other: Self) -> Self {
        let (a, b) = (self.stats, other.stats);
        let stats = Stats {
            served: a.served.saturating_add(b.served),
            fetched: a.fetched.saturating_add(b.fetched),
            cached: a.cached.saturating_add(b.cached),
            requests: a.requests.saturating_add(b.requests),
            errors: a.errors.saturating_add(b.errors),
            uncached: a.uncached.saturating_add(b.uncached),
        };
        Self { stats, last_error: other.last_error.or(self.last_error) }
    }
}

/// The contents of layers, each once: images may share them, and an image may have one several times.
pub(crate) fn distinct<'a>(contents: impl Iterator<Item = &'a Arc<Layer>>) -> Vec<Arc<Layer>> {
    let mut seen = HashSet::new();
    contents.filter(|contents| seen.insert(Arc::as_ptr(contents))).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_add_up() {
        let one = Stats { served: 1, fetched: 2, cached: 3, requests: 4, errors: u64::MAX, uncached: 6 };
        let with_error = Activity { stats: one, last_error: Some("e".into()) };
        let without = Activity { stats: one, last_error: None };
        let sum = with_error.and(without);
        assert_eq!(sum.stats, Stats { served: 2, fetched: 4, cached: 6, requests: 8, errors: u64::MAX, uncached: 12 });
        assert_eq!(sum.last_error.as_deref(), Some("e"));
    }
}
