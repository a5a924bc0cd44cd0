//! Layers that an image has several times: they are opened once.

use std::collections::BTreeMap;

use super::Error;
use super::engine::Engine;
use super::layer::OpenLayer;
use crate::registry;

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
