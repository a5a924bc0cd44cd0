//! `crfs mount` and the server that it leaves behind.
//!
//! ```text
//! parent                                        child: a keeper (src/keeper) with its worker, `serve`, in sessions of their own
//!   options, one line of JSON  ──> stdin ──>
//!   (kept open: its end means               <── stdout <── events, a JSON line each; the last is "ready" or "failed"
//!    that nobody waits any more)
//! ```
//!
//! Until it is ready, the child has the parent's standard error and ends as soon as its standard input does. It is the keeper that says "ready": from
//! the moment on at which it knows of that, the mount is there, whatever becomes of the worker. Then both let go of all three, so that nobody who waits
//! for the end of the parent's output waits for the server.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::{self, BufRead, Read, Seek, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, Command};
use tokio::sync::oneshot;

use super::event::{Deadline, Event, Ready, Report};
use super::kept::Keeper;
use super::options::MountOptions;
use super::signals::{self, EndSignals};
use super::{Error, log, mount, state};
use crate::errors::chain;
use crate::keeper::{self, Words};
use crate::kernel::fusedev::{self, Detach};
use crate::kernel::mounts::{self, Identity, Mount};
use crate::sys::limit::comes_true;
use crate::threads;

/// The hidden subcommand that becomes the server.
pub const SUBCOMMAND: &str = "serve";

/// What a keeper in the background starts its workers with.
pub const WORKER: &[&str] = &[SUBCOMMAND];

/// Its option where whoever started it stays with it.
pub const IN_FOREGROUND: &str = "--foreground";

/// Its option where it mounts over an autofs ([`keeper::AUTOMOUNT`]).
pub const OVER_AUTOFS: &str = "--over-autofs";

/// How much longer than the mount deadline a child may take to say that it has passed, and to end when it is told to.
const GRACE: Duration = Duration::from_secs(5);

/// How long a server may take to let go of standard error once it is ready.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What becomes of what a server says on standard error before it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// It writes there itself.
    AsItIs,
    /// The waiting process writes it, in between what it draws there.
    Apart,
}

/// Starts a server, and comes back when its mount can be used. `on_event` hears of all that happens before.
///
/// # Errors
/// Where it does not come to that; nothing is mounted, then.
pub fn mount(options: &MountOptions, said: Said, on_event: &mut dyn FnMut(&Event)) -> Result<Ready, Error> {
    let dir = mounts::usable_point(&options.dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| Error::Runtime { source })?;
    let mut made = None;
    let mut heard = |event: &Event| {
        match event {
            Event::Mounting { source } => made = Some(Made::Perhaps { source: source.clone() }),
            Event::Mounted { mount } => made = Some(Made::Surely(mount.clone())),
            _ => {}
        }
        on_event(event);
    };
    match runtime.block_on(launch(options, &dir, said, &mut heard)) {
        Ok(ready) => Ok(ready),
        Err((error, end)) => {
            if let (ChildEnd::Killed, Some(made)) = (end, made) {
                clear_away(&dir, &made, &options.state_dirs);
            }
            Err(error)
        }
    }
}

/// What a child has said of its mount.
enum Made {
    /// It was about to make it. There was none of crfs before, or the child would have said so and ended.
    Perhaps {
        source: String,
    },
    Surely(Identity),
}

impl Made {
    fn is(&self, mount: &Mount) -> bool {
        match self {
            Self::Perhaps { source } => {
                mount.is_ours() && mount.source == **source && mount.user() == Some(nix::unistd::getuid().as_raw())
            }
            Self::Surely(identity) => identity.is(mount),
        }
    }
}

