//! A tar stream in, a layer index of our own out: its entries, where its contents lie in the units, and the digests of what they yield.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use super::stream::{Events, Span, Spans, Stream};
use super::unpack::Start;
use crate::blob::{ByteRange, Digest};
use crate::budget::Charge;
use crate::index::builder::{Builder, Layer};
use crate::index::entries::BLOCK;
use crate::index::error::{Error, Problem, Rejected};
use crate::index::stored::{self, Check, CheckKind, Codec, Encoded, Piece, Tables, Unit};
use crate::index::tar;
use crate::index::tar_split::{NoTarSplit, Order, Recorder, Tape, TarSplit};
use crate::index::toc::EntryType;
use crate::index::{Format, Identity, limits};

/// Bytes of the layer file that one check covers: what a read of what is cached verifies at least, once.
const CHECK: u64 = 128 << 10;

/// Bytes that the tables may grow by for what is added at once.
const EACH_PART: u64 = 1024;

/// Takes the layer file piece by piece, in its order; what is between the pieces is zeros.
pub(crate) type Keep<'a> = &'a mut dyn FnMut(u64, &[u8]);

/// An index that was made in one pass. It counts when the digests are those that were expected.
pub struct Made {
    /// Of the tar stream.
    pub diff_id: Digest,
    /// For [`StoredIndex::open`](crate::index::StoredIndex::open).
    pub encoded: bytes::Bytes,
    /// `None`: it was not asked for.
    pub split: Option<Result<TarSplit, NoTarSplit>>,
    /// For the encoded index.
    pub charge: Charge,
}

/// What one pass over a layer has made that has an index already. It counts when the digests are those that were expected.
pub struct Split {
    /// Of the tar stream.
    pub diff_id: Digest,
    pub split: Result<TarSplit, NoTarSplit>,
}

/// Why it was not made.
pub(crate) enum Failed {
    /// The stream has ended with an error of its own.
    Stream(io::Error),
    Layer(Error),
}

/// Reads a tar stream to its end. `order`: where its tar-split is to be written as well.
pub(crate) fn make(
    blob: Digest,
    format: Format,
    events: Events<'_>,
    keep: Keep<'_>,
    order: Option<Order>,
    charge: Charge,
) -> Result<Made, Failed> {
    let stream = Stream::new(events, &charge);
    let contents = Contents::new(stream.spans(), keep, charge.beside_windows(0));
    let tape = Tape::new(order, &charge);
    let mut reader = tar::Reader::new(Recorder::new(stream, tape.clone())).charged(charge.beside());
    let mut maker = Maker { builder: Builder::new(Codec::Stored, 0).charged(charge), contents, tape: tape.clone() };
    maker.read(&mut reader).map_err(|failed| failed.at(blob))?;
    let diff_id = finish(reader).map_err(Failed::Stream)?;
    let (layer, format) = maker.finish(format).map_err(|rejected| Failed::Layer(rejected.at(blob)))?;
    let encoded = stored::encode(blob, Some(Identity::Own), format, 0, Some(diff_id), layer);
    let Encoded { bytes: encoded, charge } = encoded.map_err(Failed::Layer)?;
    Ok(Made { diff_id, encoded, split: tape.finish(), charge })
}

/// Reads a tar stream to its end for its tar-split alone.
pub(crate) fn split(blob: Digest, events: Events<'_>, order: Order, charge: Charge) -> Result<Split, Failed> {
    let tape = Tape::new(Some(order), &charge);
    let reader = tar::Reader::new(Recorder::new(Stream::new(events, &charge), tape.clone()));
    let mut reader = reader.charged(charge);
    while reader.next().map_err(|error| Refused::from(error).at(blob))?.is_some() {
        let (entry, stored) = reader.current();
        tape.entry(entry, stored);
    }
    tape.last_entry();
    let diff_id = finish(reader).map_err(Failed::Stream)?;
    Ok(Split { diff_id, split: tape.finish().unwrap_or(Err(NoTarSplit::NotAsked)) })
}

/// Reads what is behind the tar's end. Gives the digest of all.
fn finish(reader: tar::Reader<Recorder<Stream<'_>>>) -> io::Result<Digest> {
    reader.into_inner().drain()?.finish()
}

/// The same before the layer's name is added.
enum Refused {
    Stream(io::Error),
    Layer(Rejected),
}

impl Refused {
    fn at(self, blob: Digest) -> Failed {
        match self {
            Self::Stream(error) => Failed::Stream(error),
            Self::Layer(rejected) => Failed::Layer(rejected.at(blob)),
        }
    }
}

