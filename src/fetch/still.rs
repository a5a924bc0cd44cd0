//! How long nothing has moved, for those who wait.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, timeout};

/// How often it is looked whether anything has moved while one waits as long as one may.
const LOOKS: u32 = 16;

/// The patience of one read, over all that it waits for.
pub(super) struct Still {
    /// Since the last look at which something had moved.
    waited: Duration,
    /// How much had moved at the last look.
    seen: u64,
}

impl Still {
    pub(super) fn new(progress: u64) -> Self {
        Self { waited: Duration::ZERO, seen: progress }
    }

    /// What `future` gives; `None` where nothing has moved for `limit`, what was waited before included. `progress` tells how much has.
    pub(super) async fn wait<T>(
        &mut self,
        progress: impl Fn() -> u64,
        limit: Duration,
        future: impl Future<Output = T>,
    ) -> Option<T> {
        let mut future = pin!(future);
        loop {
            let start = Instant::now();
            let output = timeout(limit.saturating_sub(self.waited).min(limit / LOOKS), &mut future).await;
            let seen = progress();
            let waited = self.waited.saturating_add(start.elapsed());
            self.waited = if seen == self.seen { waited } else { Duration::ZERO };
            self.seen = seen;
            match output {
                Ok(output) => return Some(output),
                Err(_) if self.waited >= limit => return None,
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(16);

    #[tokio::test(start_paused = true)]
    async fn where_nothing_moves_all_waits_together_have_one_limit() {
        let start = Instant::now();
        let mut still = Still::new(7);
        let first = still.wait(|| 7, LIMIT, tokio::time::sleep(LIMIT * 3 / 4)).await;
        assert_eq!((first, start.elapsed()), (Some(()), LIMIT * 3 / 4));
        assert_eq!(still.wait(|| 7, LIMIT, pending::<()>()).await, None);
        assert_eq!(start.elapsed(), LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_moves_starts_it_anew() {
        let start = Instant::now();
        let moves = LIMIT * 5 / 2;
        let progress = || u64::from(start.elapsed() >= moves);
        let mut still = Still::new(1);
        // It was at another place when the last look was.
        assert_eq!(still.wait(progress, LIMIT, pending::<()>()).await, None);
        assert_eq!(start.elapsed(), LIMIT + LIMIT / LOOKS);
        tokio::time::sleep(moves - start.elapsed() - LIMIT / 2).await;
        let mut still = Still::new(progress());
        assert_eq!(still.wait(progress, LIMIT, pending::<()>()).await, None);
        assert_eq!(start.elapsed(), moves + LIMIT);
    }
}
