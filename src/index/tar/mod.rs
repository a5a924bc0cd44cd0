//! A tar stream, read entry by entry.
//!
//! ```text
//! | header | contents, padded to 512 | header | ... | zeros 512 | zeros 512 | whatever follows
//! | x: pax records of the next entry | g: of all that follow | L, K: the next one's long name, link |
//! ```
//!
//! Follows POSIX.1-2017 (pax) and GNU tar 1.34; where those leave room, what GNU tar and Go's archive/tar 1.19 agree on. Where these two
//! would see different trees in one tar, the tar is refused, except for what is written beside the code.
//!
//! - Local pax records beat global ones, those beat GNU's long names, and these beat the header. (Go lets a long name beat the records; GNU
//!   tar and POSIX do not.) Of several local headers before one entry only the last counts, and so for long names.
//! - Global records of owners, times and xattrs count, header after header (POSIX; GNU tar forgets the header before, Go reads none). Global
//!   names, sizes and sparse maps, which cannot be meant for all files, are refused.
//! - Links, devices, fifos and directories have no contents, whatever their size says: GNU tar and Go read on right behind the header.
//!   Where POSIX's "hard link with contents" is really meant, those contents are no header, and the tar is refused.
//! - A regular file whose name ends in a slash is a directory: GNU tar and libarchive mean that for all of them, Go for type NUL only. One with
//!   contents is refused.
//! - Volume labels (V) are passed over; GNU's D is a directory whose contents are passed over; other vendors' types are refused.

mod header;
mod pax;
mod sparse;
mod stream;
#[cfg(test)]
pub(super) mod tests;

use crate::index::error::shown;
use std::io::{self, BufRead};

use self::header::{Header, Purpose};
use self::pax::{Globals, Key, Records};
use self::sparse::Parts;
use self::stream::{Stream, padding};
use super::error::Problem;
use super::limits;
use super::toc::{EntryType, TocEntry};
use crate::blob::ByteRange;
use crate::budget::Charge;
use crate::tar::{BLOCK, Block, is_zero, text};

/// Why a tar is not read to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the tar cannot be read")]
    Io(#[source] io::Error),
    #[error("tar header at byte {offset}: {}{problem}", near(.entry.as_deref()))]
    Malformed {
        /// Where the header is in the tar stream.
        offset: u64,
        /// The entry that is at fault, escaped.
        entry: Option<String>,
        problem: Problem,
    },
}

fn near(entry: Option<&str>) -> String {
    entry.map_or_else(String::new, |entry| format!("entry {entry}: "))
}

/// What went wrong, on its way to the header that it belongs to.
#[derive(Debug)]
enum Fault {
    Io(io::Error),
    Bad(Problem),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Problem> for Fault {
    fn from(problem: Problem) -> Self {
        Self::Bad(problem)
    }
}

/// Takes a run of an entry's contents: its place in the file, its place in the tar stream, the bytes.
pub(crate) type Sink<'a> = dyn FnMut(u64, u64, &[u8]) -> io::Result<()> + 'a;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The contents of an entry or the next header follow.
    Open,
    /// The end was seen.
    Ended,
    /// Something was wrong: where the next header is, nobody knows.
    Failed,
}

/// A tar stream, read entry by entry.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    stream: Stream<R>,
    state: State,
    /// The header at hand and where it was. The one of a sparse file is written over by those that continue its map.
    block: Block,
    header_at: u64,
    entry: TocEntry,
    /// The parts of the entry's file that are stored.
    parts: Parts,
    /// Bytes of the entry's contents that were not read yet.
    unread: u64,
    /// Bytes behind the contents up to the next header.
    behind: u64,
    globals: Globals,
    next: Announced,
}

/// What headers before an entry said of it.
#[derive(Debug, Default)]
struct Announced {
    /// pax records.
    local: Vec<u8>,
    long_name: Vec<u8>,
    long_link: Vec<u8>,
    /// Whether there was one of these headers.
    any: bool,
}

impl Announced {
    fn clear(&mut self) {
        self.local.clear();
        self.long_name.clear();
        self.long_link.clear();
        self.any = false;
    }
}

