//! From a reference to something that can be served or looked into: resolve, open all layers at once, merge.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::runtime::Handle;

use super::Error;
use super::config::Config;
use super::control::{Activity, Figures};
use super::event::{Event, Report};
use super::layer::{OpenLayer, Opener};
use super::options::{ImageOptions, LayerChoice, MountOptions};
use super::server::Served;
use crate::cache::Cache;
use crate::fetch::{self, Around, Files, Prefetch};
use crate::fs::fuse::{Frontend, Options, Server};
use crate::fs::tree::{OpaqueXattr, Tree};
use crate::fs::view::{Contents, View};
use crate::index::{self, Summary};
use crate::registry::{self, Client};

/// A person who waits wants to hear soon that a registry is down; one that is being restarted is back within this time.
pub(super) const RESOLVE_WITHIN: Duration = Duration::from_secs(20);

/// KiB that the kernel reads ahead: what FUSE_INIT gives at most, and the length of a READ.
const READ_AHEAD: std::ops::Range<u32> = 128..1024;

/// Opens images: the registry client, the cache, and what was asked for.
pub struct Engine {
    opener: Arc<Opener>,
}

/// An image whose layers are all open, the lowest first. With `--layer`: that one alone.
pub struct OpenImage {
    pub image: registry::Image,
    pub layers: Vec<OpenLayer>,
}

impl Engine {
    /// Needs a tokio runtime. A registry that gives no sign of life for `resolve_within` is given up while the reference is resolved.
    ///
    /// # Errors
    /// Where the client cannot be set up.
    pub fn new(options: &ImageOptions, resolve_within: Duration) -> Result<Self, Error> {
        let client = registry::Options {
            auth_files: options.auth_files.clone(),
            tls_verify: options.tls_verify,
            cert_dir: options.cert_dir.clone(),
            platform: options.platform.clone(),
            io_deadline: options.io_deadline,
        };
        let cache = Cache::open(&options.cache_dir, options.cache_size);
        let opener = Opener {
            image: options.image.clone(),
            client: Client::new(client, Arc::new(cache.clone()))?.with_resolve_deadline(resolve_within),
            engine: fetch::Engine::new(cache.clone(), options.io_deadline),
            cache,
            options: index::Options {
                whole_layer_below: options.whole_layer_below,
                insecure_unverified_toc: options.insecure_unverified_toc,
            },
            runtime: Handle::current(),
        };
        Ok(Self { opener: Arc::new(opener) })
    }

    pub(super) fn cache(&self) -> &Cache {
        &self.opener.cache
    }

    /// Resolves the reference, once.
    ///
    /// # Errors
    /// Where it names no image that can be had.
    pub async fn resolve(&self) -> Result<registry::Image, Error> {
        Ok(self.opener.client.resolve(&self.opener.image).await?)
    }

    /// Opens all layers at once.
    ///
    /// # Errors
    /// Where a layer cannot be opened: of several, the lowest one's, so that the same image gives the same message.
    pub async fn open(self: &Arc<Self>, image: registry::Image, report: &Report) -> Result<OpenImage, Error> {
        let of = image.layers.len();
        let (mut done, mut fetched) = (0, 0u64);
        let opened = self.each_layer(&image.layers, |layer| {
            done += 1;
            fetched = fetched.saturating_add(layer.layer.blob.traffic().bytes);
            // Progress that nobody hears is none.
            let _heard = report(&Event::Opened { layers: done, of, fetched });
        });
        let layers = opened.await.into_iter().collect::<Result<_, Error>>()?;
        Ok(OpenImage { image, layers })
    }

    /// Opens all layers at once and keeps what came of each, for `crfs inspect`.
    pub async fn try_each(self: &Arc<Self>, image: &registry::Image) -> Vec<Result<OpenLayer, Error>> {
        self.each_layer(&image.layers, |_| ()).await
    }

    /// What came of each layer, the lowest first. `opened` hears of those that can be read, in the order in which they come.
    async fn each_layer(
        self: &Arc<Self>,
        layers: &[registry::Layer],
        mut opened: impl FnMut(&OpenLayer),
    ) -> Vec<Result<OpenLayer, Error>> {
        let open = |(number, layer)| async move { (number, self.clone().open_layer(layer).await) };
        let mut opening: FuturesUnordered<_> = layers.iter().cloned().enumerate().map(open).collect();
        let mut results = BTreeMap::new();
        while let Some((number, result)) = opening.next().await {
            result.iter().for_each(&mut opened);
            results.insert(number, result);
        }
        results.into_values().collect()
    }

    async fn open_layer(self: Arc<Self>, layer: registry::Layer) -> Result<OpenLayer, Error> {
        let digest = layer.digest;
        let opening = tokio::task::spawn_blocking(move || self.opener.open(layer));
        opening.await.map_err(|source| Error::LayerTask { layer: digest, source })?
    }
}

