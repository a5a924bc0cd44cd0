//! From a reference to something that can be served or looked into: resolve, open all layers at once, merge.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, OnceCell, Semaphore};
use tokio::task::JoinSet;
use tracing::{Instrument as _, Span};

use super::Error;
use super::config::{Config, Unusable};
use super::distinct::told_apart;
use super::event::{Event, Report};
use super::layer::{OpenLayer, Opener, Probe};
use super::pending::Pending;
use super::reading::Reading;
use super::silence::{unless_silent, until_silent};
use super::whole::check_diff_id;
use crate::blob::{Digest, Documents as _};
use crate::budget::Budget;
use crate::cache::Cache;
use crate::fetch::heat::Record;
use crate::fetch::{self, Files, Readahead};
use crate::fs::tree::{self, OpaqueXattr, Tree};
use crate::fs::view::{Contents, View};
use crate::image::options::ImageOptions;
use crate::index::{self, Entries, StoredIndex, Summary};
use crate::metrics::{METRICS, Snapshot};
use crate::registry::{self, Archives, Client, EndpointReport, Hosts, Soci, SociChoice, SociSource};
use crate::sys::expansion::Allowance;
use crate::threads::{self, Work};

/// A person who waits wants to hear soon that a registry is down; one that is being restarted is back within this time.
pub(crate) const RESOLVE_WITHIN: Duration = Duration::from_secs(20);

/// Layers that are read whole at a time: the link is shared anyway, and each takes memory and two threads.
const PASSES: usize = 6;

/// How long whoever asks for metrics waits for the cache's disk.
const GLANCE: Duration = Duration::from_secs(1);

/// How often it is told how far they are.
pub(super) const TICK: Duration = Duration::from_millis(200);

/// KiB that the kernel reads ahead: what FUSE_INIT gives at most, and the length of a READ.
const READ_AHEAD: std::ops::Range<u32> = 128..1024;

/// What all images that a process has open share, so that its limits hold for all of them together.
#[derive(Clone)]
pub(crate) struct Common {
    cache: Cache,
    hosts: Hosts,
    archives: Archives,
    fetch: fetch::Shared,
    memory: Budget,
    /// Whoever looks at the cache for metrics.
    looking: Arc<AsyncMutex<()>>,
}

impl Common {
    pub(crate) fn new(cache: Cache, hosts: Hosts) -> Self {
        Self {
            cache,
            hosts,
            archives: Archives::default(),
            fetch: fetch::Shared::default(),
            memory: Budget::of_process(),
            looking: Arc::default(),
        }
    }

    /// What becomes of the bytes of the one image is recorded from now on.
    pub(crate) fn recording(self) -> Self {
        Self { fetch: self.fetch.recording(), ..self }
    }

    pub(crate) fn record(&self) -> Option<&Arc<Record>> {
        self.fetch.record()
    }

    pub(crate) const fn cache(&self) -> &Cache {
        &self.cache
    }

    pub(crate) const fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    /// What came of asking each endpoint.
    pub(crate) fn endpoints(&self) -> Vec<EndpointReport> {
        self.hosts.endpoints()
    }

    /// What is true of them now, for the metrics of who serves them.
    pub(crate) async fn levels(&self) -> Snapshot {
        Snapshot { cache: self.room().await, memory: self.memory.used(), ..Snapshot::default() }
    }

    /// The bytes in the cache, and its limit; `None`: its disk does not say so at once. However many ask, one thread waits for it.
    async fn room(&self) -> Option<[u64; 2]> {
        let looking = async {
            let (cache, turn) = (self.cache.clone(), Arc::clone(&self.looking).lock_owned().await);
            threads::run(Work::Local, move || (cache.room(), turn)).await
        };
        let (room, _turn) = tokio::time::timeout(GLANCE, looking).await.ok()?.ok()?;
        room.map(|room| [room.taken, room.limit])
    }

    #[cfg(test)]
    pub(crate) const fn memory(&self) -> &Budget {
        &self.memory
    }
}

