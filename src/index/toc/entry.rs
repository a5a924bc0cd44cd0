//! One entry of a TOC, its values checked as far as that takes no other entry.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::key;
use super::value::{Skipped, Value, ValueSeed};
use crate::blob::Digest;
use crate::index::error::Problem;
use crate::index::xattrs::Xattr;
use crate::index::{Time, limits, time};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryType {
    Dir,
    File,
    Symlink,
    HardLink,
    Char,
    Block,
    Fifo,
    /// Of filesystem images alone: no tar holds one.
    Socket,
    /// A further chunk of the file before it.
    Chunk,
}

/// One entry as the TOC or the tar has it. What is left out is 0, empty or `None`, as Go's `omitempty` means it. Names are bytes: a tar
/// holds some that are not UTF-8.
#[derive(Debug, Default)]
pub(crate) struct TocEntry {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: Option<EntryType>,
    pub(crate) size: u64,
    pub(crate) mtime: Time,
    pub(crate) link_name: Vec<u8>,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) offset: u64,
    pub(crate) inner_offset: u64,
    pub(crate) end_offset: u64,
    pub(crate) chunk_offset: u64,
    pub(crate) chunk_size: u64,
    pub(crate) digest: Option<Digest>,
    pub(crate) chunk_digest: Option<Digest>,
    /// The chunk is a hole.
    pub(crate) zeros: bool,
    pub(crate) xattrs: Vec<Xattr>,
    /// It says something of owner, mode or time.
    pub(crate) is_described: bool,
    named: bool,
    /// The first thing that was wrong with it.
    fault: Option<Problem>,
}

impl TocEntry {
    /// Makes it an entry of nothing again; the names keep their memory.
    pub(crate) fn clear(&mut self) {
        let (mut name, mut link_name, mut xattrs) =
            (std::mem::take(&mut self.name), std::mem::take(&mut self.link_name), std::mem::take(&mut self.xattrs));
        name.clear();
        link_name.clear();
        xattrs.clear();
        *self = Self { name, link_name, xattrs, ..Self::default() };
    }

    pub(crate) fn raw_name(&self) -> &[u8] {
        &self.name
    }

    /// What is wrong with the entry by itself.
    pub(super) fn fault(&mut self) -> Option<Problem> {
        let fault = self.fault.take();
        fault.or_else(|| (!self.named).then_some(Problem::NoName)).or_else(|| match self.kind {
            None => Some(Problem::Type(String::new())),
            Some(_) => None,
        })
    }

    fn set(&mut self, field: Field, value: &Value<'_>) {
        if let Err(problem) = self.try_set(field, value) {
            self.fault.get_or_insert(problem);
        }
    }

    fn try_set(&mut self, field: Field, value: &Value<'_>) -> Result<(), Problem> {
        if matches!(value, Value::Null) {
            return Ok(());
        }
        self.is_described |= matches!(field, Field::Mode | Field::Uid | Field::Gid | Field::ModTime);
        match field {
            Field::Name => {
                text_into(&mut self.name, "name", value)?;
                self.named = true;
            }
            Field::LinkName => text_into(&mut self.link_name, "linkName", value)?,
            Field::Type => self.kind = Some(entry_type(value)?),
            Field::ModTime => self.mtime = mtime(value)?,
            Field::Digest => self.digest = digest("digest", value)?,
            Field::ChunkDigest => self.chunk_digest = digest("chunkDigest", value)?,
            Field::ChunkType => self.zeros = is_zeros(value)?,
            _ => return self.set_number(field, value),
        }
        Ok(())
    }

    fn set_number(&mut self, field: Field, value: &Value<'_>) -> Result<(), Problem> {
        match field {
            Field::Size => self.size = number("size", value, limits::OFFSET)?,
            // Tar's mode may carry type bits above the permissions.
            Field::Mode => self.mode = (number("mode", value, limits::OFFSET)? & 0o7777) as u16,
            Field::Uid => self.uid = number_32("uid", value)?,
            Field::Gid => self.gid = number_32("gid", value)?,
            Field::DevMajor => self.major = number_32("devMajor", value)?,
            Field::DevMinor => self.minor = number_32("devMinor", value)?,
            Field::Offset => self.offset = number("offset", value, limits::OFFSET)?,
            Field::InnerOffset => self.inner_offset = number("innerOffset", value, limits::OFFSET)?,
            Field::EndOffset => self.end_offset = number("endOffset", value, limits::OFFSET)?,
            Field::ChunkOffset => self.chunk_offset = number("chunkOffset", value, limits::OFFSET)?,
            Field::ChunkSize => self.chunk_size = number("chunkSize", value, limits::OFFSET)?,
            _ => {}
        }
        Ok(())
    }

    fn add_xattr(&mut self, name: String, value: &Value<'_>) {
        if self.xattrs.len() >= limits::XATTR_LIST {
            let name = crate::index::error::shown(name.as_bytes());
            self.fault.get_or_insert(Problem::Xattr { name, what: "the names of all take more than 65536 bytes" });
            return;
        }
        let decoded = match value {
            Value::Null => Ok(Vec::new()),
            Value::Text(text) => STANDARD.decode(text).map_err(|_| "its value is not base64"),
            _ => Err("its value is not base64"),
        };
        match decoded {
            Ok(value) => self.xattrs.push((name.into_bytes(), value)),
            Err(what) => {
                let name = crate::index::error::shown(name.as_bytes());
                self.fault.get_or_insert(Problem::Xattr { name, what });
            }
        }
    }
}

fn wrong(key: &'static str, value: &Value<'_>) -> Problem {
    Problem::Value { key, found: value.shown() }
}

