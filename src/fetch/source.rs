//! Where a layer's compressed bytes come from.

use std::time::Duration;

use bytes::Bytes;

use crate::blob::{ByteRange, ByteSource};
use crate::registry::{self, Blob, Body, Capacity, Freshness, Traffic};

/// The blob in its registry, or in memory where mounting has read all of it.
pub enum Source {
    Blob(Blob),
    /// Its digest was right, so there is no fresher one.
    Memory {
        blob: Blob,
        bytes: Bytes,
    },
}

/// Bytes on their way from a [`Source`].
pub(super) enum Stream {
    Body(Body),
    Memory(Option<Bytes>),
}

impl Source {
    pub(super) async fn stream(&self, range: ByteRange, freshness: Freshness) -> Result<Stream, registry::Error> {
        match self {
            Self::Blob(blob) => Ok(Stream::Body(blob.stream(range, freshness).await?)),
            Self::Memory { blob, bytes } => match bytes.read_at(range) {
                Ok(part) => Ok(Stream::Memory(Some(part))),
                Err(_) => Ok(Stream::Body(blob.stream(range, freshness).await?)),
            },
        }
    }

    /// Whether reading costs a round trip.
    pub(super) fn is_remote(&self) -> bool {
        matches!(self, Self::Blob(blob) if blob.is_remote())
    }

    /// What the way to it carries, as measured so far.
    fn capacity(&self) -> Option<Capacity> {
        match self {
            Self::Blob(blob) => blob.capacity(),
            Self::Memory { .. } => None,
        }
    }

    /// Bytes that come in a round trip; 0 until that is known.
    pub(super) fn per_round_trip(&self) -> u64 {
        self.capacity().map_or(0, |capacity| capacity.per_round_trip())
    }

    pub(super) fn round_trip(&self) -> Duration {
        self.capacity().map_or(Duration::ZERO, |capacity| capacity.round_trip)
    }

    /// Bytes of the whole blob.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Blob(blob) | Self::Memory { blob, .. } => blob.size(),
        }
    }

    /// Whether a request for a part brings all that is before it as well.
    pub(super) fn is_sent_whole(&self) -> bool {
        match self {
            Self::Blob(blob) => blob.is_sent_whole(),
            Self::Memory { .. } => false,
        }
    }

    pub(super) fn traffic(&self) -> Traffic {
        match self {
            Self::Blob(blob) | Self::Memory { blob, .. } => blob.traffic(),
        }
    }
}

impl Stream {
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, registry::Error>> {
        match self {
            Self::Body(body) => body.next().await,
            Self::Memory(bytes) => bytes.take().filter(|bytes| !bytes.is_empty()).map(Ok),
        }
    }
}
