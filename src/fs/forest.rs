//! What is served through one /dev/fuse: one view alone, or a store of views below directories that come and go.
//!
//! ```text
//! 1 root ─ made directories, files and symlinks          numbers below 2^32, or the highest of a view's group
//!             `── roots of views                         each view is a group: its number in the upper 32 bits, its tree's below
//! ```
//!
//! A view never changes, so the kernel may keep all that it is told of one. What is made changes when a view is added or removed: directories
//! that are not `lasting`, and the names in them, are asked for again each time. A number never comes to mean another node while the
//! forest lives: whoever grows it gives each view a number that no other had.

pub(crate) mod asked;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use self::asked::{Asked, Finding};

use super::errno::Refused;
use super::sparse::Seek;
use super::tree::{Attr, Ino, Type};
use super::view::{Totals, View};
use super::xattr;
use crate::blob::Digest;
use crate::index::Time;

/// The number of the mount's root (FUSE_ROOT_ID).
pub const ROOT: u64 = 1;

/// Nodes that belong to a view and are made: so many numbers at the end of its group, which no tree reaches.
const MADE: u8 = 16;

/// Bytes of the longest name, as Linux has it. The kernel sends longer ones, too.
pub(super) const NAME_MAX: u32 = 255;

/// What stands above the views.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// `lasting`: the names in it stay what they are.
    Dir {
        entries: BTreeMap<Vec<u8>, u64>,
        lasting: bool,
    },
    File(Bytes),
    /// A file of so many bytes that whoever answers for it gives (asked.rs).
    Remote(u64),
    Symlink(Vec<u8>),
}

/// All of a store at one moment.
#[derive(Default)]
pub struct Grown {
    pub views: HashMap<u32, Arc<View>>,
    pub made: HashMap<u64, Made>,
    /// The modification time of what is made, in seconds since 1970.
    pub changed: i64,
}

/// Everything that a frontend serves.
pub struct Forest {
    kind: Kind,
    /// How often the kernel was told of a node of a view and has not forgotten that, by the views' numbers. Of a store alone, whose views can go.
    remembered: Mutex<HashMap<u32, u64>>,
    /// Whether the kernel knows a node, where another process has served before and has not told what the kernel was told.
    knows: OnceLock<Knows>,
    /// Who answers for names that are there once they are asked for.
    asked: OnceLock<Arc<dyn Asked>>,
}

/// Asks the kernel whether it knows a node.
pub(super) type Knows = Box<dyn Fn(u64) -> bool + Send + Sync>;

enum Kind {
    Alone { view: Arc<View>, group: u32 },
    Store(RwLock<Arc<Grown>>),
}

/// A node, found.
pub(super) enum Node {
    InView { view: Arc<View>, ino: Ino, group: u32 },
    Made { grown: Arc<Grown>, number: u64 },
}

/// What stat says of a node.
pub(super) struct Stat {
    pub(super) number: u64,
    pub(super) attr: Attr,
    /// Bytes that are no hole.
    pub(super) allocated: u64,
    /// Whether the kernel may keep it.
    pub(super) lasting: bool,
}

/// What a name stands for.
pub(super) enum Named {
    Node(Stat),
    /// Nothing. `lasting`: it will stay so.
    Nothing {
        lasting: bool,
    },
    /// It is found out: the number of a node, or nothing.
    Later(BoxFuture<'static, Option<u64>>),
}

/// The number of a node that is made for the view of a group; `which` is below 16.
#[must_use]
pub const fn made(group: u32, which: u8) -> u64 {
    ((group as u64) << 32) | (u32::MAX as u64 - (which % MADE) as u64)
}

/// The number of the root of a view in a store.
#[must_use]
pub const fn root_of(group: u32) -> u64 {
    ((group as u64) << 32) | ROOT
}

impl Forest {
    /// One view. `group` is the upper half of every inode number but the root's. Single-layer views of one image get different ones:
    /// fuse-overlayfs shows the numbers of its lower directories as they are, and files of different layers would look like hard links
    /// of each other.
    #[must_use]
    pub fn alone(view: Arc<View>, group: u32) -> Self {
        Self::of(Kind::Alone { view, group })
    }

