//! How long a transfer is borne with: what counts as progress, when a body has stalled, and how long to wait before asking again.
//!
//! Only time spent waiting for the network counts, by a monotonic clock: a reader that is slow to take its bytes is no
//! fault of the registry, and no jump of the wall clock ends a read.

use std::future::Future;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::pin::pin;
use std::time::Duration;

use tokio::time::Instant;

use super::errors::Retry;
use super::waits::Wait;
use super::{Error, Redacted};
use crate::metrics::METRICS;

/// Fewer bytes a second than this, over the stall window, is no progress.
const SLOWEST: u64 = 1024;

/// The longest window over which a rate is taken.
const LONGEST_STALL: Duration = Duration::from_secs(10);

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Fresh connections that a server which breaks the protocol gets.
const PROTOCOL_TRIES: u32 = 3;

/// What is left of it for one transfer.
#[derive(Debug)]
pub(super) struct Patience {
    deadline: Duration,
    /// Waited since something last moved.
    idle: Duration,
    /// The window that is being measured: how long it was waited in, and what came.
    window: Duration,
    bytes: u64,
    tries: u32,
    breaches: u32,
    wait: Wait,
}

impl Patience {
    /// `wait` is what others are told meanwhile.
    pub(super) fn new(deadline: Duration, wait: Wait) -> Self {
        let nothing = Duration::ZERO;
        Self { deadline, idle: nothing, window: nothing, bytes: 0, tries: 0, breaches: 0, wait }
    }

    fn stall_window(&self) -> Duration {
        (self.deadline / 4).min(LONGEST_STALL)
    }

    /// How long a server may think before it answers at all: longer than a stall, since a mirror may have to fetch first.
    fn answer_window(&self) -> Duration {
        self.deadline / 4
    }

    /// How long one of several hosts may think before another is asked as well.
    pub(super) fn for_one(&self) -> Duration {
        self.answer_window() / 2
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_sub(self.idle)
    }

    /// Waits for an answer; `None` where it takes too long. While the request `is_queued` it was not sent yet: whoever gave up then would only lose
    /// its turn.
    pub(super) async fn answer<T>(
        &mut self,
        is_queued: impl Fn() -> bool,
        future: impl Future<Output = T>,
    ) -> Option<T> {
        let mut future = pin!(future);
        // A request that was sent within a window has all of the next one.
        let mut was_queued = false;
        loop {
            let limit = self.answer_window().min(self.left());
            let outcome = self.spend(limit, &mut future).await;
            let is_queued = is_queued();
            if outcome.is_some() || !(was_queued || is_queued) || self.left().is_zero() {
                return outcome;
            }
            was_queued = is_queued;
        }
    }

    /// Waits for the next bytes of a body; `None` where it has stalled, or has not moved at all for `lull`, which another host would not.
    pub(super) async fn body<T>(&mut self, lull: Option<Duration>, future: impl Future<Output = T>) -> Option<T> {
        let limit = self.stall_window().saturating_sub(self.window).min(self.left());
        let limit = lull.map_or(limit, |lull| lull.min(self.for_one()).min(limit));
        let before = self.idle;
        let outcome = self.spend(limit, future).await;
        self.window = self.window.saturating_add(self.idle.saturating_sub(before));
        if outcome.is_none() {
            self.start_window();
        }
        outcome
    }

    async fn spend<T>(&mut self, limit: Duration, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        loop {
            let start = Instant::now();
            let outcome = tokio::time::timeout(limit, &mut future).await;
            if outcome.is_err() && self.wait.is_for_program() {
                continue;
            }
            self.idle = self.idle.saturating_add(start.elapsed());
            return outcome.ok();
        }
    }

    /// That many bytes have come; tells whether they were enough to count as progress.
    pub(super) fn moved(&mut self, bytes: u64) -> bool {
        self.bytes = self.bytes.saturating_add(bytes);
        let millis = u64::try_from(self.stall_window().as_millis()).unwrap_or(u64::MAX);
        let is_progress = self.bytes >= (SLOWEST.saturating_mul(millis) / 1000).max(1);
        if is_progress {
            self.idle = Duration::ZERO;
            self.tries = 0;
            self.breaches = 0;
            self.start_window();
            self.wait.moved();
        }
        is_progress
    }

    fn start_window(&mut self) {
        self.window = Duration::ZERO;
        self.bytes = 0;
    }

    /// After a failed try: returns when it is time for the next, or the error where there is none.
    pub(super) async fn pause(&mut self, error: Error, url: &Redacted) -> Result<(), Error> {
        self.tries = self.tries.saturating_add(1);
        self.wait.failed(self.tries, &error);
        let asked_for = match error.retry() {
            Retry::Never => return Err(error),
            Retry::AFewTimes => {
                self.breaches = self.breaches.saturating_add(1);
                if self.breaches >= PROTOCOL_TRIES {
                    return Err(error);
                }
                None
            }
            Retry::After(asked_for) => asked_for,
        };
        // An absurd Retry-After still leaves one more try within the deadline.
        let asked_for = asked_for.map(|time| time.min(self.deadline / 2));
        let pause = asked_for.unwrap_or_default().saturating_add(backoff(self.tries)).min(self.left());
        let what = self.wait.what();
        tracing::debug!(what, %url, %error, tries = self.tries, ?pause, "will ask again");
        tokio::time::sleep(pause).await;
        self.idle = self.idle.saturating_add(pause);
        if !self.left().is_zero() {
            METRICS.retries(url.host());
            return Ok(());
        }
        let (url, tries) = (url.clone(), self.tries);
        Err(Error::NoProgress { what, url, waited: self.idle, tries, source: Box::new(error) })
    }
}

