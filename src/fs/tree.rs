//! The image tree: what a view holds, as numbered inodes, in as little memory as lookups allow.
//!
//! Nothing here does I/O. `overlay` fills a tree, the frontends read it; once built it never changes.
//!
//! ```text
//! inodes    [1 root][2][3][4]...           the position is the inode number less one: breadth first, the root is 1
//!              |
//!              Dir { first, len, parent }
//!                     |
//! dentries  .. [name ino][name ino] ..     one directory's are contiguous and sorted by the bytes of their names
//!                 |
//! names     ..3usr3var..                   each different name once, its length before it
//! bytes     symlink targets, names and values of xattrs, each different one once
//! xattrs    [ino name value]               sorted by inode number
//! ```
//!
//! An entry costs 64 bytes, 56 for its inode and 8 for its dentry (a further hard link costs 8), and a name that no other has its length and 1. A
//! symlink adds the length of its target, an xattr 20 bytes and the length of its name and value, where these are new. The vectors have no spare
//! capacity. A test holds this.
//!
//! The order of numbers depends on the layers alone, so the same image has the same inode numbers on every mount and machine.

mod fingerprint;

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::ops::Range;

use super::acl;
use crate::budget::{Charge, Exceeded};
use crate::index::once::Once;
use crate::index::{Meta, Time};

/// An inode number: the position in the merged order, the root first, which is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(NonZeroU32);

impl Ino {
    pub const ROOT: Self = Self(NonZeroU32::MIN);

    /// The number as stat and the kernel have it.
    #[must_use]
    pub fn get(self) -> u64 {
        u64::from(self.0.get())
    }

    /// `None` for numbers that no tree gives.
    #[must_use]
    pub fn new(number: u64) -> Option<Self> {
        u32::try_from(number).ok().and_then(NonZeroU32::new).map(Self)
    }

    fn position(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// What a node is, in stat's terms but without one of its constants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Dir,
    File,
    Symlink,
    Char,
    Block,
    Fifo,
    Socket,
}

/// What stat says of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    pub ino: Ino,
    pub kind: Type,
    /// Permission bits with suid, sgid and sticky: 0 to 0o7777.
    pub mode: u16,
    /// Files: the names that the view shows. Directories: 2 and the number of subdirectories.
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes of a file or of a symlink's target; 0 for everything else.
    pub size: u64,
    pub mtime: Time,
    /// 0 for everything but devices, as is `minor`.
    pub major: u32,
    pub minor: u32,
}

/// Where the contents of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The layer, 0 the lowest.
    pub layer: usize,
    /// Where the contents start in that layer's layer file.
    pub start: u64,
    pub len: u64,
}

/// The xattr, or xattrs, that a single-layer view shows on an opaque directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpaqueXattr {
    /// `trusted.overlay.opaque`, which only root's overlayfs reads.
    Trusted,
    /// `user.overlay.opaque`, which overlayfs mounted with `userxattr` reads.
    User,
    /// Both, in a store, which overlays of root and of users may have below them.
    Both,
}

impl OpaqueXattr {
    /// The xattr's name (Linux, Documentation/filesystems/overlayfs.rst), or names.
    #[must_use]
    pub const fn names(self) -> &'static [&'static [u8]] {
        match self {
            Self::Trusted => &[Self::TRUSTED],
            Self::User => &[Self::USER],
            Self::Both => &[Self::TRUSTED, Self::USER],
        }
    }

    pub(super) const TRUSTED: &'static [u8] = b"trusted.overlay.opaque";
    pub(super) const USER: &'static [u8] = b"user.overlay.opaque";
}

