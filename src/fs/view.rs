//! A view: a tree, and where the contents of its files come from. All that a frontend serves, in plain values.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::tree::{Ino, Tree, Type};
use crate::blob::ByteRange;
use crate::fetch;

/// The contents of one layer's files: its layer file, of which every byte handed out was verified.
pub trait Contents: Send + Sync {
    /// Exactly the bytes of a range of the layer file.
    fn read(self: Arc<Self>, range: ByteRange) -> BoxFuture<'static, Result<Bytes, fetch::Error>>;
}

impl Contents for fetch::Layer {
    fn read(self: Arc<Self>, range: ByteRange) -> BoxFuture<'static, Result<Bytes, fetch::Error>> {
        Box::pin(async move { fetch::Layer::read(&self, range).await })
    }
}

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("inode {ino} is not a regular file")]
    NotAFile { ino: u64 },
    /// The tree and the layers do not belong together.
    #[error("inode {ino} is said to be in layer {layer}, of {layers}")]
    NoSuchLayer { ino: u64, layer: usize, layers: usize },
    #[error("inode {ino}, {range} of the layer file of layer {layer}")]
    Contents { ino: u64, layer: usize, range: ByteRange, source: fetch::Error },
    #[error("inode {ino}, {range} of the layer file of layer {layer}: {got} bytes came")]
    WrongLength { ino: u64, layer: usize, range: ByteRange, got: usize },
}

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

/// How many symlinks one path may lead over, as in Linux (path_resolution(7)).
const MAX_SYMLINKS: usize = 40;

/// What statfs says of a view: everything is used, nothing is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Blocks of [`BLOCK_SIZE`] bytes that the files' sizes add up to.
    pub blocks: u64,
    pub inodes: u64,
}

/// Bytes of a block, as stat and statfs name it.
pub const BLOCK_SIZE: u32 = 4096;

/// A tree that can be served.
pub struct View {
    tree: Tree,
    /// Of each layer, the lowest first, as the tree's extents number them.
    layers: Vec<Arc<dyn Contents>>,
}

impl View {
    #[must_use]
    pub fn new(tree: Tree, layers: Vec<Arc<dyn Contents>>) -> Self {
        Self { tree, layers }
    }

    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The bytes of a file from `offset` on: `len` of them, or those up to its end; none past it.
    ///
    /// # Errors
    /// Where it is no regular file, or its layer does not give the bytes. Never fewer bytes instead.
    pub async fn read(&self, ino: Ino, offset: u64, len: u64) -> Result<Bytes, ReadError> {
        let number = ino.get();
        let extent = self.tree.extent(ino).ok_or(ReadError::NotAFile { ino: number })?;
        let len = len.min(extent.len.saturating_sub(offset));
        if len == 0 {
            return Ok(Bytes::new());
        }
        let layer = extent.layer;
        let no_layer = ReadError::NoSuchLayer { ino: number, layer, layers: self.layers.len() };
        let range = extent.start.checked_add(offset).and_then(|start| ByteRange::at(start, len));
        let (Some(contents), Some(range)) = (self.layers.get(layer), range) else { return Err(no_layer) };
        let read = Arc::clone(contents).read(range).await;
        let bytes = read.map_err(|source| ReadError::Contents { ino: number, layer, range, source })?;
        if bytes.len() as u64 != len {
            return Err(ReadError::WrongLength { ino: number, layer, range, got: bytes.len() });
        }
        Ok(bytes)
    }

    /// What a path names. Symlinks are followed inside the image: an absolute target starts at its root, and `..` of the root is the root.
    ///
    /// # Errors
    /// Where a part of the path is missing or is no directory, or symlinks lead in a circle.
    pub fn resolve(&self, path: &[u8], last: LastSymlink) -> Result<Ino, ResolveError> {
        let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut at = self.tree.root();
        let mut symlinks = 0;
        let mut todo: Vec<&[u8]> = Vec::new();
        push_parts(&mut todo, path);
        while let Some(name) = todo.pop() {
            let Some(parent) = self.tree.parent(at) else {
                return Err(ResolveError::NotADirectory { path: shown(path), name: shown(name) });
            };
            let next = match name {
                b"." => Some(at),
                b".." => Some(parent),
                _ => self.tree.lookup(at, name),
            };
            let next = next.ok_or_else(|| ResolveError::NotFound { path: shown(path), name: shown(name) })?;
            match self.tree.readlink(next) {
                Some(target) if !todo.is_empty() || last == LastSymlink::Follow => {
                    symlinks += 1;
                    if symlinks > MAX_SYMLINKS {
                        return Err(ResolveError::TooManySymlinks { path: shown(path) });
                    }
                    if target.starts_with(b"/") {
                        at = self.tree.root();
                    }
                    push_parts(&mut todo, target);
                }
                _ => at = next,
            }
        }
        Ok(at)
    }

    #[must_use]
    pub fn totals(&self) -> Totals {
        let (inodes, bytes) = self.tree.totals();
        Totals { blocks: bytes.div_ceil(u64::from(BLOCK_SIZE)), inodes }
    }

    /// Whether any node has an xattr: where none has, the kernel need not ask.
    #[must_use]
    pub fn has_xattrs(&self) -> bool {
        self.tree.has_xattrs()
    }

