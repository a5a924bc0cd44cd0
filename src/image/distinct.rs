//! Layers that an image has several times, told apart.

use std::collections::BTreeMap;

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
