//! The last step of building a layer: hard links are resolved, whiteouts and hidden names settled, and the tree is laid out.

use crate::index::error::shown;
use std::ops::Range;

use super::paths::{DETACHED, Dentry, Paths, Slot};
use super::walk::Unpacked;
use super::{LateLink, NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, WHITEOUT, hidden_by};
use crate::budget::Charge;
use crate::index::entries::{ChildRecord, Entries, Node, NodeKind, Span, Target};
use crate::index::error::{Problem, Rejected};
use crate::index::xattrs::XattrSets;

pub(super) fn entries(
    mut paths: Paths,
    nodes: Vec<Node>,
    links: &[LateLink],
    xattrs: XattrSets,
    charge: &mut Charge,
) -> Result<Entries, Rejected> {
    let (resolved, below) = resolve(&mut paths, &nodes, links, charge)?;
    // A hard link's target that could not be followed for that was taken for one below.
    paths.check_walked()?;
    let (dentries, names) = paths.into_parts();
    let by_dir = ByDirectory::sort(&dentries, &names);
    let used = used(&dentries, &nodes, &names);
    let layout = Layout { dentries: &dentries, by_dir: &by_dir, used: &used, resolved: &resolved, names: &names };
    let (nodes, children) = layout.walk(nodes);
    Ok(Entries { nodes, children, names, below, xattrs, charge: Charge::default() })
}

/// Bytes that all of it takes at most: what there is, the order of the dentries, and what comes of them. The tables that find names by their hashes are
/// gone by then.
pub(super) fn bytes(nodes: usize, dentries: usize, links: usize, names: usize) -> u64 {
    const EACH_NODE: usize = size_of::<Node>() + size_of::<u32>() + size_of::<(u32, u32)>();
    const EACH_DENTRY: usize =
        size_of::<Dentry>() + 2 * size_of::<u32>() + size_of::<bool>() + size_of::<ChildRecord>();
    // Those that have no node may be whiteouts of one directory, which are listed once more.
    let whiteouts = dentries.saturating_sub(nodes) * size_of::<ChildRecord>();
    let of_links = links * (size_of::<LateLink>() + size_of::<State>() + size_of::<Target>());
    (nodes * EACH_NODE + dentries * EACH_DENTRY + whiteouts + of_links + names) as u64
}

/// What each late link stands for, and the paths of those that only a lower layer can have.
fn resolve(
    paths: &mut Paths,
    nodes: &[Node],
    links: &[LateLink],
    charge: &mut Charge,
) -> Result<(Vec<Target>, Vec<Span>), Rejected> {
    let unpacked = Unpacked { paths, nodes };
    let (states, below) = (vec![State::New; links.len()], Vec::new());
    let mut resolver = Resolver { unpacked, links, states, below, held: 0, charge };
    let mut chain = Vec::new();
    for start in 0..links.len() {
        let target = resolver.follow(start, &mut chain)?;
        // Each link is walked once, however long the chains are that it is part of.
        for link in chain.drain(..) {
            resolver.set(link, State::Done(target));
        }
    }
    let done = |state| if let State::Done(target) = state { Some(target) } else { None };
    let Resolver { states, below, .. } = resolver;
    let below = below.iter().map(|path| paths.keep(path)).collect::<Result<_, _>>()?;
    Ok((states.into_iter().filter_map(done).collect(), below))
}

/// Bytes of a path besides its own.
const EACH_PATH: usize = 48;

#[derive(Debug, Clone, Copy)]
enum State {
    New,
    OnTheWay,
    Done(Target),
}

struct Resolver<'a> {
    unpacked: Unpacked<'a>,
    links: &'a [LateLink],
    states: Vec<State>,
    below: Vec<Vec<u8>>,
    /// Bytes of these.
    held: usize,
    charge: &'a mut Charge,
}

impl Resolver<'_> {
    fn set(&mut self, link: usize, state: State) {
        if let Some(slot) = self.states.get_mut(link) {
            *slot = state;
        }
    }

    /// What a link leads to, by way of the links in `chain`.
    fn follow(&mut self, start: usize, chain: &mut Vec<usize>) -> Result<Target, Rejected> {
        let mut at = start;
        while let Some(link) = self.links.get(at) {
            match self.states.get(at) {
                Some(State::Done(target)) => return Ok(*target),
                Some(State::New) => {}
                Some(State::OnTheWay) | None => return Err(self.refused(link, Problem::LinkCycle)),
            }
            self.set(at, State::OnTheWay);
            chain.push(at);
            let found = match self.unpacked.entry(link.target.of(&self.unpacked.paths.names)) {
                Ok(found) => found,
                Err(mut path) => {
                    path.shrink_to_fit();
                    self.held += path.len() + EACH_PATH;
                    let covered = self.charge.cover(self.held as u64, 0);
                    covered.map_err(|exceeded| self.refused(link, |_| exceeded.into()))?;
                    self.below.push(path);
                    return Ok(Target::Below((self.below.len() - 1) as u32));
                }
            };
            match self.unpacked.paths.dentry(found).map(|dentry| dentry.slot) {
                Some(Slot::Link(next)) => at = next as usize,
                Some(Slot::Node(node)) if !self.is_dir(node) => return Ok(Target::Node(node)),
                Some(Slot::Node(_)) | None => return Err(self.refused(link, Problem::LinkToDirectory)),
                Some(Slot::Whiteout) => return Err(self.refused(link, Problem::LinkToWhiteout)),
            }
        }
        // No slot holds the number of a link that there is not.
        Ok(Target::Whiteout)
    }

    fn is_dir(&self, node: u32) -> bool {
        !matches!(self.unpacked.nodes.get(node as usize), Some(node) if !matches!(node.kind, NodeKind::Dir { .. }))
    }

    fn refused(&self, link: &LateLink, problem: impl FnOnce(String) -> Problem) -> Rejected {
        let paths = self.unpacked.paths;
        Rejected::entry(&paths.path(link.dentry), problem(shown(link.target.of(&paths.names))))
    }
}