/// Unmounts what a child has left that was killed. One that ends by itself unmounts by itself, and what is at the directory then is somebody else's.
fn clear_away(dir: &Path, made: &Made, state_dirs: &[PathBuf]) {
    let Ok(Some(mount)) = mounts::at(dir) else { return };
    // Its numbers may have been given to a mount that somebody has made since.
    let served = |state: &state::FoundState| state.record.describes(&mount) && state.may_be_served();
    let Ok(known) = state::found_in(state_dirs) else { return };
    // What its child has started ends with it, but not in the same moment.
    let is_served = || known.iter().any(served);
    if !made.is(&mount) || !comes_true(GRACE, || !is_served()) {
        return;
    }
    match fusedev::unmount(dir, Detach::Lazily, move |now| *now == mount) {
        // Its state goes with it.
        Ok(()) => drop(state::found_in(state_dirs)),
        Err(error) => tracing::error!(error = chain(&error), "a mount stays behind"),
    }
}

/// How a child came to its end that did not become a server.
enum ChildEnd {
    NeverStarted,
    ByItself,
    Killed,
}

async fn launch(
    options: &MountOptions,
    dir: &Path,
    said: Said,
    on_event: &mut dyn FnMut(&Event),
) -> Result<Ready, (Error, ChildEnd)> {
    let failed = |source| (Error::Spawn { source }, ChildEnd::NeverStarted);
    let mut signals = EndSignals::listen().map_err(failed)?;
    let mut child = spawn(said, mounts::is_autofs(dir)).map_err(failed)?;
    let words = child.stderr.take().map(|words| tokio::spawn(hand_on(words)));
    let mut input = child.stdin.take().ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
    let limit = options.mount_deadline;
    let deadline = Deadline::new(limit);
    let mut heard = |event: &Event| {
        deadline.heard(event);
        on_event(event);
    };
    let outcome = tokio::select! {
        outcome = converse(&mut child, &mut input, options, &mut heard) => outcome,
        () = signals.next() => Err(Error::Interrupted),
        () = deadline.passed(GRACE) => Err(Error::Deadline { limit, waiting: None }),
    };
    let outcome = match outcome {
        Ok(ready) => Ok(ready),
        Err(error) => Err((error, end(child, input).await)),
    };
    if let Some(words) = words {
        // It has let go of it, or ended.
        let _last = tokio::time::timeout(LAST_WORDS, words).await;
    }
    outcome
}

/// Writes what comes to standard error, line by line.
async fn hand_on(words: ChildStderr) {
    let mut words = BufReader::new(words).split(b'\n');
    while let Ok(Some(mut line)) = words.next_segment().await {
        line.push(b'\n');
        // Where it is closed, nobody listens.
        let _heard = log::StandardError.write_all(&line);
    }
}

fn spawn(said: Said, over_autofs: bool) -> io::Result<Child> {
    crate::sys::close_inherited_on_exec();
    let mut command = Command::new("/proc/self/exe");
    // The parent tells the service manager, whose main process it is.
    let (ground, more) = if over_autofs { (keeper::AUTOMOUNT, Some(OVER_AUTOFS)) } else { (keeper::BACKGROUND, None) };
    command.arg0("crfs").args([keeper::SUBCOMMAND, ground]).args(WORKER).args(more).env_remove("NOTIFY_SOCKET");
    if said == Said::Apart {
        command.stderr(Stdio::piped());
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(threads::explained)
}

/// Hands the options over and listens until the child is ready or failed.
async fn converse(
    child: &mut Child,
    input: &mut ChildStdin,
    options: &MountOptions,
    on_event: &mut dyn FnMut(&Event),
) -> Result<Ready, Error> {
    let failed = |source| Error::Spawn { source };
    let mut line = serde_json::to_vec(options).map_err(|source| Error::Handover { source })?;
    line.push(b'\n');
    // A child that ended already says why below.
    let _unread = input.write_all(&line).await;
    let output = child.stdout.take().ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
    let mut lines = BufReader::new(output).lines();
    while let Some(line) = lines.next_line().await.map_err(failed)? {
        match serde_json::from_str(&line) {
            Ok(Event::Ready(ready)) => return Ok(ready),
            Ok(Event::Failed { message }) => return Err(Error::Reported { message }),
            Ok(event) => on_event(&event),
            Err(error) => tracing::warn!(%error, "the server said something unknown"),
        }
    }
    let status = child.wait().await.map_err(failed)?.to_string();
    Err(Error::Silent { status })
}

/// Lets a child end by itself, which it does when its input ends, and kills it where it does not.
async fn end(mut child: Child, input: ChildStdin) -> ChildEnd {
    drop(input);
    if let Ok(Ok(status)) = tokio::time::timeout(GRACE, child.wait()).await {
        return if status.signal().is_some() { ChildEnd::Killed } else { ChildEnd::ByItself };
    }
    // One that serves already unmounts.
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
    }
    if let Ok(Ok(status)) = tokio::time::timeout(GRACE, child.wait()).await {
        return if status.signal().is_some() { ChildEnd::Killed } else { ChildEnd::ByItself };
    }
    // An error says that it has just ended.
    let _ended = child.start_kill();
    if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
        tracing::error!(
            pid = child.id(),
            "the background server was killed, and does not end: it waits for a filesystem"
        );
    }
    ChildEnd::Killed
}

