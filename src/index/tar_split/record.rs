//! Makes a tar-split of a tar that is read: the reader of the tar reads by way of a [`Recorder`], and whoever reads its entries tells the [`Tape`] of each.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

use super::crc::Crc;
use super::write::Sheet;
use super::{NoTarSplit, Order, TarSplit};
use crate::blob::ByteRange;
use crate::budget::Charge;
use crate::index::builder::{NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, WHITEOUT};
use crate::index::estargz::TOC_NAME;
use crate::index::toc::{EntryType, TocEntry};
use crate::index::{limits, names};

/// What eStargz adds to the root of a tar, and the index of an eStargz layer does not show. To name one would cost a second read of the layer; as
/// segments they are right for every layer.
const ADDED: [&[u8]; 3] = [TOC_NAME, PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK];

/// Bytes for the number of an entry that must not be named.
const EACH_RAW: u64 = 24;

/// What is recorded, if anything is.
#[derive(Clone)]
pub(in crate::index) struct Tape(Option<Rc<RefCell<Recording>>>);

impl Tape {
    pub(in crate::index) fn new(order: Option<Order>, layer: &Charge) -> Self {
        Self(order.map(|order| Rc::new(RefCell::new(Recording::new(order, layer.beside())))))
    }

    /// The header of an entry was read, and nothing of its contents, of which these parts are stored.
    pub(in crate::index) fn entry(&self, entry: &TocEntry, stored: &[ByteRange]) {
        if let Some(recording) = &self.0 {
            recording.borrow_mut().attempt(|recording, sheet| recording.entry(sheet, entry, stored));
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
    sheet: Option<Sheet>,
    failed: Option<NoTarSplit>,
    raw: BTreeSet<u64>,
    open: Option<Open>,
    /// Entries so far.
    entries: u64,
    is_over: bool,
    /// Bytes in segments that are neither headers nor padding.
    contents: u64,
    /// Kept for its memory.
    path: Vec<u8>,
}

impl Recording {
    fn new(Order { file, raw }: Order, charge: Charge) -> Self {
        let (sheet, path) = (Some(Sheet::new(file, charge)), Vec::new());
        Self { sheet, failed: None, raw, open: None, entries: 0, is_over: false, contents: 0, path }
    }

    /// After a failure nothing is recorded any more: the layer is still read to its end.
    fn attempt(&mut self, work: impl FnOnce(&mut Self, &mut Sheet) -> Result<(), NoTarSplit>) {
        let Some(mut sheet) = self.sheet.take() else { return };
        match work(self, &mut sheet) {
            Ok(()) => self.sheet = Some(sheet),
            Err(problem) => self.failed = Some(problem),
        }
    }

    fn entry(&mut self, sheet: &mut Sheet, entry: &TocEntry, stored: &[ByteRange]) -> Result<(), NoTarSplit> {
        let number = self.entries;
        self.entries = number.saturating_add(1);
        let mut path = std::mem::take(&mut self.path);
        let is_clean = names::clean_into(entry.raw_name(), &mut path).is_ok();
        sheet.cover(self.raw.len() as u64 * EACH_RAW)?;
        if is_clean {
            sheet.replace(&path);
        }
        let is_whole = matches!(stored, [all] if all.start == 0 && all.end == entry.size);
        let is_file = entry.kind == Some(EntryType::File) && is_whole;
        if is_file && is_clean && !is_hidden(&path) && !self.raw.contains(&number) {
            sheet.name(&path, number, entry.size)?;
            self.open = Some(Open { path: path.clone(), size: entry.size, left: entry.size, crc: Crc::new() });
        } else {
            let stored = stored.iter().map(ByteRange::len).fold(0, u64::saturating_add);
            self.add_contents(stored)?;
        }
        self.path = path;
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
        self.attempt(|recording, sheet| {
            let rest = recording.take_contents(sheet, bytes)?;
            if recording.is_over {
                recording.add_contents(rest.len() as u64)?;
            }
            sheet.segment(rest)
        });
    }

    /// Takes what belongs to the file whose contents are coming. Gives the rest.
    fn take_contents<'a>(&mut self, sheet: &mut Sheet, bytes: &'a [u8]) -> Result<&'a [u8], NoTarSplit> {
        let Some(mut open) = self.open.take() else { return Ok(bytes) };
        let len = usize::try_from(open.left).unwrap_or(usize::MAX).min(bytes.len());
        let (contents, rest) = bytes.split_at(len);
        open.crc.update(contents);
        open.left = open.left.saturating_sub(len as u64);
        if open.left > 0 {
            self.open = Some(open);
        } else {
            sheet.file(&open.path, open.size, open.crc.sum())?;
        }
        Ok(rest)
    }

    fn finish(&mut self) -> Result<TarSplit, NoTarSplit> {
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        let sheet = self.sheet.take().filter(|_| self.open.is_none());
        sheet.ok_or(NoTarSplit::CutOff)?.finish()
    }
}

/// Whether an index may not show what is at a cleaned path.
fn is_hidden(path: &[u8]) -> bool {
    ADDED.contains(&path) || path.split(|byte| *byte == b'/').any(|name| name.starts_with(WHITEOUT))
}