/// Why layers make no tree. `layer` counts from 0, the lowest; paths have no leading slash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("layer {layer}: the hard link {entry:?} names {target:?}, which no layer below has")]
    LinkToNothing { layer: u16, entry: String, target: String },
    #[error("layer {layer}: the hard link {entry:?} names {target:?}, which is a directory in the layers below")]
    LinkToDirectory { layer: u16, entry: String, target: String },
    #[error(
        "the hard link {entry:?} names {target:?}, which only a lower layer can have: this layer cannot be served alone; mount the whole image"
    )]
    LinkOutOfLayer { entry: String, target: String },
    #[error("{entry:?}: its {xattr} is no ACL that Linux takes: {what}; build the image again without it")]
    BadAcl { entry: String, xattr: &'static str, what: &'static str },
    #[error("the names, links and xattrs of all layers together: {0}")]
    Memory(Exceeded),
    #[error("the image has too many {what} for one tree (the limit is {limit})")]
    TooLarge { what: &'static str, limit: u64 },
}

/// A part of [`Tree::bytes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: u32,
    len: u32,
}

impl Span {
    fn of(self, bytes: &[u8]) -> &[u8] {
        let start = self.start as usize;
        bytes.get(start..start.saturating_add(self.len as usize)).unwrap_or_default()
    }
}

#[derive(Debug, Clone, Copy)]
enum Node {
    Dir { first: u32, len: u32, parent: Ino },
    File { layer: u16, start: u64, size: u64 },
    Symlink(Span),
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
    Socket,
}

/// The time is in two fields, since [`Time`] would bring 4 bytes of padding into each inode.
#[derive(Debug)]
struct Inode {
    node: Node,
    mtime_secs: i64,
    mtime_nanos: u32,
    uid: u32,
    gid: u32,
    nlink: u32,
    mode: u16,
}

#[derive(Debug)]
struct Dentry {
    /// Where the length of the name is in [`Tree::names`].
    name: u32,
    ino: Ino,
}

#[derive(Debug)]
struct Xattr {
    ino: Ino,
    name: Span,
    value: Span,
}

/// A tree that can be served: the layers of an image merged, or one layer alone.
#[derive(Debug, Default)]
pub struct Tree {
    inodes: Vec<Inode>,
    dentries: Vec<Dentry>,
    names: Vec<u8>,
    bytes: Vec<u8>,
    xattrs: Vec<Xattr>,
    has_acls: bool,
    /// Inodes that have a number and no name.
    unnamed: u64,
    /// The sum of the sizes of all files, hard links counted once.
    file_bytes: u64,
    /// For all of it.
    charge: Charge,
}

impl Tree {
    /// What the layers are worth that it was made of.
    pub(super) fn worth(&self) -> u64 {
        self.charge.worth()
    }

    #[must_use]
    pub fn root(&self) -> Ino {
        Ino::ROOT
    }