/// The child's side: serves what it is told on standard input.
///
/// # Errors
/// Where it cannot be mounted (the parent has been told, then), or serving fails later.
pub fn serve(keeper: &Keeper, over_autofs: bool) -> Result<(), Error> {
    let begun = if over_autofs { told() } else { begin() };
    let outcome = begun.and_then(|options| {
        let ready = Arc::new(AtomicBool::new(false));
        let gone = parent_gone(ready.clone()).map_err(|source| Error::Runtime { source })?;
        let words = |ready: &Ready| Words { output: line(&Event::Ready(ready.clone())), error: String::new() };
        let waiting = mount::Waiting { keeper, words: &words, then: let_go };
        mount::run(&options, &reporter(ready), gone, &waiting)
    });
    if let Err(error) = &outcome {
        // After it was ready there is nobody to hear it: standard output is /dev/null.
        let _heard = tell(&Event::Failed { message: error.chain() });
    }
    outcome
}

/// Makes a server of this process, as far as it is not one by itself, and reads what it is to be.
///
/// # Errors
/// Where it is told nothing.
pub fn begin<O: DeserializeOwned>() -> Result<O, Error> {
    leave_terminal();
    told()
}

fn told<O: DeserializeOwned>() -> Result<O, Error> {
    be_worker();
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line).map_err(|source| Error::Runtime { source })?;
    serde_json::from_str(line.get(..read).unwrap_or_default()).map_err(|source| Error::Handover { source })
}

/// The child's side of a keeper whose worker has gone: goes on with its mount.
///
/// # Errors
/// Where it cannot, or serving fails later.
pub fn resume(keeper: &Keeper) -> Result<(), Error> {
    leave_terminal();
    mount::resume(keeper)
}

/// What a terminal sends to all of a command's processes is for the keeper alone. What is wrong with this process costs nobody else.
pub(crate) fn leave_terminal() {
    be_worker();
    keeper::own_session();
}

fn be_worker() {
    signals::block_meaningless();
    let _only_for_ps = nix::sys::prctl::set_name(c"crfs");
    keeper::go_early();
}

/// Becomes the keeper of a mount in the foreground, whose worker reads these options. Comes back only where that fails. `passed_on`: how many descriptors
/// a service manager has passed on.
///
/// # Errors
/// Why it has failed.
pub fn become_keeper(options: &MountOptions, passed_on: usize) -> Result<Infallible, Error> {
    become_keeper_of(options, &[SUBCOMMAND.as_ref(), IN_FOREGROUND.as_ref()], passed_on)
}

/// The same of another kind of server. `worker`: what its workers are started with.
pub(crate) fn become_keeper_of(
    options: &impl Serialize,
    worker: &[&OsStr],
    passed_on: usize,
) -> Result<Infallible, Error> {
    Err(Error::Spawn { source: keeper_of(options, worker, passed_on)?.exec() })
}