impl<R: BufRead> Reader<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self {
            stream: Stream::new(stream),
            state: State::Open,
            block: [0; BLOCK],
            header_at: 0,
            entry: TocEntry::default(),
            parts: Parts::default(),
            unread: 0,
            behind: 0,
            globals: Globals::default(),
            next: Announced::default(),
        }
    }

    /// The same within a budget: the map of a sparse file can be long.
    pub(crate) fn charged(mut self, charge: Charge) -> Self {
        self.parts.charge = charge;
        self
    }

    /// The next entry, `None` after the last. What was not read of the contents of the one before is passed over.
    ///
    /// The end is two blocks of zeros, or one and then the end of the stream, or the end of the stream where a header would be. What is
    /// behind the blocks of zeros is not read.
    ///
    /// # Errors
    /// Where the stream cannot be read, or is not a tar up to there. After an error there is no more to be had.
    pub(crate) fn next(&mut self) -> Result<Option<&mut TocEntry>, Error> {
        match self.state {
            State::Ended => return Ok(None),
            State::Failed => return Err(Error::Io(io::Error::other("read on behind an error"))),
            State::Open => {}
        }
        let passed = self.pass_over();
        self.settle(passed)?;
        self.entry.clear();
        let found = self.find_entry();
        if self.settle(found)? {
            return Ok(Some(&mut self.entry));
        }
        self.state = State::Ended;
        Ok(None)
    }

    /// Hands on the contents of the entry that [`next`](Self::next) gave last, once: for each run of bytes its place in the file, its place
    /// in the tar stream, and the bytes, straight from the stream's own buffer. Holes are not told.
    ///
    /// # Errors
    /// Where the stream cannot be read or ends before the contents do, or the sink fails.
    pub(crate) fn contents(&mut self, sink: &mut Sink<'_>) -> Result<(), Error> {
        if std::mem::take(&mut self.unread) == 0 {
            return Ok(());
        }
        let stream = &mut self.stream;
        let read = self.parts.all.iter().try_for_each(|part| {
            let mut at = part.start;
            stream.runs(part.len(), |place, bytes| {
                sink(at, place, bytes)?;
                at = at.saturating_add(bytes.len() as u64);
                Ok(())
            })
        });
        self.settle(read)
    }

    /// The parts of the entry's file that are stored, in order, each as a range of the file; what lies between and behind is a hole. One
    /// range for an ordinary file, none for an empty one.
    pub(crate) fn stored(&self) -> &[ByteRange] {
        &self.parts.all
    }

    /// The entry that [`next`](Self::next) gave last, as far as nobody has taken it apart, and what of its file is [`stored`](Self::stored).
    pub(crate) fn current(&self) -> (&TocEntry, &[ByteRange]) {
        (&self.entry, &self.parts.all)
    }

    /// The stream, behind the last block that was read.
    pub(crate) fn into_inner(self) -> R {
        self.stream.into_inner()
    }

    /// Says which header a fault belongs to, and remembers that there was one.
    fn settle<T>(&mut self, result: Result<T, Fault>) -> Result<T, Error> {
        result.map_err(|fault| {
            self.state = State::Failed;
            match fault {
                Fault::Io(error) => Error::Io(error),
                Fault::Bad(problem) => {
                    let name = self.entry.raw_name();
                    let entry = (!name.is_empty()).then(|| shown(name));
                    Error::Malformed { offset: self.header_at, entry, problem }
                }
            }
        })
    }

    /// Goes on to where the next header is.
    fn pass_over(&mut self) -> Result<(), Fault> {
        let unread = std::mem::take(&mut self.unread);
        self.stream.skip(unread)?;
        let behind = std::mem::take(&mut self.behind);
        self.stream.skip(behind)
    }

    /// Reads headers up to that of an entry. `false` at the end.
    fn find_entry(&mut self) -> Result<bool, Fault> {
        self.next.clear();
        self.parts.all.clear();
        for _ in 0..=limits::TAR_EXTENSIONS {
            if self.is_ended()? {
                return if self.next.any { Err(Problem::Dangling.into()) } else { Ok(false) };
            }
            let header = Header(&self.block);
            header.check()?;
            match header.purpose()? {
                purpose @ Purpose::Entry(kind) => return self.take_entry(purpose, kind).map(|()| true),
                purpose @ Purpose::Sparse => return self.take_entry(purpose, EntryType::File).map(|()| true),
                purpose @ Purpose::DumpDirectory => return self.take_entry(purpose, EntryType::Dir).map(|()| true),
                describes => self.announce(describes)?,
            }
        }
        let limit = limits::TAR_EXTENSIONS as usize;
        Err(Problem::TooMany { what: "headers that describe one entry", limit }.into())
    }

    /// Reads the next block, and sees whether the tar ends with it.
    fn is_ended(&mut self) -> Result<bool, Fault> {
        if self.stream.is_at_end()? {
            return Ok(true);
        }
        self.header_at = self.stream.at();
        self.stream.block(&mut self.block)?;
        if !is_zero(&self.block) {
            return Ok(false);
        }
        if !self.stream.is_at_end()? {
            self.stream.block(&mut self.block)?;
            if !is_zero(&self.block) {
                return Err(Problem::LoneZeroBlock.into());
            }
        }
        Ok(true)
    }

    /// Takes a header that describes what follows.
    fn announce(&mut self, purpose: Purpose) -> Result<(), Fault> {
        let size = Header(&self.block).size()?;
        let next = &mut self.next;
        match purpose {
            Purpose::Local => {
                self.stream.extension(size, &mut next.local)?;
                pax::check(&next.local)?;
            }
            Purpose::Global => {
                let mut raw = Vec::new();
                self.stream.extension(size, &mut raw)?;
                return Ok(self.globals.take(&raw)?);
            }
            Purpose::LongName => self.stream.extension(size, &mut next.long_name)?,
            Purpose::LongLink => self.stream.extension(size, &mut next.long_link)?,
            // A label takes the names that were meant for it.
            _ => {
                next.clear();
                self.stream.skip(size)?;
                return self.stream.skip(padding(size));
            }
        }
        next.any = true;
        Ok(())
    }

    /// Makes the entry from its header and what was said before.
    fn take_entry(&mut self, purpose: Purpose, kind: EntryType) -> Result<(), Fault> {
        let (header, entry) = (Header(&self.block), &mut self.entry);
        header.name_into(&mut entry.name)?;
        override_text(&mut entry.name, text(&self.next.long_name));
        self.globals.give()?;
        let records = Records::of(&self.globals, &self.next.local, &mut entry.xattrs)?;
        override_text(&mut entry.name, records.get(Key::Path).unwrap_or_default());
        override_text(&mut entry.name, records.get(Key::SparseName).unwrap_or_default());
        (entry.kind, entry.is_described) = (Some(kind), true);
        describe(entry, &header, &records, text(&self.next.long_link))?;
        let has_contents = kind == EntryType::File || purpose == Purpose::DumpDirectory;
        if !has_contents {
            return if records.says_sparse() { Err(Problem::SparseMap("is of no file").into()) } else { Ok(()) };
        }
        let mut stored = records.number(Key::Size, limits::OFFSET)?.map_or_else(|| header.size(), Ok)?;
        self.behind = padding(stored);
        match purpose {
            Purpose::DumpDirectory => self.behind = stored.saturating_add(self.behind),
            _ if entry.name.ends_with(b"/") => return directory(entry, stored),
            Purpose::Sparse => entry.size = sparse::gnu(&mut self.block, &mut self.stream, stored, &mut self.parts)?,
            _ if records.says_sparse() => {
                entry.size = sparse::pax(&records, &mut self.stream, &mut stored, &mut self.parts)?;
            }
            _ => {
                entry.size = stored;
                self.parts.all.extend((stored > 0).then_some(ByteRange { start: 0, end: stored }));
            }
        }
        self.unread = if purpose == Purpose::DumpDirectory { 0 } else { stored };
        Ok(())
    }
}

