//! Layers into a tree: the overlay rules of OCI image specification 1.1, layer.md, "Representing Changes".
//!
//! What a name stands for is decided from the top down, over the layers that still count in its directory:
//!
//! | layer says | then |
//! |---|---|
//! | whiteout | layers below do not count for this name (what this layer itself has under it arrives as a node instead) |
//! | anything but a directory | it is that, if nothing above was a directory; layers below do not count |
//! | directory | its entries join those of directories above; its attributes count if no entry above gave any |
//! | opaque directory | the same, and no entries of layers below join |
//! | implied directory | only its entries count: the attributes are those of a lower directory, or else 0755 root |
//!
//! The merge walks breadth first with a queue, so that hostile depth costs no stack, and takes each directory's children in one pass over the
//! sorted children of its layers. It keeps 4 bytes per node of each layer while it runs, for the inodes of hard links.
//!
//! Where an image has a layer twice, the lower one adds nothing: whatever it says of a name, the upper one says first. So what a directory joins
//! has each layer once, at its highest place.
//!
//! A layer alone leaves out whiteouts in directories that the layers below do not have, or that are opaque: they hide nothing, and overlayfs, which
//! merges no other directory there, lists them as names that are not there. They keep their inode numbers, so that these do not depend on
//! whether the layers below are known.
//!
//! An implied directory that is also opaque (a layer has only `d/.wh..wh..opq`) keeps the attributes of a lower `d`: what is in it is hidden, not
//! it. Where a layer has both a whiteout of `d` and things below a new `d`, the lower `d` is gone: the index must give that one as opaque and *not*
//! implied, with made-up attributes.

mod below;
mod lower;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet, VecDeque};

use self::below::{Below, NotAFile};
use super::possible::{BadAcl, is_possible};
use super::tree::{Builder, Error, Ino, NewNode, OpaqueXattr, Tree};
use crate::budget::Budget;
use crate::index::{Child, Entries, Kind, Meta, NodeId, Time};

/// A directory that a layer uses and no layer has an entry for.
const MADE_UP: Meta = Meta { mode: 0o755, uid: 0, gid: 0, mtime: Time { secs: 0, nanos: 0 } };
const WHITEOUT: Meta = Meta { mode: 0, uid: 0, gid: 0, mtime: Time { secs: 0, nanos: 0 } };

/// What the merge asks of a layer; [`Entries`], and in tests a simpler one.
pub(super) trait LayerEntries {
    fn len(&self) -> usize;
    /// How much of what comes of it may be honest.
    fn worth(&self) -> u64;
    fn kind(&self, node: NodeId) -> Kind<'_>;
    fn meta(&self, node: NodeId) -> Meta;
    /// Sorted by the bytes of the names.
    fn children(&self, dir: NodeId) -> impl Iterator<Item = (&[u8], Child<'_>)>;
    fn child(&self, dir: NodeId, name: &[u8]) -> Option<Child<'_>>;
    fn xattrs(&self, node: NodeId) -> impl Iterator<Item = (&[u8], &[u8])>;
}

impl LayerEntries for Entries {
    fn len(&self) -> usize {
        Entries::len(self)
    }

    fn worth(&self) -> u64 {
        Entries::worth(self)
    }

    fn kind(&self, node: NodeId) -> Kind<'_> {
        Entries::kind(self, node)
    }

    fn meta(&self, node: NodeId) -> Meta {
        Entries::meta(self, node)
    }

    fn children(&self, dir: NodeId) -> impl Iterator<Item = (&[u8], Child<'_>)> {
        Entries::children(self, dir)
    }

    fn child(&self, dir: NodeId, name: &[u8]) -> Option<Child<'_>> {
        Entries::child(self, dir, name)
    }

    fn xattrs(&self, node: NodeId) -> impl Iterator<Item = (&[u8], &[u8])> {
        Entries::xattrs(self, node)
    }
}

