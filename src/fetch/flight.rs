//! Single flight: of many readers of one check one fetches, the others wait for its outcome.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::Error;
use super::kept::Kept;

type Outcome = Result<Kept, Error>;

/// The checks that are on their way.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<u32, watch::Receiver<Option<Outcome>>>>);

/// Waits for one check.
pub(super) struct Waiter {
    pub(super) check: u32,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Waiter {
    /// What came of it, if it is over.
    pub(super) fn outcome(&self) -> Option<Result<(), Error>> {
        self.outcome.borrow().as_ref().map(|outcome| outcome.as_ref().map(drop).map_err(Clone::clone))
    }

    pub(super) async fn wait(mut self) -> Outcome {
        match self.outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Err(Error::Interrupted)),
            Err(_) => Err(Error::Interrupted),
        }
    }
}

/// The duty to bring one check. Dropped without an outcome, it tells its waiters that it was interrupted.
pub(super) struct Duty {
    check: u32,
    flights: Arc<Flights>,
    outcome: watch::Sender<Option<Outcome>>,
}

impl Duty {
    pub(super) fn check(&self) -> u32 {
        self.check
    }

    /// Ends the flight: whoever comes now looks for the check anew, an error is not remembered.
    pub(super) fn land(self, outcome: Outcome) {
        self.outcome.send_replace(Some(outcome));
    }
}

impl Drop for Duty {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.check);
    }
}

impl Flights {
    /// A check that is on its way already.
    pub(super) fn join(&self, check: u32) -> Option<Waiter> {
        self.lock().get(&check).map(|outcome| Waiter { check, outcome: outcome.clone() })
    }

    /// Whether a check is on its way.
    pub(super) fn has(&self, check: u32) -> bool {
        self.lock().contains_key(&check)
    }

    /// Takes the duty to bring `check`, or the place of one who waits for it.
    pub(super) fn take(self: &Arc<Self>, check: u32) -> Result<(Duty, Waiter), Waiter> {
        let mut flights = self.lock();
        if let Some(outcome) = flights.get(&check) {
            return Err(Waiter { check, outcome: outcome.clone() });
        }
        let (sender, receiver) = watch::channel(None);
        flights.insert(check, receiver.clone());
        let duty = Duty { check, flights: Arc::clone(self), outcome: sender };
        Ok((duty, Waiter { check, outcome: receiver }))
    }

    /// How many checks are on their way.
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, watch::Receiver<Option<Outcome>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_who_come_during_a_flight_get_its_outcome() {
        let flights = Arc::new(Flights::default());
        let (duty, first) = flights.take(7).ok().unwrap();
        let second = flights.take(7).err().unwrap();
        let third = flights.join(7).unwrap();
        assert!(flights.join(8).is_none());
        duty.land(Ok(Kept::LayerFile));
        for waiter in [first, second, third] {
            assert!(waiter.wait().await.is_ok());
        }
        assert!(flights.join(7).is_none(), "landed");
    }

    #[tokio::test]
    async fn a_flight_that_is_given_up_is_an_error_and_is_not_remembered() {
        let flights = Arc::new(Flights::default());
        let (duty, waiter) = flights.take(7).ok().unwrap();
        drop(duty);
        assert!(matches!(waiter.wait().await, Err(Error::Interrupted)));
        assert!(flights.take(7).is_ok());
    }
}
