//! A layer's blob, as podman reads it to push the layer: fetched whole, and given out once its digest was right.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex as AsyncMutex;

use super::Layers;
use crate::blob::{ByteRange, ByteSource as _, Digest};
use crate::cache::{Cache, Spool};
use crate::errors::chain;
use crate::podman::Store;
use crate::registry::{self, Freshness};
use crate::threads::{self, Work};

/// How long it is kept after it was read.
const KEPT: Duration = Duration::from_secs(30);

/// How long it is remembered that a blob could not be had: READs that wait for the same do not fetch it once more each.
const FAILED: Duration = Duration::from_secs(10);

/// Blobs that somebody reads, by the numbers of their layers.
#[derive(Default)]
pub(super) struct Blobs(Mutex<HashMap<u32, Arc<AsyncMutex<Blob>>>>);

#[derive(Default)]
struct Blob {
    whole: Option<Arc<Spool>>,
    /// When it could not be had.
    failed: Option<Instant>,
    /// How often it was read, so that it is known when nobody reads it any more.
    reads: u64,
}

impl Blobs {
    fn of(&self, layer: u32) -> Arc<AsyncMutex<Blob>> {
        Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(layer).or_default())
    }

    /// Forgets those of other layers.
    pub(super) fn keep(&self, layers: &HashSet<u32>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|layer, _| layers.contains(layer));
    }
}

impl Layers {
    /// A little more than what the registry may take, so that its own error is the one that is told.
    fn patience(&self) -> Duration {
        let deadline = self.options.source.io_deadline;
        deadline.saturating_add(deadline / 16)
    }

    pub(super) async fn read_blob(self: Arc<Self>, layer: u32, offset: u64, size: u32) -> Option<Bytes> {
        let store = self.store.upgrade()?;
        let one = self.blobs.of(layer);
        let whole = {
            let mut blob = one.lock().await;
            blob.reads = blob.reads.wrapping_add(1);
            match &blob.whole {
                Some(whole) => Arc::clone(whole),
                None if blob.failed.is_some_and(|failed| failed.elapsed() < FAILED) => return None,
                None => {
                    let whole = store.whole_blob(layer, self.patience()).await;
                    blob.failed = whole.is_none().then(Instant::now);
                    let whole = whole?;
                    blob.whole = Some(Arc::clone(&whole));
                    tokio::spawn(give_back(Arc::clone(&one)));
                    whole
                }
            }
        };
        let read = move || {
            let end = offset.saturating_add(size.into()).min(whole.size());
            whole.read_at(ByteRange { start: offset.min(end), end })
        };
        threads::run(Work::Local, read).await.ok()?.ok()
    }
}

/// Lets go of a blob once nobody has read it for a while.
async fn give_back(one: Arc<AsyncMutex<Blob>>) {
    let mut seen = None;
    loop {
        tokio::time::sleep(KEPT).await;
        let mut blob = one.lock().await;
        if seen.replace(blob.reads) == Some(blob.reads) {
            blob.whole = None;
            return;
        }
    }
}

impl Store {
    /// All of a layer's blob, with the right digest. `None`, said in the log, where it cannot be had: the cache has no room for it, or nothing of it
    /// has come for `patience`.
    async fn whole_blob(&self, number: u32, patience: Duration) -> Option<Arc<Spool>> {
        let layer = self.trees.planted().get(&number)?.layer.layer.clone();
        for freshness in [Freshness::Any, Freshness::PastCaches] {
            match fetched(&layer, self.common.cache(), freshness, patience).await {
                Ok((whole, digest)) if digest == layer.digest => return Some(Arc::new(whole)),
                Ok((_, digest)) => {
                    tracing::warn!(layer = %layer.digest, found = %digest, "wrong bytes of a blob that podman reads")
                }
                Err(error) => {
                    tracing::warn!(layer = %layer.digest, error = chain(&*error), "podman cannot read the blob of a layer");
                    return None;
                }
            }
        }
        None
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn fetched(
    layer: &registry::Layer,
    cache: &Cache,
    freshness: Freshness,
    patience: Duration,
) -> Result<(Spool, Digest), Failure> {
    let (mut spool, mut hash) = (cache.spool()?, Sha256::new());
    let range = ByteRange { start: 0, end: layer.size };
    let mut body = in_time(patience, layer.blob.stream(range, freshness)).await??.only(range);
    while let Some(part) = in_time(patience, body.next()).await? {
        let part = part?;
        let append = move || {
            hash.update(&part);
            let appended = spool.append(&part);
            (appended, spool, hash)
        };
        let appended;
        (appended, spool, hash) = in_time(patience, threads::run(Work::Local, append)).await??;
        appended?;
    }
    Ok((spool, Digest::from_bytes(hash.finalize().into())))
}

/// Whatever comes within that time: the registry's own limits are shorter, or a disk does not answer.
async fn in_time<T>(patience: Duration, coming: impl Future<Output = T>) -> io::Result<T> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("nothing has moved for {} s", patience.as_secs()));
    tokio::time::timeout(patience, coming).await.map_err(|_| late())
}
