//! Entries of a TOC in, a layer's tree and tables out: one builder for all formats.
//!
//! Entries are taken in the order of the TOC, each acting on what is there as unpacking would: the last of two with one name counts, a
//! second entry of a directory keeps its children, another type drops them, missing parents are made, a path leads through the
//! layer's own symlinks ([`walk`]), a hard link binds to what its target is at that moment, and its header describes that file once
//! more. What may come later (targets of hard links, what a whiteout stands beside) is settled at the end ([`finish`]).
//!
//! Whiteouts follow no symlink: they name what lower layers have, and a symlink of this layer hides all of that.

mod contents;
mod finish;
mod paths;
mod walk;

pub(crate) use self::contents::{Chunk, Contents, ContentsBuilder};
use self::paths::{Paths, Slot};
use self::walk::Unpacked;
use super::entries::{Entries, Node, NodeKind, Span};
use super::error::{Problem, Rejected};
use super::stored::{Codec, Tables};
use super::toc::{EntryType, TocEntry};
use super::xattrs::XattrBuilder;
use super::{acl, limits, names};
use crate::blob::ByteRange;
use crate::budget::{Charge, Exceeded};
use crate::index::error::shown;

pub(super) use super::names::WHITEOUT;

/// Makes its directory opaque (the same, "Opaque Whiteout").
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What else begins so is AUFS's own and hidden; a hard link may name it all the same.
const AUFS: &[u8] = b".wh..wh.";

/// Everything before this file is to be prefetched (stargz-snapshotter docs/estargz.md, "Prefetch"); hidden.
pub(super) const PREFETCH_LANDMARK: &[u8] = b".prefetch.landmark";
pub(super) const NO_PREFETCH_LANDMARK: &[u8] = b".no.prefetch.landmark";

/// What a TOC describes.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) entries: Entries,
    pub(crate) tables: Tables,
    /// Bytes of the layer file.
    pub(crate) layer_file_len: u64,
    pub(crate) prefetch: Option<ByteRange>,
    /// Whether the TOC has an entry at all, hidden ones included.
    pub(crate) is_empty: bool,
    /// Bytes of the tables that are honest beside those of the entries.
    pub(crate) share: u64,
    /// For all of it.
    pub(crate) charge: Charge,
}

/// A hard link whose target had not come yet.
#[derive(Debug)]
struct LateLink {
    dentry: u32,
    target: Span,
}

/// A file whose further chunks may follow.
#[derive(Debug)]
struct OpenFile {
    node: u32,
    size: u64,
    digest: Option<crate::blob::Digest>,
    end: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Builder {
    paths: Paths,
    nodes: Vec<Node>,
    links: Vec<LateLink>,
    xattrs: XattrBuilder,
    contents: ContentsBuilder,
    file: Option<OpenFile>,
    /// The chunks and the raw name of `file`.
    chunks: Vec<Chunk>,
    file_name: Vec<u8>,
    prefetch: Option<ByteRange>,
    is_empty: bool,
    /// The cleaned name and link of the entry at hand, kept for their memory.
    path: Vec<u8>,
    link: Vec<u8>,
    charge: Charge,
}

/// What a name of an honest layer takes while that is built: a node, a file's contents, and the name.
const HONEST: u64 = size_of::<Node>() as u64 + Tables::EACH + Paths::HONEST;

/// A chunk that is not the only one of its file has an honest share, too, where it stands for bytes of the blob: for 16 of it one. Writers make chunks of
/// some 64 KiB or more, of which 4 are left where they pack well.
const CHUNKS: u64 = 16;

/// Bytes of a chunk until it is in the tables, and there.
const EACH_CHUNK: u64 = size_of::<Chunk>() as u64 + Tables::EACH;

impl Builder {
    /// `payload_end`: where in the blob the contents end and the TOC or the footer starts.
    pub(crate) fn new(codec: Codec, payload_end: u64) -> Self {
        Self {
            paths: Paths::new(),
            nodes: vec![Node::implied_dir()],
            links: Vec::new(),
            xattrs: XattrBuilder::default(),
            contents: ContentsBuilder::new(codec, payload_end),
            file: None,
            chunks: Vec::new(),
            file_name: Vec::new(),
            prefetch: None,
            is_empty: true,
            path: Vec::new(),
            link: Vec::new(),
            charge: Charge::default(),
        }
    }

