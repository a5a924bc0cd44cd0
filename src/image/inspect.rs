//! `crfs inspect`: what an image is made of, and which of its layers can be read lazily.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Error;
use super::config::Config;
use super::engine::{Engine, RESOLVE_WITHIN};
use super::event::Report;
use super::layer::{OpenLayer, Probe};
use super::look::runtime;
use super::why::Why;
use crate::blob::Digest;
use crate::image::options::ImageOptions;
use crate::index::{self, Trust};
use crate::registry::{self, EndpointReport, Login, Platform, Soci, SociSource};

/// An image. The names of the fields are those of `crfs inspect --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    pub image: String,
    pub digest: Digest,
    /// `os/arch[/variant]`, where the image says so.
    pub platform: Option<String>,
    /// Whether the config says what the layers unpack to.
    pub config: DiffIds,
    /// Bytes that a mount would fetch before it is ready.
    pub wait: u64,
    /// Where it was asked for, and what came of it.
    pub endpoints: Vec<EndpointReport>,
    /// The lowest first.
    pub layers: Vec<LayerInspection>,
}

/// What the config says of the layers' tars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiffIds {
    /// The digest of each.
    Complete,
    /// Not of all: nothing compares the others.
    Incomplete,
    /// The config cannot be had or read: nothing compares any.
    NoConfig,
}

impl DiffIds {
    fn of(config: Option<&Config>, layers: usize) -> Self {
        match config {
            None => Self::NoConfig,
            Some(config) if (0..layers).all(|layer| config.diff_id(layer).is_some()) => Self::Complete,
            Some(_) => Self::Incomplete,
        }
    }
}

