//! The TOC's JSON as a stream: one entry alive at a time, never a tree of values.
//!
//! stargz, eStargz (containerd/stargz-snapshotter docs/estargz.md, v0.15) and zstd:chunked (containers/storage) share it. Keys
//! are matched without regard to case, as podman does; unknown ones are skipped. What is wrong with an entry is remembered and
//! reported when the whole of it was read, so that the message can name it: its name may come last.

mod entry;
mod value;

use std::cell::Cell;
use std::fmt;
use std::io::{BufReader, Read};
use std::rc::Rc;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

pub(crate) use self::entry::{EntryType, TocEntry};
use self::value::{Skipped, Value, ValueSeed};
use super::error::{Problem, Rejected};
use super::limits;

/// Parses a TOC and hands each entry to `take`.
///
/// Reads `json` to its end where it is well-formed. Memory is bounded by [`limits::ENTRY_JSON`].
pub(crate) fn parse(
    json: impl Read,
    take: &mut dyn FnMut(&mut TocEntry) -> Result<(), Rejected>,
) -> Result<(), Rejected> {
    let budget = Rc::new(Cell::new(limits::ENTRY_JSON));
    let reader = BufReader::with_capacity(READ_SIZE, Budgeted { inner: json, left: Rc::clone(&budget) });
    let mut deserializer = serde_json::Deserializer::from_reader(reader);
    let mut toc = Toc { take, budget, entry: TocEntry::default(), rejected: None };
    let parsed = deserializer.deserialize_map(TocVisitor(&mut toc)).and_then(|()| deserializer.end());
    match (toc.rejected, parsed) {
        (Some(rejected), _) => Err(rejected),
        (None, Ok(())) => Ok(()),
        (None, Err(error)) if toc.entry.raw_name().is_empty() => Err(Problem::Json(error).into()),
        (None, Err(error)) => Err(Rejected::entry(toc.entry.raw_name(), Problem::Json(error))),
    }
}

const READ_SIZE: usize = 64 << 10;

/// A reader that gives at most `left` more bytes; the parser refills it after each entry, so that no single value can be huge.
struct Budgeted<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Budgeted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let got = self.inner.read(buffer)?;
        match self.left.get().checked_sub(got as u64) {
            Some(left) => self.left.set(left),
            None => return Err(std::io::Error::other("an entry or a value of more than 4 MiB")),
        }
        Ok(got)
    }
}

struct Toc<'a> {
    take: &'a mut dyn FnMut(&mut TocEntry) -> Result<(), Rejected>,
    budget: Rc<Cell<u64>>,
    /// The entry at hand; its strings are used again for the next.
    entry: TocEntry,
    rejected: Option<Rejected>,
}

impl Toc<'_> {
    fn reject<E: de::Error>(&mut self, rejected: impl Into<Rejected>) -> E {
        self.rejected = Some(rejected.into());
        E::custom("refused")
    }
}

enum Key {
    Version,
    Entries,
    Other,
}

impl From<&str> for Key {
    fn from(key: &str) -> Self {
        if key.eq_ignore_ascii_case("entries") {
            Self::Entries
        } else if key.eq_ignore_ascii_case("version") {
            Self::Version
        } else {
            Self::Other
        }
    }
}

/// Reads an object's key as whatever can be made from it, without keeping the text.
struct KeySeed<K>(std::marker::PhantomData<K>);

impl<'de, K: for<'a> From<&'a str>> DeserializeSeed<'de> for KeySeed<K> {
    type Value = K;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<K, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<K: for<'a> From<&'a str>> Visitor<'_> for KeySeed<K> {
    type Value = K;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<K, E> {
        Ok(K::from(key))
    }
}

const fn key<K>() -> KeySeed<K> {
    KeySeed(std::marker::PhantomData)
}

struct TocVisitor<'a, 'b>(&'a mut Toc<'b>);

impl<'de> Visitor<'de> for TocVisitor<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a TOC: an object with a list of entries")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        let Self(toc) = self;
        let mut seen = false;
        while let Some(key) = map.next_key_seed(key::<Key>())? {
            match key {
                Key::Entries if seen => return Err(toc.reject(Problem::TwoEntries)),
                Key::Entries => {
                    seen = true;
                    map.next_value_seed(EntriesSeed(&mut *toc))?;
                }
                Key::Version => {
                    let mut problem = None;
                    map.next_value_seed(ValueSeed(|value: Value<'_>| problem = check_version(&value)))?;
                    if let Some(problem) = problem {
                        return Err(toc.reject(problem));
                    }
                }
                Key::Other => Skipped = map.next_value()?,
            }
        }
        if seen { Ok(()) } else { Err(toc.reject(Problem::NoEntries)) }
    }
}

fn check_version(value: &Value<'_>) -> Option<Problem> {
    match value {
        Value::Number(1) | Value::Null => None,
        Value::Number(version) => Some(Problem::Version(*version)),
        other => Some(Problem::Value { key: "version", found: other.shown() }),
    }
}

/// The list of entries; `null` is an empty one.
struct EntriesSeed<'a, 'b>(&'a mut Toc<'b>);

impl<'de> DeserializeSeed<'de> for EntriesSeed<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for EntriesSeed<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<(), S::Error> {
        let Self(toc) = self;
        while list.next_element_seed(EntrySeed(&mut *toc))?.is_some() {
            toc.budget.set(limits::ENTRY_JSON);
        }
        toc.entry.clear();
        Ok(())
    }
}

struct EntrySeed<'a, 'b>(&'a mut Toc<'b>);

impl<'de> DeserializeSeed<'de> for EntrySeed<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let Self(toc) = self;
        toc.entry.clear();
        deserializer.deserialize_map(entry::EntryVisitor(&mut toc.entry))?;
        let taken = match toc.entry.fault() {
            Some(problem) => Err(Rejected::entry(toc.entry.raw_name(), problem)),
            None => (toc.take)(&mut toc.entry),
        };
        taken.map_err(|rejected| toc.reject(rejected))
    }
}
