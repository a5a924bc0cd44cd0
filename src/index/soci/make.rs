//! A zTOC in, a layer index out: the same tables as those of an index of our own, but with the spans' digests alone.

use bytes::Bytes;

use super::{Compression, Ztoc};
use crate::blob::{ByteRange, Digest};
use crate::budget::{Budget, Charge};
use crate::index::builder::Builder;
use crate::index::error::{Error, Problem, Rejected};
use crate::index::plain::window;
use crate::index::stored::{self, Check, CheckKind, Codec, Encoded, Piece, Tables, Unit};
use crate::index::toc::EntryType;
use crate::index::{Descriptor, Format, Identity, Opened, Trust, limits};

/// Makes the index of a layer from its zTOC, whose digest is right.
pub(crate) fn index(layer: &Descriptor, digest: Digest, bytes: &Bytes, memory: &Budget) -> Result<Opened, Error> {
    let charge = memory.build(bytes.len() as u64);
    let (parsed, format) = read(layer, bytes, charge).map_err(|rejected| rejected.at(layer.digest))?;
    let format = if parsed.is_empty { Format::Empty } else { format };
    let identity = Some(Identity::Ztoc(digest));
    let Encoded { bytes: encoded, charge } =
        stored::encode(layer.digest, identity, format, bytes.len() as u64, None, parsed)?;
    Ok(Opened { format, trust: Trust::Soci, identity, encoded, blob: None, charge })
}

fn read(layer: &Descriptor, bytes: &Bytes, charge: Charge) -> Result<(crate::index::builder::Layer, Format), Rejected> {
    // The windows grow with the layer, as the layer's bytes do, which only the zTOC's are known of.
    let (mut of_spans, of_tables) = (charge.beside_windows(layer.size), charge.beside_windows(layer.size));
    let ztoc = super::read(bytes, layer.size, &mut of_spans)?;
    let mut builder = Builder::new(Codec::Stored, 0).charged(charge);
    let mut spans = Spans { ztoc: &ztoc, tables: Tables::default(), at: 0, open: None, charge: of_tables };
    ztoc.entries(&mut |entry| {
        let (name, offset, size) = (entry.name.clone(), entry.offset, entry.size);
        let is_file = entry.kind == Some(EntryType::File) && size > 0;
        let Some(start) = builder.add_placed(entry)?.filter(|_| is_file) else { return Ok(()) };
        spans.file(offset, size, start).map_err(|problem| Rejected::entry(&name, problem))
    })?;
    spans.close()?;
    let format = match ztoc.compression {
        Compression::Gzip => Format::TarGzip,
        Compression::Uncompressed => Format::Tar,
    };
    let share = spans.charge.worth();
    Ok((builder.finish_placed(spans.tables, share)?, format))
}

/// Bytes of the tables that a span takes, but for its window and pieces.
const EACH_SPAN: usize = 256;

/// The span that pieces are of now.
struct Open {
    span: usize,
    first_piece: u32,
    /// What its pieces fill of the layer file.
    filled: ByteRange,
}

struct Spans<'a> {
    ztoc: &'a Ztoc,
    tables: Tables,
    /// The span that the last contents were in.
    at: usize,
    open: Option<Open>,
    charge: Charge,
}

impl Spans<'_> {
    /// A file whose contents are at `offset` of the tar stream, and at `start` of the layer file.
    fn file(&mut self, offset: u64, size: u64, start: u64) -> Result<(), Problem> {
        let end = offset.checked_add(size).ok_or(Problem::NoOffset)?;
        let mut at = offset;
        while at < end {
            while self.end_of(self.at).is_some_and(|end| end <= at) {
                self.at += 1;
            }
            let span = self.ztoc.spans.get(self.at).filter(|span| span.decoded <= at).ok_or(Problem::NoOffset)?;
            let decoded = span.decoded;
            let until = self.end_of(self.at).unwrap_or(self.ztoc.decoded_size).min(end);
            // The last span may start where the blob ends: then nothing can be in it.
            if until <= at || span.compressed.is_empty() {
                return Err(Problem::OutsideBlob(ByteRange { start: at, end }));
            }
            if until - decoded > limits::UNIT_SKIPPED {
                let (value, limit) = (until - decoded, limits::UNIT_SKIPPED);
                return Err(Problem::Number { key: "the length of a span", value, limit });
            }
            let range = ByteRange { start: start + (at - offset), end: start + (until - offset) };
            self.piece(at - decoded, range)?;
            at = until;
        }
        Ok(())
    }

    /// Where a span ends in the tar stream; `None`: with it, or there is no such span.
    fn end_of(&self, span: usize) -> Option<u64> {
        self.ztoc.spans.get(span.saturating_add(1)).map(|next| next.decoded)
    }

    fn piece(&mut self, in_unit: u64, range: ByteRange) -> Result<(), Problem> {
        if self.open.as_ref().is_none_or(|open| open.span != self.at) {
            self.close()?;
            self.open = Some(Open { span: self.at, first_piece: self.tables.pieces(), filled: range });
        }
        if let Some(open) = &mut self.open {
            open.filled.end = range.end;
        }
        self.tables.piece(&Piece { unit: self.tables.units(), in_unit, range });
        Ok(())
    }

    /// No more pieces of the open span.
    fn close(&mut self) -> Result<(), Problem> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let span = self.ztoc.spans.get(open.span).ok_or(Problem::NoOffset)?;
        let next = span.window.as_ref().map_or(0, Bytes::len) + EACH_SPAN;
        self.charge.cover(self.tables.bytes() + next as u64, u64::MAX)?;
        let codec = match self.ztoc.compression {
            Compression::Uncompressed => Codec::Stored,
            Compression::Gzip => {
                let packed = span.window.as_ref().map(|bytes| window::pack(bytes)).transpose();
                let packed = packed.map_err(Problem::Window)?.unwrap_or_default();
                Codec::Deflate { bits: span.bits, window: self.tables.window(&packed) }
            }
        };
        let pieces = open.first_piece..self.tables.pieces();
        self.tables.unit(&Unit { compressed: span.compressed, codec, pieces });
        self.tables.check(&Check { range: open.filled, kind: CheckKind::Span(span.digest) });
        Ok(())
    }
}
