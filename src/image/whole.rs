//! Reads layers whole, from their first byte on, where that has to be done before they can be read.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::Error;
use super::layer::{Indexed, OpenLayer, Opener, blocking};
use super::past_caches::{once_more, wrong_bytes};
use super::pending::{Pending, Reason, descriptor};
use super::reading::Reading;
use crate::blob::{ByteSource, Digest};
use crate::fetch::{self, Held, Pass, Passed};
use crate::index::{self, Identity, LayerKey, Opened, StoredIndex, Trust};
use crate::registry::{self, Body, Freshness};

impl Opener {
    /// Reads all of a layer, so that it can be served from then on. Wrong bytes are read once more, past caches.
    pub(super) async fn pass(self: &Arc<Self>, mut pending: Pending, reading: &Reading) -> Result<OpenLayer, Error> {
        let (digest, places) = (pending.layer.digest, pending.layer.blob.places());
        if pending.reason == Reason::SentWhole {
            tracing::warn!(layer = %digest, "its host sends all of it for a part; it is read whole, and kept");
        }
        // What has begun to come is for the first time alone.
        let mut body = pending.body.take();
        let open = once_more(places, wrong_bytes(digest), |freshness| {
            self.read_whole(&pending, body.take(), freshness, reading)
        });
        let open = open.await?;
        Ok(OpenLayer { read_for: Some(pending.reason), misfit: pending.misfit, ..open })
    }

    async fn read_whole(
        self: &Arc<Self>,
        pending: &Pending,
        body: Option<Body>,
        freshness: Freshness,
        reading: &Reading,
    ) -> Result<OpenLayer, Error> {
        let layer = pending.layer.clone();
        let pass = self.pass_over(&layer, pending.source(), freshness, reading.begin(&layer));
        let pass = Pass { is_huge: pending.reason == Reason::Evicted, body, ..pass };
        match pending.reason {
            Reason::Unvouched(_) => self.hold(layer, pass).await,
            Reason::Plain | Reason::Evicted => {
                let passed = pass.index(self.order(BTreeSet::new())?).await?;
                self.make_index(layer, passed, pending.diff_id).await
            }
            Reason::SentWhole => {
                let open = if index::named_identity(&descriptor(&layer)).is_some() {
                    self.take_named(layer, pass, pending.diff_id).await?
                } else {
                    self.take_unnamed(layer, pass, pending.diff_id, reading).await?
                };
                Ok(OpenLayer { sent_whole: true, ..open })
            }
        }
    }

    /// A layer of which the manifest names no TOC, and that may have one: that shows at its end. An index of our own follows from it, then, as it
    /// does where the end can be seen first.
    async fn take_unnamed(
        self: &Arc<Self>,
        layer: registry::Layer,
        pass: Pass,
        diff_id: Option<Digest>,
        reading: &Reading,
    ) -> Result<OpenLayer, Error> {
        let freshness = pass.freshness;
        let passed = pass.index(self.order(BTreeSet::new())?).await?;
        if !passed.has_toc {
            return self.make_index(layer, passed, diff_id).await;
        }
        let source = fetch::Source::Blob(layer.blob.clone());
        let again = self.pass_over(&layer, source, freshness, reading.begin(&layer));
        self.hold(layer, again).await
    }

    /// A layer of which the manifest names a TOC: it becomes what it would be had it come in parts, and what it holds is kept.
    async fn take_named(
        self: &Arc<Self>,
        layer: registry::Layer,
        pass: Pass,
        diff_id: Option<Digest>,
    ) -> Result<OpenLayer, Error> {
        let pass_again = self.pass_over(&layer, pass.source.clone(), pass.freshness, Arc::default());
        let held = pass.hold().await?;
        let (opener, blob, of) = (Arc::clone(self), Arc::clone(&held), layer.clone());
        let open = move || {
            let descriptor = descriptor(&of);
            match opener.open_held_toc(&of, &descriptor, &*blob)? {
                Some(made) => opener.open_held(of, made, blob).map(Some),
                None => Ok(None),
            }
        };
        if let Some(open) = blocking(layer.digest, open).await? {
            let contents = Arc::clone(&open.contents);
            if open.identity.is_some() {
                tokio::spawn(async move { contents.keep_all().await });
            }
            return Ok(open);
        }
        let source = fetch::Source::Held { blob: layer.blob.clone(), bytes: Held::new(held) };
        let passed = Pass { source, ..pass_again }.index(self.order(BTreeSet::new())?).await?;
        self.make_index(layer, passed, diff_id).await
    }

