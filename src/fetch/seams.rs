//! Units that the end of a slice cuts in two: one request brings the first bytes, the next one the rest.
//!
//! A cache that keeps blobs in slices fetches a slice twice where two requests want it at once. So requests that others go on behind end with a
//! slice. What they bring of the unit that is cut waits here until the next one is planned.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// How long such bytes are kept where nobody goes on.
const KEPT: Duration = Duration::from_secs(5);

/// The first bytes of a unit, once they came with another request.
pub(super) type Head = oneshot::Receiver<Bytes>;

/// The first bytes of the units of a layer that are cut, by the place in the blob up to which they go.
#[derive(Clone, Default)]
pub(super) struct Seams(Arc<Mutex<HashMap<u64, Head>>>);

/// The duty to bring such bytes. Dropped without them, it tells whoever waits.
pub(super) struct Lender {
    seams: Seams,
    at: u64,
    bytes: Option<oneshot::Sender<Bytes>>,
}

impl Seams {
    pub(super) fn lend(&self, at: u64) -> Lender {
        let (bytes, head) = oneshot::channel();
        self.lock().insert(at, head);
        Lender { seams: self.clone(), at, bytes: Some(bytes) }
    }

    /// The bytes before `at`, for whoever asks for those behind it; for one only.
    pub(super) fn take(&self, at: u64) -> Option<Head> {
        self.lock().remove(&at)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Head>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lender {
    pub(super) fn give(mut self, bytes: Bytes) {
        let _nobody = self.bytes.take().map(|sender| sender.send(bytes));
        let (seams, at) = (self.seams.clone(), self.at);
        let is_left = seams.lock().contains_key(&at);
        if let (true, Ok(runtime)) = (is_left, Handle::try_current()) {
            runtime.spawn(async move {
                tokio::time::sleep(KEPT).await;
                seams.take(at)
            });
        }
    }
}

impl Drop for Lender {
    fn drop(&mut self) {
        if self.bytes.is_some() {
            self.seams.take(self.at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_lent_is_for_the_first_who_comes_in_time() {
        let seams = Seams::default();
        let lender = seams.lend(10);
        let head = seams.take(10).unwrap();
        assert!(seams.take(10).is_none() && seams.take(11).is_none());
        lender.give(Bytes::from_static(b"start"));
        assert_eq!(head.await.unwrap(), "start");

        seams.lend(10).give(Bytes::from_static(b"early"));
        tokio::time::sleep(KEPT / 2).await;
        assert_eq!(seams.take(10).unwrap().await.unwrap(), "early");

        seams.lend(10).give(Bytes::from_static(b"late"));
        tokio::time::sleep(KEPT * 2).await;
        assert!(seams.take(10).is_none());
    }

    #[tokio::test]
    async fn what_does_not_come_is_not_waited_for() {
        let seams = Seams::default();
        let lender = seams.lend(10);
        let head = seams.take(10).unwrap();
        drop(lender);
        assert!(head.await.is_err());
        drop(seams.lend(10));
        assert!(seams.take(10).is_none());
    }
}
