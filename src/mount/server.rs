//! The life of a server, in the foreground or behind `crfs mount`.
//!
//! ```text
//! open the image ─> start: state directory, /dev/fuse, mount(2) ─> serve ─> the first lookup works: ready ─> ... ─> ENODEV
//!        └── deadline, signal or the waiting parent gone: nothing stays mounted ──┘
//! ```
//!
//! Once it is ready, a mount ends when the kernel is done with it and not before: /dev/fuse then says ENODEV. A signal only
//! asks the kernel: it unmounts where nothing uses the mount. Where serving fails, the mount is left as it is, so that its
//! readers see ENOTCONN and not the files of the directory below; `crfs umount` takes it away.

use std::fs;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::oneshot;

use super::Error;
use super::control::{self, Figures};
use super::event::{Deadline, Event, Ready, Report};
use super::fusedev::{self, Detach, Target};
use super::image;
use super::log::{self, RotatingLog};
use super::mounts::{self, Device};
use super::options::MountOptions;
use super::signals::{self, EndSignals};
use super::state::{OwnState, Record};
use crate::blob::Digest;
use crate::sys;

/// How long the end of serving may come after the failure of the lookup that it made fail.
const CAUSE: Duration = Duration::from_millis(200);

/// Answers the kernel's requests on the descriptor of /dev/fuse, the first (FUSE_INIT) included, until it says ENODEV.
pub(crate) type Serve = Box<dyn FnOnce(OwnedFd) -> io::Result<()> + Send>;

/// What is served, waiting for its descriptor only.
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) digest: Digest,
    pub(crate) layers: usize,
    /// Those of them that are not on local disk as a whole.
    pub(crate) lazy: usize,
    pub(crate) serve: Serve,
    /// KiB that the kernel is to read ahead.
    pub(crate) read_ahead: u32,
    /// Runs once the mount is ready.
    pub(crate) prefetch: Pin<Box<dyn Future<Output = ()> + Send>>,
    pub(crate) figures: Figures,
}

/// Mounts and serves until the mount ends. `abandoned` comes true when nobody waits for it to be ready any more.
///
/// # Errors
/// Where it cannot be mounted (nothing is, then), or serving fails.
pub fn run(options: &MountOptions, report: &Report, abandoned: impl Future<Output = ()>) -> Result<(), Error> {
    sys::keep_heap_small();
    let dir = mounts::usable_point(&options.dir)?;
    let state = OwnState::create(&options.state_dirs)?;
    log::start(&options.log, RotatingLog::open(&state.log()).ok());
    // A working directory on a mount would keep that one busy, its own for ever.
    nix::unistd::chdir("/").map_err(|errno| Error::Runtime { source: errno.into() })?;
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|source| Error::Runtime { source })?;
    let outcome = runtime.block_on(mount_and_serve(options, dir, state, report, abandoned));
    // What is still in flight is for nobody.
    runtime.shutdown_background();
    if let Err(error) = &outcome {
        tracing::info!(error = error.chain(), "the server ends");
    }
    outcome
}

/// As many descriptors as may be had without asking anyone: a layer takes two in the cache, a request one.
fn raise_descriptor_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        tracing::debug!(%errno, "the limit of open files stays as it is");
    }
}

async fn mount_and_serve(
    options: &MountOptions,
    dir: PathBuf,
    state: OwnState,
    report: &Report,
    abandoned: impl Future<Output = ()>,
) -> Result<(), Error> {
    let mut signals = EndSignals::listen().map_err(|source| Error::Runtime { source })?;
    signals::survive_file_size_limit().map_err(|source| Error::Runtime { source })?;
    let limit = options.mount_deadline;
    let deadline = Arc::new(Deadline::new(limit));
    let (heard, tell) = (Arc::clone(&deadline), Arc::clone(report));
    let report: Report = Arc::new(move |event| {
        heard.heard(event);
        tell(event)
    });
    let becoming_ready = async {
        let served = image::served(options, &report).await?;
        let session = start(options, dir, state, served)?.serve()?;
        session.become_ready(&report).await
    };
    let session = tokio::select! {
        ready = becoming_ready => ready?,
        () = deadline.passed(Duration::ZERO) => return Err(Error::Deadline { limit }),
        () = signals.next() => return Err(Error::Interrupted),
        () = abandoned => return Err(Error::Interrupted),
    };
    session.live(&mut signals).await
}

