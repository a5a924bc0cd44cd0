//! Asks one place after the other until one of them answers: the next one at once where one fails, and beside it where one takes too long.

use std::future::Future;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};

/// Who has answered.
pub(super) struct Won<T> {
    pub(super) place: usize,
    pub(super) value: T,
    /// Who was asked before, and has not answered yet.
    pub(super) overtaken: Vec<usize>,
    /// How many were asked after it, while it was waited for.
    pub(super) spare: usize,
}

/// The first answer, or `None` where each place fails. `places` in the order in which they are asked. `patience`: how long one may take before the next is asked beside it; `None` where that must not be.
pub(super) async fn race<T, F: Future<Output = Option<T>>>(
    places: &[usize],
    patience: impl Fn(usize) -> Option<Duration>,
    ask: impl Fn(usize) -> F,
) -> Option<Won<T>> {
    let mut waiting = places.iter().copied();
    let mut under_way = FuturesUnordered::new();
    let mut asked: Vec<usize> = Vec::new();
    let mut failed: Vec<usize> = Vec::new();
    let mut limit = None;
    loop {
        // Whoever is asked for all of them to answer is asked at once; whoever is late has one more beside it.
        if under_way.is_empty() || limit.is_some_and(|limit: tokio::time::Instant| limit <= tokio::time::Instant::now())
        {
            limit = None;
            match waiting.next() {
                Some(place) => {
                    let asking = ask(place);
                    under_way.push(async move { (place, asking.await) });
                    asked.push(place);
                    limit = patience(place).map(|patience| tokio::time::Instant::now() + patience);
                }
                None if under_way.is_empty() => return None,
                None => {}
            }
        }
        let late = async {
            match limit.filter(|_| waiting.len() > 0) {
                Some(limit) => tokio::time::sleep_until(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            answer = under_way.next() => match answer {
                Some((place, Some(value))) => {
                    let is_waited_for = |other: &&usize| !failed.contains(other);
                    let before = asked.iter().position(|other| *other == place).unwrap_or(0);
                    let (before, after) = asked.split_at_checked(before).unwrap_or_default();
                    let overtaken = before.iter().filter(is_waited_for).copied().collect();
                    let spare = after.iter().skip(1).filter(is_waited_for).count();
                    return Some(Won { place, value, overtaken, spare });
                }
                Some((place, None)) => {
                    failed.push(place);
                    // The next one at once, also where another is under way.
                    limit = Some(tokio::time::Instant::now());
                }
                None => {}
            },
            () = late => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::time::Instant;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// What each place does: after so many milliseconds, well or not.
    async fn run(
        does: &[(u32, bool)],
        patience: Option<u32>,
    ) -> (Result<usize, Vec<usize>>, Vec<usize>, u128, Vec<usize>) {
        let asked = RefCell::new(Vec::new());
        let places: Vec<usize> = (0..does.len()).collect();
        let start = Instant::now();
        let failed = RefCell::new(Vec::new());
        let outcome = race(
            &places,
            |_| patience.map(|patience| MS * patience),
            |place| {
                asked.borrow_mut().push(place);
                let (after, is_well) = does[place];
                let failed = &failed;
                async move {
                    tokio::time::sleep(MS * after).await;
                    is_well.then_some(place).or_else(|| {
                        failed.borrow_mut().push(place);
                        None
                    })
                }
            },
        );
        let (outcome, overtaken) = match outcome.await {
            Some(Won { place, value, overtaken, spare }) => {
                assert_eq!(spare, if (does[0].0, patience) == (12, Some(10)) { 1 } else { 0 });
                assert_eq!(place, value);
                (Ok(place), overtaken)
            }
            None => (Err(failed.take()), Vec::new()),
        };
        (outcome, asked.into_inner(), start.elapsed().as_millis(), overtaken)
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_that_answers_is_asked_alone() {
        assert_eq!(run(&[(5, true), (1, true)], Some(10)).await, (Ok(0), vec![0], 5, vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_is_asked_at_once_where_one_fails() {
        let slow = run(&[(5, false), (6, false), (7, true)], Some(1000)).await;
        assert_eq!(slow, (Ok(2), vec![0, 1, 2], 18, vec![]));
        assert_eq!(run(&[(5, false), (6, false)], None).await, (Err(vec![0, 1]), vec![0, 1], 11, vec![]));
        assert_eq!(run(&[], Some(1)).await, (Err(vec![]), vec![], 0, vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_takes_too_long_has_the_next_beside_it() {
        assert_eq!(run(&[(500, true), (5, true)], Some(10)).await, (Ok(1), vec![0, 1], 15, vec![0]));
        assert_eq!(run(&[(12, true), (5, true)], Some(10)).await, (Ok(0), vec![0, 1], 12, vec![]));
        assert_eq!(run(&[(500, true), (500, true), (5, true)], Some(10)).await, (Ok(2), vec![0, 1, 2], 25, vec![0, 1]));
        assert_eq!(run(&[(500, true), (5, true)], None).await, (Ok(0), vec![0], 500, vec![]));
        let failing = run(&[(500, true), (5, false), (5, true)], Some(10)).await;
        assert_eq!(failing, (Ok(2), vec![0, 1, 2], 20, vec![0]), "what fails beside it is replaced at once");
        assert_eq!(run(&[(500, false), (5, false)], Some(10)).await, (Err(vec![1, 0]), vec![0, 1], 500, vec![]));
    }
}
