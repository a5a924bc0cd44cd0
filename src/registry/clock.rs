//! The time of day as hosts have it, by the Date of their answers. Certificates and tokens are valid by it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// What the last answer has said.
#[derive(Debug, Default)]
pub(super) struct Clock(Mutex<Option<i64>>);

impl Clock {
    /// `date`: of an answer that came at `now`.
    pub(super) fn note(&self, date: &str, now: SystemTime) {
        let Ok(theirs) = httpdate::parse_http_date(date) else { return };
        let whole = |by: Duration| i64::try_from(by.as_secs()).unwrap_or(i64::MAX);
        let seconds = |later: SystemTime, earlier| later.duration_since(earlier).map(whole);
        let ahead = seconds(theirs, now).or_else(|_| seconds(now, theirs).map(|behind| -behind));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = ahead.ok();
    }

    /// Seconds that it is ahead of this machine's.
    pub(super) fn ahead(&self) -> Option<i64> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ahead_or_behind() {
        let clock = Clock::default();
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        let theirs = httpdate::parse_http_date(date).unwrap();
        clock.note("yesterday", theirs);
        assert_eq!(clock.ahead(), None);
        clock.note(date, theirs - Duration::from_secs(70));
        assert_eq!(clock.ahead(), Some(70));
        clock.note(date, theirs + Duration::from_secs(7));
        assert_eq!(clock.ahead(), Some(-7));
    }
}
