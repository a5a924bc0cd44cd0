//! What is fetched for nobody in particular, always behind those who wait.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::plan::{self, Run};
use super::{Error, Layer};
use crate::blob::ByteRange;

/// Compressed bytes that prefetch asks for at a time (more where one check needs more): what a reader that comes meanwhile shares the link with.
const STEP: u64 = 1 << 20;

/// Prefetch of a layer pauses after a failed request, longer each time.
const PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// After so many requests in a row that brought wrong bytes it gives the layer up.
const TRIES: u32 = 10;

/// What to fetch before it is asked for (`--prefetch`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prefetch {
    None,
    /// What the image's landmarks name.
    Hints,
    /// The hints, then everything.
    All,
}

/// Counts the readers that wait; prefetch goes on when there are none.
#[derive(Default)]
pub(super) struct Gate {
    readers: AtomicUsize,
    idle: Notify,
}

/// A reader that waits; dropped when it does no more.
pub(super) struct Waiting(Arc<Gate>);

impl Gate {
    pub(super) fn reader(self: &Arc<Self>) -> Waiting {
        self.readers.fetch_add(1, Ordering::AcqRel);
        Waiting(Arc::clone(self))
    }

    async fn idle(&self) {
        loop {
            let notified = self.idle.notified();
            if self.readers.load(Ordering::Acquire) == 0 {
                return;
            }
            notified.await;
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.0.readers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// Fetches of `layers` (in this order) what `prefetch` says. Errors are logged; who reads later tries again.
pub async fn prefetch(layers: Vec<Arc<Layer>>, prefetch: Prefetch) {
    if prefetch == Prefetch::None {
        return;
    }
    for layer in &layers {
        if let Some(hint) = layer.index().summary().prefetch {
            layer.prefetch(hint).await;
        }
    }
    if prefetch == Prefetch::All {
        for layer in &layers {
            layer.prefetch(ByteRange { start: 0, end: u64::MAX }).await;
        }
    }
}

impl Layer {
    /// Fetches all units in a range of the blob.
    async fn prefetch(self: &Arc<Self>, blob: ByteRange) {
        let layer = Arc::clone(self);
        let units = match tokio::task::spawn_blocking(move || layer.index().units_in_blob(blob)).await {
            Ok(Ok(units)) => units,
            Ok(Err(error)) => return tracing::warn!(%error, "nothing is prefetched"),
            Err(_) => return,
        };
        let (mut next, mut failures, mut wrong) = (units.start, 0u32, 0);
        while next < units.end && wrong < TRIES {
            self.gate.idle().await;
            let (end, fetched) = self.prefetch_step(next..units.end).await;
            let Err(error) = fetched else {
                (next, failures, wrong) = (end, 0, 0);
                continue;
            };
            tracing::warn!(layer = %self.digest(), %error, "prefetch failed; it goes on later");
            failures = failures.saturating_add(1);
            // What cannot be had now can be had later, however long that takes. What is wrong is asked for once more; then comes what is
            // behind it, which may be good.
            if !error.may_pass() {
                wrong += 1;
                next = if wrong % 2 == 0 { end } else { next };
            }
            tokio::time::sleep(PAUSE.saturating_mul(failures).min(LONGEST_PAUSE)).await;
        }
    }

    /// Fetches about [`STEP`] of the units, as far as they are missing; also tells the first unit behind it.
    async fn prefetch_step(self: &Arc<Self>, units: Range<u32>) -> (u32, Result<(), Error>) {
        let layer = Arc::clone(self);
        let first = units.start;
        let planned = tokio::task::spawn_blocking(move || layer.plan_step(units)).await;
        let (end, mut runs) = match planned.map_err(|_| Error::Interrupted).and_then(|planned| planned) {
            Ok(planned) => planned,
            Err(error) => return (first.saturating_add(1), Err(error)),
        };
        while !runs.is_empty() {
            self.gate.idle().await;
            // The duty is taken when its request is about to be sent, so that no reader waits for one that is not.
            let layer = Arc::clone(self);
            let taken = tokio::task::spawn_blocking(move || layer.take_first(runs)).await;
            let (job, rest) = match taken.map_err(|_| Error::Interrupted).and_then(|taken| taken) {
                Ok(taken) => taken,
                Err(error) => return (end, Err(error)),
            };
            runs = rest;
            let fetched = match job {
                Some(job) => job.run().await,
                None => Ok(()),
            };
            if fetched.is_err() {
                return (end, fetched);
            }
        }
        (end, Ok(()))
    }

    fn plan_step(self: &Arc<Self>, units: Range<u32>) -> Result<(u32, Vec<Run>), Error> {
        let (mut next, mut bytes, mut checks) = (units.start, 0u64, Vec::new());
        while next < units.end && bytes < STEP {
            let before = checks.len();
            for check in plan::checks_of_unit(&self.index, next)? {
                if self.is_missing(check) && checks.last() != Some(&check) {
                    checks.push(check);
                }
            }
            if checks.len() > before {
                bytes = bytes.saturating_add(self.index.unit(next)?.compressed.len());
            }
            next += 1;
        }
        Ok((next, plan::runs(&self.index, &checks, 0, |_| false)?))
    }
}
