//! The entries of one layer: a compact tree, directories' children contiguous and sorted by the bytes of their names.
//!
//! ```text
//! nodes     [root | node | node | ...]                48 bytes each, in the order of a breadth-first walk
//! children  [root's ... | first dir's ... | ...]      16 bytes each: name and what it stands for
//! names     names, symlink targets and the paths of links to lower layers, one after the other
//! xattrs    each different set of xattrs once
//! ```
//!
//! So an entry costs 64 bytes and its name. Positions are 32 bits: [`limits`](super::limits) keep all of them below that.

use super::xattrs::XattrSets;
use crate::budget::{Budget, Charge};

/// A node of one layer. Hard links of one file share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(crate) u32);

/// Seconds since 1970 (floor) and nanoseconds, as tar and zstd:chunked can say: also before 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Time {
    pub secs: i64,
    pub nanos: u32,
}

impl Time {
    pub(super) const EARLIEST: Self = Self { secs: i64::MIN, nanos: 0 };
    pub(super) const LATEST: Self = Self { secs: i64::MAX, nanos: 999_999_999 };

    /// What a time is taken for that the kernel cannot hold.
    pub(super) const fn nearest(is_late: bool) -> Self {
        if is_late { Self::LATEST } else { Self::EARLIEST }
    }
}

/// What every kind of node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Meta {
    /// Permission bits with suid, sgid and sticky: 0 to 0o7777.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind<'a> {
    Dir {
        /// Hides everything that lower layers have under this directory.
        opaque: bool,
        /// The layer has no entry for it, only for things below it.
        implied: bool,
    },
    File {
        /// Where the contents start in the layer file.
        start: u64,
        size: u64,
    },
    Symlink(&'a [u8]),
    Char {
        major: u32,
        minor: u32,
    },
    Block {
        major: u32,
        minor: u32,
    },
    Fifo,
    Socket,
}

/// What a name in a directory stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Child<'a> {
    Node(NodeId),
    /// `.wh.NAME`, given as NAME.
    Whiteout,
    /// A hard link to a file that only a lower layer can have: the cleaned path, without a leading slash.
    LinkBelow(&'a [u8]),
}

/// Bytes of the names' arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) len: u16,
}

impl Span {
    /// The bytes; empty where it lies outside, which [`Entries`] rule out when they are made.
    pub(super) fn of(self, names: &[u8]) -> &[u8] {
        let start = self.start as usize;
        names.get(start..start + usize::from(self.len)).unwrap_or_default()
    }
}

/// [`Kind`] as it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NodeKind {
    /// Its children are `count` records from `first` on.
    Dir {
        opaque: bool,
        implied: bool,
        first: u32,
        count: u32,
    },
    /// `block`: where the contents start in the layer file, in blocks of [`BLOCK`] bytes.
    File {
        block: u32,
        size: u64,
    },
    Symlink(Span),
    Char {
        major: u32,
        minor: u32,
    },
    Block {
        major: u32,
        minor: u32,
    },
    Fifo,
    Socket,
}

/// What files start on in the layer file: a page of memory and of any cache.
pub(crate) const BLOCK: u64 = 4096;

/// A node as it is kept; [`Meta`] taken apart so that 48 bytes are enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) kind: NodeKind,
    pub(super) secs: i64,
    pub(super) nanos: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// A set of [`XattrSets`].
    pub(super) xattrs: u32,
    pub(super) mode: u16,
}

impl Node {
    /// A directory that nothing says anything of: 0755, root's, time 0.
    pub(super) const fn implied_dir() -> Self {
        let kind = NodeKind::Dir { opaque: false, implied: true, first: 0, count: 0 };
        Self { kind, secs: 0, nanos: 0, uid: 0, gid: 0, xattrs: XattrSets::NONE, mode: 0o755 }
    }
}

