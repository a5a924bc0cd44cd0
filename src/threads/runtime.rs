//! tokio's runtime, which has its threads from its start on.

use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::{explained, start};

/// Threads that answer for sockets and timers: one a CPU, but no more than are of use.
const MOST_WORKERS: usize = 8;

/// Threads that stand in for those of them that block for a moment (`block_in_place`). One is there from the start, and all are kept.
const HANDS: usize = 8;
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// How long the kernel may take to let go of threads that have ended.
const SETTLING: Duration = Duration::from_secs(1);

/// How long the end of a runtime waits for threads that block: they hear of it at once, unless a system call holds them.
const ENDING: Duration = Duration::from_secs(1);

/// A runtime that ends when it is dropped: its tasks at once, its threads within a bounded time.
pub struct Runtime {
    handle: Handle,
    /// There until it is dropped.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Runtime {
    /// Polls a future on this thread, while the tasks run on others.
    #[expect(clippy::disallowed_methods, reason = "this runtime lives at least until the future is done")]
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.handle.block_on(future)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(ENDING);
        }
    }
}

/// A runtime for all that waits for registries, and the threads that do its blocking work.
///
/// # Errors
/// Where their threads cannot be made; says which limit it is.
pub fn runtime() -> io::Result<Runtime> {
    start()?;
    let workers = thread::available_parallelism().map_or(1, usize::from).min(MOST_WORKERS);
    // tokio panics where it cannot make one of these.
    try_out(workers + 1).map_err(explained)?;
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(workers).max_blocking_threads(HANDS).thread_keep_alive(FOR_EVER);
    let runtime = builder.enable_all().build()?;
    drop(runtime.spawn_blocking(|| ()));
    Ok(Runtime { handle: runtime.handle().clone(), runtime: Some(runtime) })
}

/// Makes so many threads at once and lets them end.
fn try_out(threads: usize) -> io::Result<()> {
    let (gate, made) = (Mutex::new(()), Mutex::new(Vec::new()));
    let lock = |gate| Mutex::lock(gate).unwrap_or_else(PoisonError::into_inner);
    let tried = thread::scope(|scope| {
        let closed = lock(&gate);
        let wait = || {
            made.lock().unwrap_or_else(PoisonError::into_inner).push(nix::unistd::gettid());
            drop(lock(&gate));
        };
        let tried = (0..threads).try_for_each(|_| Builder::new().spawn_scoped(scope, wait).map(drop));
        drop(closed);
        tried
    });
    // They count until the kernel has let go of them.
    let start = Instant::now();
    let made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
    let is_there = |thread: &nix::unistd::Pid| Path::new("/proc/self/task").join(thread.to_string()).exists();
    while made.iter().any(is_there) && start.elapsed() < SETTLING {
        thread::sleep(Duration::from_micros(50));
    }
    tried
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_a_system_call_holds_does_not_hold_the_end() {
        let (let_go, held) = std::sync::mpsc::channel::<()>();
        let runtime = runtime().unwrap();
        runtime.handle.spawn_blocking(move || held.recv());
        drop(runtime);
        drop(let_go);
    }

    #[test]
    fn a_task_of_a_runtime_may_block_for_a_moment() {
        try_out(5).unwrap();
        let runtime = runtime().unwrap();
        let blocking = async { tokio::spawn(async { tokio::task::block_in_place(|| 7) }).await };
        assert_eq!(runtime.block_on(blocking).unwrap(), 7);
    }
}
