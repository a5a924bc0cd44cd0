//! What all images of a process share of the hosts that they ask: how far these want us to restrain ourselves, what the way to them carries, and
//! where they are.
//!
//! Not credentials and certificates, nor what follows from them (tokens, signed URLs, connections): they are read when an image is opened, so that
//! a login or an authority that came since then counts for the next one.

use std::sync::Arc;

use moka::sync::Cache;
use url::{Position, Url};

use super::config::Endpoint;
use super::gate::Gate;
use super::health::Health;
use super::hedges::Hedges;
use super::link::Link;
use super::resolver::Resolver;
use super::silent::Disks;
use super::waits::{Waiting, Waits};

/// Hosts that are remembered. Of one that was forgotten all is measured anew.
const REMEMBERED: u64 = 1000;

/// Cheap to clone: the clones share what they know.
#[derive(Clone)]
pub struct Hosts {
    gates: Cache<String, Arc<Gate>>,
    links: Cache<String, Arc<Link>>,
    healths: Cache<String, Health>,
    pub(super) hedges: Arc<Hedges>,
    pub(super) resolver: Resolver,
    pub(super) disks: Disks,
    pub(super) waits: Arc<Waits>,
}

impl Default for Hosts {
    fn default() -> Self {
        Self {
            gates: Cache::new(REMEMBERED),
            links: Cache::new(REMEMBERED),
            healths: Cache::new(REMEMBERED),
            hedges: Arc::default(),
            resolver: Resolver::default(),
            disks: Disks::default(),
            waits: Arc::default(),
        }
    }
}

impl Hosts {
    /// What has been waited for in vain for the longest time, for whoever gives up.
    #[must_use]
    pub fn longest_wait(&self) -> Option<Waiting> {
        self.waits.longest()
    }

    pub(super) fn gate(&self, url: &Url) -> Arc<Gate> {
        self.gates.get_with(host(url), Arc::default)
    }

    /// How well it does what is asked of it there.
    pub(super) fn health(&self, endpoint: &Endpoint) -> Health {
        let Endpoint { registry, api, namespace, .. } = endpoint;
        self.healths.get_with(format!("{registry}{api} {namespace:?}"), Health::default)
    }

    pub(super) fn link(&self, url: &Url) -> Arc<Link> {
        self.links.get_with(host(url), Arc::default)
    }
}

/// Scheme, host and port, as a key.
fn host(url: &Url) -> String {
    url[..Position::BeforePath].to_owned()
}

/// The host of a URL as people name it.
pub(super) fn named(url: &Url) -> &str {
    &url[Position::BeforeHost..Position::AfterPort]
}
