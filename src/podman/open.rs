//! The store as the process has it that may change it: what it holds, which layers are open, and how they are opened.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::ready;
use futures_util::stream::{self, FuturesUnordered};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

use super::Store;
use super::apart::{For, Readers};
use super::lockfile::PATIENCE;
use super::records::{Image, Layer, Pulled, Records};
use super::trees::{self, Prepared};
use super::{Error, files, lists};
use crate::blob::Digest;
use crate::image::config::Config;
use crate::image::engine::{Engine, RESOLVE_WITHIN, read_ahead};
use crate::image::layer::{OpenLayer, blocking};
use crate::image::options::ImageOptions;
use crate::image::{self, Report};
use crate::kernel::fusedev::{self, Detach};
use crate::kernel::mounts::Mount;
use crate::kernel::{self, mounts};
use crate::registry::{self};
use crate::sys::outside;

/// How many images begin to be opened at a time, and how long each has before the next one begins beside it: a registry or a filesystem that does not
/// answer is waited for, and is not to keep the images of others closed meanwhile.
const OPENED_AT_ONCE: usize = 8;
const TURN: Duration = Duration::from_millis(500);

/// How long an image is waited for before those that failed are tried again. It goes on by itself.
const OPENED_WITHIN: Duration = Duration::from_secs(60);

/// An image, as `crfs store ls --json` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    pub id: String,
    pub digest: Digest,
    pub names: Vec<String>,
    pub created: String,
    /// Bytes of all files.
    pub size: u64,
    pub layers: usize,
    /// Where it comes from.
    pub source: String,
    /// Whether all of its layers can be read.
    pub served: bool,
    /// Why not.
    pub problem: Option<String>,
    /// Whether podman has the tar-splits of all of its layers, to push it, and what is built on it, to where its layers are not. An older server
    /// does not say.
    #[serde(default)]
    pub pushable: bool,
}

impl Store {
    /// The same, where images are read by others than this process.
    pub(super) fn with_readers(self, readers: Readers) -> Self {
        Self { readers: Some(readers), ..self }
    }

    /// What all images take.
    #[cfg(test)]
    pub(super) const fn memory(&self) -> &crate::budget::Budget {
        self.common.memory()
    }

    pub(super) fn engine(&self, source: &ImageOptions) -> Result<Arc<Engine>, Error> {
        Ok(Arc::new(Engine::sharing(self.common.clone(), source, RESOLVE_WITHIN, None)?))
    }

    /// The same, which makes tar-splits of the layers that it reads whole, for an image that is added.
    pub(super) fn splitting_engine(&self, source: &ImageOptions) -> Result<Arc<Engine>, Error> {
        let dir = Some(self.paths.tar_splits());
        Ok(Arc::new(Engine::sharing(self.common.clone(), source, RESOLVE_WITHIN, dir)?))
    }

    /// Makes the store what `changed` says, in the order in which nobody sees a thing before what it needs: a layer is served before podman
    /// knows of it, and until podman knows no more of it.
    pub(super) fn commit(&self, records: &mut Records, changed: Records) -> Result<(), Error> {
        self.commit_within(records, changed, PATIENCE)
    }

    /// The same, where those who hold podman's locks are waited for no longer than that.
    pub(super) fn commit_within(
        &self,
        records: &mut Records,
        changed: Records,
        patience: Duration,
    ) -> Result<(), Error> {
        let committed = self.commit_whole(records, changed, patience);
        if committed.is_err() {
            // Those that it was to have. One that was replaced can stay: the new one is known to be right.
            files::remove_other_tar_splits(&self.paths, records);
        }
        committed
    }

    fn commit_whole(&self, records: &mut Records, mut changed: Records, patience: Duration) -> Result<(), Error> {
        changed.changed();
        if self.device.get().is_some() {
            changed.leave(records, |number| self.trees.is_open(number) || self.trees.is_remembered(number));
        }
        changed.forget_retired();
        changed.write(&self.paths.records())?;
        let grows = changed.layers.len() >= records.layers.len();
        if grows {
            self.trees.show(&changed);
        }
        if let Err(error) = files::publish(&self.paths, &changed, patience) {
            // A container may have been started meanwhile from what was shown.
            records.leave(&changed, |number| self.trees.is_open(number) || self.trees.is_remembered(number));
            self.trees.show(records);
            records.keep_numbers(&changed);
            records.write(&self.paths.records())?;
            return Err(error);
        }
        self.trees.show(&changed);
        self.stubs.write(&changed);
        *records = changed;
        self.read_ahead();
        Ok(())
    }

