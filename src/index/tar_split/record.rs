//! Makes a tar-split of a tar that is read: the reader of the tar reads by way of a [`Recorder`], and whoever reads its entries tells the [`Tape`] of each.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

use super::crc::Crc;
use super::write::Writer;
use super::{NoTarSplit, Order, TarSplit, Named};
use crate::blob::ByteRange;
use crate::index::toc::{EntryType, TocEntry};
use crate::index::{limits, names};

/// Files that indexes hide wherever they are in the root: what eStargz adds to a tar.
const HIDDEN: [&[u8]; 3] = [b"stargz.index.json", b".prefetch.landmark", b".no.prefetch.landmark"];

/// What begins so is a whiteout, or AUFS's own.
const WHITEOUT: &[u8] = b".wh.";

/// What is recorded, if anything is.
#[derive(Clone)]
pub(in crate::index) struct Tape(Option<Rc<RefCell<Recording>>>);

impl Tape {
    pub(in crate::index) fn new(order: Option<Order>) -> Self {
        Self(order.map(|order| Rc::new(RefCell::new(Recording::new(order)))))
    }

    /// The header of an entry was read, and nothing of its contents, of which these parts are stored.
    pub(in crate::index) fn entry(&self, entry: &TocEntry, stored: &[ByteRange]) {
        if let Some(recording) = &self.0 {
            recording.borrow_mut().attempt(|recording| recording.entry(entry, stored));
        }
    }

    /// The last entry was read; the end of the tar may still follow.
    pub(in crate::index) fn last_entry(&self) {
        if let Some(recording) = &self.0 {
            recording.borrow_mut().is_over = true;
        }
    }

    /// All of the tar was read.
    pub(in crate::index) fn finish(self) -> Option<Result<TarSplit, NoTarSplit>> {
        self.0.map(|recording| recording.borrow_mut().finish())
    }
}

/// Reads a stream, and has what was read of it recorded.
pub(in crate::index) struct Recorder<R> {
    stream: R,
    tape: Tape,
}

impl<R: BufRead> Recorder<R> {
    pub(in crate::index) const fn new(stream: R, tape: Tape) -> Self {
        Self { stream, tape }
    }

    /// The stream, of which all is recorded now.
    pub(in crate::index) fn drain(mut self) -> io::Result<R> {
        while let Some(len) = Some(self.fill_buf()?.len()).filter(|len| *len > 0) {
            self.consume(len);
        }
        Ok(self.stream)
    }
}

impl<R: BufRead> BufRead for Recorder<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.stream.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        if let Some(recording) = self.tape.0.as_ref().filter(|_| amount > 0) {
            // They are in the buffer still.
            let bytes = self.stream.fill_buf().unwrap_or_default();
            recording.borrow_mut().take(bytes.get(..amount).unwrap_or(bytes));
        }
        self.stream.consume(amount);
    }
}

impl<R: BufRead> Read for Recorder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

/// A file whose contents are coming.
struct Open {
    path: Vec<u8>,
    size: u64,
    left: u64,
    crc: Crc,
}

struct Recording {
    /// `None` once there is no use in writing on.
    writer: Option<Writer<File>>,
    failed: Option<NoTarSplit>,
    raw: BTreeSet<u64>,
    files: HashMap<Vec<u8>, Named>,
    replaced: BTreeSet<u64>,
    open: Option<Open>,
    /// Entries so far.
    entries: u64,
    is_over: bool,
    /// Bytes of the tar, of segments, and of those in segments that are no headers.
    len: u64,
    segments: u64,
    contents: u64,
    /// Bytes of all paths.
    names: usize,
    /// Kept for its memory.
    path: Vec<u8>,
}

impl Recording {
    fn new(Order { file, raw }: Order) -> Self {
        Self {
            writer: Some(Writer::new(file)),
            failed: None,
            raw,
            files: HashMap::new(),
            replaced: BTreeSet::new(),
            open: None,
            entries: 0,
            is_over: false,
            len: 0,
            segments: 0,
            contents: 0,
            names: 0,
            path: Vec::new(),
        }
    }

    /// After a failure nothing is recorded any more: the layer is still read to its end.
    fn attempt(&mut self, work: impl FnOnce(&mut Self) -> Result<(), NoTarSplit>) {
        if self.writer.is_none() {
            return;
        }
        if let Err(problem) = work(self) {
            (self.failed, self.writer) = (Some(problem), None);
        }
    }

