//! How well a place that is asked does: an ill one rests, and is tried again by one request at a time.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// How long an ill place rests: this, and twice as long each time that it is ill once more.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(300);

/// The first rest of one that sends more than it is asked for: each try costs it, or the cache that it is, all of that.
const REST_OF_GENEROUS: Duration = Duration::from_secs(60);

/// Answers whose times are remembered.
const REMEMBERED: usize = 32;

/// Nobody has waited for longer than usual before this, nor asks a second place where the usual time is not known.
const SHORTEST_WAIT: Duration = Duration::from_millis(20);
pub(super) const UNKNOWN_WAIT: Duration = Duration::from_secs(1);

/// Whoever has waited so many times longer than usual asks another place as well.
const TOO_LONG: u32 = 3;

/// Whoever tries an ill place waits for it alone no longer than this part of its rest.
const TRIED_FOR: u32 = 50;

/// So many requests in a row that another place had to answer instead, over so much time, are an illness, and so is one after which nothing at all
/// was answered for longer. Less is none: one that fetches what it has not before it answers takes longer now and then.
const MOST_LOST: u32 = 3;
const LOST_FOR: Duration = Duration::from_millis(200);
const SILENT_FOR: Duration = Duration::from_millis(1500);

/// Cheap to clone: the clones are the same place.
#[derive(Clone, Default)]
pub(super) struct Health(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    rest: Option<Rest>,
    /// Requests in a row that were overtaken, and when the first of them was made.
    lost: u32,
    lost_since: Option<Instant>,
    answered: Option<Instant>,
    /// How long the last answers took.
    took: VecDeque<Duration>,
    counts: Counts,
}

struct Rest {
    until: Instant,
    lasts: Duration,
    /// What was asked for before is no news.
    since: Instant,
    /// Somebody tries whether it is well again.
    is_tried: bool,
    is_over: bool,
}

/// What came of asking, so far. The names of the fields are those of `crfs status --json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub asked: u64,
    /// How often it said that it has not what it was asked for.
    pub refused: u64,
    /// How often there was no answer, or one that breaks the rules.
    pub failed: u64,
    /// How often another endpoint has answered first, which was asked since this one took too long.
    pub overtaken: u64,
    /// What was last said or done of these.
    pub last_error: Option<String>,
}

/// One request, until it is dropped.
pub(super) struct Asking {
    health: Health,
    asked: Instant,
    tries: bool,
}

impl Health {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is better not asked just now: its rest is not over, or somebody tries it already.
    pub(super) fn rests(&self) -> bool {
        let state = self.lock();
        state.rest.as_ref().is_some_and(|rest| !rest.is_over && (rest.is_tried || rest.until > Instant::now()))
    }

    /// Until when it rests, where it does.
    pub(super) fn rests_for(&self) -> Option<Duration> {
        let state = self.lock();
        let rest = state.rest.as_ref().filter(|rest| !rest.is_over)?;
        Some(rest.until.saturating_duration_since(Instant::now()))
    }

    /// A request goes there.
    pub(super) fn ask(&self) -> Asking {
        let mut state = self.lock();
        state.counts.asked += 1;
        let tries =
            state.rest.as_mut().is_some_and(|rest| !rest.is_over && !std::mem::replace(&mut rest.is_tried, true));
        Asking { health: self.clone(), asked: Instant::now(), tries }
    }

    /// How long whoever tries whether it is well waits for it before another place is asked as well; `None`: it is not ill.
    pub(super) fn trial(&self) -> Option<Duration> {
        let state = self.lock();
        let rest = state.rest.as_ref().filter(|rest| !rest.is_over)?;
        Some((rest.lasts / TRIED_FOR).clamp(SHORTEST_WAIT, UNKNOWN_WAIT))
    }

    /// The same of one that is well.
    pub(super) fn patience(&self) -> Duration {
        let state = self.lock();
        let mut took: Vec<_> = state.took.iter().copied().collect();
        took.sort_unstable();
        match took.get(took.len() / 2) {
            Some(usual) => (*usual * TOO_LONG).clamp(SHORTEST_WAIT, UNKNOWN_WAIT.max(*usual * TOO_LONG)),
            None => UNKNOWN_WAIT,
        }
    }

    /// Something that was asked for at `asked` has failed. Tells whether it was well until then.
    pub(super) fn failed(&self, asked: Instant, why: &dyn fmt::Display) -> bool {
        let mut state = self.lock();
        state.counts.failed += 1;
        state.counts.last_error = Some(why.to_string());
        (state.lost, state.lost_since) = (0, None);
        state.start_rest(asked, FIRST_REST)
    }

    /// Something that it sent was wrong. That is for what was wrong to be asked of others, not for it to rest.
    pub(super) fn was_wrong(&self, why: &dyn fmt::Display) {
        let mut state = self.lock();
        state.counts.failed += 1;
        state.counts.last_error = Some(why.to_string());
    }

    pub(super) fn counts(&self) -> Counts {
        self.lock().counts.clone()
    }
}

impl State {
    fn start_rest(&mut self, asked: Instant, first: Duration) -> bool {
        if self.rest.as_ref().is_some_and(|rest| rest.since > asked) {
            // Many were under way when it fell ill: that is one illness.
            return false;
        }
        let (now, before) = (Instant::now(), self.rest.take());
        // One that has been well for longer than it had to rest begins anew.
        let lasts = match &before {
            Some(rest) if !rest.is_over || asked < rest.until + rest.lasts => (rest.lasts * 2).min(LONGEST_REST),
            _ => first,
        };
        self.rest = Some(Rest { until: now + lasts, lasts, since: now, is_tried: false, is_over: false });
        before.is_none_or(|rest| rest.is_over)
    }
}