    /// Lets the kernel read ahead as far as the layers' units want it.
    pub(super) fn read_ahead(&self) {
        if let Some(device) = self.device.get() {
            device.set_read_ahead(read_ahead(self.trees.planted().values().map(|planted| &planted.layer)));
        }
    }

    /// Opens the layers of all images, also of removed ones that podman still needs, that are not open. Says whether all are now. One that cannot
    /// be opened keeps none else from it.
    pub(super) async fn open_all(self: &Arc<Self>, report: &Report) -> bool {
        let (all, pulled) = tokio::join!(self.open_each(report), self.open_all_pulled(For::Start));
        self.carried.look();
        all && pulled
    }

    /// The same of those whose indexes the cache has, in a process that goes on with the mount of another: nobody else is asked.
    pub(super) async fn open_known(self: &Arc<Self>) {
        let images = self.records.lock().await.all_images().cloned().collect::<Vec<_>>();
        let quiet: Report = Arc::new(|_| Ok(()));
        let open = |image| Arc::clone(self).open_once(image, For::GoingOn, Arc::clone(&quiet));
        // Each of them waits for the cache alone, and for who builds.
        let images = stream::iter(images).map(open).buffer_unordered(OPENED_AT_ONCE).collect::<Vec<_>>();
        tokio::join!(images, self.open_all_pulled(For::GoingOn));
    }

    async fn open_each(self: &Arc<Self>, report: &Report) -> bool {
        let images = self.records.lock().await.all_images().cloned().collect::<Vec<_>>();
        let start = |image| tokio::spawn(Arc::clone(self).open_once(image, For::Start, Arc::clone(report)));
        let begin = |image| async {
            let mut opening = start(image);
            let opened = tokio::time::timeout(TURN, &mut opening).await;
            // Nobody is to wait for one that waits for others.
            opened.map(|opened| opened.is_ok_and(|opened| opened)).map_err(|_| opening)
        };
        let begun: Vec<_> = stream::iter(images).map(begin).buffer_unordered(OPENED_AT_ONCE).collect().await;
        let (mut all, late) = (true, FuturesUnordered::new());
        for opened in begun {
            match opened {
                Ok(opened) => all &= opened,
                Err(opening) => late.push(open_by_then(opening)),
            }
        }
        late.fold(all, |all, opened| ready(all && opened)).await
    }

    /// `false` as well where an earlier try has not come to an end.
    async fn open_once(self: Arc<Self>, image: Image, purpose: For, report: Report) -> bool {
        let Some(_turn) = Opening::begin(&self.openings, image.manifest) else { return false };
        let opened = self.open(&image, purpose, &report).await.inspect_err(|error| {
            tracing::warn!(image = image.name(), error = error.chain(), "an image cannot be served yet");
        });
        opened.is_ok()
    }

    async fn open(self: &Arc<Self>, image: &Image, purpose: For, report: &Report) -> Result<(), Error> {
        let records = self.records.lock().await.clone();
        // Of a removed image some are gone.
        let is_closed =
            |records: &Records, id: &Digest| records.all_of(id).any(|layer| !self.trees.is_open(layer.number));
        let closed: Vec<_> = (0..).zip(&image.layers).filter(|(_, id)| is_closed(&records, id)).collect();
        if closed.is_empty() {
            return Ok(());
        }
        let opened = self.open_layers(image, &closed, purpose, report).await;
        if let Err(error) = &opened {
            // Others may have been opened meanwhile, also by an `add`.
            let records = self.records.lock().await;
            let is_closed = |id: &Digest| records.layer(id).is_some_and(|layer| !self.trees.is_open(layer.number));
            let still_closed = closed.iter().filter(|(_, id)| is_closed(id));
            self.openings.problems().extend(still_closed.map(|(_, id)| (**id, error.chain())));
        }
        opened
    }

    async fn open_layers(
        self: &Arc<Self>,
        image: &Image,
        closed: &[(usize, &Digest)],
        purpose: For,
        report: &Report,
    ) -> Result<(), Error> {
        let manifest = files::read_manifest(&self.paths, image)?;
        let engine = self.engine(&image.source)?;
        let resolved = Arc::new(engine.resolve_pinned(Bytes::from(manifest)).await?);
        let wanted = closed.iter().filter_map(|(number, _)| Some((*number, resolved.layers.get(*number)?.clone())));
        let (of, wanted) = ((image.name(), &image.source), (&resolved, wanted.collect()));
        let opened = self.open_apart(&engine, of, wanted, purpose, report).await?;
        if let Some(reader) = opened.reader {
            reader.end().await;
        }
        let mut outcome = Ok(());
        for (number, result) in opened.layers {
            let Some(id) = image.layers.get(number) else { continue };
            let refused = |source| layer_error(image.name(), number, &resolved, source);
            let planted = match result {
                Ok(layer) => self.plant_opened(id, layer, &refused).await,
                Err(error) => Err(refused(error)),
            };
            // The lowest one's error is told: the layers above it wait for it.
            outcome = outcome.and(planted);
        }
        // Also what could be opened of an image is: other images may have those layers.
        self.trees.show(&*self.records.lock().await);
        self.read_ahead();
        outcome
    }

