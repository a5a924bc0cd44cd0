//! Where a layer's compressed bytes come from.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::blob::{ByteRange, ByteSource};
use crate::registry::{self, Blob, Body, Capacity, Freshness, Traffic};

/// What is read at a time of a blob that is here.
const PART: u64 = 1 << 20;

/// The blob in its registry, or here where mounting has read all of it.
#[derive(Clone)]
pub enum Source {
    Blob(Blob),
    /// Its digest was right, so there is no fresher one.
    Held {
        blob: Blob,
        bytes: Arc<dyn ByteSource>,
    },
}

/// Bytes on their way from a [`Source`].
pub(super) enum Stream {
    Body(Body),
    Held { bytes: Arc<dyn ByteSource>, rest: ByteRange, blob: Blob },
}

impl Source {
    pub(super) async fn stream(&self, range: ByteRange, freshness: Freshness) -> Result<Stream, registry::Error> {
        match self {
            Self::Blob(blob) => Ok(Stream::Body(blob.stream(range, freshness).await?)),
            // What is here may be damaged by now: the disk is no registry.
            Self::Held { blob, .. } if freshness == Freshness::PastCaches => {
                Ok(Stream::Body(blob.stream(range, freshness).await?))
            }
            Self::Held { blob, bytes } => {
                Ok(Stream::Held { bytes: Arc::clone(bytes), rest: range, blob: blob.clone() })
            }
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
            Self::Held { .. } => None,
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
            Self::Blob(blob) | Self::Held { blob, .. } => blob.size(),
        }
    }

    /// Whether a request for a part brings all that is before it as well.
    pub(super) fn is_sent_whole(&self) -> bool {
        match self {
            Self::Blob(blob) => blob.is_sent_whole(),
            Self::Held { .. } => false,
        }
    }

    /// Whether its host asks for restraint just now: the few requests that it gets are for readers.
    pub(super) fn is_restrained(&self) -> bool {
        match self {
            Self::Blob(blob) => blob.is_restrained(),
            Self::Held { .. } => false,
        }
    }

    pub(super) fn traffic(&self) -> Traffic {
        match self {
            Self::Blob(blob) | Self::Held { blob, .. } => blob.traffic(),
        }
    }
}

impl Stream {
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, registry::Error>> {
        match self {
            Self::Body(body) => body.next().await,
            Self::Held { rest, .. } if rest.is_empty() => None,
            Self::Held { bytes, rest, blob } => {
                let part = ByteRange { start: rest.start, end: rest.end.min(rest.start.saturating_add(PART)) };
                let held = Arc::clone(bytes);
                match tokio::task::spawn_blocking(move || held.read_at(part)).await {
                    Ok(Ok(read)) => {
                        rest.start = part.end;
                        Some(Ok(read))
                    }
                    // The disk has failed: the registry has it still.
                    _ => match blob.stream(*rest, Freshness::Any).await {
                        Ok(body) => {
                            *self = Self::Body(body);
                            Box::pin(self.next()).await
                        }
                        Err(error) => Some(Err(error)),
                    },
                }
            }
        }
    }
}
