//! The threads for one kind of work.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::explained;

/// How long a thread that is not kept waits for work.
const IDLE: Duration = Duration::from_secs(10);

pub(super) type Job = Box<dyn FnOnce() + Send>;

/// How many threads there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// So many never end.
    pub(super) kept: usize,
    pub(super) most: usize,
}

/// What the threads for one kind of work do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    pub name: &'static str,
    pub threads: usize,
    pub idle: usize,
    /// Pieces of work that no thread has begun with.
    pub waiting: usize,
}

pub(super) struct Pool {
    name: &'static str,
    size: Size,
    state: Mutex<State>,
    wake: Condvar,
    /// The last thread could not be made.
    is_short: AtomicBool,
}

struct State {
    jobs: VecDeque<Job>,
    /// Those that are being made included.
    threads: usize,
    idle: usize,
}

impl Pool {
    pub(super) const fn new(name: &'static str, size: Size) -> Self {
        let state = State { jobs: VecDeque::new(), threads: 0, idle: 0 };
        let is_short = AtomicBool::new(false);
        Self { name, size, state: Mutex::new(state), wake: Condvar::new(), is_short }
    }

    /// Makes threads until there are so many, or all that are kept.
    pub(super) fn fill(&'static self, wanted: usize) -> io::Result<()> {
        while self.counted(wanted.min(self.size.kept)) {
            self.make()?;
        }
        Ok(())
    }

    /// Hands a job to an idle thread, or a new one, or the first that is done with another. Where there is no thread at all the job is dropped.
    pub(super) fn push(&'static self, job: Job) {
        let mut state = self.lock();
        state.jobs.push_back(job);
        if state.idle >= state.jobs.len() {
            drop(state);
            return self.wake.notify_one();
        }
        drop(state);
        if self.counted(self.size.most) {
            self.grow();
        }
    }

    /// The same, but drops the job where as many wait already.
    pub(super) fn offer(&'static self, job: Job, waiting: usize) {
        if self.lock().jobs.len() < waiting {
            self.push(job);
        }
    }

    pub(super) fn figures(&self) -> Figures {
        let state = self.lock();
        Figures { name: self.name, threads: state.threads, idle: state.idle, waiting: state.jobs.len() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more thread, which is to be made then, where there are less than so many.
    fn counted(&self, most: usize) -> bool {
        let mut state = self.lock();
        let has_room = state.threads < most;
        state.threads += usize::from(has_room);
        has_room
    }

    /// Makes a thread that is counted.
    fn make(&'static self) -> io::Result<()> {
        let made = std::thread::Builder::new().name(self.name.to_owned()).spawn(|| self.work());
        if made.is_err() {
            self.lock().threads -= 1;
        }
        made.map(drop)
    }

    /// The same; says so once where it cannot be made.
    fn grow(&'static self) {
        let Err(error) = self.make() else { return self.is_short.store(false, Ordering::Relaxed) };
        if !self.is_short.swap(true, Ordering::Relaxed) {
            let error = explained(error);
            tracing::warn!(%error, work = self.name, "too few threads: what is read waits for those that there are");
        }
        let mut state = self.lock();
        let nobodys = if state.threads == 0 { std::mem::take(&mut state.jobs) } else { VecDeque::new() };
        drop(state);
        // Whoever waits for these hears of it now.
        drop(nobodys);
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            while let Some(job) = state.jobs.pop_front() {
                drop(state);
                // The panic has been logged, and whoever waits hears that there is no outcome.
                let _panicked = catch_unwind(AssertUnwindSafe(job));
                state = self.lock();
            }
            let limit = (state.idle >= self.size.kept).then_some(IDLE);
            let is_over;
            (state, is_over) = self.wait(state, limit);
            if is_over && state.jobs.is_empty() && state.threads > self.size.kept {
                state.threads -= 1;
                return;
            }
        }
    }

    /// Waits for work, or no longer than `limit`; tells whether that is over.
    fn wait<'a>(&'a self, mut state: MutexGuard<'a, State>, limit: Option<Duration>) -> (MutexGuard<'a, State>, bool) {
        state.idle += 1;
        let (mut state, is_over) = match limit {
            Some(limit) => {
                let (state, waited) = self.wake.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner);
                (state, waited.timed_out())
            }
            None => (self.wake.wait(state).unwrap_or_else(PoisonError::into_inner), false),
        };
        state.idle -= 1;
        (state, is_over)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Longer than anything here takes.
    const LIMIT: Duration = Duration::from_secs(30);

    fn wait_until(is_so: impl Fn() -> bool) {
        let start = std::time::Instant::now();
        while !is_so() {
            assert!(start.elapsed() < LIMIT);
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_is_kept_is_there_and_no_more_than_there_may_be() {
        static POOL: Pool = Pool::new("test-size", Size { kept: 2, most: 3 });
        POOL.fill(1).unwrap();
        assert_eq!(POOL.figures().threads, 1);
        POOL.fill(usize::MAX).unwrap();
        assert_eq!(POOL.figures().threads, 2);
        let (done, wait) = mpsc::channel();
        let (open, gate) = mpsc::channel::<()>();
        let gate = std::sync::Arc::new(Mutex::new(gate));
        for number in 0..10 {
            let (done, gate) = (done.clone(), std::sync::Arc::clone(&gate));
            POOL.push(Box::new(move || {
                // Ends with the gate.
                let _closed = gate.lock().unwrap().recv();
                done.send(number).unwrap();
            }));
        }
        wait_until(|| POOL.figures().threads == 3 && POOL.figures().waiting == 7);
        drop(open);
        let mut all: Vec<i32> = (0..10).map(|_| wait.recv_timeout(LIMIT).unwrap()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
        wait_until(|| POOL.figures().idle == 3);
    }

    #[test]
    fn what_is_offered_to_a_thread_that_hangs_is_dropped() {
        static POOL: Pool = Pool::new("test-offer", Size { kept: 1, most: 1 });
        let (open, gate) = mpsc::channel::<()>();
        POOL.push(Box::new(move || {
            // Ends with the gate.
            let _closed = gate.recv();
        }));
        wait_until(|| POOL.figures().waiting == 0);
        let (done, wait) = mpsc::channel();
        for number in 0..5 {
            let done = done.clone();
            POOL.offer(Box::new(move || done.send(number).unwrap()), 2);
        }
        drop((open, done));
        assert_eq!(wait.iter().collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn a_panic_costs_its_job_and_no_thread() {
        static POOL: Pool = Pool::new("test-panic", Size { kept: 1, most: 1 });
        for _ in 0..3 {
            POOL.push(Box::new(|| panic!("on purpose")));
        }
        let (done, wait) = mpsc::channel();
        POOL.push(Box::new(move || done.send(()).unwrap()));
        wait.recv_timeout(LIMIT).unwrap();
        assert_eq!(POOL.figures().threads, 1);
    }
}
