//! How workers ended, and what follows from it.

use std::time::Duration;

use nix::sys::signal::Signal;

/// How long a worker has to have served for its end to have nothing to do with its beginning.
pub(super) const LIVED: Duration = Duration::from_secs(10);

/// Before the first, the second, ... start of another one in a row; the last one for all that follow.
const PAUSES: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(5)];

/// The end of a worker that was to serve on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Death {
    pub(super) how: How,
    /// Whether the kernel has killed it for want of memory, or may have.
    pub(super) for_memory: bool,
    /// For how long it had served.
    pub(super) served: Option<Duration>,
    /// What it has said itself.
    pub(super) said: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Exited(i32),
    Killed(Signal),
}

impl Death {
    /// Of one that could not be started.
    pub(super) fn unborn(error: &std::io::Error) -> Self {
        Self {
            how: How::Exited(-1),
            for_memory: false,
            served: None,
            said: Some(format!("it cannot be started: {error}")),
        }
    }

    /// Whether what it did has killed it, and nobody else.
    pub(super) fn is_crash(&self) -> bool {
        use Signal::{SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP};
        self.for_memory
            || matches!(self.how, How::Killed(SIGABRT | SIGBUS | SIGFPE | SIGILL | SIGSEGV | SIGSYS | SIGTRAP))
    }

    /// Whether the next one may end in the same way at once.
    fn is_likely_to_come_again(&self) -> bool {
        match (self.served, self.how) {
            (None, _) => true,
            (Some(served), How::Exited(_)) => served < LIVED,
            (Some(served), How::Killed(_)) => served < LIVED && self.is_crash(),
        }
    }

    pub(super) fn cause(&self) -> String {
        match (&self.said, self.how) {
            (Some(said), _) => said.clone(),
            (None, _) if self.for_memory => "it was killed for want of memory".to_owned(),
            (None, How::Exited(status)) => format!("it ended with status {status}"),
            (None, How::Killed(signal)) => format!("it was killed by {signal}"),
        }
    }
}

/// The ends of workers in a row, none of which had served for long.
#[derive(Debug, Default)]
pub(super) struct Deaths {
    row: u32,
    /// All there were.
    pub(super) all: u32,
    pub(super) last: Option<Death>,
}

impl Deaths {
    /// Comes back with how long the start of another worker waits.
    pub(super) fn count(&mut self, death: Death) -> Duration {
        self.all = self.all.saturating_add(1);
        self.row = if death.is_likely_to_come_again() { self.row.saturating_add(1) } else { 0 };
        self.last = Some(death);
        let pause = PAUSES.get(self.row.saturating_sub(1) as usize).or(PAUSES.last());
        pause.copied().unwrap_or_default()
    }

    /// Whether the last one had not served for long, or not at all.
    pub(super) fn is_row(&self) -> bool {
        self.row > 0
    }

    /// What is wrong, where it is more than one mishap.
    pub(super) fn trouble(&self) -> Option<String> {
        let last = self.last.as_ref().filter(|_| self.row > 1)?;
        let times = self.row;
        Some(format!("its worker died {times} times: {}; reads fail at the deadline until one lives", last.cause()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death(how: How, served: Option<u64>) -> Death {
        Death { how, for_memory: false, served: served.map(Duration::from_secs), said: None }
    }

    const KILLED: How = How::Killed(Signal::SIGKILL);
    const CRASHED: How = How::Killed(Signal::SIGSEGV);

    #[test]
    fn one_that_cannot_start_is_started_later_and_later() {
        let mut deaths = Deaths::default();
        let pauses: Vec<_> = (0..6).map(|_| deaths.count(death(KILLED, None)).as_millis()).collect();
        assert_eq!(pauses, [0, 100, 1000, 5000, 5000, 5000]);
        let trouble = deaths.trouble().unwrap();
        assert!(trouble.contains("6 times: it was killed by SIGKILL"), "{trouble}");
        assert_eq!(deaths.count(death(KILLED, Some(0))), Duration::ZERO);
        assert_eq!((deaths.trouble(), deaths.all), (None, 7));
    }

    #[test]
    fn one_that_others_kill_is_started_again_at_once() {
        let mut deaths = Deaths::default();
        for _ in 0..9 {
            assert_eq!(deaths.count(death(KILLED, Some(0))), Duration::ZERO);
        }
        assert_eq!(deaths.trouble(), None);
    }

    #[test]
    fn one_that_crashes_soon_is_not_and_one_that_crashes_late_is() {
        let mut deaths = Deaths::default();
        for pause in [0, 100, 1000] {
            assert_eq!(deaths.count(death(CRASHED, Some(1))).as_millis(), pause);
        }
        assert_eq!(deaths.count(death(CRASHED, Some(60))), Duration::ZERO);
        assert_eq!(deaths.count(death(How::Exited(1), Some(1))), Duration::ZERO);
        assert_eq!(deaths.count(death(How::Exited(1), Some(1))).as_millis(), 100);
        let said = Death { said: Some("the tree is another one".into()), ..death(How::Exited(1), None) };
        assert_eq!(said.cause(), "the tree is another one");
        deaths.count(said);
        let for_memory = Death { for_memory: true, ..death(KILLED, Some(1)) };
        assert!(for_memory.cause().contains("memory"));
        assert_eq!(deaths.count(for_memory).as_millis(), 5000);
    }
}
