//! What the layers below a layer have at a path: the target of a hard link that leaves its layer, or what a whiteout may hide.

use std::collections::HashMap;

use super::{LayerEntries, Merged, Numbered, Source, combine, root};
use crate::index::{Child, Kind, MAX_SYMLINKS, NodeId};

/// Why a path cannot be linked to.
pub(super) enum NotAFile {
    Nothing,
    Directory,
}

/// A directory's children, sorted by the bytes of their names.
type Listing<'a> = Vec<(&'a [u8], Child<'a>)>;

/// Finds paths in the lower layers, merged by the rules. Nothing is kept unless one is looked for, which is rare.
pub(super) struct Below<'m, 'a, L> {
    layers: &'m [Numbered<'a, L>],
    /// Of each directory that was on a path: its children, to be searched.
    listings: HashMap<(u16, NodeId), Listing<'a>>,
}

impl<'m, 'a, L: LayerEntries> Below<'m, 'a, L> {
    pub(super) fn new(layers: &'m [Numbered<'a, L>]) -> Self {
        Self { layers, listings: HashMap::new() }
    }

    /// What the layers below `layer` have at `path`. Symlinks on it are followed, but for the last name.
    pub(super) fn find(&mut self, layer: u16, path: &'a [u8]) -> Result<Source<'a, L>, NotAFile> {
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

    fn walk(&mut self, layer: u16, path: &'a [u8]) -> Merged<'a, L> {
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
    pub(super) fn child_of(&mut self, dirs: &[Source<'a, L>], name: &[u8]) -> Merged<'a, L> {
        combine(dirs.iter().filter_map(|source| Some((source.layer, self.child(source, name)?))))
    }

    fn child(&mut self, dir: &Source<'a, L>, name: &[u8]) -> Option<Child<'a>> {
        let entries = dir.layer.entries;
        let listing =
            self.listings.entry((dir.layer.number, dir.node)).or_insert_with(|| entries.children(dir.node).collect());
        let position = listing.binary_search_by(|(other, _)| (*other).cmp(name)).ok()?;
        listing.get(position).map(|(_, child)| *child)
    }
}

fn is_slash(byte: &u8) -> bool {
    *byte == b'/'
}
