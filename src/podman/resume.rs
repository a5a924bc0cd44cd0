//! Goes on with a store that another process has served until it died, or serves until this one is ready.
//!
//! ```text
//! keeper: handed ─> records ─> open what the cache has ─> ready ─> go ─> records, once more ─> answers the kernel ─> what was left half, shares ─> ...
//!                              nothing is changed: another process may still serve   └── nobody else does anything any more
//! ```
//!
//! What the kernel knows must stay what it is. The records say which layer has which number, and what its tree was.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use super::commands::answered;
use super::lock::Lock;
use super::records::Records;
use super::serve::{Description, FRONTEND, ServeOptions, begin, made, open_until_all_are, spawn};
use super::stubs::Stubs;
use super::{Error, Store, files};
use crate::fs::fuse;
use crate::image::Report;
use crate::kernel::mounts::Device;
use crate::serve::frontend::Mounted;
use crate::serve::kept::{self, Handed, Said};
use crate::serve::listen::Listening;
use crate::serve::server::{self, Resumed, Server};
use crate::serve::signals::ServerSignals;
use crate::serve::{self, Keeper, Words, background};

/// How long all readers wait for layers whose indexes the cache has, and for others that the kernel knows. Those answer EIO until they are open.
const KNOWN: Duration = Duration::from_secs(60);
const OTHERS: Duration = Duration::from_secs(2);

/// Goes on with what another process has mounted.
///
/// # Errors
/// Where it cannot, and the mount stays as it is; or serving fails.
pub fn resume(keeper: &Keeper) -> Result<(), Error> {
    background::leave_terminal();
    let Handed { description, device, listener, lock, beside } = keeper.handed::<Description>()?;
    let (log, file) = (description.options.log.clone(), description.options.paths.log());
    let prepare = || Ok((Lock::handed(lock), file));
    server::run(&log, prepare, |lock, signals| go_on(description, lock, (device, listener), signals, (keeper, beside)))
}

async fn go_on(
    Description { options, identity, started }: Description,
    lock: Lock,
    (device, listener): (OwnedFd, UnixListener),
    mut signals: ServerSignals,
    (keeper, beside): (&Keeper, bool),
) -> Result<(), Error> {
    let mut said = keeper.listen()?;
    let store = made(&options, |paths, cache, wants| Store::handed(paths, cache, wants, lock))?;
    fuse::ask_kernel(&store.trees.forest(), device.as_fd()).map_err(|source| serve::Error::Runtime { source })?;
    open_what_can_be(&store).await;
    // One that has crashed cannot go on with more. One that lives can.
    if beside && store.misses_some().await {
        return Err(Error::CannotFollow);
    }
    keeper.ready(Words::default())?;
    let Some(Said::Go(go)) = said.recv().await else { return Err(serve::Error::Interrupted.into()) };
    Keeper::serves();
    let claimed = kept::claim(&listener);
    claimed.unwrap_or_else(|error| tracing::debug!(%error, "the control socket names another process"));
    read_again(&store, identity.device).await?;
    let mounted = Mounted { dir: options.paths.mount(), identity, stays: true };
    let resumed = Resumed { mounted, device, started, kept: keeper.keeping(go.before, go.upgrades) };
    let mut server = Server::resume(Arc::clone(&store), store.trees.forest(), &FRONTEND, resumed)?;
    server.become_usable().await?;
    tracing::warn!(before = go.before, why = go.why, "goes on with the store of another process");
    let http = Listening::asked_for(options.metrics_listen.as_ref());
    let http = http.inspect_err(|error| tracing::warn!(error = error.chain(), "no metrics are served"));
    server.answer(listener, http.ok().flatten());
    tokio::spawn(kept::goes_on_alone(said, Arc::clone(&server.kept)));
    take_over(&store, &options).await;
    Ok(server.live(&mut signals).await?)
}

/// Opens what can be opened before too long.
async fn open_what_can_be(store: &Arc<Store>) {
    let quiet: Report = Arc::new(|_| Ok(()));
    if tokio::time::timeout(KNOWN, store.open_known()).await.is_err() {
        tracing::warn!(seconds = KNOWN.as_secs(), "some layers are not open yet, although their indexes are cached");
    }
    // Where nobody uses what is closed, nobody has to wait.
    if store.misses_some().await {
        // They go on by themselves.
        let _all = tokio::time::timeout(OTHERS, store.open_all(&quiet)).await;
    }
}

/// The other process may have changed the records since this one has read them. From now on nobody else does.
pub(super) async fn read_again(store: &Arc<Store>, device: Device) -> Result<(), Error> {
    let now = answered(&store.paths, |paths| Records::read(&paths.records()))?;
    let is_changed = {
        let mut records = store.records.lock().await;
        let is_changed = *records != now;
        *records = now;
        // From now on they are written. Nobody has set it before.
        let _first = store.device.set(device);
        is_changed
    };
    if is_changed {
        open_what_can_be(store).await;
    }
    let mut records = store.records.lock().await;
    tokio::task::block_in_place(|| store.keep_known(&mut records));
    store.trees.show(&records);
    store.show_pulled(&records);
    Ok(())
}

impl Store {
    /// Whether the kernel knows a layer that is not open.
    async fn misses_some(&self) -> bool {
        let records = self.records.lock().await;
        let mut closed = records
            .layers
            .iter()
            .chain(&records.left)
            .chain(records.pulled_layers())
            .filter(|layer| !self.trees.is_open(layer.number));
        closed.any(|layer| self.trees.is_remembered(layer.number))
    }

    /// Closes what is not what the records have by that number. What nobody was told of is written down before anybody is.
    fn keep_known(&self, records: &mut Records) {
        let (mut others, mut new) = (Vec::new(), Vec::new());
        for (number, shape) in self.trees.shapes() {
            match records.numbered(number).map(|layer| layer.tree) {
                Some(Some(tree)) if tree == shape => {}
                Some(None) => new.push((number, shape)),
                _ => others.push(number),
            }
        }
        self.trees.close(&others);
        if let Err(error) = self.set_trees(records, new.iter().copied()) {
            tracing::warn!(error = error.chain(), "some layers are not served yet");
            self.trees.close(&new.iter().map(|(number, _)| *number).collect::<Vec<_>>());
        }
    }
}

/// Does what the other process may have left undone, or half, and what goes on beside serving.
async fn take_over(store: &Arc<Store>, options: &ServeOptions) {
    tokio::task::block_in_place(|| {
        files::remove_unfinished(&store.paths);
        match Stubs::below(&store.paths.mount(), None) {
            Ok(stubs) => store.stubs.set_own(stubs),
            Err(error) => tracing::warn!(%error, "podman will be able to do less while no server runs"),
        }
    });
    // What no image has any more waits for the sweep: podman may have read the list just now.
    if let Err(error) = begin(store, options, Duration::ZERO, |_| false).await {
        tracing::warn!(error = error.chain(), "podman's lists of the store may not be what they should be");
    }
    {
        let records = store.records.lock().await;
        tokio::task::block_in_place(|| store.share_on(&records));
        store.ready.send_replace(true);
    }
    spawn(store, |store| async move { store.sweep().await });
    spawn(store, Store::take_carried_tar_splits);
    let quiet: Report = Arc::new(|_| Ok(()));
    spawn(store, |store| async move { open_until_all_are(&store, &quiet).await });
}
