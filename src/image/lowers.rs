//! The layers below one that is mounted alone: which of its whiteouts hide something.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;

use super::engine::Engine;
use super::layer::{OpenLayer, Probe};
use super::reading::Reading;
use crate::errors::chain;
use crate::index::Entries;
use crate::registry::{self, Image};
use crate::threads::{self, Work};

/// What the layers below hold, the lowest first. `None` where that does not matter, or is not known of all of them.
///
/// Their indexes are taken from the cache. They are fetched where that of the layer itself was: a request or two for each, which their own mounts
/// then need no more. None of them is read whole for this, unless it is small. Nothing that goes wrong keeps the layer from being mounted.
pub(crate) async fn of(
    engine: &Arc<Engine>,
    image: &Arc<Image>,
    layer: &OpenLayer,
    number: usize,
) -> Option<Vec<Entries>> {
    match layer.contents.index().entries() {
        Ok(entries) if entries.may_hide() => {}
        Ok(_) => return None,
        Err(error) => {
            tracing::warn!(error = chain(&error), "the layers below are not looked at");
            return None;
        }
    }
    let may_fetch = layer.layer.blob.traffic().bytes > 0;
    let lowers = image.layers.iter().take(number).cloned().enumerate();
    let open = |(number, lower)| open(Arc::clone(engine), image, lower, number, may_fetch);
    let opening: FuturesOrdered<_> = lowers.map(open).collect();
    let all: Vec<Option<Entries>> = opening.collect().await;
    let known = all.into_iter().collect::<Option<Vec<_>>>();
    if known.is_none() {
        tracing::info!("the layers below are not known: whiteouts are shown that may hide nothing");
    }
    known
}

async fn open(
    engine: Arc<Engine>,
    image: &Image,
    layer: registry::Layer,
    number: usize,
    may_fetch: bool,
) -> Option<Entries> {
    if !may_fetch {
        let cached = threads::run(Work::Opening, move || engine.opener.cached_entries(&layer)).await;
        return cached.unwrap_or(Ok(None)).unwrap_or_else(|error| {
            tracing::warn!(error = chain(&error), "a layer below cannot be looked at");
            None
        });
    }
    let open = match engine.clone().probe(image, layer).await {
        Ok(Probe::Ready(open)) => Ok(open),
        Ok(Probe::NeedsFullRead(pending)) if pending.is_here() => {
            engine.pass(image, pending, number, &Reading::new([])).await
        }
        Ok(Probe::NeedsFullRead(_)) => return None,
        Err(error) => Err(error),
    };
    match open.and_then(|open| Ok(open.contents.index().entries()?)) {
        Ok(entries) => Some(entries),
        Err(error) => {
            tracing::warn!(error = error.chain(), "a layer below cannot be looked at");
            None
        }
    }
}
