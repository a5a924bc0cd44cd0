//! The sets of xattrs that a layer's entries have, each different one kept once, and each different name and value.
//!
//! ```text
//! sets    end of each in the pairs
//! pairs   name value, name value ...        sorted by name within a set
//! texts   names and values
//! ```
//!
//! Encoded, a set is its pairs one after the other: u8 name length, name, u32 value length, value.

use std::collections::HashMap;

use super::error::Problem;
use super::once::Once;
use super::{limits, names};

/// All sets, by number; number 0 is the empty one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct XattrSets {
    /// Where each set but the empty one ends in `pairs`; it starts where the one before it ends.
    ends: Vec<u32>,
    pairs: Vec<Pair>,
    texts: Vec<u8>,
}

/// A name and a value in the texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Pair {
    name: u32,
    name_len: u8,
    value: u32,
    value_len: u32,
}

impl XattrSets {
    /// The empty set.
    pub(super) const NONE: u32 = 0;

    /// How many sets there are besides the empty one.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Name and value of each xattr of a set; none for a number that no set has.
    pub(super) fn set(&self, number: u32) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.pairs_of(number).iter().map(|pair| (pair.name(&self.texts), pair.value(&self.texts)))
    }

    fn pairs_of(&self, number: u32) -> &[Pair] {
        let Some(last) = (number as usize).checked_sub(1) else { return &[] };
        let start = last.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |end| *end as usize);
        let end = self.ends.get(last).map_or(0, |end| *end as usize);
        self.pairs.get(start..end).unwrap_or_default()
    }

    /// Where each set but the empty one ends when they are encoded.
    pub(super) fn encoded_ends(&self) -> impl Iterator<Item = u32> {
        let lens = (1..).take(self.ends.len()).map(|set| self.pairs_of(set).iter().map(Pair::encoded_len).sum::<u32>());
        lens.scan(0, |end: &mut u32, len| {
            *end = end.saturating_add(len);
            Some(*end)
        })
    }

    /// Each encoded set.
    pub(super) fn encoded(&self) -> impl Iterator<Item = Vec<u8>> {
        (1..).take(self.ends.len()).map(|set| {
            self.set(set).fold(Vec::new(), |mut bytes, (name, value)| {
                bytes.push(name.len() as u8);
                bytes.extend_from_slice(name);
                bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
                bytes.extend_from_slice(value);
                bytes
            })
        })
    }
}

impl Pair {
    fn name(self, texts: &[u8]) -> &[u8] {
        let start = self.name as usize;
        texts.get(start..start + usize::from(self.name_len)).unwrap_or_default()
    }

    fn value(self, texts: &[u8]) -> &[u8] {
        let start = self.value as usize;
        texts.get(start..start + self.value_len as usize).unwrap_or_default()
    }

    /// The builder keeps the sum of these within [`limits::XATTRS`].
    fn encoded_len(&self) -> u32 {
        1 + u32::from(self.name_len) + 4 + self.value_len
    }
}

/// Name and value of the first pair of an encoded set, and the rest of it.
fn decode(set: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (name_len, rest) = set.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(*name_len)).filter(|(name, _)| !name.is_empty())?;
    let (value_len, rest) = rest.split_first_chunk::<4>()?;
    let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*value_len) as usize)?;
    Some((name, value, rest))
}

/// An xattr's name and value.
pub(crate) type Xattr = (Vec<u8>, Vec<u8>);

/// Bytes for a set besides its pairs: its end, and its place in the table of numbers.
const EACH_SET: u64 = 4 + 72;

/// Gathers the sets of a layer.
#[derive(Debug, Default)]
pub(super) struct XattrBuilder {
    sets: XattrSets,
    numbers: HashMap<Box<[Pair]>, u32>,
    /// Pairs in the keys of `numbers`.
    kept: usize,
    once: Once,
    /// Bytes of all sets when they are encoded.
    encoded: usize,
}

impl XattrBuilder {
    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> u64 {
        let XattrSets { ends, pairs, texts } = &self.sets;
        (texts.len() + (pairs.len() + self.kept) * size_of::<Pair>()) as u64
            + ends.len() as u64 * EACH_SET
            + self.once.bytes()
    }

