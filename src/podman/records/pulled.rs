//! Images that podman pulls by itself, and of which it has asked for layers (layers.rs).

use serde::{Deserialize, Serialize};

use super::{Layer, Records};
use crate::blob::Digest;

/// What a reference was, when podman asked for a layer of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Pulled {
    /// As podman names it.
    pub(in super::super) reference: String,
    pub(in super::super) digest: Digest,
    /// Byte for byte, so that no registry is asked again.
    pub(in super::super) manifest: String,
    /// The files that its command starts.
    pub(in super::super) starts: Vec<Vec<String>>,
    /// Those of its layers that can be had, the lowest first.
    pub(in super::super) layers: Vec<PulledLayer>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct PulledLayer {
    /// Its place among the image's.
    pub(in super::super) place: usize,
    /// Layers of several images with the same tree have one number.
    pub(in super::super) layer: Layer,
    pub(in super::super) blob: Digest,
    /// Bytes of the blob.
    pub(in super::super) size: u64,
    /// The digest by which podman asks from 5.1 on, where that vouches for what is shown.
    pub(in super::super) toc: Option<Digest>,
    /// As containers/storage numbers it.
    pub(in super::super) compression: u8,
    /// Whether its root may be that of the layers below it.
    pub(in super::super) has_lowers: bool,
    /// How many podmans, or layers of theirs, use it.
    pub(in super::super) uses: u64,
    /// Whether something else than podman has it, until it says that it does not (layers/held.rs).
    #[serde(default)]
    pub(in super::super) held: bool,
}

impl PulledLayer {
    pub(in super::super) fn is(&self, digest: &Digest) -> bool {
        self.blob == *digest || self.toc == Some(*digest)
    }

    pub(in super::super) const fn is_used(&self) -> bool {
        self.uses > 0 || self.held
    }
}

impl Records {
    pub(in super::super) fn pulled_layers(&self) -> impl Iterator<Item = &Layer> {
        self.pulled.iter().flat_map(|pulled| &pulled.layers).map(|layer| &layer.layer)
    }

    pub(in super::super) fn pulled(&self, reference: &str, digest: &Digest) -> Option<&Pulled> {
        self.pulled.iter().find(|pulled| pulled.reference == reference && pulled.digest == *digest)
    }

    /// The layer that podman means by a reference and a digest, with its image.
    pub(in super::super) fn asked_for(&self, reference: &str, digest: &Digest) -> Option<(&Pulled, &PulledLayer)> {
        let of = |pulled| move |layer| (pulled, layer);
        let named = self.pulled.iter().rev().filter(|pulled| pulled.reference == reference);
        named.flat_map(|pulled| pulled.layers.iter().map(of(pulled))).find(|(_, layer)| layer.is(digest))
    }

    /// The same, for one more user, or for one less: a tag may have moved meanwhile.
    pub(in super::super) fn used_mut(
        &mut self,
        reference: &str,
        digest: &Digest,
        is_more: bool,
    ) -> Option<&mut PulledLayer> {
        let named = self.pulled.iter_mut().rev().filter(|pulled| pulled.reference == reference);
        let mut layers = named.flat_map(|pulled| &mut pulled.layers).filter(|layer| layer.is(digest));
        layers.find(|layer| is_more || layer.uses > 0)
    }

    /// Takes in layers of an image.
    pub(in super::super) fn put_pulled(&mut self, new: Pulled) {
        match self.pulled.iter_mut().find(|old| old.reference == new.reference && old.digest == new.digest) {
            Some(old) => {
                let is_new = |layer: &PulledLayer| !old.layers.iter().any(|known| known.place == layer.place);
                let fresh: Vec<_> = new.layers.into_iter().filter(is_new).collect();
                old.layers.extend(fresh);
                old.layers.sort_by_key(|layer| layer.place);
            }
            None => self.pulled.push(new),
        }
    }

    /// Forgets images of which nobody uses a layer, where all of them may go. podman may have a layer from another image, and ask for those above it:
    /// these need it as well.
    pub(in super::super) fn forget_pulled(&mut self, may_go: impl Fn(&PulledLayer) -> bool) {
        self.pulled.retain(|pulled| !pulled.layers.iter().all(|layer| !layer.is_used() && may_go(layer)));
    }
}
