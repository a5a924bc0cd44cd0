//! What the layers below a layer have at a path: the target of a hard link that leaves its layer, or what a whiteout may hide.

use super::{LayerEntries, Merged, Numbered, Source, combine, root};
use crate::index::{Kind, MAX_SYMLINKS};

/// Why a path cannot be linked to.
pub(super) enum NotAFile {
    Nothing,
    Directory,
}

/// Finds paths in the lower layers, merged by the rules.
pub(super) struct Below<'m, 'a, L> {
    layers: &'m [Numbered<'a, L>],
}

impl<'m, 'a, L: LayerEntries> Below<'m, 'a, L> {
    pub(super) const fn new(layers: &'m [Numbered<'a, L>]) -> Self {
        Self { layers }
    }

    /// What the layers below `layer` have at `path`. Symlinks on it are followed, but for the last name.
    pub(super) fn find(&self, layer: u16, path: &'a [u8]) -> Result<Source<'a, L>, NotAFile> {
        let (mut layer, mut path) = (layer, path);
        loop {
            match self.walk(layer, path) {
                Merged::Leaf(source) => return Ok(source),
                // Such a link is itself below `layer`, so this ends.
                Merged::LinkBelow { layer: lower, path: target } => (layer, path) = (lower, target),
                Merged::Dir(_) => return Err(NotAFile::Directory),
                Merged::Hidden => return Err(NotAFile::Nothing),
            }
        }
    }

    fn walk(&self, layer: u16, path: &'a [u8]) -> Merged<'a, L> {
        let layers = self.layers.get(..usize::from(layer)).unwrap_or_default();
        // The directories from the root down.
        let mut way = vec![root(layers)];
        let mut left: Vec<&[u8]> = path.rsplit(is_slash).collect();
        let mut symlinks = 0;
        while let (Some(name), Some(dir)) = (left.pop(), way.last()) {
            match name {
                b"" | b"." => continue,
                b".." => {
                    way.truncate(way.len().saturating_sub(1).max(1));
                    continue;
                }
                _ => {}
            }
            match self.child_of(&dir.joined, name) {
                Merged::Dir(dir) => way.push(dir),
                found if left.is_empty() => return found,
                Merged::Leaf(source) if symlinks < MAX_SYMLINKS => {
                    let Kind::Symlink(target) = source.kind() else { return Merged::Hidden };
                    symlinks += 1;
                    if target.starts_with(b"/") {
                        way.truncate(1);
                    }
                    left.extend(target.rsplit(is_slash));
                }
                _ => return Merged::Hidden,
            }
        }
        way.pop().map_or(Merged::Hidden, Merged::Dir)
    }

    /// What a name stands for in directories that are joined, the highest first.
    pub(super) fn child_of(&self, dirs: &[Source<'a, L>], name: &[u8]) -> Merged<'a, L> {
        let child = |source: &Source<'a, L>| Some((source.layer, source.layer.entries.child(source.node, name)?));
        combine(dirs.iter().filter_map(child))
    }
}

fn is_slash(byte: &u8) -> bool {
    *byte == b'/'
}