fn text_into(to: &mut Vec<u8>, key: &'static str, value: &Value<'_>) -> Result<(), Problem> {
    let Value::Text(text) = value else { return Err(wrong(key, value)) };
    to.clear();
    to.extend_from_slice(text.as_bytes());
    Ok(())
}

fn number(key: &'static str, value: &Value<'_>, limit: u64) -> Result<u64, Problem> {
    match value {
        Value::Number(number) if *number <= limit => Ok(*number),
        Value::Number(number) => Err(Problem::Number { key, value: *number, limit }),
        other => Err(wrong(key, other)),
    }
}

fn number_32(key: &'static str, value: &Value<'_>) -> Result<u32, Problem> {
    let limit = u64::from(u32::MAX);
    let value = number(key, value, limit)?;
    u32::try_from(value).map_err(|_| Problem::Number { key, value, limit })
}

fn entry_type(value: &Value<'_>) -> Result<EntryType, Problem> {
    Ok(match value {
        Value::Text("dir") => EntryType::Dir,
        Value::Text("reg") => EntryType::File,
        Value::Text("symlink") => EntryType::Symlink,
        Value::Text("hardlink") => EntryType::HardLink,
        Value::Text("char") => EntryType::Char,
        Value::Text("block") => EntryType::Block,
        Value::Text("fifo") => EntryType::Fifo,
        Value::Text("chunk") => EntryType::Chunk,
        Value::Text(other) => return Err(Problem::Type(other.chars().take(64).collect())),
        other => return Err(wrong("type", other)),
    })
}

fn mtime(value: &Value<'_>) -> Result<Time, Problem> {
    match value {
        Value::Text("") => Ok(Time::default()),
        Value::Text(text) => time::parse(text).ok_or_else(|| wrong("modtime", value)),
        other => Err(wrong("modtime", other)),
    }
}

fn digest(key: &'static str, value: &Value<'_>) -> Result<Option<Digest>, Problem> {
    match value {
        Value::Text("") => Ok(None),
        Value::Text(text) => text.parse().map(Some).map_err(|_| wrong(key, value)),
        other => Err(wrong(key, other)),
    }
}

fn is_zeros(value: &Value<'_>) -> Result<bool, Problem> {
    match value {
        Value::Text("") => Ok(false),
        Value::Text("zeros") => Ok(true),
        Value::Text(other) => Err(Problem::ChunkType(other.chars().take(64).collect())),
        other => Err(wrong("chunkType", other)),
    }
}

/// The keys that crfs has a use for. `userName`, `groupName`, `accesstime`, `changetime` and `NumLink` are among the others.
#[derive(Clone, Copy)]
enum Field {
    Name,
    Type,
    Size,
    ModTime,
    LinkName,
    Mode,
    Uid,
    Gid,
    Offset,
    InnerOffset,
    EndOffset,
    DevMajor,
    DevMinor,
    Xattrs,
    Digest,
    ChunkOffset,
    ChunkSize,
    ChunkDigest,
    ChunkType,
    Other,
}

const FIELDS: [(&str, Field); 19] = [
    ("name", Field::Name),
    ("type", Field::Type),
    ("mode", Field::Mode),
    ("size", Field::Size),
    ("modtime", Field::ModTime),
    ("digest", Field::Digest),
    ("offset", Field::Offset),
    ("linkName", Field::LinkName),
    ("uid", Field::Uid),
    ("gid", Field::Gid),
    ("innerOffset", Field::InnerOffset),
    ("endOffset", Field::EndOffset),
    ("devMajor", Field::DevMajor),
    ("devMinor", Field::DevMinor),
    ("xattrs", Field::Xattrs),
    ("chunkOffset", Field::ChunkOffset),
    ("chunkSize", Field::ChunkSize),
    ("chunkDigest", Field::ChunkDigest),
    ("chunkType", Field::ChunkType),
];

impl From<&str> for Field {
    fn from(key: &str) -> Self {
        FIELDS.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map_or(Self::Other, |(_, field)| *field)
    }
}

pub(super) struct EntryVisitor<'a>(pub(super) &'a mut TocEntry);

impl<'de> Visitor<'de> for EntryVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an entry: an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(field) = map.next_key_seed(key::<Field>())? {
            match field {
                Field::Other => Skipped = map.next_value()?,
                Field::Xattrs => map.next_value_seed(XattrsSeed(&mut *self.0))?,
                field => map.next_value_seed(ValueSeed(|value: Value<'_>| self.0.set(field, &value)))?,
            }
        }
        Ok(())
    }
}

struct XattrsSeed<'a>(&'a mut TocEntry);

impl XattrsSeed<'_> {
    fn not_an_object(self) {
        let found = "not an object".to_owned();
        self.0.fault.get_or_insert(Problem::Value { key: "xattrs", found });
    }
}

impl<'de> DeserializeSeed<'de> for XattrsSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for XattrsSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of xattrs")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        // As in Go, a second object adds to the first.
        while let Some(name) = map.next_key::<String>()? {
            map.next_value_seed(ValueSeed(|value: Value<'_>| self.0.add_xattr(name, &value)))?;
        }
        Ok(())
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        self.not_an_object();
        Ok(())
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        self.not_an_object();
        Ok(())
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        self.not_an_object();
        Ok(())
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        self.not_an_object();
        Ok(())
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<(), E> {
        self.not_an_object();
        Ok(())
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<(), S::Error> {
        while list.next_element::<Skipped>()?.is_some() {}
        self.not_an_object();
        Ok(())
    }
}
