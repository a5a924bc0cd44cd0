//! Opens one layer: its index from the cache or made now, and its contents, ready to be read.

use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;

use super::Error;
use crate::blob::{ByteSource, SourceError};
use crate::cache::Cache;
use crate::fetch::{self, Reindex};
use crate::index::{self, Descriptor, Identity, LayerKey, Opened, StoredIndex, Summary, Trust};
use crate::registry::{self, Client, ImageRef, PastCaches};

/// The descriptor annotation by which a layer of a TOC image names the layer that it is the TOC of.
const TOC_OF: &str = "containerd.io/snapshot/stargz/layer.digest";

/// What the tag of a TOC image adds to that of its image.
const TOC_TAG: &str = "-esgztoc";

/// A layer that can be read.
pub struct OpenLayer {
    pub layer: registry::Layer,
    pub trust: Trust,
    pub contents: Arc<fetch::Layer>,
    /// The blob was read whole to open it, so that nothing is left to fetch.
    pub whole: bool,
}

impl OpenLayer {
    #[must_use]
    pub fn summary(&self) -> &Summary {
        self.contents.index().summary()
    }

    /// Whether its contents are fetched when they are read.
    #[must_use]
    pub fn is_lazy(&self) -> bool {
        !self.whole
    }
}

/// What opening a layer needs. Blocking, so for threads that may.
pub(super) struct Opener {
    pub(super) image: ImageRef,
    pub(super) client: Client,
    pub(super) cache: Cache,
    pub(super) engine: fetch::Engine,
    pub(super) options: index::Options,
    /// Runs what the client does meanwhile.
    pub(super) runtime: Handle,
}

impl Opener {
    pub(super) fn open(self: &Arc<Self>, layer: registry::Layer) -> Result<OpenLayer, Error> {
        let descriptor = descriptor(&layer);
        let identity = index::named_identity(&descriptor)?;
        match self.cached(&descriptor, identity.unwrap_or(Identity::Own)) {
            Some((key, index)) => Ok(self.layer(layer, Some(key), trust(&key), index, None)),
            None => self.fresh(layer, &descriptor),
        }
    }

    /// The index that an earlier mount made. Where the manifest names no TOC digest, only one that the blob's digest vouched for will do.
    fn cached(&self, layer: &Descriptor, identity: Identity) -> Option<(LayerKey, StoredIndex)> {
        let key = LayerKey { blob: layer.digest, identity };
        let source = self.cache.index(&key)?;
        match StoredIndex::open(source, &layer.digest, Some(&key)).and_then(|index| index.verify().map(|()| index)) {
            Ok(index) => Some((key, index)),
            Err(damaged) => {
                tracing::warn!(%damaged, "a cached index is damaged; it is made again");
                self.cache.drop_index(&key);
                None
            }
        }
    }

    fn fresh(self: &Arc<Self>, layer: registry::Layer, descriptor: &Descriptor) -> Result<OpenLayer, Error> {
        let (key, opened) = self.read_toc(&layer, descriptor)?;
        let index = self.stored(descriptor, key.as_ref(), &opened)?;
        Ok(self.layer(layer, key, opened.trust, index, opened.blob))
    }

    /// Makes the index from the layer's TOC, and keeps it where it may be kept.
    fn read_toc(&self, layer: &registry::Layer, descriptor: &Descriptor) -> Result<(Option<LayerKey>, Opened), Error> {
        let external = |layer: &Descriptor| self.external_toc(layer);
        let open = |source: &dyn ByteSource| index::open(descriptor, source, &external, &self.options);
        let opened = match open(&layer.blob) {
            // Where the manifest names a TOC, a layer that shows none has wrong bytes as well.
            Err(error) if error.is_wrong_bytes() || (is_named(descriptor) && error.is_foreign()) => {
                tracing::warn!(layer = %layer.digest, %error, "wrong bytes; reading the layer's TOC once more");
                open(&PastCaches(&layer.blob))?
            }
            opened => opened?,
        };
        let key = opened.identity.map(|identity| LayerKey { blob: layer.digest, identity });
        if let Some(key) = &key {
            self.cache.put_index(key, &opened.encoded);
        }
        Ok((key, opened))
    }

    /// How a layer gets its index again that was damaged in use. In memory from then on: the disk has shown what it is worth.
    fn reindex(self: &Arc<Self>, layer: &registry::Layer, key: Option<LayerKey>) -> Reindex {
        let (opener, layer) = (Arc::clone(self), layer.clone());
        Arc::new(move || {
            key.iter().for_each(|key| opener.cache.drop_index(key));
            match opener.read_toc(&layer, &descriptor(&layer)) {
                Ok((_, opened)) => Some(Arc::new(opened.encoded)),
                Err(error) => {
                    tracing::warn!(error = error.chain(), "the index cannot be made again");
                    None
                }
            }
        })
    }

    /// The index as a file of the cache, so that its tables need no memory; in memory where nothing may or can be kept.
    fn stored(&self, layer: &Descriptor, key: Option<&LayerKey>, opened: &Opened) -> Result<StoredIndex, Error> {
        let kept = key.and_then(|key| StoredIndex::open(self.cache.index(key)?, &layer.digest, Some(key)).ok());
        match kept {
            Some(index) => Ok(index),
            None => {
                let source: Arc<dyn ByteSource> = Arc::new(opened.encoded.clone());
                Ok(StoredIndex::open(source, &layer.digest, key)?)
            }
        }
    }

    fn layer(
        self: &Arc<Self>,
        layer: registry::Layer,
        key: Option<LayerKey>,
        trust: Trust,
        index: StoredIndex,
        blob: Option<Bytes>,
    ) -> OpenLayer {
        let file = self.cache.layer_file(key.as_ref(), &index);
        let whole = blob.is_some();
        let source = match blob {
            Some(bytes) => fetch::Source::Memory { blob: layer.blob.clone(), bytes },
            None => fetch::Source::Blob(layer.blob.clone()),
        };
        let reindex = self.reindex(&layer, key);
        let contents = self.engine.layer(layer.digest, index, source, file, reindex);
        OpenLayer { layer, trust, contents, whole }
    }

    /// The layer of the TOC image that has the TOC of `layer` (stargz-snapshotter's external TOC).
    fn external_toc(&self, layer: &Descriptor) -> Result<Bytes, SourceError> {
        let image = self.runtime.block_on(self.client.resolve_sibling(&self.image, TOC_TAG))?;
        let wanted = layer.digest.to_string();
        let toc = image.layers.into_iter().find(|toc| toc.annotations.get(TOC_OF) == Some(&wanted));
        let toc = toc.ok_or_else(|| format!("{}@{} has no TOC of this layer", image.name, image.digest))?;
        let limit = index::MAX_TOC_STORED;
        if toc.size > limit {
            return Err(format!("its TOC has {} bytes, the limit is {limit}", toc.size).into());
        }
        let bytes = toc.blob.read_at(crate::blob::ByteRange { start: 0, end: toc.size })?;
        Ok(bytes)
    }
}

fn is_named(layer: &Descriptor) -> bool {
    matches!(index::named_identity(layer), Ok(Some(_)))
}

fn descriptor(layer: &registry::Layer) -> Descriptor {
    Descriptor {
        digest: layer.digest,
        size: layer.size,
        media_type: layer.media_type.clone(),
        annotations: layer.annotations.clone(),
    }
}

fn trust(key: &LayerKey) -> Trust {
    match key.identity {
        Identity::Toc(_) => Trust::Manifest,
        Identity::Own => Trust::Blob,
    }
}