/// Opens images: the registry client, the cache, and what was asked for.
pub struct Engine {
    pub(super) opener: Arc<Opener>,
    pub(super) passes: Semaphore,
    /// For each layer that is read whole, whether it was.
    turns: Mutex<HashMap<Digest, Arc<AsyncMutex<bool>>>>,
    /// The lowest layer that could not be read: those above it need not be.
    pub(super) lowest_failed: AtomicUsize,
    config: OnceCell<Result<Config, Unusable>>,
    /// `None`: no SOCI index is used.
    soci_choice: Option<SociChoice>,
    soci: OnceCell<Option<Soci>>,
    /// Around all that is done to open the image, so that lines of the log say which it is.
    span: Span,
    /// Layers that have to be read whole are refused.
    is_lazy: bool,
}

/// How far layers are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// Each is open or refused.
    AllAreKnown,
    /// The same, or it is known which is the lowest that is refused.
    OneIsRefused,
}

/// An image whose layers are all open, the lowest first. With `--layer`: that one alone.
pub struct OpenImage {
    pub image: registry::Image,
    pub layers: Vec<OpenLayer>,
    /// What the tree is charged to that they make.
    pub memory: Budget,
}

impl Engine {
    /// Needs a tokio runtime. A registry that gives no sign of life for `resolve_within` is given up while the reference is resolved.
    ///
    /// # Errors
    /// Where the client cannot be set up.
    pub fn new(options: &ImageOptions, resolve_within: Duration) -> Result<Self, Error> {
        let common = Common::new(Cache::open(&options.cache_dir, options.cache_size), Hosts::default());
        Self::sharing(common, options, resolve_within, None)
    }

    /// The same for one of several images. `tar_splits`: where those of layers that are read whole are written, without a name.
    pub(crate) fn sharing(
        common: Common,
        options: &ImageOptions,
        resolve_within: Duration,
        tar_splits: Option<PathBuf>,
    ) -> Result<Self, Error> {
        let Common { cache, hosts, archives, fetch: shared, memory, .. } = common;
        let client = registry::Options {
            auth_files: options.auth_files.clone(),
            places: options.places.clone(),
            platform: options.platform.clone(),
            io_deadline: options.io_deadline,
        };
        let client = Client::new(client, Arc::new(cache.clone()))?.with_hosts(hosts).with_archives(archives);
        let opener = Opener {
            image: options.image.clone(),
            client: client.with_resolve_deadline(resolve_within),
            engine: fetch::Engine::new(cache.clone(), &shared, options.io_deadline),
            cache,
            options: index::Options {
                whole_layer_below: options.whole_layer_below,
                insecure_unverified_toc: options.insecure_unverified_toc,
                memory: memory.of_image(options.memory_limit),
            },
            allowance: Allowance::default(),
            tar_splits,
            runtime: Handle::current(),
        };
        let passes = Semaphore::new(PASSES);
        let (config, soci) = (OnceCell::new(), OnceCell::new());
        let (turns, lowest_failed) = (Mutex::default(), AtomicUsize::new(usize::MAX));
        let soci_choice = options.soci;
        let span = tracing::debug_span!("image", image = %options.image);
        Ok(Self {
            opener: Arc::new(opener),
            passes,
            turns,
            lowest_failed,
            config,
            soci_choice,
            soci,
            span,
            is_lazy: false,
        })
    }

    /// The same, which refuses layers that have to be read whole. One that is so small that it has come whole is not.
    pub(crate) fn without_full_reads(self) -> Self {
        Self { is_lazy: true, ..self }
    }

    pub(crate) fn cache(&self) -> &Cache {
        &self.opener.cache
    }

    /// Around all that is done to open one of its layers.
    pub(super) fn layer_span(&self, number: usize, layer: &registry::Layer) -> Span {
        tracing::debug_span!(parent: &self.span, "layer", number, layer = %layer.digest)
    }

