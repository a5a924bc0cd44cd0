//! Work that may never come to an end: a filesystem whose server is gone or stopped (NFS, FUSE) lets whoever asks it wait.

use std::io;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const GLANCE: Duration = Duration::from_millis(5);

/// How long a process that is killed may take to end.
const KILLING: Duration = Duration::from_secs(1);

/// Does something on a thread of its own, and waits for it no longer than `limit`. `None`: it goes on, and what comes of it is dropped.
pub(crate) fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, is_done) = mpsc::channel();
    let work = Arc::new(Mutex::new(Some(work)));
    let take = |work: &Mutex<Option<_>>| work.lock().unwrap_or_else(PoisonError::into_inner).take();
    let shared = Arc::clone(&work);
    let on_thread = move || drop(take(&shared).map(|work| done.send(work())));
    match thread::Builder::new().name("waits".to_owned()).spawn(on_thread) {
        Ok(_) => is_done.recv_timeout(limit).ok(),
        // Without a thread it is done all the same: mostly nothing has to be waited for.
        Err(_) => take(&work).map(|work| work()),
    }
}

/// The same of what a filesystem is asked, which is an error where it does not answer.
pub(crate) fn answered<T: Send + 'static>(
    limit: Duration,
    ask: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    within(limit, ask).unwrap_or_else(|| {
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("its filesystem has not answered for {} s", limit.as_secs()),
        ))
    })
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