impl Asking {
    pub(super) const fn asked(&self) -> Instant {
        self.asked
    }

    /// It was answered well.
    pub(super) fn answered(self) {
        let mut state = self.health.lock();
        (state.lost, state.lost_since, state.answered) = (0, None, Some(Instant::now()));
        let took = self.asked.elapsed();
        state.took.push_front(took);
        state.took.truncate(REMEMBERED);
        // What was asked for before it fell ill says nothing.
        if let Some(rest) = state.rest.as_mut().filter(|rest| rest.since <= self.asked) {
            rest.is_over = true;
        }
    }

    /// Another place has answered first.
    pub(super) fn overtaken(self) {
        let mut state = self.health.lock();
        state.counts.overtaken += 1;
        if state.answered.is_some_and(|answered| answered > self.asked) {
            // It is busy with others.
            return;
        }
        state.lost += 1;
        let since = *state.lost_since.get_or_insert(self.asked);
        let is_lost = state.lost >= MOST_LOST && since.elapsed() >= LOST_FOR;
        if is_lost || self.asked.elapsed() >= SILENT_FOR || self.tries {
            state.counts.failed += 1;
            state.counts.last_error = Some("no answer, when another place had answered".to_owned());
            state.start_rest(self.asked, FIRST_REST);
        }
    }

    /// It answered that it has not what was asked for: it is as well as before.
    pub(super) fn refused(self, why: &dyn fmt::Display) {
        let mut state = self.health.lock();
        state.counts.refused += 1;
        state.counts.last_error = Some(why.to_string());
        drop(state);
        self.answered();
    }

    /// It sends more than was asked for.
    pub(super) fn was_generous(self) {
        self.health.lock().start_rest(self.asked, REST_OF_GENEROUS);
    }

    /// It broke the rules, or there was no answer.
    pub(super) fn failed(self, why: &dyn fmt::Display) -> bool {
        self.health.failed(self.asked, why)
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut state = self.health.lock();
        if let Some(rest) = state.rest.as_mut().filter(|_| self.tries) {
            rest.is_tried = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn fail(health: &Health) -> bool {
        health.ask().failed(&"ill")
    }

    #[tokio::test(start_paused = true)]
    async fn an_ill_place_rests_twice_as_long_each_time() {
        let health = Health::default();
        assert!(!health.rests());
        for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            fail(&health);
            assert_eq!(health.rests_for(), Some(SECOND * seconds));
            tokio::time::advance(SECOND * seconds - Duration::from_millis(1)).await;
            assert!(health.rests());
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(!health.rests());
        }
        assert_eq!(health.counts().failed, 11);
    }

    #[tokio::test(start_paused = true)]
    async fn one_request_tries_whether_it_is_well() {
        let health = Health::default();
        assert!(fail(&health), "it was well until then");
        tokio::time::advance(SECOND).await;
        let tries = health.ask();
        assert!(health.rests(), "somebody tries it");
        drop(tries);
        assert!(!health.rests(), "whoever tried it has gone away");
        health.ask().answered();
        assert!(!health.rests() && health.rests_for().is_none());
        assert!(fail(&health), "it was well until then");
        assert_eq!(health.rests_for(), Some(SECOND * 2), "it was ill a moment ago");
        tokio::time::advance(SECOND * 2).await;
        health.ask().answered();
        tokio::time::advance(SECOND * 3).await;
        fail(&health);
        assert_eq!(health.rests_for(), Some(SECOND), "it has been well for long");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_under_way_when_it_fell_ill_is_no_second_illness() {
        let health = Health::default();
        let under_way: Vec<_> = (0..10).map(|_| health.ask()).collect();
        tokio::time::advance(SECOND).await;
        let told = under_way.into_iter().map(|asking| asking.failed(&"ill"));
        assert_eq!(told.filter(|first| *first).count(), 1);
        assert_eq!(health.rests_for(), Some(SECOND));
        let before = health.ask();
        tokio::time::advance(Duration::from_millis(1)).await;
        fail(&health);
        before.answered();
        assert!(health.rests(), "what was asked for before says nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_overtaken_again_and_again_is_ill() {
        let health = Health::default();
        assert_eq!(health.patience(), UNKNOWN_WAIT);
        for took in [10, 20, 30, 4000, 20] {
            let asking = health.ask();
            tokio::time::advance(Duration::from_millis(took)).await;
            asking.answered();
        }
        assert_eq!(health.patience(), Duration::from_millis(60));
        for rests in [false, false, false, true] {
            let asking = health.ask();
            tokio::time::advance(LOST_FOR / 4).await;
            asking.overtaken();
            assert_eq!(health.rests(), rests);
        }
        tokio::time::advance(SECOND).await;
        assert_eq!(health.trial(), Some(SHORTEST_WAIT));
        let asking = health.ask();
        tokio::time::advance(SECOND * 9).await;
        asking.overtaken();
        assert_eq!(health.rests_for(), Some(SECOND * 2), "one who tries need not try three times");
        assert_eq!(health.trial(), Some(Duration::from_millis(40)));
        assert_eq!(health.counts().overtaken, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn who_answers_others_is_busy_and_who_answers_nobody_is_ill() {
        let health = Health::default();
        let (late, other) = (health.ask(), health.ask());
        tokio::time::advance(SILENT_FOR).await;
        other.answered();
        late.overtaken();
        assert!(!health.rests());
        let late = health.ask();
        tokio::time::advance(SILENT_FOR).await;
        late.overtaken();
        assert!(health.rests());
    }
}