    /// Plants a layer by each number that the records have of it, unless somebody has meanwhile. One on top of a layer that is not open waits for that,
    /// whose root it may show as its own.
    async fn plant_opened(
        &self,
        id: &Digest,
        layer: OpenLayer,
        refused: &(impl Fn(image::Error) -> Error + Sync),
    ) -> Result<(), Error> {
        let records = self.records.lock().await.clone();
        let closed = records.all_of(id).filter(|layer| !self.trees.is_open(layer.number));
        let mut outcome = Ok(());
        for record in closed {
            let Some(lowers) = self.trees.chain(&records, record.parent.as_ref()) else { continue };
            let digest = layer.layer.digest;
            let layer = layer.again(layer.layer.clone());
            // With the records free: others may be building.
            let prepare = move || trees::prepare(&layer, Some(&lowers)).map(|prepared| (layer, prepared));
            let (layer, prepared) = blocking(digest, prepare).await.map_err(refused)?;
            outcome = outcome.and(self.plant_known(record, layer, prepared).await);
        }
        outcome
    }

    /// Plants a layer if it is what the kernel was told of by its number. That is on the disk before the kernel is told.
    pub(super) async fn plant_known(&self, known: &Layer, layer: OpenLayer, prepared: Prepared) -> Result<(), Error> {
        let mut records = self.records.lock().await;
        let is_it = |layer: &&Layer| layer.number == known.number && !self.trees.is_open(layer.number);
        let Some(record) = records.all_of(&known.id).find(is_it).cloned() else { return Ok(()) };
        let is_other = record.tree.is_some_and(|tree| tree != prepared.shape);
        if is_other && self.goes_on {
            self.give_up_left(&mut records, record.number);
            return Err(Error::OtherTree { layer: layer.layer.digest });
        }
        // One that goes on changes nothing before it serves.
        if record.tree != Some(prepared.shape) && self.device.get().is_some() {
            tokio::task::block_in_place(|| self.set_trees(&mut records, [(record.number, prepared.shape)]))?;
        }
        self.trees.plant(record.number, (record.id, record.contents), layer, prepared);
        self.openings.problems().remove(&record.id);
        Ok(())
    }

    /// Has written down what tells trees from others, by the numbers of their layers.
    pub(super) fn set_trees(
        &self,
        records: &mut Records,
        trees: impl IntoIterator<Item = (u32, Digest)>,
    ) -> Result<(), Error> {
        let mut changed = records.clone();
        trees.into_iter().for_each(|(number, tree)| changed.set_tree(number, tree));
        if changed != *records {
            changed.write(&self.paths.records())?;
            *records = changed;
        }
        Ok(())
    }

    /// Closes what is left of layers that the kernel knows no more.
    pub(super) fn close_left(&self, records: &mut Records) {
        self.trees.close_left_over(records);
        self.keep_left(records, |number| self.trees.is_open(number) || self.trees.is_remembered(number));
    }

    /// What is left of a layer cannot be had any more.
    fn give_up_left(&self, records: &mut Records, number: u32) {
        if self.device.get().is_some() {
            tokio::task::block_in_place(|| self.keep_left(records, |left| left != number));
        }
    }

    fn keep_left(&self, records: &mut Records, is_kept: impl Fn(u32) -> bool) {
        let mut changed = records.clone();
        changed.left.retain(|layer| is_kept(layer.number));
        changed.forget_retired();
        if changed.left.len() < records.left.len() {
            match changed.write(&self.paths.records()) {
                Ok(()) => *records = changed,
                Err(error) => tracing::debug!(error = error.chain(), "layers that nobody knows stay in the records"),
            }
        }
    }

    pub(super) async fn list(&self) -> Vec<Listing> {
        let records = self.records.lock().await;
        records.images.iter().map(|image| self.listing(&records, image)).collect()
    }

    pub(super) fn listing(&self, records: &Records, image: &Image) -> Listing {
        let problems = self.openings.problems();
        let problem = image.layers.iter().find_map(|layer| problems.get(layer).cloned());
        let is_open = |id: &Digest| records.layer(id).is_some_and(|layer| self.trees.is_open(layer.number));
        let served = self.device.get().is_some() && image.layers.iter().all(is_open);
        Listing { served, problem, ..listing(records, image) }
    }

