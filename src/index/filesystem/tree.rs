//! Walks an image: directories first, then files in the order of their contents, then further names of what has several.

use std::collections::{HashMap, HashSet};

use super::contents::{Contents, From};
use super::{Bad, Enough, Inode, Kind, Layout, broken, unread};
use crate::budget::Charge;
use crate::index::builder::{Builder, Layer};
use crate::index::error::Problem;
use crate::index::limits;
use crate::index::toc::{EntryType, TocEntry};

/// Bytes for a path that waits, beside its own.
const EACH: usize = 160;

/// Holes at the beginning of a file that are passed over to see where its contents are.
const HOLES: u32 = 16;

/// Makes its directory opaque in a layer's tree, as [`Builder`] has it from tars.
const OPAQUE: &[u8] = b".wh..wh..opq";
const WHITEOUT: &[u8] = b".wh.";

/// overlayfs's own marks (Linux, Documentation/filesystems/overlayfs.rst). The first is a rule of merging; what the others mean a file does
/// not have by itself.
const IS_OPAQUE: &[u8] = b"trusted.overlay.opaque";
const NOT_BY_ITSELF: [&[u8]; 7] = [
    b"trusted.overlay.metacopy",
    b"trusted.overlay.redirect",
    b"trusted.overlay.whiteout",
    b"user.overlay.metacopy",
    b"user.overlay.opaque",
    b"user.overlay.redirect",
    b"user.overlay.whiteout",
];
/// The value of an opaque mark that says that there are whiteouts by xattr in the directory (Linux 6.7).
const HAS_XATTR_WHITEOUTS: &[u8] = b"x";

/// A file whose contents wait for their turn.
struct File {
    /// Where in the image its first bytes are.
    key: u64,
    id: u64,
    path: Box<[u8]>,
}

struct Walk<'a, 'c, L> {
    layout: &'a L,
    builder: Builder,
    contents: Contents<'c>,
    dirs: Vec<(u64, Box<[u8]>)>,
    seen: HashSet<u64>,
    files: Vec<File>,
    /// The first path of what may have several.
    first: HashMap<u64, Box<[u8]>>,
    /// Further names: the path, and the first one.
    links: Vec<(Box<[u8]>, u64)>,
    entry: TocEntry,
    held: usize,
    charge: Charge,
}

/// All entries of an image and what they hold.
pub(super) fn read<L: Layout>(
    layout: &L,
    builder: Builder,
    contents: Contents<'_>,
    charge: Charge,
) -> Result<Layer, Bad> {
    let root = layout.root();
    let mut walk = Walk {
        layout,
        builder,
        contents,
        dirs: vec![(root, Box::default())],
        seen: HashSet::from([root]),
        files: Vec::new(),
        first: HashMap::new(),
        links: Vec::new(),
        entry: TocEntry::default(),
        held: 0,
        charge,
    };
    while let Some((id, path)) = walk.dirs.pop() {
        walk.directory(id, &path).map_err(|bad| bad.of(&path))?;
    }
    walk.contents()?;
    walk.links()?;
    let (tables, share) = walk.contents.finish();
    Ok(walk.builder.finish_placed(tables, share)?)
}

impl<L: Layout> Walk<'_, '_, L> {
    fn directory(&mut self, id: u64, path: &[u8]) -> Result<(), Bad> {
        let inode = self.layout.inode(id)?;
        if inode.kind != Kind::Dir {
            return Err(broken("what should be a directory is none"));
        }
        let is_opaque = inode.xattrs.iter().any(|(name, value)| name == IS_OPAQUE && value == b"y");
        self.add(inode, path, EntryType::Dir, &[])?;
        if is_opaque {
            self.mark(&join(path, OPAQUE))?;
        }
        let (layout, mut children) = (self.layout, Vec::new());
        layout.list(id, &mut |name, id| {
            if name == b"." || name == b".." {
                return Ok(());
            }
            if name.is_empty() || name.len() > limits::NAME || name.contains(&b'/') || name.contains(&0) {
                return Err(broken("a directory has a name that no file can have"));
            }
            // In up to three lists at a time.
            self.hold((name.len() + path.len()) * 3)?;
            children.push((join(path, name), id));
            Ok(())
        })?;
        // The last one pushed is walked first.
        for (path, id) in children.into_iter().rev() {
            self.child(id, &path).map_err(|bad| bad.of(&path))?;
        }
        Ok(())
    }

    fn child(&mut self, id: u64, path: &[u8]) -> Result<(), Bad> {
        let inode = self.layout.inode(id)?;
        if inode.kind == Kind::Dir {
            if !self.seen.insert(id) {
                return Err(broken("a directory is in two places, or in itself"));
            }
            self.dirs.push((id, path.into()));
            return Ok(());
        }
        // overlayfs makes all whiteouts of a layer names of one inode.
        let is_whiteout = inode.kind == Kind::Char && inode.device == (0, 0);
        if inode.is_linked && !is_whiteout {
            if self.first.contains_key(&id) {
                self.links.push((path.into(), id));
                return Ok(());
            }
            self.first.insert(id, path.into());
        }
        match inode.kind {
            Kind::File => {
                let key = self.key(id)?;
                self.files.push(File { key, id, path: path.into() });
                Ok(())
            }
            Kind::Char if is_whiteout => {
                let (dir, name) = crate::index::names::split(path).unwrap_or_default();
                self.mark(&join(dir, &[WHITEOUT, name].concat()))
            }
            Kind::Symlink => {
                let target = self.layout.target(id)?;
                self.add(inode, path, EntryType::Symlink, &target)
            }
            Kind::Char => self.add(inode, path, EntryType::Char, &[]),
            Kind::Block => self.add(inode, path, EntryType::Block, &[]),
            Kind::Socket => self.add(inode, path, EntryType::Socket, &[]),
            Kind::Dir | Kind::Fifo => self.add(inode, path, EntryType::Fifo, &[]),
        }
    }

