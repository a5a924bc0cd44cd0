//! Who waits for whom.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// So much at a time. Who comes first goes first, so that nobody waits for those that come later.
#[derive(Debug)]
pub(super) struct Gate {
    all: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    free: u64,
    /// Who has come so far, and who of them has gone in.
    came: u64,
    went: u64,
}

impl Gate {
    pub(super) fn new(all: u64) -> Arc<Self> {
        let state = State { free: all, came: 0, went: 0 };
        Arc::new(Self { all, state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Waits for so much. Who wants more than there is gets all.
    pub(super) fn enter(self: &Arc<Self>, wanted: u64) -> Place {
        let wanted = wanted.min(self.all);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let number = state.came;
        state.came = number.wrapping_add(1);
        let waited = self.changed.wait_while(state, |state| state.went != number || state.free < wanted);
        state = waited.unwrap_or_else(PoisonError::into_inner);
        state.went = number.wrapping_add(1);
        state.free = state.free.saturating_sub(wanted);
        drop(state);
        self.changed.notify_all();
        Place { gate: Arc::clone(self), taken: wanted }
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> u64 {
        let state = self.state.lock().unwrap();
        state.came - state.went
    }
}

/// What was taken, until it is dropped.
#[derive(Debug)]
pub struct Place {
    gate: Arc<Gate>,
    taken: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.state.lock().unwrap_or_else(PoisonError::into_inner).free += self.taken;
        self.gate.changed.notify_all();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    /// Waits until so many wait, unless `is_done` says that they do not.
    pub(in crate::budget) fn until_waiting(gate: &Gate, count: u64, is_done: impl Fn() -> bool) {
        while gate.waiting() != count {
            assert!(!is_done(), "nobody waited");
            thread::yield_now();
        }
    }

    #[test]
    fn there_is_no_more_than_all_and_who_comes_first_goes_first() {
        let gate = Gate::new(10);
        let (small, other) = (gate.enter(4), gate.enter(6));
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            for (number, wanted) in [(1, 100), (2, 1)] {
                let (gate, tell) = (&gate, tell.clone());
                scope.spawn(move || {
                    let _place = gate.enter(wanted);
                    tell.send(number).unwrap();
                });
                until_waiting(gate, number, || told.try_recv().is_ok());
            }
            drop(small);
            until_waiting(&gate, 2, || false);
            assert!(told.try_recv().is_err(), "the second one would have room, and waits for the first");
            drop(other);
            assert_eq!((told.recv(), told.recv()), (Ok(1), Ok(2)));
        });
        assert_eq!(gate.waiting(), 0);
        drop(gate.enter(10));
    }
}
