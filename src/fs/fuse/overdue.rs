//! Replies that a thread is to give once local disk has answered. Where that has stopped, the reader hears of it all the same.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Replies among which those that were given are looked for.
const MANY: usize = 64;

/// A reply: whoever comes first gives it.
pub(super) struct Held<R>(Mutex<Option<R>>);

impl<R> Held<R> {
    pub(super) fn take(&self) -> Option<R> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The replies that are to be given within a time.
pub(super) struct Overdue<R> {
    waiting: Mutex<Waiting<R>>,
    /// One is due before the next.
    sooner: Notify,
}

struct Waiting<R> {
    replies: Vec<(Instant, Weak<Held<R>>)>,
    /// When somebody looks at them.
    next: Option<Instant>,
    /// At so many, those that were given go.
    many: usize,
}

impl<R> Default for Overdue<R> {
    fn default() -> Self {
        let waiting = Waiting { replies: Vec::new(), next: None, many: MANY };
        Self { waiting: Mutex::new(waiting), sooner: Notify::new() }
    }
}

impl<R> Overdue<R> {
    /// A reply that is taken away after this time; it need not be given back.
    pub(super) fn hold(&self, reply: R, limit: Duration) -> Arc<Held<R>> {
        let held = Arc::new(Held(Mutex::new(Some(reply))));
        let Some(due) = Instant::now().checked_add(limit) else { return held };
        let mut waiting = self.lock();
        waiting.replies.push((due, Arc::downgrade(&held)));
        if waiting.replies.len() >= waiting.many {
            waiting.replies.retain(|(_, reply)| reply.strong_count() > 0);
            waiting.many = waiting.replies.len().saturating_mul(2).max(MANY);
        }
        if waiting.next.is_none_or(|next| due < next) {
            waiting.next = Some(due);
            self.sooner.notify_one();
        }
        held
    }

    /// Hands over what is overdue, for as long as it is polled.
    pub(super) async fn watch(&self, give_up: impl Fn(Vec<R>)) {
        loop {
            match self.next() {
                None => self.sooner.notified().await,
                Some(due) => tokio::select! {
                    () = sleep_until(due) => {}
                    () = self.sooner.notified() => {}
                },
            }
            let overdue = self.overdue(Instant::now());
            if !overdue.is_empty() {
                give_up(overdue);
            }
        }
    }

    fn next(&self) -> Option<Instant> {
        self.lock().next
    }

    fn overdue(&self, now: Instant) -> Vec<R> {
        let mut waiting = self.lock();
        let all = std::mem::take(&mut waiting.replies).into_iter().filter(|(_, reply)| reply.strong_count() > 0);
        let (late, rest): (Vec<_>, Vec<_>) = all.partition(|(due, _)| *due <= now);
        waiting.next = rest.iter().map(|(due, _)| *due).min();
        waiting.replies = rest;
        drop(waiting);
        late.iter().filter_map(|(_, reply)| reply.upgrade()?.take()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<R>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn what_is_not_given_in_time_is_handed_over() {
        let overdue = Overdue::default();
        let (given, late, later) = (overdue.hold(1, LIMIT), overdue.hold(2, LIMIT), overdue.hold(3, 2 * LIMIT));
        let soonest = overdue.hold(4, LIMIT / 2);
        assert_eq!(given.take(), Some(1));
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let start = Instant::now();
        let watch = overdue.watch(move |replies| tell.send((start.elapsed().as_secs(), replies)).unwrap());
        let hear = async {
            let mut heard = Vec::new();
            while heard.len() < 3 {
                heard.extend(told.recv().await);
            }
            heard
        };
        let heard = tokio::select! {
            () = watch => unreachable!("it never ends"),
            heard = hear => heard,
        };
        assert_eq!(heard, [(2, vec![4]), (5, vec![2]), (10, vec![3])]);
        assert!([late, later, soonest].iter().all(|held| held.take().is_none()), "they are gone");
    }

    #[tokio::test]
    async fn what_was_given_takes_no_memory() {
        let overdue = Overdue::default();
        let stuck = overdue.hold((), LIMIT);
        for _ in 0..10_000 {
            assert_eq!(overdue.hold((), LIMIT).take(), Some(()));
        }
        assert!(overdue.lock().replies.len() <= MANY);
        assert_eq!(stuck.take(), Some(()));
    }
}
