//! The life of a mount's server, in the foreground or behind `crfs mount`.
//!
//! ```text
//! open the image ─> start: state directory, mount ─> the first lookup works: ready ─> ... ─> ENODEV
//!        └── deadline, signal or the waiting parent gone: nothing stays mounted ──┘
//! ```
//!
//! Where serving fails, the mount is left as it is; `crfs umount` takes it away.

use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::Error;
use super::control;
use super::event::{self, Deadline, Event, Ready, Report};
use super::frontend::{Frontend, Mounted};
use super::fuse::Fuse;
use super::holders;
use super::kept::{self, Description, Handed, Keeper, Said};
use super::listen::Listening;
use super::mounted::{self, Known, MountedImage, Served};
use super::options::{FrontendChoice, MountOptions};
use super::server::{self, Resumed, Server};
use super::service::{Activity, Service};
use super::signals::ServerSignals;
use super::state::{OwnState, Record};
use crate::fs::forest::Forest;
use crate::fs::fuse::Options;
use crate::keeper::{Go, Words};
use crate::kernel::{Target, mounts};
use crate::registry::Hosts;
use crate::threads::{self, Work};

/// Mounts and serves until the mount ends. `abandoned` comes true when nobody waits for it to be ready any more.
///
/// # Errors
/// Where it cannot be mounted (nothing is, then), or serving fails.
pub fn run(
    options: &MountOptions,
    report: &Report,
    abandoned: impl Future<Output = ()>,
    waiting: &Waiting<'_>,
) -> Result<(), Error> {
    let prepare = || {
        let dir = mounts::usable_point(&options.dir)?;
        let http = Listening::asked_for(options.metrics_listen.as_ref())?;
        let state = OwnState::create(&options.state_dirs)?;
        let log = state.log();
        Ok((Prepared { dir, state, http }, log))
    };
    server::run(&options.log, prepare, |prepared, signals| {
        mount_and_serve(options, prepared, signals, report, abandoned, waiting)
    })
}

/// How whoever waits for a mount is told of it.
pub struct Waiting<'a> {
    /// Who tells.
    pub keeper: &'a Keeper,
    /// What.
    pub words: &'a dyn Fn(&Ready) -> Words,
    /// What is to be done after that.
    pub then: fn(),
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
    waiting: &Waiting<'_>,
) -> Result<(), Error> {
    let limit = options.mount_deadline;
    let deadline = Arc::new(Deadline::new(limit));
    let (heard, tell) = (Arc::clone(&deadline), Arc::clone(report));
    let report: Report = Arc::new(move |event| {
        heard.heard(event);
        tell(event)
    });
    let hosts = Hosts::default();
    let mut said = waiting.keeper.listen()?;
    let becoming_ready = async {
        let (id, report_image) = (prepared.state.id(), event::of_image(&report));
        let served = mounted::served(options, None, id, hosts.clone(), &report_image).await?;
        start(options, prepared, served, &report)?.become_ready(options, &report, waiting).await
    };
    // Asked for while it is still waited for.
    let too_late = async {
        deadline.passed(Duration::ZERO).await;
        hosts.longest_wait()
    };
    let (serving, words) = tokio::select! {
        ready = becoming_ready => ready?,
        waiting = too_late => return Err(Error::Deadline { limit, waiting: waiting.map(Box::new) }),
        () = signals.end.next() => return Err(Error::Interrupted),
        () = abandoned => return Err(Error::Interrupted),
        () = kept::lost(&mut said) => return Err(Error::Interrupted),
    };
    let (kept, then) = (Arc::clone(&serving.server.kept), waiting.then);
    tokio::spawn(async move {
        kept::tell_waiting(&mut said, &words, then).await;
        kept::goes_on_alone(said, kept).await;
    });
    serving.live(&mut signals).await
}

/// Goes on with what another process has mounted and does not serve any more.
///
/// # Errors
/// Where it cannot, and the mount stays as it is; or serving fails.
pub fn resume(keeper: &Keeper) -> Result<(), Error> {
    let Handed { description, device, listener, lock, beside } = keeper.handed::<Description>()?;
    let log = description.options.log.clone();
    let prepare = || {
        let state = OwnState::resumed(description.state.clone(), lock)?;
        let log = state.log();
        Ok((state, log))
    };
    server::run(&log, prepare, |state, signals| {
        resume_and_serve(description.clone(), state, (device, listener), signals, (keeper, beside))
    })
}

