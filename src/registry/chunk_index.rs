//! Chunk indexes that are layers of their own (draft of erofs-image-spec, section 3.4.3): each is of the layer before it, and is no layer of the
//! tree.

use super::Layer;

const MEDIA_TYPE: &str = "application/vnd.erofs.chunk-index.v1";
const TARGET: &str = "org.erofs.chunk-index.target";

/// The layers of a tree, those with an index having it. One that names another layer than the one before it is nobody's.
pub(super) fn with_layers(layers: Vec<Layer>) -> Vec<Layer> {
    let mut of_tree: Vec<Layer> = Vec::with_capacity(layers.len());
    for layer in layers {
        if layer.media_type != MEDIA_TYPE {
            of_tree.push(layer);
            continue;
        }
        let target = layer.annotations.get(TARGET).cloned();
        let before =
            of_tree.last_mut().filter(|before| target.is_none_or(|target| target == before.digest.to_string()));
        if let Some(before) = before {
            before.chunk_index = Some(Box::new(layer));
        }
    }
    of_tree
}
