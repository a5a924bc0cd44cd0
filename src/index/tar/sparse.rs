//! Where the stored parts of a sparse file belong: the four kinds of maps (GNU tar 1.34 manual, "Storing Sparse Files").
//!
//! | kind | where the map is |
//! |---|---|
//! | GNU, type S | in the header, continued in blocks that follow it |
//! | pax 0.0 | a record for each number |
//! | pax 0.1 | one record |
//! | pax 1.0 | in front of the contents, in lines, padded to a block |

use crate::index::error::shown;
use std::io::BufRead;

use super::Fault;
use super::header::Header;
use super::pax::{Key, Records};
use super::stream::Stream;
use crate::blob::ByteRange;
use crate::budget::{Charge, Exceeded};
use crate::index::error::Problem;
use crate::index::limits;
use crate::tar::{BLOCK, decimal};

/// Parts of a file, within a budget.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub(super) all: Vec<ByteRange>,
    pub(super) charge: Charge,
}

impl Parts {
    fn push(&mut self, part: ByteRange) -> Result<(), Exceeded> {
        self.charge.cover(((self.all.len() + 1) * size_of::<ByteRange>()) as u64, 0)?;
        self.all.push(part);
        Ok(())
    }
}

/// Takes parts in the order of the file.
struct Map<'a> {
    /// Parts that are not empty; neighbours are one.
    parts: &'a mut Parts,
    /// Bytes of the file with its holes.
    size: u64,
    /// Parts that were taken, empty ones too.
    taken: usize,
    end: u64,
    stored: u64,
}

impl<'a> Map<'a> {
    fn new(parts: &'a mut Parts, size: u64) -> Self {
        parts.all.clear();
        Self { parts, size, taken: 0, end: 0, stored: 0 }
    }

    fn add(&mut self, place: u64, len: u64) -> Result<(), Problem> {
        self.taken += 1;
        if self.taken > limits::SPARSE_PARTS {
            return Err(Problem::TooMany { what: "parts of a sparse file", limit: limits::SPARSE_PARTS });
        }
        let part = ByteRange::at(place, len).filter(|part| part.end <= self.size);
        let part = part.ok_or(Problem::SparseMap("passes the file's end"))?;
        if part.start < self.end {
            return Err(Problem::SparseMap("overlaps itself or goes backwards"));
        }
        self.end = part.end;
        if part.is_empty() {
            return Ok(());
        }
        // GNU tar starts each part on a block, other readers take them one behind the other.
        if self.stored % BLOCK as u64 != 0 {
            return Err(Problem::SparseMap("has a part that ends within a block and is not the last"));
        }
        self.stored += part.len();
        match self.parts.all.last_mut() {
            Some(last) if last.end == part.start => last.end = part.end,
            _ => self.parts.push(part)?,
        }
        Ok(())
    }

    fn finish(self, stored: u64) -> Result<u64, Problem> {
        if self.stored == stored { Ok(self.size) } else { Err(Problem::SparseMap("has other bytes than are stored")) }
    }
}

/// Reads GNU's map: from the header, and from the blocks behind it, for which the header's place is used.
///
/// Returns the file's size; `parts` then are as long as `stored`.
pub(super) fn gnu<R: BufRead>(
    block: &mut [u8; BLOCK],
    stream: &mut Stream<R>,
    stored: u64,
    parts: &mut Parts,
) -> Result<u64, Fault> {
    /// Where the pairs are, how many, and where it says that more follow.
    const IN_HEADER: (usize, usize, usize) = (386, 4, 482);
    const IN_BLOCK: (usize, usize, usize) = (0, 21, 504);

    let mut map = Map::new(parts, Header(block).real_size()?);
    let mut layout = IN_HEADER;
    let mut blocks = 0;
    loop {
        let (first, pairs, more) = layout;
        let header = Header(block);
        for number in 0..pairs {
            let Some((place, len)) = header.sparse_pair(first, number)? else { break };
            map.add(place, len)?;
        }
        if !header.flag(more) {
            return Ok(map.finish(stored)?);
        }
        blocks += 1;
        if blocks > limits::SPARSE_PARTS / IN_BLOCK.1 {
            return Err(Problem::TooMany { what: "parts of a sparse file", limit: limits::SPARSE_PARTS }.into());
        }
        stream.block(block)?;
        layout = IN_BLOCK;
    }
}

