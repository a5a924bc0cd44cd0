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

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use bytes::Bytes;

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
        Self { kind, remembered: Mutex::default(), knows: OnceLock::new() }
    }

    /// Has the kernel asked, too, before a view is taken to be forgotten.
    pub(super) fn ask_kernel(&self, knows: Knows) {
        // It is the same kernel.
        let _asked_already = self.knows.set(knows);
    }

    /// The kernel is told of a node.
    pub(crate) fn remember(&self, number: u64) {
        self.remembered_of(number, |times| times.saturating_add(1));
    }

    /// It has forgotten that so many times.
    pub(crate) fn forget(&self, number: u64, times: u64) {
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
            Made::File(bytes) => (Type::File, 0o644, bytes.len(), true),
            Made::Symlink(target) => (Type::Symlink, 0o777, target.len(), true),
        };
        let attr = Attr {
            ino: Ino::ROOT,
            kind,
            mode,
            nlink: if kind == Type::Dir { 2 } else { 1 },
            uid: 0,
            gid: 0,
            size: size as u64,
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
mod tests {
    use super::*;
    use crate::fs::fake::{FakeLayer, Ramp, Spec, What};
    use crate::fs::overlay::merge;

    fn view(spec: &Spec) -> Arc<View> {
        Arc::new(View::new(merge(&[FakeLayer::new(spec)], None).unwrap(), Arc::new(Ramp::default())))
    }

    fn dir(entries: &[(&str, u64)], lasting: bool) -> Made {
        Made::Dir {
            entries: entries.iter().map(|(name, number)| (name.as_bytes().to_vec(), *number)).collect(),
            lasting,
        }
    }

    #[test]
    fn a_view_is_remembered_until_all_of_it_is_forgotten() {
        let forest = Forest::store(grown(&Spec::default().with("f", What::File { size: 7 })));
        let (root, file) = (root_of(7), root_of(7) + 1);
        forest.remember(made(7, 0));
        assert!(!forest.is_remembered(7), "what is made is of no view");
        [root, file, file].into_iter().for_each(|number| forest.remember(number));
        forest.forget(file, 2);
        assert!(forest.is_remembered(7) && !forest.is_remembered(8));
        forest.forget(root, 1);
        assert!(!forest.is_remembered(7));
    }

    /// A root with a file, a symlink and a directory that holds the roots of two views, of which one is not there.
    fn grown(spec: &Spec) -> Grown {
        let made = HashMap::from([
            (ROOT, dir(&[("d", made(7, 0)), ("f", made(7, 1)), ("s", made(7, 2))], false)),
            (made(7, 0), dir(&[("diff", root_of(7)), ("gone", root_of(8))], true)),
            (made(7, 1), Made::File(Bytes::from_static(b"hello"))),
            (made(7, 2), Made::Symlink(b"d/diff".to_vec())),
        ]);
        Grown { views: HashMap::from([(7, view(spec))]), made, changed: 5 }
    }

    fn number(forest: &Forest, parent: u64, name: &str) -> Option<(u64, bool)> {
        match forest.named(parent, name.as_bytes()).unwrap() {
            Named::Node(stat) => Some((stat.number, stat.lasting)),
            Named::Nothing { lasting } => {
                let may_come = matches!(forest.kind, Kind::Store(_)) && parent == ROOT;
                assert_ne!(lasting, may_come, "what may come is not remembered as missing");
                None
            }
        }
    }

    fn names(forest: &Forest, dir: u64, from: u64) -> Vec<(u64, String, u64)> {
        let mut all = Vec::new();
        let take = |next, name: &[u8], stat: &Stat| {
            all.push((next, String::from_utf8_lossy(name).into_owned(), stat.number));
            false
        };
        forest.entries(dir, from, take).unwrap();
        all
    }

    #[test]
    fn views_stand_below_what_is_made() {
        let forest = Forest::store(grown(&Spec::default().with("a/b", What::File { size: 3 })));
        assert_eq!(number(&forest, ROOT, "d"), Some((made(7, 0), false)), "it may go");
        assert_eq!(number(&forest, made(7, 0), "diff"), Some((root_of(7), true)));
        let (a, lasting) = number(&forest, root_of(7), "a").unwrap();
        assert_eq!((a >> 32, lasting), (7, true));
        assert_eq!(number(&forest, a, "b").map(|(b, _)| b >> 32), Some(7));
        assert_eq!(number(&forest, root_of(7), "x"), None);
        assert_eq!(number(&forest, ROOT, "x"), None);
        assert_eq!(forest.target(made(7, 2)).unwrap(), b"d/diff");
        let mode = |number| forest.stat(number).unwrap().attr.mode;
        assert_eq!((mode(ROOT), mode(made(7, 0)), forest.stat(ROOT).unwrap().attr.mtime.secs), (0o700, 0o755, 5));
        let bytes = |offset, size| forest.node(made(7, 1)).unwrap().made_bytes(offset, size).unwrap();
        assert_eq!((&bytes(0, 100)[..], &bytes(1, 3)[..], &bytes(9, 9)[..]), (&b"hello"[..], &b"ell"[..], &b""[..]));
    }

    /// This is how the kernel finds again what it has forgotten.
    #[test]
    fn dots_lead_to_a_node_and_to_the_directory_above() {
        let forest = Forest::store(grown(&Spec::default().with("a/b", What::File { size: 3 })));
        let (a, _) = number(&forest, root_of(7), "a").unwrap();
        let (b, _) = number(&forest, a, "b").unwrap();
        for (node, lasting) in [(a, true), (b, true), (root_of(7), true), (made(7, 1), false), (made(7, 0), false)] {
            assert_eq!(number(&forest, node, "."), Some((node, lasting)), "{node:#x}");
        }
        let above = [(a, root_of(7)), (root_of(7), made(7, 0)), (made(7, 0), ROOT), (ROOT, ROOT)];
        for (node, above) in above {
            assert_eq!(number(&forest, node, "..").map(|found| found.0), Some(above), "{node:#x}");
        }
        assert!(matches!(forest.named(b, b".."), Err(Refused::NotADirectory)));
        assert!(matches!(forest.named(made(7, 1), b".."), Err(Refused::NotADirectory)));
        for unknown in [root_of(8), root_of(7) + 99] {
            assert!(matches!(forest.named(unknown, b"."), Ok(Named::Nothing { lasting: false })), "stale");
        }

        let alone = Forest::alone(view(&Spec::default().with("a/b", What::Fifo)), 3);
        let (a, _) = number(&alone, ROOT, "a").unwrap();
        let (b, _) = number(&alone, a, "b").unwrap();
        assert_eq!([a, b, ROOT].map(|node| number(&alone, node, ".").unwrap().0), [a, b, ROOT]);
        assert_eq!([a, ROOT].map(|node| number(&alone, node, "..").unwrap().0), [ROOT, ROOT]);
    }

    #[test]
    fn names_that_no_filesystem_has_are_too_long() {
        let forest = Forest::alone(view(&Spec::default().with("a", What::Dir)), 3);
        let (a, _) = number(&forest, ROOT, "a").unwrap();
        for dir in [ROOT, a] {
            assert!(matches!(forest.named(dir, &[b'x'; 255]), Ok(Named::Nothing { lasting: true })));
            assert!(matches!(forest.named(dir, &[b'x'; 256]), Err(Refused::NameTooLong)));
        }
    }

    /// An empty directory would be an empty root.
    #[test]
    fn a_view_that_is_not_there_is_an_error() {
        let forest = Forest::store(grown(&Spec::default()));
        assert!(matches!(forest.named(made(7, 0), b"gone"), Err(Refused::UnknownInode)));
        assert!(matches!(forest.stat(root_of(8)), Err(Refused::UnknownInode)));
        assert!(forest.entries(root_of(8), 0, |_, _, _| false).is_err());
    }

    #[test]
    fn listings_go_on_from_any_position() {
        let forest = Forest::store(grown(&Spec::default().with("x", What::Fifo)));
        let all = names(&forest, ROOT, 0);
        assert_eq!(all.iter().map(|(_, name, _)| name.as_str()).collect::<Vec<_>>(), [".", "..", "d", "f", "s"]);
        for (next, ..) in &all {
            assert_eq!(names(&forest, ROOT, *next), all[usize::try_from(*next).unwrap()..]);
        }
        assert_eq!(names(&forest, root_of(7), 2)[0].1, "x");
        assert_eq!(names(&forest, made(7, 0), 2).len(), 1, "without what is not there");
    }

    #[test]
    fn what_was_removed_is_found_by_number_until_its_view_goes() {
        let spec = Spec::default().with("x", What::File { size: 1 });
        let forest = Forest::store(grown(&spec));
        let (x, _) = number(&forest, root_of(7), "x").unwrap();
        let views = HashMap::from([(7, view(&spec))]);
        forest.grow(Grown { views, made: HashMap::from([(ROOT, dir(&[], false))]), changed: 6 });
        assert_eq!(number(&forest, ROOT, "d"), None);
        assert!(forest.stat(x).is_ok());
        forest.grow(Grown::default());
        assert!(matches!(forest.stat(x), Err(Refused::UnknownInode)));
    }

    #[test]
    fn a_view_alone_has_its_group_in_all_numbers_but_the_roots() {
        let forest = Forest::alone(view(&Spec::default().with("x", What::File { size: 1 })), 3);
        let (x, _) = number(&forest, ROOT, "x").map(|found| (found.0, ())).unwrap();
        assert_eq!(x >> 32, 3);
        assert!(forest.stat(x).is_ok() && forest.stat(ROOT).is_ok());
        for unknown in [x & u64::from(u32::MAX), root_of(3), root_of(4), 0] {
            assert!(matches!(forest.stat(unknown), Err(Refused::UnknownInode)), "{unknown:#x}");
        }
    }
}
