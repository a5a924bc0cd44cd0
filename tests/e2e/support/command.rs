//! Running programs that must end: a hang is a failed test, not a stuck one.

use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::counts;

/// After this much time a thing is taken to hang. Far longer than anything takes on a busy machine.
pub(crate) const HANG: Duration = Duration::from_secs(120);

/// What a program left behind.
pub(crate) struct Finished {
    shown: String,
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    fn new(shown: String, output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { shown, status: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    pub(crate) fn good(&self) -> bool {
        self.status == Some(0)
    }

    /// Its output; the test fails where the program did.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert!(self.good(), "{self}");
        self.stdout
    }

    /// What it said on stderr; the test fails where the program did not, or with another status than 1.
    #[track_caller]
    pub(crate) fn refused(self) -> String {
        assert_eq!(self.status, Some(1), "{self}");
        self.stderr
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { shown, status, stdout, stderr } = self;
        write!(f, "{shown}\n  status {status:?} (none: killed)\n  stdout: {stdout}\n  stderr: {stderr}")
    }
}

/// Runs a program to its end, its output captured. One that still runs, or holds its output open, after [`HANG`] is killed, and fails the test.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Finished {
    counts::other(command, true);
    run_counted(command)
}

/// The same for one whose requests are in the metrics of a mount.
#[track_caller]
pub(crate) fn run_counted(command: &mut Command) -> Finished {
    let shown = format!("{command:?}");
    let child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let pid = child.id();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(HANG) {
        Ok(output) => Finished::new(shown, &output.unwrap()),
        Err(_) => {
            send(pid, Signal::SIGKILL);
            panic!("hangs (or something that it started holds its output open): {shown}");
        }
    }
}

/// Starts a program without input.
#[track_caller]
pub(crate) fn start(command: &mut Command) -> Child {
    counts::other(command, false);
    spawn(command)
}

#[track_caller]
fn spawn(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Sends a signal to a process that may be gone.
pub(crate) fn send(pid: u32, signal: Signal) {
    let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal);
}

/// Asks `condition` until it gives something. `what` is for the failure after [`HANG`].
#[track_caller]
pub(crate) fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < HANG, "never came: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for a child's end; one that does not end is killed, and fails the test.
#[track_caller]
pub(crate) fn ends(what: &str, child: &mut Child) -> std::process::ExitStatus {
    until(what, || child.try_wait().unwrap())
}
