//! The entries of a layer, to bytes and back.
//!
//! ```text
//! u32 nodes, u32 children, u32 bytes of names, u32 links below, u32 sets of xattrs, u32 bytes of xattrs, u64 0
//! node      40   u8 kind, u8 flags (1 opaque, 2 implied), u16 mode, u32 uid, u32 gid, u32 nanos, i64 secs, u32 xattrs, u32 a, u64 b
//! child     12   u32 name, u8 name length, u8 kind (0 node, 1 whiteout, 2 link below), u16 0, u32 target
//! names          bytes
//! below      8   u32 start, u32 length
//! xattrs         u32 end of each set, then bytes
//! ```
//!
//! a and b: first child and number of children; block and size; start and length of the target; major and minor. All of it is one
//! zstd frame. What is decoded is checked: nothing that reads [`Entries`] needs to distrust them.

use std::io::{self, Read, Write};

use super::room::Room;
use super::tables::{u32_at, u64_at};
use crate::budget::{Charge, Exceeded};
use crate::index::entries::{ChildRecord, Entries, Node, NodeKind, Span, Target};
use crate::index::limits;
use crate::index::xattrs::{XattrBuilder, XattrSets};

const HEAD: usize = 32;
const NODE: usize = 40;
const CHILD: usize = 12;

/// Fast, and half as large as it was; more effort gains a tenth.
const LEVEL: i32 = 1;

const OPAQUE: u8 = 1;
const IMPLIED: u8 = 2;

/// What is written, within what there is room for.
struct Bounded<'a> {
    bytes: Vec<u8>,
    room: &'a mut Room,
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.room.cover(self.bytes.len() + bytes.len()).map_err(io::Error::other)?;
        self.bytes.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn encode(entries: &Entries, room: &mut Room) -> io::Result<Vec<u8>> {
    let mut out = zstd::stream::write::Encoder::new(Bounded { bytes: Vec::new(), room }, LEVEL)?;
    let Entries { nodes, children, names, below, xattrs, .. } = entries;
    let lens = [nodes.len(), children.len(), names.len(), below.len(), xattrs.len()];
    let xattr_bytes = xattrs.encoded_ends().last().unwrap_or(0);
    for len in lens.into_iter().map(|len| len as u32).chain([xattr_bytes, 0, 0]) {
        out.write_all(&len.to_le_bytes())?;
    }
    for node in nodes {
        out.write_all(&node_bytes(node))?;
    }
    for child in children {
        out.write_all(&child_bytes(child))?;
    }
    out.write_all(names)?;
    for path in below {
        out.write_all(&path.start.to_le_bytes())?;
        out.write_all(&u32::from(path.len).to_le_bytes())?;
    }
    for end in xattrs.encoded_ends() {
        out.write_all(&end.to_le_bytes())?;
    }
    xattrs.write_encoded(&mut out)?;
    out.finish().map(|out| out.bytes)
}

fn node_bytes(node: &Node) -> [u8; NODE] {
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    let (kind, flags, a, b): (u8, u8, u32, u64) = match node.kind {
        NodeKind::Dir { opaque, implied, first, count } => {
            (0, flag(opaque, OPAQUE) | flag(implied, IMPLIED), first, u64::from(count))
        }
        NodeKind::File { block, size } => (1, 0, block, size),
        NodeKind::Symlink(target) => (2, 0, target.start, u64::from(target.len)),
        NodeKind::Char { major, minor } => (3, 0, major, u64::from(minor)),
        NodeKind::Block { major, minor } => (4, 0, major, u64::from(minor)),
        NodeKind::Fifo => (5, 0, 0, 0),
        NodeKind::Socket => (6, 0, 0, 0),
    };
    let head = u128::from(kind) | u128::from(flags) << 8 | u128::from(node.mode) << 16;
    let head = head | u128::from(node.uid) << 32 | u128::from(node.gid) << 64 | u128::from(node.nanos) << 96;
    let tail = u128::from(node.xattrs) | u128::from(a) << 32 | u128::from(b) << 64;
    let mut bytes = [0; NODE];
    let fields = head.to_le_bytes().into_iter().chain(node.secs.to_le_bytes()).chain(tail.to_le_bytes());
    bytes.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    bytes
}

