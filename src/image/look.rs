//! Looks into an image without mounting it: `crfs ls`, `stat` and `cat`.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::StreamExt;
use serde::Serialize;

use super::Error;
use super::engine::{Engine, OpenImage, RESOLVE_WITHIN};
use super::escape::escape;
use super::event::Report;
use crate::blob::{ByteRange, Digest};
use crate::fs::tree::{Ino, Tree, Type};
use crate::fs::view::{LastSymlink, View};
use crate::image::options::ImageOptions;
use crate::threads::{self, Runtime};

/// Bytes of one read of `cat`, and how many are on their way at once.
const STEP: u64 = 1 << 20;
const AHEAD: usize = 4;

/// An open image, all of its layers merged.
pub struct Look {
    runtime: Runtime,
    image: OpenImage,
    view: View,
}

/// One file of an image. The names of the fields are those of `--json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Node {
    /// As bytes; `--json` has them as text, what is not UTF-8 replaced, and then in base64, too.
    #[serde(serialize_with = "lossy")]
    pub path: Vec<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_base64: Option<String>,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub inode: u64,
    /// Permission bits with suid, sgid and sticky, in octal.
    #[serde(serialize_with = "octal")]
    pub mode: u16,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Seconds since 1970, rounded down, and the rest in nanoseconds.
    pub mtime: i64,
    pub mtime_nanos: u32,
    /// Major and minor number of a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<(u32, u32)>,
    /// Where a symbolic link leads.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_lossy")]
    pub target: Option<Vec<u8>>,
    /// The layer that holds a regular file's contents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<Digest>,
    /// Names and values (base64).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, String>,
}

/// One directory, or what else was named, alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The directory's path; `None` where the only row is what was named.
    pub dir: Option<Vec<u8>>,
    pub rows: Vec<Node>,
}

fn lossy<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(bytes))
}

fn optional_lossy<S: serde::Serializer>(bytes: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
    bytes.as_deref().map(String::from_utf8_lossy).serialize(serializer)
}

fn octal<S: serde::Serializer>(mode: &u16, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{mode:04o}"))
}

/// The type's name in listings.
fn kind_name(kind: Type) -> &'static str {
    match kind {
        Type::Dir => "directory",
        Type::File => "file",
        Type::Symlink => "symlink",
        Type::Char => "char-device",
        Type::Block => "block-device",
        Type::Fifo => "fifo",
        Type::Socket => "socket",
    }
}

impl Look {
    /// Reads the manifest and the tables of contents, no file.
    ///
    /// # Errors
    /// Where the image cannot be resolved or a layer cannot be opened.
    pub fn open(options: &ImageOptions, report: &Report) -> Result<Self, Error> {
        let runtime = runtime()?;
        let (image, view) = runtime.block_on(async {
            let engine = Arc::new(Engine::new(options, RESOLVE_WITHIN)?);
            let image = engine.resolve(report).await?;
            let image = engine.open(image, 0, report).await?;
            let view = tokio::task::block_in_place(|| image.view(None, false).map(|(view, _)| view))?;
            Ok::<_, Error>((image, view))
        })?;
        Ok(Self { runtime, image, view })
    }

    /// What `ls` shows of `path`, with all directories below it where `recursive` says so. A link at its end is followed where
    /// `last` says so.
    ///
    /// # Errors
    /// Where the path leads nowhere.
    pub fn list(&self, path: &[u8], recursive: bool, last: LastSymlink) -> Result<Vec<Listing>, Error> {
        let node = self.view.resolve(path, last)?;
        if !self.is_dir(node) {
            let row = self.node(path.to_vec(), node).ok_or_else(|| missing(path))?;
            return Ok(vec![Listing { dir: None, rows: vec![row] }]);
        }
        let mut listings = Vec::new();
        let mut waiting = vec![(path.to_vec(), node)];
        while let Some((dir, node)) = waiting.pop() {
            let children: Vec<_> =
                self.tree().children(node, 0).map(|(name, child)| (join(&dir, name), child)).collect();
            let rows = children.iter().filter_map(|(path, child)| self.node(path.clone(), *child)).collect();
            if recursive {
                waiting.extend(children.into_iter().rev().filter(|(_, child)| self.is_dir(*child)));
            }
            listings.push(Listing { dir: Some(dir), rows });
        }
        Ok(listings)
    }

