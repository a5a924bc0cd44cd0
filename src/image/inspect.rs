//! `crfs inspect`: what an image is made of, and which of its layers can be read lazily.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::Error;
use super::config::Config;
use super::engine::{Engine, RESOLVE_WITHIN};
use super::event::Report;
use super::layer::{Fetches, Looked, OpenLayer, Pending, Reason};
use super::look::runtime;
use crate::blob::Digest;
use crate::image::options::ImageOptions;
use crate::index::Trust;
use crate::registry::{self, Platform, Soci, SociSource};

/// Of a layer that somebody has rewritten, and not what the manifest says of it.
const MISFIT: &str = "the manifest names a table of contents that is not used";

/// For a layer that can only be unpacked from its start.
const IN_PARTS: &str = "push it as zstd:chunked or eStargz, or give the cache more room";

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

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerInspection {
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    pub media_type: String,
    /// Whether those of its contents would be fetched that are read.
    pub lazy: bool,
    /// Which index a mount would use.
    pub index_from: IndexFrom,
    /// Bytes that a mount would fetch of it, and wait for.
    pub wait: u64,
    /// Why it is lazy or not, or cannot be opened.
    pub reason: String,
    /// What would make it better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// `None` where it has none yet, or cannot be opened.
    #[serde(flatten)]
    pub index: Option<IndexInspection>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
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
pub fn inspect(options: &ImageOptions, report: &Report) -> Result<Inspection, Error> {
    runtime()?.block_on(async {
        let engine = Arc::new(Engine::new(options, RESOLVE_WITHIN)?);
        let image = engine.resolve(report).await?;
        let (looked, again) = engine.look_at_each(&image).await?;
        let soci = engine.soci(&image).await?;
        let inspect = |(number, looked)| Some((number, layer_inspection(image.layers.get(number)?, soci, looked)));
        let mut layers: BTreeMap<usize, _> = looked.into_iter().filter_map(inspect).collect();
        for (number, first) in again {
            // It is fetched once.
            let again = layers.get(&first).map(|first| LayerInspection { wait: 0, ..first.clone() });
            layers.extend(again.map(|again| (number, again)));
        }
        let layers: Vec<_> = layers.into_values().collect();
        Ok(Inspection {
            platform: platform(&engine, &image).await.map(|platform| platform.to_string()),
            config: DiffIds::of(engine.config(&image).await.ok(), layers.len()),
            image: image.name,
            digest: image.digest,
            wait: layers.iter().map(|layer| layer.wait).fold(0, u64::saturating_add),
            layers,
        })
    })
}

/// What the index says, or else the config.
async fn platform(engine: &Engine, image: &registry::Image) -> Option<Platform> {
    match &image.platform {
        Some(platform) => Some(platform.clone()),
        None => engine.config(image).await.ok().and_then(Config::platform),
    }
}

fn layer_inspection(layer: &registry::Layer, soci: Option<&Soci>, looked: Result<Looked, Error>) -> LayerInspection {
    let inspection = LayerInspection {
        digest: layer.digest,
        size: layer.size,
        media_type: layer.media_type.clone(),
        lazy: false,
        index_from: IndexFrom::None,
        wait: 0,
        reason: String::new(),
        advice: None,
        index: None,
    };
    let ztoc = soci.and_then(|soci| soci.layers.get(&layer.digest));
    let of_ztoc = ztoc.map_or(0, |ztoc| ztoc.blob.traffic().bytes);
    match looked {
        Ok(Looked::Open(open)) => LayerInspection {
            lazy: open.is_lazy(),
            index_from: match open.trust {
                Trust::Blob => IndexFrom::Own,
                Trust::Soci => IndexFrom::Soci,
                Trust::Manifest | Trust::Unverified => IndexFrom::Toc,
            },
            wait: layer.blob.traffic().bytes.saturating_add(of_ztoc),
            reason: reason(&open, soci),
            advice: matches!(open.fetches(), Fetches::Kept | Fetches::Whole).then(|| IN_PARTS.to_owned()),
            index: Some(index_inspection(&open)),
            ..inspection
        },
        Ok(Looked::Pass(pending)) => {
            let (reason, advice) = pending_texts(&pending);
            LayerInspection { wait: layer.size, reason, advice: Some(advice.to_owned()), ..inspection }
        }
        Err(error) => LayerInspection { reason: error.chain(), ..inspection },
    }
}

/// Why a layer has to be read whole, and what would make it better.
fn pending_texts(pending: &Pending) -> (String, &'static str) {
    if let Some(misfit) = pending.misfit.as_ref().filter(|_| pending.reason != Reason::Evicted) {
        return (
            format!("{MISFIT} ({misfit}): the first mount reads all of it, and keeps an index"),
            "push the image again with a tool that renews the annotations of layers that it rewrites, or drops them",
        );
    }
    match pending.reason {
        Reason::Plain => (
            "it has no table of contents: the first mount reads all of it, and keeps an index".to_owned(),
            "`crfs index` makes the index ahead of time; eStargz and zstd:chunked images need none",
        ),
        Reason::Unvouched(format) => (
            format!(
                "nothing in the manifest vouches for its table of contents ({format}): the first mount reads all of it"
            ),
            "push the image again, so that its manifest names the digest of the table of contents",
        ),
        Reason::SentWhole => (
            "its host sends all of it when it is asked for a part (200), as a pull-through cache does that has not got it yet: a mount reads all \
             of it first, and keeps what it holds"
                .to_owned(),
            "mount it once: a cache that has it then may send parts; or mount from a registry that answers range requests",
        ),
        Reason::Evicted => (
            "it can only be unpacked from its start, and what was unpacked is not all in the cache any more".to_owned(),
            IN_PARTS,
        ),
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

fn reason(layer: &OpenLayer, soci: Option<&Soci>) -> String {
    let reason = voucher(layer, soci);
    match &layer.misfit {
        Some(misfit) => format!("{reason}; {MISFIT} ({misfit})"),
        None => reason.to_owned(),
    }
}

fn voucher(layer: &OpenLayer, soci: Option<&Soci>) -> &'static str {
    match layer.fetches() {
        Fetches::Nothing => return "read whole: it is smaller than --whole-layer-below",
        Fetches::Kept => {
            return "it can only be unpacked from its start: it was read whole before, and all that it holds is kept while \
                    it is mounted";
        }
        Fetches::Whole => {
            return "it can only be unpacked from its start: it was read whole before, and is again for what the cache has \
                    not";
        }
        Fetches::Part => {}
    }
    match layer.trust {
        Trust::Manifest => "the manifest names the digest of its table of contents",
        Trust::Blob => "its own digest vouches for its index: it was read whole before",
        Trust::Soci => match soci.map(|soci| soci.source) {
            Some(SociSource::Referrer) => "a SOCI index that says it belongs to the image has a zTOC of it (--soci-v1)",
            Some(SociSource::Given) => "the SOCI index that you named has a zTOC of it",
            Some(SociSource::Manifest) | None => "the SOCI index that the manifest names has a zTOC of it",
        },
        Trust::Unverified => "nothing vouches for its table of contents (--insecure-unverified-toc)",
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
