//! A layer for tests, as a list of paths: what a tar would hold, already cleaned. It stands in for `index::Entries`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::overlay::LayerEntries;
use super::tree::Ino;
use super::view::Contents;
use crate::blob::ByteRange;
use crate::fetch;
use crate::index::{Child, Kind, Meta, NodeId, Time};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    Dir,
    File {
        size: u64,
    },
    Symlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
    /// A hard link to what the layer has at that path; where it has nothing, to what the layers below have.
    Link(Vec<u8>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) what: What,
    pub(super) meta: Meta,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

pub(super) const MADE_UP: Meta = Meta { mode: 0o755, uid: 0, gid: 0, mtime: Time { secs: 0, nanos: 0 } };

/// What a layer says; paths have no leading slash, the root is the empty path.
#[derive(Debug, Clone, Default)]
pub(super) struct Spec {
    pub(super) entries: BTreeMap<Vec<u8>, Item>,
    pub(super) whiteouts: BTreeSet<Vec<u8>>,
    pub(super) opaque: BTreeSet<Vec<u8>>,
}

impl Spec {
    pub(super) fn with(mut self, path: &str, what: What) -> Self {
        self.entries.insert(path.into(), Item { what, meta: Meta { mode: 0o644, ..MADE_UP }, xattrs: Vec::new() });
        self
    }

    pub(super) fn meta(mut self, path: &str, meta: Meta) -> Self {
        self.entries.get_mut(path.as_bytes()).unwrap().meta = meta;
        self
    }

    pub(super) fn xattr(mut self, path: &str, name: &str, value: &str) -> Self {
        self.entries.get_mut(path.as_bytes()).unwrap().xattrs.push((name.into(), value.into()));
        self
    }

    pub(super) fn whiteout(mut self, path: &str) -> Self {
        self.whiteouts.insert(path.into());
        self
    }

    pub(super) fn opaque(mut self, path: &str) -> Self {
        self.opaque.insert(path.into());
        self
    }

    /// Where a file's contents start: by its place among the entries.
    pub(super) fn start(&self, path: &[u8]) -> u64 {
        4096 * self.entries.keys().position(|key| key == path).unwrap() as u64
    }
}

/// The directory of a path; the root has none.
pub(super) fn parent(path: &[u8]) -> Option<&[u8]> {
    if path.is_empty() {
        return None;
    }
    Some(&path[..path.iter().rposition(|byte| *byte == b'/').unwrap_or(0)])
}

enum FakeKind {
    Dir { opaque: bool, implied: bool },
    File { start: u64, size: u64 },
    Symlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

enum FakeChild {
    Node(usize),
    Whiteout,
    LinkBelow(Vec<u8>),
}

struct FakeNode {
    kind: FakeKind,
    meta: Meta,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    children: BTreeMap<Vec<u8>, FakeChild>,
}

pub(super) struct FakeLayer {
    nodes: Vec<FakeNode>,
}

impl FakeLayer {
    pub(super) fn new(spec: &Spec) -> Self {
        let root = FakeNode {
            kind: FakeKind::Dir { opaque: false, implied: true },
            meta: MADE_UP,
            xattrs: Vec::new(),
            children: BTreeMap::new(),
        };
        let mut layer = Self { nodes: vec![root] };
        let mut at = BTreeMap::from([(Vec::new(), 0)]);
        for (start, (path, item)) in (0..).step_by(4096).zip(&spec.entries) {
            layer.entry(&mut at, start, path, item);
        }
        for (path, item) in &spec.entries {
            if let What::Link(target) = &item.what {
                let child =
                    at.get(target).map_or_else(|| FakeChild::LinkBelow(target.clone()), |node| FakeChild::Node(*node));
                layer.attach(&mut at, path, child);
            }
        }
        for path in &spec.opaque {
            let node = layer.dir(&mut at, path);
            if let FakeKind::Dir { opaque, .. } = &mut layer.nodes[node].kind {
                *opaque = true;
            }
        }
        for path in &spec.whiteouts {
            layer.dir(&mut at, parent(path).unwrap());
        }
        let is_link = |path: &&Vec<u8>| matches!(spec.entries.get(*path), Some(Item { what: What::Link(_), .. }));
        for path in spec.whiteouts.iter().filter(|path| !is_link(path)) {
            match at.get(path).copied() {
                None => layer.attach(&mut at, path, FakeChild::Whiteout),
                Some(node) => {
                    if let FakeKind::Dir { opaque, implied } = &mut layer.nodes[node].kind {
                        (*opaque, *implied) = (true, false);
                    }
                }
            }
        }
        layer
    }