    #[must_use]
    pub fn store(grown: Grown) -> Self {
        Self::of(Kind::Store(RwLock::new(Arc::new(grown))))
    }

    /// What tells the view apart that is alone; `None` in a store, whose views come and go.
    #[must_use]
    pub fn fingerprint(&self) -> Option<Digest> {
        match &self.kind {
            Kind::Alone { view, group } => {
                Some(Digest::of(&[view.tree().fingerprint().as_bytes().as_slice(), &group.to_le_bytes()].concat()))
            }
            Kind::Store(_) => None,
        }
    }

    fn of(kind: Kind) -> Self {
        Self { kind, remembered: Mutex::default(), knows: OnceLock::new(), asked: OnceLock::new() }
    }

    /// Has the kernel asked, too, before a view is taken to be forgotten.
    pub(super) fn ask_kernel(&self, knows: Knows) {
        // It is the same kernel.
        let _asked_already = self.knows.set(knows);
    }

    /// Has somebody answer for names that are there once they are asked for. They stand below [`asked::ROOT`].
    pub(crate) fn answer_by(&self, asked: Arc<dyn Asked>) {
        // There is one.
        let _before = self.asked.set(asked);
    }

    /// Whether somebody answers for such names. The mount is not read-only to the kernel then.
    pub(crate) fn is_asked(&self) -> bool {
        self.asked.get().is_some()
    }

    /// Whoever answers for a node.
    pub(super) fn asked(&self, number: u64) -> Option<&Arc<dyn Asked>> {
        self.asked.get().filter(|_| asked::is_number(number))
    }

    /// The kernel is told of a node.
    pub(crate) fn remember(&self, number: u64) {
        if let Some(asked) = self.asked(number) {
            return asked.remember(number);
        }
        self.remembered_of(number, |times| times.saturating_add(1));
    }

    /// It has forgotten that so many times.
    pub(crate) fn forget(&self, number: u64, times: u64) {
        if let Some(asked) = self.asked(number) {
            return asked.forget(number, times);
        }
        self.remembered_of(number, |known| known.saturating_sub(times));
    }

    fn remembered_of(&self, number: u64, change: impl FnOnce(u64) -> u64) {
        let Ok(group) = u32::try_from(number >> 32) else { return };
        let is_made = number & u64::from(u32::MAX) > u64::from(u32::MAX - u32::from(MADE));
        if is_made || !self.is_store() {
            return;
        }
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let times = remembered.entry(group).or_default();
        *times = change(*times);
        if *times == 0 {
            remembered.remove(&group);
        }
    }

    /// Whether the kernel may still ask for a node of a view.
    #[must_use]
    pub fn is_remembered(&self, group: u32) -> bool {
        let is_counted = self.remembered.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&group);
        // Whatever is known of a view keeps its root known: nodes are found by no handle in a store.
        is_counted || self.knows.get().is_some_and(|knows| knows(root_of(group)))
    }

    /// What is served from now on, by a store.
    pub fn grow(&self, grown: Grown) {
        if let Kind::Store(current) = &self.kind {
            *current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(grown);
        }
    }

