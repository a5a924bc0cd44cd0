//! Opens one layer: its index from the cache or made now, and its contents, ready to be read.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;

use super::Error;
use super::here::Here;
use super::pending::{Pending, Reason, descriptor};
use crate::blob::{ByteSource, Digest};
use crate::budget::{Budget, Charge};
use crate::cache::Cache;
use crate::fetch::{self, Held};
use crate::index::{
    self, Descriptor, Entries, Found, Identity, LayerKey, NoTarSplit, Opened, StoredIndex, Summary, TarSplit, Trust,
};
use crate::registry::{self, Body, Client, ImageRef};
use crate::sys::expansion::Allowance;
use crate::threads::{self, Work};

/// Of a layer whose manifest names a TOC, and that has an index of its own.
const OWN_INSTEAD: &str = "it is not looked at: the layer was read whole before";

/// A layer that can be read.
pub struct OpenLayer {
    pub layer: registry::Layer,
    pub trust: Trust,
    /// Under what its contents are kept; `None`: nothing vouches for them.
    pub identity: Option<Identity>,
    pub contents: Arc<fetch::Layer>,
    /// The blob was read whole to open it, so that nothing is left to fetch.
    pub whole: bool,
    /// Why the TOC that the manifest names is not used.
    pub misfit: Option<String>,
    /// Its host has sent all of it when it was asked for a part.
    pub sent_whole: bool,
    /// Why it was read whole before it was ready; `None`: it was not.
    pub(crate) read_for: Option<Reason>,
    /// What was asked for its blob before it was ready, and for its zTOC.
    pub cost: Cost,
    pub beside: Cost,
    /// Its tar-split, where one was made, or why not; whether it can be used is not looked at yet.
    pub tar_split: Option<Result<TarSplit, NoTarSplit>>,
}

/// What something has cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    pub requests: u64,
    pub bytes: u64,
}

impl Cost {
    /// What was asked for a blob until now.
    fn of(layer: &registry::Layer) -> Self {
        let traffic = layer.blob.traffic();
        Self { requests: traffic.requests, bytes: traffic.bytes }
    }
}

/// What is fetched of a layer to read something of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetches {
    /// The blob is here.
    Nothing,
    /// All of it, once: what it holds is kept for as long as it is mounted.
    Kept,
    /// All of it, whenever the cache does not have what is read.
    Whole,
    Part,
}

impl OpenLayer {
    #[must_use]
    pub fn summary(&self) -> &Summary {
        self.contents.index().summary()
    }

    /// The same layer at another place of its image.
    pub(crate) fn again(&self, layer: registry::Layer) -> Self {
        let (contents, misfit) = (Arc::clone(&self.contents), self.misfit.clone());
        let Self { trust, identity, whole, sent_whole, read_for, .. } = *self;
        // It is fetched once.
        let (cost, beside) = (Cost::default(), Cost::default());
        Self { layer, trust, identity, contents, whole, misfit, sent_whole, read_for, cost, beside, tar_split: None }
    }

    /// Bytes that have come for it so far, those of its zTOC among them.
    pub(super) fn fetched(&self) -> u64 {
        self.layer.blob.traffic().bytes.saturating_add(self.beside.bytes)
    }

    /// Whether those of its contents are fetched that are read.
    #[must_use]
    pub fn is_lazy(&self) -> bool {
        self.fetches() == Fetches::Part
    }

    /// What is fetched to read something of it.
    #[must_use]
    pub fn fetches(&self) -> Fetches {
        // An index that is damaged is noticed when something is read.
        let index = self.contents.index();
        match (index.has_huge_unit(), index.is_undivided()) {
            _ if self.whole => Fetches::Nothing,
            (Ok(true), _) => Fetches::Kept,
            (_, Ok(true)) => Fetches::Whole,
            _ => Fetches::Part,
        }
    }
}

/// What opening a layer needs. Blocking, so for threads that may.
pub(super) struct Opener {
    pub(super) image: ImageRef,
    pub(super) client: Client,
    pub(super) cache: Cache,
    pub(super) engine: fetch::Engine,
    pub(super) options: index::Options,
    /// What the layers may unpack to, all together.
    pub(super) allowance: Allowance,
    /// Where tar-splits of layers that are read whole are written, if they are wanted.
    pub(super) tar_splits: Option<PathBuf>,
    /// Runs what the client does meanwhile.
    pub(super) runtime: Handle,
}

