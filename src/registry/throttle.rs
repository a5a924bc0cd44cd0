//! Restraint towards a host that asked for it: after a 429 or 503 it gets at most two requests a second from all readers
//! together, and none before its Retry-After, until it answers well again. The same goes for a host that refuses us for good.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use reqwest::header::{AGE, DATE, RETRY_AFTER};
use url::Url;

use super::gate::{Gate, SPACING};
use super::hosts::Hosts;
use super::patience::retry_after;
use super::{Error, Redacted};

/// No Retry-After holds up others for longer.
const LONGEST_HOLD: Duration = Duration::from_secs(60);

pub(super) struct Throttle {
    longest_hold: Duration,
    hosts: Hosts,
}

impl Throttle {
    /// For reads that give up after `deadline`: half of it is the longest that a host can ask for, so that it is asked again.
    pub(super) fn new(deadline: Duration, hosts: Hosts) -> Self {
        Self { longest_hold: (deadline / 2).min(LONGEST_HOLD), hosts }
    }

    pub(super) fn gate(&self, url: &Url) -> Arc<Gate> {
        self.hosts.gate(url)
    }

    /// Waits until the host may be asked.
    pub(super) async fn admit(&self, url: &Url) {
        self.gate(url).admit().await;
    }

    /// Learns from an answer.
    pub(super) fn note(&self, url: &Url, response: &reqwest::Response) {
        self.gate(url).has_answered.store(true, Ordering::Relaxed);
        self.learn(url, response.status().as_u16(), wait_asked(response));
        // What a cache has kept for a while has the date of then.
        let date = response.headers().get(DATE).filter(|_| !response.headers().contains_key(AGE));
        if let Some(date) = date.and_then(|date| date.to_str().ok()) {
            self.hosts.clock.note(date, SystemTime::now());
        }
    }

    /// Whether the host was ever reached.
    pub(super) fn has_answered(&self, url: &Url) -> bool {
        self.gate(url).has_answered.load(Ordering::Relaxed)
    }

    fn learn(&self, url: &Url, status: u16, asked: Option<Duration>) {
        match status {
            429 | 503 => self.restrain(url, asked.unwrap_or(SPACING)),
            ..400 | 404 | 416 => self.gate(url).is_well(),
            _ => {}
        }
    }

    /// No request before `hold` is over, and few after it.
    pub(super) fn restrain(&self, url: &Url, hold: Duration) {
        self.gate(url).restrain(hold.min(self.longest_hold));
    }
}

fn wait_asked(response: &reqwest::Response) -> Option<Duration> {
    let value = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    retry_after(value, SystemTime::now())
}

/// The error for a status that nothing else is known of.
pub(super) fn status_error(url: &Url, response: &reqwest::Response) -> Error {
    let (url, status) = (Redacted::of(url), response.status().as_u16());
    match status {
        404 => Error::NotFound { url },
        400 | 401 | 403 | 410 => Error::Denied { url, status },
        // Only a redirect that is none gets here, and what a good range request cannot be answered with.
        200..=399 | 416 => Error::Protocol { url, what: format!("unexpected status {status}") },
        _ => Error::Status { url, status, retry_after: wait_asked(response) },
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    /// Lets ten readers in at once, and says how long it took.
    async fn ten(throttle: &Throttle, url: &Url) -> Duration {
        let start = Instant::now();
        futures_util::future::join_all((0..10).map(|_| throttle.admit(url))).await;
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_asks_for_restraint_gets_two_requests_a_second_from_all() {
        let throttle = Throttle::new(Duration::from_secs(120), Hosts::default());
        let (host, other) = (url("https://r/a"), url("https://s/a"));
        assert_eq!(ten(&throttle, &host).await, Duration::ZERO);
        assert!(!throttle.gate(&host).is_restrained());
        throttle.learn(&host, 429, Some(Duration::from_secs(7)));
        assert!(throttle.gate(&host).is_restrained() && !throttle.gate(&other).is_restrained());
        let took = ten(&throttle, &url("https://r/b")).await;
        assert!(took >= Duration::from_millis(7000 + 9 * 500), "{took:?}");
        assert_eq!(ten(&throttle, &other).await, Duration::ZERO);
        throttle.learn(&host, 403, None);
        assert!(ten(&throttle, &host).await >= Duration::from_millis(9 * 500));
        assert!(throttle.gate(&host).is_restrained(), "until it answers well");
        throttle.learn(&host, 206, None);
        assert!(!throttle.gate(&host).is_restrained());
        assert_eq!(ten(&throttle, &host).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn who_queues_already_waits_for_what_the_host_asks_for_now() {
        let throttle = Throttle::new(Duration::from_secs(120), Hosts::default());
        let host = url("https://r/a");
        throttle.learn(&host, 429, Some(Duration::from_secs(1)));
        let start = Instant::now();
        let first = async {
            throttle.admit(&host).await;
            assert_eq!(start.elapsed().as_secs(), 1);
            // The second has its turn, and waits, when the answer to the first comes.
            tokio::time::sleep(SPACING / 2).await;
            throttle.learn(&host, 429, Some(Duration::from_secs(30)));
            throttle.learn(&host, 503, None);
        };
        let second = async {
            throttle.admit(&host).await;
            start.elapsed()
        };
        let ((), waited) = tokio::join!(first, second);
        assert!(waited >= Duration::from_secs(31), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_image_was_told_holds_for_all() {
        let hosts = Hosts::default();
        let [one, other] = [120, 60].map(|seconds| Throttle::new(Duration::from_secs(seconds), hosts.clone()));
        let (host, elsewhere) = (url("https://r/a"), url("https://r/b"));
        one.learn(&host, 429, Some(Duration::from_secs(20)));
        let start = Instant::now();
        tokio::join!(ten(&one, &host), ten(&other, &elsewhere));
        assert!(start.elapsed() >= Duration::from_millis(20_000 + 19 * 500), "{:?}", start.elapsed());
        other.learn(&host, 200, None);
        assert!(!one.gate(&host).is_restrained());
    }

    #[tokio::test(start_paused = true)]
    async fn an_absurd_wait_is_cut_short() {
        let throttle = Throttle::new(Duration::from_secs(8), Hosts::default());
        let host = url("https://r/a");
        throttle.learn(&host, 503, Some(Duration::MAX));
        let start = Instant::now();
        throttle.admit(&host).await;
        assert_eq!(start.elapsed().as_secs(), 4);
    }
}
