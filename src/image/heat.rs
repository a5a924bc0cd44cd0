//! What became of an image's bytes, for `crfs heat`: of a mount as its server has recorded it, of an image as the cache has it.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Error;
use super::engine::{Engine, RESOLVE_WITHIN};
use super::event::Report;
use super::layer::{OpenLayer, Probe};
use super::look::runtime;
use crate::blob::Digest;
use crate::fetch::heat::{Cell, Fates, Moment, Record, Told};
use crate::fetch::{self};
use crate::image::options::ImageOptions;
use crate::index::Damaged;
use crate::threads::{self, Work};

/// Parts that the time is divided into.
const BINS: u64 = 240;

/// What became of an image's bytes. The names of the fields are those of `crfs heat --json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heat {
    /// `None`: nothing of it is mounted, and no times are known.
    pub time: Option<Time>,
    /// All layers together.
    pub bytes: Fates,
    /// The lowest first; one that the image has several times, once.
    pub layers: Vec<LayerHeat>,
}

/// When it happened. All times are in milliseconds since the server began to open the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Time {
    /// When all layers were open.
    pub ready: Option<u64>,
    /// When this was asked for.
    pub now: u64,
    /// How long each of the bins is.
    pub bin: u64,
    pub bins: Vec<Bin>,
}

/// Bytes of contents that came, and that readers first needed, in one part of the time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bin {
    pub came: Fates,
    pub needed: u64,
    /// Those of them that a reader waited for.
    pub waited: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerHeat {
    pub number: usize,
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// Bytes of its contents, each file's rounded up to 4 KiB; `None`: it has no index yet.
    pub contents: Option<u64>,
    /// It was read whole before the mount was ready.
    pub whole: bool,
    pub bytes: Fates,
    /// One after the other, from the first byte of its contents on.
    pub cells: Vec<Cell>,
}

/// A layer that may be asked.
#[derive(Clone)]
pub(crate) struct Asked {
    number: usize,
    digest: Digest,
    size: u64,
    whole: bool,
    contents: Option<Arc<fetch::Layer>>,
}

impl Asked {
    /// Each once.
    pub(crate) fn of(layers: &[OpenLayer]) -> Vec<Self> {
        let mut seen = HashSet::new();
        let once = layers.iter().enumerate().filter(|(_, open)| seen.insert(Arc::as_ptr(&open.contents)));
        once.map(|(number, open)| Self::open(number, open)).collect()
    }

    fn open(number: usize, open: &OpenLayer) -> Self {
        let (digest, size, whole) = (open.layer.digest, open.layer.size, open.read_for.is_some());
        Self { number, digest, size, whole, contents: Some(Arc::clone(&open.contents)) }
    }
}

/// What became of the bytes of these layers until now. Blocking.
///
/// # Errors
/// Where the index of one is damaged.
pub(crate) fn of(layers: &[Asked], record: Option<&Record>) -> Result<Heat, Damaged> {
    let mut heat = Heat::default();
    let (mut came, mut needed) = (Vec::new(), Vec::new());
    for layer in layers {
        let Asked { number, digest, size, whole, contents } = layer.clone();
        let told = contents.as_ref().map(|contents| contents.heat()).transpose()?;
        let contents = contents.map(|contents| contents.index().summary().layer_file_len);
        let Told { bytes, cells, came: its_came, needed: its_needed } = told.unwrap_or_default();
        heat.bytes.join(&bytes);
        came.extend(its_came);
        needed.extend(its_needed);
        heat.layers.push(LayerHeat { number, digest, size, contents, whole, bytes, cells });
    }
    heat.time = record.map(|record| time(record.ready(), record.now(), &came, &needed));
    Ok(heat)
}

fn time(ready: Option<u64>, now: u64, came: &[Moment], needed: &[Moment]) -> Time {
    let last = came.iter().chain(needed).map(|moment| moment.millis).chain(ready).max().unwrap_or(0);
    // In steps that can be read: 1, 2, 5, 10, 20, ...
    let steps = (0..18).flat_map(|power| [1, 2, 5].map(|step| step * 10_u64.pow(power)));
    let bin = steps.into_iter().find(|step| last / step < BINS).unwrap_or(u64::MAX);
    let mut bins = vec![Bin::default(); usize::try_from(last / bin).unwrap_or(0).saturating_add(1)];
    let place = |moment: &Moment| usize::try_from(moment.millis / bin).unwrap_or(usize::MAX);
    for moment in came {
        bins.get_mut(place(moment)).into_iter().for_each(|bin| bin.came.add(moment.fate, moment.bytes));
    }
    for moment in needed {
        let Some(bin) = bins.get_mut(place(moment)) else { continue };
        bin.needed = bin.needed.saturating_add(moment.bytes);
        bin.waited = bin.waited.saturating_add(if moment.waited { moment.bytes } else { 0 });
    }
    Time { ready, now, bin, bins }
}

/// An image that is not mounted: what the cache has of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedImage {
    pub image: String,
    pub digest: Digest,
    pub heat: Heat,
}

/// What the cache has of an image. Reads no layer.
///
/// # Errors
/// Where the image cannot be resolved.
pub fn of_cache(options: &ImageOptions, report: &Report) -> Result<CachedImage, Error> {
    runtime()?.block_on(async {
        let engine = Arc::new(Engine::new(options, RESOLVE_WITHIN)?);
        let image = engine.resolve(report).await?;
        let mut layers = Vec::new();
        let mut seen = HashSet::new();
        for (number, layer) in image.layers.iter().enumerate().filter(|(_, layer)| seen.insert(layer.digest)) {
            let ztoc = engine.soci(&image).await?.and_then(|soci| soci.layers.get(&layer.digest).cloned());
            let (opener, of) = (Arc::clone(&engine.opener), layer.clone());
            let probing = threads::run(Work::Opening, move || opener.probe_cached(&of, ztoc.as_ref()));
            let probed = probing.await.map_err(|source| Error::LayerTask { layer: layer.digest, source })??;
            let (digest, size) = (layer.digest, layer.size);
            layers.push(match probed {
                Some(Probe::Ready(open)) => Asked::open(number, &open),
                _ => Asked { number, digest, size, whole: false, contents: None },
            });
        }
        let looking = threads::run(Work::Local, move || of(&layers, None));
        let heat = looking.await.map_err(|source| Error::LayerTask { layer: image.digest, source })?;
        let heat = heat.map_err(|damaged| Error::Read(fetch::Error::Index(Arc::new(damaged))))?;
        Ok(CachedImage { image: image.name, digest: image.digest, heat })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::heat::Fate;

    #[test]
    fn time_is_told_in_parts_that_can_be_read() {
        let moment = |millis, fate, waited| Moment { millis, fate, waited, bytes: 10 };
        let came = [moment(40, Fate::Demanded, true), moment(990, Fate::Unused, false)];
        let needed = [moment(0, Fate::Demanded, true), moment(41, Fate::Foreseen, false)];
        let told = time(Some(300), 5000, &came, &needed);
        assert_eq!((told.bin, told.bins.len(), told.ready, told.now), (5, 199, Some(300), 5000));
        assert_eq!((told.bins[0].needed, told.bins[0].waited), (10, 10));
        assert_eq!((told.bins[8].came.demanded, told.bins[8].needed, told.bins[8].waited), (10, 10, 0));
        assert_eq!(told.bins[198].came.unused, 10);
        assert_eq!(time(None, 1, &[], &[]).bins, [Bin::default()]);
        assert_eq!(time(Some(u64::MAX), 1, &[], &[]).bins.len(), 185);
    }
}