fn node_of(bytes: &[u8; NODE]) -> Option<Node> {
    let [kind, flags, mode_low, mode_high, ..] = *bytes;
    let (a, b) = (u32_at(bytes, 28)?, u64_at(bytes, 32)?);
    let narrow = |b: u64| u32::try_from(b).ok();
    let kind = match kind {
        0 => NodeKind::Dir { opaque: flags & OPAQUE != 0, implied: flags & IMPLIED != 0, first: a, count: narrow(b)? },
        1 => NodeKind::File { block: a, size: b },
        2 => NodeKind::Symlink(Span { start: a, len: u16::try_from(b).ok()? }),
        3 => NodeKind::Char { major: a, minor: narrow(b)? },
        4 => NodeKind::Block { major: a, minor: narrow(b)? },
        5 => NodeKind::Fifo,
        6 => NodeKind::Socket,
        _ => return None,
    };
    Some(Node {
        kind,
        mode: u16::from_le_bytes([mode_low, mode_high]),
        uid: u32_at(bytes, 4)?,
        gid: u32_at(bytes, 8)?,
        nanos: u32_at(bytes, 12)?,
        secs: u64_at(bytes, 16)? as i64,
        xattrs: u32_at(bytes, 24)?,
    })
}

fn child_bytes(child: &ChildRecord) -> [u8; CHILD] {
    let (kind, target) = match child.target {
        Target::Node(node) => (0, node),
        Target::Whiteout => (1, 0),
        Target::Below(link) => (2, link),
    };
    let [a, b, c, d] = child.name.to_le_bytes();
    let [e, f, g, h] = target.to_le_bytes();
    [a, b, c, d, child.name_len, kind, 0, 0, e, f, g, h]
}

fn child_of(bytes: &[u8; CHILD]) -> Option<ChildRecord> {
    let [a, b, c, d, name_len, kind, _, _, e, f, g, h] = *bytes;
    let target = u32::from_le_bytes([e, f, g, h]);
    let target = match kind {
        0 => Target::Node(target),
        1 => Target::Whiteout,
        2 => Target::Below(target),
        _ => return None,
    };
    Some(ChildRecord { target, name: u32::from_le_bytes([a, b, c, d]), name_len })
}

/// What is wrong with bytes that [`encode`] did not make.
const NOT_ENTRIES: &str = "its entries cannot be decoded";

/// Why entries are not decoded.
#[derive(Debug)]
pub(super) enum Undecoded {
    Damaged(&'static str),
    Memory(Exceeded),
}

/// Decodes what comes of `compressed`.
pub(super) fn decode(compressed: impl Read, charge: Charge) -> Result<Entries, Undecoded> {
    let damaged = Undecoded::Damaged;
    let mut json = zstd::stream::read::Decoder::new(compressed).map_err(|_| damaged(NOT_ENTRIES))?;
    let mut held = Held { charge, bytes: 0, honest: 0, exceeded: None };
    let Some(mut entries) = read(&mut json, &mut held) else {
        return Err(held.exceeded.map_or(damaged(NOT_ENTRIES), Undecoded::Memory));
    };
    let ends = json.read(&mut [0]).is_ok_and(|more| more == 0);
    if !(ends && is_sound(&entries)) {
        return Err(damaged("its entries are not a tree"));
    }
    let Held { mut charge, bytes, honest, .. } = held;
    charge.settle(bytes, honest).map_err(Undecoded::Memory)?;
    entries.charge = charge;
    Ok(entries)
}

/// What an entry of an honest layer takes: its name as well.
const HONEST: u64 = (size_of::<Node>() + size_of::<ChildRecord>()) as u64 + 36;

/// What is taken for entries while they are decoded.
struct Held {
    charge: Charge,
    bytes: u64,
    honest: u64,
    exceeded: Option<Exceeded>,
}

impl Held {
    /// `None`: there is not so much. `more` is there besides what stays.
    fn cover(&mut self, more: u64) -> Option<()> {
        let covered = self.charge.cover(self.bytes.checked_add(more)?, self.honest);
        covered.map_err(|exceeded| self.exceeded = Some(exceeded)).ok()
    }
}

fn read(from: &mut impl Read, held: &mut Held) -> Option<Entries> {
    let mut head = [0; HEAD];
    from.read_exact(&mut head).ok()?;
    let len = |at: usize, limit: usize| u32_at(&head, at * 4).map(|len| len as usize).filter(|len| *len <= limit);
    let (nodes, children) = (len(0, limits::ENTRIES + 1)?, len(1, limits::ENTRIES)?);
    let (names, below) = (len(2, limits::NAMES)?, len(3, limits::ENTRIES)?);
    let (sets, xattr_bytes) = (len(4, limits::ENTRIES)?, len(5, limits::XATTRS)?);
    let fixed = nodes * size_of::<Node>() + children * size_of::<ChildRecord>() + below * size_of::<Span>();
    (held.bytes, held.honest) = ((fixed + names) as u64, children as u64 * HONEST);
    let xattr_ends = (sets * size_of::<u32>()) as u64;
    held.cover(xattr_ends)?;
    let nodes = records(from, nodes, node_of)?;
    // A long path implies many directories, which are no honest layer's.
    let implied = nodes.iter().filter(|node| matches!(node.kind, NodeKind::Dir { implied: true, .. })).count();
    held.honest = children.saturating_sub(implied) as u64 * HONEST;
    held.cover(xattr_ends)?;
    Some(Entries {
        nodes,
        children: records(from, children, child_of)?,
        names: bytes(from, names)?,
        below: records(from, below, |bytes: &[u8; 8]| {
            Some(Span { start: u32_at(bytes, 0)?, len: u16::try_from(u32_at(bytes, 4)?).ok()? })
        })?,
        xattrs: xattr_sets(from, sets, xattr_bytes, held)?,
        charge: Charge::default(),
    })
}

fn xattr_sets(from: &mut impl Read, sets: usize, len: usize, held: &mut Held) -> Option<XattrSets> {
    let ends = records(from, sets, |bytes: &[u8; 4]| u32_at(bytes, 0))?;
    let (mut xattrs, mut start) = (XattrBuilder::default(), 0);
    for end in ends {
        let set = end.checked_sub(start)?;
        // A name takes a byte or more of the set, and its pair 24 here; a value is there twice.
        let of_set = 32 * u64::from(set.min(limits::XATTR_LIST as u32)) + 2 * limits::XATTR_VALUE as u64;
        held.cover(xattrs.bytes() + (sets * size_of::<u32>()) as u64 + of_set.min(32 * u64::from(set)))?;
        xattrs.add_encoded(from, set.into())?;
        start = end;
    }
    held.bytes += xattrs.finished_bytes();
    (start as usize == len).then(|| xattrs.finish())
}

/// Memory is taken as bytes really come, not on the word of the header.
fn records<T, const LEN: usize>(
    from: &mut impl Read,
    count: usize,
    of: impl Fn(&[u8; LEN]) -> Option<T>,
) -> Option<Vec<T>> {
    const STEP: usize = 4096;
    let mut all = Vec::new();
    let mut buffer = Vec::new();
    while all.len() < count {
        let step = STEP.min(count - all.len());
        if all.capacity() == all.len() {
            all.reserve_exact((all.len() * 2).max(step).min(count - all.len()));
        }
        buffer.resize(step * LEN, 0);
        from.read_exact(&mut buffer).ok()?;
        for record in buffer.chunks_exact(LEN) {
            all.push(of(record.first_chunk()?)?);
        }
    }
    Some(all)
}

fn bytes(from: &mut impl Read, len: usize) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    from.take(len as u64).read_to_end(&mut all).ok()?;
    (all.len() == len).then_some(all)
}