    /// Resolves the reference, once. Tells how far an archive is unpacked for it.
    ///
    /// # Errors
    /// Where it names no image that can be had.
    pub async fn resolve(&self, report: &Report) -> Result<registry::Image, Error> {
        let client = &self.opener.client;
        // Not on this task: documents are read from the cache, whose disk may stop.
        let (asking, image) = (client.clone(), self.opener.image.clone());
        let mut resolving = JoinSet::new();
        resolving.spawn(async move { asking.resolve(&image).await }.instrument(self.span.clone()));
        let mut silent = pin!(until_silent(self.cache()));
        let mut ticks = tokio::time::interval(TICK);
        let mut told = 0;
        loop {
            tokio::select! {
                Some(resolved) = resolving.join_next() => {
                    let lost = |source| Error::Runtime { source: std::io::Error::other(source) };
                    return Ok(resolved.map_err(lost)??);
                }
                error = &mut silent => return Err(error),
                _ = ticks.tick() => {
                    let (bytes, of) = client.unpacked();
                    if bytes > std::mem::replace(&mut told, bytes) {
                        // Progress that nobody hears is none.
                        let _heard = report(&Event::Reading { bytes, of, layers: Vec::new() });
                    }
                }
            }
        }
    }

    /// Opens all layers at once, and reads those whole that need it. Does not wait for layers above one that cannot be opened. `first`: the number of
    /// the first of the image's layers.
    ///
    /// # Errors
    /// Where a layer cannot be opened: of several, the lowest one's, so that the same image gives the same message.
    pub async fn open(
        self: &Arc<Self>,
        image: registry::Image,
        first: usize,
        report: &Report,
    ) -> Result<OpenImage, Error> {
        if image.layers.is_empty() {
            // No layer asks whether the config names some.
            self.diff_id(&image, 0).await?;
        }
        let image = Arc::new(image);
        let wanted = (first..).zip(image.layers.iter().cloned()).collect();
        let opened = self.open_each(&image, wanted, Until::OneIsRefused, report).await;
        let layers = opened.into_values().collect::<Result<_, Error>>()?;
        let image = Arc::try_unwrap(image).unwrap_or_else(|image| (*image).clone());
        Ok(OpenImage { image, layers, memory: self.opener.memory().clone() })
    }

    /// Opens some of an image's layers at once, each with its number: what came of each. One that the image has several times is opened once; where
    /// it cannot be opened, that is told of the lowest place alone.
    pub(crate) async fn open_each(
        self: &Arc<Self>,
        image: &Arc<registry::Image>,
        wanted: Vec<(usize, registry::Layer)>,
        until: Until,
        report: &Report,
    ) -> BTreeMap<usize, Result<OpenLayer, Error>> {
        let (wanted, again) = told_apart(wanted);
        let reading = Arc::new(Reading::new(wanted.iter().map(|(number, layer)| (*number, layer.digest))));
        let (of, numbers) = (wanted.len(), wanted.iter().map(|(number, _)| *number).collect::<Vec<_>>());
        let open = |(number, layer): (usize, registry::Layer)| {
            let (engine, image, reading) = (Arc::clone(self), Arc::clone(image), Arc::clone(&reading));
            let span = self.layer_span(number, &layer);
            async move { (number, engine.open_layer(&image, layer, number, &reading).await) }.instrument(span)
        };
        let mut opening: FuturesUnordered<_> = wanted.into_iter().map(open).collect();
        let mut silent = pin!(until_silent(self.cache()));
        let mut results = BTreeMap::new();
        let mut ticks = tokio::time::interval(TICK);
        // Progress that nobody hears is none.
        while !(opening.is_empty() || until == Until::OneIsRefused && is_refused(&numbers, &results)) {
            tokio::select! {
                Some((number, result)) = opening.next() => {
                    note(&result);
                    results.insert(number, result);
                    reading.tell(report);
                    let opened = results.values().filter_map(|result| result.as_ref().ok());
                    let fetched = opened.map(OpenLayer::fetched).fold(0, u64::saturating_add);
                    let _heard = report(&Event::Opened { layers: results.len(), of, fetched });
                }
                error = &mut silent => {
                    // The lowest tells why.
                    let lost = |_| Error::Read(fetch::Error::Interrupted);
                    let missing = numbers.iter().filter(|number| !results.contains_key(number)).copied().collect::<Vec<_>>();
                    let errors = std::iter::once(error).chain((0..).map(lost));
                    results.extend(missing.into_iter().zip(errors.map(Err)));
                    break;
                }
                _ = ticks.tick() => reading.tell(report),
            }
        }
        self.open_again(image, again, &mut results).await;
        results
    }

