//! Wrong bytes are read once more, past caches: one on the way may keep what its registry never had.

use bytes::Bytes;

use crate::blob::{ByteRange, ByteSource, Digest, SourceError};
use crate::errors::chain;
use crate::index;
use crate::registry::{self, Freshness, Parts};

/// An error that says whether other bytes came than those that were named.
pub(crate) trait MayBeWrongBytes: std::error::Error {
    fn is_wrong_bytes(&self) -> bool;
}

impl MayBeWrongBytes for index::Error {
    fn is_wrong_bytes(&self) -> bool {
        Self::is_wrong_bytes(self)
    }
}

impl MayBeWrongBytes for super::Error {
    fn is_wrong_bytes(&self) -> bool {
        match self {
            Self::Index(error) => error.is_wrong_bytes(),
            Self::Pass(error) => error.is_wrong_bytes(),
            _ => false,
        }
    }
}

/// Whether a read of a layer has failed by wrong bytes. The log tells so.
pub(crate) fn wrong_bytes<T, E: MayBeWrongBytes>(layer: Digest) -> impl Fn(&Result<T, E>) -> bool {
    move |read| {
        let wrong = read.as_ref().err().filter(|error| error.is_wrong_bytes());
        if let Some(error) = wrong {
            tracing::warn!(%layer, error = chain(error), "wrong bytes; reading them once more, past caches");
        }
        wrong.is_some()
    }
}

/// What `read` gives, or what it gives past caches where the first is wrong: once for each of the `places` that may have it.
pub(crate) async fn once_more<R, F: Future<Output = R>>(
    places: usize,
    is_wrong: impl Fn(&R) -> bool,
    mut read: impl FnMut(Freshness) -> F,
) -> R {
    let mut found = read(Freshness::Any).await;
    for _ in 0..places {
        if !is_wrong(&found) {
            break;
        }
        found = read(Freshness::PastCaches).await;
    }
    found
}

/// The same by reads that block.
pub(crate) fn once_more_blocking<R>(
    places: usize,
    is_wrong: impl Fn(&R) -> bool,
    mut read: impl FnMut(Freshness) -> R,
) -> R {
    let mut found = read(Freshness::Any);
    for _ in 0..places {
        if !is_wrong(&found) {
            break;
        }
        found = read(Freshness::PastCaches);
    }
    found
}

/// All of a blob that is small.
pub(super) fn read_all(of: &registry::Layer, freshness: Freshness) -> Result<Bytes, SourceError> {
    let all = ByteRange { start: 0, end: of.size };
    match freshness {
        Freshness::Any => of.blob.read_at(all),
        Freshness::PastCaches => Parts::new(&of.blob, freshness).read_at(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often something is read that is right the `right`th time, and the last freshness.
    async fn reads(places: usize, right: u32) -> [(u32, Freshness); 2] {
        let wrong = |read: &(u32, Freshness)| read.0 < right;
        let (mut count, mut blocking) = (0, 0);
        let read = |freshness| {
            count += 1;
            std::future::ready((count, freshness))
        };
        let read_blocking = |freshness| {
            blocking += 1;
            (blocking, freshness)
        };
        [once_more(places, wrong, read).await, once_more_blocking(places, wrong, read_blocking)]
    }

    #[tokio::test]
    async fn what_is_wrong_is_read_once_more_of_each_place_and_no_more() {
        assert_eq!(reads(3, 1).await, [(1, Freshness::Any); 2]);
        assert_eq!(reads(1, 2).await, [(2, Freshness::PastCaches); 2]);
        assert_eq!(reads(3, 3).await, [(3, Freshness::PastCaches); 2]);
        assert_eq!(reads(1, 9).await, [(2, Freshness::PastCaches); 2]);
        assert_eq!(reads(3, 9).await, [(4, Freshness::PastCaches); 2]);
    }
}
