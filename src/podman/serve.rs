//! `crfs store serve`: the one server of a store.
//!
//! ```text
//! lock ─> lists for podman ─> mount(2) at overlay/ ─> open all layers ─> ready ─> ... ─> ENODEV
//!                                                       `── what cannot be opened is tried again, later and later
//! ```
//!
//! It ends as the server of a mount does: when the kernel is done with the mount, or at the second signal. What was killed leaves a dead mount, which its
//! guard takes away (guard.rs), and where that was killed as well the next server.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Store;
use super::apart::Readers;
use super::commands::answered;
use super::guard::Guard;
use super::lock::Lock;
use super::paths::Paths;
use super::records::{CachePlace, Records};
use super::{Error, control, files};
use crate::cache::Cache;
use crate::fs::fuse::Options;
use crate::image::Report;
use crate::kernel::{Target, mounts};
use crate::serve;
use crate::serve::control::SOCKET;
use crate::serve::fuse::Fuse;
use crate::serve::listen::{Listen, Listening};
use crate::serve::options::LogOptions;
use crate::serve::server::{self, Server};
use crate::serve::signals::ServerSignals;
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

/// What a server is asked to be.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    pub paths: Paths,
    pub cache_dir: PathBuf,
    pub cache_size: Option<u64>,
    /// Where podman's own stores are that may use what the store has.
    pub podman: Vec<PathBuf>,
    /// Whether more is fetched than what is read.
    pub guesses: bool,
    pub allow_other: bool,
    /// Where its metrics are served by HTTP.
    pub metrics_listen: Option<Listen>,
    pub log: LogOptions,
}

/// What is ready to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    pub images: usize,
    /// Those of them of which a layer cannot be read yet.
    pub not_served: usize,
    pub pid: u32,
}

/// Serves until the mount ends. `ready` is called once podman can use the store.
///
/// # Errors
/// Where it cannot be mounted, or serving fails.
pub fn serve(options: &ServeOptions, ready: impl FnOnce(&Ready)) -> Result<(), Error> {
    let prepare = || {
        answered(&options.paths, Paths::create)?;
        let lock = lock(&options.paths, PATIENCE)?;
        Ok(((lock, Listening::asked_for(options.metrics_listen.as_ref())?), options.paths.log()))
    };
    server::run(&options.log, prepare, |prepared, signals| run(options, prepared, signals, ready))
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
    ready: impl FnOnce(&Ready),
) -> Result<(), Error> {
    let store = begun(options, lock).await?;
    let dir = options.paths.mount();
    let target = Target { dir: &mounts::usable_point(&dir)?, source: mounts::STORE, allow_other: options.allow_other };
    let fuse = Fuse(Options { list_trusted: false, nfs_export: false });
    let mut server = Server::attach(Arc::clone(&store), store.trees.forest(), &fuse, &target)?;
    // Nobody goes on with it, and what is left open would keep it from ending.
    server.attached.keep = None;
    let usable = tokio::time::timeout(USABLE, server.become_usable()).await;
    usable.map_err(|late| serve::Error::NotReady { dir: dir.clone(), source: late.into() })??;
    let device = server.attached.mounted.identity.device;
    let guard = Guard::start(&options.paths, device, &store.lock);
    let _guard = guard.inspect_err(|error| tracing::warn!(%error, "nobody will clear up after this server"));
    // Nobody has set it before.
    let _first = store.device.set(device);
    server.answer(bind(&options.paths)?, http);
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
    server.attached.mounted.stays = true;
    let images = store.list().await;
    let not_served = images.iter().filter(|image| !image.served).count();
    ready(&Ready { images: images.len(), not_served, pid: std::process::id() });
    Ok(server.live(&mut signals).await?)
}

/// The store, as far as podman sees it without its mount.
async fn begun(options: &ServeOptions, lock: Lock) -> Result<Arc<Store>, Error> {
    let cache = Cache::open(&options.cache_dir, options.cache_size);
    let (wants, wanted) = mpsc::unbounded_channel();
    let wants = Some(wants).filter(|_| options.guesses);
    let place = CachePlace { dir: options.cache_dir.clone(), size: options.cache_size };
    let readers = Readers::new(place, options.log.clone());
    let new = move |paths: &Paths| Ok(Store::new(paths.clone(), cache, wants, lock)?.with_readers(readers));
    let store = Arc::new(answered(&options.paths, new)?);
    spawn(&store, |store| async move { store.join_layers(wanted).await });
    begin(&store, options).await?;
    Ok(store)
}

fn spawn<F: Future<Output = ()> + Send + 'static>(
    store: &Arc<Store>,
    work: impl FnOnce(Arc<Store>) -> F,
) -> JoinHandle<()> {
    tokio::spawn(work(Arc::clone(store)))
}

/// Lets podman see what the store holds, also what commands have changed while no server ran. Layers go that no image has any
/// more and podman does not stand on. Who holds podman's locks keeps the lists from being changed, and nothing from being served.
async fn begin(store: &Arc<Store>, options: &ServeOptions) -> Result<(), Error> {
    let mut records = store.records.lock().await;
    // Whatever comes of the rest: no layer goes that a podman needs which is known of now.
    records.know_podman(&options.podman);
    let mut changed = records_now(store, options, &records);
    let begun = tokio::task::block_in_place(|| {
        let _locks = store.drop_layers(&mut changed, |_| true);
        store.commit_within(&mut records, changed, LISTS_PATIENCE)
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
async fn open_until_all_are(store: &Arc<Store>, report: &Report) {
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
