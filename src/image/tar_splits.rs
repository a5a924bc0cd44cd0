//! Reads layers whole for their tar-splits, by which podman pushes them (src/index/tar_split).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tracing::Instrument as _;

use super::Error;
use super::engine::{Engine, TICK};
use super::event::Report;
use super::layer::{OpenLayer, Opener, blocking};
use super::past_caches::{once_more, wrong_bytes};
use super::reading::Reading;
use super::whole::check_diff_id;
use crate::blob::Digest;
use crate::errors::chain;
use crate::fetch::{self, PassError};
use crate::index::{NoTarSplit, Split, TarSplit, TarSplitOrder};
use crate::registry::{self, Freshness};

/// What came of a layer.
type Outcome = Result<TarSplit, NoTarSplit>;

/// A layer that is to be read.
struct Wanted {
    layer: registry::Layer,
    contents: Arc<fetch::Layer>,
    /// What opening it has made.
    made: Option<Outcome>,
    diff_id: Digest,
}

impl Engine {
    /// Gives those layers that are `wanted`, by their numbers and with their diffIDs, a tar-split that can be used, or the reason why they have
    /// none. Each is read whole, unless opening it has done so.
    ///
    /// # Errors
    /// Where one cannot be read, or is not what the manifest and the config say: of several, the lowest one's, with its number.
    pub(crate) async fn split_each(
        self: &Arc<Self>,
        layers: &mut [OpenLayer],
        wanted: &BTreeMap<usize, Digest>,
        report: &Report,
    ) -> Result<(), (usize, Error)> {
        let numbers = layers.iter().enumerate().map(|(number, layer)| (number, layer.layer.digest));
        let reading = Arc::new(Reading::new(numbers));
        let splitting = FuturesUnordered::new();
        for (number, layer) in layers.iter_mut().enumerate() {
            let Some(diff_id) = wanted.get(&number).copied() else { continue };
            let (engine, reading) = (Arc::clone(self), Arc::clone(&reading));
            let (made, contents) = (layer.tar_split.take(), Arc::clone(&layer.contents));
            if made.is_none() {
                reading.expect(&layer.layer);
            }
            let wanted = Wanted { layer: layer.layer.clone(), contents, made, diff_id };
            let span = self.layer_span(number, &wanted.layer);
            let split = async move { (number, engine.split_unless_vain(wanted, number, &reading).await) };
            splitting.push(split.instrument(span));
        }
        let results = with_progress(splitting, &reading, report).await;
        for (number, result) in results {
            let outcome = result.map_err(|error| (number, error))?;
            if let Some(layer) = layers.get_mut(number) {
                if let Err(problem) = &outcome {
                    tracing::warn!(layer = %layer.layer.digest, problem = chain(problem), "podman cannot push this layer: it has no tar-split");
                }
                layer.tar_split = Some(outcome);
            }
        }
        Ok(())
    }

    /// Reads a layer, unless one below it could not be read anyway.
    async fn split_unless_vain(
        self: Arc<Self>,
        wanted: Wanted,
        number: usize,
        reading: &Reading,
    ) -> Result<Outcome, Error> {
        // An error says that there are no permits any more: nobody closes them.
        let _permit = self.passes.acquire().await;
        if self.lowest_failed.load(Ordering::Relaxed) < number {
            return Err(Error::Read(fetch::Error::Interrupted));
        }
        let digest = wanted.layer.digest;
        let outcome = self.split(wanted, reading).await;
        reading.end(&digest);
        if outcome.is_err() {
            self.lowest_failed.fetch_min(number, Ordering::Relaxed);
        }
        outcome
    }

    async fn split(&self, mut wanted: Wanted, reading: &Reading) -> Result<Outcome, Error> {
        let first = match wanted.made.take() {
            Some(made) => made,
            None => self.opener.read_split(&wanted, BTreeSet::new(), reading).await?,
        };
        let unreadable = match first {
            Ok(first) => match usable(&wanted.contents, first).await? {
                Ok(first) => return Ok(Ok(first)),
                Err(unreadable) => unreadable,
            },
            Err(problem) => return Ok(Err(problem)),
        };
        // Which file of several counts is known at the end of the tar, and their contents have passed by then.
        tracing::debug!(layer = %wanted.layer.digest, files = unreadable.len(), "reading the layer once more: podman could not read all files by their names");
        match self.opener.read_split(&wanted, unreadable, reading).await? {
            Ok(second) => Ok(usable(&wanted.contents, second).await?.map_err(|_| NoTarSplit::Unreadable)),
            Err(problem) => Ok(Err(problem)),
        }
    }
}

