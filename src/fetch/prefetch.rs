//! What is fetched for nobody in particular, always behind those who wait: on the link as well, by asking for little at a time and only
//! while nobody has waited for a while.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::time::Instant;

use super::flight::Waiter;
use super::plan;
use super::{Error, Layer};
use crate::blob::ByteRange;
use crate::registry::{Freshness, Sent};
use crate::threads::{self, Work};

/// Requests under way at a time: enough that the link is never idle between them.
const REQUESTS: usize = 3;

/// Bytes of a blob that are read at once where no file needs them: what the link carries in a round trip, within these limits.
const STEP: Range<u64> = 128 << 10..1 << 20;

/// Nobody has waited for so many round trips, and for so long: a program that starts has stopped asking.
const QUIET_ROUND_TRIPS: u32 = 4;
const QUIET: Duration = Duration::from_millis(50);

/// After a failed request there is a pause, longer after each in a row up to a limit.
const PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Tries of a part that the registry answers for, but badly, before what is behind it has its turn. While it cannot be reached there is
/// no end of them.
const TRIES: u32 = 2;

/// Wrong bytes that were passed over are tried again when all else is there, with pauses that double up to this one.
const LONGEST_PAUSE_OF_BAD: Duration = Duration::from_secs(3600);

/// What to fetch before it is asked for (`--prefetch`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prefetch {
    None,
    /// What the landmarks of the image name, and the command in its config.
    Hints,
    /// The hints, then everything.
    All,
}

/// Counts the readers that wait; prefetch goes on when there are none.
pub(super) struct Gate {
    readers: AtomicUsize,
    idle: Notify,
    /// When the last of them was served.
    last: Mutex<Instant>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { readers: AtomicUsize::new(0), idle: Notify::new(), last: Mutex::new(Instant::now()) }
    }
}

/// The order in which steps are planned: where one ends in the middle of a unit, the next goes on from there.
struct Turns {
    turn: AsyncMutex<()>,
    /// The unit behind the last one of all steps.
    until: u32,
}

impl Turns {
    fn up_to(until: u32) -> Self {
        Self { turn: AsyncMutex::new(()), until }
    }
}

/// A reader that waits; dropped when it does no more.
pub(super) struct Waiting(Arc<Gate>);

impl Gate {
    pub(super) fn reader(self: &Arc<Self>) -> Waiting {
        self.readers.fetch_add(1, Ordering::AcqRel);
        Waiting(Arc::clone(self))
    }

    /// Returns when no reader has waited for `quiet`.
    async fn idle(&self, quiet: Duration) {
        loop {
            let mut notified = pin!(self.idle.notified());
            notified.as_mut().enable();
            if self.readers.load(Ordering::Acquire) > 0 {
                notified.await;
                continue;
            }
            let since = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
            if since.elapsed() >= quiet {
                return;
            }
            tokio::time::sleep_until(since + quiet).await;
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.0.readers.fetch_sub(1, Ordering::AcqRel) == 1 {
            *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
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
            // Recorded from a start of this very image: it is wanted at once.
            layer.prefetch(hint, Duration::ZERO).await;
        }
    }
    if prefetch == Prefetch::All {
        let mut bad = VecDeque::new();
        for layer in &layers {
            let steps = layer.prefetch(ByteRange { start: 0, end: u64::MAX }, layer.quiet()).await;
            bad.extend(steps.into_iter().map(|step| (layer, step)));
        }
        fetch_what_was_bad(bad).await;
    }
}

/// A registry can be repaired while the mount stays. Until it is, one step is tried at a time.
async fn fetch_what_was_bad(mut bad: VecDeque<(&Arc<Layer>, Range<u32>)>) {
    let mut pause = PAUSE;
    while let Some((layer, step)) = bad.pop_front() {
        tokio::time::sleep(pause).await;
        match layer.fetch_quietly(step.clone(), layer.quiet(), &Turns::up_to(step.end)).await {
            Ok(()) => pause = Duration::ZERO,
            Err(error) => {
                let longest = if error.may_pass() { LONGEST_PAUSE } else { LONGEST_PAUSE_OF_BAD };
                pause = pause.saturating_mul(2).clamp(PAUSE, longest);
                tracing::debug!(layer = %layer.digest(), %error, next = ?pause, "prefetch failed again");
                if error.may_be_mended() {
                    bad.push_back((layer, step));
                }
            }
        }
    }
}

impl Layer {
    /// For how long no reader has waited when a program has stopped asking.
    fn quiet(&self) -> Duration {
        (self.source.round_trip() * QUIET_ROUND_TRIPS).max(QUIET)
    }

    /// Returns when no reader has waited for `quiet`: that can be never.
    pub async fn wait_until_quiet(&self, quiet: Duration) {
        self.gate.idle(quiet).await;
    }