/// The invariants of [`Entries`].
fn is_sound(entries: &Entries) -> bool {
    entries.below.iter().all(|path| within(*path, entries)) && are_nodes_sound(entries) && is_tree(entries)
}

fn within(span: Span, entries: &Entries) -> bool {
    span.start as usize + usize::from(span.len) <= entries.names.len()
}

fn are_nodes_sound(entries: &Entries) -> bool {
    let sets = entries.xattrs.len();
    entries.nodes.iter().all(|node| {
        let kind = match node.kind {
            NodeKind::Symlink(target) => within(target, entries) && target.len > 0,
            NodeKind::File { size, .. } => size <= limits::LAYER_FILE,
            _ => true,
        };
        kind && node.xattrs as usize <= sets && node.mode <= 0o7777 && node.nanos < 1_000_000_000
    })
}

/// Whether the directories' children tile the children, and every directory but the root has exactly one name, in one before it.
fn is_tree(entries: &Entries) -> bool {
    let mut next = 0;
    let mut named = vec![false; entries.nodes.len()];
    for (number, node) in entries.nodes.iter().enumerate() {
        let NodeKind::Dir { first, count, .. } = node.kind else { continue };
        let range = first as usize..first as usize + count as usize;
        let Some(children) = entries.children.get(range.clone()).filter(|_| range.start == next) else { return false };
        next = range.end;
        if !are_names_sound(children, &entries.names)
            || !children.iter().all(|child| leads_on(child, number, entries, &mut named))
        {
            return false;
        }
    }
    let all_named = named.iter().skip(1).all(|named| *named);
    next == entries.children.len()
        && all_named
        && matches!(entries.nodes.first(), Some(Node { kind: NodeKind::Dir { .. }, .. }))
}

fn are_names_sound(children: &[ChildRecord], names: &[u8]) -> bool {
    let valid = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, 0 | b'/'));
    children.iter().all(|child| valid(child.name(names)))
        && children.windows(2).all(|two| matches!(two, [a, b] if a.name(names) < b.name(names)))
}

fn leads_on(child: &ChildRecord, dir: usize, entries: &Entries, named: &mut [bool]) -> bool {
    let Target::Node(node) = child.target else {
        return !matches!(child.target, Target::Below(link) if link as usize >= entries.below.len());
    };
    let (Some(seen), Some(to)) = (named.get_mut(node as usize), entries.nodes.get(node as usize)) else { return false };
    let again = std::mem::replace(seen, true);
    !matches!(to.kind, NodeKind::Dir { .. }) || (!again && node as usize > dir)
}
