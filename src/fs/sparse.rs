//! Holes in files: how much of a file is allocated, and SEEK_DATA and SEEK_HOLE (lseek(2)).

use super::errno::Refused;
use super::tree::{Attr, Ino, Type};
use super::view::{ReadError, View};
use crate::blob::ByteRange;

/// What a seek looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seek {
    Data,
    /// The end of a file is one.
    Hole,
}

impl Seek {
    /// The answer for a file of that size without holes.
    pub(super) fn in_data(self, offset: u64, size: u64) -> Result<u64, Refused> {
        match self {
            _ if offset >= size => Err(Refused::NoMoreData),
            Self::Data => Ok(offset),
            Self::Hole => Ok(size),
        }
    }
}

impl View {
    pub(super) fn has_holes(&self) -> bool {
        self.holes().iter().any(|holes| !holes.is_empty())
    }

    /// The bytes of a node that are no holes.
    pub(super) fn allocated(&self, attr: &Attr) -> u64 {
        let extent = Some(attr.ino).filter(|_| attr.kind == Type::File).and_then(|ino| self.tree().extent(ino));
        let holes = extent.and_then(|extent| {
            let file = ByteRange::at(extent.start, extent.len)?;
            Some(self.holes().get(extent.layer)?.bytes_in(file))
        });
        attr.size.saturating_sub(holes.unwrap_or(0))
    }

    /// The bytes of all files that are holes.
    pub(super) fn hole_bytes(&self) -> u64 {
        if !self.has_holes() {
            return 0;
        }
        let attrs = (1..=self.tree().totals().0).filter_map(|number| self.tree().attr(Ino::new(number)?));
        attrs.map(|attr| attr.size.saturating_sub(self.allocated(&attr))).fold(0, u64::saturating_add)
    }

    /// Where the next data or hole of a file starts, from an offset on.
    pub(super) fn seek(&self, ino: Ino, offset: u64, wanted: Seek) -> Result<u64, Refused> {
        let extent = self.tree().extent(ino).ok_or(ReadError::NotAFile { ino: ino.get() })?;
        let Some(holes) = self.holes().get(extent.layer) else { return wanted.in_data(offset, extent.len) };
        if offset >= extent.len {
            return Err(Refused::NoMoreData);
        }
        let at = extent.start.saturating_add(offset);
        let found = match (wanted, holes.from(at)) {
            (Seek::Data, Some(hole)) if hole.start <= at => hole.end,
            (Seek::Data, _) => at,
            (Seek::Hole, Some(hole)) => hole.start.max(at),
            (Seek::Hole, None) => u64::MAX,
        };
        let found = found.saturating_sub(extent.start);
        match wanted {
            Seek::Data if found >= extent.len => Err(Refused::NoMoreData),
            Seek::Data | Seek::Hole => Ok(found.min(extent.len)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fs::fake::{FakeLayer, Ramp, Spec, What};
    use crate::fs::overlay::merge;
    use crate::fs::view::LastSymlink;
    use crate::index::Holes;

    const K: u64 = 4096;

    /// Two files: `a` has data, a hole and data of a block each; `b` ends in a hole that the layer file ends in, too.
    fn view() -> View {
        // Each entry of such a layer has one block.
        let spec = Spec::default().with("a", What::File { size: 3 * K }).with("aa", What::Fifo).with("ab", What::Fifo);
        let spec = spec.with("b", What::File { size: 2 * K - 1 });
        let tree = merge(&[FakeLayer::new(&spec)], None).unwrap();
        let start = |name: &[u8]| tree.extent(tree.lookup(Ino::ROOT, name).unwrap()).unwrap().start;
        let (a, b) = (start(b"a"), start(b"b"));
        let (a, b) = (a + K..a + 2 * K, b + K..b + 2 * K);
        let holes = [a, b].map(|hole| ByteRange { start: hole.start, end: hole.end });
        View::new(tree, Arc::new(Ramp::default())).with_holes(vec![Holes::of(holes)])
    }

    #[test]
    fn seeks_find_what_comes_next() {
        let view = view();
        let seek = |name: &[u8], offset, wanted| {
            view.seek(view.resolve(name, LastSymlink::Keep).unwrap(), offset, wanted).ok()
        };
        let (data, hole) = (
            |name: &[u8], offset| seek(name, offset, Seek::Data),
            |name: &[u8], offset| seek(name, offset, Seek::Hole),
        );
        assert_eq!(
            [0, K - 1, K, 2 * K - 1, 2 * K, 3 * K - 1].map(|at| data(b"b", at)),
            [Some(0), Some(K - 1), None, None, None, None]
        );
        assert_eq!([0, K, K + 1, 2 * K - 2].map(|at| hole(b"b", at)), [Some(K), Some(K), Some(K + 1), Some(2 * K - 2)]);
        assert_eq!([0, K - 1, K, K + 1].map(|at| data(b"a", at)), [Some(0), Some(K - 1), Some(2 * K), Some(2 * K)]);
        assert_eq!([0, K, 2 * K].map(|at| hole(b"a", at)), [Some(K), Some(K), Some(3 * K)]);
        assert_eq!((hole(b"a", 3 * K), data(b"a", u64::MAX)), (None, None), "past the end");
    }

    #[test]
    fn holes_are_not_allocated() {
        let view = view();
        let allocated = |name: &[u8]| {
            let attr = view.tree().attr(view.resolve(name, LastSymlink::Keep).unwrap()).unwrap();
            view.allocated(&attr)
        };
        assert_eq!([&b"a"[..], b"b", b""].map(allocated), [2 * K, K, 0]);
        assert_eq!(view.totals().blocks, 3);
    }
}