/// What is to be done to open a layer.
pub(super) enum Probe {
    /// Nothing more.
    Ready(OpenLayer),
    /// All of it has to be read first.
    NeedsFullRead(Pending),
}

/// A layer whose index is there: all that opening it takes.
pub(super) struct Indexed {
    pub(super) layer: registry::Layer,
    /// Under what its contents are kept; `None`: nothing vouches for them.
    pub(super) key: Option<LayerKey>,
    pub(super) trust: Trust,
    pub(super) index: StoredIndex,
    /// Its blob, where that is here.
    pub(super) held: Option<Arc<dyn ByteSource>>,
    pub(super) ztoc: Option<registry::Layer>,
    /// Why the TOC that the manifest names is not used.
    pub(super) misfit: Option<String>,
}

/// What came of asking for a layer's TOC.
pub(super) enum Toc {
    Found(Found),
    /// All of the blob, from its first byte on.
    SentWhole(Body),
}

impl Opener {
    /// Opens a layer, if that takes no more than a request or two. Blocking.
    ///
    /// `ztoc`: its zTOC, which is used where the layer has no table of contents and was not indexed before.
    pub(super) fn probe(
        self: &Arc<Self>,
        layer: registry::Layer,
        ztoc: Option<registry::Layer>,
    ) -> Result<Probe, Error> {
        if let Some(probe) = self.probe_cached(&layer, ztoc.as_ref())? {
            return Ok(probe);
        }
        let descriptor = descriptor(&layer);
        if let Some(ztoc) = ztoc.filter(|_| index::named_identity(&descriptor).is_none()) {
            match self.read_ztoc(&descriptor, &ztoc) {
                Ok(made) => {
                    let indexed = Indexed { ztoc: Some(ztoc), ..self.indexed(layer, made)? };
                    return Ok(Probe::Ready(self.open(indexed)));
                }
                // As without one.
                Err(error) => {
                    tracing::warn!(layer = %layer.digest, error = error.chain(), "the zTOC of a layer cannot be used");
                }
            }
        }
        self.probe_toc(layer, &descriptor)
    }

    /// The same by what an earlier mount has left in the cache, if it has.
    pub(super) fn probe_cached(
        self: &Arc<Self>,
        layer: &registry::Layer,
        ztoc: Option<&registry::Layer>,
    ) -> Result<Option<Probe>, Error> {
        let descriptor = descriptor(layer);
        let named = index::named_identity(&descriptor);
        let ztoc = ztoc.filter(|_| named.is_none());
        let found = self.cached(&descriptor, named.unwrap_or(Identity::Own));
        let found = found.or_else(|| self.cached(&descriptor, Identity::Ztoc(ztoc?.digest)));
        // What the manifest names may not have fitted.
        let found = found.or_else(|| self.cached(&descriptor, named.map(|_| Identity::Own)?));
        let Some((key, index)) = found else { return Ok(None) };
        let (layer, ztoc, index) = (layer.clone(), ztoc.cloned(), index.within(self.memory())?);
        let is_huge = index.has_huge_unit()?;
        let misfit = named.filter(|_| key.identity == Identity::Own).map(|_| OWN_INSTEAD.to_owned());
        let open = self.open(Indexed { layer, key: Some(key), trust: trust(&key), index, held: None, ztoc, misfit });
        if is_huge && !open.contents.is_kept()? {
            let OpenLayer { layer, misfit, .. } = open;
            let reason = Reason::Evicted;
            return Ok(Some(Probe::NeedsFullRead(Pending {
                layer,
                reason,
                misfit,
                blob: None,
                body: None,
                diff_id: None,
            })));
        }
        Ok(Some(Probe::Ready(open)))
    }

