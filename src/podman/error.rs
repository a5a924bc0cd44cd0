//! Why something about a store failed, and what to do about it.

use std::io;
use std::path::PathBuf;

use crate::blob::Digest;
use crate::errors::chain;
use crate::image::config::Unusable;
use crate::registry::list;
use crate::{image, kernel, serve};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the store's directory {} cannot be used; give another with --root", path.display())]
    Place { path: PathBuf, source: io::Error },
    #[error("{} cannot be understood: it is not of this version of crfs, or damaged", path.display())]
    Records { path: PathBuf, source: serde_json::Error },
    #[error("{} has been locked for {seconds} s, by podman or another tool; end that, and try again", path.display())]
    PodmanLock { path: PathBuf, seconds: u64 },
    #[error(
        "another crfs has the store {} and does not answer; let its command end (such as `crfs store add --full`), or give the --state that its server has, and try again", root.display()
    )]
    Taken { root: PathBuf },
    #[error("the store {} is served already", root.display())]
    Served { root: PathBuf },
    #[error(
        "{} has a list that crfs has not made ({}), as a store of podman's own has; give the store of crfs a directory of its own", root.display(), list.display()
    )]
    NotAStore { root: PathBuf, list: PathBuf },
    #[error("{message}")]
    Reported { message: String },
    #[error("the server of the store, whose log is {}", log.display())]
    Server { log: PathBuf, source: serve::Unanswered },

    #[error("{image}: its config {why}; add it again, or push it again")]
    NoConfig { image: String, why: Unusable },
    #[error("{image}: its config is refused: {reason}")]
    Config { image: String, reason: String },
    #[error("{image}: {text:?} is no name for podman ({reason}); give it one with --name")]
    Name { image: String, text: String, reason: String },
    #[error("{image}: layer {number} ({layer}) cannot be served")]
    Layer { image: String, number: usize, layer: Digest, source: Box<image::Error> },

    #[error("{reference} names no image of a registry by its digest, and so its layers cannot be held")]
    NotHeld { reference: String },
    #[error(
        "layer {layer} is not what containers were shown: when none runs, end the store's server and start it again"
    )]
    OtherTree { layer: Digest },
    #[error("it cannot open all layers that are in use: see the log; the server that there is goes on")]
    CannotFollow,
    #[error("{image}: the process that reads its layers cannot be started, or listened to")]
    Reader { image: String, source: io::Error },
    #[error("{image}: reading its layers {end}; no other image is touched by that")]
    Reading { image: String, end: String },

    #[error(
        "{image}: the store has that image ({}) already as {name}, with layers of other blobs; `crfs store rm` that first", id.hex()
    )]
    OtherLayers { image: String, id: Digest, name: String },
    #[error(
        "{image}: the store has that image ({}) already as {name}, of the same blobs, and what vouched for their contents does not any more \
         (docs/trust.md); `crfs store rm` that first", id.hex()
    )]
    OtherVouchers { image: String, id: Digest, name: String },

    #[error("the store has no image {name:?}; `crfs store ls` lists them")]
    NoImage { name: String },
    #[error("{name:?} is more than one image: {}", list(ids))]
    Ambiguous { name: String, ids: Vec<String> },
    #[error("{image} is used by {user}; remove that first (podman rm, podman rmi)")]
    InUse { image: String, user: String },
    #[error("{} is not of the form that podman writes, so nobody knows what uses the image", path.display())]
    Podman { path: PathBuf, source: serde_json::Error },

    #[error("the store cannot be shared with the user {name}")]
    User { name: String, source: io::Error },
    #[error("the store cannot be cloned to {}", dir.display())]
    Clone { dir: PathBuf, source: io::Error },
    #[error(
        "the store cannot be cloned to {}: this kernel cannot map the owners of a FUSE mount (Linux 6.12 can); let the user run a store of their own", dir.display()
    )]
    NoMapping { dir: PathBuf },
    #[error(
        "the store {} has layers for its own user's `podman pull` alone (--layers): it is shared with nobody; let the user run a store of their own, or start its server without --layers", root.display()
    )]
    LayersAreOwn { root: PathBuf },
    #[error("a user namespace cannot be made")]
    Namespace { source: io::Error },

    #[error(transparent)]
    Image(Box<image::Error>),
    #[error(transparent)]
    Serve(Box<serve::Error>),
}

impl From<image::Error> for Error {
    fn from(error: image::Error) -> Self {
        Self::Image(Box::new(error))
    }
}

impl From<serve::Error> for Error {
    fn from(error: serve::Error) -> Self {
        Self::Serve(Box::new(error))
    }
}

impl From<kernel::Error> for Error {
    fn from(error: kernel::Error) -> Self {
        serve::Error::from(error).into()
    }
}

impl Error {
    /// The message and its causes, on one line.
    #[must_use]
    pub fn chain(&self) -> String {
        chain(self)
    }
}