    #[must_use]
    pub fn lookup(&self, dir: Ino, name: &[u8]) -> Option<Ino> {
        let dentries = self.dentries_of(dir);
        let (mut low, mut high) = (dentries.start, dentries.end);
        while low < high {
            let middle = low.midpoint(high);
            match self.name(middle).cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return self.dentries.get(middle).map(|dentry| dentry.ino),
            }
        }
        None
    }

    #[must_use]
    pub fn attr(&self, ino: Ino) -> Option<Attr> {
        let inode = self.inode(ino)?;
        let (kind, size, major, minor) = match inode.node {
            Node::Dir { .. } => (Type::Dir, 0, 0, 0),
            Node::File { size, .. } => (Type::File, size, 0, 0),
            Node::Symlink(target) => (Type::Symlink, u64::from(target.len), 0, 0),
            Node::Char { major, minor } => (Type::Char, 0, major, minor),
            Node::Block { major, minor } => (Type::Block, 0, major, minor),
            Node::Fifo => (Type::Fifo, 0, 0, 0),
            Node::Socket => (Type::Socket, 0, 0, 0),
        };
        let mtime = Time { secs: inode.mtime_secs, nanos: inode.mtime_nanos };
        let Inode { mode, nlink, uid, gid, .. } = *inode;
        Some(Attr { ino, kind, mode, nlink, uid, gid, size, mtime, major, minor })
    }

    /// The directory that holds a directory; the root's is the root. `None` for anything but a directory.
    #[must_use]
    pub fn parent(&self, dir: Ino) -> Option<Ino> {
        match self.inode(dir)?.node {
            Node::Dir { parent, .. } => Some(parent),
            _ => None,
        }
    }

    /// The children of a directory from position `from` on, sorted by the bytes of their names; none for anything but a directory.
    pub fn children(&self, dir: Ino, from: usize) -> impl Iterator<Item = (&[u8], Ino)> {
        let Range { start, end } = self.dentries_of(dir);
        let range = start.saturating_add(from).min(end)..end;
        range.filter_map(|position| Some((self.name(position), self.dentries.get(position)?.ino)))
    }

    /// The target of a symlink.
    #[must_use]
    pub fn readlink(&self, ino: Ino) -> Option<&[u8]> {
        match self.inode(ino)?.node {
            Node::Symlink(target) => Some(target.of(&self.bytes)),
            _ => None,
        }
    }

    /// Where a file's contents are; `None` for anything but a regular file.
    #[must_use]
    pub fn extent(&self, ino: Ino) -> Option<Extent> {
        match self.inode(ino)?.node {
            Node::File { layer, start, size } => Some(Extent { layer: usize::from(layer), start, len: size }),
            _ => None,
        }
    }

    /// Name and value of each xattr of a node, the opaque one included.
    pub fn xattrs(&self, ino: Ino) -> impl Iterator<Item = (&[u8], &[u8])> {
        let from = self.xattrs.partition_point(|xattr| xattr.ino < ino);
        let rest = self.xattrs.get(from..).unwrap_or_default();
        rest.iter()
            .take_while(move |xattr| xattr.ino == ino)
            .map(|xattr| (xattr.name.of(&self.bytes), xattr.value.of(&self.bytes)))
    }

    /// Whether any node has an xattr at all.
    #[must_use]
    pub fn has_xattrs(&self) -> bool {
        !self.xattrs.is_empty()
    }

    /// Whether any node has an ACL, so that the kernel has to ask for them.
    #[must_use]
    pub fn has_acls(&self) -> bool {
        self.has_acls
    }

    /// Number of inodes that have a name, and the sum of the sizes of all files in bytes.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        ((self.inodes.len() as u64).saturating_sub(self.unnamed), self.file_bytes)
    }

    /// The users and the groups that own something.
    #[must_use]
    pub fn owners(&self) -> (BTreeSet<u32>, BTreeSet<u32>) {
        let users = self.inodes.iter().map(|inode| inode.uid).collect();
        (users, self.inodes.iter().map(|inode| inode.gid).collect())
    }

    /// Bytes that its vectors take.
    fn bytes(&self) -> u64 {
        let Self { inodes, dentries, names, bytes, xattrs, .. } = self;
        let records = inodes.len() * size_of::<Inode>() + dentries.len() * size_of::<Dentry>();
        (records + names.len() + bytes.len() + xattrs.len() * size_of::<Xattr>()) as u64
    }

    fn inode(&self, ino: Ino) -> Option<&Inode> {
        self.inodes.get(ino.position())
    }

    fn dentries_of(&self, dir: Ino) -> Range<usize> {
        match self.inode(dir).map(|inode| inode.node) {
            Some(Node::Dir { first, len, .. }) => first as usize..(first as usize).saturating_add(len as usize),
            _ => 0..0,
        }
    }

    fn name(&self, position: usize) -> &[u8] {
        let from = self.dentries.get(position).and_then(|dentry| self.names.get(dentry.name as usize..));
        let name = from.and_then(<[u8]>::split_first).and_then(|(len, names)| names.get(..usize::from(*len)));
        name.unwrap_or_default()
    }

    /// The path of a directory without a leading slash, for messages; the root's is empty. Takes time with the size of the directories on it.
    fn dir_path(&self, dir: Ino) -> Vec<u8> {
        let mut names = Vec::new();
        let mut dir = dir;
        while dir != Ino::ROOT {
            let Some(parent) = self.parent(dir) else { break };
            names.extend(self.children(parent, 0).find(|(_, ino)| *ino == dir).map(|(name, _)| name));
            dir = parent;
        }
        names.reverse();
        names.join(&b'/')
    }
}

