//! Where a layer's compressed bytes come from.

use bytes::Bytes;

use crate::blob::{ByteRange, ByteSource};
use crate::registry::{self, Blob, Body, Freshness, Traffic};

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
