//! Paths inside a tree, and what guesses about reads need of it.

use super::tree::{Ino, Tree};
use crate::blob::ByteRange;
use crate::fetch::{Files, LONGEST_PATH, Node, Place};
use crate::index::MAX_SYMLINKS;

/// Why a path leads nowhere. Paths are as the caller gave them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("{path:?}: there is no {name:?} in the image")]
    NotFound { path: String, name: String },
    #[error("{path:?}: {name:?} is not a directory")]
    NotADirectory { path: String, name: String },
    #[error("{path:?}: more than {MAX_SYMLINKS} symlinks on the way, most likely a loop")]
    TooManySymlinks { path: String },
}

/// What `resolve` does with a symlink at the end of a path; those before it are always followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastSymlink {
    Follow,
    Keep,
}

/// What a path names, from a directory on. Symlinks are followed inside the image: an absolute path or target starts at its root, and `..` of
/// the root is the root.
pub(super) fn resolve(tree: &Tree, dir: Ino, path: &[u8], last: LastSymlink) -> Result<Ino, ResolveError> {
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut at = if path.starts_with(b"/") { tree.root() } else { dir };
    let mut symlinks = 0;
    let mut todo: Vec<&[u8]> = Vec::new();
    push_parts(&mut todo, path);
    while let Some(name) = todo.pop() {
        let Some(parent) = tree.parent(at) else {
            return Err(ResolveError::NotADirectory { path: shown(path), name: shown(name) });
        };
        let next = match name {
            b"." => Some(at),
            b".." => Some(parent),
            _ => tree.lookup(at, name),
        };
        let next = next.ok_or_else(|| ResolveError::NotFound { path: shown(path), name: shown(name) })?;
        match tree.readlink(next) {
            Some(target) if !todo.is_empty() || last == LastSymlink::Follow => {
                symlinks += 1;
                if symlinks > MAX_SYMLINKS {
                    return Err(ResolveError::TooManySymlinks { path: shown(path) });
                }
                if target.starts_with(b"/") {
                    at = tree.root();
                }
                push_parts(&mut todo, target);
            }
            _ => at = next,
        }
    }
    Ok(at)
}

/// Puts the parts of a path on a stack, the first on top. A slash at the end is a part `.`, since what is before it must be a directory.
fn push_parts<'a>(stack: &mut Vec<&'a [u8]>, path: &'a [u8]) {
    if path.ends_with(b"/") {
        stack.push(b".");
    }
    stack.extend(path.rsplit(|byte| *byte == b'/').filter(|part| !part.is_empty()));
}

impl Files for Tree {
    fn count(&self) -> u64 {
        self.totals().0
    }

    fn place(&self, node: Node) -> Option<Place> {
        let extent = self.extent(Ino::new(node)?)?;
        Some(Place { layer: extent.layer, range: ByteRange::at(extent.start, extent.len)? })
    }

    fn parent(&self, dir: Node) -> Option<Node> {
        Tree::parent(self, Ino::new(dir)?).map(Ino::get)
    }

    fn children(&self, dir: Node) -> Box<dyn Iterator<Item = (&[u8], Node)> + '_> {
        let children = |dir| Tree::children(self, dir, 0).map(|(name, ino)| (name, ino.get()));
        Box::new(Ino::new(dir).into_iter().flat_map(children))
    }

    fn find(&self, dir: Node, path: &[u8]) -> Option<Node> {
        let path = Some(path).filter(|path| path.len() <= LONGEST_PATH)?;
        resolve(self, Ino::new(dir)?, path, LastSymlink::Follow).ok().map(Ino::get)
    }
}
