//! The way to one host: restraint where it has asked for it.

use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use super::patience::vary;

/// Between requests to a host that asked for restraint: on average this and no less than two thirds of it.
pub(super) const SPACING: Duration = Duration::from_millis(750);

/// The way to one host.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// While the host asks for restraint: the earliest time of the next request.
    next: Mutex<Option<Instant>>,
    /// Whoever has it waits for that time; the others queue behind.
    turn: AsyncMutex<()>,
    pub(super) has_answered: AtomicBool,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its host asks for restraint just now.
    pub(super) fn is_restrained(&self) -> bool {
        self.lock().is_some()
    }

    /// Waits until the host may be asked.
    pub(super) async fn admit(&self) {
        if !self.is_restrained() {
            return;
        }
        let _turn = self.turn.lock().await;
        // Looked at again after each wait: meanwhile the host may have asked for more of it, or have been found well again.
        while let Some(time) = self.pass() {
            tokio::time::sleep_until(time).await;
        }
    }

    /// Goes through, or says until when to wait.
    fn pass(&self) -> Option<Instant> {
        let mut next = self.lock();
        let (time, now) = ((*next)?, Instant::now());
        if time > now {
            return Some(time);
        }
        *next = Some(now + vary(SPACING).max(SPACING * 2 / 3));
        None
    }

    pub(super) fn restrain(&self, hold: Duration) {
        let mut next = self.lock();
        *next = (*next).max(Some(Instant::now() + hold));
    }

    pub(super) fn is_well(&self) {
        *self.lock() = None;
    }
}
