//! The sets of xattrs that a layer's entries have, each different one kept once.
//!
//! ```text
//! set:    pair pair ...                      sorted by name
//! pair:   u8 name length, name, u32 value length, value
//! ```

use std::collections::HashMap;

use super::error::Problem;
use super::{limits, names};

/// All sets, by number; number 0 is the empty one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct XattrSets {
    /// Where each set but the empty one ends in `bytes`; it starts where the one before it ends.
    pub(super) ends: Vec<u32>,
    pub(super) bytes: Vec<u8>,
}

impl XattrSets {
    /// The empty set.
    pub(super) const NONE: u32 = 0;

    /// Name and value of each xattr of a set; none for a number that no set has.
    pub(super) fn set(&self, number: u32) -> Pairs<'_> {
        Pairs(self.bytes_of(number).unwrap_or_default())
    }

    fn bytes_of(&self, number: u32) -> Option<&[u8]> {
        let last = (number as usize).checked_sub(1)?;
        let start = last.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |end| *end as usize);
        self.bytes.get(start..*self.ends.get(last)? as usize)
    }

    /// Whether every set is well-formed and used to its end.
    pub(super) fn is_sound(&self) -> bool {
        let whole = |number| {
            let mut pairs = self.set(number);
            self.bytes_of(number).is_some() && pairs.by_ref().all(|(name, _)| !name.is_empty()) && pairs.0.is_empty()
        };
        let last = self.ends.last().map_or(0, |end| *end as usize);
        last == self.bytes.len() && (1..=self.ends.len()).all(|number| u32::try_from(number).is_ok_and(whole))
    }
}

/// A name and a value.
type Pair<'a> = (&'a [u8], &'a [u8]);

/// The xattrs of one set.
#[derive(Debug, Clone)]
pub(super) struct Pairs<'a>(&'a [u8]);

impl<'a> Pairs<'a> {
    fn pair(&self) -> Option<(Pair<'a>, &'a [u8])> {
        let (name_len, rest) = self.0.split_first()?;
        let (name, rest) = rest.split_at_checked(usize::from(*name_len))?;
        let (value_len, rest) = rest.split_first_chunk::<4>()?;
        let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*value_len) as usize)?;
        Some(((name, value), rest))
    }
}

impl<'a> Iterator for Pairs<'a> {
    type Item = Pair<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let (pair, rest) = self.pair()?;
        self.0 = rest;
        Some(pair)
    }
}

/// An xattr's name and value.
pub(crate) type Xattr = (Vec<u8>, Vec<u8>);

/// Gathers the sets of a layer.
#[derive(Debug, Default)]
pub(super) struct XattrBuilder {
    sets: XattrSets,
    numbers: HashMap<Box<[u8]>, u32>,
}

impl XattrBuilder {
    /// The number of the set that holds these xattrs, overlayfs's own left out. Of one name's values the last counts.
    ///
    /// # Errors
    /// Where a name or a value is impossible on Linux, or there are too many.
    pub(super) fn add(&mut self, xattrs: &mut Vec<Xattr>) -> Result<u32, Problem> {
        if xattrs.is_empty() {
            return Ok(XattrSets::NONE);
        }
        xattrs.reverse();
        xattrs.sort_by(|a, b| a.0.cmp(&b.0));
        xattrs.dedup_by(|later, kept| later.0 == kept.0);
        xattrs.retain(|(name, _)| !is_overlays_own(name));
        let bytes = encode(xattrs)?;
        if bytes.is_empty() {
            return Ok(XattrSets::NONE);
        }
        if let Some(number) = self.numbers.get(bytes.as_slice()) {
            return Ok(*number);
        }
        self.append(bytes)
    }