impl Tree {
    /// The layers merged, the lowest first, within the budget of the image that they make.
    ///
    /// # Errors
    /// Where a hard link names nothing that a lower layer has, or a directory, and where the numbers of a tree or the memory do not suffice.
    pub fn merged(layers: Vec<&Entries>, memory: &Budget) -> Result<Self, Error> {
        merge_over::<_, Entries>(layers, None, MADE_UP, memory)
    }

    /// One layer alone, the way overlayfs wants a lower directory: whiteouts are character devices 0:0, opaque directories have an xattr
    /// (Linux, Documentation/filesystems/overlayfs.rst). Extents say layer 0. `lowers`: the layers below it, the lowest first, where they are known.
    ///
    /// # Errors
    /// Where a hard link names a file of a lower layer, an ACL is none, and where the numbers of a tree or the memory do not suffice.
    pub fn single(
        layer: &Entries,
        opaque: OpaqueXattr,
        lowers: Option<&[Entries]>,
        memory: &Budget,
    ) -> Result<Self, Error> {
        let lowers = lowers.filter(|_| layer.may_hide()).map(|lowers| lowers.iter().collect());
        merge_over(vec![layer], Some(Alone { opaque, lowers }), MADE_UP, memory)
    }

    /// The same above such trees, the lowest first. Where the layer has no entry for its own root, that has the attributes of the root below it:
    /// overlayfs shows those of the uppermost root.
    ///
    /// # Errors
    /// As [`Tree::single`].
    pub fn single_over(
        layer: &Entries,
        opaque: OpaqueXattr,
        lowers: Option<Vec<&Self>>,
        memory: &Budget,
    ) -> Result<Self, Error> {
        let below = lowers.as_ref().and_then(|lowers| lowers.last());
        let root = below.map_or(MADE_UP, |below| LayerEntries::meta(*below, Entries::ROOT));
        let lowers = lowers.filter(|_| layer.may_hide());
        merge_over(vec![layer], Some(Alone { opaque, lowers }), root, memory)
    }
}

/// How a layer is made a lower directory.
struct Alone<'a, B> {
    opaque: OpaqueXattr,
    /// The layers below it, the lowest first, where they are known.
    lowers: Option<Vec<&'a B>>,
}

/// All layers merged; with `alone`, the one layer as a lower directory above layers that are not known.
#[cfg(test)]
pub(super) fn merge<L: LayerEntries>(layers: &[L], alone: Option<OpaqueXattr>) -> Result<Tree, Error> {
    let alone = alone.map(|opaque| Alone { opaque, lowers: None });
    merge_over::<L, L>(layers.iter().collect(), alone, MADE_UP, &Budget::UNLIMITED)
}

/// The same, with a root of those attributes where no layer has an entry for it.
fn merge_over<L: LayerEntries, B: LayerEntries>(
    layers: Vec<&L>,
    alone: Option<Alone<'_, B>>,
    made_up_root: Meta,
    memory: &Budget,
) -> Result<Tree, Error> {
    if u16::try_from(layers.len()).is_err() {
        return Err(Error::TooLarge { what: "layers", limit: u64::from(u16::MAX) });
    }
    let layers = numbered(layers);
    let (opaque, lowers) = alone.map_or((None, None), |alone| (Some(alone.opaque), alone.lowers));
    let lowers = lowers.map(numbered);
    let mut merge = Merge {
        alone: opaque,
        made_up: made_up_root,
        tree: Builder::new(memory.build_worth(worth(&layers))),
        inos: layers.iter().map(|_| Vec::new()).collect(),
        queue: VecDeque::new(),
        below: Below::new(&layers),
        lowers: Below::new(lowers.as_deref().unwrap_or_default()),
    };
    let lower = lowers.as_ref().map_or(Lower::Unknown, |lowers| Lower::Dirs(root(lowers).joined));
    merge.dir(b"", root(&layers), lower)?;
    merge.made_up = MADE_UP;
    while let Some(dir) = merge.queue.pop_front() {
        merge.fill(dir)?;
    }
    merge.tree.finish()
}

