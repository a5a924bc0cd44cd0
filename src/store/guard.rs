//! Watches over a server, from a process of its own: when the server is gone, however it ended, its mounts are taken away, so that podman sees the
//! stubs below (stubs.rs) and not a mount that fails for whatever is asked of it.
//!
//! It has the store's lock as its standard output, and so do server and guard together: the next server starts when both have ended. Its
//! standard input says what to take away, and ends with the server.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::open::Lock;
use super::paths::Paths;
use super::{Error, share};
use crate::mount::fusedev::{self, Detach};
use crate::mount::mounts::{self, Device};
use crate::mount::signals;
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
        _input: ChildStdin,
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
        let start = Arc::new(Start { line, lock: lock.file()? });
        let input = Arc::<Input>::default();
        // The thread comes first: a guard whose input is dropped, since there can be no thread, would take the server for gone.
        let (hand, handed) = mpsc::channel();
        let (watching, kept) = (Arc::clone(&start), Arc::clone(&input));
        threads::spawn("guard-watch", move || {
            if let Ok(first) = handed.recv() {
                watching.keep(&kept, first);
            }
        })?;
        let first = start.guard(&input)?;
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
        command.arg(SUBCOMMAND).env_remove("NOTIFY_SOCKET").stdin(Stdio::piped()).stdout(self.lock.try_clone()?);
        let mut child = command.stderr(Stdio::null()).spawn().map_err(threads::explained)?;
        // Where waiting for it would close it.
        let mut told = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        // One that has died already is waited for all the same.
        let _heard = told.write_all(&self.line).and_then(|()| told.write_all(b"\n"));
        // Where the server is gone by now, it hears of that.
        input.set(Told::Waiting { _input: told });
        Ok(child)
    }

    /// Waits for guards, so that nothing is left of those that die, and starts others. Comes back when there is to be none any more.
    fn keep(&self, input: &Input, first: Child) {
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
            match self.guard(input) {
                Ok(next) => guard = Some(next),
                Err(error) => tracing::warn!(%error, "nobody would clear up after this server; it is tried again"),
            }
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
