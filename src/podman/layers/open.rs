//! Opens the layers of an image that podman pulls, and those of earlier ones again.
//!
//! All that can be opened of an image is opened when podman asks for the first of its layers: it asks for the others at the same time, or next.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream;
use futures_util::{FutureExt as _, StreamExt as _};

use super::Layers;
use crate::blob::Digest;
use crate::image::engine::Engine;
use crate::image::layer::{OpenLayer, blocking};
use crate::image::options::ImageOptions;
use crate::image::{self, Report};
use crate::index::{Format, Identity};
use crate::podman::apart::For;
use crate::podman::open::layer_error;
use crate::podman::records::{Blob, Layer, Pulled, PulledLayer, Records};
use crate::podman::trees::{self, Prepared};
use crate::podman::{Error, Store, add};
use crate::registry;
use crate::threads::{self, Work};

/// How long it is remembered that an image could not be had, and that it has no such layer: podman asks three times for each layer.
const FAILED: Duration = Duration::from_secs(10);
const LACKING: Duration = Duration::from_secs(2);

/// How long it is remembered that a layer can only be read whole: podman asks for the others of its image while it downloads that, or in its next pull.
const NOT_LAZY: Duration = Duration::from_secs(60);

/// References that are remembered so.
const MOST_TRIES: usize = 1024;

/// Images that are opened again at a time, and how long each may take before the next round.
const AT_ONCE: usize = 8;
const OPENED_WITHIN: Duration = Duration::from_secs(60);

/// What came of the last try of each reference.
#[derive(Default)]
pub(super) struct Tries(Mutex<HashMap<String, Arc<Try>>>);

#[derive(Default)]
pub(super) struct Try {
    /// Whoever tries holds it.
    pub(super) trying: tokio::sync::Mutex<()>,
    /// Until when it is not tried again.
    until: Mutex<Option<Instant>>,
    /// Until when these layers of it, by their blobs, are not looked for.
    refused: Mutex<HashMap<Digest, Instant>>,
}

impl Try {
    fn is_over(&self) -> bool {
        self.until.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until)
    }

    fn refuse(&self, blob: Digest, time: Duration) {
        let now = Instant::now();
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.retain(|_, until| now < *until);
        refused.extend(now.checked_add(time).map(|until| (blob, until)));
    }

    fn is_refused(&self, blob: &Digest) -> bool {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.get(blob).is_some_and(|until| Instant::now() < *until)
    }

    fn not_again_for(&self, time: Duration) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now().checked_add(time);
    }
}

impl Tries {
    pub(super) fn of(&self, reference: &str) -> Arc<Try> {
        let mut tries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tries.len() >= MOST_TRIES {
            // Those that nobody waits for.
            tries.retain(|_, one| Arc::strong_count(one) > 1);
        }
        Arc::clone(tries.entry(reference.to_owned()).or_default())
    }
}

/// Why layers cannot be had, by their places.
pub(super) type Refused = std::collections::BTreeMap<usize, String>;

/// A layer that was opened, at its place.
struct New {
    place: usize,
    open: OpenLayer,
    prepared: Prepared,
    has_lowers: bool,
}

impl Layers {
    /// Comes back when it is known whether a layer can be had, or podman has waited long enough for that.
    pub(super) async fn look_for(self: &Arc<Self>, reference: String, digest: Digest) {
        let (layers, one) = (Arc::clone(self), self.tries.of(&reference));
        if one.is_over() || one.is_refused(&digest) {
            return;
        }
        // It goes on where nobody waits for it any more.
        let looking = tokio::spawn(async move { layers.look(&reference, &digest).await });
        if tokio::time::timeout(self.options.deadline, looking).await.is_err() {
            // Whoever asks meanwhile does not wait for the same once more.
            one.not_again_for(FAILED);
            tracing::warn!(layer = %digest, "podman pulls a layer: it could not be had in time");
        }
    }

