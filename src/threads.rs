//! Threads for what may block. A server has those that it needs from its start, and keeps them: where no more can be made (a full pids cgroup,
//! RLIMIT_NPROC), work waits for one of them, so that a mount is slow and not dead. tokio's own blocking threads end when they are idle, and
//! `spawn_blocking` panics where there is none and none can be made.
//!
//! Work waits only for work of kinds above its own in [`Work`]. So it comes to an end with one thread of each kind, if what it asks ever answers: a
//! disk that has stopped keeps the threads that asked it, and who waits for those needs a limit of its own.

mod limits;
mod pool;
mod runtime;
mod wait;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::Span;
use tracing::level_filters::LevelFilter;

use self::pool::{Pool, Size};
pub use limits::explained;
pub use pool::Figures;
pub use runtime::{Runtime, runtime};
pub use wait::{Ended, wait};

/// What a piece of work waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// For the CPU and the cache's disk, and nothing else.
    Local,
    /// For other disks and for name servers, which may never answer.
    Outside,
    /// For what a registry sends.
    Incoming,
    /// For all of these: layers are opened.
    Opening,
}

/// Some more than what is kept, so that a layer whose requests are stuck leaves threads to others also where no more can be made: it has eight of these.
const KEPT_INCOMING: usize = 9;

/// At most as many threads as there are requests of readers at a time (384), with some for guesses.
const MOST_INCOMING: usize = 640;

static LOCAL: Pool = Pool::new("local", Size { kept: 4, most: 128 });
static OUTSIDE: Pool = Pool::new("outside", Size { kept: 2, most: 512 });
static INCOMING: Pool = Pool::new("incoming", Size { kept: KEPT_INCOMING, most: MOST_INCOMING });
static OPENING: Pool = Pool::new("opening", Size { kept: 2, most: 256 });

/// For what nobody waits for.
static NOTING: Pool = Pool::new("noting", Size { kept: 1, most: 1 });

/// Notes that wait at most.
const MOST_NOTES: usize = 64;

impl Work {
    const ALL: [Self; 4] = [Self::Local, Self::Outside, Self::Incoming, Self::Opening];

    fn pool(self) -> &'static Pool {
        match self {
            Self::Local => &LOCAL,
            Self::Outside => &OUTSIDE,
            Self::Incoming => &INCOMING,
            Self::Opening => &OPENING,
        }
    }
}

/// Makes one thread for each kind of work: with these, everything gets done.
///
/// # Errors
/// Where one cannot be made; says which limit it is.
pub fn start() -> io::Result<()> {
    Work::ALL.iter().try_for_each(|work| work.pool().fill(1)).map_err(explained)
}

/// Makes the threads that are kept, as far as they can be made.
pub fn fill() {
    let filled = pools().into_iter().try_for_each(|pool| pool.fill(usize::MAX));
    if let Err(error) = filled.map_err(explained) {
        tracing::warn!(%error, "too few threads: what is read waits for those that there are");
    }
}

/// What the threads of each kind do.
#[must_use]
pub fn figures() -> [Figures; 5] {
    pools().map(Pool::figures)
}

fn pools() -> [&'static Pool; 5] {
    [&LOCAL, &OUTSIDE, &INCOMING, &OPENING, &NOTING]
}

/// Runs `job` on a thread for such work, within the caller's tokio runtime, whether or not anybody waits for its outcome.
pub fn run<T: Send + 'static>(work: Work, job: impl FnOnce() -> T + Send + 'static) -> Outcome<T> {
    let (tell, told) = oneshot::channel();
    let runtime = Handle::try_current().ok();
    // Looked for only where somebody asks for such lines.
    let span = (LevelFilter::current() >= LevelFilter::DEBUG).then(Span::current);
    work.pool().push(Box::new(move || {
        let _within = runtime.as_ref().map(Handle::enter);
        let _for = span.as_ref().map(Span::enter);
        // Nobody may be waiting any more for it.
        drop(tell.send(job()));
    }));
    Outcome(told)
}

/// Does what nobody waits for, by a thread that does nothing else: later, or not at all where that hangs.
pub fn offer(note: impl FnOnce() + Send + 'static) {
    NOTING.offer(Box::new(note), MOST_NOTES);
}

/// Starts a thread of its own, for what may take as long as the process lives.
///
/// # Errors
/// Where it cannot be made; says which limit it is.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop).map_err(explained)
}

/// What a piece of work gives.
pub struct Outcome<T>(oneshot::Receiver<T>);

/// A piece of work that has no outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its thread panicked, which is a bug, or none could be made (ulimit -u, pids.max); the log says which")]
pub struct Lost;

impl<T> Future for Outcome<T> {
    type Output = Result<T, Lost>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map_err(|_| Lost)
    }
}