impl From<tar::Error> for Refused {
    fn from(error: tar::Error) -> Self {
        match error {
            tar::Error::Io(error) => Self::Stream(error),
            tar::Error::Malformed { offset, entry, problem } => {
                Self::Layer(Rejected { entry, problem: Problem::Tar { offset, problem: Box::new(problem) } })
            }
        }
    }
}

struct Maker<'a> {
    builder: Builder,
    contents: Contents<'a>,
    tape: Tape,
}

impl Maker<'_> {
    fn read(&mut self, reader: &mut tar::Reader<Recorder<Stream<'_>>>) -> Result<(), Refused> {
        while let Some(entry) = reader.next()? {
            let (is_file, size) = (entry.kind == Some(EntryType::File), entry.size);
            let start = self.builder.add_placed(entry).map_err(Refused::Layer)?;
            let (entry, stored) = reader.current();
            self.tape.entry(entry, stored);
            let Some(start) = start.filter(|_| is_file && size > 0) else { continue };
            let too_many = self.contents.file(start, reader.stored());
            too_many.map_err(|problem| Refused::Layer(Rejected::entry(entry.raw_name(), problem)))?;
            reader.contents(&mut |at, stream, bytes| self.contents.add(start + at, stream, bytes))?;
            self.contents.hole(start + size);
        }
        self.contents.close();
        self.tape.last_entry();
        Ok(())
    }

    fn finish(self, format: Format) -> Result<(Layer, Format), Rejected> {
        let (tables, share) = self.contents.finish()?;
        let layer = self.builder.finish_placed(tables, share)?;
        let format = if layer.is_empty { Format::Empty } else { format };
        Ok((layer, format))
    }
}

/// The check that is being filled: its bytes, with the zeros between files.
struct Open {
    start: u64,
    bytes: Vec<u8>,
    unit: u32,
}

/// A piece that may still grow.
struct OpenPiece {
    unit: u32,
    in_unit: u64,
    range: ByteRange,
}

struct Contents<'a> {
    spans: Rc<RefCell<Spans>>,
    keep: Keep<'a>,
    tables: Tables,
    open: Option<Open>,
    piece: Option<OpenPiece>,
    /// The first piece of each unit that has one, by unit.
    first_pieces: Vec<(u32, u32)>,
    /// How far the file at hand is covered by checks.
    covered: u64,
    buffer: Vec<u8>,
    charge: Charge,
}

impl<'a> Contents<'a> {
    fn new(spans: Rc<RefCell<Spans>>, keep: Keep<'a>, charge: Charge) -> Self {
        let (tables, first_pieces, buffer) = (Tables::default(), Vec::new(), Vec::with_capacity(CHECK as usize));
        Self { spans, keep, tables, open: None, piece: None, first_pieces, covered: 0, buffer, charge }
    }

    /// A file starts, of which these parts are stored. Each of them and each hole has checks of its own.
    fn file(&mut self, start: u64, stored: &[ByteRange]) -> Result<(), Problem> {
        self.covered = start;
        let of_parts = stored.iter().map(|part| part.len() / CHECK + 2).fold(1, u64::saturating_add);
        if of_parts.saturating_add(self.tables.checks() as u64) <= limits::CHUNKS as u64 {
            return Ok(());
        }
        Err(Problem::TooMany {
            what: "pieces of files in one layer (each hole of a sparse file makes two)",
            limit: limits::CHUNKS,
        })
    }

    /// Bytes of the layer file at `at`, which are at `stream` in the tar stream.
    fn add(&mut self, mut at: u64, stream: u64, mut bytes: &[u8]) -> io::Result<()> {
        let Some((unit, in_unit)) = self.unit(stream) else { return Err(io::ErrorKind::InvalidData.into()) };
        let held = self.tables.bytes() + (self.first_pieces.len() * size_of::<(u32, u32)>()) as u64;
        self.charge.cover(held + EACH_PART, u64::MAX).map_err(io::Error::other)?;
        self.hole(at);
        self.grow_piece(unit, in_unit, at, bytes.len() as u64)?;
        while !bytes.is_empty() {
            let open = self.open_at(at, unit);
            let room = usize::try_from(CHECK).unwrap_or(usize::MAX).saturating_sub(open.bytes.len());
            let (part, rest) = bytes.split_at(room.min(bytes.len()));
            open.bytes.extend_from_slice(part);
            let is_full = part.len() == room;
            at += part.len() as u64;
            bytes = rest;
            if is_full {
                self.close();
            }
        }
        self.covered = at;
        Ok(())
    }

