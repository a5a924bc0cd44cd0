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
use super::records::{Image, Layer, Records};
use super::trees::{self};
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
        changed.forget_retired();
        changed.write(&self.paths.records())?;
        let grows = changed.layers.len() >= records.layers.len();
        if grows {
            self.trees.show(&changed);
        }
        if let Err(error) = files::publish(&self.paths, &changed, patience) {
            self.trees.show(records);
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
        let all = self.open_each(report).await;
        self.carried.look();
        all
    }

    async fn open_each(self: &Arc<Self>, report: &Report) -> bool {
        let images = self.records.lock().await.all_images().cloned().collect::<Vec<_>>();
        let start = |image| tokio::spawn(Arc::clone(self).open_once(image, Arc::clone(report)));
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
    async fn open_once(self: Arc<Self>, image: Image, report: Report) -> bool {
        let Some(_turn) = Opening::begin(&self.openings, image.manifest) else { return false };
        let opened = self.open(&image, &report).await.inspect_err(|error| {
            tracing::warn!(image = image.name(), error = error.chain(), "an image cannot be served yet");
        });
        opened.is_ok()
    }

    async fn open(self: &Arc<Self>, image: &Image, report: &Report) -> Result<(), Error> {
        let records = self.records.lock().await.clone();
        // Of a removed image some are gone.
        let is_closed =
            |records: &Records, id: &Digest| records.layer(id).is_some_and(|layer| !self.trees.is_open(layer.number));
        let closed: Vec<_> = (0..).zip(&image.layers).filter(|(_, id)| is_closed(&records, id)).collect();
        if closed.is_empty() {
            return Ok(());
        }
        let opened = self.open_layers(image, &closed, report).await;
        if let Err(error) = &opened {
            // Others may have been opened meanwhile, also by an `add`.
            let records = self.records.lock().await;
            let still_closed = closed.iter().filter(|(_, id)| is_closed(&records, id));
            self.openings.problems().extend(still_closed.map(|(_, id)| (**id, error.chain())));
        }
        opened
    }

    async fn open_layers(
        self: &Arc<Self>,
        image: &Image,
        closed: &[(usize, &Digest)],
        report: &Report,
    ) -> Result<(), Error> {
        let manifest = files::read_manifest(&self.paths, image)?;
        let engine = self.engine(&image.source)?;
        let resolved = Arc::new(engine.resolve_pinned(Bytes::from(manifest)).await?);
        let wanted = closed.iter().filter_map(|(number, _)| Some((*number, resolved.layers.get(*number)?.clone())));
        let (of, wanted) = ((image.name(), &image.source), (&resolved, wanted.collect()));
        let opened = self.open_apart(&engine, of, wanted, For::Start, report).await?;
        if let Some(reader) = opened.reader {
            reader.end().await;
        }
        let mut outcome = Ok(());
        for (number, result) in opened.layers {
            let Some(id) = image.layers.get(number) else { continue };
            let planted = match result {
                Ok(layer) => self.plant_opened(id, layer).await,
                Err(error) => Err(error),
            };
            // The lowest one's error is told: the layers above it wait for it.
            outcome = outcome.and(planted.map_err(|source| layer_error(image.name(), number, &resolved, source)));
        }
        // Also what could be opened of an image is: other images may have those layers.
        self.trees.show(&*self.records.lock().await);
        self.read_ahead();
        outcome
    }

    /// Plants a layer that the records have, unless somebody has meanwhile. One on top of a layer that is not open waits for that, whose root it
    /// may show as its own.
    async fn plant_opened(&self, id: &Digest, layer: OpenLayer) -> Result<(), image::Error> {
        let is_closed = |layer: &&Layer| !self.trees.is_open(layer.number);
        let lowers = {
            let records = self.records.lock().await;
            let Some(record) = records.layer(id).filter(is_closed) else { return Ok(()) };
            let Some(lowers) = self.trees.chain(&records, record.parent.as_ref()) else { return Ok(()) };
            lowers
        };
        // With the records free: others may be building.
        let digest = layer.layer.digest;
        let prepare = move || trees::prepare(&layer, Some(&lowers)).map(|prepared| (layer, prepared));
        let (layer, prepared) = blocking(digest, prepare).await?;
        let records = self.records.lock().await;
        if let Some(record) = records.layer(id).filter(is_closed) {
            self.trees.plant(record.number, (record.id, record.contents.clone()), layer, prepared);
            self.openings.problems().remove(id);
        }
        Ok(())
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
