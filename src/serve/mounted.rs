//! From an image that is open to the service of a mount.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::Error;
use super::layers::{Ask, Layers, Told};
use super::options::{LayerChoice, MountOptions};
use super::service::{Service, distinct};
use crate::blob::Digest;
use crate::cache::Cache;
use crate::errors::chain;
use crate::fetch::{self, Prefetch};
use crate::fs::forest::Forest;
use crate::image::config::Config;
use crate::image::engine::{Alone, Common, Engine, OpenImage, RESOLVE_WITHIN, read_ahead};
use crate::image::{self, Event, Report, heat, lowers};
use crate::registry::{self, Hosts};
use crate::threads::{self, Work};

/// One image, whose layers are all open.
pub(crate) struct MountedImage {
    id: String,
    layers: Vec<Arc<fetch::Layer>>,
    explained: Layers,
    heat: Vec<heat::Asked>,
    common: Common,
}

impl Service for MountedImage {
    const KIND: &'static str = "mount";
    type Request = Ask;
    type Answer = Told;

    fn id(&self) -> String {
        self.id.clone()
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn images(&self) -> usize {
        1
    }

    fn layers(&self) -> Vec<Arc<fetch::Layer>> {
        self.layers.clone()
    }

    async fn perform(self: Arc<Self>, request: Ask, _report: Report) -> Result<Told, String> {
        match request {
            Ask::Layers => Ok(Told::Layers(self.explained.told())),
            Ask::Heat => {
                // The index may have to be read from disk.
                let told =
                    threads::run(Work::Local, move || heat::of(&self.heat, self.common.record().map(AsRef::as_ref)));
                let told = told.await.map_err(|error| error.to_string())?;
                told.map(|heat| Told::Heat(Box::new(heat))).map_err(|damaged| chain(&damaged))
            }
        }
    }
}

/// What is served, waiting for its mount only.
pub(crate) struct Served {
    pub(crate) service: Arc<MountedImage>,
    pub(crate) forest: Arc<Forest>,
    pub(crate) image: OpenImage,
    /// Whether what a single layer hides in those below it is known.
    pub(super) has_lowers: bool,
    /// Runs once the mount is ready.
    pub(crate) prefetch: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Served {
    /// Layers that were not read whole before this could be mounted, as `explain` tells it.
    pub(crate) fn lazy(&self) -> usize {
        self.image.layers.iter().filter(|layer| layer.is_lazy() && layer.read_for.is_none()).count()
    }

    pub(crate) fn sent_whole(&self) -> usize {
        self.image.layers.iter().filter(|layer| layer.sent_whole).count()
    }

    /// KiB that the kernel is to read ahead.
    pub(crate) fn read_ahead(&self) -> u32 {
        read_ahead(self.image.layers.iter())
    }
}

/// The layer that `--layer` means.
fn chosen(layers: &[registry::Layer], choice: LayerChoice) -> Result<(u32, registry::Layer), image::Error> {
    let is_chosen = |number: u32, layer: &registry::Layer| match choice {
        LayerChoice::Number(wanted) => number == wanted,
        LayerChoice::Digest(digest) => layer.digest == digest,
    };
    let found = (0..).zip(layers).find(|(number, layer)| is_chosen(*number, layer));
    let (number, layer) =
        found.ok_or_else(|| image::Error::NoSuchLayer { wanted: choice.to_string(), count: layers.len() })?;
    Ok((number, layer.clone()))
}

/// What a mount is to be again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub(super) digest: Digest,
    /// Of a single layer: whether those below it were known.
    pub(super) has_lowers: bool,
}

/// All that a server needs before it mounts. `id`: what the mount is known by.
/// `known`: of the image, where it was mounted before.
pub(super) async fn served(
    options: &MountOptions,
    known: Option<Known>,
    id: String,
    hosts: Hosts,
    report: &Report,
) -> Result<Served, Error> {
    let common = Common::new(Cache::open(&options.source.cache_dir, options.source.cache_size), hosts).recording();
    let resolve_within = RESOLVE_WITHIN.min(options.mount_deadline / 2);
    let engine = Arc::new(Engine::sharing(common.clone(), &options.source, resolve_within, None)?);
    let mut image = match known {
        Some(Known { digest, .. }) => engine.resolve_again(digest, report).await?,
        None => engine.resolve(report).await?,
    };
    let mut inode_group = 0;
    let whole = Arc::new(image.clone());
    if let Some(choice) = options.layer {
        let (number, layer) = chosen(&image.layers, choice)?;
        image.layers = vec![layer];
        inode_group = number;
    }
    // Progress that nobody hears is none.
    let _heard =
        report(&Event::Resolved { name: image.name.clone(), digest: image.digest, layers: image.layers.len() });
    let guesses = options.prefetch != Prefetch::None;
    let config = Handle::current().spawn(started(Arc::clone(&engine), image.clone(), guesses));
    let image = engine.open(image, inode_group as usize, report).await?;
    let alone = match (options.layer, image.layers.as_slice()) {
        (Some(_), [_]) if known.is_some_and(|known| !known.has_lowers) => {
            Some(Alone { opaque: options.opaque_xattr, lowers: None })
        }
        (Some(_), [layer]) => {
            let lowers = lowers::of(&engine, &whole, layer, inode_group as usize);
            let lowers = tokio::time::timeout(options.mount_deadline / 4, lowers).await.ok().flatten();
            Some(Alone { opaque: options.opaque_xattr, lowers })
        }
        _ => None,
    };
    let has_lowers = alone.as_ref().is_some_and(|alone| alone.lowers.is_some());
    let merging = threads::run(Work::Opening, move || image.view(alone, guesses).map(|view| (image, view)));
    let (image, (view, readahead)) = merging.await.map_err(|source| image::Error::Merge { source })??;
    tokio::spawn(async move {
        if let Ok(started) = config.await {
            readahead.starts(started).await;
        }
    });
    let explained = Layers::new(&image.layers, engine.soci_source(&image.image).await);
    let layers = distinct(image.layers.iter().map(|layer| &layer.contents));
    let heat = heat::Asked::of(&image.layers);
    common.record().into_iter().for_each(|record| record.is_ready());
    let prefetch = Box::pin(fetch::prefetch(layers.clone(), options.prefetch));
    let forest = Arc::new(Forest::alone(Arc::new(view), inode_group));
    let service = Arc::new(MountedImage { id, layers, explained, heat, common });
    Ok(Served { service, forest, image, has_lowers, prefetch })
}

/// What the image starts, if that is to be guessed from. Nobody waits for it.
async fn started(engine: Arc<Engine>, image: registry::Image, guesses: bool) -> Vec<Vec<String>> {
    if guesses { engine.config(&image).await.map(Config::started).unwrap_or_default() } else { Vec::new() }
}