/// Reads the map that pax records give or announce. `stored` are the bytes that follow the header; those that a map in front of the contents
/// takes are taken off.
///
/// Returns the file's size; `parts` then are as long as `stored`.
pub(super) fn pax<R: BufRead>(
    records: &Records<'_>,
    stream: &mut Stream<R>,
    stored: &mut u64,
    parts: &mut Parts,
) -> Result<u64, Fault> {
    let size = match records.number(Key::SparseSize, limits::OFFSET)? {
        Some(size) => Some(size),
        None => records.number(Key::SparseRealSize, limits::OFFSET)?,
    };
    let mut map = Map::new(parts, size.unwrap_or(*stored));
    match (records.get(Key::SparseMajor), records.get(Key::SparseMinor)) {
        (Some(b"1"), Some(b"0")) => lines(&mut map, stream, stored)?,
        (None, None) | (Some(b"0"), Some(b"0" | b"1")) => in_records(&mut map, records)?,
        (major, minor) => {
            let found = [major.unwrap_or_default(), b".", minor.unwrap_or_default()].concat();
            return Err(Problem::Value { key: "GNU.sparse.major", found: shown(&found) }.into());
        }
    }
    Ok(map.finish(*stored)?)
}

/// Versions 0.0 and 0.1.
fn in_records(map: &mut Map<'_>, records: &Records<'_>) -> Result<(), Problem> {
    if records.sparse.is_empty() {
        let list = records.get(Key::SparseMap).unwrap_or_default();
        let mut numbers = list.split(|byte| *byte == b',').filter(|_| !list.is_empty()).map(decimal);
        while let Some(place) = numbers.next() {
            let len = numbers.next().ok_or(Problem::SparseMap("has a place without a length"))?;
            let not_numbers = Problem::SparseMap("has something else than numbers");
            let (place, len) = place.zip(len).ok_or(not_numbers)?;
            map.add(place, len)?;
        }
    } else {
        for pair in records.sparse.chunks(2) {
            let [place, len] = pair else { return Err(Problem::SparseMap("has a place without a length")) };
            map.add(*place, *len)?;
        }
    }
    match records.number(Key::SparseBlocks, limits::OFFSET)? {
        Some(blocks) if blocks != map.taken as u64 => Err(Problem::SparseMap("has other parts than it says")),
        _ => Ok(()),
    }
}

/// Version 1.0: how many parts, then each one's place and length, a line each.
fn lines<R: BufRead>(map: &mut Map<'_>, stream: &mut Stream<R>, stored: &mut u64) -> Result<(), Fault> {
    let mut lines = Lines { stream, stored, block: [0; BLOCK], at: BLOCK };
    let parts = lines.number()?;
    if parts > limits::SPARSE_PARTS as u64 {
        return Err(Problem::TooMany { what: "parts of a sparse file", limit: limits::SPARSE_PARTS }.into());
    }
    for _ in 0..parts {
        let place = lines.number()?;
        let len = lines.number()?;
        map.add(place, len)?;
    }
    Ok(())
}

/// Reads numbers, each ended by a line feed, block by block.
struct Lines<'a, R> {
    stream: &'a mut Stream<R>,
    stored: &'a mut u64,
    block: [u8; BLOCK],
    at: usize,
}

impl<R: BufRead> Lines<'_, R> {
    fn number(&mut self) -> Result<u64, Fault> {
        const DIGITS: usize = 20;
        let mut digits = [0; DIGITS];
        let mut len = 0;
        loop {
            match self.byte()? {
                b'\n' => break,
                byte => *digits.get_mut(len).ok_or(Problem::SparseMap("has a number of too many digits"))? = byte,
            }
            len += 1;
        }
        let number = digits.get(..len).and_then(decimal);
        Ok(number.ok_or(Problem::SparseMap("has something else than numbers"))?)
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        if self.at == BLOCK {
            let left = self.stored.checked_sub(BLOCK as u64);
            *self.stored = left.ok_or(Problem::SparseMap("is longer than what is stored"))?;
            self.stream.block(&mut self.block)?;
            self.at = 0;
        }
        let byte = self.block.get(self.at).copied().unwrap_or_default();
        self.at += 1;
        Ok(byte)
    }
}