/// A node to be numbered. Directories are made by [`Builder::dir`].
pub(super) enum NewNode<'a> {
    File { layer: u16, start: u64, size: u64 },
    Symlink(&'a [u8]),
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
    Socket,
}

/// What an entry of an honest image takes in a tree, and while that is built.
const HONEST: u64 = 100;
const HONEST_BUILT: u64 = HONEST + 2 * Once::EACH;

/// Bytes that one more of each may take.
const EACH: usize = 256;

/// Fills a tree directory by directory, breadth first: the root with [`Builder::dir`], then for each directory in the order of their numbers
/// [`Builder::open`] and its entries, sorted.
pub(super) struct Builder {
    tree: Tree,
    /// The directory that is being filled.
    open: Ino,
    /// Directories that no layer has an entry for.
    implied: u64,
    /// Bytes that whoever fills the tree holds for it.
    besides: usize,
    /// What is in `names` and in `bytes`.
    names: Once,
    bytes: Once,
    /// A name with its length, kept for its memory.
    name: Vec<u8>,
}

impl Builder {
    pub(super) fn new(charge: Charge) -> Self {
        let (tree, names, bytes) = (Tree { charge, ..Tree::default() }, Once::default(), Once::default());
        Self { tree, open: Ino::ROOT, implied: 0, besides: 0, names, bytes, name: Vec::new() }
    }

    /// Sees to it that there is room for what there is, and for so many bytes more.
    fn cover(&mut self, more: usize) -> Result<(), Error> {
        let besides = self.besides.saturating_add(more + EACH) as u64;
        let held = self.tree.bytes() + self.names.bytes() + self.bytes.bytes() + besides;
        let honest = self.entries() * HONEST_BUILT;
        self.tree.charge.cover(held, honest).map_err(Error::Memory)
    }

    /// Whoever fills the tree takes so many bytes besides it.
    pub(super) fn hold(&mut self, bytes: usize) -> Result<(), Error> {
        self.besides = self.besides.saturating_add(bytes);
        self.cover(0)
    }

    /// And has given them back.
    pub(super) const fn let_go(&mut self, bytes: usize) {
        self.besides = self.besides.saturating_sub(bytes);
    }

    /// Names that a layer has an entry for. A long path implies many others, which are no honest image's.
    fn entries(&self) -> u64 {
        (self.tree.dentries.len() as u64).saturating_sub(self.implied)
    }

    /// Turns to a directory: what is linked from now on is in it.
    pub(super) fn open(&mut self, dir: Ino) -> Result<(), Error> {
        self.open = dir;
        let next = number(self.tree.dentries.len(), "names")?;
        if let Some(Inode { node: Node::Dir { first, .. }, .. }) = self.tree.inodes.get_mut(dir.position()) {
            *first = next;
        }
        Ok(())
    }

    /// A directory in the open one, still without entries (and without a name, until it is linked).
    pub(super) fn dir(&mut self, meta: Meta) -> Result<Ino, Error> {
        let node = Node::Dir { first: 0, len: 0, parent: self.open };
        self.inode(node, meta, 2)
    }

    /// The same of one that no layer has an entry for.
    pub(super) fn implied_dir(&mut self, meta: Meta) -> Result<Ino, Error> {
        self.implied += 1;
        self.dir(meta)
    }

    pub(super) fn node(&mut self, node: &NewNode<'_>, meta: Meta) -> Result<Ino, Error> {
        let node = match *node {
            NewNode::File { layer, start, size } => {
                self.tree.file_bytes = self.tree.file_bytes.saturating_add(size);
                Node::File { layer, start, size }
            }
            NewNode::Symlink(target) => Node::Symlink(self.span(target)?),
            NewNode::Char { major, minor } => Node::Char { major, minor },
            NewNode::Block { major, minor } => Node::Block { major, minor },
            NewNode::Fifo => Node::Fifo,
            NewNode::Socket => Node::Socket,
        };
        self.inode(node, meta, 0)
    }

