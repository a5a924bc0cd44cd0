//! Opens one layer: its index from the cache or made now, and its contents, ready to be read.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::Error;
use super::event::{Event, Report};
use super::here::Here;
use super::pending::{Pending, Reason, descriptor};
use crate::blob::{ByteSource, Digest};
use crate::budget::{Budget, Charge};
use crate::cache::Cache;
use crate::fetch::{self, Held, Pass, Passed, Reindex};
use crate::index::{
    self, Descriptor, Entries, Found, Identity, LayerKey, NoTarSplit, Opened, StoredIndex, Summary, TarSplit, Trust,
};
use crate::registry::{self, Body, Client, Freshness, ImageRef};
use crate::sys::expansion::Allowance;
use crate::threads::{self, Work, wait};

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
    pub(super) fn again(&self, layer: registry::Layer) -> Self {
        let (contents, misfit) = (Arc::clone(&self.contents), self.misfit.clone());
        let Self { trust, identity, whole, sent_whole, read_for, .. } = *self;
        // It is fetched once.
        let (cost, beside) = (Cost::default(), Cost::default());
        Self { layer, trust, identity, contents, whole, misfit, sent_whole, read_for, cost, beside, tar_split: None }
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

/// How much is read of the layers that have to be read whole first.
#[derive(Default)]
pub(super) struct Reading {
    pub(super) bytes: Arc<AtomicU64>,
    pub(super) of: AtomicU64,
    told: AtomicU64,
}

impl Reading {
    /// All of a layer is read from now on: what is to be told of it.
    fn begin(&self, layer: &registry::Layer) -> Arc<AtomicU64> {
        self.of.fetch_add(layer.size, Ordering::Relaxed);
        Arc::clone(&self.bytes)
    }

    pub(super) fn tell(&self, report: &Report) {
        let (bytes, of) = (self.bytes.load(Ordering::Relaxed), self.of.load(Ordering::Relaxed));
        if bytes > self.told.swap(bytes, Ordering::Relaxed) {
            // Progress that nobody hears is none.
            let _heard = report(&Event::Reading { bytes, of });
        }
    }
}

/// What a look at a layer has found.
pub(super) enum Looked {
    Open(OpenLayer),
    /// All of it has to be read first.
    Pass(Pending),
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
    pub(super) fn look(
        self: &Arc<Self>,
        layer: registry::Layer,
        ztoc: Option<registry::Layer>,
    ) -> Result<Looked, Error> {
        let descriptor = descriptor(&layer);
        let ztoc = ztoc.filter(|_| index::named_identity(&descriptor).is_none());
        if let Some(looked) = self.look_at_cached(&layer, ztoc.as_ref())? {
            return Ok(looked);
        }
        match ztoc.map(|ztoc| self.read_ztoc(&descriptor, &ztoc).map(|opened| (opened, ztoc))) {
            Some(Ok((opened, ztoc))) => Ok(Looked::Open(self.opened(layer, &descriptor, opened, None, Some(ztoc))?)),
            // As without one.
            Some(Err(error)) => {
                tracing::warn!(layer = %layer.digest, error = error.chain(), "the zTOC of a layer cannot be used");
                self.fresh(layer, &descriptor)
            }
            None => self.fresh(layer, &descriptor),
        }
    }

    /// The same by what an earlier mount has left in the cache, if it has.
    pub(super) fn look_at_cached(
        self: &Arc<Self>,
        layer: &registry::Layer,
        ztoc: Option<&registry::Layer>,
    ) -> Result<Option<Looked>, Error> {
        let descriptor = descriptor(layer);
        let named = index::named_identity(&descriptor);
        let ztoc = ztoc.filter(|_| named.is_none());
        let found = self.cached(&descriptor, named.unwrap_or(Identity::Own));
        let found = found.or_else(|| self.cached(&descriptor, Identity::Ztoc(ztoc?.digest)));
        // What the manifest names may not have fitted.
        let found = found.or_else(|| self.cached(&descriptor, named.map(|_| Identity::Own)?));
        let Some((key, index)) = found else { return Ok(None) };
        let index = index.within(self.memory())?;
        let is_huge = index.has_huge_unit()?;
        let mut open = self.layer(layer.clone(), Some(key), trust(&key), index, None, ztoc.cloned());
        open.misfit = named.filter(|_| key.identity == Identity::Own).map(|_| OWN_INSTEAD.to_owned());
        if is_huge && !open.contents.is_kept()? {
            let OpenLayer { layer, misfit, .. } = open;
            let reason = Reason::Evicted;
            return Ok(Some(Looked::Pass(Pending { layer, reason, misfit, blob: None, body: None, diff_id: None })));
        }
        Ok(Some(Looked::Open(open)))
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

    fn fresh(self: &Arc<Self>, layer: registry::Layer, descriptor: &Descriptor) -> Result<Looked, Error> {
        let (toc, misfit) = self.read_toc(&layer, descriptor)?;
        let (reason, blob, body) = match toc {
            Toc::Found(Found::Indexed(opened)) => {
                let open = self.opened(layer, descriptor, opened, None, None)?;
                return Ok(Looked::Open(OpenLayer { misfit, ..open }));
            }
            Toc::Found(Found::Plain { blob }) => {
                let here = blob.and_then(|blob| Here::new(blob, self.memory()).ok());
                (Reason::Plain, here.map(Arc::new), None)
            }
            Toc::Found(Found::Unvouched(format)) => (Reason::Unvouched(format), None, None),
            Toc::SentWhole(body) => (Reason::SentWhole, None, Some(body)),
        };
        Ok(Looked::Pass(Pending { layer, reason, misfit, blob, body, diff_id: None }))
    }

    /// A layer with an index that was made just now; `held`: its blob, where that is here, and its zTOC.
    fn opened(
        self: &Arc<Self>,
        layer: registry::Layer,
        descriptor: &Descriptor,
        opened: Opened,
        held: Option<Arc<dyn ByteSource>>,
        ztoc: Option<registry::Layer>,
    ) -> Result<OpenLayer, Error> {
        let key = opened.identity.map(|identity| LayerKey { blob: layer.digest, identity });
        let index = self.stored(descriptor, key.as_ref(), opened.encoded, opened.charge)?;
        // It is fetched again in parts, where there is no room for it.
        let here = opened.blob.filter(|_| held.is_none()).and_then(|blob| Here::new(blob, self.memory()).ok());
        let held = held.or_else(|| here.map(|here| Arc::new(here) as Arc<dyn ByteSource>));
        Ok(self.layer(layer, key, opened.trust, index, held, ztoc))
    }

    /// Reads all of a layer, so that it can be served from then on. Wrong bytes are read once more, past caches.
    pub(super) async fn pass(self: &Arc<Self>, mut pending: Pending, reading: &Reading) -> Result<OpenLayer, Error> {
        if pending.reason == Reason::SentWhole {
            tracing::warn!(layer = %pending.layer.digest, "its host sends all of it for a part; it is read whole, and kept");
        }
        let open = match self.read_whole(&mut pending, Freshness::Any, reading).await {
            Err(error) if error.is_wrong_bytes() => {
                tracing::warn!(layer = %pending.layer.digest, error = error.chain(), "wrong bytes; reading the layer once more");
                self.read_whole(&mut pending, Freshness::PastCaches, reading).await
            }
            read => read,
        }?;
        Ok(OpenLayer { read_for: Some(pending.reason), misfit: pending.misfit, ..open })
    }

    async fn read_whole(
        self: &Arc<Self>,
        pending: &mut Pending,
        freshness: Freshness,
        reading: &Reading,
    ) -> Result<OpenLayer, Error> {
        let layer = pending.layer.clone();
        let pass = self.pass_over(&layer, pending.source(), freshness, reading.begin(&layer));
        let pass = Pass { is_huge: pending.reason == Reason::Evicted, body: pending.body.take(), ..pass };
        match pending.reason {
            Reason::Unvouched(_) => self.hold(layer, pass).await,
            Reason::Plain | Reason::Evicted => {
                let passed = pass.index(self.order(BTreeSet::new())?).await?;
                self.make_index(layer, passed, pending.diff_id).await
            }
            Reason::SentWhole => {
                let open = if index::named_identity(&descriptor(&layer)).is_some() {
                    self.take_named(layer, pass, pending.diff_id).await?
                } else {
                    self.take_unnamed(layer, pass, pending.diff_id, reading).await?
                };
                Ok(OpenLayer { sent_whole: true, ..open })
            }
        }
    }

    /// A layer of which the manifest names no TOC, and that may have one: that shows at its end. An index of our own follows from it, then, as it
    /// does where the end can be seen first.
    async fn take_unnamed(
        self: &Arc<Self>,
        layer: registry::Layer,
        pass: Pass,
        diff_id: Option<Digest>,
        reading: &Reading,
    ) -> Result<OpenLayer, Error> {
        let freshness = pass.freshness;
        let passed = pass.index(self.order(BTreeSet::new())?).await?;
        if !passed.has_toc {
            return self.make_index(layer, passed, diff_id).await;
        }
        let source = fetch::Source::Blob(layer.blob.clone());
        let again = self.pass_over(&layer, source, freshness, reading.begin(&layer));
        self.hold(layer, again).await
    }

    /// A layer of which the manifest names a TOC: it becomes what it would be had it come in parts, and what it holds is kept.
    async fn take_named(
        self: &Arc<Self>,
        layer: registry::Layer,
        pass: Pass,
        diff_id: Option<Digest>,
    ) -> Result<OpenLayer, Error> {
        let pass_again = self.pass_over(&layer, pass.source.clone(), pass.freshness, Arc::default());
        let held = pass.hold().await?;
        let (opener, blob, of) = (Arc::clone(self), Arc::clone(&held), layer.clone());
        let open = move || {
            let descriptor = descriptor(&of);
            match opener.open_held_toc(&descriptor, &*blob)? {
                Some(opened) => opener.opened(of, &descriptor, opened, Some(blob), None).map(Some),
                None => Ok(None),
            }
        };
        if let Some(open) = blocking(layer.digest, open).await? {
            let contents = Arc::clone(&open.contents);
            if open.identity.is_some() {
                tokio::spawn(async move { contents.keep_all().await });
            }
            return Ok(open);
        }
        let source = fetch::Source::Held { blob: layer.blob.clone(), bytes: Held::new(held) };
        let passed = Pass { source, ..pass_again }.index(self.order(BTreeSet::new())?).await?;
        self.make_index(layer, passed, diff_id).await
    }

    pub(super) fn pass_over(
        &self,
        layer: &registry::Layer,
        source: fetch::Source,
        freshness: Freshness,
        progress: Arc<AtomicU64>,
    ) -> Pass {
        Pass {
            layer: descriptor(layer),
            source,
            freshness,
            body: None,
            cache: self.cache.clone(),
            progress,
            is_huge: false,
            allowance: self.allowance.clone(),
            memory: self.memory().clone(),
        }
    }

    async fn make_index(
        self: &Arc<Self>,
        layer: registry::Layer,
        passed: Passed,
        diff_id: Option<Digest>,
    ) -> Result<OpenLayer, Error> {
        let Passed { made, staged, .. } = passed;
        check_diff_id(&layer, Some(made.diff_id), diff_id)?;
        let (opener, digest) = (Arc::clone(self), layer.digest);
        let keep = move || {
            let key = LayerKey { blob: layer.digest, identity: Identity::Own };
            let adopt = |staged| -> Result<_, Error> {
                let index = StoredIndex::open(Arc::new(made.encoded.clone()), &layer.digest, Some(&key))?;
                Ok(opener.cache.adopt(&key, &index, staged))
            };
            // Before the index is kept, so that nobody uses the layer who has found that; and until the layer is open.
            let _adopted = staged.map(adopt).transpose()?;
            opener.cache.put_index(&key, &made.encoded);
            let index = opener.stored(&descriptor(&layer), Some(&key), made.encoded, made.charge)?;
            let is_huge = index.has_huge_unit()?;
            let mut open = opener.layer(layer, Some(key), Trust::Blob, index, None, None);
            open.tar_split = made.split;
            if is_huge && !open.contents.is_kept()? {
                return Err(Error::CannotKeep { layer: open.layer.digest, needed: open.summary().layer_file_len });
            }
            Ok(open)
        };
        blocking(digest, keep).await
    }

    /// Keeps the blob itself for as long as it is mounted: whoever reads it later reads it by its TOC.
    async fn hold(self: &Arc<Self>, layer: registry::Layer, pass: Pass) -> Result<OpenLayer, Error> {
        let held = pass.hold().await?;
        let (opener, digest) = (Arc::clone(self), layer.digest);
        let open = move || {
            let descriptor = descriptor(&layer);
            let opened = index::open_whole(&descriptor, &*held, opener.memory())?;
            opener.cache.put_index(&LayerKey { blob: layer.digest, identity: Identity::Own }, &opened.encoded);
            opener.opened(layer, &descriptor, opened, Some(held), None)
        };
        blocking(digest, open).await
    }

    /// How a layer gets its index again that was damaged in use. In memory from then on: the disk has shown what it is worth.
    fn reindex(
        self: &Arc<Self>,
        layer: &registry::Layer,
        key: Option<LayerKey>,
        ztoc: Option<registry::Layer>,
    ) -> Reindex {
        let (opener, layer) = (Arc::clone(self), layer.clone());
        Arc::new(move || {
            key.iter().for_each(|key| opener.cache.drop_index(key));
            let descriptor = descriptor(&layer);
            let found = match (key.map(|key| key.identity), &ztoc) {
                (Some(Identity::Ztoc(_)), Some(ztoc)) => {
                    opener.read_ztoc(&descriptor, ztoc).map(|opened| Toc::Found(Found::Indexed(opened)))
                }
                (Some(Identity::Own), _) => opener.read_own_toc(&layer, &descriptor).map_err(Error::from),
                _ => opener.read_toc(&layer, &descriptor).map(|(toc, _)| toc),
            };
            let made = match found {
                Ok(Toc::Found(Found::Indexed(opened))) => Ok(opened.encoded),
                Ok(Toc::Found(found)) => opener.index_again(&layer, matches!(found, Found::Unvouched(_))),
                Ok(Toc::SentWhole(body)) => opener.index_of_whole(&layer, body),
                Err(error) => Err(error),
            };
            let here = |encoded| {
                let no_room = |source| index::Error::Memory { layer: layer.digest, what: "its index", source };
                Ok(Here::new(encoded, opener.memory()).map_err(no_room)?)
            };
            made.and_then(here)
                .map(|here| Arc::new(here) as Arc<dyn ByteSource>)
                .inspect_err(|error| tracing::warn!(error = error.chain(), "the index cannot be made again"))
                .ok()
        })
    }

    /// Makes the index of a layer again that was read whole. It is the same, since it follows from the blob.
    fn index_again(&self, layer: &registry::Layer, has_toc: bool) -> Result<Bytes, Error> {
        let pass = self.pass_again(layer, fetch::Source::Blob(layer.blob.in_use()));
        if has_toc {
            let held = wait(&self.runtime, pass.hold())??;
            return Ok(index::open_whole(&descriptor(layer), &*held, self.memory())?.encoded);
        }
        Ok(wait(&self.runtime, pass.index(None))??.made.encoded)
    }

    /// The same where the blob comes whole.
    fn index_of_whole(&self, layer: &registry::Layer, body: Body) -> Result<Bytes, Error> {
        let pass = self.pass_again(layer, fetch::Source::Blob(layer.blob.in_use()));
        let held = wait(&self.runtime, Pass { body: Some(body), ..pass }.hold())??;
        if let Some(opened) = self.open_held_toc(&descriptor(layer), &*held)? {
            return Ok(opened.encoded);
        }
        let source = fetch::Source::Held { blob: layer.blob.clone(), bytes: Held::new(held) };
        Ok(wait(&self.runtime, self.pass_again(layer, source).index(None))??.made.encoded)
    }

    /// Over a layer that was read before, which the others have left enough for.
    fn pass_again(&self, layer: &registry::Layer, source: fetch::Source) -> Pass {
        let pass = self.pass_over(layer, source, Freshness::Any, Arc::default());
        Pass { allowance: Allowance::default(), ..pass }
    }

    /// What the image's layers are charged to.
    pub(super) const fn memory(&self) -> &Budget {
        &self.options.memory
    }

    /// The index as a file of the cache, so that its tables need no memory; in memory where nothing may or can be kept.
    fn stored(
        &self,
        layer: &Descriptor,
        key: Option<&LayerKey>,
        encoded: Bytes,
        charge: Charge,
    ) -> Result<StoredIndex, Error> {
        let kept = key.and_then(|key| StoredIndex::open(self.cache.index(key)?, &layer.digest, Some(key)).ok());
        let index = match kept {
            Some(index) => index,
            None => StoredIndex::open(Arc::new(Here::charged(encoded, charge)), &layer.digest, key)?,
        };
        Ok(index.within(self.memory())?)
    }

    pub(super) fn layer(
        self: &Arc<Self>,
        layer: registry::Layer,
        key: Option<LayerKey>,
        trust: Trust,
        index: StoredIndex,
        held: Option<Arc<dyn ByteSource>>,
        ztoc: Option<registry::Layer>,
    ) -> OpenLayer {
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
            misfit: None,
            read_for: None,
            cost,
            beside,
            tar_split: None,
        }
    }
}

/// Whether a layer is what the image's config says of it, as far as either is known.
pub(super) fn check_diff_id(layer: &registry::Layer, got: Option<Digest>, named: Option<Digest>) -> Result<(), Error> {
    match got.zip(named).filter(|(got, named)| got != named) {
        Some((got, named)) => Err(index::Error::DiffId { layer: layer.digest, named, got }.into()),
        None => Ok(()),
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