/// Of each dentry, whether the layer has something there or below, whiteouts aside.
fn used(dentries: &[Dentry], nodes: &[Node], names: &[u8]) -> Vec<bool> {
    let is_there = |dentry: &Dentry| match dentry.slot {
        Slot::Whiteout => false,
        Slot::Link(_) => true,
        Slot::Node(node) => {
            !matches!(nodes.get(node as usize).map(|node| node.kind), Some(NodeKind::Dir { implied: true, .. }))
        }
    };
    let mut used = vec![false; dentries.len()];
    // A directory comes before what is in it.
    for (number, dentry) in dentries.iter().enumerate().rev() {
        let is_used = used.get(number).is_some_and(|used| *used) || is_there(dentry);
        for number in [number, dentry.parent as usize] {
            if let Some(used) = used.get_mut(number).filter(|_| is_used && !dentry.name(names).starts_with(WHITEOUT)) {
                *used = true;
            }
        }
    }
    used
}

/// All dentries, ordered by directory and then by name.
struct ByDirectory {
    /// Where the children of each dentry start in `order`; one more than there are dentries.
    starts: Vec<u32>,
    order: Vec<u32>,
}

impl ByDirectory {
    fn sort(dentries: &[Dentry], names: &[u8]) -> Self {
        let mut order: Vec<u32> =
            (0u32..).zip(dentries).filter(|(_, entry)| entry.parent != DETACHED).map(|(i, _)| i).collect();
        let of = |number: u32| dentries.get(number as usize).map(|dentry| (dentry.parent, dentry.name(names)));
        order.sort_unstable_by(|a, b| of(*a).cmp(&of(*b)));
        let mut starts = Vec::with_capacity(dentries.len() + 1);
        let mut at = 0;
        for dir in 0..=dentries.len() {
            let parent = |at: usize| {
                order.get(at).and_then(|number| dentries.get(*number as usize)).map(|dentry| dentry.parent as usize)
            };
            while parent(at).is_some_and(|parent| parent < dir) {
                at += 1;
            }
            starts.push(at as u32);
        }
        Self { starts, order }
    }

    fn children(&self, dir: u32) -> &[u32] {
        let start = |dir: usize| self.starts.get(dir).map_or(0, |start| *start as usize);
        let range: Range<usize> = start(dir as usize)..start(dir as usize + 1);
        self.order.get(range).unwrap_or_default()
    }
}

/// Lays the tree out: a breadth-first walk that numbers nodes as it meets them.
struct Layout<'a> {
    dentries: &'a [Dentry],
    by_dir: &'a ByDirectory,
    used: &'a [bool],
    resolved: &'a [Target],
    names: &'a [u8],
}

/// A node that no name was met for yet.
const UNSEEN: u32 = u32::MAX;

struct Walk {
    /// Where they were, until all have their numbers: a second list would be as large.
    nodes: Vec<Node>,
    /// The nodes that were met, in their new order, each with a dentry that it has.
    met: Vec<(u32, u32)>,
    /// The new number of each node.
    numbers: Vec<u32>,
}

impl Walk {
    fn dir_mut(&mut self, node: u32) -> Option<&mut NodeKind> {
        let kind = self.nodes.get_mut(node as usize).map(|node| &mut node.kind);
        kind.filter(|kind| matches!(kind, NodeKind::Dir { .. }))
    }

    /// Puts each node where its number says. The others are left out.
    fn into_order(self) -> Vec<Node> {
        let Self { mut nodes, met, mut numbers } = self;
        for at in 0..nodes.len() {
            // Each step puts one to where it stays.
            while let Some(to) = numbers.get(at).map(|to| *to as usize).filter(|to| *to != at && *to < met.len()) {
                nodes.swap(at, to);
                numbers.swap(at, to);
            }
        }
        nodes.truncate(met.len());
        nodes.shrink_to_fit();
        nodes
    }
}

