//! How threads wait for tasks.
//!
//! ```text
//! thread that may block ── wait(future) ──> task ── result ──> thread
//!                                            └── dropped when the runtime ends: the thread hears `Ended`
//! ```
//!
//! Only tasks poll futures. A timer panics when it is polled after its runtime has begun to end, so no thread that outlives the tasks may poll one:
//! that rules `Handle::block_on` out (clippy.toml).

use std::future::Future;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::Instrument as _;

/// The runtime ended before the task did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("crfs is ending")]
pub struct Ended;

/// Runs a future as a task, and blocks this thread until the task is done. For threads that run no tasks.
///
/// # Errors
/// Where the runtime ends first.
pub fn wait<T: Send + 'static>(runtime: &Handle, future: impl Future<Output = T> + Send + 'static) -> Result<T, Ended> {
    let (tell, heard) = oneshot::channel();
    // The thread waits for as long as the task runs.
    runtime.spawn(async move { drop(tell.send(future.await)) }.in_current_span());
    heard.blocking_recv().map_err(|_| Ended)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::threads::{Work, run, runtime};

    #[test]
    fn a_thread_that_waits_for_a_timer_hears_of_the_end() {
        let (begun, has_begun) = mpsc::channel();
        let (tell, heard) = mpsc::channel();
        let runtime = runtime().unwrap();
        runtime.block_on(async {
            let handle = Handle::current();
            let hour = async move {
                begun.send(()).unwrap();
                tokio::time::sleep(Duration::from_secs(3600)).await;
            };
            drop(run(Work::Opening, move || tell.send(wait(&handle, hour))));
        });
        has_begun.recv().unwrap();
        drop(runtime);
        // A thread that panics says nothing.
        assert_eq!(heard.recv().ok(), Some(Err(Ended)));
    }

    #[test]
    fn after_the_end_nothing_is_begun() {
        let runtime = runtime().unwrap();
        let handle = runtime.block_on(async { Handle::current() });
        assert_eq!(wait(&handle, async { 7 }), Ok(7));
        drop(runtime);
        assert_eq!(wait(&handle, async { tokio::time::sleep(Duration::ZERO).await }), Err(Ended));
    }
}
