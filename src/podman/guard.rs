//! Watches over a server, from a process of its own: when the server is gone, however it ended, its mounts are taken away, so that podman sees the
//! stubs below (stubs.rs) and not a mount that fails for whatever is asked of it.
//!
//! It has the store's lock as its standard output, and so do server and guard together: the next server starts when both have ended. Its
//! standard input says what to take away, and ends with the server.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use serde::{Deserialize, Serialize};

use super::lock::Lock;
use super::paths::Paths;
use super::{Error, share};
use crate::kernel::fusedev::{self, Detach};
use crate::kernel::mounts::{self, Device};
use crate::serve::signals;
use crate::{sys, threads};

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "store-guard";

/// What is mounted where.
#[derive(Serialize, Deserialize)]
struct Guarded {
    root: PathBuf,
    device: Device,
}

/// How long a guard that has died is not replaced, and at most after several have.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// A guard, for as long as this lives; it outlives this by the time that it needs. One that dies is replaced.
pub(super) struct Guard {
    input: Arc<Input>,
}

/// What tells a guard to do what it is for, by its end.
#[derive(Default)]
struct Input(Mutex<Told>);

#[derive(Default)]
enum Told {
    /// There is none just now.
    #[default]
    Nobody,
    Waiting {
        _input: File,
    },
    /// The server is gone.
    Over,
}

impl Input {
    /// `false`: there is to be no guard any more, and the one that was given this has heard of it.
    fn set(&self, told: Told) -> bool {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = matches!(*now, Told::Over);
        if !is_over {
            *now = told;
        }
        !is_over
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.input.set(Told::Over);
    }
}

impl Guard {
    pub(super) fn start(paths: &Paths, device: Device, lock: &Lock) -> io::Result<Self> {
        let line = serde_json::to_vec(&Guarded { root: paths.root.clone(), device })?;
        let start = Start { line, lock: lock.file()? };
        Self::watched(move |input| start.guard(input), |watch| threads::spawn("guard-watch", watch))
    }

    /// `make` starts a guard; `spawn` has it watched over by a thread.
    fn watched(
        make: impl Fn(&Input) -> io::Result<Child> + Send + Sync + 'static,
        spawn: impl FnOnce(Box<dyn FnOnce() + Send>) -> io::Result<()>,
    ) -> io::Result<Self> {
        let (input, make) = (Arc::<Input>::default(), Arc::new(make));
        // The thread comes first: a guard whose input is dropped, since there can be no thread, would take the server for gone.
        let (hand, handed) = mpsc::channel();
        let (kept, again) = (Arc::clone(&input), Arc::clone(&make));
        spawn(Box::new(move || {
            if let Ok(first) = handed.recv() {
                keep(&*again, &kept, first);
            }
        }))?;
        let first = make(&input)?;
        // It waits for nothing else.
        let _handed = hand.send(first);
        Ok(Self { input })
    }
}

/// What is needed to start a guard.
struct Start {
    line: Vec<u8>,
    lock: File,
}

impl Start {
    /// Starts one that waits for the end of its input.
    fn guard(&self, input: &Input) -> io::Result<Child> {
        sys::close_inherited_on_exec();
        let mut command = Command::new("/proc/self/exe");
        std::os::unix::process::CommandExt::arg0(&mut command, "crfs");
        let (theirs, ours) = holding(&self.line)?;
        command.arg(SUBCOMMAND).env_remove("NOTIFY_SOCKET").stdin(theirs).stdout(self.lock.try_clone()?);
        let child = command.stderr(Stdio::null()).spawn().map_err(threads::explained)?;
        // Where the server is gone by now, it hears of that.
        input.set(Told::Waiting { _input: ours });
        Ok(child)
    }
}

/// An input that holds a line from the start, and its other end: whenever the server is killed, its guard knows what to take away.
fn holding(line: &[u8]) -> io::Result<(OwnedFd, File)> {
    let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
    // What does not fit is an error, and not waited for.
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut ours = File::from(ours);
    ours.write_all(line)?;
    ours.write_all(b"\n")?;
    Ok((theirs, ours))
}