    pub(super) fn node(&self, number: u64) -> Result<Node, Refused> {
        if let Some(asked) = self.asked(number) {
            let made = HashMap::from([(number, asked.made(number).ok_or(Refused::UnknownInode)?)]);
            return Ok(Node::Made { grown: Arc::new(Grown { made, ..Grown::default() }), number });
        }
        let group = u32::try_from(number >> 32).map_err(|_| Refused::UnknownInode)?;
        let ino = Ino::new(number & u64::from(u32::MAX)).ok_or(Refused::UnknownInode)?;
        match &self.kind {
            Kind::Alone { view, group: own } => {
                let is_ours = if ino == Ino::ROOT { group == 0 } else { group == *own };
                let view = Some(view).filter(|_| is_ours).ok_or(Refused::UnknownInode)?;
                Ok(Node::InView { view: Arc::clone(view), ino, group: *own })
            }
            Kind::Store(grown) => {
                let grown = Arc::clone(&grown.read().unwrap_or_else(PoisonError::into_inner));
                if grown.made.contains_key(&number) {
                    return Ok(Node::Made { grown, number });
                }
                let view = grown.views.get(&group).map(Arc::clone).ok_or(Refused::UnknownInode)?;
                Ok(Node::InView { view, ino, group })
            }
        }
    }

    /// The number by which the kernel knows a node of a view.
    fn number(&self, group: u32, ino: Ino) -> u64 {
        match self.kind {
            Kind::Alone { .. } if ino == Ino::ROOT => ROOT,
            _ => (u64::from(group) << 32) | ino.get(),
        }
    }

    fn stat_in(&self, view: &View, group: u32, ino: Ino) -> Option<Stat> {
        let attr = view.tree().attr(ino)?;
        Some(Stat { number: self.number(group, ino), attr, allocated: view.allocated(&attr), lasting: true })
    }

    pub(super) fn stat(&self, number: u64) -> Result<Stat, Refused> {
        let stat = match self.node(number)? {
            Node::InView { view, ino, group } => self.stat_in(&view, group, ino),
            Node::Made { grown, number } => grown.stat(number),
        };
        stat.ok_or(Refused::UnknownInode)
    }

    pub(super) fn named(&self, parent: u64, name: &[u8]) -> Result<Named, Refused> {
        match name {
            b"." | b"/" => return self.by_number(parent),
            b".." => return self.by_number(self.parent(parent)?),
            _ if name.len() > NAME_MAX as usize => return Err(Refused::NameTooLong),
            _ => {}
        }
        if let Some(asked) = self.asked(parent) {
            return Ok(match asked.find(parent, name) {
                Finding::Nothing => Named::Nothing { lasting: false },
                Finding::There(number) => self.found(number),
                Finding::Later(found) => Named::Later(found),
            });
        }
        match self.node(parent)? {
            Node::InView { view, ino, group } => {
                if !view.is_dir(ino) {
                    return Err(Refused::NotADirectory);
                }
                let Some(found) = view.tree().lookup(ino, name) else { return Ok(Named::Nothing { lasting: true }) };
                self.stat_in(&view, group, found).map(Named::Node).ok_or(Refused::UnknownInode)
            }
            Node::Made { grown, number } => {
                let Some(Made::Dir { entries, lasting }) = grown.made.get(&number) else {
                    return Err(Refused::NotADirectory);
                };
                let Some(found) = entries.get(name) else { return Ok(Named::Nothing { lasting: *lasting }) };
                let stat = self.stat(*found)?;
                Ok(Named::Node(Stat { lasting: stat.lasting && *lasting, ..stat }))
            }
        }
    }

    /// What was found by that number, unless it is gone again. Only views stay what they are.
    pub(super) fn found(&self, number: u64) -> Named {
        match self.stat(number) {
            Ok(stat) => Named::Node(Stat { lasting: stat.lasting && self.is_in_view(number), ..stat }),
            Err(_) => Named::Nothing { lasting: false },
        }
    }

    /// What a file handle that the kernel made before names: it may have forgotten the node since, and we may not know it any more.
    fn by_number(&self, number: u64) -> Result<Named, Refused> {
        match self.stat(number) {
            // What stands above views may change.
            Ok(stat) => Ok(Named::Node(Stat { lasting: stat.lasting && self.is_in_view(number), ..stat })),
            Err(Refused::UnknownInode) => Ok(Named::Nothing { lasting: false }),
            Err(refused) => Err(refused),
        }
    }