impl Layout<'_> {
    fn walk(&self, nodes: Vec<Node>) -> (Vec<Node>, Vec<ChildRecord>) {
        let mut children = Vec::with_capacity(self.by_dir.order.len());
        let numbers = vec![UNSEEN; nodes.len()];
        let mut walk = Walk { nodes, met: Vec::new(), numbers };
        self.visit(&mut walk, Paths::ROOT, 0);
        let mut next = 0;
        while let Some((node, dentry)) = walk.met.get(next).copied() {
            next += 1;
            if walk.dir_mut(node).is_none() {
                continue;
            }
            let start = children.len();
            let covered = self.covered(dentry);
            self.list(&mut walk, dentry, &covered, &mut children);
            self.settle(&mut walk, &mut children, start, &covered);
            let range = (start as u32, (children.len() - start) as u32);
            if let Some(NodeKind::Dir { first, count, .. }) = walk.dir_mut(node) {
                (*first, *count) = range;
            }
        }
        children.shrink_to_fit();
        (walk.into_order(), children)
    }

    /// The new number of a node, given to it at its first name.
    fn visit(&self, walk: &mut Walk, dentry: u32, node: u32) -> u32 {
        let Some(number) = walk.numbers.get_mut(node as usize) else { return UNSEEN };
        if *number == UNSEEN {
            *number = walk.met.len() as u32;
            walk.met.push((node, dentry));
        }
        *number
    }

    /// What the whiteouts in a directory hide, as spans of the names, sorted.
    fn covered(&self, dir: u32) -> Vec<ChildRecord> {
        let dentries = self.by_dir.children(dir).iter().filter_map(|number| self.dentries.get(*number as usize));
        let whiteouts = dentries.filter(|dentry| dentry.slot == Slot::Whiteout);
        let covered = whiteouts.map(|dentry| {
            let name_len = hidden_by(dentry.name(self.names)).map_or(0, <[u8]>::len) as u8;
            let name = dentry.name + u32::from(dentry.name_len) - u32::from(name_len);
            ChildRecord { target: Target::Whiteout, name, name_len }
        });
        covered.collect()
    }

    /// Adds what is visible in a directory.
    fn list(&self, walk: &mut Walk, dir: u32, covered: &[ChildRecord], children: &mut Vec<ChildRecord>) {
        for number in self.by_dir.children(dir) {
            let Some(dentry) = self.dentries.get(*number as usize) else { continue };
            let name = dentry.name(self.names);
            let target = match dentry.slot {
                Slot::Whiteout => continue,
                _ if is_hidden(dir, name) => continue,
                // It was made for whiteouts of what is gone with all of it.
                Slot::Node(_) if !self.is_used(*number) && self.find(covered, name).is_some() => continue,
                Slot::Node(old) => Target::Node(self.visit(walk, *number, old)),
                Slot::Link(link) => match self.resolved.get(link as usize).copied() {
                    Some(Target::Node(old)) => Target::Node(self.visit(walk, *number, old)),
                    Some(other) => other,
                    None => continue,
                },
            };
            children.push(ChildRecord { target, name: dentry.name, name_len: dentry.name_len as u8 });
        }
    }

    fn is_used(&self, dentry: u32) -> bool {
        self.used.get(dentry as usize).is_some_and(|used| *used)
    }

    /// The record of a name among sorted ones.
    fn find<'r>(&self, records: &'r [ChildRecord], name: &[u8]) -> Option<&'r ChildRecord> {
        records.binary_search_by(|record| record.name(self.names).cmp(name)).ok().and_then(|at| records.get(at))
    }

    /// A whiteout beside what it names hides only what lower layers have there: a directory becomes opaque, anything else hides that
    /// anyway. The others become children.
    fn settle(&self, walk: &mut Walk, children: &mut Vec<ChildRecord>, start: usize, covered: &[ChildRecord]) {
        let end = children.len();
        for whiteout in covered {
            let beside = children.get(start..end).unwrap_or_default();
            match self.find(beside, whiteout.name(self.names)) {
                None => children.push(*whiteout),
                Some(ChildRecord { target: Target::Node(node), .. }) => {
                    let node = walk.met.get(*node as usize).map_or(UNSEEN, |(node, _)| *node);
                    if let Some(NodeKind::Dir { opaque, implied, .. }) = walk.dir_mut(node) {
                        // The directory below is gone with all that it was, its owner and mode included.
                        *opaque = true;
                        *implied = false;
                    }
                }
                Some(_) => {}
            }
        }
        if children.len() > end {
            children
                .get_mut(start..)
                .unwrap_or_default()
                .sort_unstable_by(|a, b| a.name(self.names).cmp(b.name(self.names)));
        }
    }
}

/// Names that no view shows: all that begin like whiteouts, and the landmarks at the root.
fn is_hidden(dir: u32, name: &[u8]) -> bool {
    name.starts_with(WHITEOUT) || (dir == Paths::ROOT && (name == PREFETCH_LANDMARK || name == NO_PREFETCH_LANDMARK))
}