    /// A number for a node that is left out, so that the others have the same numbers with and without it.
    pub(super) fn unnamed(&mut self, node: &NewNode<'_>, meta: Meta) -> Result<Option<Ino>, Error> {
        self.node(node, meta)?;
        self.tree.unnamed += 1;
        Ok(None)
    }

    /// Gives the node that was made last an xattr.
    pub(super) fn xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), Error> {
        let ino = self.last()?;
        self.tree.has_acls |= matches!(name, acl::ACCESS | acl::DEFAULT);
        let (name, value) = (self.span(name)?, self.span(value)?);
        self.tree.xattrs.push(Xattr { ino, name, value });
        Ok(())
    }

    /// A name in the open directory, greater than all before it.
    pub(super) fn link(&mut self, name: &[u8], ino: Ino) -> Result<(), Error> {
        self.name.clear();
        self.name.push(u8::try_from(name.len()).map_err(|_| Error::TooLarge { what: "bytes in a name", limit: 255 })?);
        self.name.extend_from_slice(name);
        self.cover(self.name.len())?;
        let name = self.names.place(&mut self.tree.names, &self.name).ok_or_else(|| too_large("bytes of names"))?;
        self.tree.dentries.push(Dentry { name, ino });
        let is_dir = self.tree.parent(ino).is_some();
        if let (false, Some(inode)) = (is_dir, self.tree.inodes.get_mut(ino.position())) {
            inode.nlink = inode.nlink.saturating_add(1);
        }
        if let Some(inode) = self.tree.inodes.get_mut(self.open.position()) {
            inode.nlink = inode.nlink.saturating_add(u32::from(is_dir));
            if let Node::Dir { len, .. } = &mut inode.node {
                *len = len.saturating_add(1);
            }
        }
        Ok(())
    }

    /// The path of a name in the open directory, for messages.
    pub(super) fn path_of(&self, name: &[u8]) -> String {
        let mut path = self.tree.dir_path(self.open);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        String::from_utf8_lossy(&path).into_owned()
    }

    pub(super) fn finish(mut self) -> Result<Tree, Error> {
        self.tree.inodes.shrink_to_fit();
        self.tree.dentries.shrink_to_fit();
        self.tree.names.shrink_to_fit();
        self.tree.bytes.shrink_to_fit();
        self.tree.xattrs.shrink_to_fit();
        // Before others build: these are as large as what stays.
        (self.names, self.bytes) = (Once::default(), Once::default());
        let (held, honest) = (self.tree.bytes(), self.entries() * HONEST);
        self.tree.charge.settle(held, honest).map_err(Error::Memory)?;
        Ok(self.tree)
    }

    fn inode(&mut self, node: Node, meta: Meta, nlink: u32) -> Result<Ino, Error> {
        self.cover(0)?;
        let Meta { mode, uid, gid, mtime } = meta;
        self.tree.inodes.push(Inode { node, mtime_secs: mtime.secs, mtime_nanos: mtime.nanos, uid, gid, nlink, mode });
        self.last()
    }

    /// The inode that was made last.
    fn last(&self) -> Result<Ino, Error> {
        let count = number(self.tree.inodes.len(), "inodes")?;
        Ok(NonZeroU32::new(count).map_or(Ino::ROOT, Ino))
    }

    fn span(&mut self, bytes: &[u8]) -> Result<Span, Error> {
        self.cover(bytes.len())?;
        let place = self.bytes.place(&mut self.tree.bytes, bytes).zip(u32::try_from(bytes.len()).ok());
        let (start, len) = place.ok_or_else(|| too_large("bytes of symlinks and xattrs"))?;
        Ok(Span { start, len })
    }
}

fn number(count: usize, what: &'static str) -> Result<u32, Error> {
    u32::try_from(count).map_err(|_| too_large(what))
}

fn too_large(what: &'static str) -> Error {
    Error::TooLarge { what, limit: u64::from(u32::MAX) }
}

#[cfg(test)]
mod tests;