    fn is_in_view(&self, number: u64) -> bool {
        matches!(self.node(number), Ok(Node::InView { .. }))
    }

    /// The number of the directory that a directory is in; the root's is its own.
    fn parent(&self, number: u64) -> Result<u64, Refused> {
        match self.node(number)? {
            Node::InView { ino: Ino::ROOT, .. } if number != ROOT => Ok(self.above(number)),
            Node::InView { view, ino, group } => {
                let parent = view.tree().parent(ino).ok_or(Refused::NotADirectory)?;
                Ok(self.number(group, parent))
            }
            Node::Made { grown, .. } => match grown.made.get(&number) {
                Some(Made::Dir { .. }) => Ok(grown.above(number)),
                _ => Err(Refused::NotADirectory),
            },
        }
    }

    /// The number of the made directory that holds the root of a view.
    fn above(&self, root: u64) -> u64 {
        match &self.kind {
            Kind::Alone { .. } => ROOT,
            Kind::Store(grown) => grown.read().unwrap_or_else(PoisonError::into_inner).above(root),
        }
    }

    /// Where the next data or the next hole of a file starts, from an offset on. Left to the kernel where there is no hole at all, and will be none.
    pub(super) fn seek(&self, number: u64, offset: u64, wanted: Seek) -> Result<u64, Refused> {
        match self.node(number)? {
            Node::InView { view, ino, .. } if self.is_store() || view.has_holes() => view.seek(ino, offset, wanted),
            Node::InView { .. } => Err(Refused::LeftToKernel),
            Node::Made { grown, number } => {
                let size = grown.stat(number).map_or(0, |stat| stat.attr.size);
                wanted.in_data(offset, size)
            }
        }
    }

    /// Whether the kernel is to ask for ACLs and to enforce them. It is told once: a store may get layers with ACLs later.
    pub(super) fn has_acls(&self) -> bool {
        match &self.kind {
            Kind::Alone { view, .. } => view.tree().has_acls(),
            Kind::Store(_) => true,
        }
    }

    /// Gives a directory's entries from a position on to `take`, each with the position after it, until that says that it is full.
    pub(super) fn entries(
        &self,
        dir: u64,
        from: u64,
        mut take: impl FnMut(u64, &[u8], &Stat) -> bool,
    ) -> Result<(), Refused> {
        let start = usize::try_from(from).unwrap_or(usize::MAX);
        let next = from.saturating_add(1)..;
        match self.node(dir)? {
            Node::InView { view, ino, group } => {
                let entries = view.entries(ino, start).ok_or(Refused::NotADirectory)?;
                let stats = entries.filter_map(|(name, ino)| Some((name, self.stat_in(&view, group, ino)?)));
                let _full = next.zip(stats).any(|(next, (name, stat))| take(next, name, &stat));
            }
            Node::Made { grown, number } => {
                let Some(Made::Dir { entries, lasting }) = grown.made.get(&number) else {
                    return Err(Refused::NotADirectory);
                };
                // A view that cannot be had is left out; looking its name up says that something is wrong.
                let dots = [(&b"."[..], number), (&b".."[..], ROOT)];
                let all = dots.into_iter().chain(entries.iter().map(|(name, number)| (name.as_slice(), *number)));
                let stats = all.filter_map(|(name, number)| Some((name, self.stat(number).ok()?)));
                let stats = stats.map(|(name, stat)| (name, Stat { lasting: stat.lasting && *lasting, ..stat }));
                let _full = next.zip(stats.skip(start)).any(|(next, (name, stat))| take(next, name, &stat));
            }
        }
        Ok(())
    }

    pub(super) fn target(&self, number: u64) -> Result<Vec<u8>, Refused> {
        let target = match self.node(number)? {
            Node::InView { view, ino, .. } => view.tree().readlink(ino).map(<[u8]>::to_vec),
            Node::Made { grown, number } => match grown.made.get(&number) {
                Some(Made::Symlink(target)) => Some(target.clone()),
                _ => None,
            },
        };
        target.ok_or(Refused::NotASymlink)
    }