/// What a tree of the layers is worth: what they are, each once.
fn worth<L: LayerEntries>(layers: &[Numbered<'_, L>]) -> u64 {
    let mut seen = HashSet::new();
    let once = layers.iter().filter(|layer| seen.insert(std::ptr::from_ref(layer.entries)));
    once.map(|layer| layer.entries.worth()).fold(0, u64::saturating_add)
}

fn numbered<'a, L: 'a>(layers: impl IntoIterator<Item = &'a L>) -> Vec<Numbered<'a, L>> {
    (0..).zip(layers).map(|(number, entries)| Numbered { number, entries }).collect()
}

/// A layer and its number, 0 the lowest.
struct Numbered<'a, L> {
    number: u16,
    entries: &'a L,
}

impl<L> Clone for Numbered<'_, L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L> Copy for Numbered<'_, L> {}

/// A node of a layer.
struct Source<'a, L> {
    layer: Numbered<'a, L>,
    node: NodeId,
}

impl<L> Clone for Source<'_, L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L> Copy for Source<'_, L> {}

impl<'a, L: LayerEntries> Source<'a, L> {
    fn kind(&self) -> Kind<'a> {
        self.layer.entries.kind(self.node)
    }

    fn meta(&self) -> Meta {
        self.layer.entries.meta(self.node)
    }
}

/// What a name stands for once all layers have spoken.
enum Merged<'a, L> {
    Hidden,
    /// Anything but a directory.
    Leaf(Source<'a, L>),
    LinkBelow {
        layer: u16,
        path: &'a [u8],
    },
    Dir(Dir<'a, L>),
}

/// A directory of one or more layers.
struct Dir<'a, L> {
    /// Who has its attributes; `None` where every layer only implies it.
    attrs: Option<Source<'a, L>>,
    /// The directories whose entries join, the highest first.
    joined: Vec<Source<'a, L>>,
}

/// What a layer says of a name.
type Said<'a, L> = (Numbered<'a, L>, Child<'a>);

/// Applies the rules to what the layers say of one name, the highest first.
fn combine<'a, L: LayerEntries>(said: impl IntoIterator<Item = Said<'a, L>>) -> Merged<'a, L> {
    let mut dir: Option<Dir<'a, L>> = None;
    let mut closed = false;
    for (layer, child) in said {
        let node = match child {
            Child::Node(node) => node,
            Child::LinkBelow(path) if dir.is_none() => return Merged::LinkBelow { layer: layer.number, path },
            Child::Whiteout | Child::LinkBelow(_) => break,
        };
        let source = Source { layer, node };
        let Kind::Dir { opaque, implied } = source.kind() else {
            if dir.is_none() {
                return Merged::Leaf(source);
            }
            break;
        };
        let dir = dir.get_or_insert(Dir { attrs: None, joined: Vec::new() });
        if !implied {
            dir.attrs.get_or_insert(source);
        }
        if !closed {
            dir.joined.push(source);
        }
        closed |= opaque;
        if closed && dir.attrs.is_some() {
            break;
        }
    }
    dir.map_or(Merged::Hidden, Merged::Dir)
}

/// The root of layers, merged, each at its highest place; what is not a directory there is none.
fn root<'a, L: LayerEntries>(layers: &[Numbered<'a, L>]) -> Dir<'a, L> {
    let mut seen = HashSet::new();
    let once = layers.iter().rev().filter(|layer| seen.insert(std::ptr::from_ref(layer.entries)));
    match combine(once.map(|layer| (*layer, Child::Node(Entries::ROOT)))) {
        Merged::Dir(dir) => dir,
        Merged::Hidden | Merged::Leaf(_) | Merged::LinkBelow { .. } => Dir { attrs: None, joined: Vec::new() },
    }
}