    /// A layer, unless it is known not to be what the image's config says of it.
    pub(super) async fn checked(
        &self,
        image: &registry::Image,
        number: usize,
        open: OpenLayer,
    ) -> Result<OpenLayer, Error> {
        if let Some(diff_id) = open.summary().diff_id {
            check_diff_id(&open.layer, Some(diff_id), self.diff_id(image, number).await?)?;
        }
        Ok(open)
    }

    /// Probes all layers at once, for `crfs inspect`: what came of each, by their numbers, and which layers are others again.
    pub(super) async fn probe_each(
        self: &Arc<Self>,
        image: &registry::Image,
    ) -> Result<(BTreeMap<usize, Result<Probe, Error>>, BTreeMap<usize, usize>), Error> {
        let probe = |(number, layer): (usize, registry::Layer)| {
            let span = self.layer_span(number, &layer);
            async move { (number, self.clone().probe(image, layer).await) }.instrument(span)
        };
        let (once, again) = told_apart(image.layers.iter().cloned().enumerate().collect());
        let probing: FuturesUnordered<_> = once.into_iter().map(probe).collect();
        let probed = unless_silent(self.cache(), probing.collect()).await?;
        Ok((probed, again.into_iter().map(|(number, _, first)| (number, first)).collect()))
    }

    pub(super) async fn probe(
        self: Arc<Self>,
        image: &registry::Image,
        layer: registry::Layer,
    ) -> Result<Probe, Error> {
        let digest = layer.digest;
        let ztoc = self.soci(image).await?.and_then(|soci| soci.layers.get(&digest).cloned());
        let probing = threads::run(Work::Opening, move || self.opener.probe(layer, ztoc));
        probing.await.map_err(|source| Error::LayerTask { layer: digest, source })?
    }

    async fn open_layer(
        self: Arc<Self>,
        image: &registry::Image,
        layer: registry::Layer,
        number: usize,
        reading: &Reading,
    ) -> Result<OpenLayer, Error> {
        match self.clone().probe(image, layer).await? {
            Probe::Ready(open) => self.checked(image, number, open).await,
            Probe::NeedsFullRead(pending) if self.is_lazy && !pending.is_here() => {
                Err(Error::NotLazy { layer: pending.layer.digest })
            }
            Probe::NeedsFullRead(pending) => {
                let digest = pending.layer.digest;
                reading.expect(&pending.layer);
                let read = self.pass(image, pending, number, reading).await;
                reading.end(&digest);
                read
            }
        }
    }

    /// Reads a layer whole, unless one below it cannot be had anyway.
    pub(super) async fn pass(
        self: Arc<Self>,
        image: &registry::Image,
        mut pending: Pending,
        number: usize,
        reading: &Reading,
    ) -> Result<OpenLayer, Error> {
        if pending.is_told_by_diff_id() && image.config.is_some() {
            let (layer, config) = (pending.layer.digest, self.config(image).await);
            config.map_err(|why| Error::NoConfig { layer, why: why.clone() })?;
        }
        pending.diff_id = self.diff_id(image, number).await?;
        let turn =
            self.turns.lock().unwrap_or_else(PoisonError::into_inner).entry(pending.layer.digest).or_default().clone();
        let mut was_read = turn.lock().await;
        if *was_read {
            // The image has the layer twice.
            match self.clone().probe(image, pending.layer.clone()).await? {
                Probe::Ready(open) => return Ok(open),
                Probe::NeedsFullRead(again) => {
                    let diff_id = pending.diff_id;
                    pending = again;
                    pending.diff_id = diff_id;
                }
            }
        }
        // An error says that there are no permits any more: nobody closes them.
        let _permit = self.passes.acquire().await;
        if self.lowest_failed.load(Ordering::Relaxed) < number {
            return Err(Error::Read(fetch::Error::Interrupted));
        }
        let read = self.opener.pass(pending, reading).await;
        if read.is_err() {
            self.lowest_failed.fetch_min(number, Ordering::Relaxed);
        }
        *was_read = true;
        read
    }

