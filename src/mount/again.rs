//! Layers that an image has several times: they are opened once.

use std::collections::BTreeMap;

use super::Error;
use super::image::Engine;
use super::layer::OpenLayer;
use crate::registry;

/// Layers, each different one once, and those that are others again: with their numbers, and that of the first.
pub(super) type ToldApart = (Vec<(usize, registry::Layer)>, Vec<(usize, registry::Layer, usize)>);

pub(super) fn told_apart(layers: Vec<(usize, registry::Layer)>) -> ToldApart {
    let (mut first, mut once, mut again) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (number, layer) in layers {
        let registry::Layer { digest, size, media_type, annotations, .. } = &layer;
        match *first.entry((*digest, *size, media_type.clone(), annotations.clone())).or_insert(number) {
            first if first == number => once.push((number, layer)),
            first => again.push((number, layer, first)),
        }
    }
    (once, again)
}

impl Engine {
    /// Layers that are others of these again.
    pub(super) async fn open_again(
        &self,
        image: &registry::Image,
        again: Vec<(usize, registry::Layer, usize)>,
        results: &mut BTreeMap<usize, Result<OpenLayer, Error>>,
    ) {
        for (number, layer, first) in again {
            let Some(Ok(open)) = results.get(&first) else { continue };
            let open = open.again(layer);
            results.insert(number, self.checked(image, number, open).await);
        }
    }
}