    async fn look(self: &Arc<Self>, reference: &str, digest: &Digest) {
        let Some((store, source)) = self.store.upgrade().zip(self.source(reference)) else { return };
        let one = self.tries.of(reference);
        let _trying = one.trying.lock().await;
        let known = store
            .records
            .lock()
            .await
            .asked_for(reference, digest)
            .map(|(pulled, layer)| (pulled.clone(), store.trees.is_open(layer.layer.number)));
        if known.as_ref().is_some_and(|(_, is_open)| *is_open) || one.is_over() || one.is_refused(digest) {
            return;
        }
        let looked = match known {
            Some((pulled, _)) => store.open_pulled(pulled, source, For::Start).await,
            None => store.pull(reference, source, For::Asked).await.map(drop),
        };
        one.not_again_for(if looked.is_ok() { LACKING } else { FAILED });
        match looked {
            Ok(()) => tracing::debug!(reference, layer = %digest, "podman has asked for a layer"),
            Err(error) => {
                tracing::warn!(reference, error = error.chain(), "podman pulls the layers of an image itself")
            }
        }
    }
}

impl Store {
    /// Opens what can be opened of an image for that, and notes it down. Gives why others cannot be had, by their places.
    pub(super) async fn pull(
        self: &Arc<Self>,
        reference: &str,
        source: ImageOptions,
        purpose: For,
    ) -> Result<Refused, Error> {
        let engine = self.engine(&source)?;
        let image = Arc::new(engine.resolve(&quiet()).await?);
        let manifest = String::from_utf8(image.manifest.to_vec());
        let manifest = manifest
            .map_err(|_| Error::Config { image: reference.to_owned(), reason: "its manifest is not text".into() })?;
        let no_config =
            |why: &image::config::Unusable| Error::NoConfig { image: reference.to_owned(), why: why.clone() };
        let starts = engine.config(&image).await.map_err(no_config)?.started();
        let known = self.records.lock().await.pulled(reference, &image.digest).cloned();
        let is_known = |place: usize| known.iter().flat_map(|known| &known.layers).any(|layer| layer.place == place);
        let wanted = image.layers.iter().cloned().enumerate().filter(|(place, _)| !is_known(*place)).collect();
        let (new, mut refused) =
            self.open_new(&engine, (reference, &source), (&image, wanted), purpose, known.as_ref()).await?;
        let mut layers = Vec::new();
        for New { place, open, prepared, has_lowers } in new {
            let Ok(Some(diff_id)) = engine.diff_id(&image, place).await else {
                refused.insert(place, "the image's config does not say what is in it".to_owned());
                continue;
            };
            layers.push((diff_id, New { place, open, prepared, has_lowers }));
        }
        let pulled =
            Pulled { reference: reference.to_owned(), digest: image.digest, manifest, starts, layers: Vec::new() };
        let mut records = self.records.lock().await;
        let held = purpose == For::Held;
        tokio::task::block_in_place(|| self.take_in_pulled(&mut records, pulled, layers, held))?;
        let (store, records) = (Arc::clone(self), records.clone());
        let (reference, digest) = (reference.to_owned(), image.digest);
        // It will be run. Nobody waits for it.
        drop(threads::run(Work::Opening, move || {
            records.pulled(&reference, &digest).into_iter().for_each(|pulled| store.join_pulled(&records, pulled));
        }));
        Ok(refused)
    }

    /// Notes layers down before anybody is shown them.
    fn take_in_pulled(
        &self,
        records: &mut Records,
        mut pulled: Pulled,
        new: Vec<(Digest, New)>,
        held: bool,
    ) -> Result<(), Error> {
        let mut changed = records.clone();
        for (diff_id, New { place, open, prepared, has_lowers }) in new {
            let contents = add::contents(&open, &pulled.digest);
            let id = Digest::of(format!("pulled {contents}").as_bytes());
            let shape = prepared.shape;
            let number = self.trees.number(&id, &contents, &shape);
            let number = number.unwrap_or_else(|| changed.take_number(|number| self.trees.was_given(number)));
            let blob = Blob { digest: open.layer.digest, size: open.layer.size };
            let (compression, toc) = (compression(&open), toc(&open));
            let facts = match self.trees.facts(number) {
                Some(facts) => facts,
                None => self.trees.plant(number, (id, contents.clone()), open, prepared),
            };
            let layer = Layer {
                id,
                parent: None,
                number,
                link: String::new(),
                diff_id,
                blob: Some(blob),
                contents,
                facts,
                tar: None,
                tree: Some(shape),
            };
            let Blob { digest, size } = blob;
            let uses = 0;
            pulled.layers.push(PulledLayer {
                place,
                layer,
                blob: digest,
                size,
                toc,
                compression,
                has_lowers,
                uses,
                held,
            });
        }
        if !pulled.layers.is_empty() {
            changed.put_pulled(pulled);
            changed.write(&self.paths.records())?;
            *records = changed;
            // podman may be killed before it uses any of them.
            self.sweeping.wake();
        }
        self.trees.show(records);
        self.show_pulled(records);
        self.read_ahead();
        Ok(())
    }