/// Starts such a keeper beside this process. It says nothing, and no terminal's signal ends it.
pub(crate) fn start_keeper_of(options: &impl Serialize, worker: &[&OsStr]) -> Result<std::process::Child, Error> {
    let mut command = keeper_of(options, worker, 0)?;
    command.stdout(Stdio::null()).stderr(Stdio::null()).env_remove("NOTIFY_SOCKET").process_group(0);
    command.spawn().map_err(|source| Error::Spawn { source: threads::explained(source) })
}

fn keeper_of(options: &impl Serialize, worker: &[&OsStr], passed_on: usize) -> Result<std::process::Command, Error> {
    let failed = |source| Error::Spawn { source };
    let line = serde_json::to_vec(options).map_err(|source| Error::Handover { source })?;
    let input = memfd_create(c"crfs-options", MemfdFlags::CLOEXEC);
    let mut input = File::from(input.map_err(|errno| failed(errno.into()))?);
    input.write_all(&line).and_then(|()| input.rewind()).map_err(failed)?;
    let others = keeper::FIRST_PASSED_ON.unsigned_abs().saturating_add(u32::try_from(passed_on).unwrap_or(u32::MAX));
    crate::sys::close_on_exec_from(others);
    let mut command = std::process::Command::new("/proc/self/exe");
    command.arg0("crfs").args([keeper::SUBCOMMAND, keeper::FOREGROUND]).args(worker).stdin(input);
    Ok(command)
}

/// Writes events to standard output, but for the last one, which the keeper says.
fn reporter(ready: Arc<AtomicBool>) -> Report {
    Arc::new(move |event| {
        if !matches!(event, Event::Ready(_)) {
            return tell(event);
        }
        ready.store(true, Ordering::SeqCst);
        // What was said before is for whoever waits.
        log::settle();
        Ok(())
    })
}

fn tell(event: &Event) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(line(event).as_bytes())?;
    output.flush()
}

fn line(event: &Event) -> String {
    // It has nothing that cannot be written like this.
    serde_json::to_string(event).unwrap_or_default() + "\n"
}

/// Lets go of the standard descriptors.
fn let_go() {
    // Where it has not done so yet.
    keeper::own_session();
    let let_go = || -> io::Result<()> {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        nix::unistd::dup2_stdin(&null)?;
        nix::unistd::dup2_stdout(&null)?;
        Ok(nix::unistd::dup2_stderr(&null)?)
    };
    let_go().unwrap_or_else(|error| tracing::warn!(%error, "the server still has what it was started with"));
}

/// Comes true when standard input ends before the mount was ready.
fn parent_gone(ready: Arc<AtomicBool>) -> io::Result<impl Future<Output = ()>> {
    let (gone, is_gone) = oneshot::channel();
    let watch = move || {
        // Nothing more is ever written; an error is an end, too.
        let _end = io::stdin().lock().read(&mut [0]);
        if !ready.load(Ordering::SeqCst) {
            let _heard = gone.send(());
        }
    };
    threads::spawn("parent-watch", watch)?;
    Ok(async move {
        if is_gone.await.is_err() {
            std::future::pending().await
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::mount::{MsFlags, mount};

    use super::*;

    /// A child may be killed behind mount(2), before it has said which mount is its own.
    #[test]
    fn what_a_killed_child_had_just_mounted_is_taken_away_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().canonicalize().unwrap();
        let Ok(device) = OpenOptions::new().read(true).write(true).open("/dev/fuse") else { return };
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        if mount(Some("a@b"), &point, Some("fuse.crfs"), MsFlags::MS_RDONLY, Some(&*options)).is_err() {
            return;
        }
        drop(device);
        let perhaps = |source: &str| Made::Perhaps { source: source.into() };
        clear_away(&point, &perhaps("a@c"), &[]);
        assert!(mounts::at(&point).unwrap().is_some(), "it is another one");
        clear_away(&point, &perhaps("a@b"), &[]);
        assert!(mounts::at(&point).unwrap().is_none());
    }
}