    /// A part of the blob that no file needs, read whenever no reader waits, as prefetch does. `None`: its host sends nothing less than all of it.
    ///
    /// # Errors
    /// Where it cannot be had.
    pub async fn read_blob_quietly(&self, range: ByteRange, freshness: Freshness) -> Result<Option<Bytes>, Error> {
        let mut bytes = BytesMut::new();
        let mut at = range.start;
        while at < range.end {
            let step = self.source.per_round_trip().clamp(STEP.start, STEP.end);
            let end = at.saturating_add(step).min(range.end);
            self.gate.idle(self.quiet()).await;
            let sent = self.source.stream(ByteRange { start: at, end }, freshness).await;
            let Sent::Part(mut body) = sent.map_err(|error| self.registry_error(error))? else { return Ok(None) };
            while let Some(part) = body.next().await {
                bytes.extend_from_slice(&part.map_err(|error| self.registry_error(error))?);
            }
            at = end;
        }
        Ok(Some(bytes.freeze()))
    }

    /// Keeps what a blob holds that is here, and then lets the blob go.
    pub(crate) async fn keep_all(self: &Arc<Self>) {
        // Who reads what was bad hears of it.
        let _bad = self.prefetch(ByteRange { start: 0, end: u64::MAX }, Duration::ZERO).await;
        self.source.let_go();
    }

    /// Fetches all units in a range of the blob, whenever no reader has waited for `quiet`. Returns those that were bad.
    async fn prefetch(self: &Arc<Self>, blob: ByteRange, quiet: Duration) -> Vec<Range<u32>> {
        let layer = Arc::clone(self);
        let units = match threads::run(Work::Local, move || layer.index().units_in_blob(blob)).await {
            Ok(Ok(units)) => units,
            Ok(Err(error)) => {
                tracing::warn!(%error, "nothing is prefetched");
                return Vec::new();
            }
            Err(_) => return Vec::new(),
        };
        let turns = Turns::up_to(units.end);
        let steps = stream::unfold(units, |units| self.next_step(units));
        let results = steps.map(|step| self.prefetch_step(step, quiet, &turns)).buffer_unordered(REQUESTS);
        results.filter_map(|result| std::future::ready(result.err())).collect().await
    }

    /// The units of the next step, those of a slice, and what is left after it.
    fn next_step(
        self: &Arc<Self>,
        units: Range<u32>,
    ) -> impl Future<Output = Option<(Range<u32>, Range<u32>)>> + use<> {
        let layer = Arc::clone(self);
        async move {
            let end =
                move || plan::to_slice_end(&layer.index, units.start, units.end).map(|last| last.saturating_add(1));
            if units.is_empty() {
                return None;
            }
            match threads::run(Work::Local, end).await {
                Ok(Ok(end)) => Some((units.start..end, end..units.end)),
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the rest is not prefetched");
                    None
                }
                Err(_) => None,
            }
        }
    }

    /// Fetches some units, as far as they are missing. They are given back when they are wrong: what is behind them may be right.
    async fn prefetch_step(
        self: &Arc<Self>,
        units: Range<u32>,
        quiet: Duration,
        turns: &Turns,
    ) -> Result<(), Range<u32>> {
        let (mut tries, mut failures) = (0, 0u32);
        loop {
            let Err(error) = self.fetch_quietly(units.clone(), quiet, turns).await else { return Ok(()) };
            tracing::warn!(layer = %self.digest(), %error, "prefetch failed; it goes on later");
            tries += u32::from(!error.may_pass_soon());
            if tries >= TRIES {
                return if error.may_be_mended() { Err(units) } else { Ok(()) };
            }
            failures = failures.saturating_add(1);
            tokio::time::sleep(PAUSE.saturating_mul(failures).min(LONGEST_PAUSE)).await;
        }
    }

    /// Returns when all of these units that were missing were brought, whoever did it.
    async fn fetch_quietly(self: &Arc<Self>, units: Range<u32>, quiet: Duration, turns: &Turns) -> Result<(), Error> {
        let mut turn = Some(turns.turn.lock().await);
        let (layer, until) = (Arc::clone(self), turns.until);
        let planned = threads::run(Work::Local, move || layer.lacking(units)).await;
        let (mut waiters, mut runs) = planned.map_err(|_| Error::Interrupted)??;
        while !runs.is_empty() {
            self.gate.idle(quiet).await;
            // Those that are over hold what they have brought.
            let over: Result<(), Error> = waiters.iter().filter_map(Waiter::outcome).collect();
            over?;
            waiters.retain(|waiter| waiter.outcome().is_none());
            // The duty is taken when its request is about to be sent, so that no reader waits for one that is not.
            let layer = Arc::clone(self);
            let taken = threads::run(Work::Local, move || {
                let taken = layer.take_first(runs, until, &mut waiters);
                taken.map(|(job, rest)| (job, rest, waiters))
            });
            let (job, rest, others) = taken.await.map_err(|_| Error::Interrupted)??;
            (runs, waiters) = (rest, others);
            turn = None;
            if let Some(job) = job {
                job.run().await?;
            }
        }
        drop(turn);
        for waiter in waiters {
            waiter.wait().await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn prefetch_waits_until_readers_have_been_quiet() {
        let gate = Arc::new(Gate::default());
        let (one, two) = (gate.reader(), gate.reader());
        let start = Instant::now();
        let idle = gate.idle(QUIET);
        let readers = async {
            tokio::time::sleep(QUIET * 3).await;
            drop(one);
            tokio::time::sleep(QUIET).await;
            drop(two);
        };
        tokio::join!(idle, readers);
        assert_eq!(start.elapsed(), QUIET * 5);
        gate.idle(Duration::ZERO).await;
        assert_eq!(start.elapsed(), QUIET * 5);
    }
}