    fn entry(&mut self, entry: &TocEntry, stored: &[ByteRange]) -> Result<(), NoTarSplit> {
        let number = self.entries;
        self.entries = number.saturating_add(1);
        let mut path = std::mem::take(&mut self.path);
        let is_clean = names::clean_into(entry.raw_name(), &mut path).is_ok();
        let replaced = if is_clean { self.files.remove(&path) } else { None };
        self.replaced.extend(replaced.map(|file| file.entry));
        let is_whole = matches!(stored, [all] if all.start == 0 && all.end == entry.size);
        let is_file = entry.kind == Some(EntryType::File) && is_whole;
        if is_file && is_clean && !is_hidden(&path) && !self.raw.contains(&number) {
            self.name(&path, number, entry.size)?;
        } else {
            let stored = stored.iter().map(ByteRange::len).fold(0, u64::saturating_add);
            self.add_contents(stored)?;
        }
        self.path = path;
        Ok(())
    }

    /// The contents that follow are those of a file.
    fn name(&mut self, path: &[u8], entry: u64, size: u64) -> Result<(), NoTarSplit> {
        self.names = self.names.saturating_add(path.len());
        if self.files.len() >= limits::ENTRIES {
            return Err(NoTarSplit::TooMany { what: "files", limit: limits::ENTRIES });
        }
        if self.names > limits::NAMES {
            return Err(NoTarSplit::TooMany { what: "bytes of names", limit: limits::NAMES });
        }
        self.files.insert(path.to_vec(), Named { entry, size });
        self.open = Some(Open { path: path.to_vec(), size, left: size, crc: Crc::new() });
        Ok(())
    }

    /// So many bytes that are no headers come as segments.
    fn add_contents(&mut self, len: u64) -> Result<(), NoTarSplit> {
        self.contents = self.contents.saturating_add(len);
        let limit = limits::TAR_SPLIT_CONTENTS;
        let what = "contents that cannot be read from the layer by their names";
        if self.contents > limit { Err(NoTarSplit::TooLarge { what, limit }) } else { Ok(()) }
    }

    /// The next bytes of the tar.
    fn take(&mut self, bytes: &[u8]) {
        self.len = self.len.saturating_add(bytes.len() as u64);
        self.attempt(|recording| {
            let rest = recording.take_contents(bytes)?;
            if recording.is_over {
                recording.add_contents(rest.len() as u64)?;
            }
            recording.take_segment(rest)
        });
    }

    /// Takes what belongs to the file whose contents are coming. Gives the rest.
    fn take_contents<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], NoTarSplit> {
        let Some(mut open) = self.open.take() else { return Ok(bytes) };
        let len = usize::try_from(open.left).unwrap_or(usize::MAX).min(bytes.len());
        let (contents, rest) = bytes.split_at(len);
        open.crc.update(contents);
        open.left = open.left.saturating_sub(len as u64);
        if open.left > 0 {
            self.open = Some(open);
        } else if let Some(writer) = &mut self.writer {
            writer.file(&open.path, open.size, open.crc.sum())?;
        }
        Ok(rest)
    }

    fn take_segment(&mut self, bytes: &[u8]) -> Result<(), NoTarSplit> {
        self.segments = self.segments.saturating_add(bytes.len() as u64);
        let limit = limits::TAR_SPLIT_SEGMENTS;
        if self.segments > limit {
            return Err(NoTarSplit::TooLarge { what: "headers", limit });
        }
        self.writer.as_mut().map_or(Ok(()), |writer| Ok(writer.segment(bytes)?))
    }

    fn finish(&mut self) -> Result<TarSplit, NoTarSplit> {
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        let writer = self.writer.take().filter(|_| self.open.is_none()).ok_or(NoTarSplit::Unreadable)?;
        let (files, replaced) = (std::mem::take(&mut self.files), std::mem::take(&mut self.replaced));
        Ok(TarSplit { file: writer.finish()?, tar_len: self.len, files, replaced })
    }
}

/// Whether indexes do not show what is at a cleaned path.
fn is_hidden(path: &[u8]) -> bool {
    HIDDEN.contains(&path) || path.split(|byte| *byte == b'/').any(|name| name.starts_with(WHITEOUT))
}