    fn entry(&mut self, at: &mut BTreeMap<Vec<u8>, usize>, start: u64, path: &[u8], item: &Item) {
        let node = match &item.what {
            What::Link(_) => return,
            What::Dir => self.dir(at, path),
            what => {
                let kind = match what {
                    What::File { size } => FakeKind::File { start, size: *size },
                    What::Symlink(target) => FakeKind::Symlink(target.clone()),
                    What::Char(major, minor) => FakeKind::Char(*major, *minor),
                    What::Block(major, minor) => FakeKind::Block(*major, *minor),
                    _ => FakeKind::Fifo,
                };
                self.node(at, path, kind)
            }
        };
        let new = &mut self.nodes[node];
        if let FakeKind::Dir { implied, .. } = &mut new.kind {
            *implied = false;
        }
        (new.meta, new.xattrs) = (item.meta, item.xattrs.clone());
    }

    fn node(&mut self, at: &mut BTreeMap<Vec<u8>, usize>, path: &[u8], kind: FakeKind) -> usize {
        self.nodes.push(FakeNode { kind, meta: MADE_UP, xattrs: Vec::new(), children: BTreeMap::new() });
        let node = self.nodes.len() - 1;
        at.insert(path.to_vec(), node);
        self.attach(at, path, FakeChild::Node(node));
        node
    }

    fn dir(&mut self, at: &mut BTreeMap<Vec<u8>, usize>, path: &[u8]) -> usize {
        match at.get(path) {
            Some(node) => *node,
            None => self.node(at, path, FakeKind::Dir { opaque: false, implied: true }),
        }
    }

    fn attach(&mut self, at: &mut BTreeMap<Vec<u8>, usize>, path: &[u8], child: FakeChild) {
        let dir = parent(path).unwrap();
        let name = path[dir.len()..].strip_prefix(b"/").unwrap_or(&path[dir.len()..]);
        let dir = self.dir(at, dir);
        self.nodes[dir].children.insert(name.to_vec(), child);
    }
}

impl LayerEntries for FakeLayer {
    fn worth(&self) -> u64 {
        0
    }

    fn len(&self) -> usize {
        self.nodes.len()
    }

    fn kind(&self, node: NodeId) -> Kind<'_> {
        match &self.nodes[node.0 as usize].kind {
            FakeKind::Dir { opaque, implied } => Kind::Dir { opaque: *opaque, implied: *implied },
            FakeKind::File { start, size } => Kind::File { start: *start, size: *size },
            FakeKind::Symlink(target) => Kind::Symlink(target),
            FakeKind::Char(major, minor) => Kind::Char { major: *major, minor: *minor },
            FakeKind::Block(major, minor) => Kind::Block { major: *major, minor: *minor },
            FakeKind::Fifo => Kind::Fifo,
        }
    }

    fn meta(&self, node: NodeId) -> Meta {
        self.nodes[node.0 as usize].meta
    }

    fn children(&self, dir: NodeId) -> impl Iterator<Item = (&[u8], Child<'_>)> {
        self.nodes[dir.0 as usize].children.iter().map(|(name, child)| {
            let child = match child {
                FakeChild::Node(node) => Child::Node(NodeId(u32::try_from(*node).unwrap())),
                FakeChild::Whiteout => Child::Whiteout,
                FakeChild::LinkBelow(path) => Child::LinkBelow(path),
            };
            (name.as_slice(), child)
        })
    }

    fn child(&self, dir: NodeId, name: &[u8]) -> Option<Child<'_>> {
        self.children(dir).find_map(|(found, child)| (found == name).then_some(child))
    }

    fn xattrs(&self, node: NodeId) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.nodes[node.0 as usize].xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice()))
    }
}

/// Bytes that name their own offset in the layer file, modulo a prime, so that a wrong offset shows.
pub(super) fn ramp(start: u64, len: usize) -> Vec<u8> {
    (start..).take(len).map(|offset| u8::try_from(offset % 251).unwrap()).collect()
}

/// A layer file that is a ramp.
#[derive(Default)]
pub(super) struct Ramp {
    /// Bytes that are missing from the end of each answer.
    pub(super) lost: usize,
    /// There are no layers.
    pub(super) none: bool,
}

impl Contents for Ramp {
    fn layers(&self) -> usize {
        if self.none { 0 } else { usize::MAX }
    }

    fn read(
        self: Arc<Self>,
        _layer: usize,
        _ino: Ino,
        range: ByteRange,
    ) -> BoxFuture<'static, Result<Bytes, fetch::Error>> {
        let len = usize::try_from(range.len()).unwrap().saturating_sub(self.lost);
        Box::pin(std::future::ready(Ok(ramp(range.start, len).into())))
    }
}
