//! Paths by name while a layer is built: which entry stands under which name of which directory.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};

use crate::index::entries::Span;
use crate::index::error::Problem;
use crate::index::limits;
use crate::index::once::{ByHash, Once};

/// What a name stands for while a layer is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    Node(u32),
    Whiteout,
    /// A hard link whose target had not come yet.
    Link(u32),
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dentry {
    /// The dentry of the directory; [`DETACHED`] once something else has taken its place.
    pub(super) parent: u32,
    pub(super) name: u32,
    /// More than a name has where it is that of a whiteout.
    pub(super) name_len: u16,
    pub(super) slot: Slot,
}

pub(super) const DETACHED: u32 = u32::MAX;

impl Dentry {
    pub(super) fn name(self, names: &[u8]) -> &[u8] {
        Span { start: self.name, len: self.name_len }.of(names)
    }
}

#[derive(Debug)]
pub(super) struct Paths {
    dentries: Vec<Dentry>,
    pub(super) names: Vec<u8>,
    once: Once,
    /// Dentries by the hash of directory and name, so that names need not be kept twice. Where two hash alike, the next free number
    /// is taken; the hash is keyed, so nobody can make many do so.
    by_hash: ByHash<u32>,
    hasher: RandomState,
    recent: Option<(Vec<u8>, u32)>,
    /// Names that symlinks have added to paths so far.
    walked: Cell<u64>,
}

impl Paths {
    pub(super) const ROOT: u32 = 0;

    pub(super) fn new() -> Self {
        let root = Dentry { parent: DETACHED, name: 0, name_len: 0, slot: Slot::Node(0) };
        let (names, once, by_hash) = (Vec::new(), Once::default(), ByHash::default());
        Self {
            dentries: vec![root],
            names,
            once,
            by_hash,
            hasher: RandomState::new(),
            recent: None,
            walked: Cell::new(0),
        }
    }

    /// Bytes for a name in a directory, the tables to find it by included; and what of that an entry of an honest layer needs, its name as well.
    const EACH: u64 = size_of::<Dentry>() as u64 + ByHash::<u32>::EACH;
    pub(super) const HONEST: u64 = Self::EACH + Once::EACH + 24;

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> u64 {
        self.dentries.len() as u64 * Self::EACH + self.names.len() as u64 + self.once.bytes()
    }

    /// Names in directories, each counted once, however often another thing has come to stand there.
    pub(super) fn distinct(&self) -> u64 {
        self.by_hash.len() as u64
    }

    /// How many dentries there are, and bytes of names.
    pub(super) fn lens(&self) -> (usize, usize) {
        (self.dentries.len(), self.names.len())
    }

    pub(super) fn dentry(&self, number: u32) -> Option<&Dentry> {
        self.dentries.get(number as usize)
    }

    pub(super) fn find(&self, dir: u32, name: &[u8]) -> Option<u32> {
        self.probe(dir, name).1
    }

    /// The key under which `name` is or would be kept, and the dentry that is there.
    fn probe(&self, dir: u32, name: &[u8]) -> (u64, Option<u32>) {
        let mut key = self.hasher.hash_one((dir, name));
        loop {
            let Some(number) = self.by_hash.get(key) else { return (key, None) };
            match self.dentry(number) {
                Some(dentry) if dentry.parent == dir && dentry.name(&self.names) == name => return (key, Some(number)),
                _ => key = key.wrapping_add(1),
            }
        }
    }

    /// The directory that was last asked for, if `path` is its path: entries of one directory follow each other.
    pub(super) fn recent(&self, path: &[u8]) -> Option<u32> {
        self.recent.as_ref().filter(|(recent, _)| recent == path).map(|(_, dir)| *dir)
    }

    pub(super) fn set_recent(&mut self, path: &[u8], dir: u32) {
        let (mut recent, _) = self.recent.take().unwrap_or_default();
        recent.clear();
        recent.extend_from_slice(path);
        self.recent = Some((recent, dir));
    }

    /// A symlink adds so many names to a path.
    pub(super) fn walk(&self, names: usize) {
        self.walked.set(self.walked.get().saturating_add(names as u64));
    }

    /// Whether paths have led through so many names by way of symlinks that the layer is not read any further.
    pub(super) fn check_walked(&self) -> Result<(), Problem> {
        let limit = limits::WALKED_NAMES;
        let what = "names, by way of symlinks, on the paths of one layer";
        if self.walked.get() > limit { Err(Problem::TooMany { what, limit: limit as usize }) } else { Ok(()) }
    }

    /// Adds a name that the directory does not have.
    pub(super) fn insert(&mut self, dir: u32, name: &[u8], slot: Slot) -> Result<u32, Problem> {
        let (key, _) = self.probe(dir, name);
        let span = self.keep(name)?;
        let name_len = u16::try_from(name.len()).map_err(|_| Problem::NameTooLong { len: name.len() })?;
        let number = self.push(Dentry { parent: dir, name: span.start, name_len, slot })?;
        self.by_hash.insert(key, number);
        Ok(number)
    }

    /// Lets another thing stand under a name, which nothing is below.
    pub(super) fn set_slot(&mut self, number: u32, slot: Slot) {
        if let Some(dentry) = self.dentries.get_mut(number as usize) {
            dentry.slot = slot;
        }
        // It may have been a symlink on the way there.
        self.recent = None;
    }

    /// Lets another thing stand under the name of a directory; what is below the directory goes with it.
    pub(super) fn replace(&mut self, number: u32, slot: Slot) -> Result<u32, Problem> {
        let Some(old) = self.dentry(number).copied() else { return Ok(number) };
        let (key, _) = self.probe(old.parent, old.name(&self.names));
        let new = self.push(Dentry { slot, ..old })?;
        self.by_hash.insert(key, new);
        if let Some(dentry) = self.dentries.get_mut(number as usize) {
            dentry.parent = DETACHED;
        }
        self.recent = None;
        Ok(new)
    }

    fn push(&mut self, dentry: Dentry) -> Result<u32, Problem> {
        if self.dentries.len() > limits::ENTRIES {
            return Err(Problem::TooMany { what: "entries", limit: limits::ENTRIES });
        }
        self.dentries.push(dentry);
        Ok((self.dentries.len() - 1) as u32)
    }

    /// Keeps bytes in the names' arena, equal ones once.
    pub(super) fn keep(&mut self, bytes: &[u8]) -> Result<Span, Problem> {
        let too_many = || Problem::TooMany { what: "bytes of names", limit: limits::NAMES };
        let len = u16::try_from(bytes.len()).map_err(|_| too_many())?;
        let start = self.once.place(&mut self.names, bytes).ok_or_else(too_many)?;
        if self.names.len() > limits::NAMES { Err(too_many()) } else { Ok(Span { start, len }) }
    }

    /// The dentries and the names. What found names by their hash goes: it is large.
    pub(super) fn into_parts(self) -> (Vec<Dentry>, Vec<u8>) {
        (self.dentries, self.names)
    }

    /// The path of a dentry, for messages.
    pub(super) fn path(&self, number: u32) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = self.dentry(number);
        while let Some(dentry) = at.filter(|dentry| dentry.name_len > 0) {
            names.push(dentry.name(&self.names));
            at = self.dentry(dentry.parent);
        }
        names.reverse();
        names.join(&b'/')
    }
}
