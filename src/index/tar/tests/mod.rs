//! Tars made by hand, header by header.

mod fixtures;
mod headers;
mod hostile;
mod random;
mod sparse_files;

use std::io::{BufRead, Read};

use super::{Error, Reader};
use crate::blob::ByteRange;
use crate::index::Time;
use crate::index::error::Problem;
use crate::index::toc::EntryType;
use crate::index::xattrs::Xattr;

pub(in crate::index) const GNU: &[u8; 8] = b"ustar  \0";
const USTAR: &[u8; 8] = b"ustar\x0000";

/// A header under construction.
#[derive(Clone)]
pub(in crate::index) struct Head([u8; 512]);

impl Head {
    pub(in crate::index) fn new(kind: u8, name: &[u8]) -> Self {
        let head = Self([0; 512]).put(0, name).put(156, &[kind]).put(257, USTAR);
        head.put(100, b"0000644\0").put(108, b"0000000\0").put(116, b"0000000\0").put(136, b"00000000007\0").size(0)
    }

    pub(in crate::index) fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn size(self, size: u64) -> Self {
        self.put(124, format!("{size:011o}\0").as_bytes())
    }

    /// The header with its checksum.
    fn done(self) -> Vec<u8> {
        let head = self.put(148, b"        ");
        let sum: u32 = head.0.iter().map(|byte| u32::from(*byte)).sum();
        head.put(148, format!("{sum:06o}\0 ").as_bytes()).0.to_vec()
    }

    /// The header, and contents of the size that it says.
    pub(in crate::index) fn with(self, contents: &[u8]) -> Vec<u8> {
        [self.size(contents.len() as u64).done(), padded(contents)].concat()
    }
}

fn padded(contents: &[u8]) -> Vec<u8> {
    let mut padded = contents.to_vec();
    padded.resize(contents.len().next_multiple_of(512), 0);
    padded
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let len = (1..).map(|digits| rest + digits).find(|len| len.to_string().len() + rest == *len).unwrap();
    [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
}

pub(in crate::index) fn pax(kind: u8, records: &[(&str, &[u8])]) -> Vec<u8> {
    let records: Vec<_> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
    Head::new(kind, b"PaxHeaders/x").with(&records)
}

/// What the tests compare of an entry.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Seen {
    name: Vec<u8>,
    kind: Option<EntryType>,
    size: u64,
    mtime: Time,
    link: Vec<u8>,
    mode: u16,
    owner: (u32, u32),
    device: (u32, u32),
    xattrs: Vec<Xattr>,
    stored: Vec<ByteRange>,
    /// The stored parts, one behind the other.
    contents: Vec<u8>,
    /// Where the first of them is in the tar.
    at: Option<u64>,
}

impl Seen {
    /// The file with its holes.
    fn file(&self) -> Vec<u8> {
        let mut file = vec![0; self.size as usize];
        let mut rest = self.contents.as_slice();
        for part in &self.stored {
            let (bytes, tail) = rest.split_at(part.len() as usize);
            file[part.start as usize..part.end as usize].copy_from_slice(bytes);
            rest = tail;
        }
        assert!(rest.is_empty());
        file
    }
}

/// The next entry, its contents read.
fn seen<R: BufRead>(reader: &mut Reader<R>) -> Result<Option<Seen>, Error> {
    let Some(entry) = reader.next()? else { return Ok(None) };
    let mut seen = Seen {
        name: entry.name.clone(),
        kind: entry.kind,
        size: entry.size,
        mtime: entry.mtime,
        link: entry.link_name.clone(),
        mode: entry.mode,
        owner: (entry.uid, entry.gid),
        device: (entry.major, entry.minor),
        xattrs: entry.xattrs.clone(),
        ..Seen::default()
    };
    let mut ranges: Vec<ByteRange> = Vec::new();
    reader.contents(&mut |at, place, bytes| {
        match ranges.last_mut() {
            Some(last) if last.end == at => last.end += bytes.len() as u64,
            _ => ranges.push(ByteRange::at(at, bytes.len() as u64).unwrap()),
        }
        assert_eq!(place, *seen.at.get_or_insert(place) + seen.contents.len() as u64);
        seen.contents.extend_from_slice(bytes);
        Ok(())
    })?;
    assert_eq!(ranges, reader.stored());
    seen.stored = ranges;
    Ok(Some(seen))
}

/// All entries of a tar.
fn read(tar: &[u8]) -> Result<Vec<Seen>, Error> {
    let mut reader = Reader::new(tar);
    let mut all = Vec::new();
    while let Some(seen) = seen(&mut reader)? {
        all.push(seen);
    }
    Ok(all)
}

/// The only entry of a tar, to which the end is added.
fn one(parts: &[Vec<u8>]) -> Seen {
    let mut all = read(&[parts.concat(), vec![0; 1024]].concat()).unwrap();
    assert_eq!(all.len(), 1);
    all.pop().unwrap()
}

/// What is wrong with a tar, and where.
fn wrong(parts: &[Vec<u8>]) -> (u64, Problem) {
    match read(&[parts.concat(), vec![0; 1024]].concat()) {
        Err(Error::Malformed { offset, problem, .. }) => (offset, problem),
        other => panic!("{other:?}"),
    }
}

/// Gives a stream in parts of other sizes.
struct Cut<'a> {
    rest: &'a [u8],
    sizes: std::iter::Cycle<std::vec::IntoIter<usize>>,
    /// What is left of the part at hand.
    part: usize,
}

impl<'a> Cut<'a> {
    fn new(rest: &'a [u8], sizes: Vec<usize>) -> Self {
        Self { rest, sizes: sizes.into_iter().cycle(), part: 0 }
    }
}

impl Read for Cut<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl BufRead for Cut<'_> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        if self.part == 0 {
            self.part = self.sizes.next().unwrap();
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        Ok(&self.rest[..self.part.min(self.rest.len())])
    }

    fn consume(&mut self, used: usize) {
        self.rest = &self.rest[used..];
        self.part -= used;
    }
}
