//! A layer of which all has to be read before any of it can be served, and why.

use std::sync::Arc;

use super::here::Here;
use crate::blob::{ByteSource, Digest};
use crate::fetch::{self, Held};
use crate::index::{self, Descriptor, Format};
use crate::registry::{self, Body};

/// A layer of which all has to be read before any of it can be served.
pub(super) struct Pending {
    pub(super) layer: registry::Layer,
    pub(super) reason: Reason,
    /// Why the TOC that the manifest names is not used.
    pub(super) misfit: Option<String>,
    /// All of it, where it was small and its digest was right.
    pub(super) blob: Option<Arc<Here>>,
    /// All of it, where it has begun to come.
    pub(super) body: Option<Body>,
    /// The digest of the unpacked layer, by the image's config.
    pub(super) diff_id: Option<Digest>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It has no table of contents.
    Plain,
    /// It has one that only the blob's digest can vouch for.
    Unvouched(Format),
    /// Whether it has one cannot be seen: its host sends all of it for a part.
    SentWhole,
    /// It was indexed, but can only be unpacked from its start, and what was is not there any more.
    Evicted,
}

impl Pending {
    /// Whether the digest of the unpacked layer tells whether it is right, rather than its table of contents.
    pub(super) fn is_told_by_diff_id(&self) -> bool {
        match self.reason {
            Reason::Plain | Reason::Evicted => true,
            Reason::Unvouched(_) => false,
            Reason::SentWhole => index::named_identity(&descriptor(&self.layer)).is_none(),
        }
    }

    /// Whether the layer was small, so that all of it is here already.
    pub(super) const fn is_here(&self) -> bool {
        self.blob.is_some()
    }

    pub(super) fn source(&self) -> fetch::Source {
        match &self.blob {
            Some(here) => {
                let bytes = Held::new(Arc::clone(here) as Arc<dyn ByteSource>);
                fetch::Source::Held { blob: self.layer.blob.clone(), bytes }
            }
            None => fetch::Source::Blob(self.layer.blob.clone()),
        }
    }
}

pub(crate) fn descriptor(layer: &registry::Layer) -> Descriptor {
    let mut annotations = layer.annotations.clone();
    if let Some(index) = &layer.chunk_index {
        annotations.insert(index::CHUNK_INDEX_LAYER.to_owned(), index.digest.to_string());
    }
    Descriptor { digest: layer.digest, size: layer.size, media_type: layer.media_type.clone(), annotations }
}
