//! The sets of xattrs that a layer's entries have, each different one kept once, and each different name and value.
//!
//! ```text
//! sets    end of each in the pairs
//! pairs   name value, name value ...        sorted by name within a set
//! texts   names and values
//! ```
//!
//! Encoded, a set is its pairs one after the other: u8 name length, name, u32 value length, value.

use crate::index::error::shown;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};

use super::error::Problem;
use super::limits;
use super::once::{ByHash, Once};

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

    /// Writes all encoded sets. Xattr by xattr: a set takes little where its values are alike, and much of it is written.
    pub(super) fn write_encoded(&self, out: &mut impl Write) -> io::Result<()> {
        (1..).take(self.ends.len()).try_for_each(|set| self.write_set(set, out))
    }

    fn write_set(&self, set: u32, out: &mut impl Write) -> io::Result<()> {
        self.set(set).try_for_each(|(name, value)| {
            out.write_all(&[name.len() as u8])?;
            out.write_all(name)?;
            out.write_all(&(value.len() as u32).to_le_bytes())?;
            out.write_all(value)
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

/// An xattr's name and value.
pub(crate) type Xattr = (Vec<u8>, Vec<u8>);

/// Bytes for a set besides its pairs: its end, and its place in the table of numbers.
const EACH_SET: u64 = 4 + ByHash::<u32>::EACH;

/// Gathers the sets of a layer.
#[derive(Debug, Default)]
pub(super) struct XattrBuilder {
    sets: XattrSets,
    /// Sets by the hashes of their pairs. Where two hash alike, the next free number is taken; the hash is keyed, so nobody can make many do so.
    numbers: ByHash<u32>,
    hasher: RandomState,
    once: Once,
    /// Bytes of all sets when they are encoded.
    encoded: usize,
    /// Xattrs of all entries, however often one has come.
    given: usize,
}

impl XattrBuilder {
    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> u64 {
        let XattrSets { ends, pairs, texts } = &self.sets;
        (texts.len() + pairs.len() * size_of::<Pair>()) as u64 + ends.len() as u64 * EACH_SET + self.once.bytes()
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
        self.add_over(XattrSets::NONE, xattrs)
    }

    /// The number of a set with these xattrs added, in place of those of the same names.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub(super) fn add_over(&mut self, set: u32, xattrs: &mut Vec<Xattr>) -> Result<u32, Problem> {
        if xattrs.is_empty() {
            return Ok(set);
        }
        let there = self.sets.pairs_of(set).len();
        self.give(xattrs.len() + there)?;
        xattrs.reverse();
        xattrs.sort_by(|a, b| a.0.cmp(&b.0));
        xattrs.dedup_by(|later, kept| later.0 == kept.0);
        xattrs.retain(|(name, _)| !is_overlays_own(name));
        check(xattrs)?;
        let pairs = xattrs.iter().map(|(name, value)| self.pair(name, value)).collect::<Option<Vec<_>>>();
        let pairs = pairs.ok_or(TOO_MANY)?;
        self.number(&if there == 0 { pairs } else { self.merged(set, pairs)? })
    }

    /// So many more xattrs have come, each of which takes time.
    fn give(&mut self, xattrs: usize) -> Result<(), Problem> {
        self.given = self.given.saturating_add(xattrs);
        let limit = limits::XATTRS_GIVEN;
        if self.given > limit { Err(Problem::TooMany { what: "xattrs of all entries", limit }) } else { Ok(()) }
    }

    /// The pairs of a set and these, sorted by name as both are; of one name these count.
    fn merged(&self, set: u32, over: Vec<Pair>) -> Result<Vec<Pair>, Problem> {
        let XattrSets { texts, .. } = &self.sets;
        let mut kept = self.sets.pairs_of(set).iter().copied().peekable();
        let mut all = Vec::with_capacity(kept.len() + over.len());
        for pair in over {
            while let Some(before) = kept.next_if(|kept| kept.name(texts) < pair.name(texts)) {
                all.push(before);
            }
            let _replaced = kept.next_if(|kept| kept.name(texts) == pair.name(texts));
            all.push(pair);
        }
        all.extend(kept);
        let list = all.iter().map(|pair| usize::from(pair.name_len) + 1).sum::<usize>();
        let last = all.last().map_or(&[][..], |pair| pair.name(texts));
        if list > limits::XATTR_LIST { Err(long_list(last)) } else { Ok(all) }
    }

    /// What a set has by a name.
    pub(super) fn value(&self, set: u32, name: &[u8]) -> Option<&[u8]> {
        self.sets.set(set).find_map(|(found, value)| (found == name).then_some(value))
    }

    /// Takes a set of so many bytes as it was encoded. `None` where it was not.
    pub(super) fn add_encoded(&mut self, from: &mut impl Read, len: u64) -> Option<()> {
        let (mut pairs, mut name, mut value, mut left) = (Vec::new(), Vec::new(), Vec::new(), len);
        while left > 0 {
            let (mut name_len, mut value_len) = ([0; 1], [0; 4]);
            from.read_exact(&mut name_len).ok()?;
            let name_len = usize::from(u8::from_le_bytes(name_len));
            name.resize(name_len, 0);
            from.read_exact(&mut name).ok()?;
            from.read_exact(&mut value_len).ok()?;
            let value_len = u32::from_le_bytes(value_len) as usize;
            if name_len == 0 || value_len > limits::XATTR_VALUE {
                return None;
            }
            value.resize(value_len, 0);
            from.read_exact(&mut value).ok()?;
            left = left.checked_sub((1 + name_len + 4 + value_len) as u64)?;
            pairs.push(self.pair(&name, &value)?);
        }
        self.append(&pairs).ok().map(drop)
    }

    /// `None` where there are too many bytes of them.
    fn pair(&mut self, name: &[u8], value: &[u8]) -> Option<Pair> {
        let texts = &mut self.sets.texts;
        let (name_len, value_len) = (u8::try_from(name.len()).ok()?, u32::try_from(value.len()).ok()?);
        Some(Pair { name: self.once.place(texts, name)?, name_len, value: self.once.place(texts, value)?, value_len })
    }

    fn number(&mut self, pairs: &[Pair]) -> Result<u32, Problem> {
        if pairs.is_empty() {
            return Ok(XattrSets::NONE);
        }
        let mut key = self.hasher.hash_one(pairs);
        while let Some(number) = self.numbers.get(key) {
            if self.sets.pairs_of(number) == pairs {
                return Ok(number);
            }
            key = key.wrapping_add(1);
        }
        let number = self.append(pairs)?;
        self.numbers.insert(key, number);
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
        let refused = |what| Problem::Xattr { name: shown(name), what };
        // A name's length has one byte here, and as many values as Linux allows (XATTR_NAME_MAX is 255).
        if !(1..=255).contains(&name.len()) || name.contains(&0) {
            return Err(refused("a name has 1 to 255 bytes, none of them NUL"));
        }
        if value.len() > limits::XATTR_VALUE {
            return Err(refused("a value has at most 65536 bytes"));
        }
        list += name.len() + 1;
        if list > limits::XATTR_LIST {
            return Err(long_list(name));
        }
    }
    Ok(())
}

fn long_list(name: &[u8]) -> Problem {
    Problem::Xattr { name: shown(name), what: "the names of all take more than 65536 bytes" }
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
    fn a_set_is_added_to_and_the_last_of_a_name_counts() {
        let mut builder = XattrBuilder::default();
        let one = builder.add(&mut list(&[("user.b", b"1"), ("user.d", b"1"), ("user.f", b"1")])).unwrap();
        let over = builder.add_over(one, &mut list(&[("user.g", b"2"), ("user.d", b"2"), ("user.a", b"2")])).unwrap();
        let own = builder.add_over(over, &mut list(&[("user.overlay.opaque", b"y")])).unwrap();
        assert_eq!((own, builder.add_over(over, &mut Vec::new()).unwrap()), (over, over));
        let long = "x".repeat(250);
        let many = (0..262).map(|number| (format!("{long}{number:04}").into_bytes(), Vec::new())).collect::<Vec<_>>();
        let (some, rest) = many.split_at(200);
        let some = builder.add_over(over, &mut some.to_vec()).unwrap();
        assert!(builder.add_over(some, &mut rest.to_vec()).is_err(), "what listxattr cannot list");
        let sets = builder.finish();
        let expected: [(&[u8], &[u8]); 5] =
            [(b"user.a", b"2"), (b"user.b", b"1"), (b"user.d", b"2"), (b"user.f", b"1"), (b"user.g", b"2")];
        assert_eq!(sets.set(over).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_set_whose_values_are_alike_is_encoded_and_decoded_piece_by_piece() {
        let (mut builder, value, mut set) = (XattrBuilder::default(), vec![7; 60_000], XattrSets::NONE);
        for link in 0..150 {
            set = builder.add_over(set, &mut list(&[(&format!("user.{link:03}"), &value)])).unwrap();
        }
        assert!(builder.bytes() < 4 << 20, "{}", builder.bytes());
        let mut sets = builder.finish();
        // Only the last of them: each is as long as all before it.
        let pairs = sets.pairs_of(set).to_vec();
        (sets.ends, sets.pairs) = (vec![pairs.len() as u32], pairs);
        /// What is written at once is no more than a value.
        struct Pieces(usize);
        impl Write for Pieces {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                assert!(bytes.len() <= 60_000);
                self.0 += bytes.len();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut pieces = Pieces(0);
        sets.write_encoded(&mut pieces).unwrap();
        assert_eq!(Some(pieces.0 as u32), sets.encoded_ends().last());
    }

    #[test]
    fn xattrs_that_only_take_time_have_an_end() {
        let mut builder = XattrBuilder { given: limits::XATTRS_GIVEN - 1, ..XattrBuilder::default() };
        assert!(builder.add(&mut list(&[("user.a", b"1")])).is_ok());
        assert!(builder.add(&mut list(&[("user.a", b"1")])).is_err());
    }

    #[test]
    fn encoded_sets_come_back_and_others_do_not() {
        let mut builder = XattrBuilder::default();
        builder.add(&mut list(&[("user.b", b"2"), ("user.a", b"0")])).unwrap();
        builder.add(&mut list(&[("user.a", b"")])).unwrap();
        let sets = builder.finish();
        let encoded = [1, 2].map(|set| {
            let mut bytes = Vec::new();
            sets.write_set(set, &mut bytes).unwrap();
            bytes
        });
        let ends: Vec<_> = sets.encoded_ends().map(|end| end as usize).collect();
        assert_eq!(ends, [encoded[0].len(), encoded[0].len() + encoded[1].len()]);
        let of = |builder: &mut XattrBuilder, set: &[u8]| builder.add_encoded(&mut &set[..], set.len() as u64);
        let mut again = XattrBuilder::default();
        assert!(encoded.iter().all(|set| of(&mut again, set).is_some()));
        assert_eq!(again.finish(), sets);
        for cut in 1..encoded[0].len() {
            let is_pair = cut == encoded[1].len() + 1;
            assert_eq!(of(&mut XattrBuilder::default(), &encoded[0][..cut]).is_some(), is_pair, "{cut}");
        }
        assert_eq!(of(&mut XattrBuilder::default(), b"\0\0\0\0\0"), None, "no name");
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