/// The merge under way.
struct Merge<'m, 'a, L, B> {
    /// Set for a single-layer view.
    alone: Option<OpaqueXattr>,
    /// What a directory has that no layer has an entry for.
    made_up: Meta,
    tree: Builder,
    /// Of each layer's nodes, the inode number once it has one: hard links of a layer share a node, so they share this. Empty until one has.
    inos: Vec<Vec<Option<Ino>>>,
    queue: VecDeque<Unfilled<'a, L, B>>,
    below: Below<'m, 'a, L>,
    /// The layers below a single-layer view.
    lowers: Below<'m, 'a, B>,
}

/// A directory that is numbered and has no entries yet.
struct Unfilled<'a, L, B> {
    ino: Ino,
    /// The layers' directories that join there.
    sources: Vec<Source<'a, L>>,
    lower: Lower<'a, B>,
    /// What takes a whiteout each to be hidden: all that is below an opaque root, sorted.
    hides: Vec<&'a [u8]>,
}

impl<L, B> Unfilled<'_, L, B> {
    /// Bytes that it takes.
    fn bytes(&self) -> usize {
        let lower = if let Lower::Dirs(dirs) = &self.lower { dirs.capacity() * size_of::<Source<'_, B>>() } else { 0 };
        let lists = self.sources.capacity() * size_of::<Source<'_, L>>() + self.hides.capacity() * size_of::<&[u8]>();
        size_of::<Self>() + lists + lower
    }
}

/// What the layers below a single-layer view have where one of its directories is.
enum Lower<'a, B> {
    Unknown,
    /// The directories that join there; none where there is nothing that the layer could hide.
    Dirs(Vec<Source<'a, B>>),
    /// Whatever they have: an opaque root hides it, and overlayfs takes no root for opaque.
    Hidden,
}

