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

use std::future::Future;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::Error;
use super::control::{self};
use super::doing::Doing;
use super::event::{self, Deadline, Event, Ready, Report};
use super::holders;
use super::log::{self, RotatingLog};
use super::mounted::{self, Served};
use super::options::MountOptions;
use super::session::{End, Session, Unserved, raise_descriptor_limit, unmount_if_idle};
use super::signals::{self, ServerSignals};
use super::state::{OwnState, Record};
use crate::errors::chain;
use crate::image::look::runtime;
use crate::kernel::Target;
use crate::kernel::mounts;
use crate::metrics::{METRICS, Snapshot};
use crate::registry::Hosts;
use crate::{sys, threads};

/// Mounts and serves until the mount ends. `abandoned` comes true when nobody waits for it to be ready any more.
///
/// # Errors
/// Where it cannot be mounted (nothing is, then), or serving fails.
pub fn run(options: &MountOptions, report: &Report, abandoned: impl Future<Output = ()>) -> Result<(), Error> {
    sys::keep_heap_small();
    signals::block_meaningless();
    let failed = |source| Error::Runtime { source };
    let dir = mounts::usable_point(&options.dir)?;
    let state = OwnState::create(&options.state_dirs)?;
    let _log = log::start_server(&options.log, RotatingLog::open(&state.log()).ok()).map_err(failed)?;
    // A working directory on a mount would keep that one busy, its own for ever.
    nix::unistd::chdir("/").map_err(|errno| failed(errno.into()))?;
    raise_descriptor_limit();
    let runtime = runtime()?;
    let outcome = runtime.block_on(mount_and_serve(options, dir, state, report, abandoned));
    // What is still in flight is for nobody.
    drop(runtime);
    if let Err(error) = &outcome {
        tracing::info!(error = error.chain(), "the server ends");
    }
    outcome
}

async fn mount_and_serve(
    options: &MountOptions,
    dir: PathBuf,
    state: OwnState,
    report: &Report,
    abandoned: impl Future<Output = ()>,
) -> Result<(), Error> {
    let mut signals = ServerSignals::listen().map_err(|source| Error::Runtime { source })?;
    let limit = options.mount_deadline;
    let deadline = Arc::new(Deadline::new(limit));
    let (heard, tell) = (Arc::clone(&deadline), Arc::clone(report));
    let report: Report = Arc::new(move |event| {
        heard.heard(event);
        tell(event)
    });
    let hosts = Hosts::default();
    let becoming_ready = async {
        let served = mounted::served(options, hosts.clone(), &event::of_image(&report)).await?;
        let session = start(options, dir, state, served, &report)?.serve()?;
        session.become_ready(&report).await
    };
    // Asked for while it is still waited for.
    let too_late = async {
        deadline.passed(Duration::ZERO).await;
        hosts.longest_wait()
    };
    let session = tokio::select! {
        ready = becoming_ready => ready?,
        waiting = too_late => return Err(Error::Deadline { limit, waiting: waiting.map(Box::new) }),
        () = signals.end.next() => return Err(Error::Interrupted),
        () = abandoned => return Err(Error::Interrupted),
    };
    session.live(&mut signals).await
}

/// All that is there before the first request is answered: what a keeper would hold, and hand to one server after the other.
struct Start {
    mount: Unserved,
    control: UnixListener,
    leave: UnixListener,
    metrics: UnixListener,
    state: OwnState,
    served: Served,
}