    /// Bytes that the sets alone take.
    pub(super) fn finished_bytes(&self) -> u64 {
        let XattrSets { ends, pairs, texts } = &self.sets;
        (texts.len() + pairs.len() * size_of::<Pair>() + ends.len() * size_of::<u32>()) as u64
    }

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
        check(xattrs)?;
        let pairs = xattrs.iter().map(|(name, value)| self.pair(name, value)).collect::<Option<Vec<_>>>();
        self.number(pairs.ok_or(TOO_MANY)?)
    }

    /// The number of a set with these xattrs added, in place of those of the same names.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub(super) fn add_over(&mut self, set: u32, xattrs: &mut Vec<Xattr>) -> Result<u32, Problem> {
        if xattrs.is_empty() {
            return Ok(set);
        }
        let kept = self.sets.set(set).map(|(name, value)| (name.to_vec(), value.to_vec())).collect::<Vec<_>>();
        xattrs.splice(0..0, kept);
        self.add(xattrs)
    }

    /// What a set has by a name.
    pub(super) fn value(&self, set: u32, name: &[u8]) -> Option<&[u8]> {
        self.sets.set(set).find_map(|(found, value)| (found == name).then_some(value))
    }

    /// Takes a set as it was encoded. `None` where it was not.
    pub(super) fn add_encoded(&mut self, set: &[u8]) -> Option<()> {
        let (mut pairs, mut rest) = (Vec::new(), set);
        while !rest.is_empty() {
            let (name, value);
            (name, value, rest) = decode(rest)?;
            pairs.push(self.pair(name, value)?);
        }
        self.append(&pairs).ok().map(drop)
    }

    /// `None` where there are too many bytes of them.
    fn pair(&mut self, name: &[u8], value: &[u8]) -> Option<Pair> {
        let texts = &mut self.sets.texts;
        let (name_len, value_len) = (u8::try_from(name.len()).ok()?, u32::try_from(value.len()).ok()?);
        Some(Pair { name: self.once.place(texts, name)?, name_len, value: self.once.place(texts, value)?, value_len })
    }

    fn number(&mut self, pairs: Vec<Pair>) -> Result<u32, Problem> {
        if pairs.is_empty() {
            return Ok(XattrSets::NONE);
        }
        if let Some(number) = self.numbers.get(pairs.as_slice()) {
            return Ok(*number);
        }
        let number = self.append(&pairs)?;
        self.kept += pairs.len();
        self.numbers.insert(pairs.into_boxed_slice(), number);
        Ok(number)
    }

    fn append(&mut self, pairs: &[Pair]) -> Result<u32, Problem> {
        self.encoded += pairs.iter().map(|pair| pair.encoded_len() as usize).sum::<usize>();
        let end = u32::try_from(self.sets.pairs.len() + pairs.len());
        let (true, Ok(end), Ok(number)) =
            (self.encoded <= limits::XATTRS, end, u32::try_from(self.sets.ends.len() + 1))
        else {
            return Err(TOO_MANY);
        };
        self.sets.pairs.extend_from_slice(pairs);
        self.sets.ends.push(end);
        Ok(number)
    }

    pub(super) fn finish(self) -> XattrSets {
        self.sets
    }
}

const TOO_MANY: Problem = Problem::TooMany { what: "bytes of xattrs", limit: limits::XATTRS };

/// Whether kernel overlayfs or fuse-overlayfs would read an instruction in that xattr of a lower directory.
fn is_overlays_own(name: &[u8]) -> bool {
    [&b"trusted.overlay."[..], b"user.overlay.", b"trusted.fuseoverlayfs.", b"user.fuseoverlayfs."]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// Whether Linux could hold these xattrs of one file.
fn check(xattrs: &[Xattr]) -> Result<(), Problem> {
    let mut list = 0;
    for (name, value) in xattrs {
        let refused = |what| Problem::Xattr { name: names::shown(name), what };
        // A name's length has one byte here, and as many values as Linux allows (XATTR_NAME_MAX is 255).
        if !(1..=255).contains(&name.len()) || name.contains(&0) {
            return Err(refused("a name has 1 to 255 bytes, none of them NUL"));
        }
        if value.len() > limits::XATTR_VALUE {
            return Err(refused("a value has at most 65536 bytes"));
        }
        list += name.len() + 1;
        if list > limits::XATTR_LIST {
            return Err(refused("the names of all take more than 65536 bytes"));
        }
    }
    Ok(())
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
    }

    #[test]
    fn equal_values_are_kept_once_whatever_set_they_are_in() {
        let mut builder = XattrBuilder::default();
        let value = [7; 5000];
        for file in 0..100 {
            builder.add(&mut list(&[("user.big", &value), (&format!("user.{file}"), b"")])).unwrap();
        }
        let sets = builder.finish();
        assert_eq!(sets.len(), 100);
        assert_eq!(sets.texts.len(), "user.big".len() + value.len() + 10 * "user.0".len() + 90 * "user.10".len());
        let of = sets.set(57).collect::<Vec<_>>();
        assert_eq!(of, [(&b"user.56"[..], &b""[..]), (b"user.big", &value)]);
    }

    #[test]
    fn encoded_sets_come_back_and_others_do_not() {
        let mut builder = XattrBuilder::default();
        builder.add(&mut list(&[("user.b", b"2"), ("user.a", b"0")])).unwrap();
        builder.add(&mut list(&[("user.a", b"")])).unwrap();
        let sets = builder.finish();
        let encoded: Vec<_> = sets.encoded().collect();
        let ends: Vec<_> = sets.encoded_ends().map(|end| end as usize).collect();
        assert_eq!(ends, [encoded[0].len(), encoded[0].len() + encoded[1].len()]);
        let mut again = XattrBuilder::default();
        assert!(encoded.iter().all(|set| again.add_encoded(set).is_some()));
        assert_eq!(again.finish(), sets);
        for cut in 1..encoded[0].len() {
            let is_pair = cut == encoded[1].len() + 1;
            assert_eq!(XattrBuilder::default().add_encoded(&encoded[0][..cut]).is_some(), is_pair, "{cut}");
        }
        assert_eq!(XattrBuilder::default().add_encoded(b"\0\0\0\0\0"), None, "no name");
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
