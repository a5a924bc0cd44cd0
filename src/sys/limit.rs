//! Work that may never come to an end: a filesystem whose server is gone or stopped (NFS, FUSE) lets whoever asks it wait.

use std::io;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const GLANCE: Duration = Duration::from_millis(5);

/// How long a process that is killed may take to end.
const KILLING: Duration = Duration::from_secs(1);

/// Does something on a thread of its own, and waits for it no longer than `limit`. `None`: it goes on, and what comes of it is dropped. A panic goes on
/// where it is waited for.
pub(crate) fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, is_done) = mpsc::channel();
    let work = Arc::new(Mutex::new(Some(work)));
    let take = |work: &Mutex<Option<_>>| work.lock().unwrap_or_else(PoisonError::into_inner).take();
    let shared = Arc::clone(&work);
    let on_thread = move || drop(take(&shared).map(|work| done.send(work())));
    let Ok(thread) = thread::Builder::new().name("waits".to_owned()).spawn(on_thread) else {
        // Without a thread it is done all the same: mostly nothing has to be waited for.
        return take(&work).map(|work| work());
    };
    match is_done.recv_timeout(limit) {
        Ok(done) => Some(done),
        Err(mpsc::RecvTimeoutError::Timeout) => None,
        Err(mpsc::RecvTimeoutError::Disconnected) => panicked(thread),
    }
}

/// Goes on with the panic of a thread that has ended without what was wanted of it.
fn panicked<T>(thread: thread::JoinHandle<()>) -> Option<T> {
    match thread.join() {
        Err(panic) => std::panic::resume_unwind(panic),
        Ok(()) => None,
    }
}

/// The same of what a filesystem is asked, which is an error where it does not answer.
pub(crate) fn answered<T: Send + 'static>(
    limit: Duration,
    ask: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    within(limit, ask).unwrap_or_else(|| Err(silence(limit)))
}

/// How often a filesystem is asked that something works on.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// Does something on a thread of its own, however long that takes, as long as the filesystem answers that it works on: `ask` asks it, and comes back when
/// it has. `None`: it has not answered for `limit`; the work goes on, and what comes of it is dropped.
pub(crate) fn while_answered<T: Send + 'static>(
    limit: Duration,
    ask: impl Fn() + Send + Sync + 'static,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    while_answered_every(SIGN_OF_LIFE, limit, ask, work)
}

fn while_answered_every<T: Send + 'static>(
    pause: Duration,
    limit: Duration,
    ask: impl Fn() + Send + Sync + 'static,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, is_done) = mpsc::channel();
    let work = Arc::new(Mutex::new(Some(work)));
    let take = |work: &Mutex<Option<_>>| work.lock().unwrap_or_else(PoisonError::into_inner).take();
    let shared = Arc::clone(&work);
    let on_thread = move || drop(take(&shared).map(|work| done.send(work())));
    let Ok(thread) = thread::Builder::new().name("works".to_owned()).spawn(on_thread) else {
        // Without a thread it is done all the same: mostly nothing has to be waited for.
        return take(&work).map(|work| work());
    };
    let ask = Arc::new(ask);
    loop {
        match is_done.recv_timeout(pause) {
            Ok(done) => return Some(done),
            Err(mpsc::RecvTimeoutError::Disconnected) => return panicked(thread),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        let asked = Arc::clone(&ask);
        if within(limit, move || asked()).is_none() {
            return is_done.try_recv().ok();
        }
    }
}

/// The error of a filesystem that has not answered for so long.
pub(crate) fn silence(limit: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("its filesystem has not answered for {} s", limit.as_secs()))
}

/// Waits for a process no longer than `limit`; one that has not ended then is killed. `None`: it had to be.
pub(crate) fn wait_for(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    if let Some(status) = ended(child, limit)? {
        return Ok(Some(status));
    }
    // An error says that it has just ended.
    let _ended = child.kill();
    // So that nothing is left of it; one that waits for a disk may stay.
    let _status = ended(child, KILLING)?;
    Ok(None)
}

fn ended(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        let status = child.try_wait()?;
        if status.is_some() || start.elapsed() >= limit {
            return Ok(status);
        }
        thread::sleep(GLANCE);
    }
}

/// Whether `done` came true before `limit` had passed.
pub(crate) fn comes_true(limit: Duration, done: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if done() {
            return true;
        }
        if start.elapsed() >= limit {
            return false;
        }
        thread::sleep(GLANCE);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_does_not_end_is_not_waited_for() {
        assert_eq!(within(Duration::from_secs(60), || 7), Some(7));
        let (_never, is_told) = mpsc::channel::<()>();
        assert_eq!(within(Duration::from_millis(1), move || is_told.recv().is_ok()), None);
    }

    #[test]
    fn a_panic_is_no_silence() {
        let panics = || -> io::Result<()> { panic!("of the work") };
        for panicked in [
            std::panic::catch_unwind(|| answered(Duration::from_secs(60), panics).map(Some)),
            std::panic::catch_unwind(|| while_answered(Duration::from_secs(60), || (), panics).transpose()),
            std::panic::catch_unwind(|| {
                while_answered_every(Duration::ZERO, Duration::MAX, panic_when_asked, endless).transpose()
            }),
        ] {
            let panic = panicked.unwrap_err();
            assert!(panic.downcast_ref::<&str>().is_some_and(|said| said.starts_with("of the ")));
        }
    }

    fn panic_when_asked() {
        panic!("of the sign of life");
    }

    fn endless() -> io::Result<()> {
        loop {
            thread::park();
        }
    }

    #[test]
    fn what_takes_long_is_waited_for_while_its_filesystem_answers() {
        let (answer, is_answered) = mpsc::channel::<()>();
        let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let answer = Mutex::new(Some(answer));
        // It is done when it was asked for the third time.
        let ask = move || {
            if counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 2 {
                answer.lock().unwrap().take();
            }
        };
        let work = move || is_answered.recv().is_err();
        let moment = Duration::from_millis(1);
        assert_eq!(while_answered_every(moment, Duration::from_secs(60), ask, work), Some(true));
        assert!(asked.load(std::sync::atomic::Ordering::SeqCst) >= 3);
        let (_never, is_told) = mpsc::channel::<()>();
        let (_silent, is_asked) = mpsc::channel::<()>();
        let is_asked = Mutex::new(is_asked);
        let ask = move || {
            let _asked = is_asked.lock().unwrap().recv();
        };
        assert_eq!(while_answered_every(moment, moment, ask, move || is_told.recv().is_ok()), None);
    }

    #[test]
    fn a_process_that_does_not_end_is_killed() {
        let mut quick = Command::new("true").spawn().unwrap();
        assert!(wait_for(&mut quick, Duration::from_secs(60)).unwrap().unwrap().success());
        let mut slow = Command::new("sleep").arg("600").spawn().unwrap();
        assert!(wait_for(&mut slow, Duration::ZERO).unwrap().is_none());
        let state = std::fs::read_to_string(format!("/proc/{}/stat", slow.id()));
        assert!(!state.is_ok_and(|state| state.contains(") Z ")), "nothing is left of it");
        assert!(!slow.wait().unwrap().success());
    }
}
