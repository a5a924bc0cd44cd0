//! The life of a mount's server, in the foreground or behind `crfs mount`.
//!
//! ```text
//! open the image ─> start: state directory, mount ─> the first lookup works: ready ─> ... ─> ENODEV
//!        └── deadline, signal or the waiting parent gone: nothing stays mounted ──┘
//! ```
//!
//! Where serving fails, the mount is left as it is; `crfs umount` takes it away.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::Error;
use super::control;
use super::event::{self, Deadline, Event, Ready, Report};
use super::frontend::Frontend;
use super::fuse::Fuse;
use super::holders;
use super::listen::Listening;
use super::mounted::{self, MountedImage, Served};
use super::options::{FrontendChoice, MountOptions};
use super::server::{self, Server};
use super::service::{Activity, Service};
use super::signals::ServerSignals;
use super::state::{OwnState, Record};
use crate::fs::fuse::Options;
use crate::kernel::{Target, mounts};
use crate::registry::Hosts;

/// Mounts and serves until the mount ends. `abandoned` comes true when nobody waits for it to be ready any more.
///
/// # Errors
/// Where it cannot be mounted (nothing is, then), or serving fails.
pub fn run(options: &MountOptions, report: &Report, abandoned: impl Future<Output = ()>) -> Result<(), Error> {
    let prepare = || {
        let dir = mounts::usable_point(&options.dir)?;
        let http = Listening::asked_for(options.metrics_listen.as_ref())?;
        let state = OwnState::create(&options.state_dirs)?;
        let log = state.log();
        Ok((Prepared { dir, state, http }, log))
    };
    server::run(&options.log, prepare, |prepared, signals| {
        mount_and_serve(options, prepared, signals, report, abandoned)
    })
}

/// What there is before the image is opened.
struct Prepared {
    dir: PathBuf,
    state: OwnState,
    http: Option<Listening>,
}

async fn mount_and_serve(
    options: &MountOptions,
    prepared: Prepared,
    mut signals: ServerSignals,
    report: &Report,
    abandoned: impl Future<Output = ()>,
) -> Result<(), Error> {
    let limit = options.mount_deadline;
    let deadline = Arc::new(Deadline::new(limit));
    let (heard, tell) = (Arc::clone(&deadline), Arc::clone(report));
    let report: Report = Arc::new(move |event| {
        heard.heard(event);
        tell(event)
    });
    let hosts = Hosts::default();
    let becoming_ready = async {
        let served = mounted::served(options, prepared.state.id(), hosts.clone(), &event::of_image(&report)).await?;
        start(options, prepared, served, &report)?.become_ready(&report).await
    };
    // Asked for while it is still waited for.
    let too_late = async {
        deadline.passed(Duration::ZERO).await;
        hosts.longest_wait()
    };
    let serving = tokio::select! {
        ready = becoming_ready => ready?,
        waiting = too_late => return Err(Error::Deadline { limit, waiting: waiting.map(Box::new) }),
        () = signals.end.next() => return Err(Error::Interrupted),
        () = abandoned => return Err(Error::Interrupted),
    };
    serving.live(&mut signals).await
}

/// What `--frontend` means here.
fn chosen(options: &MountOptions) -> Box<dyn Frontend> {
    let answers = Options { list_trusted: options.system_admin, nfs_export: options.nfs_export };
    match options.frontend {
        FrontendChoice::Auto | FrontendChoice::Fuse => Box::new(Fuse(answers)),
    }
}

/// Mounts. Not to be interrupted half-way, hence not async: it takes milliseconds.
fn start(
    options: &MountOptions,
    Prepared { dir, state, http }: Prepared,
    served: Served,
    report: &Report,
) -> Result<Serving, Error> {
    let listener = control::bind(&state.socket()).map_err(|source| Error::State { path: state.socket(), source })?;
    let (name, digest) = (served.image.image.name.clone(), served.image.image.digest);
    let target = Target { dir: &dir, source: &format!("{name}@{digest}"), allow_other: options.allow_other };
    let forest = Arc::clone(&served.forest);
    let server = Server::attach(Arc::clone(&served.service), forest, &*chosen(options), &target)?;
    let mount = server.attached.mounted.identity.clone();
    // So that whoever started this process unmounts it where this process is killed before it is ready.
    let _heard = report(&Event::Mounted { mount: mount.clone() });
    state.write(&Record {
        id: state.id(),
        pid: std::process::id(),
        image: name,
        digest,
        frontend: server.frontend.to_owned(),
        dir: dir.clone(),
        device: mount.device,
        instance: mount.device.instance(),
        user: mount.user,
        namespace: holders::own_namespace(),
        started: server.started,
        options: Some(options.source.clone()),
    })?;
    server.answer(listener, http);
    let (ready, read_ahead) = (ready(&served), served.read_ahead());
    Ok(Serving { server, state, prefetch: served.prefetch, read_ahead, ready })
}

fn ready(served: &Served) -> Ready {
    let image = &served.image.image;
    Ready {
        name: image.name.clone(),
        digest: image.digest,
        layers: served.image.layers.len(),
        lazy: served.lazy(),
        sent_whole: served.sent_whole(),
        fetched: Activity::of(&served.service.layers()).stats.fetched,
        pid: std::process::id(),
    }
}

/// A mount that is being served, and what is known of it.
struct Serving {
    server: Server<MountedImage>,
    state: OwnState,
    prefetch: Pin<Box<dyn Future<Output = ()> + Send>>,
    read_ahead: u32,
    ready: Ready,
}

impl Serving {
    /// Comes back when the mount point can be used, and has been reported to be.
    async fn become_ready(mut self, report: &Report) -> Result<Self, Error> {
        self.server.become_usable().await?;
        let mounted = &mut self.server.attached.mounted;
        mounted.identity.device.set_read_ahead(self.read_ahead);
        mounted.stays = true;
        if report(&Event::Ready(self.ready.clone())).is_err() {
            // Whoever waited is gone, and will never know of it.
            mounted.stays = false;
            return Err(Error::Interrupted);
        }
        Ok(self)
    }

    /// Comes back when the kernel is done with the mount, or two signals wanted it to end.
    async fn live(self, signals: &mut ServerSignals) -> Result<(), Error> {
        tokio::spawn(self.prefetch);
        let ended = self.server.live(signals).await;
        if ended.is_err() {
            self.state.leave();
        }
        ended
    }
}