/// What every kind of entry has, and what links and devices have.
fn describe(entry: &mut TocEntry, header: &Header<'_>, records: &Records<'_>, long_link: &[u8]) -> Result<(), Problem> {
    let number = |key, or: &dyn Fn() -> Result<u64, Problem>| {
        let value = records.number(key, u32::MAX.into())?.map_or_else(or, Ok)?;
        u32::try_from(value).map_err(|_| Problem::Number { key: "number", value, limit: u32::MAX.into() })
    };
    entry.mode = header.mode()?;
    entry.uid = owner(number(Key::Uid, &|| header.uid())?);
    entry.gid = owner(number(Key::Gid, &|| header.gid())?);
    entry.mtime = match records.mtime()? {
        Some(mtime) => mtime,
        None => header.mtime()?,
    };
    match entry.kind {
        Some(EntryType::HardLink | EntryType::Symlink) => {
            entry.link_name.extend_from_slice(header.link());
            override_text(&mut entry.link_name, long_link);
            override_text(&mut entry.link_name, records.get(Key::LinkPath).unwrap_or_default());
        }
        Some(EntryType::Char | EntryType::Block) => {
            entry.major = number(Key::Major, &|| header.major())?;
            entry.minor = number(Key::Minor, &|| header.minor())?;
        }
        _ => {}
    }
    Ok(())
}

/// -1 is nobody's number: chown(2) takes it for "as it is", and so whatever unpacks as root leaves the file with root.
const fn owner(id: u32) -> u32 {
    if id == u32::MAX { 0 } else { id }
}

/// What says nothing does not count.
fn override_text(text: &mut Vec<u8>, by: &[u8]) {
    if !by.is_empty() {
        text.clear();
        text.extend_from_slice(by);
    }
}

/// A regular file by its type, and a directory by its name.
fn directory(entry: &mut TocEntry, stored: u64) -> Result<(), Fault> {
    entry.kind = Some(EntryType::Dir);
    if stored == 0 { Ok(()) } else { Err(Problem::DirectoryWithContents { size: stored }.into()) }
}

/// Reads a whole tar for the fuzz target, which cannot see this module: `entry` gets each entry's size, its stored parts and the runs of its
/// contents (place in the file, place in the stream, length), where the input has them read.
#[cfg(fuzzing)]
pub fn read_for_fuzzing(
    stream: impl BufRead,
    mut is_read: impl FnMut() -> bool,
    mut entry: impl FnMut(u64, &[ByteRange], &[(u64, u64, u64)]),
) -> Result<(), String> {
    let mut reader = Reader::new(stream);
    while let Some(found) = reader.next().map_err(|error| error.to_string())? {
        let size = found.size;
        let mut runs = Vec::new();
        if is_read() {
            let read = reader.contents(&mut |at, place, bytes| {
                runs.push((at, place, bytes.len() as u64));
                Ok(())
            });
            read.map_err(|error| error.to_string())?;
        }
        entry(size, reader.stored(), &runs);
    }
    Ok(())
}
