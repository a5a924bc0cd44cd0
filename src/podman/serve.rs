//! `crfs store serve`: the one server of a store.
//!
//! ```text
//! lock ─> lists for podman ─> mount(2) at overlay/ ─> open all layers ─> handed over: ready ─> ... ─> ENODEV
//!                                                       `── what cannot be opened is tried again, later and later
//! ```
//!
//! It is the worker of a keeper (src/keeper), which has the store's lock as well, and starts another one where it dies (resume.rs). It ends as the server
//! of a mount does: when the kernel is done with the mount, or at the second signal. Where nobody goes on, its keeper takes the dead mount away, so that
//! podman sees the stubs below (stubs.rs); where that was killed as well, the next server does.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Store;
use super::apart::Readers;
use super::commands::answered;
use super::contents::Wants;
use super::layers::{LayerOptions, Layers};
use super::lock::Lock;
use super::paths::Paths;
use super::records::{CachePlace, Records};
use super::{Error, control, files, open, share};
use crate::blob::Digest;
use crate::cache::Cache;
use crate::fs::fuse::Options;
use crate::image::{Report, wire};
use crate::kernel::fusedev::Detach;
use crate::kernel::mounts::Identity;
use crate::kernel::{Target, mounts};
use crate::serve::control::SOCKET;
use crate::serve::fuse::Fuse;
use crate::serve::kept;
use crate::serve::listen::{Listen, Listening};
use crate::serve::options::LogOptions;
use crate::serve::server::{self, Server};
use crate::serve::signals::ServerSignals;
use crate::serve::{self, Keeper, Words, background};
use crate::sys::own::{EntryKind, OwnDir, short_path};

/// How long the mount may take to answer for the first time.
const USABLE: Duration = Duration::from_secs(30);

/// How long readiness waits for layers that are hard to open.
const OPENING: Duration = Duration::from_secs(30);

/// Between two tries to open what could not be opened.
const FIRST_RETRY: Duration = Duration::from_secs(2);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// How long a start waits for those who hold podman's locks: podman has them for a moment only, but where it unpacks a layer.
const LISTS_PATIENCE: Duration = Duration::from_secs(5);

/// How long another command that changes the store is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
const GLANCE: Duration = Duration::from_millis(20);

/// How long whoever reads waits while nobody serves: as long as an image's own deadline is where none is asked for.
const IO_DEADLINE: Duration = Duration::from_secs(120);

/// The hidden subcommand that becomes a server, and its option that says of which store.
pub const WORKER: &str = "store-worker";
const ROOT: &str = "--root";

/// What a server is asked to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServeOptions {
    pub paths: Paths,
    #[serde(with = "wire::path")]
    pub cache_dir: PathBuf,
    pub cache_size: Option<u64>,
    /// Where podman's own stores are that may use what the store has.
    #[serde(with = "wire::paths")]
    pub podman: Vec<PathBuf>,
    /// Whether more is fetched than what is read.
    pub guesses: bool,
    pub allow_other: bool,
    /// Where its metrics are served by HTTP.
    pub metrics_listen: Option<Listen>,
    /// How layers of images are found that podman pulls; `None`: it is not asked for any.
    #[serde(default)]
    pub layers: Option<LayerOptions>,
    pub log: LogOptions,
}

/// What is ready to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    pub images: usize,
    /// Those of them of which a layer cannot be read yet.
    pub not_served: usize,
}

/// What another process needs to go on with a store; the rest is in the records.
#[derive(Serialize, Deserialize)]
pub(super) struct Description {
    pub(super) options: ServeOptions,
    pub(super) identity: Identity,
    /// Seconds since 1970.
    pub(super) started: u64,
}

/// Becomes the keeper of a store, whose worker reads these options. Comes back only where that fails. `passed_on`: how many descriptors a service
/// manager has passed on.
///
/// # Errors
/// Why it has failed.
pub fn become_keeper(options: &ServeOptions, passed_on: usize) -> Result<Infallible, Error> {
    Ok(background::become_keeper_of(options, &worker(options), passed_on)?)
}