    /// Opens layers of an image, and makes their trees: those that can be had, the lowest first.
    async fn open_new(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        (name, source): (&str, &ImageOptions),
        (image, wanted): (&Arc<registry::Image>, Vec<(usize, registry::Layer)>),
        purpose: For,
        known: Option<&Pulled>,
    ) -> Result<(Vec<New>, Refused), Error> {
        let digests: HashMap<usize, Digest> = wanted.iter().map(|(place, layer)| (*place, layer.digest)).collect();
        let opened = self.open_apart(engine, (name, source), (image, wanted), purpose, &quiet()).await?;
        if let Some(reader) = opened.reader {
            reader.end().await;
        }
        let mut unlikely = Vec::new();
        let mut trees: HashMap<usize, _> = HashMap::new();
        for layer in known.iter().flat_map(|known| &known.layers) {
            trees.extend(self.trees.tree(layer.layer.number).map(|tree| (layer.place, tree)));
        }
        let (mut new, mut refused) = (Vec::new(), Refused::new());
        for (place, opened) in opened.layers {
            let open = match opened {
                Ok(open) => open,
                Err(error) => {
                    let is_lasting = matches!(error, image::Error::NotLazy { .. });
                    unlikely
                        .extend(digests.get(&place).map(|blob| (*blob, if is_lasting { NOT_LAZY } else { FAILED })));
                    tracing::info!(
                        image = name,
                        place,
                        error = error.chain(),
                        "a layer is left to who pulls the image"
                    );
                    refused.insert(place, error.chain());
                    continue;
                }
            };
            let lowers: Option<Vec<_>> = (0..place).map(|below| trees.get(&below).cloned()).collect();
            let recorded = known.iter().flat_map(|known| &known.layers).find(|layer| layer.place == place);
            // As the kernel was told before.
            let lowers = if recorded.is_some_and(|layer| !layer.has_lowers) { None } else { lowers };
            if recorded.is_some_and(|layer| layer.has_lowers) && lowers.is_none() {
                continue;
            }
            let (digest, has_lowers) = (open.layer.digest, lowers.is_some());
            let prepare = move || trees::prepare(&open, lowers.as_deref()).map(|prepared| (open, prepared));
            let (open, prepared) = match blocking(digest, prepare).await {
                Ok(prepared) => prepared,
                Err(error) => {
                    let error = layer_error(name, place, image, error);
                    tracing::warn!(
                        image = name,
                        place,
                        error = error.chain(),
                        "a layer is left to who pulls the image"
                    );
                    refused.insert(place, error.chain());
                    continue;
                }
            };
            trees.insert(place, Arc::clone(&prepared.tree));
            new.push(New { place, open, prepared, has_lowers });
        }
        if let (For::Asked, Some(layers)) = (purpose, self.layers.get()) {
            let one = layers.tries.of(name);
            unlikely.into_iter().for_each(|(blob, time)| one.refuse(blob, time));
        }
        Ok((new, refused))
    }

