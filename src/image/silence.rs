//! The disk of the cache may stop while an image is opened: whoever waits for the image is told so, and waits no longer.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Error;
use crate::cache::Cache;
use crate::sys::limit;
use crate::threads::{self, Work};

/// How often it is asked, and how long it may take to answer.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(20);

/// What `work` gives, or that the cache has not answered for [`PATIENCE`].
pub(crate) async fn unless_silent<T>(cache: &Cache, work: impl Future<Output = T>) -> Result<T, Error> {
    tokio::select! {
        done = work => Ok(done),
        error = until_silent(cache) => Err(error),
    }
}

/// Comes back when the cache has not answered for [`PATIENCE`].
pub(super) async fn until_silent(cache: &Cache) -> Error {
    let asked = cache.clone();
    until_unanswered(SIGN_OF_LIFE, PATIENCE, move || asked.ask_disk()).await;
    let dir = cache.path().unwrap_or(Path::new("")).to_owned();
    Error::Cache { dir, source: limit::silence(PATIENCE) }
}

async fn until_unanswered(pause: Duration, patience: Duration, ask: impl Fn() + Clone + Send + 'static) {
    loop {
        tokio::time::sleep(pause).await;
        let (begin, begun) = oneshot::channel();
        let ask = ask.clone();
        let asked = threads::run(Work::Outside, move || {
            // Whoever waits may have given up.
            let _heard = begin.send(());
            ask();
        });
        // Nothing is said against a disk by the time in which no thread asks it.
        let is_asked = tokio::time::timeout(patience, begun).await.is_ok();
        if is_asked && tokio::time::timeout(patience, asked).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn a_disk_that_stops_is_noticed() {
        let (answers, is_asked) = mpsc::channel();
        let is_asked = Arc::new(Mutex::new(is_asked));
        (0..3).for_each(|_| answers.send(()).unwrap());
        let left = Arc::clone(&is_asked);
        let ask = move || {
            let _asked = is_asked.lock().unwrap().recv();
        };
        let moment = Duration::from_millis(1);
        until_unanswered(moment, Duration::from_millis(500), ask).await;
        drop(answers);
        assert!(left.lock().unwrap().recv().is_err(), "it was asked as long as it answered");
    }
}
