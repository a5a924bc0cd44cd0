//! What is being waited for just now, so that whoever gives up can say what it was.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::time::Instant;

/// One thing that is waited for: a registry's answer, or a program's.
#[derive(Debug, Clone)]
pub struct Waiting {
    what: String,
    /// A program that may ask its user something: the time that it takes is not the network's.
    is_program: bool,
    /// When something last moved.
    since: Instant,
    tries: u32,
    /// What the last try ended with.
    last: Option<String>,
}

impl Waiting {
    pub(super) fn for_registry(what: String) -> Self {
        Self { what, is_program: false, since: Instant::now(), tries: 0, last: None }
    }

    pub(super) fn for_program(what: String) -> Self {
        Self { is_program: true, ..Self::for_registry(what) }
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, tries, .. } = self;
        let waited = self.since.elapsed().as_secs_f64();
        match &self.last {
            Some(last) => write!(f, "{what}: nothing moved for {waited:.1} s and {tries} tries, the last: {last}"),
            None => write!(f, "{what}: no answer for {waited:.1} s"),
        }
    }
}

/// All that is waited for.
#[derive(Debug, Default)]
pub(super) struct Waits(Mutex<Vec<Weak<Mutex<Waiting>>>>);

/// Something that is waited for until this is dropped.
#[derive(Debug)]
pub(super) struct Wait {
    waits: Arc<Waits>,
    waiting: Arc<Mutex<Waiting>>,
}

impl Waits {
    pub(super) fn begin(self: &Arc<Self>, waiting: Waiting) -> Wait {
        let waiting = Arc::new(Mutex::new(waiting));
        lock(&self.0).push(Arc::downgrade(&waiting));
        Wait { waits: Arc::clone(self), waiting }
    }

    fn current(&self) -> Vec<Waiting> {
        lock(&self.0).iter().filter_map(Weak::upgrade).map(|waiting| lock(&waiting).clone()).collect()
    }

    /// What has been waited for in vain: a program first, since requests wait for it; then what failed the longest.
    pub(super) fn longest(&self) -> Option<Waiting> {
        let current = self.current().into_iter();
        current.max_by_key(|waiting| (waiting.is_program, waiting.last.is_some(), waiting.since.elapsed()))
    }

    fn has_program(&self) -> bool {
        lock(&self.0).iter().filter_map(Weak::upgrade).any(|waiting| lock(&waiting).is_program)
    }
}

impl Wait {
    /// Whether a program is asked meanwhile, which has a time limit of its own.
    pub(super) fn is_for_program(&self) -> bool {
        self.waits.has_program()
    }

    pub(super) fn moved(&self) {
        let mut waiting = lock(&self.waiting);
        (waiting.since, waiting.tries, waiting.last) = (Instant::now(), 0, None);
    }

    pub(super) fn failed(&self, tries: u32, error: &dyn fmt::Display) {
        let mut waiting = lock(&self.waiting);
        (waiting.tries, waiting.last) = (tries, Some(error.to_string()));
    }

    pub(super) fn what(&self) -> String {
        lock(&self.waiting).what.clone()
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        lock(&self.waits.0).retain(|waiting| !std::ptr::eq(waiting.as_ptr(), Arc::as_ptr(&self.waiting)));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_failed_the_longest_is_said_and_a_program_before_it() {
        let waits = Arc::new(Waits::default());
        let silent = waits.begin(Waiting::for_registry("layer 1".into()));
        tokio::time::advance(Duration::from_secs(2)).await;
        let failing = waits.begin(Waiting::for_registry("layer 2".into()));
        let said = || waits.longest().map(|waiting| waiting.to_string()).unwrap_or_default();
        assert_eq!(said(), "layer 1: no answer for 2.0 s");
        failing.failed(3, &"no route");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(said(), "layer 2: nothing moved for 1.0 s and 3 tries, the last: no route");
        let program = waits.begin(Waiting::for_program("docker-credential-x".into()));
        assert!(silent.is_for_program());
        assert_eq!(said(), "docker-credential-x: no answer for 0.0 s");
        drop(program);
        failing.moved();
        assert_eq!(said(), "layer 1: no answer for 3.0 s");
        drop((silent, failing));
        assert!(waits.longest().is_none());
    }
}