/// Waits for guards, so that nothing is left of those that die, and starts others. Comes back when there is to be none any more.
fn keep(make: impl Fn(&Input) -> io::Result<Child>, input: &Input, first: Child) {
    let (mut guard, mut pause) = (Some(first), FIRST_PAUSE);
    loop {
        let since = Instant::now();
        let ended = guard.take().map(|mut guard| guard.wait());
        if !input.set(Told::Nobody) {
            return;
        }
        if let Some(ended) = ended {
            let ended = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
            tracing::warn!(ended, "the guard of this server has died; another one is started");
        }
        if since.elapsed() > LAST_PAUSE {
            pause = FIRST_PAUSE;
        }
        thread::sleep(pause);
        pause = pause.saturating_mul(2).min(LAST_PAUSE);
        match make(input) {
            Ok(next) => guard = Some(next),
            Err(error) => tracing::warn!(%error, "nobody would clear up after this server; it is tried again"),
        }
    }
}

/// The hidden subcommand's side.
///
/// # Errors
/// Where it is told nothing, or a mount cannot be taken away.
pub fn guard() -> Result<(), Error> {
    // It ends with the server. A service manager that stops a service asks all of its processes to end at once.
    signals::block_requests_to_end();
    // What a terminal sends to the server and its children is not for the guard. Fails only for the leader of a process group.
    let _own_session = nix::unistd::setsid();
    let failed = |source| Error::Guard { source };
    let mut input = io::stdin().lock();
    let mut line = String::new();
    input.read_line(&mut line).map_err(failed)?;
    let guarded: Guarded = serde_json::from_str(&line).map_err(|error| failed(error.into()))?;
    // Its end is that of the server.
    input.read_to_end(&mut Vec::new()).map_err(failed)?;
    let paths = Paths::new(&guarded.root, None);
    share::take_clones_away(&paths, Detach::Lazily);
    // The kernel may have given the number to an image since that somebody has mounted there.
    let is_its = move |mount: &mounts::Mount| mount.is_stores() && mount.device == guarded.device;
    match mounts::at(&paths.mount()).map_err(failed)?.filter(is_its) {
        Some(mount) => Ok(fusedev::unmount(&mount.point, Detach::Lazily, is_its)?),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a guard: it ends with its input, or at once.
    fn process(input: &Input, command: &str) -> io::Result<Child> {
        let mut child = Command::new(command).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        input.set(Told::Waiting { _input: OwnedFd::from(child.stdin.take().unwrap()).into() });
        Ok(child)
    }

    #[test]
    fn without_a_thread_there_is_no_guard_that_could_take_the_server_for_gone() {
        let make = |_: &Input| -> io::Result<Child> { panic!("it would unmount what is served") };
        let refused = Guard::watched(make, |_watch| Err(io::ErrorKind::WouldBlock.into()));
        assert_eq!(refused.err().unwrap().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_guard_knows_what_to_take_away_though_the_server_is_killed_while_it_starts() {
        let (theirs, ours) = holding(b"line").unwrap();
        drop(ours);
        let mut told = String::new();
        File::from(theirs).read_to_string(&mut told).unwrap();
        assert_eq!(told, "line\n");
        assert_eq!(holding(&vec![b'x'; 10 << 20]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_guard_that_dies_is_waited_for_and_replaced_and_none_comes_after_the_end() {
        let (made, is_made) = mpsc::channel();
        let (end, is_over) = mpsc::channel();
        let number = std::sync::atomic::AtomicUsize::new(0);
        let make = move |input: &Input| {
            let child = match number.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
                0 => process(input, "true"),
                _ => process(input, "cat"),
            }?;
            made.send(child.id()).unwrap();
            Ok(child)
        };
        let guard = Guard::watched(make, |watch| {
            thread::spawn(move || {
                watch();
                end.send(()).unwrap();
            });
            Ok(())
        });
        let [first, second] = [(); 2].map(|()| is_made.recv().unwrap());
        assert!(first != second && !std::path::Path::new(&format!("/proc/{first}")).exists(), "nothing of it is left");
        drop(guard.unwrap());
        is_over.recv().unwrap();
        assert!(is_made.recv().is_err(), "there is no third");
    }
}