    /// Opens those layers of an image again that are not open.
    pub(super) fn open_pulled(
        self: &Arc<Self>,
        pulled: Pulled,
        source: ImageOptions,
        purpose: For,
    ) -> BoxFuture<'static, Result<(), Error>> {
        let store = Arc::clone(self);
        async move { store.open_closed(&pulled, source, purpose).await }.boxed()
    }

    async fn open_closed(self: &Arc<Self>, pulled: &Pulled, source: ImageOptions, purpose: For) -> Result<(), Error> {
        let is_closed = |layer: &&PulledLayer| !self.trees.is_open(layer.layer.number);
        let closed: Vec<usize> = pulled.layers.iter().filter(is_closed).map(|layer| layer.place).collect();
        if closed.is_empty() {
            return Ok(());
        }
        let engine = self.engine(&source)?;
        let image = Arc::new(engine.resolve_pinned(Bytes::from(pulled.manifest.clone())).await?);
        let wanted = closed.iter().filter_map(|place| Some((*place, image.layers.get(*place)?.clone()))).collect();
        let of = (&*pulled.reference, &source);
        let (new, _refused) = self.open_new(&engine, of, (&image, wanted), purpose, Some(pulled)).await?;
        for New { place, open, prepared, .. } in new {
            if let Some(layer) = pulled.layers.iter().find(|layer| layer.place == place) {
                self.plant_known(&layer.layer, open, prepared).await?;
            }
        }
        let records = self.records.lock().await;
        self.trees.show(&records);
        self.show_pulled(&records);
        self.read_ahead();
        Ok(())
    }

    /// The same of all that podman has pulled. Says whether all are open.
    pub(in crate::podman) async fn open_all_pulled(self: &Arc<Self>, purpose: For) -> bool {
        let Some(layers) = self.layers.get() else { return true };
        let all = self.records.lock().await.pulled.clone();
        let open = |pulled: Pulled| {
            let (store, source) = (Arc::clone(self), layers.source(&pulled.reference));
            async move {
                let Some(source) = source else { return true };
                let opened =
                    tokio::time::timeout(OPENED_WITHIN, store.open_pulled(pulled.clone(), source, purpose)).await;
                match opened {
                    Ok(Ok(())) => pulled.layers.iter().all(|layer| store.trees.is_open(layer.layer.number)),
                    Ok(Err(error)) => {
                        tracing::warn!(
                            reference = pulled.reference,
                            error = error.chain(),
                            "layers of podman's cannot be served yet"
                        );
                        false
                    }
                    Err(_late) => false,
                }
            }
        };
        stream::iter(all)
            .map(open)
            .buffer_unordered(AT_ONCE)
            .fold(true, |all, one| std::future::ready(all && one))
            .await
    }

    /// Lets the layers of an image be read as its parts.
    pub(in crate::podman) fn join_pulled(&self, records: &Records, pulled: &Pulled) {
        if !self.trees.guesses() {
            return;
        }
        let numbers: Vec<u32> = pulled.layers.iter().map(|layer| layer.layer.number).collect();
        let has = |other: &&Pulled, number| other.layers.iter().any(|layer| layer.layer.number == number);
        let is_own = |number| records.pulled.iter().filter(|other| has(other, number)).count() <= 1;
        if let Err(error) = self.trees.join_numbers(&numbers, is_own, pulled.starts.clone()) {
            tracing::debug!(error = error.chain(), "nothing is fetched around misses of this image");
        }
    }
}

/// Progress that nobody hears.
fn quiet() -> Report {
    Arc::new(|_| Ok(()))
}

/// The digest of its table of contents that vouches for what is shown.
fn toc(layer: &OpenLayer) -> Option<Digest> {
    match layer.identity {
        Some(Identity::Toc(toc)) => Some(toc),
        _ => None,
    }
}

/// How containers/storage numbers the compression of a layer.
fn compression(layer: &OpenLayer) -> u8 {
    const NONE: u8 = 0;
    const GZIP: u8 = 2;
    const ZSTD: u8 = 4;
    match layer.summary().format {
        Format::Stargz | Format::EStargz | Format::EStargzExternalToc | Format::TarGzip => GZIP,
        Format::ZstdChunked | Format::TarZstd => ZSTD,
        Format::Tar | Format::Erofs | Format::Squashfs => NONE,
        Format::Empty if layer.layer.media_type.ends_with("gzip") => GZIP,
        Format::Empty if layer.layer.media_type.ends_with("zstd") => ZSTD,
        Format::Empty => NONE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_that_is_refused_keeps_no_other_from_being_looked_for() {
        let (one, [plain, other]) = (Try::default(), [b"plain", b"other"].map(|blob| Digest::of(blob)));
        one.refuse(plain, NOT_LAZY);
        assert!(one.is_refused(&plain) && !one.is_refused(&other) && !one.is_over());
        one.refuse(plain, Duration::ZERO);
        assert!(!one.is_refused(&plain), "it is tried again");
        one.refuse(other, FAILED);
        assert_eq!(one.refused.lock().unwrap().len(), 1, "what is over is forgotten");
    }
}