/// Starts the keeper of a store beside this process, which it outlives.
///
/// # Errors
/// Where it cannot be started.
pub fn start_keeper(options: &ServeOptions) -> Result<Child, Error> {
    Ok(background::start_keeper_of(options, &worker(options))?)
}

fn worker(options: &ServeOptions) -> [&OsStr; 3] {
    [WORKER.as_ref(), ROOT.as_ref(), options.paths.root.as_os_str()]
}

/// Takes a store's mounts away that nobody serves any more: podman sees the stubs then, and not a mount that fails for whatever is asked of it.
///
/// # Errors
/// Where they stay.
pub fn clear_away(root: &Path) -> Result<(), Error> {
    answered(&Paths::new(root, None), |paths| {
        // Whoever has it serves it, or has cleared up.
        let Some(_lock) = Lock::take_known(paths)? else { return Ok(()) };
        share::take_clones_away(paths, Detach::Lazily);
        open::clear_point(&paths.mount())
    })
}

/// A keeper's first worker: serves until the mount ends. `ready`: what is said once podman can use the store.
///
/// # Errors
/// Where it cannot be mounted, or serving fails.
pub fn serve(keeper: &Keeper, ready: impl FnOnce(&Ready) -> Words) -> Result<(), Error> {
    let options: ServeOptions = background::begin()?;
    let prepare = || {
        answered(&options.paths, Paths::create)?;
        let lock = lock(&options.paths, PATIENCE)?;
        Ok(((lock, Listening::asked_for(options.metrics_listen.as_ref())?), options.paths.log()))
    };
    server::run(&options.log, prepare, |prepared, signals| run(&options, prepared, signals, keeper, ready))
}

fn lock(paths: &Paths, patience: Duration) -> Result<Lock, Error> {
    let start = Instant::now();
    loop {
        let (taken, is_served) = answered(paths, |paths| {
            let taken = Lock::take(paths)?;
            let is_served = taken.is_none() && is_answered(paths);
            Ok((taken, is_served))
        })?;
        match taken {
            Some(lock) => return Ok(lock),
            None if is_served => return Err(Error::Served { root: paths.root.clone() }),
            None if start.elapsed() < patience => std::thread::sleep(GLANCE),
            // A command that takes long, or a server with another state.
            None => return Err(Error::Taken { root: paths.root.clone() }),
        }
    }
}

/// One that is stopped has the store as well.
fn is_answered(paths: &Paths) -> bool {
    !matches!(control::connect(paths, Duration::from_secs(1)), Ok(None))
}

async fn run(
    options: &ServeOptions,
    (lock, http): (Lock, Option<Listening>),
    mut signals: ServerSignals,
    keeper: &Keeper,
    ready: impl FnOnce(&Ready) -> Words,
) -> Result<(), Error> {
    let store = begun(options, lock).await?;
    let dir = options.paths.mount();
    let target = Target {
        dir: &mounts::usable_point(&dir)?,
        source: mounts::STORE,
        allow_other: options.allow_other,
        is_asked_for_changes: options.layers.is_some(),
        noexec: false,
    };
    let mut server = Server::attach(Arc::clone(&store), store.trees.forest(), &FRONTEND, &target)?;
    let usable = tokio::time::timeout(USABLE, server.become_usable()).await;
    usable.map_err(|late| serve::Error::NotReady { dir: dir.clone(), source: late.into() })??;
    let device = server.attached.mounted.identity.device;
    // Nobody has set it before.
    let _first = store.device.set(device);
    let listener = bind(&options.paths)?;
    let asked = kept::again(listener.as_fd())?;
    server.answer(listener, http);
    let quiet: Report = Arc::new(|_| Ok(()));
    let opening = spawn(&store, |store| async move { open_until_all_are(&store, &quiet).await });
    tokio::select! {
        _opened = opening => {}
        () = tokio::time::sleep(OPENING) => {}
        () = signals.end.next() => return Ok(()),
    }
    let records = store.records.lock().await;
    store.ready.send_replace(true);
    spawn(&store, |store| async move { store.sweep().await });
    spawn(&store, Store::take_carried_tar_splits);
    tokio::task::block_in_place(|| store.share_again(&records));
    drop(records);
    let images = store.list().await;
    let not_served = images.iter().filter(|image| !image.served).count();
    let words = ready(&Ready { images: images.len(), not_served });
    let mut said = keeper.listen()?;
    hand_over(options, &mut server, asked, (keeper, words.clone()))?;
    let kept = Arc::clone(&server.kept);
    tokio::spawn(async move {
        kept::tell_waiting(&mut said, &words, || ()).await;
        kept::goes_on_alone(said, kept).await;
    });
    Ok(server.live(&mut signals).await?)
}