/// Keeps of the tar-splits that opening layers has made those that can be used as they are; reads no layer again for the others.
///
/// # Errors
/// Where a layer's index cannot be read, with its number.
pub(crate) async fn keep_usable(layers: &mut [OpenLayer]) -> Result<(), (usize, Error)> {
    for (number, layer) in layers.iter_mut().enumerate() {
        let Some(Ok(made)) = layer.tar_split.take() else { continue };
        let split = usable(&layer.contents, made).await.map_err(|error| (number, error))?;
        layer.tar_split = split.ok().map(Ok);
    }
    Ok(())
}

/// A tar-split that can be used, or the entries of the tar that it must not name.
async fn usable(contents: &Arc<fetch::Layer>, split: TarSplit) -> Result<Result<TarSplit, BTreeSet<u64>>, Error> {
    let (layer, contents) = (*contents.digest(), Arc::clone(contents));
    blocking(layer, move || Ok(split.usable(&contents.index().entries()?))).await
}

/// What came of all, by their numbers.
async fn with_progress<F: Future<Output = (usize, Result<Outcome, Error>)>>(
    mut splitting: FuturesUnordered<F>,
    reading: &Reading,
    report: &Report,
) -> BTreeMap<usize, Result<Outcome, Error>> {
    let mut results = BTreeMap::new();
    let mut ticks = tokio::time::interval(TICK);
    while !splitting.is_empty() {
        tokio::select! {
            Some((number, result)) = splitting.next() => {
                results.insert(number, result);
                reading.tell(report);
            }
            _ = ticks.tick() => reading.tell(report),
        }
    }
    results
}

impl Opener {
    /// Where a tar-split goes, if any is wanted. `raw`: the entries that it must not name.
    pub(super) fn order(&self, raw: BTreeSet<u64>) -> Result<Option<TarSplitOrder>, Error> {
        let Some(dir) = &self.tar_splits else { return Ok(None) };
        let file = tempfile::tempfile_in(dir).map_err(|source| Error::TarSplit { dir: dir.clone(), source })?;
        Ok(Some(TarSplitOrder { file, raw }))
    }

    /// Reads all of a layer. Wrong bytes are read once more, past caches.
    async fn read_split(
        self: &Arc<Self>,
        wanted: &Wanted,
        raw: BTreeSet<u64>,
        reading: &Reading,
    ) -> Result<Outcome, Error> {
        let read = |freshness| self.read_split_once(wanted, raw.clone(), freshness, reading);
        once_more(wanted.layer.blob.places(), wrong_bytes(wanted.layer.digest), read).await
    }

    async fn read_split_once(
        self: &Arc<Self>,
        wanted: &Wanted,
        raw: BTreeSet<u64>,
        freshness: Freshness,
        reading: &Reading,
    ) -> Result<Outcome, Error> {
        let Wanted { layer, contents, diff_id, .. } = wanted;
        let Some(order) = self.order(raw)? else { return Ok(Err(NoTarSplit::NotAsked)) };
        let source = match contents.source() {
            // It is waited for as while the image was opened.
            fetch::Source::Blob(_) => fetch::Source::Blob(layer.blob.clone()),
            held @ fetch::Source::Held { .. } => held,
        };
        let pass = self.pass_over(layer, source, freshness, reading.begin(layer));
        match pass.split(order).await {
            Ok(Split { diff_id: got, split }) => {
                check_diff_id(layer, Some(got), Some(*diff_id))?;
                Ok(split)
            }
            Err(PassError::Index(error)) if !error.is_wrong_bytes() => Ok(Err(NoTarSplit::NoTar(Box::new(error)))),
            Err(error) => Err(error.into()),
        }
    }
}
