//! What is known of the files of an image: where their contents lie, and which lie near each other.

use std::ops::Range;

use crate::blob::ByteRange;

/// Bytes of the longest path that is looked for (Linux's PATH_MAX): images may say longer ones, and there is nothing to be found by them.
pub const LONGEST_PATH: usize = 4096;

/// A file or directory, by the number that its tree gives it.
pub type Node = u64;

/// Where the contents of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// 0 is the lowest.
    pub layer: usize,
    /// In that layer's layer file.
    pub range: ByteRange,
}

/// A tree of files, as far as guessing needs it.
///
/// Nodes are numbered from 1, the root, breadth first: the children of a directory follow those of the one before it, except where one is
/// another name of an earlier node.
pub trait Files: Send + Sync {
    /// How many nodes there are.
    fn count(&self) -> u64;
    /// `None` for what is no regular file.
    fn place(&self, node: Node) -> Option<Place>;
    /// The directory that holds a directory; `None` for what is none.
    fn parent(&self, dir: Node) -> Option<Node>;
    /// With their names, in the order of these.
    fn children(&self, dir: Node) -> Box<dyn Iterator<Item = (&[u8], Node)> + '_>;
    /// What a path of at most [`LONGEST_PATH`] bytes leads to, from a directory on, symlinks followed.
    fn find(&self, dir: Node, path: &[u8]) -> Option<Node>;
}

/// What lies near what: made once, when something is missed for the first time, or the image's command is looked at. 4 bytes a file, and 8 a directory.
pub(super) struct Neighbourhood {
    /// The files of each layer in the order of its layer file, which is that of the blob.
    by_place: Vec<Vec<u32>>,
    /// Each directory that has children of its own, with the number of the first: ascending in both.
    dirs: Vec<(u32, u32)>,
}

impl Neighbourhood {
    pub(super) fn of(files: &dyn Files, layers: usize) -> Self {
        let mut by_place = vec![Vec::new(); layers];
        let mut dirs = Vec::new();
        let mut newest = 1;
        // A tree numbers its nodes by 32 bits.
        for number in 1..=u32::try_from(files.count()).unwrap_or(u32::MAX) {
            if let Some(place) = files.place(number.into()) {
                by_place.get_mut(place.layer).into_iter().for_each(|files| files.push((place.range.start, number)));
            } else if files.parent(number.into()).is_some() {
                let own = files.children(number.into()).map(|(_, child)| child).filter(|child| *child > newest);
                let (first, last) =
                    own.fold((u64::MAX, newest), |(first, last), child| (first.min(child), last.max(child)));
                newest = last;
                dirs.extend(u32::try_from(first).ok().map(|first| (first, number)));
            }
        }
        let in_order = |mut files: Vec<(u64, u32)>| {
            files.sort_unstable();
            files.into_iter().map(|(_, number)| number).collect()
        };
        Self { by_place: by_place.into_iter().map(in_order).collect(), dirs }
    }

    /// The directory of a file; of one with several names, the first's.
    pub(super) fn dir(&self, file: Node) -> Option<Node> {
        let after = self.dirs.partition_point(|(first, _)| u64::from(*first) <= file);
        self.dirs.get(after.checked_sub(1)?).map(|(_, dir)| u64::from(*dir))
    }

    /// The directories that have children.
    pub(super) fn dirs(&self) -> impl Iterator<Item = Node> {
        self.dirs.iter().map(|(_, dir)| u64::from(*dir))
    }

    /// The files behind and before a file in the blob, the nearest first.
    pub(super) fn beside(&self, files: &dyn Files, file: Node) -> [Vec<Node>; 2] {
        let Some(place) = files.place(file) else { return [Vec::new(), Vec::new()] };
        let all = self.by_place.get(place.layer).map_or(&[][..], Vec::as_slice);
        let start = |number: &u32| files.place((*number).into()).map_or(0, |place| place.range.start);
        let at = all.partition_point(|number| start(number) < place.range.start);
        let part = |range: Range<usize>| all.get(range).unwrap_or_default().iter().map(|number| u64::from(*number));
        let after = at.saturating_add(1);
        [
            part(after.min(all.len())..after.saturating_add(FAR).min(all.len())).collect(),
            part(at.saturating_sub(FAR)..at.min(all.len())).rev().collect(),
        ]
    }

    /// Whether `dir` is `above`, or lies below it.
    pub(super) fn is_below(files: &dyn Files, mut dir: Node, above: Node) -> bool {
        // A directory has a greater number than the one that holds it.
        while dir > above {
            match files.parent(dir) {
                Some(parent) if parent < dir => dir = parent,
                _ => return false,
            }
        }
        dir == above
    }
}

/// How many files are looked at on either side of one.
const FAR: usize = 256;