    /// A directory's entries as readdir gives them, `.` and `..` first, from position `from` on. `None` for anything but a directory.
    pub(super) fn entries(&self, dir: Ino, from: usize) -> Option<impl Iterator<Item = (&[u8], Ino)>> {
        let dots = [(&b"."[..], dir), (&b".."[..], self.tree.parent(dir)?)];
        let children = self.tree.children(dir, from.saturating_sub(dots.len()));
        Some(dots.into_iter().skip(from).chain(children))
    }

    pub(super) fn is_dir(&self, ino: Ino) -> bool {
        self.tree.attr(ino).is_some_and(|attr| attr.kind == Type::Dir)
    }
}

/// Puts the parts of a path on a stack, the first on top. A slash at the end is a part `.`, since what is before it must be a directory.
fn push_parts<'a>(stack: &mut Vec<&'a [u8]>, path: &'a [u8]) {
    if path.ends_with(b"/") {
        stack.push(b".");
    }
    stack.extend(path.rsplit(|byte| *byte == b'/').filter(|part| !part.is_empty()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::fake::{FakeLayer, Ramp, Spec, What, ramp};
    use crate::fs::overlay::merge;

    fn view() -> View {
        let symlink = |target: &str| What::Symlink(target.into());
        let spec = Spec::default()
            .with("d/e/f", What::File { size: 10_000 })
            .with("d/up", symlink("../../../x"))
            .with("d/absolute", symlink("/d/e/"))
            .with("loop", symlink("loop"))
            .with("long", symlink(&"d/../".repeat(800)))
            .with("x", What::File { size: 0 });
        View::new(merge(&[FakeLayer::new(&spec)], None).unwrap(), vec![Arc::new(Ramp::default())])
    }

    #[test]
    fn paths_are_resolved_inside_the_image() {
        let view = view();
        let file = view.resolve(b"/d/e/f", LastSymlink::Keep).unwrap();
        for path in [&b"d/e/f"[..], b"//d/./e//f", b"../d/e/../e/f", b"/d/absolute/f", b"long/d/absolute/../e/f"] {
            assert_eq!(view.resolve(path, LastSymlink::Keep), Ok(file));
        }
        assert_eq!(view.resolve(b"", LastSymlink::Follow), Ok(Ino::ROOT));
        assert_eq!(view.resolve(b"d/up", LastSymlink::Follow), view.resolve(b"x", LastSymlink::Keep));
        assert_ne!(view.resolve(b"d/up", LastSymlink::Keep), view.resolve(b"x", LastSymlink::Keep));
        assert_eq!(view.resolve(b"d/absolute/", LastSymlink::Keep), view.resolve(b"d/e", LastSymlink::Keep));
    }

    #[test]
    fn paths_that_lead_nowhere_say_where_they_end() {
        let view = view();
        let error = |path: &str| view.resolve(path.as_bytes(), LastSymlink::Follow).unwrap_err();
        assert_eq!(error("d/no/f"), ResolveError::NotFound { path: "d/no/f".into(), name: "no".into() });
        assert!(matches!(error("x/f"), ResolveError::NotADirectory { name, .. } if name == "f"));
        assert!(matches!(error("x/"), ResolveError::NotADirectory { .. }));
        assert!(matches!(error("loop/f"), ResolveError::TooManySymlinks { .. }));
    }

    #[tokio::test]
    async fn reads_are_clipped_to_the_file_and_never_short() {
        let view = view();
        let file = view.resolve(b"d/e/f", LastSymlink::Keep).unwrap();
        let start = view.tree().extent(file).unwrap().start;
        for (offset, len, got) in
            [(0, 10_000, 10_000), (9_999, 4096, 1), (10_000, 1, 0), (u64::MAX, 1, 0), (5, u64::MAX, 9_995), (3, 4, 4)]
        {
            let bytes = view.read(file, offset, len).await.unwrap();
            assert_eq!(bytes, ramp(start.saturating_add(offset), got));
        }
        let short = View::new(
            merge(&[FakeLayer::new(&Spec::default().with("f", What::File { size: 9 }))], None).unwrap(),
            vec![Arc::new(Ramp { lost: 1 })],
        );
        let file = short.resolve(b"f", LastSymlink::Keep).unwrap();
        assert!(matches!(short.read(file, 0, 9).await, Err(ReadError::WrongLength { got: 8, .. })));
    }

    #[tokio::test]
    async fn what_is_no_file_cannot_be_read() {
        let view = view();
        assert!(matches!(view.read(Ino::ROOT, 0, 1).await, Err(ReadError::NotAFile { ino: 1 })));
        let alone = View::new(
            merge(&[FakeLayer::new(&Spec::default().with("f", What::File { size: 9 }))], None).unwrap(),
            Vec::new(),
        );
        let file = alone.resolve(b"f", LastSymlink::Keep).unwrap();
        assert!(matches!(alone.read(file, 0, 1).await, Err(ReadError::NoSuchLayer { layer: 0, layers: 0, .. })));
    }

    #[test]
    fn entries_start_with_the_dots_and_go_on_from_any_position() {
        let view = view();
        let all: Vec<_> = view.entries(Ino::ROOT, 0).unwrap().collect();
        assert_eq!(
            all.iter().map(|entry| entry.0).collect::<Vec<_>>(),
            [&b"."[..], b"..", b"d", b"long", b"loop", b"x"]
        );
        for from in 0..8 {
            assert_eq!(view.entries(Ino::ROOT, from).unwrap().collect::<Vec<_>>(), all.get(from..).unwrap_or_default());
        }
        assert_eq!(view.totals(), Totals { blocks: 3, inodes: 9 });
    }
}
