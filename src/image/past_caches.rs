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
pub(crate) fn wrong_bytes<T, E: MayBeWrongBytes>(layer: Digest) -> impl FnOnce(&Result<T, E>) -> bool {
    move |read| {
        let wrong = read.as_ref().err().filter(|error| error.is_wrong_bytes());
        if let Some(error) = wrong {
            tracing::warn!(%layer, error = chain(error), "wrong bytes; reading them once more, past caches");
        }
        wrong.is_some()
    }
}

/// What `read` gives, or what it gives past caches where the first is wrong.
pub(crate) async fn once_more<R, F: Future<Output = R>>(
    is_wrong: impl FnOnce(&R) -> bool,
    mut read: impl FnMut(Freshness) -> F,
) -> R {
    let first = read(Freshness::Any).await;
    if is_wrong(&first) { read(Freshness::PastCaches).await } else { first }
}

/// The same by reads that block.
pub(crate) fn once_more_blocking<R>(is_wrong: impl FnOnce(&R) -> bool, mut read: impl FnMut(Freshness) -> R) -> R {
    let first = read(Freshness::Any);
    if is_wrong(&first) { read(Freshness::PastCaches) } else { first }
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

    #[tokio::test]
    async fn what_is_wrong_is_read_once_more_past_caches_and_no_more() {
        let wrong = |read: &(Freshness, bool)| !read.1;
        for right in [true, false] {
            let expected = if right { Freshness::Any } else { Freshness::PastCaches };
            assert_eq!(once_more(wrong, |freshness| async move { (freshness, right) }).await, (expected, right));
            assert_eq!(once_more_blocking(wrong, |freshness| (freshness, right)), (expected, right));
        }
    }
}
