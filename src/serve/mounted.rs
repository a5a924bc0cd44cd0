//! From an image that is open to what a server of one mount needs.

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::Error;
use super::control::{Activity, Figures};
use super::doing::{self, Doing};
use super::options::{LayerChoice, MountOptions};
use super::session::Serve;
use crate::blob::Digest;
use crate::cache::Cache;
use crate::fetch::{self, Prefetch};
use crate::fs::forest::Forest;
use crate::fs::fuse::{Frontend, Options, Server};
use crate::image::config::Config;
use crate::image::engine::{Alone, Common, Engine, RESOLVE_WITHIN, read_ahead};
use crate::image::layer::OpenLayer;
use crate::image::{self, Event, Report, lowers};
use crate::registry::{self, Hosts};
use crate::threads::{self, Work};

/// What is served, waiting for its descriptor only.
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) digest: Digest,
    pub(crate) layers: usize,
    /// Those of them that are not on local disk as a whole.
    pub(crate) lazy: usize,
    pub(crate) sent_whole: usize,
    pub(crate) serve: Serve,
    /// KiB that the kernel is to read ahead.
    pub(crate) read_ahead: u32,
    /// Runs once the mount is ready.
    pub(crate) prefetch: Pin<Box<dyn Future<Output = ()> + Send>>,
    pub(crate) figures: Figures,
    /// Writes what it does to the log.
    pub(crate) doing: Doing,
    /// What its metrics tell of now.
    pub(crate) common: Common,
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

/// All that a server needs before it mounts.
pub(crate) async fn served(options: &MountOptions, hosts: Hosts, report: &Report) -> Result<Served, Error> {
    let common = Common::new(Cache::open(&options.source.cache_dir, options.source.cache_size), hosts);
    let resolve_within = RESOLVE_WITHIN.min(options.mount_deadline / 2);
    let engine = Arc::new(Engine::sharing(common.clone(), &options.source, resolve_within, None)?);
    let mut image = engine.resolve(report).await?;
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
        (Some(_), [layer]) => {
            let lowers = lowers::of(&engine, &whole, layer, inode_group as usize);
            let lowers = tokio::time::timeout(options.mount_deadline / 4, lowers).await.ok().flatten();
            Some(Alone { opaque: options.opaque_xattr, lowers })
        }
        _ => None,
    };
    let merging = threads::run(Work::Opening, move || image.view(alone, guesses).map(|view| (image, view)));
    let (image, (view, readahead)) = merging.await.map_err(|source| image::Error::Merge { source })??;
    tokio::spawn(async move {
        if let Ok(started) = config.await {
            readahead.starts(started).await;
        }
    });
    let forest = Arc::new(Forest::alone(Arc::new(view), inode_group));
    let answers = Options { list_trusted: options.system_admin, nfs_export: options.nfs_export };
    let frontend = Frontend::new(forest, Handle::current(), answers);
    let contents = distinct(&image.layers);
    let doing = doing(engine.cache().clone(), &image.layers);
    Ok(Served {
        name: image.image.name.clone(),
        digest: image.image.digest,
        layers: image.layers.len(),
        lazy: image.layers.iter().filter(|layer| layer.is_lazy()).count(),
        sent_whole: image.layers.iter().filter(|layer| layer.sent_whole).count(),
        read_ahead: read_ahead(image.layers.iter()),
        serve: Box::new(move |device| Server::handshake(frontend, device)?.run()),
        prefetch: Box::pin(fetch::prefetch(contents, options.prefetch)),
        doing,
        common,
        figures: figures(image.layers),
    })
}

/// What the image starts, if that is to be guessed from. Nobody waits for it.
async fn started(engine: Arc<Engine>, image: registry::Image, guesses: bool) -> Vec<Vec<String>> {
    if guesses { engine.config(&image).await.map(Config::started).unwrap_or_default() } else { Vec::new() }
}

/// The contents of layers, each once.
fn distinct(layers: &[OpenLayer]) -> Vec<Arc<fetch::Layer>> {
    let mut seen = HashSet::new();
    let contents = layers.iter().map(|layer| &layer.contents);
    contents.filter(|contents| seen.insert(Arc::as_ptr(contents))).cloned().collect()
}

fn doing(cache: Cache, layers: &[OpenLayer]) -> Doing {
    let layers = distinct(layers);
    Arc::new(move || doing::tell(&layers, &cache))
}

fn figures(layers: Vec<OpenLayer>) -> Figures {
    let layers = distinct(&layers);
    Arc::new(move || layers.iter().fold(Activity::default(), |sum, layer| sum.and(layer_activity(layer))))
}

pub(crate) fn layer_activity(layer: &fetch::Layer) -> Activity {
    Activity { stats: layer.stats(), last_error: layer.last_error() }
}
