//! What all images of a process share of the hosts that they ask: how far these want us to restrain ourselves, what the way to them carries, and
//! where they are.
//!
//! Not credentials and certificates, nor what follows from them (tokens, signed URLs, connections): they are read when an image is opened, so that
//! a login or an authority that came since then counts for the next one.

use std::sync::{Arc, Mutex, PoisonError};

use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use url::{Position, Url};

use super::clock::Clock;
use super::config::Endpoint;
use super::gate::Gate;
use super::health::{Counts, Health};
use super::hedges::Hedges;
use super::link::Link;
use super::resolver::Resolver;
use super::silent::Disks;
use super::waits::{Waiting, Waits};

/// Hosts that are remembered. Of one that was forgotten all is measured anew.
const REMEMBERED: u64 = 1000;
const MOST_ENDPOINTS: usize = 1000;

/// Cheap to clone: the clones share what they know.
#[derive(Clone)]
pub struct Hosts {
    gates: Cache<String, Arc<Gate>>,
    links: Cache<String, Arc<Link>>,
    endpoints: Arc<Mutex<Vec<Known>>>,
    pub(super) hedges: Arc<Hedges>,
    pub(super) resolver: Resolver,
    pub(super) disks: Disks,
    pub(super) waits: Arc<Waits>,
    pub(super) clock: Arc<Clock>,
}

impl Default for Hosts {
    fn default() -> Self {
        Self {
            gates: Cache::new(REMEMBERED),
            links: Cache::new(REMEMBERED),
            endpoints: Arc::default(),
            hedges: Arc::default(),
            resolver: Resolver::default(),
            disks: Disks::default(),
            waits: Arc::default(),
            clock: Arc::default(),
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

    /// How well an endpoint does.
    pub(super) fn health(&self, endpoint: &Endpoint) -> Health {
        let mut known = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.iter().find(|known| known.is(endpoint)) {
            return known.health.clone();
        }
        if known.len() >= MOST_ENDPOINTS {
            known.remove(0);
        }
        let endpoint = Endpoint { repository: String::new(), ..endpoint.clone() };
        let health = Health::default();
        known.push(Known { endpoint, health: health.clone() });
        health
    }

    /// What came of asking each endpoint, in the order in which they were first of use.
    #[must_use]
    pub fn endpoints(&self) -> Vec<EndpointReport> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner).iter().map(Known::report).collect()
    }

    pub(super) fn link(&self, url: &Url) -> Arc<Link> {
        self.links.get_with(host(url), Arc::default)
    }
}

/// One that was asked, or may be.
struct Known {
    endpoint: Endpoint,
    health: Health,
}

impl Known {
    /// Whether it is the same host, asked in the same way, for whatever repository.
    fn is(&self, other: &Endpoint) -> bool {
        self.endpoint == Endpoint { repository: String::new(), ..other.clone() }
    }

    fn report(&self) -> EndpointReport {
        let Endpoint { registry, is_mirror, .. } = &self.endpoint;
        let rests = self.health.rests_for().map(|rest| rest.as_secs());
        EndpointReport { host: registry.clone(), mirror: *is_mirror, rests, counts: self.health.counts() }
    }
}

/// What came of asking one endpoint. The names of the fields are those of `crfs status --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointReport {
    /// `HOST[:PORT]`
    pub host: String,
    /// Whether it is asked in place of another.
    pub mirror: bool,
    /// Seconds until it is tried again, where it is ill.
    pub rests: Option<u64>,
    #[serde(flatten)]
    pub counts: Counts,
}

/// Scheme, host and port, as a key.
fn host(url: &Url) -> String {
    url[..Position::BeforePath].to_owned()
}

/// The host of a URL as people name it.
pub(super) fn named(url: &Url) -> &str {
    &url[Position::BeforeHost..Position::AfterPort]
}
