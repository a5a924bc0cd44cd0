//! Paths as the kernel resolves them below a root: symlinks of the layer are followed, and none leads out of it.
//!
//! ```text
//! usr/lib/     lib -> usr/lib     lib/new  is  usr/lib/new
//! ```

use super::paths::{Paths, Slot};
use crate::index::entries::{Node, NodeKind};
use crate::index::error::Problem;
use crate::index::error::shown;
use crate::index::{limits, names};

/// Where the path of a directory leads.
#[derive(Debug)]
pub(super) struct Place<'a> {
    /// The last directory on the way that the layer has.
    pub(super) dir: u32,
    /// The names below it that the layer does not have.
    pub(super) missing: Vec<&'a [u8]>,
    pub(super) through_symlinks: bool,
}

/// The layer as it is unpacked so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unpacked<'a> {
    pub(super) paths: &'a Paths,
    pub(super) nodes: &'a [Node],
}

impl<'a> Unpacked<'a> {
    /// Follows the path of a directory.
    pub(super) fn directory(self, path: &'a [u8]) -> Result<Place<'a>, Problem> {
        let mut place = Place { dir: Paths::ROOT, missing: Vec::new(), through_symlinks: false };
        let mut left: Vec<&[u8]> = path.rsplit(is_slash).collect();
        let (mut symlinks, mut added) = (0, 0_usize);
        while let Some(name) = left.pop() {
            let Some(target) = self.enter(&mut place, name)? else { continue };
            symlinks += 1;
            if symlinks > limits::SYMLINKS {
                return Err(Problem::TooManySymlinks { limit: limits::SYMLINKS });
            }
            let names = target.split(is_slash).count();
            self.paths.walk(names);
            self.paths.check_walked()?;
            added = added.saturating_add(names);
            if added > limits::SYMLINK_NAMES {
                return Err(Problem::LongWay { limit: limits::SYMLINK_NAMES });
            }
            if target.starts_with(b"/") {
                place.dir = Paths::ROOT;
            }
            place.through_symlinks = true;
            left.extend(target.rsplit(is_slash));
        }
        Ok(place)
    }

    /// Goes to what a directory has under a name. Gives the target where that is a symlink.
    fn enter(self, place: &mut Place<'a>, name: &'a [u8]) -> Result<Option<&'a [u8]>, Problem> {
        match name {
            b"" | b"." => return Ok(None),
            b".." => {
                self.leave(place);
                return Ok(None);
            }
            _ => {}
        }
        let found = if place.missing.is_empty() { self.paths.find(place.dir, name) } else { None };
        match found.map(|found| (found, self.kind(found))) {
            None => place.missing.push(name),
            Some((found, Some(NodeKind::Dir { .. }))) => place.dir = found,
            Some((_, Some(NodeKind::Symlink(target)))) => return Ok(Some(target.of(&self.paths.names))),
            Some((found, _)) => return Err(Problem::ParentNotADirectory(shown(&self.paths.path(found)))),
        }
        Ok(None)
    }

    /// The entry at a cleaned path, hidden names included; a symlink there is not followed. Without one, the path that only a
    /// lower layer can have.
    pub(super) fn entry(self, path: &[u8]) -> Result<u32, Vec<u8>> {
        let Some((dir, name)) = names::split(path) else { return Ok(Paths::ROOT) };
        let Ok(place) = self.directory(dir) else { return Err(path.to_vec()) };
        let found = if place.missing.is_empty() { self.paths.find(place.dir, name) } else { None };
        found.ok_or_else(|| self.path_in(&place, name))
    }

    /// The path of a name in a directory.
    pub(super) fn path_in(self, place: &Place<'_>, name: &[u8]) -> Vec<u8> {
        let mut path = self.paths.path(place.dir);
        for name in place.missing.iter().copied().chain([name]) {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
        path
    }

    /// Goes one directory up; that of the root is the root.
    fn leave(self, place: &mut Place<'_>) {
        if place.missing.pop().is_none() && place.dir != Paths::ROOT {
            place.dir = self.paths.dentry(place.dir).map_or(Paths::ROOT, |dentry| dentry.parent);
        }
    }

    fn kind(self, dentry: u32) -> Option<NodeKind> {
        let Slot::Node(node) = self.paths.dentry(dentry)?.slot else { return None };
        self.nodes.get(node as usize).map(|node| node.kind)
    }
}

fn is_slash(byte: &u8) -> bool {
    *byte == b'/'
}