    /// The same by the layer's table of contents, if it has one.
    fn probe_toc(self: &Arc<Self>, layer: registry::Layer, descriptor: &Descriptor) -> Result<Probe, Error> {
        let (toc, misfit) = self.read_toc(&layer, descriptor)?;
        let (reason, blob, body) = match toc {
            Toc::Found(Found::Indexed(made)) => {
                let indexed = Indexed { misfit, ..self.indexed(layer, made)? };
                return Ok(Probe::Ready(self.open(indexed)));
            }
            Toc::Found(Found::Plain { blob }) => {
                let here = blob.and_then(|blob| Here::new(blob, self.memory()).ok());
                (Reason::Plain, here.map(Arc::new), None)
            }
            Toc::Found(Found::Unvouched(format)) => (Reason::Unvouched(format), None, None),
            Toc::SentWhole(body) => (Reason::SentWhole, None, Some(body)),
        };
        Ok(Probe::NeedsFullRead(Pending { layer, reason, misfit, blob, body, diff_id: None }))
    }

    /// What a layer holds, where an earlier mount has its index in the cache.
    pub(super) fn cached_entries(&self, layer: &registry::Layer) -> Result<Option<Entries>, index::Error> {
        let descriptor = descriptor(layer);
        let named = index::named_identity(&descriptor);
        let found = self.cached(&descriptor, named.unwrap_or(Identity::Own));
        let found = found.or_else(|| self.cached(&descriptor, Identity::Own));
        found.map(|(_, index)| index.within(self.memory())?.entries()).transpose()
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

    /// A layer whose index was made just now.
    pub(super) fn indexed(&self, layer: registry::Layer, made: Opened) -> Result<Indexed, Error> {
        let key = made.identity.map(|identity| LayerKey { blob: layer.digest, identity });
        let index = self.stored(&layer.digest, key.as_ref(), made.encoded, made.charge)?;
        // It is fetched again in parts, where there is no room for it.
        let here = made.blob.and_then(|blob| Here::new(blob, self.memory()).ok());
        let held = here.map(|here| Arc::new(here) as Arc<dyn ByteSource>);
        Ok(Indexed { layer, key, trust: made.trust, index, held, ztoc: None, misfit: None })
    }

    /// What the image's layers are charged to.
    pub(super) const fn memory(&self) -> &Budget {
        &self.options.memory
    }

    /// The index as a file of the cache, so that its tables need no memory; in memory where nothing may or can be kept.
    pub(super) fn stored(
        &self,
        layer: &Digest,
        key: Option<&LayerKey>,
        encoded: Bytes,
        charge: Charge,
    ) -> Result<StoredIndex, Error> {
        let kept = key.and_then(|key| StoredIndex::open(self.cache.index(key)?, layer, Some(key)).ok());
        let index = match kept {
            Some(index) => index,
            None => StoredIndex::open(Arc::new(Here::charged(encoded, charge)), layer, key)?,
        };
        Ok(index.within(self.memory())?)
    }

    /// From here on it can be read. Blocking.
    pub(super) fn open(self: &Arc<Self>, indexed: Indexed) -> OpenLayer {
        let Indexed { layer, key, trust, index, held, ztoc, misfit } = indexed;
        let file = self.cache.layer_file(key.as_ref(), &index);
        let whole = held.is_some();
        let (cost, beside) = (Cost::of(&layer), ztoc.as_ref().map(Cost::of).unwrap_or_default());
        let blob = layer.blob.in_use();
        let source = match held {
            Some(bytes) => fetch::Source::Held { blob, bytes: Held::new(bytes) },
            None => fetch::Source::Blob(blob),
        };
        let reindex = self.reindex(&layer, key, ztoc);
        let contents = self.engine.layer(layer.digest, index, source, file, reindex);
        OpenLayer {
            layer,
            trust,
            identity: key.map(|key| key.identity),
            contents,
            whole,
            sent_whole: false,
            misfit,
            read_for: None,
            cost,
            beside,
            tar_split: None,
        }
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    layer: Digest,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    threads::run(Work::Opening, work).await.map_err(|source| Error::LayerTask { layer, source })?
}

fn trust(key: &LayerKey) -> Trust {
    match key.identity {
        Identity::Toc(_) => Trust::Manifest,
        Identity::Own => Trust::Blob,
        Identity::Ztoc(_) => Trust::Soci,
    }
}