/// Mounts. Not to be interrupted half-way, hence not async: it takes milliseconds.
fn start(
    options: &MountOptions,
    dir: PathBuf,
    state: OwnState,
    served: Served,
    report: &Report,
) -> Result<Start, Error> {
    let bind = |path: PathBuf| control::bind(&path).map_err(|source| Error::State { path, source });
    let (control, leave) = (bind(state.socket())?, bind(state.leave_socket())?);
    let metrics = bind(state.metrics_socket())?;
    let source = format!("{}@{}", served.name, served.digest);
    let mount = Unserved::mount(&Target { dir: &dir, source: &source, allow_other: options.allow_other })?;
    // So that whoever started this process unmounts it where this process is killed before it is ready.
    let _heard = report(&Event::Mounted { mount: mount.mounted.identity.clone() });
    let record = Record {
        id: state.id(),
        pid: std::process::id(),
        image: served.name.clone(),
        digest: served.digest,
        frontend: "fuse".to_owned(),
        dir: mount.mounted.dir.clone(),
        device: mount.mounted.identity.device,
        instance: mount.mounted.identity.device.instance(),
        user: mount.mounted.identity.user,
        namespace: holders::own_namespace(),
        started: SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs()),
    };
    state.write(&record)?;
    Ok(Start { mount, control, leave, metrics, state, served })
}

impl Start {
    /// Lets the view answer, and the sockets.
    fn serve(self) -> Result<Serving, Error> {
        let Self { mount, control, leave, metrics, state, served } = self;
        let Served { name, digest, layers, lazy, sent_whole, serve, prefetch, figures, doing, common, read_ahead } =
            served;
        tokio::spawn(control::answer(control, figures.clone()));
        let id = state.id();
        let text = move || {
            let (server, common) = (id.clone(), common.clone());
            async move { METRICS.text(&Snapshot { server, kind: "mount", ..common.levels().await }) }
        };
        tokio::spawn(control::answer_metrics(metrics, text));
        let (dir, identity) = (mount.mounted.dir.clone(), mount.mounted.identity.clone());
        tokio::spawn(control::answer_leave(leave, move || {
            unmount_if_idle(&dir, &identity).map_err(|error| chain(&error))
        }));
        let session = mount.serve(serve)?;
        let (fetched, pid) = (figures().stats.fetched, std::process::id());
        let ready = Ready { name, digest, layers, lazy, sent_whole, fetched, pid };
        Ok(Serving { session, state, prefetch, doing, read_ahead, ready })
    }
}

/// A mount that is being served, and what is known of it.
struct Serving {
    session: Session,
    state: OwnState,
    prefetch: Pin<Box<dyn Future<Output = ()> + Send>>,
    doing: Doing,
    read_ahead: u32,
    ready: Ready,
}

impl Serving {
    /// Comes back when the mount point can be used, and has been reported to be.
    async fn become_ready(mut self, report: &Report) -> Result<Self, Error> {
        self.session.become_usable().await?;
        // Now that all threads are there that it cannot do without.
        threads::fill();
        self.session.mounted.identity.device.set_read_ahead(self.read_ahead);
        self.session.mounted.stays = true;
        if report(&Event::Ready(self.ready.clone())).is_err() {
            // Whoever waited is gone, and will never know of it.
            self.session.mounted.stays = false;
            return Err(Error::Interrupted);
        }
        Ok(self)
    }

    /// Comes back when the kernel is done with the mount, or two signals wanted it to end.
    async fn live(mut self, signals: &mut ServerSignals) -> Result<(), Error> {
        let dir = self.session.mounted.dir.clone();
        tracing::info!(dir = %dir.display(), image = self.ready.name, digest = %self.ready.digest, "mounted");
        tokio::spawn(self.prefetch);
        let tell = || {
            tracing::warn!(dir = %dir.display(), image = self.ready.name, digest = %self.ready.digest, "SIGQUIT: mounted");
            (self.doing)();
        };
        match self.session.end(signals, || (), tell).await {
            End::Unmounted => {
                tracing::info!(dir = %dir.display(), "unmounted");
                Ok(())
            }
            End::GivenUp => {
                self.session.mounted.stays = false;
                Ok(())
            }
            End::Failed(source) => {
                tracing::error!(dir = %dir.display(), error = %source, "serving failed; the mount is dead until it is unmounted");
                self.state.leave();
                Err(Error::Session { dir, source })
            }
        }
    }
}
