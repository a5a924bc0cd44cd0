//! containerd's snapshotter: images whose layers are read while they are used, and not unpacked.
//!
//! ```text
//! containerd ── gRPC (grpc.rs, proto.rs) ──> api.rs ──> snapshots.rs ──> table.rs      ROOT/snapshots.redb: what there is
//!                                                            │           dirs.rs       ROOT/snapshots/<id>: what is written, or was unpacked
//!                                                            └─────────> pool.rs       asks the server of all layers, a store at ROOT/layers
//! ```
//!
//! This process may die at any moment: what it has answered is in the table, and what containers read comes from the server of the layers, which is
//! another process with a keeper of its own.

mod api;
pub mod containerd;
mod dirs;
mod error;
mod filter;
mod grpc;
mod labels;
mod pool;
mod proto;
mod snapshots;
mod table;

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::error::Error;

use self::api::Api;
use self::dirs::Dirs;
use self::pool::Pool;
use self::snapshots::Snapshots;
use self::table::Table;
use crate::podman::ServeOptions as LayerServer;
use crate::serve::log;
use crate::serve::options::LogOptions;
use crate::serve::signals::{self, EndSignals};
use crate::sys::trusted;
use crate::threads::{self, Work};

/// What a snapshotter is asked to be.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Where containerd asks. Absolute.
    pub address: PathBuf,
    pub root: PathBuf,
    /// The server of the layers.
    pub layers: LayerServer,
    pub log: LogOptions,
}

/// Where the server of the layers has its store.
#[must_use]
pub fn layers_dir(root: &Path) -> PathBuf {
    root.join("layers")
}

/// Answers containerd until it is told to end. `ready` is called once it answers.
///
/// # Errors
/// Where it cannot.
pub fn serve(options: ServeOptions, ready: impl FnOnce()) -> Result<(), Error> {
    signals::block_meaningless();
    let failed = |source| crate::serve::Error::Runtime { source };
    let _log = log::start_server(&options.log, None).map_err(failed)?;
    threads::start().map_err(failed)?;
    let snapshots = Arc::new(prepare(&options)?);
    let listener = bind(&options.address)?;
    let runtime = threads::runtime().map_err(failed)?;
    let ended = runtime.block_on(async {
        let mut signals = EndSignals::listen().map_err(failed)?;
        let listener = tokio::net::UnixListener::from_std(listener);
        let listener = listener.map_err(|source| Error::Socket { path: options.address.clone(), source })?;
        begin(&snapshots);
        ready();
        tokio::select! {
            () = grpc::answer(listener, Arc::new(Api(snapshots))) => {}
            () = signals.next() => {}
        }
        Ok(())
    });
    drop(runtime);
    ended
}

fn prepare(options: &ServeOptions) -> Result<Snapshots, Error> {
    let root = &options.root;
    // What overlayfs takes for the end of a directory's name, or of an option.
    if root.as_os_str().as_encoded_bytes().iter().any(|byte| b":,\\".contains(byte)) {
        return Err(Error::Name { path: root.clone() });
    }
    let unusable = |source| Error::Root { path: root.clone(), source };
    if let Some(above) = root.parent() {
        std::fs::create_dir_all(above).map_err(unusable)?;
    }
    dirs::make(root, 0o700).map_err(unusable)?;
    trusted::existing(root).map_err(unusable)?;
    let table = Table::open(&root.join("snapshots.redb"))?;
    let dirs = Dirs::new(root).map_err(unusable)?;
    Ok(Snapshots::new(table, dirs, Pool::new(options.layers.clone())))
}

/// What a process before this one has left undone. Nobody waits for it.
fn begin(snapshots: &Arc<Snapshots>) {
    let own = Arc::clone(snapshots);
    drop(threads::run(Work::Opening, move || {
        own.clean_up();
        if own.has_served() {
            // Whoever mounts tries again, and says what is wrong.
            drop(own.pool.start());
        }
        for (reference, places) in own.unused(false) {
            own.let_go(&reference, &places);
        }
    }));
}

/// Makes the socket, for its owner alone. One at which nobody answers any more is replaced.
fn bind(path: &Path) -> Result<UnixListener, Error> {
    let failed = |source| Error::Socket { path: path.to_owned(), source };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(failed(io::ErrorKind::AlreadyExists.into())),
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(Error::Served { path: path.to_owned() });
        }
        Ok(_) => std::fs::remove_file(path).map_err(failed)?,
        Err(_) => {}
    }
    // Nobody else is to connect before its mode is set.
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    match std::fs::symlink_metadata(&new) {
        // Left by one that was killed.
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(&new).map_err(failed)?,
        Ok(_) => return Err(Error::Socket { path: new, source: io::ErrorKind::AlreadyExists.into() }),
        Err(_) => {}
    }
    let bound = UnixListener::bind(&new).and_then(|listener| {
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        std::fs::rename(&new, path)?;
        Ok(listener)
    });
    bound.map_err(failed)
}

#[cfg(test)]
mod tests;
