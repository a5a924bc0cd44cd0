//! `crfs inspect`: what an image is made of, and which of its layers can be read lazily.

use std::sync::Arc;

use serde::Serialize;

use super::Error;
use super::config::Config;
use super::image::{Engine, RESOLVE_WITHIN};
use super::layer::OpenLayer;
use super::look::runtime;
use super::options::ImageOptions;
use crate::blob::Digest;
use crate::cache::Cache;
use crate::index::Trust;
use crate::registry::{self, Platform};

/// An image. The names of the fields are those of `crfs inspect --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    pub image: String,
    pub digest: Digest,
    /// `os/arch[/variant]`, where the image says so.
    pub platform: Option<String>,
    /// The lowest first.
    pub layers: Vec<LayerInspection>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerInspection {
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    pub media_type: String,
    /// Whether its contents would be fetched when they are read.
    pub lazy: bool,
    /// Why it is lazy or not, or cannot be opened.
    pub reason: String,
    /// `None` where it cannot be opened.
    #[serde(flatten)]
    pub index: Option<IndexInspection>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IndexInspection {
    pub format: String,
    pub entries: u64,
    pub units: u32,
    /// Bytes of the TOC as it is in the registry.
    pub toc_size: u64,
    /// Bytes of all contents, each file's rounded up to 4 KiB.
    pub contents_size: u64,
}

/// Opens every layer and says what came of it.
///
/// # Errors
/// Where the image cannot be resolved.
pub fn inspect(options: &ImageOptions) -> Result<Inspection, Error> {
    runtime()?.block_on(async {
        let engine = Arc::new(Engine::new(options, RESOLVE_WITHIN)?);
        let image = engine.resolve().await?;
        let opened = engine.try_each(&image).await;
        let layers = image.layers.iter().zip(opened).map(|(layer, opened)| layer_inspection(layer, opened)).collect();
        Ok(Inspection {
            platform: platform(&image, engine.cache()).await.map(|platform| platform.to_string()),
            image: image.name,
            digest: image.digest,
            layers,
        })
    })
}

/// What the index says, or else the config.
async fn platform(image: &registry::Image, cache: &Cache) -> Option<Platform> {
    match &image.platform {
        Some(platform) => Some(platform.clone()),
        None => Config::read(image, cache).await.map(Config::platform),
    }
}

fn layer_inspection(layer: &registry::Layer, opened: Result<OpenLayer, Error>) -> LayerInspection {
    let (lazy, reason) = match &opened {
        Ok(open) => (open.is_lazy(), reason(open).to_owned()),
        Err(error) => (false, error.chain()),
    };
    let index = opened.ok().map(|open| index_inspection(&open));
    LayerInspection {
        digest: layer.digest,
        size: layer.size,
        media_type: layer.media_type.clone(),
        lazy,
        reason,
        index,
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

fn reason(layer: &OpenLayer) -> &'static str {
    match layer.trust {
        _ if layer.whole => "read whole: it is smaller than --whole-layer-below",
        Trust::Manifest => "the manifest names the digest of its table of contents",
        Trust::Blob => "its own digest vouches for its table of contents: it was read whole before",
        Trust::Unverified => "nothing vouches for its table of contents (--insecure-unverified-toc)",
    }
}
