//! A single-layer tree as a layer again, for the layers above it.

use super::LayerEntries;
use crate::fs::tree::{Attr, Ino, OpaqueXattr, Tree, Type};
use crate::index::{Child, Kind, Meta, NodeId};

/// The root is node 0 and inode 1.
fn ino(node: NodeId) -> Option<Ino> {
    Ino::new(u64::from(node.0) + 1)
}

fn node(ino: Ino) -> Option<NodeId> {
    u32::try_from(ino.get() - 1).ok().map(NodeId)
}

fn is_whiteout(attr: &Attr) -> bool {
    matches!(attr, Attr { kind: Type::Char, major: 0, minor: 0, .. })
}

fn child(tree: &Tree, ino: Ino) -> Option<Child<'_>> {
    if is_whiteout(&tree.attr(ino)?) { Some(Child::Whiteout) } else { node(ino).map(Child::Node) }
}

impl LayerEntries for Tree {
    fn len(&self) -> usize {
        usize::try_from(self.totals().0).unwrap_or(usize::MAX)
    }

    fn worth(&self) -> u64 {
        Self::worth(self)
    }

    fn kind(&self, node: NodeId) -> Kind<'_> {
        let Some(attr) = ino(node).and_then(|ino| self.attr(ino)) else { return Kind::Fifo };
        let Attr { ino, major, minor, .. } = attr;
        let is_opaque = |name: &[u8]| name == OpaqueXattr::TRUSTED || name == OpaqueXattr::USER;
        match attr.kind {
            Type::Dir => Kind::Dir { opaque: self.xattrs(ino).any(|(name, _)| is_opaque(name)), implied: false },
            Type::File => {
                let start = self.extent(ino).map_or(0, |extent| extent.start);
                Kind::File { start, size: attr.size }
            }
            Type::Symlink => Kind::Symlink(self.readlink(ino).unwrap_or_default()),
            Type::Char => Kind::Char { major, minor },
            Type::Block => Kind::Block { major, minor },
            Type::Fifo => Kind::Fifo,
            Type::Socket => Kind::Socket,
        }
    }

    fn meta(&self, node: NodeId) -> Meta {
        let attr = ino(node).and_then(|ino| self.attr(ino));
        attr.map_or_else(Meta::default, |Attr { mode, uid, gid, mtime, .. }| Meta { mode, uid, gid, mtime })
    }

    fn children(&self, dir: NodeId) -> impl Iterator<Item = (&[u8], Child<'_>)> {
        let children = ino(dir).into_iter().flat_map(|dir| Tree::children(self, dir, 0));
        children.filter_map(|(name, ino)| Some((name, child(self, ino)?)))
    }

    fn child(&self, dir: NodeId, name: &[u8]) -> Option<Child<'_>> {
        child(self, self.lookup(ino(dir)?, name)?)
    }

    fn xattrs(&self, node: NodeId) -> impl Iterator<Item = (&[u8], &[u8])> {
        ino(node).into_iter().flat_map(|ino| Tree::xattrs(self, ino))
    }
}