    pub(super) fn pass_over(
        &self,
        layer: &registry::Layer,
        source: fetch::Source,
        freshness: Freshness,
        progress: Arc<AtomicU64>,
    ) -> Pass {
        Pass {
            layer: descriptor(layer),
            source,
            freshness,
            body: None,
            cache: self.cache.clone(),
            progress,
            is_huge: false,
            allowance: self.allowance.clone(),
            memory: self.memory().clone(),
        }
    }

    async fn make_index(
        self: &Arc<Self>,
        layer: registry::Layer,
        passed: Passed,
        diff_id: Option<Digest>,
    ) -> Result<OpenLayer, Error> {
        let Passed { made, staged, .. } = passed;
        check_diff_id(&layer, Some(made.diff_id), diff_id)?;
        let (opener, digest) = (Arc::clone(self), layer.digest);
        let keep = move || {
            let key = LayerKey { blob: layer.digest, identity: Identity::Own };
            let adopt = |staged| -> Result<_, Error> {
                let index = StoredIndex::open(Arc::new(made.encoded.clone()), &layer.digest, Some(&key))?;
                Ok(opener.cache.adopt(&key, &index, staged))
            };
            // Before the index is kept, so that nobody uses the layer who has found that; and until the layer is open.
            let _adopted = staged.map(adopt).transpose()?;
            opener.cache.put_index(&key, &made.encoded);
            let index = opener.stored(&layer.digest, Some(&key), made.encoded, made.charge)?;
            let (is_huge, key, trust) = (index.has_huge_unit()?, Some(key), Trust::Blob);
            let mut open = opener.open(Indexed { layer, key, trust, index, held: None, ztoc: None, misfit: None });
            open.tar_split = made.split;
            if is_huge && !open.contents.is_kept()? {
                return Err(Error::CannotKeep { layer: open.layer.digest, needed: open.summary().layer_file_len });
            }
            Ok(open)
        };
        blocking(digest, keep).await
    }

    /// Keeps the blob itself for as long as it is mounted: whoever reads it later reads it by its TOC.
    async fn hold(self: &Arc<Self>, layer: registry::Layer, pass: Pass) -> Result<OpenLayer, Error> {
        let held = pass.hold().await?;
        let (opener, digest) = (Arc::clone(self), layer.digest);
        let open = move || {
            let descriptor = descriptor(&layer);
            let made = index::open_whole(&descriptor, &*held, opener.memory())?;
            opener.cache.put_index(&LayerKey { blob: layer.digest, identity: Identity::Own }, &made.encoded);
            opener.open_held(layer, made, held)
        };
        blocking(digest, open).await
    }

    /// A layer whose blob is here, and stays here.
    fn open_held(
        self: &Arc<Self>,
        layer: registry::Layer,
        made: Opened,
        held: Arc<dyn ByteSource>,
    ) -> Result<OpenLayer, Error> {
        let indexed = self.indexed(layer, Opened { blob: None, ..made })?;
        Ok(self.open(Indexed { held: Some(held), ..indexed }))
    }
}

/// Whether a layer is what the image's config says of it, as far as either is known.
pub(super) fn check_diff_id(layer: &registry::Layer, got: Option<Digest>, named: Option<Digest>) -> Result<(), Error> {
    match got.zip(named).filter(|(got, named)| got != named) {
        Some((got, named)) => Err(index::Error::DiffId { layer: layer.digest, named, got }.into()),
        None => Ok(()),
    }
}
