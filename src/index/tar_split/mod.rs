//! A layer's tar-split: of what podman puts its tar together again, byte for byte, with the help of the layer's files. What is pushed is that tar.
//!
//! ```text
//! gzip of one JSON object a line, in the order of the tar (vbatts/tar-split v0.11.2, tar/storage/entry.go):
//! {"type":2,"payload":BASE64,"position":0}                            a segment: these bytes (headers, padding)
//! {"type":1,"name":"a/b","size":5,"payload":BASE64,"position":1}      the contents of a file, which is read by that name
//!           "name_raw":BASE64 where the name is not UTF-8             payload: its CRC-64 (crc.rs), 8 bytes, big endian
//! ```
//!
//! podman opens a file by its name below the layer's `diff`, whatever is there, and refuses a tar-split that names one twice. So a file is named only
//! where the layer's index has a regular file of that size under that path, which no later entry of the tar replaces. All other contents are written
//! as segments, within limits: what the index hides or cannot show, sparse files, and all but the last of several files with one name.
//!
//! A tar-split is made while a layer is read whole (record.rs), or of one that a zstd:chunked blob carries (carried.rs).

pub(crate) mod carried;
mod crc;
mod files;
mod record;
mod write;

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io;

use self::files::Files;
pub(super) use self::record::{Recorder, Tape};
use super::entries::{Child, Entries, Kind};
use crate::blob::Digest;
use crate::budget::{Charge, Exceeded};

/// Why a layer has no tar-split.
#[derive(Debug, thiserror::Error)]
pub enum NoTarSplit {
    #[error("the tar-split cannot be written to the disk of the store")]
    Write(#[from] io::Error),
    #[error("more than {limit} bytes of {what} would have to stand in it")]
    TooLarge { what: &'static str, limit: u64 },
    #[error("its tar has more than {limit} {what}")]
    TooMany { what: &'static str, limit: u64 },
    #[error("the names of its files, and the tar-split that it carries, need memory")]
    Memory(#[from] Exceeded),
    #[error("it is a filesystem image, and no tar")]
    Filesystem,
    #[error("it is no tar that crfs can read")]
    NoTar(#[source] Box<super::Error>),
    #[error("the tar-split that the blob carries is malformed in line {line}: {problem}")]
    Malformed { line: u64, problem: String },
    #[error("the tar-split that the blob carries has {len} bytes; the limit is {limit}")]
    CarriedTooLarge { len: u64, limit: u64 },
    #[error("the tar-split that the blob carries cannot be decompressed")]
    Undecodable(#[source] io::Error),
    #[error("the tar-split that came has the digest {got}, and the image names {named:?} for it")]
    OtherDigest { named: String, got: Digest },
    #[error("the layer's index does not have all files of its tar under their names")]
    Unreadable,
    #[error("its registry sends nothing but whole blobs")]
    SentWhole,
    #[error("its tar ends within a file")]
    CutOff,
    #[error("no tar-split was wanted when the layer was read; `crfs store add --full` makes one")]
    NotAsked,
}

impl NoTarSplit {
    /// Whether it can be that what the blob carries was changed on the way.
    pub(crate) const fn may_be_wrong_bytes(&self) -> bool {
        matches!(self, Self::Malformed { .. } | Self::Undecodable(_) | Self::OtherDigest { .. } | Self::Unreadable)
    }

    /// Whether it can be another time.
    pub(crate) const fn may_pass(&self) -> bool {
        matches!(self, Self::Write(_) | Self::OtherDigest { .. } | Self::SentWhole | Self::Memory(Exceeded::All { .. }))
    }
}

/// What a tar-split is written to, and what is to be written as segments, by the numbers of the tar's entries.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) file: File,
    pub(crate) raw: BTreeSet<u64>,
}

/// A tar-split that was written.
#[derive(Debug)]
pub struct TarSplit {
    pub file: File,
    /// Bytes of the tar.
    pub tar_len: u64,
    /// What it names, by cleaned paths.
    files: Files,
    /// Entries that it names and that later ones replace.
    replaced: BTreeSet<u64>,
    /// For what is known of its files.
    charge: Charge,
}

impl TarSplit {
    /// The numbers of the entries that it names and that cannot be read by that name from the layer.
    #[must_use]
    pub fn unreadable(&self, entries: &Entries) -> BTreeSet<u64> {
        let mut readable = HashSet::new();
        // One path for all: a layer can have millions of directories.
        let mut path = Vec::new();
        let mut dirs = vec![(entries.children(Entries::ROOT), 0)];
        while let Some((children, len)) = dirs.last_mut() {
            path.truncate(*len);
            let Some((name, child)) = children.next() else {
                dirs.pop();
                continue;
            };
            let Child::Node(node) = child else { continue };
            join(&mut path, name);
            match entries.kind(node) {
                Kind::Dir { .. } => dirs.push((entries.children(node), path.len())),
                Kind::File { size, .. } => {
                    readable.extend(self.files.get(&path).filter(|file| file.size == size).map(|file| file.entry));
                }
                _ => {}
            }
        }
        let named = self.files.entries().filter(|entry| !readable.contains(entry));
        named.chain(self.replaced.iter().copied()).collect()
    }

    /// What can be used, or the entries that it must not name. Which files are named is not needed after that, and can be a lot.
    pub(crate) fn usable(mut self, entries: &Entries) -> Result<Self, BTreeSet<u64>> {
        let unreadable = self.unreadable(entries);
        (self.files, self.charge) = (Files::default(), Charge::default());
        if unreadable.is_empty() { Ok(self) } else { Err(unreadable) }
    }
}

fn join(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

#[cfg(test)]
mod tests;