impl<'a, L: LayerEntries, B: LayerEntries> Merge<'_, 'a, L, B> {
    /// Merges the entries of one directory.
    fn fill(&mut self, dir: Unfilled<'a, L, B>) -> Result<(), Error> {
        self.tree.let_go(dir.bytes());
        let Unfilled { ino, sources, lower, hides } = dir;
        self.tree.open(ino)?;
        let mut hides = hides.into_iter().peekable();
        let mut names =
            Names::new(sources.iter().map(|source| (source.layer, source.layer.entries.children(source.node))));
        let mut said = Vec::new();
        while let Some(name) = names.next(&mut said) {
            // The index translates these; should one be left, it is no name of the image.
            if name.starts_with(b".wh.") {
                continue;
            }
            let ino = match said.as_slice() {
                [(_, Child::Whiteout), ..] if self.alone.is_some() => self.whiteout(&lower)?,
                said => self.inode(name, combine(said.iter().copied()), &lower)?,
            };
            while let Some(hidden) = hides.next_if(|hidden| *hidden < name) {
                self.hide(hidden)?;
            }
            if let Some(ino) = ino {
                let _replaced = hides.next_if_eq(&name);
                self.tree.link(name, ino)?;
            }
        }
        hides.try_for_each(|hidden| self.hide(hidden))
    }

    fn hide(&mut self, name: &[u8]) -> Result<(), Error> {
        let ino = self.tree.node(&NewNode::Char { major: 0, minor: 0 }, WHITEOUT)?;
        self.tree.link(name, ino)
    }

    /// The inode of a whiteout, unless it is in a directory that no layer below has.
    fn whiteout(&mut self, lower: &Lower<'a, B>) -> Result<Option<Ino>, Error> {
        let is_merged = match lower {
            Lower::Unknown => true,
            Lower::Dirs(dirs) => !dirs.is_empty(),
            Lower::Hidden => false,
        };
        let whiteout = NewNode::Char { major: 0, minor: 0 };
        if is_merged { self.tree.node(&whiteout, WHITEOUT).map(Some) } else { self.tree.unnamed(&whiteout, WHITEOUT) }
    }

    /// The inode of what a name stands for, in a directory above `lower`.
    fn inode(&mut self, name: &[u8], merged: Merged<'a, L>, lower: &Lower<'a, B>) -> Result<Option<Ino>, Error> {
        match merged {
            Merged::Hidden => Ok(None),
            Merged::Leaf(source) => self.leaf(name, source).map(Some),
            Merged::Dir(dir) => {
                let lower = match lower {
                    Lower::Unknown => Lower::Unknown,
                    Lower::Hidden => Lower::Hidden,
                    Lower::Dirs(dirs) => match self.lowers.child_of(dirs, name) {
                        Merged::Dir(dir) => Lower::Dirs(dir.joined),
                        Merged::Hidden | Merged::Leaf(_) | Merged::LinkBelow { .. } => Lower::Dirs(Vec::new()),
                    },
                };
                self.dir(name, dir, lower).map(Some)
            }
            Merged::LinkBelow { layer, path } => {
                let source = self.link_below(layer, name, path)?;
                self.leaf(name, source).map(Some)
            }
        }
    }

    fn link_below(&mut self, layer: u16, name: &[u8], path: &'a [u8]) -> Result<Source<'a, L>, Error> {
        let (entry, target) = (|| self.tree.path_of(name), || String::from_utf8_lossy(path).into_owned());
        if self.alone.is_some() {
            return Err(Error::LinkOutOfLayer { entry: entry(), target: target() });
        }
        self.below.find(layer, path).map_err(|why| match why {
            NotAFile::Nothing => Error::LinkToNothing { layer, entry: entry(), target: target() },
            NotAFile::Directory => Error::LinkToDirectory { layer, entry: entry(), target: target() },
        })
    }

    fn dir(&mut self, name: &[u8], dir: Dir<'a, L>, lower: Lower<'a, B>) -> Result<Ino, Error> {
        let held = dir.attrs.map(|source| self.held(name, &source)).transpose()?;
        let ino = match held {
            Some(Held { meta, xattrs }) => {
                let ino = self.tree.dir(meta)?;
                xattrs.into_iter().try_for_each(|(name, value)| self.tree.xattr(name, value))?;
                ino
            }
            None => self.tree.implied_dir(self.made_up)?,
        };
        let is_opaque = matches!(lower, Lower::Hidden)
            || dir.joined.iter().any(|source| matches!(source.kind(), Kind::Dir { opaque: true, .. }));
        for xattr in self.alone.filter(|_| is_opaque).map(OpaqueXattr::names).unwrap_or_default() {
            self.tree.xattr(xattr, b"y")?;
        }
        let is_opaque_root = is_opaque && name.is_empty() && self.alone.is_some();
        let (lower, hides) = match lower {
            lower if is_opaque_root => (Lower::Hidden, names_in(lower)),
            _ if is_opaque => (Lower::Dirs(Vec::new()), Vec::new()),
            lower => (lower, Vec::new()),
        };
        let unfilled = Unfilled { ino, sources: dir.joined, lower, hides };
        self.tree.hold(unfilled.bytes())?;
        self.queue.push_back(unfilled);
        Ok(ino)
    }

    /// The inode of a node that is no directory: the one it has already, if another name was there before.
    fn leaf(&mut self, name: &[u8], source: Source<'a, L>) -> Result<Ino, Error> {
        let (layer, node) = (usize::from(source.layer.number), source.node.0 as usize);
        if let Some(Some(ino)) = self.inos.get(layer).and_then(|inos| inos.get(node)) {
            return Ok(*ino);
        }
        let Held { meta, xattrs } = self.held(name, &source)?;
        let ino = self.tree.node(&new_node(&source), meta)?;
        for (name, value) in xattrs {
            self.tree.xattr(name, value)?;
        }
        if let Some(inos) = self.inos.get_mut(layer) {
            if inos.is_empty() {
                self.tree.hold(source.layer.entries.len() * size_of::<Option<Ino>>())?;
                inos.resize(source.layer.entries.len(), None);
            }
            inos.get_mut(node).into_iter().for_each(|slot| *slot = Some(ino));
        }
        Ok(ino)
    }

    /// The attributes of a node as a local filesystem would hold them.
    fn held(&self, name: &[u8], source: &Source<'a, L>) -> Result<Held<'a>, Error> {
        let (kind, mut meta, mut xattrs) = (source.kind(), source.meta(), Vec::new());
        for (xattr, value) in source.layer.entries.xattrs(source.node) {
            match is_possible(&kind, xattr, value, &mut meta.mode) {
                Ok(true) => xattrs.push((xattr, value)),
                Ok(false) => {}
                Err(BadAcl { xattr, what }) => {
                    return Err(Error::BadAcl { entry: self.tree.path_of(name), xattr, what });
                }
            }
        }
        Ok(Held { meta, xattrs })
    }
}

/// The names that the layers below show in their root.
fn names_in<B: LayerEntries>(lower: Lower<'_, B>) -> Vec<&[u8]> {
    let Lower::Dirs(dirs) = lower else {
        tracing::warn!(
            "the layer hides all that the layers below it have (an opaque root), which are not known: an overlay of them shows it all the same; \
             mount the layers below first, or the image"
        );
        return Vec::new();
    };
    let mut names = Names::new(dirs.iter().map(|source| (source.layer, source.layer.entries.children(source.node))));
    let (mut said, mut found) = (Vec::new(), Vec::new());
    while let Some(name) = names.next(&mut said) {
        if !matches!(combine(said.iter().copied()), Merged::Hidden) {
            found.push(name);
        }
    }
    found
}

/// What is kept of a node's attributes.
struct Held<'a> {
    meta: Meta,
    xattrs: Vec<(&'a [u8], &'a [u8])>,
}

