//! What the way to a host can carry: its round trip and its bandwidth, measured on what is fetched anyway.
//!
//! The round trip is the shortest of late from a request to its answer: everything else on the way (a new connection, a queue, a busy host)
//! only adds to it. The bandwidth has two lower bounds in each transfer: its own bytes over the time that it took beyond a round trip, and the
//! bytes of all transfers over the whole of its time. The first is too low where others share the link, the second where it was idle. So the
//! best of late count, but for the very best, which may be the bytes of a moment in which the link had been held up before.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Measurements that are remembered, of each kind: an old route or an old rush hour is forgotten with them.
const REMEMBERED: usize = 32;

/// One in so many rates is taken to be too good.
const TOO_GOOD: usize = 10;

/// Fewer bytes than this say little about a rate.
const LEAST_BYTES: u64 = 32 << 10;

/// No clock measures a rate over less than this, nor over a small part of a round trip.
const LEAST_TIME: Duration = Duration::from_micros(100);
const LEAST_PART: u32 = 8;

/// What a link can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// From a request to the first byte of its answer.
    pub round_trip: Duration,
    /// Bytes a second, of all transfers together.
    pub bandwidth: u64,
}

impl Capacity {
    /// Bytes that come in one round trip: what a request costs, whatever its size.
    #[must_use]
    pub fn per_round_trip(&self) -> u64 {
        self.carries(self.round_trip)
    }

    /// Bytes that come in so much time.
    #[must_use]
    pub fn carries(&self, time: Duration) -> u64 {
        let bytes = u128::from(self.bandwidth).saturating_mul(time.as_micros()) / 1_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

impl Capacity {
    /// The same with a bandwidth that brings so many bytes in one round trip.
    pub(super) fn of_at_least(self, bytes: u64) -> Self {
        let micros = self.round_trip.as_micros().max(1);
        let bandwidth = u128::from(bytes).saturating_mul(1_000_000).div_ceil(micros);
        Self { bandwidth: self.bandwidth.max(u64::try_from(bandwidth).unwrap_or(u64::MAX)), ..self }
    }
}

/// The measurements of one host.
#[derive(Debug, Default)]
pub(super) struct Link(Mutex<Measured>);

#[derive(Debug, Default)]
struct Measured {
    round_trips: VecDeque<Duration>,
    rates: VecDeque<u64>,
    /// Bytes of all transfers.
    bytes: u64,
}

/// A request and the body that answers it, until it is dropped.
pub(super) struct Transfer {
    link: Arc<Link>,
    asked: Instant,
    bytes: u64,
    /// Those of all transfers when it was asked for.
    before: u64,
}

impl Link {
    /// What was asked for at `asked` is answered now.
    pub(super) fn answered(self: &Arc<Self>, asked: Instant) -> Transfer {
        let mut measured = self.lock();
        remember(&mut measured.round_trips, asked.elapsed());
        Transfer { link: Arc::clone(self), asked, bytes: 0, before: measured.bytes }
    }

    /// `None` until something was measured.
    pub(super) fn capacity(&self) -> Option<Capacity> {
        let measured = self.lock();
        let round_trip = *measured.round_trips.iter().min()?;
        let mut rates: Vec<u64> = measured.rates.iter().copied().collect();
        rates.sort_unstable_by(|a, b| b.cmp(a));
        let bandwidth = *rates.get(rates.len() / TOO_GOOD)?;
        Some(Capacity { round_trip, bandwidth })
    }

    fn lock(&self) -> MutexGuard<'_, Measured> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transfer {
    /// A part of the body came.
    pub(super) fn moved(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        let mut measured = self.link.lock();
        measured.bytes = measured.bytes.saturating_add(bytes);
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let mut measured = self.link.lock();
        let Some(round_trip) = measured.round_trips.iter().min().copied().filter(|_| self.bytes >= LEAST_BYTES) else {
            return;
        };
        let time = self.asked.elapsed();
        let least = LEAST_TIME.max(round_trip / LEAST_PART);
        let own = rate(self.bytes, time.saturating_sub(round_trip).max(least));
        let all = rate(measured.bytes.saturating_sub(self.before), time.max(least));
        remember(&mut measured.rates, own.max(all));
    }
}

fn rate(bytes: u64, time: Duration) -> u64 {
    let rate = u128::from(bytes).saturating_mul(1_000_000) / time.as_micros().max(1);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

fn remember<T>(latest: &mut VecDeque<T>, value: T) {
    latest.push_front(value);
    latest.truncate(REMEMBERED);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A request that is answered after 20 ms, with `parts` parts of 50,000 bytes 5 ms apart.
    async fn transfer(link: &Arc<Link>, parts: usize) {
        let asked = Instant::now();
        tokio::time::sleep(20 * MS).await;
        let mut body = link.answered(asked);
        for _ in 0..parts {
            tokio::time::sleep(5 * MS).await;
            body.moved(50_000);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_that_of_all_transfers_together() {
        let link = Arc::new(Link::default());
        assert_eq!(link.capacity(), None);
        transfer(&link, 10).await;
        assert_eq!(link.capacity(), Some(Capacity { round_trip: 20 * MS, bandwidth: 10_000_000 }));
        for _ in 0..REMEMBERED {
            tokio::join!(transfer(&link, 40), transfer(&link, 40));
        }
        let both = link.capacity().unwrap().bandwidth;
        // 20,000,000 but for the first 20 ms of 220.
        assert!((17_000_000..=20_000_000).contains(&both), "{both}");
        let capacity = Capacity { round_trip: 20 * MS, bandwidth: 12_500_000 };
        assert_eq!((capacity.per_round_trip(), capacity.carries(16 * MS)), (250_000, 200_000));
    }

    #[tokio::test(start_paused = true)]
    async fn small_answers_say_nothing_of_the_rate() {
        let link = Arc::new(Link::default());
        for _ in 0..100 {
            let asked = Instant::now();
            tokio::time::sleep(20 * MS).await;
            link.answered(asked).moved(LEAST_BYTES - 1);
        }
        assert_eq!(link.capacity(), None);
        link.answered(Instant::now()).moved(LEAST_BYTES);
        assert!(link.capacity().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_long_ago_is_forgotten() {
        let link = Arc::new(Link::default());
        link.answered(Instant::now());
        for _ in 0..REMEMBERED {
            transfer(&link, 1).await;
        }
        assert_eq!(link.capacity().unwrap().round_trip, 20 * MS);
    }
}