/// What a name stands for, as it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Node(u32),
    Whiteout,
    /// A position in [`Entries::below`].
    Below(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChildRecord {
    pub(super) target: Target,
    pub(super) name: u32,
    pub(super) name_len: u8,
}

impl ChildRecord {
    pub(super) fn name(self, names: &[u8]) -> &[u8] {
        Span { start: self.name, len: u16::from(self.name_len) }.of(names)
    }
}

/// Invariants, kept by the builder and checked by the decoder: there is a root; every position is in bounds; the children of the
/// directories, in the order of their ids, tile `children`; every directory but the root has one name, in a directory of a lower
/// id; names are valid, sorted and different.
#[derive(Debug, PartialEq, Eq)]
pub struct Entries {
    pub(super) nodes: Vec<Node>,
    pub(super) children: Vec<ChildRecord>,
    pub(super) names: Vec<u8>,
    pub(super) below: Vec<Span>,
    pub(super) xattrs: XattrSets,
    pub(super) charge: Charge,
}

impl Default for Entries {
    /// An empty layer: a root that nothing says anything of.
    fn default() -> Self {
        let (nodes, children, names, below) = (vec![Node::implied_dir()], Vec::new(), Vec::new(), Vec::new());
        Self { nodes, children, names, below, xattrs: XattrSets::default(), charge: Charge::default() }
    }
}

impl Entries {
    pub const ROOT: NodeId = NodeId(0);

    /// What they are charged to.
    pub(super) const fn budget(&self) -> &Budget {
        self.charge.budget()
    }

    /// How much of what comes of them may be honest.
    #[must_use]
    pub fn worth(&self) -> u64 {
        self.charge.worth()
    }

    /// Bytes of memory that they take.
    #[must_use]
    pub const fn memory(&self) -> u64 {
        self.charge.bytes()
    }

    /// Number of nodes; ids are 0..len.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "there is always a root")]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Number of names: hard links and whiteouts are counted, the root is not.
    #[must_use]
    pub fn names(&self) -> usize {
        self.children.len()
    }

    /// Whether what it has to show alone depends on the layers below: it has whiteouts, or hides all of them, which no xattr of a root tells overlayfs.
    #[must_use]
    pub fn may_hide(&self) -> bool {
        matches!(self.kind(Self::ROOT), Kind::Dir { opaque: true, .. }) || self.has_whiteouts()
    }

    /// Whether it has whiteouts that may hide something: those in an opaque directory, or anywhere below one, do not.
    #[must_use]
    pub fn has_whiteouts(&self) -> bool {
        let mut dirs = vec![Self::ROOT];
        while let Some(dir) = dirs.pop() {
            if matches!(self.kind(dir), Kind::Dir { opaque: true, .. }) {
                continue;
            }
            for (_, child) in self.children(dir) {
                match child {
                    Child::Whiteout => return true,
                    Child::Node(node) if matches!(self.kind(node), Kind::Dir { .. }) => dirs.push(node),
                    Child::Node(_) | Child::LinkBelow(_) => {}
                }
            }
        }
        false
    }

    /// What a node is; a fifo for an id of another layer's.
    #[must_use]
    pub fn kind(&self, node: NodeId) -> Kind<'_> {
        match self.node(node).map_or(NodeKind::Fifo, |node| node.kind) {
            NodeKind::Dir { opaque, implied, .. } => Kind::Dir { opaque, implied },
            NodeKind::File { block, size } => Kind::File { start: u64::from(block) * BLOCK, size },
            NodeKind::Symlink(target) => Kind::Symlink(target.of(&self.names)),
            NodeKind::Char { major, minor } => Kind::Char { major, minor },
            NodeKind::Block { major, minor } => Kind::Block { major, minor },
            NodeKind::Fifo => Kind::Fifo,
            NodeKind::Socket => Kind::Socket,
        }
    }

    #[must_use]
    pub fn meta(&self, node: NodeId) -> Meta {
        self.node(node).map_or_else(Meta::default, |node| Meta {
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            mtime: Time { secs: node.secs, nanos: node.nanos },
        })
    }

    /// The children of a directory, sorted by the bytes of their names; empty for anything else.
    pub fn children(&self, dir: NodeId) -> impl ExactSizeIterator<Item = (&[u8], Child<'_>)> + Clone {
        self.records(dir).iter().map(|record| (record.name(&self.names), self.target(record.target)))
    }

    /// What a directory has by a name.
    #[must_use]
    pub fn child(&self, dir: NodeId, name: &[u8]) -> Option<Child<'_>> {
        let records = self.records(dir);
        let at = records.binary_search_by(|record| record.name(&self.names).cmp(name)).ok()?;
        records.get(at).map(|record| self.target(record.target))
    }

    fn records(&self, dir: NodeId) -> &[ChildRecord] {
        let range = match self.node(dir).map(|node| node.kind) {
            Some(NodeKind::Dir { first, count, .. }) => first as usize..first as usize + count as usize,
            _ => 0..0,
        };
        self.children.get(range).unwrap_or_default()
    }

    /// Name and value of each xattr (never one of overlayfs's own).
    pub fn xattrs(&self, node: NodeId) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.xattrs.set(self.node(node).map_or(XattrSets::NONE, |node| node.xattrs))
    }

    fn node(&self, node: NodeId) -> Option<&Node> {
        self.nodes.get(node.0 as usize)
    }

    fn target(&self, target: Target) -> Child<'_> {
        match target {
            Target::Node(node) => Child::Node(NodeId(node)),
            Target::Whiteout => Child::Whiteout,
            Target::Below(link) => {
                Child::LinkBelow(self.below.get(link as usize).map_or(&[], |path| path.of(&self.names)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_takes_64_bytes_and_its_name() {
        assert_eq!(size_of::<Node>(), 48);
        assert_eq!(size_of::<ChildRecord>(), 16);
    }

    #[test]
    fn an_empty_layer_is_a_root() {
        let entries = Entries::default();
        assert_eq!((entries.len(), entries.names()), (1, 0));
        assert_eq!(entries.kind(Entries::ROOT), Kind::Dir { opaque: false, implied: true });
        assert_eq!(entries.meta(Entries::ROOT).mode, 0o755);
        assert_eq!(entries.children(Entries::ROOT).len(), 0);
        assert_eq!(entries.children(NodeId(7)).len(), 0);
    }
}
