//! Opens layers by indexes that are there already: those of the cache, and those that another process has made and handed over. Nothing of the layers
//! themselves is read, let alone parsed.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tracing::Instrument as _;

use super::Error;
use super::distinct::told_apart;
use super::engine::{Engine, note};
use super::here::Here;
use super::layer::{Indexed, OpenLayer, Opener, Probe};
use super::silence::unless_silent;
use crate::index::{Identity, LayerKey, StoredIndex, Trust};
use crate::registry;
use crate::threads::{self, Work};

/// An index that another process has made, and that the cache does not have.
pub(crate) struct Handed {
    pub(crate) identity: Option<Identity>,
    pub(crate) trust: Trust,
    pub(crate) index: File,
}

impl Engine {
    /// Opens those of an image's layers that can be opened so, by their numbers. `handed`: the indexes that are not in the cache.
    ///
    /// # Errors
    /// Where the cache does not answer.
    pub(crate) async fn open_known(
        self: &Arc<Self>,
        image: &registry::Image,
        wanted: Vec<(usize, registry::Layer)>,
        handed: HashMap<usize, Handed>,
    ) -> Result<BTreeMap<usize, Result<OpenLayer, Error>>, Error> {
        let (wanted, again) = told_apart(wanted);
        let handed = Mutex::new(handed);
        let open = |(number, layer): (usize, registry::Layer)| {
            let handed = handed.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
            let span = self.layer_span(number, &layer);
            let open = async move {
                let opened = self.open_one_known(image, (number, layer), handed).await.transpose()?;
                note(&opened);
                Some((number, opened))
            };
            open.instrument(span)
        };
        let opening: FuturesUnordered<_> = wanted.into_iter().map(open).collect();
        let opening = opening.filter_map(std::future::ready).collect();
        let mut results = unless_silent(self.cache(), opening).await?;
        self.open_again(image, again, &mut results).await;
        Ok(results)
    }

    async fn open_one_known(
        self: &Arc<Self>,
        image: &registry::Image,
        (number, layer): (usize, registry::Layer),
        handed: Option<Handed>,
    ) -> Result<Option<OpenLayer>, Error> {
        let (digest, opener) = (layer.digest, Arc::clone(&self.opener));
        let ztoc = self.soci(image).await?.and_then(|soci| soci.layers.get(&digest).cloned());
        let opening = threads::run(Work::Opening, move || opener.known(layer, ztoc, handed));
        match opening.await.map_err(|source| Error::LayerTask { layer: digest, source })?? {
            Some(open) => self.checked(image, number, open).await.map(Some),
            None => Ok(None),
        }
    }
}

impl Opener {
    /// `None`: the layer has to be read first. Blocking.
    fn known(
        self: &Arc<Self>,
        layer: registry::Layer,
        ztoc: Option<registry::Layer>,
        handed: Option<Handed>,
    ) -> Result<Option<OpenLayer>, Error> {
        match self.probe_cached(&layer, ztoc.as_ref())? {
            Some(Probe::Ready(open)) => return Ok(Some(open)),
            Some(Probe::NeedsFullRead(_)) => return Ok(None),
            None => {}
        }
        let Some(Handed { identity, trust, index }) = handed else { return Ok(None) };
        let digest = layer.digest;
        let key = identity.map(|identity| LayerKey { blob: digest, identity });
        let here = Here::read(&index, self.memory()).map_err(|source| Error::Handed { layer: digest, source })?;
        let index = StoredIndex::open(Arc::new(here), &digest, key.as_ref())?;
        index.verify()?;
        let index = index.within(self.memory())?;
        let (is_huge, needed) = (index.has_huge_unit()?, index.summary().layer_file_len);
        let open = self.open(Indexed { layer, key, trust, index, held: None, ztoc, misfit: None });
        if is_huge && !open.contents.is_kept()? {
            return Err(Error::CannotKeep { layer: digest, needed });
        }
        Ok(Some(open))
    }
}