    /// What `stat` shows of `path`. A link at its end is not followed.
    ///
    /// # Errors
    /// Where the path leads nowhere.
    pub fn stat(&self, path: &[u8]) -> Result<Node, Error> {
        let ino = self.view.resolve(path, LastSymlink::Keep)?;
        let mut node = self.node(path.to_vec(), ino).ok_or_else(|| missing(path))?;
        let xattrs = self.tree().xattrs(ino);
        node.xattrs = xattrs.map(|(name, value)| (escape(name), BASE64_STANDARD.encode(value))).collect();
        Ok(node)
    }

    /// Writes the contents of a regular file to `output`, every byte verified.
    ///
    /// # Errors
    /// Where the path leads to no regular file, its contents cannot be had, or `output` does not take them.
    pub fn cat(&self, path: &[u8], output: &mut dyn Write) -> Result<(), Error> {
        let ino = self.view.resolve(path, LastSymlink::Follow)?;
        let shown = || escape(path);
        if self.is_dir(ino) {
            return Err(Error::IsADirectory { path: shown() });
        }
        let extent = self.tree().extent(ino).ok_or_else(|| Error::NotAFile { path: shown() })?;
        let layer = self.image.layers.get(extent.layer).ok_or_else(|| missing(path))?;
        let file = ByteRange::at(extent.start, extent.len).ok_or_else(|| missing(path))?;
        let mut reads = futures_util::stream::iter(steps(file).map(|range| layer.contents.read(range))).buffered(AHEAD);
        self.runtime.block_on(async {
            while let Some(bytes) = reads.next().await {
                output.write_all(&bytes?).map_err(|source| Error::Output { source })?;
            }
            output.flush().map_err(|source| Error::Output { source })
        })
    }

    fn tree(&self) -> &Tree {
        self.view.tree()
    }

    fn is_dir(&self, node: Ino) -> bool {
        self.tree().attr(node).is_some_and(|attr| attr.kind == Type::Dir)
    }

    fn node(&self, path: Vec<u8>, ino: Ino) -> Option<Node> {
        let attr = self.tree().attr(ino)?;
        let layer = self.tree().extent(ino).and_then(|extent| self.image.layers.get(extent.layer));
        let is_device = matches!(attr.kind, Type::Char | Type::Block);
        Some(Node {
            path_base64: std::str::from_utf8(&path).err().map(|_| BASE64_STANDARD.encode(&path)),
            path,
            kind: kind_name(attr.kind),
            inode: ino.get(),
            mode: attr.mode,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            size: attr.size,
            mtime: attr.mtime.secs,
            mtime_nanos: attr.mtime.nanos,
            device: is_device.then_some((attr.major, attr.minor)),
            target: self.tree().readlink(ino).map(<[u8]>::to_vec),
            layer: layer.map(|layer| layer.layer.digest),
            xattrs: BTreeMap::new(),
        })
    }
}

/// For all that waits for registries.
pub(crate) fn runtime() -> Result<Runtime, Error> {
    threads::runtime().map_err(|source| Error::Runtime { source })
}

fn missing(path: &[u8]) -> Error {
    Error::NoSuchPath { path: escape(path) }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if dir.is_empty() || dir.ends_with(b"/") { b"" } else { b"/" };
    [dir, slash, name].concat()
}

/// A range in reads of one step each.
fn steps(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let Range { start, end } = range.start..range.end;
    let next = move |at: &u64| at.checked_add(STEP).filter(|at| *at < end);
    let starts = std::iter::successors(Some(start).filter(|_| start < end), next);
    starts.map(move |at| ByteRange { start: at, end: at.saturating_add(STEP).min(end) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_tile_a_range() {
        let range = |start, end| ByteRange { start, end };
        assert_eq!(steps(range(5, 5)).count(), 0);
        assert_eq!(steps(range(5, 6)).collect::<Vec<_>>(), [range(5, 6)]);
        let all: Vec<_> = steps(range(7, 7 + 2 * STEP + 1)).collect();
        assert_eq!(all, [range(7, 7 + STEP), range(7 + STEP, 7 + 2 * STEP), range(7 + 2 * STEP, 8 + 2 * STEP)]);
        assert_eq!(steps(range(0, STEP)).count(), 1);
        assert_eq!(steps(range(u64::MAX - 1, u64::MAX)).count(), 1);
    }

    #[test]
    fn paths_are_joined_with_one_slash() {
        assert_eq!(join(b"/", b"a"), b"/a");
        assert_eq!(join(b"", b"a"), b"a");
        assert_eq!(join(b"/a", b"b"), b"/a/b");
    }
}