    /// `None` where the config does not say, or cannot be had.
    pub(crate) async fn diff_id(&self, image: &registry::Image, layer: usize) -> Result<Option<Digest>, Error> {
        match self.config(image).await {
            Ok(config) => Ok(config.diff_id(layer)),
            Err(why @ Unusable::OtherLayers { .. }) => Err(Error::OtherLayers { why: why.clone() }),
            Err(_) => Ok(None),
        }
    }

    /// The image's SOCI index, looked for once. One that cannot be had is none, unless the user has named it.
    pub(super) async fn soci(&self, image: &registry::Image) -> Result<Option<&Soci>, Error> {
        let find = || async {
            let Some(choice) = self.soci_choice else { return Ok(None) };
            match self.opener.client.soci(&self.opener.image, image, choice).await {
                Err(error) if !matches!(choice, SociChoice::Digest(_)) => {
                    tracing::warn!(%error, "the image's SOCI index cannot be used");
                    Ok(None)
                }
                found => found.map_err(Error::from),
            }
        };
        Ok(self.soci.get_or_try_init(|| find().instrument(self.span.clone())).await?.as_ref())
    }

    /// Who says that the image's SOCI index belongs to it, where it has one.
    pub(crate) async fn soci_source(&self, image: &registry::Image) -> Option<SociSource> {
        self.soci(image).await.ok().flatten().map(|soci| soci.source)
    }

    /// The image of a manifest that was verified before, without asking a registry.
    ///
    /// # Errors
    /// Where it is none, or the layout or archive is gone.
    pub(crate) async fn resolve_pinned(&self, manifest: Bytes) -> Result<registry::Image, Error> {
        Ok(self.opener.client.resolve_pinned(&self.opener.image, manifest).await?)
    }

    /// The image that was resolved before and had that digest, wherever its reference leads by now. Asks a registry only where the cache has its
    /// manifest no more; the reference is to have the digest, then.
    ///
    /// # Errors
    /// Where it cannot be had.
    pub(crate) async fn resolve_again(&self, digest: Digest, report: &Report) -> Result<registry::Image, Error> {
        let cache = self.cache().clone();
        let known = unless_silent(self.cache(), threads::run(Work::Local, move || cache.get(&digest))).await?;
        let image = match known.ok().flatten() {
            Some(manifest) => self.resolve_pinned(manifest).await?,
            None => self.resolve(report).await?,
        };
        match image.digest == digest {
            true => Ok(image),
            false => Err(Error::OtherImage { image: image.name, digest, found: image.digest }),
        }
    }

    /// The bytes of the image's config.
    ///
    /// # Errors
    /// Where they cannot be had.
    pub(crate) async fn config_bytes(&self, image: &registry::Image) -> Result<Bytes, Unusable> {
        Config::bytes(image, self.cache()).await
    }

    /// The image's config, read once.
    pub(crate) async fn config(&self, image: &registry::Image) -> Result<&Config, &Unusable> {
        self.config.get_or_init(|| Config::read(image, self.cache()).instrument(self.span.clone())).await.as_ref()
    }
}

impl OpenImage {
    /// All layers merged, or the only layer alone, the way overlayfs wants a lower. With `guesses`, more is fetched than what is read. Blocking.
    ///
    /// # Errors
    /// Where an index is damaged, or the layers do not fit together.
    pub fn view(&self, alone: Option<Alone>, guesses: bool) -> Result<(View, Arc<Readahead>), Error> {
        let contents: Vec<_> = self.layers.iter().map(|layer| Arc::clone(&layer.contents)).collect();
        let entries = of_each(&contents, |index| index.entries().map(Arc::new))?;
        let tree = match (alone, entries.as_slice()) {
            (Some(Alone { opaque, lowers }), [only]) => Tree::single(only, opaque, lowers.as_deref(), &self.memory),
            (_, entries) => Tree::merged(entries.iter().map(AsRef::as_ref).collect(), &self.memory),
        };
        let tree = tree.map_err(|error| self.named(error, &entries))?;
        drop(entries);
        let tree = Arc::new(tree);
        let holes = of_each(&contents, StoredIndex::holes)?;
        let readahead = Readahead::new(contents, Arc::clone(&tree) as Arc<dyn Files>, guesses);
        let view = View::new(tree, Arc::clone(&readahead) as Arc<dyn Contents>).with_holes(holes);
        Ok((view, readahead))
    }
}

