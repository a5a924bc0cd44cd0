//! Layouts and archives may be on filesystems that do not answer: an NFS whose server is gone lets whoever opens a file wait for as long as that takes.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::oneshot;

use super::Error;
use crate::threads::{self, Work};

/// Which of them do not answer just now. Cheap to clone; the clones know the same.
#[derive(Clone, Default)]
pub(super) struct Disks {
    silent: Arc<Mutex<Vec<Silent>>>,
}

/// What was asked in vain.
struct Silent {
    path: PathBuf,
    /// Of the thread that still waits.
    token: Weak<()>,
    /// What it waits for.
    waits: Waits,
}

/// What somebody waits for.
#[derive(Clone)]
pub(super) struct Waits {
    /// How much has moved so far.
    pub(super) moved: u64,
    pub(super) place: PathBuf,
    pub(super) what: &'static str,
}

impl Waits {
    pub(super) fn to_read(path: &Path) -> Self {
        Self { moved: 0, place: path.to_owned(), what: "cannot be read" }
    }

    fn silence(&self, how: String) -> Error {
        let source = io::Error::new(io::ErrorKind::TimedOut, format!("its filesystem {how}"));
        Error::File { path: self.place.clone(), what: self.what, source }
    }
}

impl Disks {
    /// Does something with the files at `path`, on a thread of its own, and waits for it no longer than `limit`. While one thread waits in vain, no
    /// other is sent there.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        path: &Path,
        limit: Duration,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.follow(path, limit, || Waits::to_read(path), work).await
    }

    /// The same of what may take long: `limit` is how long nothing may have moved. `waits` tells how much has, and what it waits for.
    pub(super) async fn follow<T: Send + 'static>(
        &self,
        path: &Path,
        limit: Duration,
        waits: impl Fn() -> Waits,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        if let Some(silent) = self.silent().iter().find(|silent| silent.path == path) {
            return Err(silent.waits.silence("still does not answer".to_owned()));
        }
        let token = Arc::new(());
        let held = Arc::downgrade(&token);
        let (begin, begun) = oneshot::channel();
        let asked = blocking(move || {
            // Whoever waits may have given up.
            let _heard = begin.send(());
            let done = work();
            drop(token);
            done
        });
        // Nothing is said against a disk by the time in which no thread asks it.
        if tokio::time::timeout(limit, begun).await.is_err() {
            return Err(silence(
                path,
                format!("was not asked for {} s: the threads for that wait for others", limit.as_secs()),
            ));
        }
        tokio::pin!(asked);
        let mut before = waits().moved;
        let waits = loop {
            if let Ok(done) = tokio::time::timeout(limit, &mut asked).await {
                return done;
            }
            let now = waits();
            if std::mem::replace(&mut before, now.moved) == now.moved {
                break now;
            }
        };
        let error = waits.silence(format!("has not answered for {} s", limit.as_secs()));
        self.silent().push(Silent { path: path.to_owned(), token: held, waits });
        Err(error)
    }

    /// Those whose threads still wait.
    fn silent(&self) -> MutexGuard<'_, Vec<Silent>> {
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.retain(|silent| silent.token.strong_count() > 0);
        silent
    }
}

pub(super) fn silence(path: &Path, how: String) -> Error {
    Waits::to_read(path).silence(how)
}

/// File system work, off the async threads. It begins at once, whether or not anybody waits for it.
pub(super) fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> impl Future<Output = Result<T, Error>> + Send {
    let done = threads::run(Work::Outside, work);
    async {
        done.await.unwrap_or_else(|source| {
            let source = io::Error::other(source);
            Err(Error::File { path: PathBuf::new(), what: "a file task was given up", source })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn what_moves_is_waited_for_and_what_does_not_move_any_more_is_not() {
        let disks = Disks::default();
        let moved = AtomicU64::new(0);
        let (answer, is_answered) = mpsc::channel::<()>();
        let answer = Mutex::new(Some(answer));
        // Something moves each time that it is looked; at last it is done.
        let moves = || {
            let count = moved.fetch_add(1, Ordering::SeqCst);
            if count == 5 {
                answer.lock().unwrap().take();
            }
            Waits { moved: count, ..Waits::to_read(Path::new("/slow")) }
        };
        let wait = move || Ok(is_answered.recv().is_err());
        assert!(disks.follow(Path::new("/slow"), Duration::from_millis(1), moves, wait).await.unwrap());
        assert!(moved.load(Ordering::SeqCst) >= 5);
    }

    #[tokio::test]
    async fn a_filesystem_that_does_not_answer_has_one_thread_and_no_more() {
        let disks = Disks::default();
        let (dead, well) = (Path::new("/dead"), Path::new("/well"));
        let (answer, is_answered) = mpsc::channel::<()>();
        let wait = move || {
            let _answered = is_answered.recv();
            Ok(())
        };
        // So long that a thread has begun by then, also on a busy machine.
        let first = disks.ask(dead, Duration::from_secs(10), wait).await.unwrap_err();
        assert!(first.to_string().contains("/dead"), "{first}");
        let again = disks
            .clone()
            .ask(dead, Duration::from_secs(60), || -> Result<(), Error> { panic!("nobody is sent there") })
            .await;
        assert!(again.is_err_and(|error| std::error::Error::source(&error).unwrap().to_string().contains("still")));
        assert_eq!(disks.ask(well, Duration::from_secs(60), || Ok(7)).await.unwrap(), 7);
        drop(answer);
        while !disks.silent().is_empty() {
            tokio::task::yield_now().await;
        }
        disks.ask(dead, Duration::from_secs(60), || Ok(())).await.unwrap();
    }
}
