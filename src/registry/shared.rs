//! What all repositories of one client share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use moka::future::Cache;
use url::Url;

use super::config::{Configuration, Endpoint};
use super::grammar::Reference;
use super::hosts::Hosts;
use super::peer::Peer;
use super::throttle::Throttle;
use super::{Error, Options};

/// Where a blob's bytes were found.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) id: u64,
    /// The last redirect's target; `None` where the registry answers itself.
    pub(super) target: Option<Url>,
}

/// Connections, grants, and what is remembered of blobs.
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) throttle: Arc<Throttle>,
    /// Where each blob's bytes are, by the URL that its registry has for it.
    pub(super) routes: Cache<Url, Route>,
    pub(super) hosts: Hosts,
    /// By what is said of them, but for the repository.
    peers: Mutex<HashMap<Endpoint, Arc<Peer>>>,
    /// As it was when a registry was first asked.
    configuration: OnceLock<Configuration>,
    last_route: AtomicU64,
}

impl Shared {
    pub(super) fn new(options: Options, hosts: Hosts) -> Self {
        let throttle = Arc::new(Throttle::new(options.io_deadline, hosts.clone()));
        let (routes, peers) = (Cache::new(100_000), Mutex::default());
        let configuration = OnceLock::new();
        Self { options, throttle, routes, hosts, peers, configuration, last_route: AtomicU64::new(0) }
    }

    pub(super) fn next_route(&self) -> u64 {
        self.last_route.fetch_add(1, Ordering::Relaxed)
    }

    /// Where a reference may be asked for. Blocking.
    pub(super) fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>, Error> {
        let configuration = match self.configuration.get() {
            Some(configuration) => configuration,
            None => {
                let read = Configuration::read(&self.options.places)?;
                self.configuration.get_or_init(|| read)
            }
        };
        Ok(configuration.endpoints(reference)?)
    }

    /// Who is asked there. Blocking, where it was not asked before.
    pub(super) fn peer(&self, endpoint: &Endpoint) -> Result<Arc<Peer>, Error> {
        let key = Endpoint { repository: String::new(), ..endpoint.clone() };
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get(&key) {
            return Ok(Arc::clone(peer));
        }
        let peer = Arc::new(Peer::new(&key, &self.options, &self.hosts, &self.throttle)?);
        peers.insert(key, Arc::clone(&peer));
        Ok(peer)
    }
}
