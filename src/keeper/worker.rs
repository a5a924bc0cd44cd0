//! A worker, as its keeper has it: a child process, and the channel to it.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::deaths::{Death, How};
use super::renewal::{self, FORM};
use super::shelf;
use super::wire::{Channel, Go, Held, Kept, Packet};
use crate::sys;

/// The option that tells a worker the number of its descriptor.
pub const KEEPER: &str = "--keeper";

/// The option of all workers but the first.
pub(super) const RESUME: &str = "--resume";

/// What an executable that was replaced has behind its path (proc(5)).
const REPLACED: &[u8] = b" (deleted)";

/// How workers are started.
#[derive(Debug)]
pub(super) struct Program {
    /// Where the executable was found that this keeper runs: an upgrade puts another one there.
    path: Option<PathBuf>,
    arguments: Vec<OsString>,
}

/// Which executable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// The one that this keeper runs, whatever became of its file.
    Own,
    /// The one that is at its path now.
    Installed,
}

/// What it has for standard input, output and error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standard {
    Inherited,
    /// Nothing but standard error, where the keeper has one.
    Error,
}

impl Program {
    pub(super) fn new(arguments: Vec<OsString>) -> Self {
        Self { path: std::fs::read_link("/proc/self/exe").ok().map(|path| without_mark(&path)), arguments }
    }

    pub(super) fn start(&self, which: Which, standard: Standard) -> io::Result<Worker> {
        let (ours, theirs) = Channel::pair()?;
        let installed = self.path.as_deref().filter(|_| which == Which::Installed);
        let mut command = Command::new(installed.unwrap_or(Path::new("/proc/self/exe")));
        std::os::unix::process::CommandExt::arg0(&mut command, "crfs");
        // The keeper tells the service manager itself.
        command.args(&self.arguments).arg(KEEPER).arg(theirs.as_fd().as_raw_fd().to_string());
        for name in shelf::VARIABLES {
            command.env_remove(name);
        }
        if standard == Standard::Error {
            command.arg(RESUME).stdin(Stdio::null()).stdout(Stdio::null());
        }
        // Nobody else starts a process meanwhile: a keeper has but one thread.
        fcntl(theirs.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
        let child = command.spawn()?;
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        Ok(Worker {
            pid,
            channel: ours,
            started: Instant::now(),
            is_ready: false,
            form: 0,
            went: None,
            killed_for_memory: killed_for_memory(),
            said: None,
            is_cut: false,
            end: None,
        })
    }
}

impl Program {
    /// Runs a worker's program in the place of this one, which goes on where that cannot be.
    pub(super) fn renew(
        &self,
        worker: &Worker,
        held: &Held,
        (before, upgrades): (u32, u32),
        ground: &str,
    ) -> io::Result<()> {
        let channel = worker.channel.try_clone()?;
        let kept = Kept { worker: worker.pid.as_raw(), channel, before, upgrades };
        renewal::renew(held, kept, ground, &self.arguments)
    }
}

fn without_mark(path: &Path) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_os_str().as_bytes();
    OsStr::from_bytes(bytes.strip_suffix(REPLACED).unwrap_or(bytes)).into()
}

/// The keeper's standard input and output are its first worker's: whoever is at their other ends is to see them end with that one. What the keeper
/// itself says there (telling.rs), it says by another descriptor.
pub(super) fn let_go_of_standard(error_too: bool) -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    if error_too {
        nix::unistd::dup2_stderr(&null)?;
    }
    Ok(())
}

#[derive(Debug)]
pub(super) struct Worker {
    pid: Pid,
    pub(super) channel: Channel,
    pub(super) started: Instant,
    /// Whether it could take over.
    pub(super) is_ready: bool,
    /// The form in which its program takes over from a keeper.
    pub(super) form: u8,
    /// Since when it serves.
    pub(super) went: Option<Instant>,
    /// How many processes had been killed for want of memory by then.
    killed_for_memory: u64,
    /// Why it ends, as it has said.
    pub(super) said: Option<String>,
    /// Whether its end of the channel is closed.
    pub(super) is_cut: bool,
    /// How it has ended, once it was waited for.
    end: Option<How>,
}

/// How many processes of this machine were killed for want of memory, of itself or of a cgroup.
fn killed_for_memory() -> u64 {
    let counts = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = counts.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.parse().ok()).unwrap_or_default()
}

impl Worker {
    /// One that another program has started, and that this process waits for.
    pub(super) fn passed_on(pid: i32, channel: Channel) -> Self {
        let now = Instant::now();
        Self {
            pid: Pid::from_raw(pid),
            channel,
            started: now,
            is_ready: true,
            form: FORM,
            went: Some(now),
            killed_for_memory: killed_for_memory(),
            said: None,
            is_cut: false,
            end: None,
        }
    }

    /// With what it is to go on with. One that cannot have it ends: its end says why, where it has one already.
    /// `beside`: another serves it until this one is ready.
    pub(super) fn handed(self, held: &Held, beside: bool) -> Self {
        match self.channel.hand_over(held, beside) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => self.signal(Signal::SIGKILL),
            _ => {}
        }
        self
    }

    /// A descriptor for it, by which somebody else can end it.
    pub(super) fn process(&self) -> io::Result<OwnedFd> {
        sys::open_process(u32::try_from(self.pid.as_raw()).map_err(io::Error::other)?)
    }

    /// Lets it take over.
    pub(super) fn go(&mut self, go: Go) {
        self.went = Some(Instant::now());
        self.killed_for_memory = killed_for_memory();
        // One that is gone is heard of otherwise.
        let _heard = self.channel.send(&Packet::Go(go));
    }

    pub(super) fn signal(&self, signal: Signal) {
        // As long as it has not been waited for, the number is its own.
        if self.end.is_none() {
            let _gone = kill(self.pid, signal);
        }
    }

    /// Its end, if it has come.
    pub(super) fn ended(&mut self) -> Option<How> {
        if self.end.is_none() {
            self.end = match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, status)) => Some(How::Exited(status)),
                Ok(WaitStatus::Signaled(_, signal, _)) => Some(How::Killed(signal)),
                // It is nobody's child any more.
                Err(Errno::ECHILD) => Some(How::Exited(-1)),
                _ => None,
            };
        }
        self.end
    }

    /// It says nothing any more, and so nobody can tell it anything.
    pub(super) fn cut(&mut self) {
        self.is_cut = true;
        self.signal(Signal::SIGKILL);
    }

    pub(super) fn death(self, how: How) -> Death {
        let for_memory = how == How::Killed(Signal::SIGKILL) && killed_for_memory() > self.killed_for_memory;
        Death { how, for_memory, served: self.went.map(|went| went.elapsed()), said: self.said }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_executable_is_looked_for_where_it_was() {
        assert_eq!(without_mark(Path::new("/usr/bin/crfs (deleted)")), Path::new("/usr/bin/crfs"));
        assert_eq!(without_mark(Path::new("/usr/bin/crfs")), Path::new("/usr/bin/crfs"));
    }

    #[test]
    fn a_worker_has_the_channel_and_its_end_is_known() {
        let program = Program { path: Some("/bin/sh".into()), arguments: vec!["-c".into(), "exit 7".into()] };
        let mut worker = program.start(Which::Installed, Standard::Inherited).unwrap();
        assert!(worker.channel.receive().unwrap().is_none(), "it is gone");
        let how = std::iter::repeat_with(|| worker.ended()).flatten().next();
        assert_eq!(how, Some(How::Exited(7)));
        assert_eq!(worker.death(How::Exited(7)).cause(), "it ended with status 7");
    }
}