    /// The same within a budget.
    pub(crate) fn charged(self, charge: Charge) -> Self {
        Self { charge, ..self }
    }

    /// Sees to it that there is room for what there is, and for so many bytes more.
    fn cover(&mut self, more: usize) -> Result<(), Exceeded> {
        let fixed = self.nodes.len() * size_of::<Node>()
            + self.links.len() * size_of::<LateLink>()
            + self.chunks.len() * EACH_CHUNK as usize;
        let held = (fixed + more) as u64 + self.paths.bytes() + self.xattrs.bytes() + self.contents.bytes();
        self.charge.cover(held, self.honest())
    }

    /// The same for the last step, while which there are other things than before.
    fn cover_finish(&mut self) -> Result<(), Exceeded> {
        let (dentries, names) = self.paths.lens();
        let entries = finish::bytes(self.nodes.len(), dentries, self.links.len(), names);
        self.charge.cover(entries + self.xattrs.bytes() + self.contents.bytes(), self.honest())
    }

    fn honest(&self) -> u64 {
        let gathered = (self.chunks.len() as u64).saturating_sub(1) * EACH_CHUNK;
        self.paths.distinct() * HONEST + self.share(gathered)
    }

    /// What of the tables is honest for chunks that are not the only ones of their files, and of so many bytes for those that are gathered. Each has a
    /// digest in the table of contents.
    fn share(&self, gathered: u64) -> u64 {
        let further = (self.contents.checks() as u64).saturating_sub(self.paths.distinct()) * Tables::EACH;
        (further + gathered).min(self.contents.payload() / CHUNKS).min(self.charge.worth_of_parts())
    }

    /// Takes the next entry of the TOC.
    pub(crate) fn add(&mut self, entry: &mut TocEntry) -> Result<(), Rejected> {
        if entry.kind != Some(EntryType::Chunk) {
            self.end_file()?;
        }
        self.is_empty = false;
        self.add_entry(entry).map_err(|problem| Rejected::entry(entry.raw_name(), problem))
    }

    /// Takes the next entry of a tar; a file's contents have their place at once. Gives that place in the layer file.
    pub(crate) fn add_placed(&mut self, entry: &mut TocEntry) -> Result<Option<u64>, Rejected> {
        self.add(entry)?;
        let Some(OpenFile { node, size, .. }) = self.file.take() else { return Ok(None) };
        let placed = self.contents.place(size).map_err(|problem| Rejected::entry(entry.raw_name(), problem))?;
        self.set_place(node, placed.0);
        Ok(Some(placed.1))
    }

    fn add_entry(&mut self, entry: &mut TocEntry) -> Result<(), Problem> {
        self.cover(incoming(entry))?;
        let mut path = std::mem::take(&mut self.path);
        let added = names::clean_into(entry.raw_name(), &mut path).and_then(|()| match entry.kind {
            Some(EntryType::Chunk) => self.add_chunk(entry),
            Some(EntryType::HardLink) => self.add_link(entry, &path),
            Some(kind) => self.add_node(entry, kind, &path),
            None => Err(Problem::Type(String::new())),
        });
        self.path = path;
        added
    }

    fn add_chunk(&mut self, entry: &TocEntry) -> Result<(), Problem> {
        if self.file.is_none() || self.file_name != entry.raw_name() {
            return Err(Problem::StrayChunk);
        }
        if self.chunks.len() >= limits::CHUNKS {
            return Err(Problem::TooMany { what: "chunks", limit: limits::CHUNKS });
        }
        self.chunks.push(chunk(entry));
        if let Some(file) = self.file.as_mut().filter(|_| entry.end_offset > 0) {
            file.end = Some(entry.end_offset);
        }
        Ok(())
    }

    fn add_node(&mut self, entry: &mut TocEntry, kind: EntryType, path: &[u8]) -> Result<(), Problem> {
        let node = self.node(entry, kind)?;
        let Some((dir, name)) = names::split(path) else { return self.set_root(node) };
        let dir = self.parent(dir, name)?;
        let number = self.push(node)?;
        if kind == EntryType::File {
            self.open_file(entry, number);
        }
        let Some(dir) = dir else { return Ok(()) };
        if dir == Paths::ROOT && name == PREFETCH_LANDMARK {
            self.prefetch = Some(self.contents.payload_before(entry.offset));
        }
        let slot = self.marker(dir, name)?.unwrap_or(Slot::Node(number));
        self.place(dir, name, slot).map(drop)
    }