    /// The number of a set with these xattrs added, in place of those of the same names.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub(super) fn add_over(&mut self, set: u32, xattrs: &mut Vec<Xattr>) -> Result<u32, Problem> {
        if xattrs.is_empty() {
            return Ok(set);
        }
        let kept = self.sets.set(set).map(|(name, value)| (name.to_vec(), value.to_vec()));
        xattrs.splice(0..0, kept.collect::<Vec<_>>());
        self.add(xattrs)
    }

    fn append(&mut self, bytes: Vec<u8>) -> Result<u32, Problem> {
        let too_many = Problem::TooMany { what: "bytes of xattrs", limit: limits::XATTRS };
        let end = self.sets.bytes.len() + bytes.len();
        let (true, Ok(end), Ok(number)) =
            (end <= limits::XATTRS, u32::try_from(end), u32::try_from(self.sets.ends.len() + 1))
        else {
            return Err(too_many);
        };
        self.sets.bytes.extend_from_slice(&bytes);
        self.sets.ends.push(end);
        self.numbers.insert(bytes.into_boxed_slice(), number);
        Ok(number)
    }

    pub(super) fn finish(self) -> XattrSets {
        self.sets
    }
}

/// Whether kernel overlayfs or fuse-overlayfs would read an instruction in that xattr of a lower directory.
fn is_overlays_own(name: &[u8]) -> bool {
    [&b"trusted.overlay."[..], b"user.overlay.", b"trusted.fuseoverlayfs.", b"user.fuseoverlayfs."]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

fn encode(xattrs: &[Xattr]) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    let mut list = 0;
    for (name, value) in xattrs {
        let refused = |what| Problem::Xattr { name: names::shown(name), what };
        // A name's length has one byte here, and as many values as Linux allows (XATTR_NAME_MAX is 255).
        let name_len = u8::try_from(name.len()).ok().filter(|len| *len > 0 && !name.contains(&0));
        let name_len = name_len.ok_or_else(|| refused("a name has 1 to 255 bytes, none of them NUL"))?;
        let value_len = u32::try_from(value.len()).ok().filter(|_| value.len() <= limits::XATTR_VALUE);
        let value_len = value_len.ok_or_else(|| refused("a value has at most 65536 bytes"))?;
        list += name.len() + 1;
        if list > limits::XATTR_LIST {
            return Err(refused("the names of all take more than 65536 bytes"));
        }
        bytes.push(name_len);
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(&value_len.to_le_bytes());
        bytes.extend_from_slice(value);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(pairs: &[(&str, &[u8])]) -> Vec<Xattr> {
        pairs.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec())).collect()
    }

    #[test]
    fn equal_sets_are_kept_once_and_the_last_of_a_name_counts() {
        let mut builder = XattrBuilder::default();
        let one = builder.add(&mut list(&[("user.b", b"2"), ("user.a", b"0"), ("user.a", b"1")])).unwrap();
        let same = builder.add(&mut list(&[("user.a", b"1"), ("user.b", b"2")])).unwrap();
        let other = builder.add(&mut list(&[("user.a", b"")])).unwrap();
        assert_eq!((one, same, other), (1, 1, 2));
        let sets = builder.finish();
        assert_eq!(sets.set(1).collect::<Vec<_>>(), [(&b"user.a"[..], &b"1"[..]), (b"user.b", b"2")]);
        assert_eq!(sets.set(2).collect::<Vec<_>>(), [(&b"user.a"[..], &b""[..])]);
        assert_eq!(sets.set(0).count() + sets.set(3).count(), 0);
        assert!(sets.is_sound());
    }

    #[test]
    fn overlays_own_xattrs_never_come_from_an_image() {
        let mut builder = XattrBuilder::default();
        let mut own = list(&[
            ("trusted.overlay.opaque", b"y"),
            ("user.overlay.redirect", b"/etc"),
            ("user.fuseoverlayfs.opaque", b"y"),
        ]);
        assert_eq!(builder.add(&mut own).unwrap(), XattrSets::NONE);
        assert_eq!(builder.add(&mut list(&[("trusted.overlay", b""), ("trusted.other", b"")])).unwrap(), 1);
    }

    #[test]
    fn what_linux_cannot_hold_is_refused() {
        let refused =
            |name: &str, len: usize| XattrBuilder::default().add(&mut list(&[(name, &vec![0; len])])).is_err();
        assert!(!refused(&"x".repeat(255), 65_536));
        assert!(refused(&"x".repeat(256), 0));
        assert!(refused("user.a", 65_537));
        assert!(refused("", 1));
        assert!(refused("user.\0", 1));
        let many: Vec<_> = (0..6_000).map(|i| (format!("user.{i:07}").into_bytes(), Vec::new())).collect();
        assert!(XattrBuilder::default().add(&mut many.clone()).is_err());
    }
}