async fn resume_and_serve(
    Description { mut options, digest, identity, tree, has_lowers, started, .. }: Description,
    mut state: OwnState,
    (device, listener): (OwnedFd, UnixListener),
    mut signals: ServerSignals,
    (keeper, beside): (&Keeper, bool),
) -> Result<(), Error> {
    // Whatever its tag leads to by now.
    options.source.image = options.source.image.pinned(digest);
    let options = &options;
    let mut said = keeper.listen()?;
    let limit = options.mount_deadline;
    let hosts = Hosts::default();
    let becoming_ready = async {
        let nobody: Report = Arc::new(|_| Ok(()));
        let report = event::of_image(&nobody);
        let known = Some(Known { digest, has_lowers });
        let served = mounted::served(options, known, state.id(), hosts.clone(), &report).await?;
        let found = served.forest.fingerprint();
        if found == Some(tree) { Ok(served) } else { Err(Error::OtherTree) }
    };
    let served = tokio::select! {
        served = becoming_ready => served?,
        () = tokio::time::sleep(limit) => return Err(Error::Deadline { limit, waiting: hosts.longest_wait().map(Box::new) }),
        () = kept::lost(&mut said) => return Err(keeper.lost_before_go(beside)),
    };
    keeper.ready(Words::default()).map_err(|_gone| keeper.lost_before_go(beside))?;
    let Some(Said::Go(Go { before, upgrades, why })) = said.recv().await else {
        return Err(keeper.lost_before_go(beside));
    };
    Keeper::serves();
    let claimed = kept::claim(&listener);
    claimed.unwrap_or_else(|error| tracing::debug!(%error, "the control socket names another process"));
    let mounted = Mounted { dir: options.dir.clone(), identity, stays: true };
    let resumed = Resumed { mounted, device, started, kept: keeper.keeping(before, upgrades) };
    let forest = Arc::clone(&served.forest);
    let mut server = Server::resume(Arc::clone(&served.service), forest, &*chosen(options), resumed)?;
    server.become_usable().await?;
    tracing::warn!(before, why, "goes on with the mount of another process");
    let http = Listening::asked_for(options.metrics_listen.as_ref());
    let http = http.inspect_err(|error| tracing::warn!(error = error.chain(), "no metrics are served"));
    server.answer(listener, http.ok().flatten());
    tokio::spawn(kept::goes_on_alone(said, Arc::clone(&server.kept)));
    state.take_over();
    Serving { prefetch: served.prefetch, server, state }.live(&mut signals).await
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
) -> Result<Starting, Error> {
    let listener = control::bind(&state.socket()).map_err(|source| Error::State { path: state.socket(), source })?;
    let asked = kept::again(listener.as_fd())?;
    let (name, digest) = (served.image.image.name.clone(), served.image.image.digest);
    let source = options.shown.clone().unwrap_or_else(|| format!("{name}@{digest}"));
    let MountOptions { allow_other, noexec, .. } = *options;
    let target = Target { dir: &dir, source: &source, allow_other, is_asked_for_changes: false, noexec };
    let forest = Arc::clone(&served.forest);
    // So that whoever started this process unmounts it where this process is killed before it is ready.
    let _heard = report(&Event::Mounting { source: source.clone() });
    let server = Server::attach(Arc::clone(&served.service), forest, &*chosen(options), &target)?;
    let mount = server.attached.mounted.identity.clone();
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
        shown: options.shown.clone(),
        words: options.words.clone(),
    })?;
    server.answer(listener, http);
    let (ready, read_ahead) = (ready(&served, Keeper::pid()), served.read_ahead());
    let serving = Serving { prefetch: served.prefetch, server, state };
    let (forest, has_lowers) = (served.forest, served.has_lowers);
    Ok(Starting { serving, forest, listener: asked, has_lowers, read_ahead, ready })
}

fn ready(served: &Served, pid: u32) -> Ready {
    let image = &served.image.image;
    // zTOCs.
    let beside = served.image.layers.iter().map(|layer| layer.beside.bytes).fold(0, u64::saturating_add);
    Ready {
        name: image.name.clone(),
        digest: image.digest,
        layers: served.image.layers.len(),
        lazy: served.lazy(),
        sent_whole: served.sent_whole(),
        fetched: Activity::of(&served.service.layers()).stats.fetched.saturating_add(beside),
        pid,
    }
}

/// A mount that cannot be used yet.
struct Starting {
    serving: Serving,
    forest: Arc<Forest>,
    /// The control socket.
    listener: OwnedFd,
    /// Whether the layers below a single one were known.
    has_lowers: bool,
    read_ahead: u32,
    ready: Ready,
}

impl Starting {
    /// Comes back when the mount point can be used and has been handed over, and the keeper knows what to say of it.
    async fn become_ready(
        mut self,
        options: &MountOptions,
        report: &Report,
        waiting: &Waiting<'_>,
    ) -> Result<(Serving, Words), Error> {
        self.serving.server.become_usable().await?;
        self.serving.server.attached.mounted.identity.device.set_read_ahead(self.read_ahead);
        self = self.hand_over(options, waiting.keeper).await?;
        // What is to be said before is said.
        report(&Event::Ready(self.ready.clone())).map_err(|_gone| Error::Interrupted)?;
        let words = (waiting.words)(&self.ready);
        waiting.keeper.ready(words.clone())?;
        // From here on nothing is waited for: the keeper says that the mount is there.
        Keeper::serves();
        self.serving.server.attached.mounted.stays = true;
        Ok((self.serving, words))
    }

    /// What the keeper needs for another process to go on. Where the kernel is too old for that, it is not kept.
    async fn hand_over(mut self, options: &MountOptions, keeper: &Keeper) -> Result<Self, Error> {
        let server = &mut self.serving.server;
        match server.attached.keep.take().and_then(|keep| keep()) {
            Some(device) => {
                let forest = Arc::clone(&self.forest);
                let tree = threads::run(Work::Opening, move || forest.fingerprint()).await;
                let description = Description {
                    options: options.clone(),
                    digest: self.ready.digest,
                    identity: server.attached.mounted.identity.clone(),
                    has_lowers: self.has_lowers,
                    tree: tree.ok().flatten().ok_or(Error::OtherTree)?,
                    started: server.started,
                    state: self.serving.state.dir().to_owned(),
                };
                let lock = kept::again(self.serving.state.lock())?;
                let described = (description, options.source.io_deadline);
                keeper.hold(described, device, kept::again(self.listener.as_fd())?, lock)?;
                *server.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper.keeping(0, 0));
            }
            None => tracing::info!(
                "this kernel gives no request out twice (before Linux 6.9): the mount ends with its server"
            ),
        }
        Ok(self)
    }
}

/// A mount that is being served.
struct Serving {
    server: Server<MountedImage>,
    state: OwnState,
    prefetch: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Serving {
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
