//! A view: a tree, and where the contents of its files come from. All that a frontend serves, in plain values.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::paths::resolve;
pub use super::paths::{LastSymlink, ResolveError};
use super::tree::{Ino, Tree, Type};
use crate::blob::ByteRange;
use crate::fetch::Disk;
use crate::fetch::{self, Readahead};
use crate::index::Holes;

/// The contents of the layers' files: their layer files, of which every byte handed out was verified.
pub trait Contents: Send + Sync {
    /// How many layers there are.
    fn layers(&self) -> usize;

    /// Exactly the bytes of a range of a layer file, which is a part of the file `ino`.
    fn read(
        self: Arc<Self>,
        layer: usize,
        ino: Ino,
        range: ByteRange,
    ) -> BoxFuture<'static, Result<Bytes, fetch::Error>>;

    /// Fills `buffer` with such bytes, which are as many, where all of them are on local disk and were verified, and that takes no longer than
    /// `disk` allows. Says whether it did.
    fn read_cached(
        self: Arc<Self>,
        _layer: usize,
        _ino: Ino,
        _range: ByteRange,
        _buffer: &mut [u8],
        _disk: Disk,
    ) -> bool {
        false
    }

    /// How long a read may wait for local disk.
    fn patience(&self) -> Duration {
        Duration::MAX
    }

    /// A read has waited for local disk for longer than that, and its reader was told so.
    fn gave_up(&self, _layer: usize) {}
}

impl Contents for Readahead {
    fn patience(&self) -> Duration {
        self.patience()
    }

    fn gave_up(&self, layer: usize) {
        Readahead::gave_up(self, layer);
    }

    fn layers(&self) -> usize {
        self.layers()
    }

    fn read(
        self: Arc<Self>,
        layer: usize,
        ino: Ino,
        range: ByteRange,
    ) -> BoxFuture<'static, Result<Bytes, fetch::Error>> {
        Box::pin(async move { Readahead::read(&self, layer, ino.get(), range).await })
    }

    fn read_cached(self: Arc<Self>, layer: usize, ino: Ino, range: ByteRange, buffer: &mut [u8], disk: Disk) -> bool {
        Readahead::read_cached(&self, layer, ino.get(), range, buffer, disk)
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

/// What statfs says of a view: everything is used, nothing is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Blocks of [`BLOCK_SIZE`] bytes that the files' sizes add up to, without their holes.
    pub blocks: u64,
    pub inodes: u64,
}

/// Bytes of a block, as stat and statfs name it.
pub const BLOCK_SIZE: u32 = 4096;

/// A tree that can be served.
pub struct View {
    tree: Arc<Tree>,
    contents: Arc<dyn Contents>,
    /// Of each layer; none where it is not known.
    holes: Vec<Holes>,
    hole_bytes: u64,
}

impl View {
    #[must_use]
    pub fn new(tree: impl Into<Arc<Tree>>, contents: Arc<dyn Contents>) -> Self {
        Self { tree: tree.into(), contents, holes: Vec::new(), hole_bytes: 0 }
    }

    /// The same, with the holes of each layer's layer file.
    #[must_use]
    pub fn with_holes(self, holes: Vec<Holes>) -> Self {
        let view = Self { holes, ..self };
        Self { hole_bytes: view.hole_bytes(), ..view }
    }

    pub(super) fn holes(&self) -> &[Holes] {
        &self.holes
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
        let layers = self.contents.layers();
        let range = extent.start.checked_add(offset).and_then(|start| ByteRange::at(start, len));
        let Some(range) = range.filter(|_| layer < layers) else {
            return Err(ReadError::NoSuchLayer { ino: number, layer, layers });
        };
        let read = Arc::clone(&self.contents).read(layer, ino, range).await;
        let bytes = read.map_err(|source| ReadError::Contents { ino: number, layer, range, source })?;
        if bytes.len() as u64 != len {
            return Err(ReadError::WrongLength { ino: number, layer, range, got: bytes.len() });
        }
        Ok(bytes)
    }

    /// What [`View::read`] gives, put into `buffer` (which grows where it is too short); `None` where that takes longer than `disk` allows.
    pub(super) fn read_cached<'a>(
        &self,
        ino: Ino,
        offset: u64,
        len: u64,
        buffer: &'a mut Vec<u8>,
        disk: Disk,
    ) -> Option<&'a [u8]> {
        let extent = self.tree.extent(ino)?;
        let range = ByteRange::at(extent.start.checked_add(offset)?, len.min(extent.len.checked_sub(offset)?))?;
        let len = usize::try_from(range.len()).ok()?;
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let buffer = buffer.get_mut(..len)?;
        let contents = Arc::clone(&self.contents);
        contents.read_cached(extent.layer, ino, range, buffer, disk).then_some(buffer)
    }

    pub(super) fn patience(&self) -> Duration {
        self.contents.patience()
    }

    /// A read of a file has waited for local disk for longer than it may.
    pub(super) fn gave_up(&self, ino: Ino) {
        if let Some(extent) = self.tree.extent(ino) {
            self.contents.gave_up(extent.layer);
        }
    }

    /// What a path names. Symlinks are followed inside the image: an absolute target starts at its root, and `..` of the root is the root.
    ///
    /// # Errors
    /// Where a part of the path is missing or is no directory, or symlinks lead in a circle.
    pub fn resolve(&self, path: &[u8], last: LastSymlink) -> Result<Ino, ResolveError> {
        resolve(&self.tree, self.tree.root(), path, last)
    }

    #[must_use]
    pub fn totals(&self) -> Totals {
        let (inodes, bytes) = self.tree.totals();
        let bytes = bytes.saturating_sub(self.hole_bytes);
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
        View::new(merge(&[FakeLayer::new(&spec)], None).unwrap(), Arc::new(Ramp::default()))
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
            Arc::new(Ramp { lost: 1, ..Ramp::default() }),
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
            Arc::new(Ramp { none: true, ..Ramp::default() }),
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