fn new_node<'a, L: LayerEntries>(source: &Source<'a, L>) -> NewNode<'a> {
    match source.kind() {
        Kind::File { start, size } => NewNode::File { layer: source.layer.number, start, size },
        Kind::Symlink(target) => NewNode::Symlink(target),
        Kind::Char { major, minor } => NewNode::Char { major, minor },
        Kind::Block { major, minor } => NewNode::Block { major, minor },
        Kind::Socket => NewNode::Socket,
        // A directory never gets here: `combine` makes it a `Dir`.
        Kind::Fifo | Kind::Dir { .. } => NewNode::Fifo,
    }
}

/// The names of several directories in one sorted pass, each with all that is said of it.
struct Names<'a, L, I> {
    /// Children still to come, the highest layer first, and the one that stands in `next`.
    children: Vec<(Numbered<'a, L>, I, Option<Child<'a>>)>,
    /// The next name of each of `children`, by its position: the smallest name on top, and of equal names the highest layer.
    next: BinaryHeap<Reverse<(&'a [u8], usize)>>,
}

impl<'a, L, I: Iterator<Item = (&'a [u8], Child<'a>)>> Names<'a, L, I> {
    fn new(children: impl Iterator<Item = (Numbered<'a, L>, I)>) -> Self {
        let children: Vec<_> = children.map(|(layer, children)| (layer, children, None)).collect();
        let mut names = Self { next: BinaryHeap::with_capacity(children.len()), children };
        (0..names.children.len()).for_each(|position| names.step(position));
        names
    }

    /// Takes the next child of one directory.
    fn step(&mut self, position: usize) {
        let Some((_, children, head)) = self.children.get_mut(position) else { return };
        if let Some((name, child)) = children.next() {
            *head = Some(child);
            self.next.push(Reverse((name, position)));
        }
    }

    /// The next name; `said` becomes what the layers say of it, the highest first.
    fn next(&mut self, said: &mut Vec<Said<'a, L>>) -> Option<&'a [u8]> {
        said.clear();
        let Reverse((name, _)) = *self.next.peek()?;
        while let Some(&Reverse((same, position))) = self.next.peek() {
            if same != name {
                break;
            }
            self.next.pop();
            if let Some((layer, _, Some(child))) = self.children.get(position) {
                said.push((*layer, *child));
            }
            self.step(position);
        }
        Some(name)
    }
}

#[cfg(test)]
mod tests;