    /// Joins layers to images as they are read for the first time.
    pub(super) async fn join_layers(&self, mut wanted: UnboundedReceiver<u32>) {
        while let Some(number) = wanted.recv().await {
            let records = self.records.lock().await.clone();
            let id = records.layers.iter().find(|layer| layer.number == number).map(|layer| layer.id);
            let image = id.and_then(|id| records.all_images().find(|image| image.layers.contains(&id)));
            if let Some(image) = image {
                tokio::task::block_in_place(|| self.join(&records, image));
            }
            let has = |pulled: &&Pulled| pulled.layers.iter().any(|layer| layer.layer.number == number);
            if let Some(pulled) = records.pulled.iter().find(has) {
                tokio::task::block_in_place(|| self.join_pulled(&records, pulled));
            }
        }
    }

    /// The same for images that were added, and will be run.
    pub(super) async fn join_added(&self, added: &[Listing]) {
        let records = self.records.lock().await.clone();
        let is_added = |image: &&Image| added.iter().any(|added| added.id == image.id.hex());
        if self.trees.guesses() {
            let images = records.images.iter().filter(is_added);
            tokio::task::block_in_place(|| images.for_each(|image| self.join(&records, image)));
        }
    }

    /// Makes the tree of an image, so that what is fetched around a miss follows from it.
    pub(super) fn join(&self, records: &Records, image: &Image) {
        let path = self.paths.image(&image.id.hex()).join(lists::big_data_file(&image.id.to_string()));
        let config = outside::read(&path, u64::MAX).ok().and_then(|bytes| Config::parse(&bytes).ok());
        let command = config.map(|config| config.started()).unwrap_or_default();
        if let Err(error) = self.trees.join(records, image, command) {
            tracing::debug!(error = error.chain(), "nothing is fetched around misses of this image");
        }
    }
}

/// Takes away the mounts of servers that are gone. None can be alive: this process has the lock.
pub(super) fn clear_point(dir: &Path) -> Result<(), Error> {
    let failed = |source| kernel::Error::Directory { dir: dir.to_owned(), source };
    let parent = dir.parent().unwrap_or(Path::new("/")).canonicalize().map_err(failed)?;
    let dir = parent.join(dir.file_name().unwrap_or_default());
    while mounts::at(&dir).map_err(failed)?.is_some_and(|mount| mount.is_stores()) {
        fusedev::unmount(&dir, Detach::Lazily, Mount::is_stores)?;
    }
    Ok(())
}

/// Whether an image is open in time.
async fn open_by_then(opening: JoinHandle<bool>) -> bool {
    matches!(tokio::time::timeout(OPENED_WITHIN, opening).await, Ok(Ok(true)))
}

/// What is being opened, and what could not be.
#[derive(Default)]
pub(super) struct Openings {
    /// Images that are being opened, by their manifests.
    under_way: Mutex<HashSet<Digest>>,
    /// Why a layer is not open.
    problems: Mutex<HashMap<Digest, String>>,
}

impl Openings {
    fn under_way(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn problems(&self) -> MutexGuard<'_, HashMap<Digest, String>> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The only one who opens an image, for as long as this lives.
struct Opening<'a> {
    openings: &'a Openings,
    manifest: Digest,
}

impl<'a> Opening<'a> {
    fn begin(openings: &'a Openings, manifest: Digest) -> Option<Self> {
        openings.under_way().insert(manifest).then_some(Self { openings, manifest })
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.openings.under_way().remove(&self.manifest);
    }
}

/// What is known of an image where no server runs.
pub(super) fn listing(records: &Records, image: &Image) -> Listing {
    let sizes = image.layers.iter().filter_map(|id| records.layer(id)).map(|layer| layer.facts.size);
    Listing {
        id: image.id.hex(),
        digest: image.manifest,
        names: image.names.clone(),
        created: image.created.clone(),
        size: sizes.fold(0, u64::saturating_add),
        layers: image.layers.len(),
        source: image.source.image.to_string(),
        served: false,
        problem: None,
        pushable: image.layers.iter().all(|id| records.layer(id).is_some_and(|layer| layer.tar.is_some())),
    }
}

pub(super) fn layer_error(image: &str, number: usize, resolved: &registry::Image, source: image::Error) -> Error {
    let layer = resolved.layers.get(number).map_or(resolved.digest, |layer| layer.digest);
    Error::Layer { image: image.to_owned(), number, layer, source: Box::new(source) }
}
