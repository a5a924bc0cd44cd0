//! How something is asked for, and what is counted meanwhile.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::header::{CACHE_CONTROL, HeaderMap, HeaderValue};

use super::gate::Gate;
use super::transport::Connection;
use super::{Error, Freshness, Redacted};

/// What was asked on behalf of one blob.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) requests: AtomicU64,
    pub(super) elsewhere: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) progress: AtomicU64,
    /// To the host that was asked last.
    gate: Mutex<Option<Arc<Gate>>>,
    /// Requests that wait for their turn with a host that asks for restraint.
    queued: AtomicUsize,
}

/// A request that waits for its turn.
struct Queued<'a>(&'a Counters);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Counters {
    /// Waits until the host behind the gate may be asked.
    pub(super) async fn admit(&self, gate: &Arc<Gate>) {
        *self.gate.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(gate));
        self.queued.fetch_add(1, Ordering::Relaxed);
        let _queued = Queued(self);
        gate.admit().await;
    }

    /// Whether a request has not been sent yet, since its host asks for restraint.
    pub(super) fn is_queued(&self) -> bool {
        self.queued.load(Ordering::Relaxed) > 0
    }

    /// The error of whoever waited too long for an answer.
    pub(super) fn late(&self, url: Redacted) -> Error {
        let what = if self.is_restrained() {
            "no answer in time: its host asks for pauses between requests"
        } else {
            "no answer in time"
        };
        Error::Transfer { url, what, source: None }
    }

    /// Whether the host that was asked last asks for restraint just now.
    pub(super) fn is_restrained(&self) -> bool {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|gate| gate.is_restrained())
    }
}

/// How something is asked for.
pub(super) struct Ask<'a> {
    pub(super) headers: HeaderMap,
    pub(super) connection: Connection,
    pub(super) counters: &'a Counters,
}

impl Ask<'_> {
    pub(super) fn past_caches(&mut self, freshness: Freshness) {
        if freshness == Freshness::PastCaches {
            self.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        }
    }
}