    /// Where in the image the contents of a file begin.
    fn key(&self, id: u64) -> Result<u64, Bad> {
        let (mut key, mut looks) = (0, 0);
        self.layout.extents(id, &mut |extent| {
            looks += 1;
            key = match extent.from {
                From::Hole if looks < HOLES => return Ok(Enough::No),
                From::Hole => 0,
                From::Stored { at } => at,
                From::Packed { block, .. } => block.start,
            };
            Ok(Enough::Yes)
        })?;
        Ok(key)
    }

    /// Contents in the order in which the image has them, so that what lies side by side is fetched at once.
    fn contents(&mut self) -> Result<(), Bad> {
        let mut files = std::mem::take(&mut self.files);
        files.sort_by_key(|file| file.key);
        for File { id, path, .. } in files {
            self.file(id, &path).map_err(|bad| bad.of(&path))?;
        }
        Ok(())
    }

    fn file(&mut self, id: u64, path: &[u8]) -> Result<(), Bad> {
        let inode = self.layout.inode(id)?;
        let size = inode.size;
        self.fill(inode, path, EntryType::File, &[])?;
        let Some(start) = self.builder.add_placed(&mut self.entry)? else { return Ok(()) };
        let (layout, contents, mut at) = (self.layout, &mut self.contents, 0);
        layout.extents(id, &mut |extent| {
            if extent.at != at || extent.len == 0 || extent.len > size - at {
                return Err(broken("a file's extents do not follow each other"));
            }
            at += extent.len;
            contents.add(start, &extent)?;
            Ok(Enough::No)
        })?;
        if at == size { Ok(()) } else { Err(broken("a file's extents end before it does")) }
    }

    fn links(&mut self) -> Result<(), Bad> {
        for (path, id) in std::mem::take(&mut self.links) {
            let Some(first) = self.first.get(&id) else { continue };
            self.entry.clear();
            self.entry.kind = Some(EntryType::HardLink);
            self.entry.name.extend_from_slice(&path);
            self.entry.link_name.extend_from_slice(first);
            self.builder.add(&mut self.entry)?;
        }
        Ok(())
    }

    fn add(&mut self, inode: Inode, path: &[u8], kind: EntryType, target: &[u8]) -> Result<(), Bad> {
        self.fill(inode, path, kind, target)?;
        Ok(self.builder.add(&mut self.entry)?)
    }

    /// What only says something of lower layers.
    fn mark(&mut self, path: &[u8]) -> Result<(), Bad> {
        self.entry.clear();
        self.entry.kind = Some(EntryType::Char);
        self.entry.name.extend_from_slice(path);
        Ok(self.builder.add(&mut self.entry)?)
    }

    fn fill(&mut self, inode: Inode, path: &[u8], kind: EntryType, target: &[u8]) -> Result<(), Bad> {
        let Inode { mode, uid, gid, mtime, size, device, xattrs, .. } = inode;
        let not_by_itself = |(name, value): &&(Vec<u8>, Vec<u8>)| {
            NOT_BY_ITSELF.contains(&&name[..]) || (name == IS_OPAQUE && value == HAS_XATTR_WHITEOUTS)
        };
        if let Some((name, _)) = xattrs.iter().find(not_by_itself) {
            return Err(unread(format!("overlayfs's {}", String::from_utf8_lossy(name))));
        }
        if kind == EntryType::File && size > limits::LAYER_FILE {
            return Err(Problem::Number { key: "size", value: size, limit: limits::LAYER_FILE }.into());
        }
        let entry = &mut self.entry;
        entry.clear();
        entry.name.extend_from_slice(path);
        entry.link_name.extend_from_slice(target);
        entry.kind = Some(kind);
        entry.is_described = true;
        (entry.mode, entry.uid, entry.gid, entry.mtime) = (mode & 0o7777, uid, gid, mtime);
        (entry.major, entry.minor) = device;
        entry.size = if kind == EntryType::File { size } else { 0 };
        entry.xattrs = xattrs;
        Ok(())
    }

    /// Sees to it that there is room for another path that waits.
    fn hold(&mut self, len: usize) -> Result<(), Bad> {
        self.held += len + EACH;
        let covered = self.charge.cover(self.held as u64, self.held as u64);
        covered.map_err(|exceeded| Problem::from(exceeded).into())
    }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match dir {
        b"" => name.to_vec(),
        dir => [dir, b"/", name].concat(),
    }
}
