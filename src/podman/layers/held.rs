//! Layers that something else than podman has: a snapshotter of containerd's. It names the image by its digest, and all of that image's layers are opened
//! together. Each is at `overlay/n/<number>` from then on, also for later servers, until it is let go of.
//!
//! Who has them is in the records, and not counted: to say it twice changes nothing.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::open::Refused;
use crate::blob::Digest;
use crate::podman::apart::For;
use crate::podman::records::{Pulled, PulledLayer};
use crate::podman::trees::HELD;
use crate::podman::{Error, Store};
use crate::registry::ImageRef;
use crate::threads::{self, Work};

/// What a server is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::podman) enum Holding {
    /// All layers of an image, which a reference names by its digest.
    Hold(String),
    Release {
        reference: String,
        places: Vec<usize>,
    },
    /// What is held.
    List,
}

/// An image of which layers are held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub reference: String,
    /// The lowest first. Of an image that is listed, those that are held.
    pub layers: Vec<HeldLayer>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldLayer {
    /// Its place among the image's, and what the registry has.
    pub place: usize,
    pub blob: Digest,
    pub state: State,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is served by that number, now or as soon as it is open again; with the user and the group of its root.
    Held { number: u32, owner: (u32, u32) },
    /// It cannot be had: why.
    Refused(String),
}

impl Store {
    pub(in crate::podman) async fn hold_or_release(self: &Arc<Self>, holding: Holding) -> Result<Vec<Held>, Error> {
        match holding {
            Holding::Hold(reference) => Ok(vec![self.hold(&reference).await?]),
            Holding::Release { reference, places } => self.let_go(&reference, &places).await.map(|()| Vec::new()),
            Holding::List => Ok(self.records.lock().await.pulled.iter().filter_map(held).collect()),
        }
    }

    async fn hold(self: &Arc<Self>, reference: &str) -> Result<Held, Error> {
        let refused = || Error::NotHeld { reference: reference.to_owned() };
        let layers = self.layers.get().ok_or_else(refused)?;
        let source = layers.source(reference).filter(|source| is_pinned(&source.image)).ok_or_else(refused)?;
        let one = layers.tries.of(reference);
        let _trying = one.trying.lock().await;
        let known = self.records.lock().await.pulled.iter().find(|pulled| pulled.reference == reference).cloned();
        let count = match &known {
            Some(known) => {
                Some(self.engine(&source)?.resolve_pinned(known.manifest.clone().into()).await?.layers.len())
            }
            None => None,
        };
        let mut why = Refused::new();
        match &known {
            Some(known) if count == Some(known.layers.len()) => {
                self.set_held(reference, |_| true).await?;
                // What cannot be opened yet is tried again by whoever opens all.
                if let Err(error) = self.open_pulled(known.clone(), source, For::Held).await {
                    tracing::warn!(reference, error = error.chain(), "layers that are held cannot be served yet");
                }
            }
            _ => {
                why = self.pull(reference, source, For::Held).await?;
                self.set_held(reference, |_| true).await?;
            }
        }
        let records = self.records.lock().await;
        let Some(pulled) = records.pulled.iter().find(|pulled| pulled.reference == reference) else {
            let first = why.into_values().next();
            return Err(first.map_or_else(refused, |message| Error::Reported { message }));
        };
        let blobs = manifest_blobs(&pulled.manifest);
        let refused = why
            .into_iter()
            .filter_map(|(place, why)| Some(HeldLayer { place, blob: *blobs.get(place)?, state: State::Refused(why) }));
        let mut all: Vec<_> = pulled.layers.iter().map(held_layer).chain(refused).collect();
        all.sort_by_key(|layer| layer.place);
        Ok(Held { reference: reference.to_owned(), layers: all })
    }

    async fn let_go(self: &Arc<Self>, reference: &str, places: &[usize]) -> Result<(), Error> {
        let numbers = self.set_held(reference, |layer| layer.held && !places.contains(&layer.place)).await?;
        let mount = self.paths.mount();
        // The kernel notices that a name is gone when somebody looks it up.
        drop(threads::run(Work::Outside, move || {
            for number in numbers {
                drop(std::fs::symlink_metadata(mount.join(HELD).join(number.to_string())));
            }
        }));
        self.sweeping.wake();
        Ok(())
    }

    /// Has written down which layers of an image are held. Gives the numbers of those that are not any more.
    async fn set_held(&self, reference: &str, is_held: impl Fn(&PulledLayer) -> bool) -> Result<Vec<u32>, Error> {
        let mut records = self.records.lock().await;
        let (mut changed, mut gone) = (records.clone(), Vec::new());
        for layer in
            changed.pulled.iter_mut().filter(|pulled| pulled.reference == reference).flat_map(|p| &mut p.layers)
        {
            let is_held = is_held(layer);
            if layer.held && !is_held {
                gone.push(layer.layer.number);
            }
            layer.held = is_held;
        }
        if changed != *records {
            changed.changed();
            tokio::task::block_in_place(|| changed.write(&self.paths.records()))?;
            *records = changed;
        }
        self.trees.show(&records);
        Ok(gone)
    }
}

fn is_pinned(image: &ImageRef) -> bool {
    matches!(image, ImageRef::Registry(reference) if reference.digest.is_some())
}

/// `None`: nothing of it is held.
fn held(pulled: &Pulled) -> Option<Held> {
    let layers: Vec<_> = pulled.layers.iter().filter(|layer| layer.held).map(held_layer).collect();
    (!layers.is_empty()).then(|| Held { reference: pulled.reference.clone(), layers })
}

fn held_layer(PulledLayer { place, layer, blob, .. }: &PulledLayer) -> HeldLayer {
    let [_, user, group] = layer.facts.root;
    HeldLayer { place: *place, blob: *blob, state: State::Held { number: layer.number, owner: (user, group) } }
}

/// The digests of its layers, the lowest first.
fn manifest_blobs(manifest: &str) -> Vec<Digest> {
    #[derive(Deserialize)]
    struct Manifest {
        layers: Vec<Blob>,
    }
    #[derive(Deserialize)]
    struct Blob {
        digest: Digest,
    }
    serde_json::from_str::<Manifest>(manifest)
        .map(|manifest| manifest.layers.iter().map(|layer| layer.digest).collect())
        .unwrap_or_default()
}