    /// What a name alone says, whatever has it: AUFS made whiteouts hard links of each other.
    fn marker(&mut self, dir: u32, name: &[u8]) -> Result<Option<Slot>, Problem> {
        if name == OPAQUE {
            self.set_opaque(dir);
        }
        match hidden_by(name) {
            Some(b"" | b"." | b"..") => Err(Problem::Whiteout(shown(name))),
            hidden => Ok(hidden.map(|_| Slot::Whiteout)),
        }
    }

    fn node(&mut self, entry: &mut TocEntry, kind: EntryType) -> Result<Node, Problem> {
        let kind = match kind {
            EntryType::Dir => NodeKind::Dir { opaque: false, implied: false, first: 0, count: 0 },
            EntryType::Symlink => NodeKind::Symlink(self.symlink_target(&entry.link_name)?),
            EntryType::Char => device(entry).map(|(major, minor)| NodeKind::Char { major, minor })?,
            EntryType::Block => device(entry).map(|(major, minor)| NodeKind::Block { major, minor })?,
            EntryType::Fifo => NodeKind::Fifo,
            EntryType::Socket => NodeKind::Socket,
            // Where a file starts is known when all of its chunks are.
            EntryType::File | EntryType::HardLink | EntryType::Chunk => NodeKind::File { block: 0, size: entry.size },
        };
        let xattrs = self.xattrs.add(&mut entry.xattrs)?;
        let (uid, gid, mode) = (entry.uid, entry.gid, entry.mode);
        Ok(Node { kind, secs: entry.mtime.secs, nanos: entry.mtime.nanos, uid, gid, xattrs, mode })
    }

    fn symlink_target(&mut self, target: &[u8]) -> Result<Span, Problem> {
        match target.len() {
            1..=limits::SYMLINK if target.contains(&0) => Err(Problem::Nul),
            1..=limits::SYMLINK => self.paths.keep(target),
            len => Err(Problem::SymlinkTarget { len }),
        }
    }

    /// Adds a node. Replaced ones stay until the end, so they count.
    fn push(&mut self, node: Node) -> Result<u32, Problem> {
        let number = self.nodes.len();
        if number > limits::ENTRIES {
            return Err(Problem::TooMany { what: "entries", limit: limits::ENTRIES });
        }
        self.nodes.push(node);
        u32::try_from(number).map_err(|_| Problem::TooMany { what: "entries", limit: limits::ENTRIES })
    }

    fn set_root(&mut self, mut node: Node) -> Result<(), Problem> {
        match self.nodes.first_mut() {
            Some(root) if inherit(root, &mut node) => *root = node,
            _ => return Err(Problem::RootNotADirectory),
        }
        Ok(())
    }

    fn set_opaque(&mut self, dir: u32) {
        if let Some(NodeKind::Dir { opaque, .. }) = self.dir_node(dir).map(|node| &mut node.kind) {
            *opaque = true;
        }
    }

    /// The node of a dentry, if that is a directory.
    fn dir_node(&mut self, dentry: u32) -> Option<&mut Node> {
        let Slot::Node(node) = self.paths.dentry(dentry)?.slot else { return None };
        self.nodes.get_mut(node as usize).filter(|node| matches!(node.kind, NodeKind::Dir { .. }))
    }

    /// The dentry of the directory that has `name`. `None`: a whiteout of what something else in this layer hides anyway.
    fn parent(&mut self, dir: &[u8], name: &[u8]) -> Result<Option<u32>, Problem> {
        if name.starts_with(WHITEOUT) { self.marked(dir) } else { self.directory(dir, name).map(Some) }
    }

    /// The dentry of a directory by its cleaned path, made where it is missing, so that it can have `name`.
    fn directory(&mut self, path: &[u8], name: &[u8]) -> Result<u32, Problem> {
        if let Some(dir) = self.paths.recent(path) {
            return Ok(dir);
        }
        let unpacked = self.unpacked();
        let place = unpacked.directory(path)?;
        if place.through_symlinks {
            let len = unpacked.path_in(&place, name).len();
            if len > limits::PATH {
                return Err(Problem::PathTooLong { len });
            }
        }
        let mut dir = place.dir;
        let missing: Vec<Vec<u8>> = place.missing.into_iter().map(<[u8]>::to_vec).collect();
        for name in missing {
            dir = self.imply(dir, &name)?;
        }
        self.paths.set_recent(path, dir);
        Ok(dir)
    }