impl OpenImage {
    /// All layers merged; with an xattr for opaque directories, the only layer alone, the way overlayfs wants a lower. With `guesses`, more is
    /// fetched than what is read. Blocking.
    ///
    /// # Errors
    /// Where an index is damaged, or the layers do not fit together.
    pub fn view(&self, alone: Option<OpaqueXattr>, guesses: bool) -> Result<(View, Arc<Around>), Error> {
        let entries = self.layers.iter().map(|layer| layer.contents.index().entries());
        let entries = entries.collect::<Result<Vec<_>, _>>()?;
        let tree = match (alone, entries.as_slice()) {
            (Some(opaque), [only]) => Tree::single(only, opaque)?,
            _ => Tree::merged(&entries)?,
        };
        let tree = Arc::new(tree);
        let contents = self.layers.iter().map(|layer| Arc::clone(&layer.contents)).collect();
        let around = Around::new(contents, Arc::clone(&tree) as Arc<dyn Files>, guesses);
        Ok((View::new(tree, Arc::clone(&around) as Arc<dyn Contents>), around))
    }
}

/// The layer that `--layer` means.
fn chosen(layers: &[registry::Layer], choice: LayerChoice) -> Result<(u32, registry::Layer), Error> {
    let is_chosen = |number: u32, layer: &registry::Layer| match choice {
        LayerChoice::Number(wanted) => number == wanted,
        LayerChoice::Digest(digest) => layer.digest == digest,
    };
    let found = (0..).zip(layers).find(|(number, layer)| is_chosen(*number, layer));
    let (number, layer) =
        found.ok_or_else(|| Error::NoSuchLayer { wanted: choice.to_string(), count: layers.len() })?;
    Ok((number, layer.clone()))
}

/// All that a server needs before it mounts.
pub(crate) async fn served(options: &MountOptions, report: &Report) -> Result<Served, Error> {
    let engine = Arc::new(Engine::new(&options.source, RESOLVE_WITHIN.min(options.mount_deadline / 2))?);
    let mut image = engine.resolve().await?;
    let mut inode_group = 0;
    if let Some(choice) = options.layer {
        let (number, layer) = chosen(&image.layers, choice)?;
        image.layers = vec![layer];
        inode_group = number;
    }
    // Progress that nobody hears is none.
    let _heard =
        report(&Event::Resolved { name: image.name.clone(), digest: image.digest, layers: image.layers.len() });
    let guesses = options.prefetch != Prefetch::None;
    let config = Handle::current().spawn(config(Arc::clone(&engine), image.clone(), guesses));
    let image = engine.open(image, report).await?;
    let alone = options.layer.map(|_| options.opaque_xattr);
    let merging = tokio::task::spawn_blocking(move || image.view(alone, guesses).map(|view| (image, view)));
    let (image, (view, around)) = merging.await.map_err(|source| Error::Merge { source })??;
    tokio::spawn(async move {
        if let Ok(Some(config)) = config.await {
            // A task that panicked has told so.
            let _ended = tokio::task::spawn_blocking(move || around.starts(&config.started())).await;
        }
    });
    let frontend =
        Frontend::new(Arc::new(view), Handle::current(), Options { list_trusted: options.system_admin, inode_group });
    let contents = image.layers.iter().map(|layer| Arc::clone(&layer.contents)).collect();
    Ok(Served {
        name: image.image.name.clone(),
        digest: image.image.digest,
        layers: image.layers.len(),
        lazy: image.layers.iter().filter(|layer| layer.is_lazy()).count(),
        read_ahead: read_ahead(&image.layers),
        serve: Box::new(move |device| Server::handshake(frontend, device)?.run()),
        prefetch: Box::pin(fetch::prefetch(contents, options.prefetch)),
        figures: figures(image.layers),
    })
}

/// What the image starts, if that is to be guessed from. Nobody waits for it.
async fn config(engine: Arc<Engine>, image: registry::Image, guesses: bool) -> Option<Config> {
    if guesses { Config::read(&image, engine.cache()).await } else { None }
}

/// How many KiB the kernel is to read ahead: 16 units, since a read brings whole units anyway, but no more than the 1 MiB of a READ.
fn read_ahead(layers: &[OpenLayer]) -> u32 {
    let total = |of: fn(&Summary) -> u64| layers.iter().map(|layer| of(layer.summary())).fold(0, u64::saturating_add);
    let (bytes, units) = (total(|summary| summary.layer_file_len), total(|summary| summary.units.into()));
    let unit = bytes.checked_div(units).unwrap_or(0);
    u32::try_from(unit.saturating_mul(16) >> 10).unwrap_or(u32::MAX).clamp(READ_AHEAD.start, READ_AHEAD.end)
}

fn figures(layers: Vec<OpenLayer>) -> Figures {
    Arc::new(move || layers.iter().fold(Activity::default(), |sum, layer| sum.and(layer_activity(layer))))
}

fn layer_activity(layer: &OpenLayer) -> Activity {
    Activity { stats: layer.contents.stats(), last_error: layer.contents.last_error() }
}
