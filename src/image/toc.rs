//! Reads a layer's table of contents: in the layer, in another image, or a zTOC.

use bytes::Bytes;

use super::error::Error;
use super::layer::{Opener, Toc};
use super::past_caches::{once_more_blocking, read_all, wrong_bytes};
use crate::blob::{ByteRange, ByteSource, SourceError};
use crate::errors::chain;
use crate::index::{self, Admit, Descriptor, Found, Identity, LayerKey, Opened};
use crate::registry::{self, Freshness, Parts};
use crate::threads::wait;

/// The descriptor annotation by which a layer of a TOC image names the layer that it is the TOC of.
const TOC_OF: &str = "containerd.io/snapshot/stargz/layer.digest";

/// What the tag of a TOC image adds to that of its image.
const TOC_TAG: &str = "-esgztoc";

impl Opener {
    /// Makes the index from a zTOC, and keeps it.
    pub(super) fn read_ztoc(&self, layer: &Descriptor, ztoc: &registry::Layer) -> Result<Opened, Error> {
        let limit = index::MAX_ZTOC;
        if ztoc.size > limit {
            return Err(Error::ZtocTooLarge { layer: layer.digest, size: ztoc.size, limit });
        }
        let all = ByteRange { start: 0, end: ztoc.size };
        // It grows with the layer, as the layer's bytes do.
        let _turn = self.memory().turn(ztoc.size);
        let mut charge = self.memory().charge(ztoc.size).beside_windows(layer.size);
        let covered = charge.cover(ztoc.size, u64::MAX);
        covered.map_err(|source| index::Error::Memory { layer: layer.digest, what: "its zTOC", source })?;
        let opened = once_more_blocking(ztoc.blob.places(), wrong_bytes(layer.digest), |freshness| {
            let read = read_all(ztoc, freshness);
            let bytes = read.map_err(|source| index::Error::Read { layer: ztoc.digest, range: all, source })?;
            index::open_ztoc(layer, ztoc.digest, &bytes, self.memory())
        })?;
        self.cache.put_index(&LayerKey { blob: layer.digest, identity: Identity::Ztoc(ztoc.digest) }, &opened.encoded);
        Ok(opened)
    }

    /// Makes the index from the layer's TOC, and keeps it where it may be kept. Says why that is not the TOC that the manifest
    /// names.
    pub(super) fn read_toc(
        &self,
        layer: &registry::Layer,
        descriptor: &Descriptor,
    ) -> Result<(Toc, Option<String>), Error> {
        match self.read_named_toc(layer, descriptor) {
            // Whoever has rewritten the layer has left its annotations; the blob's own digest is right in any case.
            Err(error) if error.is_misfit() => {
                let misfit = chain(&error);
                tracing::warn!(layer = %layer.digest, misfit, "the manifest names a TOC that is not used");
                Ok((self.read_own_toc(layer, descriptor)?, Some(misfit)))
            }
            toc => Ok((toc?, None)),
        }
    }

    /// Reads the TOC as the manifest names it. Wrong bytes are read once more, past caches.
    fn read_named_toc(&self, layer: &registry::Layer, descriptor: &Descriptor) -> Result<Toc, index::Error> {
        let read = |freshness| in_parts(layer, freshness, |blob| self.open_toc(layer, descriptor, blob, freshness));
        once_more_blocking(layer.blob.places(), wrong_bytes(layer.digest), read)
    }

    /// Reads the TOC of a layer as if the manifest named none.
    pub(super) fn read_own_toc(&self, layer: &registry::Layer, descriptor: &Descriptor) -> Result<Toc, index::Error> {
        in_parts(layer, Freshness::PastCaches, |blob| {
            Ok(self.kept(descriptor, index::open_unnamed(descriptor, blob, &self.options)?))
        })
    }

    /// The index by the TOC of a blob that is here, and has its digest: that which the manifest names, or else its own.
    /// `None`: it has neither.
    pub(super) fn open_held_toc(
        &self,
        of: &registry::Layer,
        layer: &Descriptor,
        blob: &dyn ByteSource,
    ) -> Result<Option<Opened>, Error> {
        match self.open_toc(of, layer, blob, Freshness::Any) {
            Ok(Found::Indexed(opened)) => return Ok(Some(opened)),
            Err(error) if !error.is_misfit() => return Err(error.into()),
            _ => {}
        }
        match index::open_whole(layer, blob, self.memory()) {
            Ok(opened) => {
                self.cache.put_index(&LayerKey { blob: layer.digest, identity: Identity::Own }, &opened.encoded);
                Ok(Some(opened))
            }
            Err(index::Error::NoToc { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn open_toc(
        &self,
        of: &registry::Layer,
        layer: &Descriptor,
        blob: &dyn ByteSource,
        freshness: Freshness,
    ) -> Result<Found, index::Error> {
        let external = |layer: &Descriptor, admit: Admit<'_>| match &of.chunk_index {
            Some(index) => chunk_index_layer(index, freshness, admit),
            None => self.external_toc(layer, freshness, admit),
        };
        Ok(self.kept(layer, index::open(layer, blob, &external, &self.options)?))
    }

    /// Keeps an index that may be kept.
    fn kept(&self, layer: &Descriptor, found: Found) -> Found {
        if let Found::Indexed(Opened { identity: Some(identity), encoded, .. }) = &found {
            self.cache.put_index(&LayerKey { blob: layer.digest, identity: *identity }, encoded);
        }
        found
    }

    /// The layer of the TOC image that has the TOC of `layer` (stargz-snapshotter's external TOC).
    fn external_toc(&self, layer: &Descriptor, freshness: Freshness, admit: Admit<'_>) -> Result<Bytes, SourceError> {
        let (client, image) = (self.client.clone(), self.image.clone());
        let image = wait(&self.runtime, async move { client.resolve_sibling(&image, TOC_TAG).await })??;
        let wanted = layer.digest.to_string();
        let toc = image.layers.into_iter().find(|toc| toc.annotations.get(TOC_OF) == Some(&wanted));
        let toc = toc.ok_or_else(|| format!("{}@{} has no TOC of this layer", image.name, image.digest))?;
        let limit = index::MAX_TOC_STORED;
        if toc.size > limit {
            return Err(format!("its TOC has {} bytes, the limit is {limit}", toc.size).into());
        }
        admit(toc.size)?;
        read_all(&toc, freshness)
    }
}

/// A chunk index that is a layer of its own.
fn chunk_index_layer(index: &registry::Layer, freshness: Freshness, admit: Admit<'_>) -> Result<Bytes, SourceError> {
    let limit = index::MAX_CHUNK_INDEX;
    if index.size > limit {
        return Err(format!("it has {} bytes, the limit is {limit}", index.size).into());
    }
    admit(index.size)?;
    read_all(index, freshness)
}

/// What `open` finds in a blob, of which it reads parts.
fn in_parts(
    layer: &registry::Layer,
    freshness: Freshness,
    open: impl FnOnce(&dyn ByteSource) -> Result<Found, index::Error>,
) -> Result<Toc, index::Error> {
    let parts = Parts::new(&layer.blob, freshness);
    let opened = open(&parts);
    match parts.take_whole() {
        Some(body) => Ok(Toc::SentWhole(body)),
        None => opened.map(Toc::Found),
    }
}
