//! Why bytes cannot be had.

use std::sync::Arc;
use std::time::Duration;

use crate::blob::{ByteRange, Digest};
use crate::index::Damaged;
use crate::registry;

/// Why bytes of a layer cannot be had. Whatever it is, a reader sees EIO; every waiting reader gets the same error, so it can be cloned.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("{source}")]
    Registry { layer: Digest, source: Arc<registry::Error> },
    /// Also the second time, past all caches on the way.
    #[error(
        "layer {layer}: the registry's {compressed} do not decode to the contents that the table of contents has digests for; \
         the blob there is damaged, push or mirror it again"
    )]
    WrongBytes { layer: Digest, compressed: ByteRange },
    #[error("layer {layer}: the index has nothing for {range} of the layer's contents")]
    NotInIndex { layer: Digest, range: ByteRange },
    #[error(transparent)]
    Index(Arc<Damaged>),
    #[error("layer {layer}: nothing came for {waited:?}, and earlier requests are stuck as well")]
    Stuck { layer: Digest, waited: Duration },
    #[error("layer {layer}: the cache's disk has not answered for {waited:?}")]
    CacheStopped { layer: Digest, waited: Duration },
    #[error(
        "layer {layer}: no room for {needed} bytes that can only be verified together: the cache would not have them, and they are \
         too many for memory; give crfs a --cache-dir with that much space"
    )]
    NoRoom { layer: Digest, needed: u64 },
    #[error("the fetch was interrupted; read again")]
    Interrupted,
}

impl Error {
    /// By which it is counted.
    pub(super) fn cause(&self) -> &'static str {
        match self {
            Self::Registry { .. } => "registry",
            Self::WrongBytes { .. } => "wrong-bytes",
            Self::NotInIndex { .. } | Self::Index(_) => "index",
            Self::Stuck { .. } => "stuck",
            Self::CacheStopped { .. } => "cache-stopped",
            Self::NoRoom { .. } => "no-room",
            Self::Interrupted => "interrupted",
        }
    }

    /// Whether the registry would not give the bytes, rather than gave wrong ones: it may another time.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Registry { .. } | Self::Stuck { .. } | Self::CacheStopped { .. } | Self::Interrupted)
    }

    /// Whether it is no answer of the registry's, such as that it has no such blob.
    pub(super) fn may_pass_soon(&self) -> bool {
        self.is_deadline() || matches!(self, Self::Interrupted)
    }

    /// Whether the registry may have other bytes one day: it can have no other index, and this host no more room by itself.
    pub(super) fn may_be_mended(&self) -> bool {
        self.may_pass() || matches!(self, Self::WrongBytes { .. })
    }

    /// Whether nothing came within the deadline, so that trying again at once would only wait once more.
    pub(super) fn is_deadline(&self) -> bool {
        match self {
            Self::Stuck { .. } | Self::CacheStopped { .. } => true,
            Self::Registry { source, .. } => source.is_unreachable(),
            _ => false,
        }
    }
}

impl From<Damaged> for Error {
    fn from(damaged: Damaged) -> Self {
        Self::Index(Arc::new(damaged))
    }
}