impl OpenImage {
    /// Names the layer that takes most, where all of them together take too much.
    fn named(&self, error: tree::Error, entries: &[Arc<Entries>]) -> Error {
        let largest = entries.iter().zip(&self.layers).max_by_key(|(entries, _)| entries.memory());
        match (error, largest) {
            (tree::Error::Memory(source), Some((_, layer))) => Error::Memory { layer: layer.layer.digest, source },
            (error, _) => error.into(),
        }
    }
}

/// Counts what came of a layer.
pub(super) fn note(opened: &Result<OpenLayer, Error>) {
    match opened {
        Ok(layer) => METRICS.layer(layer.summary().format.name(), if layer.is_lazy() { "lazy" } else { "whole" }),
        Err(_) => METRICS.layer("unknown", "refused"),
    }
}

/// Whether it is known which is the lowest layer that cannot be opened: all below it are open.
fn is_refused<T, E>(numbers: &[usize], results: &BTreeMap<usize, Result<T, E>>) -> bool {
    let mut in_order = numbers.iter().map(|number| results.get(number));
    matches!(in_order.find(|result| !matches!(result, Some(Ok(_)))), Some(Some(Err(_))))
}

/// What `of` gives of the index of each layer, asked once for one that the image has several times.
pub(crate) fn of_each<T: Clone, E>(
    layers: &[Arc<fetch::Layer>],
    of: impl Fn(&StoredIndex) -> Result<T, E>,
) -> Result<Vec<T>, E> {
    let mut known = HashMap::new();
    let one = |layer: &Arc<fetch::Layer>| match known.entry(Arc::as_ptr(layer)) {
        Entry::Occupied(known) => Ok(T::clone(known.get())),
        Entry::Vacant(new) => of(layer.index()).map(|found| new.insert(found).clone()),
    };
    layers.iter().map(one).collect()
}

/// How a layer is served without those below it.
pub struct Alone {
    pub opaque: OpaqueXattr,
    /// What the layers below it hold, the lowest first, where that is known.
    pub lowers: Option<Vec<Entries>>,
}

/// How many KiB the kernel is to read ahead: 16 units, since a read brings whole units anyway, but no more than the 1 MiB of a READ.
pub(crate) fn read_ahead<'a>(layers: impl Iterator<Item = &'a OpenLayer> + Clone) -> u32 {
    let total = |of: fn(&Summary) -> u64| layers.clone().map(|layer| of(layer.summary())).fold(0, u64::saturating_add);
    let (bytes, units) = (total(|summary| summary.layer_file_len), total(|summary| summary.units.into()));
    let unit = bytes.checked_div(units).unwrap_or(0);
    u32::try_from(unit.saturating_mul(16) >> 10).unwrap_or(u32::MAX).clamp(READ_AHEAD.start, READ_AHEAD.end)
}

#[cfg(test)]
mod tests {
    use super::is_refused;

    #[test]
    fn a_layer_is_refused_once_all_below_it_are_open() {
        let refused = |results: &[(usize, Result<(), ()>)]| is_refused(&[2, 3, 5], &results.iter().copied().collect());
        assert!(refused(&[(2, Err(()))]));
        assert!(refused(&[(2, Ok(())), (3, Err(())), (5, Err(()))]));
        assert!(!refused(&[(3, Err(()))]), "the one below it may be refused, too");
        assert!(!refused(&[(2, Ok(())), (5, Err(()))]));
        assert!(!refused(&[(2, Ok(())), (3, Ok(())), (5, Ok(()))]));
    }
}