/// A layer, as a mount would read it, or as the mount has read it whose server tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInspection {
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    pub media_type: String,
    /// Whether it can be opened: a mount of the image is refused where it cannot.
    pub usable: bool,
    /// Whether its contents would be fetched in parts, and nothing of them before it is ready.
    pub lazy: bool,
    /// Which index a mount would use.
    pub index_from: IndexFrom,
    /// Requests that a mount would make for it, and wait for.
    pub requests: u64,
    /// Bytes that a mount would fetch of it, and wait for.
    pub wait: u64,
    /// Why it is lazy or not, or cannot be opened.
    pub reason: String,
    /// What would make it better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// Whether podman from 5.1 on asks an additional layer store for it.
    #[serde(default)]
    pub podman_asks: bool,
    /// What was asked of its host since it was ready, where a server tells of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Since>,
    /// `None` where it has none yet, or cannot be opened.
    #[serde(flatten)]
    pub index: Option<IndexInspection>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since {
    pub requests: u64,
    pub fetched: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IndexFrom {
    /// The layer's table of contents.
    Toc,
    /// Made by crfs from the layer itself.
    Own,
    /// The zTOC of a SOCI index.
    Soci,
    /// There is none: the layer has to be read first.
    None,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexInspection {
    pub format: String,
    pub entries: u64,
    pub units: u32,
    /// Bytes of the TOC as it is in the registry.
    pub toc_size: u64,
    /// Bytes of all contents, each file's rounded up to 4 KiB.
    pub contents_size: u64,
}

/// The layers of an image, for `crfs explain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers {
    pub image: String,
    pub digest: Digest,
    /// Where it is asked for, and what came of it.
    pub endpoints: Vec<EndpointReport>,
    /// The lowest first.
    pub layers: Vec<LayerInspection>,
}

/// What asking for an image tells of the way to it.
pub struct Way {
    pub layers: Result<Layers, Error>,
    /// Also where the image could not be had.
    pub endpoints: Vec<EndpointReport>,
    /// Who its registry is told that this is.
    pub login: Result<Login, Error>,
    /// Seconds that the clock of a host is ahead.
    pub clock_ahead: Option<i64>,
}

/// Asks for an image as [`layers`] does.
///
/// # Errors
/// Where nothing can be asked.
pub fn way(options: &ImageOptions, report: &Report) -> Result<Way, Error> {
    runtime()?.block_on(async {
        let engine = Arc::new(Engine::new(options, RESOLVE_WITHIN)?);
        let client = engine.opener.client.clone();
        let login = client.login(&options.image).await.map_err(Error::from);
        let layers = async {
            let image = engine.resolve(report).await?;
            let layers = engine.inspect_layers(&image).await?;
            Ok(Layers { layers, endpoints: client.endpoints(), image: image.name, digest: image.digest })
        };
        let layers = layers.await;
        Ok(Way { layers, endpoints: client.endpoints(), login, clock_ahead: client.clock_ahead() })
    })
}

/// Opens every layer and says what came of it.
///
/// # Errors
/// Where the image cannot be resolved.
pub fn inspect(options: &ImageOptions, report: &Report) -> Result<Inspection, Error> {
    runtime()?.block_on(async {
        let engine = Arc::new(Engine::new(options, RESOLVE_WITHIN)?);
        let image = engine.resolve(report).await?;
        let layers = engine.inspect_layers(&image).await?;
        Ok(Inspection {
            platform: platform(&engine, &image).await.map(|platform| platform.to_string()),
            config: DiffIds::of(engine.config(&image).await.ok(), layers.len()),
            image: image.name,
            digest: image.digest,
            wait: layers.iter().map(|layer| layer.wait).fold(0, u64::saturating_add),
            endpoints: engine.opener.client.endpoints(),
            layers,
        })
    })
}

/// The same of the layers alone.
///
/// # Errors
/// Where the image cannot be resolved.
pub fn layers(options: &ImageOptions, report: &Report) -> Result<Layers, Error> {
    runtime()?.block_on(async {
        let engine = Arc::new(Engine::new(options, RESOLVE_WITHIN)?);
        let image = engine.resolve(report).await?;
        let layers = engine.inspect_layers(&image).await?;
        Ok(Layers { layers, endpoints: engine.opener.client.endpoints(), image: image.name, digest: image.digest })
    })
}

/// The same of the image that something has, by its digest, wherever its tag leads by now.
///
/// # Errors
/// Where neither the cache has its manifest nor the reference leads to it.
pub fn layers_pinned(options: &ImageOptions, digest: Digest, report: &Report) -> Result<Layers, Error> {
    let options = ImageOptions { image: options.image.clone().pinned(digest), ..options.clone() };
    runtime()?.block_on(async {
        let engine = Arc::new(Engine::new(&options, RESOLVE_WITHIN)?);
        let image = engine.resolve_again(digest, report).await?;
        let layers = engine.inspect_layers(&image).await?;
        Ok(Layers { layers, endpoints: engine.opener.client.endpoints(), image: image.name, digest })
    })
}

impl Engine {
    /// Opens every layer of an image and says what came of it.
    async fn inspect_layers(self: &Arc<Self>, image: &registry::Image) -> Result<Vec<LayerInspection>, Error> {
        let (looked, again) = self.probe_each(image).await?;
        let soci = self.soci(image).await?;
        let inspect = |(number, looked)| Some((number, layer_inspection(image.layers.get(number)?, soci, looked)));
        let mut layers: BTreeMap<usize, _> = looked.into_iter().filter_map(inspect).collect();
        for (number, first) in again {
            // It is fetched once.
            let again = layers.get(&first).map(|first| LayerInspection { requests: 0, wait: 0, ..first.clone() });
            layers.extend(again.map(|again| (number, again)));
        }
        Ok(layers.into_values().collect())
    }
}

/// What an open image has cost before it was ready, and why.
pub(crate) fn opened(layers: &[OpenLayer], soci: Option<SociSource>) -> Vec<LayerInspection> {
    layers.iter().map(|layer| of_open(layer, soci)).collect()
}

/// What the index says, or else the config.
async fn platform(engine: &Engine, image: &registry::Image) -> Option<Platform> {
    match &image.platform {
        Some(platform) => Some(platform.clone()),
        None => engine.config(image).await.ok().and_then(Config::platform),
    }
}

fn layer_inspection(layer: &registry::Layer, soci: Option<&Soci>, probed: Result<Probe, Error>) -> LayerInspection {
    match probed {
        Ok(Probe::Ready(open)) => of_open(&open, soci.map(|soci| soci.source)),
        Ok(Probe::NeedsFullRead(pending)) => {
            let Why { reason, advice } = Why::of_pending(&pending);
            let (asked, advice) = (layer.blob.traffic(), advice.map(str::to_owned));
            let is_asked_again = layer.blob.is_remote() && !pending.is_here() && pending.body.is_none();
            let requests = asked.requests.saturating_add(u64::from(is_asked_again));
            let wait = asked.bytes.saturating_add(if pending.is_here() { 0 } else { layer.size });
            LayerInspection { requests, wait, reason, advice, ..unknown(layer) }
        }
        Err(error) => LayerInspection { usable: false, reason: error.chain(), ..unknown(layer) },
    }
}

/// A layer that is not open.
fn unknown(layer: &registry::Layer) -> LayerInspection {
    LayerInspection {
        digest: layer.digest,
        size: layer.size,
        media_type: layer.media_type.clone(),
        usable: true,
        lazy: false,
        index_from: IndexFrom::None,
        requests: 0,
        wait: 0,
        reason: String::new(),
        advice: None,
        podman_asks: index::podman_asks(&layer.annotations),
        since: None,
        index: None,
    }
}

fn of_open(open: &OpenLayer, soci: Option<SociSource>) -> LayerInspection {
    let Why { reason, advice } = Why::of_open(open, soci);
    LayerInspection {
        lazy: open.is_lazy() && open.read_for.is_none(),
        index_from: match open.trust {
            Trust::Blob => IndexFrom::Own,
            Trust::Soci => IndexFrom::Soci,
            Trust::Manifest | Trust::Unverified => IndexFrom::Toc,
        },
        requests: open.cost.requests.saturating_add(open.beside.requests),
        wait: open.cost.bytes.saturating_add(open.beside.bytes),
        reason,
        advice: advice.map(str::to_owned),
        index: Some(index_inspection(open)),
        ..unknown(&open.layer)
    }
}

fn index_inspection(open: &OpenLayer) -> IndexInspection {
    let summary = open.summary();
    IndexInspection {
        format: summary.format.to_string(),
        entries: summary.entries,
        units: summary.units,
        toc_size: summary.toc_len,
        contents_size: summary.layer_file_len,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_may_say_nothing_of_a_layer() {
        let config = |rootfs: &str| Config::parse(format!("{{{rootfs}}}").as_bytes()).ok();
        let digest = Digest::of(b"");
        let one = config(&format!(r#""rootfs": {{"type": "layers", "diff_ids": ["{digest}"]}}"#));
        assert_eq!(DiffIds::of(one.as_ref(), 1), DiffIds::Complete);
        assert_eq!(DiffIds::of(one.as_ref(), 2), DiffIds::Incomplete);
        assert_eq!(DiffIds::of(config("").as_ref(), 1), DiffIds::Incomplete);
        assert_eq!(DiffIds::of(config(r#""rootfs": {}"#).as_ref(), 1), DiffIds::Incomplete);
        assert_eq!(DiffIds::of(config("not JSON").as_ref(), 1), DiffIds::NoConfig);
    }
}