    /// An xattr's value, as [`xattr::get`]. What is made has none.
    pub(super) fn xattr(
        &self,
        number: u64,
        list_trusted: bool,
        name: &[u8],
        size: u32,
    ) -> Result<xattr::Owned, Refused> {
        match self.node(number)? {
            // The kernel would never ask again, also not for what is added later.
            Node::InView { view, .. } if self.is_store() && !view.has_xattrs() => Err(Refused::NoSuchXattr),
            Node::InView { view, ino, .. } => xattr::get(&view, list_trusted, ino, name, size).map(xattr::Answer::own),
            Node::Made { .. } => Err(Refused::NoSuchXattr),
        }
    }

    pub(super) fn xattr_names(&self, number: u64, list_trusted: bool, size: u32) -> Result<xattr::Owned, Refused> {
        match self.node(number)? {
            Node::InView { view, ino, .. } => xattr::list(&view, list_trusted, ino, size).map(xattr::Answer::own),
            Node::Made { .. } => xattr::none(size).map(xattr::Answer::own),
        }
    }

    pub(super) fn totals(&self) -> Totals {
        match &self.kind {
            Kind::Alone { view, .. } => view.totals(),
            Kind::Store(grown) => grown.read().unwrap_or_else(PoisonError::into_inner).totals(),
        }
    }

    fn is_store(&self) -> bool {
        matches!(self.kind, Kind::Store(_))
    }
}

impl Grown {
    fn stat(&self, number: u64) -> Option<Stat> {
        let made = self.made.get(&number)?;
        let (kind, mode, size, lasting) = match made {
            // For the mount's owner alone, who is the user in a user's clone of it: what is below is for whoever may pass here.
            Made::Dir { lasting, .. } if number == ROOT => (Type::Dir, 0o700, 0, *lasting),
            Made::Dir { lasting, .. } => (Type::Dir, 0o755, 0, *lasting),
            Made::File(bytes) => (Type::File, 0o644, bytes.len() as u64, true),
            Made::Remote(size) => (Type::File, 0o644, *size, true),
            Made::Symlink(target) => (Type::Symlink, 0o777, target.len() as u64, true),
        };
        let attr = Attr {
            ino: Ino::ROOT,
            kind,
            mode,
            nlink: if kind == Type::Dir { 2 } else { 1 },
            uid: 0,
            gid: 0,
            size,
            mtime: Time { secs: self.changed, nanos: 0 },
            major: 0,
            minor: 0,
        };
        Some(Stat { number, attr, allocated: attr.size, lasting })
    }

    /// The number of the made directory that holds a node: one of the node's own group, or else the root.
    fn above(&self, number: u64) -> u64 {
        let group = (number >> 32) as u32;
        let holds = |dir: &u64| match self.made.get(dir) {
            Some(Made::Dir { entries, .. }) => entries.values().any(|held| *held == number),
            _ => false,
        };
        (0..MADE).map(|which| made(group, which)).find(holds).unwrap_or(ROOT)
    }

    fn totals(&self) -> Totals {
        let views = self.views.values().map(|view| view.totals());
        let own = Totals { blocks: 0, inodes: self.made.len() as u64 };
        views.fold(own, |sum, view| Totals {
            blocks: sum.blocks.saturating_add(view.blocks),
            inodes: sum.inodes.saturating_add(view.inodes),
        })
    }
}

impl Node {
    /// The bytes of a file that is made, from an offset on.
    pub(super) fn made_bytes(&self, offset: u64, size: u32) -> Option<Bytes> {
        let Self::Made { grown, number } = self else { return None };
        let Some(Made::File(bytes)) = grown.made.get(number) else { return None };
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let end = start.saturating_add(size as usize).min(bytes.len());
        Some(bytes.slice(start..end))
    }
}

#[cfg(test)]
mod tests;