/// All that is there before the first request is answered: what a keeper would hold, and hand to one server after the other.
struct Start {
    device: OwnedFd,
    control: UnixListener,
    mounted: Mounted,
    state: OwnState,
    served: Served,
}

/// Mounts. Not to be interrupted half-way, hence not async: it takes milliseconds.
fn start(options: &MountOptions, dir: PathBuf, state: OwnState, served: Served) -> Result<Start, Error> {
    // Opening the image took its time: somebody else may have mounted here meanwhile.
    let dir = mounts::usable_point(&dir)?;
    let path = state.socket();
    let control = control::bind(&path).map_err(|source| Error::State { path, source })?;
    let source = format!("{}@{}", served.name, served.digest);
    let target = Target { dir: &dir, source: &source, allow_other: options.allow_other };
    let device = fusedev::mount(&target)?;
    let mounted = Mounted::find(dir)?;
    let record = Record {
        id: state.id(),
        pid: std::process::id(),
        image: served.name.clone(),
        digest: served.digest,
        frontend: "fuse".to_owned(),
        dir: mounted.dir.clone(),
        device: mounted.device,
        started: SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs()),
    };
    state.write(&record)?;
    Ok(Start { device, control, mounted, state, served })
}

impl Start {
    /// Lets the view answer, on a thread of its own, and the control socket.
    fn serve(self) -> Result<Session, Error> {
        let Self { device, control, mounted, state, served } = self;
        let Served { name, digest, layers, lazy, serve, prefetch, figures, read_ahead } = served;
        tokio::spawn(control::answer(control, figures.clone()));
        let ended = on_thread("fuse", move || serve(device))?;
        let ready = Ready { name, digest, layers, lazy, fetched: figures().stats.fetched, pid: std::process::id() };
        Ok(Session { ended, mounted, state, prefetch, read_ahead, ready })
    }
}

/// Runs something that may block for ever; a panic in it looks like a lost answer.
fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<T>, Error> {
    let (answer, answered) = oneshot::channel();
    // Nobody may be waiting any more for the answer.
    let work = move || drop(answer.send(work()));
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(|source| Error::Runtime { source })?;
    Ok(answered)
}

/// A mount that is being served.
struct Session {
    ended: oneshot::Receiver<io::Result<()>>,
    mounted: Mounted,
    state: OwnState,
    prefetch: Pin<Box<dyn Future<Output = ()> + Send>>,
    read_ahead: u32,
    ready: Ready,
}

impl Session {
    /// Comes back when the mount point can be used, and has been reported to be.
    async fn become_ready(mut self, report: &Report) -> Result<Self, Error> {
        let dir = self.mounted.dir.clone();
        // Not on a thread of the runtime: where the view does not answer, this waits for as long as the process lives.
        let looked = on_thread("first-lookup", {
            let dir = dir.clone();
            move || first_lookup(&dir)
        })?;
        let looked = tokio::select! {
            looked = looked => looked.unwrap_or_else(|_| Err(panicked())),
            ended = &mut self.ended => return Err(Error::Session { dir, source: why(ended) }),
        };
        if let Err(source) = looked {
            // Where serving failed, that is the cause, and about to be known.
            return Err(match tokio::time::timeout(CAUSE, &mut self.ended).await {
                Ok(ended) => Error::Session { dir, source: why(ended) },
                Err(_) => Error::NotReady { dir, source },
            });
        }
        // Not sooner: the answer to INIT, which the lookup waited for, lowers it to 128 KiB. Not later: an open file keeps what it found.
        self.mounted.device.set_read_ahead(self.read_ahead);
        self.mounted.stays = true;
        if report(&Event::Ready(self.ready.clone())).is_err() {
            // Whoever waited is gone, and will never know of it.
            self.mounted.stays = false;
            return Err(Error::Interrupted);
        }
        Ok(self)
    }

