//! Why an image cannot be opened, and what to do about it.

use std::io;
use std::path::PathBuf;

use crate::blob::Digest;
use crate::errors::chain;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Registry(#[from] crate::registry::Error),
    #[error(transparent)]
    Index(#[from] crate::index::Error),
    #[error(transparent)]
    Pass(#[from] crate::fetch::PassError),
    #[error(transparent)]
    Damaged(#[from] crate::index::Damaged),
    #[error(transparent)]
    Tree(#[from] crate::fs::tree::Error),
    #[error("layer {layer}, which has the most of them: the names, links and xattrs of all layers together")]
    Memory { layer: Digest, source: crate::budget::Exceeded },
    #[error(
        "{name:?} names no registry, and none that registries.conf has in unqualified-search-registries gives it: {failed}"
    )]
    NoCandidate { name: String, failed: String },
    #[error("the image has no layer {wanted}; it has {count}, the lowest is 0")]
    NoSuchLayer { wanted: String, count: usize },
    #[error(
        "layer {layer} can only be unpacked from its start, so it has to be kept unpacked while it is mounted: the cache has no room for its \
         {needed} bytes; give crfs a larger --cache-size, or a --cache-dir with that much space"
    )]
    CannotKeep { layer: Digest, needed: u64 },
    #[error(
        "layer {layer}: the cache would not keep its index; give crfs a --cache-dir that can be written and has room"
    )]
    NotKept { layer: Digest },
    #[error("layer {layer}: its index cannot be taken over from the process that has read the layer")]
    Handed { layer: Digest, source: io::Error },
    /// Another process has tried.
    #[error("{message}")]
    Reported { message: String },
    #[error("a tar-split cannot be written in {}", dir.display())]
    TarSplit { dir: PathBuf, source: io::Error },
    #[error("{} cannot be written", path.display())]
    Archive { path: PathBuf, source: io::Error },
    #[error("layer {layer}: its zTOC has {size} bytes, the limit is {limit}")]
    ZtocTooLarge { layer: Digest, size: u64, limit: u64 },
    #[error(
        "layer {layer}: the image's config, which has the digest of its tar, {why}; mount again, or push the image again"
    )]
    NoConfig { layer: Digest, why: crate::image::config::Unusable },
    #[error("the image's config {why}; push the image again")]
    OtherLayers { why: crate::image::config::Unusable },
    #[error(
        "{image} is another image by now ({found}), and the manifest of the one that is mounted ({digest}) is not in the cache any more"
    )]
    OtherImage { image: String, digest: Digest, found: Digest },
    #[error("layer {layer} has no table of contents and no index: it can only be read whole")]
    NotLazy { layer: Digest },
    #[error("layer {layer} could not be opened")]
    LayerTask { layer: Digest, source: crate::threads::Lost },
    #[error("the layers could not be merged to one tree")]
    Merge { source: crate::threads::Lost },
    #[error(transparent)]
    Path(#[from] crate::fs::view::ResolveError),
    #[error("{path}: there is no such file in the image")]
    NoSuchPath { path: String },
    #[error("{path} is a directory")]
    IsADirectory { path: String },
    #[error("{path} is not a regular file")]
    NotAFile { path: String },
    #[error(transparent)]
    Read(#[from] crate::fetch::Error),
    #[error("the cache {} cannot be used", dir.display())]
    Cache { dir: PathBuf, source: io::Error },
    #[error("cannot write the output")]
    Output { source: io::Error },
    #[error(transparent)]
    Ended(#[from] crate::threads::Ended),
    #[error("the runtime cannot be started")]
    Runtime { source: io::Error },
}

impl Error {
    /// The message and its causes, on one line.
    #[must_use]
    pub fn chain(&self) -> String {
        chain(self)
    }
}