    /// The unit that the stream's bytes are of, and where in it they are.
    fn unit(&self, stream: u64) -> Option<(u32, u64)> {
        let spans = self.spans.borrow();
        let unit = u32::try_from(spans.all.len()).ok()?.checked_sub(1)?;
        Some((unit, stream.checked_sub(spans.all.last()?.decoded)?))
    }

    /// What lies between the place up to which the file is covered, and `at`, is not stored: a hole.
    fn hole(&mut self, at: u64) {
        if at > self.covered {
            self.close();
            let range = ByteRange { start: self.covered, end: at };
            self.tables.check(&Check { range, kind: CheckKind::Hole });
            self.covered = at;
        }
    }

    fn grow_piece(&mut self, unit: u32, in_unit: u64, at: u64, len: u64) -> io::Result<()> {
        let range = ByteRange::at(at, len).ok_or(io::ErrorKind::InvalidData)?;
        if let Some(open) = &mut self.piece {
            if open.unit == unit && open.range.end == at && open.in_unit + open.range.len() == in_unit {
                open.range.end = range.end;
                return Ok(());
            }
        }
        self.end_piece();
        self.piece = Some(OpenPiece { unit, in_unit, range });
        Ok(())
    }

    fn end_piece(&mut self) {
        let Some(OpenPiece { unit, in_unit, range }) = self.piece.take() else { return };
        if self.first_pieces.last().is_none_or(|(last, _)| *last != unit) {
            self.first_pieces.push((unit, self.tables.pieces()));
        }
        // The number is that in the table, which has no units without pieces.
        let unit = (self.first_pieces.len() - 1) as u32;
        self.tables.piece(&Piece { unit, in_unit, range });
    }

    /// The check that goes on at `at`, with zeros up to there.
    fn open_at(&mut self, at: u64, unit: u32) -> &mut Open {
        let goes_on = |open: &Open| {
            let end = open.start + open.bytes.len() as u64;
            open.unit == unit && at >= end && at - end < BLOCK && at - open.start < CHECK
        };
        if !self.open.as_ref().is_some_and(goes_on) {
            self.close();
        }
        let buffer = &mut self.buffer;
        let open = self.open.get_or_insert_with(|| Open { start: at, bytes: std::mem::take(buffer), unit });
        let zeros = usize::try_from(at - open.start).unwrap_or(0);
        open.bytes.resize(zeros.max(open.bytes.len()), 0);
        open
    }

    fn close(&mut self) {
        let Some(Open { start, mut bytes, .. }) = self.open.take() else { return };
        let range = ByteRange { start, end: start + bytes.len() as u64 };
        if bytes.iter().all(|byte| *byte == 0) {
            // Nothing to store, nor to fetch: what was zeros in a blob of that digest always is.
            self.tables.check(&Check { range, kind: CheckKind::Hole });
        } else {
            self.tables.check(&Check { range, kind: CheckKind::Digest(Digest::of(&bytes)) });
            (self.keep)(start, &bytes);
        }
        bytes.clear();
        self.buffer = bytes;
    }

    /// The tables, with the units, and what of them is honest.
    fn finish(mut self) -> Result<(Tables, u64), Problem> {
        self.end_piece();
        let spans = self.spans.borrow();
        let next = self.first_pieces.iter().skip(1).map(|(_, piece)| *piece).chain([self.tables.pieces()]);
        for ((unit, first), end) in self.first_pieces.iter().zip(next) {
            let unit = *unit as usize;
            let span = spans.all.get(unit).ok_or(Problem::NoOffset)?;
            let compressed = ByteRange { start: span.compressed, end: end_of(&spans, unit) };
            let codec = codec(span, &mut self.tables);
            self.tables.unit(&Unit { compressed, codec, pieces: *first..end });
        }
        drop(spans);
        let share = self.charge.worth();
        Ok((self.tables, share))
    }
}

/// Where a unit ends in the blob: in the middle of the byte that the next one starts with, if that does.
fn end_of(spans: &Spans, unit: usize) -> u64 {
    match spans.all.get(unit + 1) {
        Some(Span { compressed, start: Start::Deflate { bits: 1.. }, .. }) => compressed.saturating_add(1),
        Some(next) => next.compressed,
        None => spans.end,
    }
}

fn codec(span: &Span, tables: &mut Tables) -> Codec {
    match span.start {
        Start::Stored => Codec::Stored,
        Start::Zstd => Codec::Zstd,
        Start::Deflate { bits } => Codec::Deflate { bits, window: tables.window(&span.window) },
    }
}