/// How the kernel is answered, by each server in the same way.
pub(super) const FRONTEND: Fuse = Fuse(Options { list_trusted: false, nfs_export: false });

/// Gives the keeper what another process needs to go on. Where the kernel is too old for that, the store is not kept.
fn hand_over(
    options: &ServeOptions,
    server: &mut Server<Store>,
    listener: OwnedFd,
    (keeper, words): (&Keeper, Words),
) -> Result<(), Error> {
    match server.attached.keep.take().and_then(|keep| keep()) {
        Some(device) => {
            let identity = server.attached.mounted.identity.clone();
            let description = Description { options: options.clone(), identity, started: server.started };
            let lock = kept::again(server.service().lock.as_fd())?;
            keeper.hold((description, IO_DEADLINE), device, listener, lock)?;
            *server.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper.keeping(0, 0));
        }
        None => tracing::info!(
            "this kernel gives no request out twice (before Linux 6.9): the store's mount ends with its server"
        ),
    }
    keeper.ready(words)?;
    server.attached.mounted.stays = true;
    Keeper::serves();
    Ok(())
}

/// The store, as far as podman sees it without its mount.
async fn begun(options: &ServeOptions, lock: Lock) -> Result<Arc<Store>, Error> {
    let has_layers = options.layers.is_some();
    let make = move |paths: Paths, cache, wants| {
        let store = Store::new(paths, cache, wants, lock)?;
        if has_layers { store.make_layers_place().map(|()| store) } else { Ok(store) }
    };
    let store = made(options, make)?;
    begin(&store, options, LISTS_PATIENCE, |_| true).await?;
    Ok(store)
}

/// The store of a server, which `make` makes.
pub(super) fn made(
    options: &ServeOptions,
    make: impl FnOnce(Paths, Cache, Option<Wants>) -> Result<Store, Error> + Send + 'static,
) -> Result<Arc<Store>, Error> {
    let cache = Cache::open(&options.cache_dir, options.cache_size);
    let (wants, wanted) = mpsc::unbounded_channel();
    let wants = Some(wants).filter(|_| options.guesses);
    let place = CachePlace { dir: options.cache_dir.clone(), size: options.cache_size };
    let readers = Readers::new(place, options.log.clone());
    let new = move |paths: &Paths| Ok(make(paths.clone(), cache, wants)?.with_readers(readers));
    let store = Arc::new(answered(&options.paths, new)?);
    if options.layers.is_some() || options.paths.layers().is_symlink() {
        match &options.layers {
            Some(layers) => Layers::answer(&store, layers.clone()),
            None => store.trees.answer_nothing(),
        }
        // Nobody else has them yet.
        let records = store.records.try_lock();
        records.iter().for_each(|records| {
            store.trees.show(records);
            store.show_pulled(records);
        });
    }
    spawn(&store, |store| async move { store.join_layers(wanted).await });
    Ok(store)
}

pub(super) fn spawn<F: Future<Output = ()> + Send + 'static>(
    store: &Arc<Store>,
    work: impl FnOnce(Arc<Store>) -> F,
) -> JoinHandle<()> {
    tokio::spawn(work(Arc::clone(store)))
}

