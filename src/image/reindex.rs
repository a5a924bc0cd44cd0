//! Makes the index of an open layer again that was damaged in use.

use std::sync::Arc;

use bytes::Bytes;

use super::Error;
use super::here::Here;
use super::layer::{Opener, Toc};
use super::pending::descriptor;
use crate::blob::ByteSource;
use crate::fetch::{self, Held, Pass, Reindex};
use crate::index::{self, Found, Identity, LayerKey};
use crate::registry::{self, Body, Freshness};
use crate::sys::expansion::Allowance;
use crate::threads::wait;

impl Opener {
    /// How a layer gets its index again that was damaged in use. In memory from then on: the disk has shown what it is worth.
    pub(super) fn reindex(
        self: &Arc<Self>,
        layer: &registry::Layer,
        key: Option<LayerKey>,
        ztoc: Option<registry::Layer>,
    ) -> Reindex {
        let (opener, layer) = (Arc::clone(self), layer.clone());
        Arc::new(move || {
            key.iter().for_each(|key| opener.cache.drop_index(key));
            let descriptor = descriptor(&layer);
            let found = match (key.map(|key| key.identity), &ztoc) {
                (Some(Identity::Ztoc(_)), Some(ztoc)) => {
                    opener.read_ztoc(&descriptor, ztoc).map(|opened| Toc::Found(Found::Indexed(opened)))
                }
                (Some(Identity::Own), _) => opener.read_own_toc(&layer, &descriptor).map_err(Error::from),
                _ => opener.read_toc(&layer, &descriptor).map(|(toc, _)| toc),
            };
            let made = match found {
                Ok(Toc::Found(Found::Indexed(opened))) => Ok(opened.encoded),
                Ok(Toc::Found(found)) => opener.index_again(&layer, matches!(found, Found::Unvouched(_))),
                Ok(Toc::SentWhole(body)) => opener.index_of_whole(&layer, body),
                Err(error) => Err(error),
            };
            let here = |encoded| {
                let no_room = |source| index::Error::Memory { layer: layer.digest, what: "its index", source };
                Ok(Here::new(encoded, opener.memory()).map_err(no_room)?)
            };
            made.and_then(here)
                .map(|here| Arc::new(here) as Arc<dyn ByteSource>)
                .inspect_err(|error| tracing::warn!(error = error.chain(), "the index cannot be made again"))
                .ok()
        })
    }

    /// Makes the index of a layer again that was read whole. It is the same, since it follows from the blob.
    fn index_again(&self, layer: &registry::Layer, has_toc: bool) -> Result<Bytes, Error> {
        let pass = self.pass_again(layer, fetch::Source::Blob(layer.blob.in_use()));
        if has_toc {
            let held = wait(&self.runtime, pass.hold())??;
            return Ok(index::open_whole(&descriptor(layer), &*held, self.memory())?.encoded);
        }
        Ok(wait(&self.runtime, pass.index(None))??.made.encoded)
    }

    /// The same where the blob comes whole.
    fn index_of_whole(&self, layer: &registry::Layer, body: Body) -> Result<Bytes, Error> {
        let pass = self.pass_again(layer, fetch::Source::Blob(layer.blob.in_use()));
        let held = wait(&self.runtime, Pass { body: Some(body), ..pass }.hold())??;
        if let Some(opened) = self.open_held_toc(layer, &descriptor(layer), &*held)? {
            return Ok(opened.encoded);
        }
        let source = fetch::Source::Held { blob: layer.blob.clone(), bytes: Held::new(held) };
        Ok(wait(&self.runtime, self.pass_again(layer, source).index(None))??.made.encoded)
    }

    /// Over a layer that was read before, which the others have left enough for.
    fn pass_again(&self, layer: &registry::Layer, source: fetch::Source) -> Pass {
        let pass = self.pass_over(layer, source, Freshness::Any, Arc::default());
        Pass { allowance: Allowance::default(), ..pass }
    }
}
