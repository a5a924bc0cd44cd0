//! Lines of a log on their way to where nobody may take them: a pipe that is not read, a disk that has stopped. Who logs never waits; a thread for each
//! output does.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::threads;

/// Lines that wait at most. What comes then is dropped.
const MOST: usize = 1024;

const GLANCE: Duration = Duration::from_millis(5);

enum Item {
    Line(Vec<u8>),
    /// To be told of when it is reached: all before it is written.
    Mark(SyncSender<()>),
}

/// Where lines are handed in. Clones are the same.
#[derive(Clone)]
pub(super) struct Queue {
    items: SyncSender<Item>,
    dropped: Arc<AtomicU64>,
}

impl Queue {
    /// Starts the thread that writes to `output`. It calls `lost` with the number of lines that were dropped, once all others are written.
    ///
    /// # Errors
    /// Where the thread cannot be made.
    pub(super) fn start(output: impl Write + Send + 'static, lost: impl Fn(u64) + Send + 'static) -> io::Result<Self> {
        let (items, waiting) = sync_channel(MOST);
        let dropped = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&dropped);
        let tell = move || match counted.swap(0, Ordering::Relaxed) {
            0 => {}
            lines => lost(lines),
        };
        threads::spawn("log", move || write(&waiting, output, tell))?;
        Ok(Self { items, dropped })
    }

    /// Waits until all is written that was handed in before, but no longer than `limit`. Says whether it is.
    pub(super) fn settle(&self, limit: Duration) -> bool {
        let start = Instant::now();
        let (tell, told) = sync_channel(1);
        while let Err(TrySendError::Full(_)) = self.items.try_send(Item::Mark(tell.clone())) {
            if start.elapsed() >= limit {
                return false;
            }
            thread::sleep(GLANCE);
        }
        told.recv_timeout(limit.saturating_sub(start.elapsed())).is_ok()
    }
}

/// The subscriber writes a line at a time.
impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.items.try_send(Item::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Until nobody can hand in anything any more.
fn write(waiting: &Receiver<Item>, mut output: impl Write, tell_of_lost: impl Fn()) {
    loop {
        let item = match waiting.try_recv() {
            Err(TryRecvError::Empty) => {
                tell_of_lost();
                waiting.recv().ok()
            }
            item => item.ok(),
        };
        match item {
            // Where it cannot be written there is nobody to tell.
            Some(Item::Line(line)) => drop(output.write_all(&line)),
            Some(Item::Mark(reached)) => drop(reached.try_send(())),
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    /// Longer than anything here takes.
    const LIMIT: Duration = Duration::from_secs(60);

    /// Takes nothing while somebody has its gate.
    struct Stuck {
        gate: Arc<Mutex<()>>,
        begun: Sender<()>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Stuck {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.begun.send(()).unwrap();
            let _open = self.gate.lock().unwrap();
            self.taken.lock().unwrap().extend_from_slice(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_logs_does_not_wait_for_who_reads() {
        let (gate, taken) = (Arc::default(), Arc::default());
        let (begun, has_begun) = channel();
        let (lost, is_lost) = channel();
        let output = Stuck { gate: Arc::clone(&gate), begun, taken: Arc::clone(&taken) };
        let mut queue = Queue::start(output, move |lines| lost.send(lines).unwrap()).unwrap();
        let closed = gate.lock().unwrap();
        queue.write_all(b"0\n").unwrap();
        has_begun.recv_timeout(LIMIT).unwrap();
        for number in 1..=MOST + 7 {
            queue.write_all(format!("{number}\n").as_bytes()).unwrap();
        }
        assert!(!queue.settle(Duration::from_millis(1)), "nothing is read");
        drop(closed);
        assert!(queue.settle(LIMIT));
        let all: String = (0..=MOST).map(|number| format!("{number}\n")).collect();
        assert_eq!(String::from_utf8(taken.lock().unwrap().clone()).unwrap(), all);
        assert_eq!(is_lost.recv_timeout(LIMIT), Ok(7));
    }
}