/// Lets podman see what the store holds, also what commands have changed while no server ran. Layers go that no image has any
/// more and podman does not stand on, if that is `due`. Who holds podman's locks keeps the lists from being changed, and nothing from being served.
pub(super) async fn begin(
    store: &Arc<Store>,
    options: &ServeOptions,
    patience: Duration,
    due: impl Fn(&Digest) -> bool,
) -> Result<(), Error> {
    let mut records = store.records.lock().await;
    // Whatever comes of the rest: no layer goes that a podman needs which is known of now.
    records.know_podman(&options.podman);
    let mut changed = records_now(store, options, &records);
    let begun = tokio::task::block_in_place(|| {
        let _locks = store.drop_layers(&mut changed, due);
        store.commit_within(&mut records, changed, patience)
    });
    match begun {
        Err(error @ Error::PodmanLock { .. }) => {
            tracing::warn!(error = error.chain(), "podman's lists of the store are not changed yet; it is tried again");
            let options = options.clone();
            spawn(store, |store| async move { publish_later(&store, &options).await });
        }
        begun => begun?,
    }
    files::remove_other_tar_splits(&store.paths, &records);
    Ok(())
}

/// What the records are from this start on.
fn records_now(store: &Store, options: &ServeOptions, records: &Records) -> Records {
    let mut changed = records.clone();
    changed.cache = Some(CachePlace { dir: options.cache_dir.clone(), size: options.cache_size });
    // One whose file is gone can be had again.
    for layer in changed.layers.iter_mut().filter(|layer| !store.paths.tar_split(&layer.id).exists()) {
        layer.tar = None;
    }
    changed
}

/// Layers that nobody uses are left to the sweep: podman may have been told of them since.
async fn publish_later(store: &Arc<Store>, options: &ServeOptions) {
    let mut pause = FIRST_RETRY;
    loop {
        tokio::time::sleep(pause).await;
        let mut records = store.records.lock().await;
        let changed = records_now(store, options, &records);
        let published = tokio::task::block_in_place(|| store.commit_within(&mut records, changed, Duration::ZERO));
        match published {
            Ok(()) => return tracing::info!("podman's lists of the store are what they should be"),
            Err(error) => tracing::debug!(error = error.chain(), "podman's lists of the store are not changed yet"),
        }
        pause = pause.saturating_mul(2).min(LAST_RETRY);
    }
}

/// Comes back after the first round, and goes on by itself until all are open.
pub(super) async fn open_until_all_are(store: &Arc<Store>, report: &Report) {
    if store.open_all(report).await {
        return;
    }
    let (store, report) = (Arc::clone(store), Arc::clone(report));
    tokio::spawn(async move {
        let mut pause = FIRST_RETRY;
        loop {
            tokio::time::sleep(pause).await;
            if store.open_all(&report).await {
                return;
            }
            pause = pause.saturating_mul(2).min(LAST_RETRY);
        }
    });
}

fn bind(paths: &Paths) -> Result<UnixListener, Error> {
    let path = paths.state.join(SOCKET);
    let failed = |source| Error::File { path: path.clone(), source };
    let state = OwnDir::open(&paths.state).map_err(failed)?;
    state.remove_known(SOCKET, EntryKind::Socket).map_err(failed)?;
    serve::control::bind(&short_path(state.as_fd()).join(SOCKET)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_has_the_store_is_no_server() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(&dir.path().join("s"), None);
        paths.create().unwrap();
        let held = lock(&paths, Duration::ZERO).unwrap();
        assert!(matches!(lock(&paths, Duration::ZERO), Err(Error::Taken { .. })));
        let _server = bind(&paths).unwrap();
        assert!(matches!(lock(&paths, PATIENCE), Err(Error::Served { .. })));
        drop(held);
        assert!(lock(&paths, Duration::ZERO).is_ok());
    }
}
