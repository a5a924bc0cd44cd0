//! Where a layer's compressed bytes come from.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::blob::{ByteRange, ByteSource};
use crate::registry::{self, Blob, Body, Capacity, Freshness, Sent, Traffic};
use crate::threads::{self, Work};

/// What is read at a time of a blob that is here.
const PART: u64 = 1 << 20;

/// The blob in its registry, or here where mounting has read all of it.
#[derive(Clone)]
pub enum Source {
    Blob(Blob),
    /// Its digest was right, so there is no fresher one.
    Held {
        blob: Blob,
        bytes: Held,
    },
}

/// The bytes of a blob that are here until they are let go. Clones are the same.
#[derive(Clone)]
pub struct Held(Arc<Mutex<Option<Arc<dyn ByteSource>>>>);

impl Held {
    #[must_use]
    pub fn new(bytes: Arc<dyn ByteSource>) -> Self {
        Self(Arc::new(Mutex::new(Some(bytes))))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<dyn ByteSource>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self) -> Option<Arc<dyn ByteSource>> {
        self.lock().clone()
    }
}

/// Bytes on their way from a [`Source`].
pub(super) enum Stream {
    Body(Body),
    Held { bytes: Arc<dyn ByteSource>, rest: ByteRange, blob: Blob },
}

impl Source {
    pub(super) async fn stream(&self, range: ByteRange, freshness: Freshness) -> Result<Sent<Stream>, registry::Error> {
        // What is here may be damaged by now: the disk is no registry.
        if let Some(bytes) = self.held().filter(|_| freshness == Freshness::Any) {
            return Ok(Sent::Part(Stream::Held { bytes, rest: range, blob: self.blob().clone() }));
        }
        Ok(self.blob().stream(range, freshness).await?.map(Stream::Body))
    }

    fn blob(&self) -> &Blob {
        match self {
            Self::Blob(blob) | Self::Held { blob, .. } => blob,
        }
    }

    fn held(&self) -> Option<Arc<dyn ByteSource>> {
        match self {
            Self::Held { bytes, .. } => bytes.get(),
            Self::Blob(_) => None,
        }
    }

    /// Its bytes are not needed here any more: what is read from now on is asked of its registry.
    pub(super) fn let_go(&self) {
        if let Self::Held { bytes, .. } = self {
            bytes.lock().take();
        }
    }

    /// Whether reading costs a round trip.
    pub(super) fn is_remote(&self) -> bool {
        self.held().is_none() && self.blob().is_remote()
    }

    /// What the way to it carries, as measured so far.
    fn capacity(&self) -> Option<Capacity> {
        if self.held().is_some() { None } else { self.blob().capacity() }
    }

    /// Bytes that come in a round trip; 0 until that is known.
    pub(super) fn per_round_trip(&self) -> u64 {
        self.capacity().map_or(0, |capacity| capacity.per_round_trip())
    }

    /// Bytes that come in so much time; 0 until that is known.
    pub(super) fn carries(&self, time: Duration) -> u64 {
        self.capacity().map_or(0, |capacity| capacity.carries(time))
    }

    pub(super) fn round_trip(&self) -> Duration {
        self.capacity().map_or(Duration::ZERO, |capacity| capacity.round_trip)
    }

    /// How many places may have it.
    pub(super) fn places(&self) -> usize {
        self.blob().places()
    }

    /// Bytes of the whole blob.
    pub(super) fn size(&self) -> u64 {
        self.blob().size()
    }

    /// Whether a request for a part brings all that is before it as well.
    pub(super) fn is_sent_whole(&self) -> bool {
        self.is_remote() && self.blob().is_sent_whole()
    }

    /// Whether its host asks for restraint just now: the few requests that it gets are for readers.
    pub(super) fn is_restrained(&self) -> bool {
        self.is_remote() && self.blob().is_restrained()
    }

    pub(super) fn traffic(&self) -> Traffic {
        self.blob().traffic()
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
                match threads::run(Work::Local, move || held.read_at(part)).await {
                    Ok(Ok(read)) => {
                        rest.start = part.end;
                        Some(Ok(read))
                    }
                    // The disk has failed: the registry has it still.
                    _ => match blob.stream(*rest, Freshness::Any).await {
                        Ok(body) => {
                            *self = Self::Body(body.only(*rest));
                            Box::pin(self.next()).await
                        }
                        Err(error) => Some(Err(error)),
                    },
                }
            }
        }
    }
}