/// Doubles with each try, and varies by half, so that many readers do not come back at once.
fn backoff(tries: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1u32 << tries.saturating_sub(1).min(16)).min(LONGEST_PAUSE);
    vary(doubled)
}

/// Between half and one and a half of a time. The standard library's hash keys are all the randomness that this needs.
pub(super) fn vary(time: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish() % 1000;
    time.mul_f64(0.5 + random as f64 / 1000.0)
}

/// `Retry-After`: seconds or a date (RFC 9110, section 10.2.3).
pub(super) fn retry_after(value: &str, now: std::time::SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    httpdate::parse_http_date(value).ok().map(|date| date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::registry::waits::{Waiting, Waits};

    fn patience(deadline: Duration) -> Patience {
        Patience::new(deadline, Arc::<Waits>::default().begin(Waiting::for_registry("layer x".into())))
    }

    fn url() -> Redacted {
        Redacted::of(&"http://r/x".parse().unwrap())
    }

    fn reset() -> Error {
        Error::transfer(&"http://r/x".parse().unwrap(), "reset", None)
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_body_stalls_and_a_dead_one_ends_at_the_deadline() {
        let mut patience = patience(Duration::from_secs(120));
        let start = Instant::now();
        let error = loop {
            // One byte a second is none.
            while patience.body(None, tokio::time::sleep(Duration::from_secs(1))).await.is_some() {
                patience.moved(1);
            }
            if let Err(error) = patience.pause(reset(), &url()).await {
                break error;
            }
        };
        assert!(matches!(&error, Error::NoProgress { tries: 5.., .. }), "{error}");
        assert_eq!(start.elapsed().as_secs(), 120);
    }

    #[tokio::test(start_paused = true)]
    async fn progress_keeps_a_transfer_alive_past_its_deadline() {
        let mut patience = patience(Duration::from_secs(120));
        for _ in 0..300 {
            assert!(patience.body(None, tokio::time::sleep(Duration::from_secs(1))).await.is_some());
            patience.moved(1100);
        }
        assert!(patience.pause(reset(), &url()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_that_a_program_takes_does_not_count() {
        let waits = Arc::<Waits>::default();
        let mut patience = Patience::new(Duration::from_secs(4), waits.begin(Waiting::for_registry("layer x".into())));
        let program = async {
            let _asked = waits.begin(Waiting::for_program("docker-credential-x".into()));
            tokio::time::sleep(Duration::from_secs(25)).await;
        };
        assert!(patience.answer(|| false, program).await.is_some());
        assert!(patience.answer(|| false, tokio::time::sleep(Duration::from_secs(2))).await.is_none());
        assert!(patience.pause(reset(), &url()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_waited_for_as_long_as_the_deadline_and_an_answer_is_not() {
        let queued = std::cell::Cell::new(true);
        let mut turn = patience(Duration::from_secs(120));
        let sent_after = |seconds| {
            queued.set(true);
            let (turn, queued) = (Duration::from_secs(seconds), &queued);
            async move {
                tokio::time::sleep(turn).await;
                queued.set(false);
                tokio::time::sleep(Duration::from_secs(20)).await;
            }
        };
        assert!(turn.answer(|| queued.get(), sent_after(80)).await.is_some());
        let start = Instant::now();
        assert!(turn.answer(|| queued.get(), sent_after(80)).await.is_none());
        assert_eq!(start.elapsed().as_secs(), 20, "what is left");
        let start = Instant::now();
        assert!(patience(Duration::from_secs(120)).answer(|| false, sent_after(80)).await.is_none());
        assert_eq!(start.elapsed().as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn an_absurd_retry_after_leaves_another_try() {
        let mut patience = patience(Duration::from_secs(120));
        let absurd = || Error::Status { url: url(), status: 503, retry_after: Some(Duration::from_secs(u64::MAX)) };
        assert!(patience.pause(absurd(), &url()).await.is_ok());
        assert!(patience.pause(absurd(), &url()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_breach_of_the_protocol_is_not_asked_for_ever() {
        let mut patience = patience(Duration::from_secs(120));
        let breach = || Error::protocol(&"http://r/x".parse().unwrap(), "multipart");
        assert!(patience.pause(breach(), &url()).await.is_ok());
        assert!(patience.pause(breach(), &url()).await.is_ok());
        assert!(matches!(patience.pause(breach(), &url()).await, Err(Error::Protocol { .. })));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(retry_after("120", now), Some(Duration::from_secs(120)));
        assert_eq!(retry_after("99999999999999999999999", now), Some(Duration::from_secs(u64::MAX)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:50:37 GMT", now), Some(Duration::from_secs(60)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:00:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after("-1", now), None);
        assert_eq!(retry_after("soon", now), None);
    }
}
