//! tokio's runtime, which has its threads from its start on.
//!
//! tokio panics where it cannot make a thread or a descriptor of its runtime, and what has panicked then waits for ever for the threads that were made
//! before. Whether there is room cannot be asked for: another process of the cgroup may take it the next moment. So a runtime is built on a
//! thread of its own, which is left behind where it panics: the panic hook says so to who waits.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::panic;
use std::sync::{Once, mpsc};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};

use super::{explained, spawn, start};

/// Threads that answer for sockets and timers: one a CPU, but no more than are of use.
const MOST_WORKERS: usize = 8;

/// Threads that stand in for those of them that block for a moment (`block_in_place`). One is there from the start, and all are kept.
const HANDS: usize = 8;
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// How long the end of a runtime waits for threads that block: they hear of it at once, unless a system call holds them.
const ENDING: Duration = Duration::from_secs(1);

/// A runtime that ends when it is dropped: its tasks at once, its threads within a bounded time.
pub struct Runtime {
    handle: Handle,
    /// There until it is dropped.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Runtime {
    /// What tasks are started by from elsewhere.
    #[must_use]
    pub const fn handle(&self) -> &Handle {
        &self.handle
    }

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
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(workers).max_blocking_threads(HANDS).thread_keep_alive(FOR_EVER).enable_all();
    let runtime = built(builder, || "tokio-rt-worker".to_owned())?;
    Ok(Runtime { handle: runtime.handle().clone(), runtime: Some(runtime) })
}

type Built = io::Result<tokio::runtime::Runtime>;

thread_local! {
    /// Who waits for the runtime that this thread builds.
    static WAITING: RefCell<Option<mpsc::Sender<Built>>> = const { RefCell::new(None) };
    /// This thread has begun to make the runtime's threads.
    static MAKES_THREADS: Cell<bool> = const { Cell::new(false) };
}

/// Builds a runtime and the first of its hands. `name`: of each thread that is to be made.
fn built(mut builder: Builder, name: impl Fn() -> String + Send + Sync + 'static) -> Built {
    hear_of_panics();
    builder.thread_name_fn(move || {
        MAKES_THREADS.set(true);
        name()
    });
    let (tell, told) = mpsc::channel();
    let build = move || {
        WAITING.set(Some(tell));
        let built = builder.build();
        built.iter().for_each(|runtime| drop(runtime.spawn_blocking(|| ())));
        // Whoever waits does so until it hears of it.
        if let Some(tell) = WAITING.take() {
            drop(tell.send(built));
        }
    };
    spawn("runtime", build)?;
    told.recv().unwrap_or_else(|gone| Err(io::Error::other(gone)))
}

/// A panic while a runtime is built is no bug, but an error of who wanted it. All others are left to the hook that was there.
fn hear_of_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |panic| match WAITING.try_with(RefCell::take).ok().flatten() {
            Some(waiting) => drop(waiting.send(Err(failure(panic.payload())))),
            None => others(panic),
        }));
    });
}

fn failure(payload: &(dyn Any + Send)) -> io::Error {
    let said = payload.downcast_ref::<String>().cloned().unwrap_or_default();
    match MAKES_THREADS.get() {
        true => explained(io::Error::new(io::ErrorKind::WouldBlock, said)),
        // Before its threads it makes descriptors, and nothing else.
        false => io::Error::other(format!("too few descriptors (ulimit -n): {said}")),
    }
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
        let runtime = runtime().unwrap();
        let blocking = async { tokio::spawn(async { tokio::task::block_in_place(|| 7) }).await };
        assert_eq!(runtime.block_on(blocking).unwrap(), 7);
    }

    /// A runtime of two threads of which the second cannot be made.
    #[test]
    fn a_runtime_that_is_half_made_is_refused_and_not_waited_for() {
        let made = std::sync::atomic::AtomicUsize::new(0);
        let name = move || match made.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            0 => "first".to_owned(),
            _ => panic!("{}", "no room"),
        };
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(2);
        let error = built(builder, name).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(error.to_string().starts_with("no thread or process can be made; "), "{error}");
        // And the next one is made.
        assert_eq!(runtime().unwrap().block_on(async { 7 }), 7);
    }
}