    /// Comes back when the kernel is done with the mount, or two signals wanted it to end.
    async fn live(mut self, signals: &mut EndSignals) -> Result<(), Error> {
        tracing::info!(dir = %self.mounted.dir.display(), image = self.ready.name, digest = %self.ready.digest, "mounted");
        tokio::spawn(std::mem::replace(&mut self.prefetch, Box::pin(std::future::ready(()))));
        let mut asked = false;
        loop {
            tokio::select! {
                ended = &mut self.ended => return self.end(ended),
                () = signals.next() => match asked {
                    false => self.mounted.leave_if_idle(),
                    true => {
                        self.mounted.stays = false;
                        return Ok(());
                    }
                },
            }
            asked = true;
        }
    }

    fn end(self, ended: Result<io::Result<()>, oneshot::error::RecvError>) -> Result<(), Error> {
        let dir = self.mounted.dir.clone();
        if !self.mounted.is_there() {
            tracing::info!(dir = %dir.display(), "unmounted");
            return Ok(());
        }
        let source = why(ended);
        tracing::error!(dir = %dir.display(), error = %source, "serving failed; the mount is dead until it is unmounted");
        self.state.leave();
        Err(Error::Session { dir, source })
    }
}

fn why(ended: Result<io::Result<()>, oneshot::error::RecvError>) -> io::Error {
    match ended {
        Ok(Ok(())) => io::Error::new(io::ErrorKind::ConnectionAborted, "the kernel ended the connection"),
        Ok(Err(error)) => error,
        Err(_) => panicked(),
    }
}

fn panicked() -> io::Error {
    io::Error::other("a thread panicked; the log says where")
}

/// What a first user would do: stat the directory, and look a name up in it. One that is missing is as good.
fn first_lookup(dir: &Path) -> io::Result<()> {
    fs::metadata(dir)?;
    match fs::symlink_metadata(dir.join(".crfs-ready")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A mount that this process made. Taken away when it is dropped, unless it stays.
struct Mounted {
    dir: PathBuf,
    device: Device,
    stays: bool,
}

impl Mounted {
    /// The mount that was just made at `dir`.
    fn find(dir: PathBuf) -> Result<Self, Error> {
        match mounts::at(&dir) {
            Ok(Some(mount)) if mount.is_ours() => Ok(Self { dir, device: mount.device, stays: false }),
            Ok(_) => Err(Error::NotMounted { dir }),
            Err(source) => Err(Error::Directory { dir, source }),
        }
    }

    /// Whether this very mount, and not another one, is at its directory.
    fn is_on_top(&self) -> bool {
        matches!(mounts::at(&self.dir), Ok(Some(mount)) if mount.is_ours() && mount.device == self.device)
    }

    /// Whether it is anywhere in the mount table.
    fn is_there(&self) -> bool {
        mounts::all().is_ok_and(|table| table.iter().any(|mount| mount.is_ours() && mount.device == self.device))
    }

    /// Unmounts where nothing uses it; says so where something does.
    fn leave_if_idle(&self) {
        let dir = self.dir.display();
        if !self.is_on_top() {
            return tracing::warn!(%dir, "asked to end: still in use by another mount; once more to leave all the same");
        }
        match fusedev::unmount(&self.dir, Detach::IfIdle) {
            Ok(()) if self.device.exists() => {
                tracing::warn!(%dir, "unmounted; still in use by another mount; once more to leave all the same");
            }
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(error = error.chain(), "asked to end, and staying; once more to leave all the same");
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.stays || !self.is_on_top() {
            return;
        }
        if let Err(error) = fusedev::unmount(&self.dir, Detach::Lazily) {
            tracing::error!(error = error.chain(), "a mount stays behind");
        }
    }
}