    /// The dentry of a directory that whiteouts are in, by its cleaned path, made where it is missing. No symlink is followed.
    fn marked(&mut self, path: &[u8]) -> Result<Option<u32>, Problem> {
        let mut dir = Paths::ROOT;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            dir = match self.paths.find(dir, name) {
                Some(found) if self.dir_node(found).is_some() => found,
                Some(_) => return Ok(None),
                None => self.imply(dir, name)?,
            };
        }
        Ok(Some(dir))
    }

    /// Makes a directory that the layer has no entry for.
    fn imply(&mut self, dir: u32, name: &[u8]) -> Result<u32, Problem> {
        let node = self.push(Node::implied_dir())?;
        self.paths.insert(dir, name, Slot::Node(node))
    }

    fn unpacked(&self) -> Unpacked<'_> {
        Unpacked { paths: &self.paths, nodes: &self.nodes }
    }

    /// Puts `slot` under a name, over whatever had it. Returns the dentry.
    fn place(&mut self, dir: u32, name: &[u8], slot: Slot) -> Result<u32, Problem> {
        let Some(found) = self.paths.find(dir, name) else { return self.paths.insert(dir, name, slot) };
        if let Some(old) = self.dir_node(found).copied() {
            let new = if let Slot::Node(new) = slot { self.nodes.get_mut(new as usize) } else { None };
            if !new.is_some_and(|new| inherit(&old, new)) {
                return self.paths.replace(found, slot);
            }
        }
        self.paths.set_slot(found, slot);
        Ok(found)
    }

    fn add_link(&mut self, entry: &mut TocEntry, path: &[u8]) -> Result<(), Problem> {
        let Some((dir, name)) = names::split(path) else { return Err(Problem::RootNotADirectory) };
        let mut target = std::mem::take(&mut self.link);
        names::clean_into(&entry.link_name, &mut target)?;
        let Some(dir) = self.parent(dir, name)? else { return Ok(()) };
        let slot = self.marker(dir, name)?.map_or_else(|| self.link_slot(&target), Ok)?;
        let dentry = self.place(dir, name, slot)?;
        match slot {
            Slot::Node(file) => self.describe_again(file, entry)?,
            Slot::Link(_) => {
                let target = self.paths.keep(&target)?;
                self.links.push(LateLink { dentry, target });
            }
            Slot::Whiteout => {}
        }
        self.link = target;
        Ok(())
    }

    /// What a hard link to `target` stands for now.
    fn link_slot(&mut self, target: &[u8]) -> Result<Slot, Problem> {
        let late = Slot::Link(u32::try_from(self.links.len()).unwrap_or(u32::MAX));
        let Ok(found) = self.unpacked().entry(target) else { return Ok(late) };
        match self.paths.dentry(found).map(|dentry| dentry.slot) {
            Some(Slot::Node(_)) if self.dir_node(found).is_some() => Err(Problem::LinkToDirectory(shown(target))),
            Some(Slot::Whiteout) => Err(Problem::LinkToWhiteout(shown(target))),
            Some(slot @ Slot::Node(_)) => Ok(slot),
            Some(Slot::Link(_)) | None => Ok(late),
        }
    }

    /// Gives a file what the header of a hard link to it says, as unpacking does: of a symlink only the owner, and xattrs are added.
    fn describe_again(&mut self, number: u32, entry: &mut TocEntry) -> Result<(), Problem> {
        let Some(node) = self.nodes.get_mut(number as usize).filter(|_| entry.is_described) else { return Ok(()) };
        (node.uid, node.gid) = (entry.uid, entry.gid);
        if !matches!(node.kind, NodeKind::Symlink(_)) {
            (node.mode, node.secs, node.nanos) = (entry.mode, entry.mtime.secs, entry.mtime.nanos);
            let has_acl = entry.xattrs.iter().any(|(name, _)| name == acl::ACCESS);
            if let Some(kept) = self.xattrs.value(node.xattrs, acl::ACCESS).filter(|_| !has_acl) {
                entry.xattrs.push((acl::ACCESS.to_vec(), acl::with_mode(kept, entry.mode)));
            }
        }
        node.xattrs = self.xattrs.add_over(node.xattrs, &mut entry.xattrs)?;
        Ok(())
    }

    /// Starts a file: its chunks may follow.
    fn open_file(&mut self, entry: &TocEntry, node: u32) {
        let end = (entry.end_offset > 0).then_some(entry.end_offset);
        self.file = Some(OpenFile { node, size: entry.size, digest: entry.digest, end });
        self.file_name.clear();
        self.file_name.extend_from_slice(entry.raw_name());
        self.chunks.clear();
        self.chunks.push(chunk(entry));
    }

    /// Places the contents of the file whose chunks were gathered.
    fn end_file(&mut self) -> Result<(), Rejected> {
        let Some(OpenFile { node, size, digest, end }) = self.file.take() else { return Ok(()) };
        // Of an empty file the first chunk is none.
        let chunks = if size == 0 { self.chunks.get(1..).unwrap_or_default() } else { &self.chunks };
        let placed = self.contents.file(&Contents { size, digest, chunks, end });
        let start = placed.map_err(|problem| Rejected::entry(&self.file_name, problem))?;
        self.set_place(node, start);
        Ok(())
    }

    fn set_place(&mut self, node: u32, start: u32) {
        if let Some(NodeKind::File { block, .. }) = self.nodes.get_mut(node as usize).map(|node| &mut node.kind) {
            *block = start;
        }
    }

    /// Settles what could only be settled with all entries there.
    pub(crate) fn finish(mut self) -> Result<Layer, Rejected> {
        self.end_file()?;
        // Those of the last file are in the tables.
        self.chunks = Vec::new();
        self.cover_finish().map_err(Problem::from)?;
        let share = self.share(0);
        let contents = std::mem::replace(&mut self.contents, ContentsBuilder::new(Codec::Stored, 0));
        let (tables, layer_file_len) = contents.finish()?;
        self.finish_with(tables, share, layer_file_len)
    }

    /// The same where the contents were placed, and others have made the tables, so many bytes of which are honest.
    pub(crate) fn finish_placed(mut self, tables: Tables, share: u64) -> Result<Layer, Rejected> {
        self.cover_finish().map_err(Problem::from)?;
        let layer_file_len = self.contents.filled();
        self.finish_with(tables, share, layer_file_len)
    }

    fn finish_with(self, tables: Tables, share: u64, layer_file_len: u64) -> Result<Layer, Rejected> {
        let Self { paths, nodes, links, xattrs, prefetch, is_empty, charge, .. } = self;
        // What the paths of links to lower layers take until they are kept once.
        let mut paths_of_links = charge.beside();
        let entries = finish::entries(paths, nodes, &links, xattrs.finish(), &mut paths_of_links)?;
        Ok(Layer { entries, tables, layer_file_len, prefetch, is_empty, share, charge })
    }
}

/// Bytes that an entry may add: its names, xattrs and chunks, and the rest of what each has.
fn incoming(entry: &TocEntry) -> usize {
    let xattrs = entry.xattrs.iter().map(|(name, value)| name.len() + value.len() + EACH_XATTR).sum::<usize>();
    entry.name.len() + entry.link_name.len() + xattrs + EACH_ENTRY
}

const EACH_XATTR: usize = 128;
const EACH_ENTRY: usize = 512;

fn chunk(entry: &TocEntry) -> Chunk {
    Chunk {
        at: entry.chunk_offset,
        size: entry.chunk_size,
        offset: entry.offset,
        inner: entry.inner_offset,
        digest: entry.chunk_digest,
        hole: entry.zeros,
    }
}

/// What a whiteout hides, by its name.
fn hidden_by(name: &[u8]) -> Option<&[u8]> {
    name.strip_prefix(WHITEOUT).filter(|_| !name.starts_with(AUFS))
}

/// Lets the second entry of a directory stand for what the first one did. `false` where they are not both directories.
fn inherit(old: &Node, new: &mut Node) -> bool {
    match (old.kind, &mut new.kind) {
        (NodeKind::Dir { opaque: was, .. }, NodeKind::Dir { opaque, .. }) => {
            *opaque |= was;
            true
        }
        _ => false,
    }
}

/// A device's numbers, which would come out of the kernel as others where they have more bits.
fn device(entry: &TocEntry) -> Result<(u32, u32), Problem> {
    let within = |key, number: u32, limit: u32| match number <= limit {
        true => Ok(number),
        false => Err(Problem::Number { key, value: number.into(), limit: limit.into() }),
    };
    Ok((within("devMajor", entry.major, limits::MAJOR)?, within("devMinor", entry.minor, limits::MINOR)?))
}
