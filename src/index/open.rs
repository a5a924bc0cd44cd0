//! From a descriptor to a layer index: what is read, who vouches for it, and what comes out.

use std::cell::RefCell;

use bytes::Bytes;

use super::annotations::{Named, OfImage};
use super::builder::Layer;
use super::error::{Error, Problem, Rejected};
use super::footer::{Footer, TocPosition};
use super::parse::Payload;
use super::plain::Failed;
use super::source::{Blob, Stored};
use super::stored::{self, Chunks, Codec, Encoded};
use super::{
    Admit, Descriptor, ExternalToc, Format, Found, Identity, Opened, Options, Trust, chunk_index, estargz, filesystem,
    foreign, verity, zstd_chunked,
};
use crate::blob::{ByteRange, ByteSource, Digest, SourceError};
use crate::budget::{Budget, Charge, Place};

/// How much of the blob is known to be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whole {
    /// What is read of it is only somebody's word.
    No,
    /// All of it is read, and has its digest.
    Read,
    /// All of it was read before, and had its digest.
    Verified,
}

/// Who may vouch for a TOC.
#[derive(Debug, Clone, Copy)]
struct Vouchers {
    named: Named,
    whole: Whole,
    insecure: bool,
}

impl Vouchers {
    fn new(layer: &Descriptor, named: Named, options: &Options) -> Self {
        let whole = if layer.size < options.whole_layer_below { Whole::Read } else { Whole::No };
        Self { named, whole, insecure: options.insecure_unverified_toc }
    }
}

pub(super) fn open(
    layer: &Descriptor,
    source: &dyn ByteSource,
    external: ExternalToc<'_>,
    options: &Options,
) -> Result<Found, Error> {
    look(layer, source, external, Vouchers::new(layer, Named::of(layer)?, options), &options.memory)
}

/// The same where what the manifest names is not to be had: only the blob's own digest can vouch.
pub(super) fn open_unnamed(layer: &Descriptor, source: &dyn ByteSource, options: &Options) -> Result<Found, Error> {
    // What does not fit is no reason to believe more.
    let vouchers = Vouchers { insecure: false, ..Vouchers::new(layer, Named::default(), options) };
    look(layer, source, &nowhere, vouchers, &options.memory)
}

pub(super) fn open_whole(layer: &Descriptor, source: &dyn ByteSource, memory: &Budget) -> Result<Opened, Error> {
    let vouchers = Vouchers { named: Named::default(), whole: Whole::Verified, insecure: false };
    match look(layer, source, &nowhere, vouchers, memory)? {
        Found::Indexed(opened) => Ok(opened),
        Found::Plain { .. } | Found::Unvouched(_) => Err(Error::NoToc { layer: layer.digest }),
    }
}

fn nowhere(_: &Descriptor, _: Admit<'_>) -> Result<Bytes, SourceError> {
    Err("it is in another image, which the digest of the layer says nothing of".into())
}

fn look(
    layer: &Descriptor,
    source: &dyn ByteSource,
    external: ExternalToc<'_>,
    vouchers: Vouchers,
    memory: &Budget,
) -> Result<Found, Error> {
    let Vouchers { named, whole, insecure } = vouchers;
    if source.size() != layer.size {
        return Err(Error::Size { layer: layer.digest, said: layer.size, got: source.size() });
    }
    foreign::refuse(layer)?;
    let is_filesystem = foreign::filesystem(layer).is_some();
    // A position that no digest goes with is only somebody's word: the blob's own digest vouches for its bytes, not for where its TOC is, so
    // there the footer counts. (An index that the blob vouches for is used for every image with that blob.)
    let vouched = named.identity().is_some() || (insecure && whole == Whole::No);
    let position = named.position.filter(|_| vouched);
    let (bytes, what) = match position {
        _ if whole == Whole::Read => (layer.size, "all of it, since it is small"),
        Some(_) => (0, ""),
        None if is_filesystem => (0, ""),
        None => (Blob::tail_len(layer, named.identity().is_some()), "its end, where its table of contents is"),
    };
    let (turn, mut of_blob) =
        (Some(bytes).filter(|bytes| *bytes > 0).and_then(|bytes| memory.turn(bytes)), memory.charge(0));
    of_blob.cover(bytes, 0).map_err(|source| Error::Memory { layer: layer.digest, what, source })?;
    let blob = match position {
        _ if whole == Whole::Read => Blob::whole(layer, source)?,
        _ if position.is_some() || is_filesystem => Blob::nothing(layer, source),
        _ => Blob::tail(layer, source, bytes)?,
    };
    let opening = Opening { layer, blob: &blob, vouchers, memory, turn: RefCell::new((bytes, turn)) };
    // A filesystem image has no table of contents for us, whatever it ends with.
    if is_filesystem {
        return opening.image(source, external);
    }
    let found = match position.map(Footer::ZstdChunked).or_else(|| Footer::find(blob.bytes())) {
        None => opening.plain(),
        Some(Footer::ZstdChunked(position)) => opening.zstd_chunked(position),
        Some(Footer::External) => opening.external(external),
        Some(footer @ Footer::Stargz { toc }) => opening.gzip(Format::Stargz, toc, footer.len()),
        Some(footer @ Footer::EStargz { toc }) => opening.gzip(Format::EStargz, toc, footer.len()),
    };
    // Whoever takes the blob charges for it.
    drop(of_blob);
    found
}

struct Opening<'a> {
    layer: &'a Descriptor,
    blob: &'a Blob<'a>,
    vouchers: Vouchers,
    memory: &'a Budget,
    /// That in which so many bytes of the blob were read.
    turn: RefCell<(u64, Option<Place>)>,
}

impl Opening<'_> {
    fn gzip(&self, format: Format, toc: u64, footer: u64) -> Result<Found, Error> {
        let named = self.vouchers.named.toc_digest;
        let Some(trust) = self.trust(named.is_some()) else { return Ok(Found::Unvouched(format)) };
        let end = self.layer.size - footer;
        let range = ByteRange::new(toc, end).ok_or_else(|| {
            let at = ByteRange { start: end, end: toc };
            Rejected::from(Problem::Position(at)).at(self.layer.digest)
        })?;
        let (_turn, mut of_toc) = (self.turn(range.len()), self.memory.charge(0));
        let stored = self.blob.toc(range, &mut of_toc)?;
        let payload = Payload { codec: Codec::Gzip, end: toc };
        let parsed = estargz::layer(&stored, named, payload, self.layer.digest, self.build(&stored))?;
        self.finish(format, trust, named.map(Identity::Toc), &stored, parsed)
    }

    /// Only the TOC's own digest vouches for it: the blob's says nothing of another image.
    fn external(&self, external: ExternalToc<'_>) -> Result<Found, Error> {
        let format = Format::EStargzExternalToc;
        let named = self.vouchers.named.toc_digest;
        let trust = match named {
            Some(_) => Trust::Manifest,
            None if self.vouchers.insecure => Trust::Unverified,
            // What has its TOC elsewhere is an ordinary tar.
            None => return self.plain(),
        };
        let layer = self.layer.digest;
        let (mut of_toc, mut turn, mut refused) = (self.memory.charge(0), None, None);
        let read = external(self.layer, &mut |len| {
            turn = self.turn(len);
            of_toc.cover(len, 0).map_err(|exceeded| refused.insert(exceeded).to_string().into())
        });
        if let Some(source) = refused {
            return Err(Error::Memory { layer, what: "its table of contents", source });
        }
        let toc = read.map_err(|source| Error::ExternalToc { layer, source })?;
        let stored = Stored([toc, Bytes::new()]);
        let payload = Payload { codec: Codec::Gzip, end: self.layer.size - Footer::External.len() };
        let parsed = estargz::layer(&stored, named, payload, self.layer.digest, self.build(&stored))?;
        self.finish(format, trust, named.map(Identity::Toc), &stored, parsed)
    }

    /// The turn of a table of contents of so many bytes. What was read of the blob mostly has it; who has a turn waits for no other.
    fn turn(&self, bytes: u64) -> Option<Place> {
        let (read, turn) = &mut *self.turn.borrow_mut();
        if self.vouchers.whole == Whole::Read || bytes <= *read {
            return None;
        }
        *turn = None;
        self.memory.turn(bytes)
    }

    /// What making an index of a TOC is charged to.
    fn build(&self, toc: &Stored) -> Charge {
        self.memory.build(toc.len())
    }

    fn zstd_chunked(&self, position: TocPosition) -> Result<Found, Error> {
        let Named { checksum, toc_digest, .. } = self.vouchers.named;
        let identity = self.vouchers.named.identity();
        let Some(trust) = self.trust(identity.is_some()) else { return Ok(Found::Unvouched(Format::ZstdChunked)) };
        let (_turn, mut of_toc) = (self.turn(position.stored.len()), self.memory.charge(0));
        let stored = self.blob.toc(position.stored, &mut of_toc)?;
        let parsed =
            zstd_chunked::layer(&stored, position, checksum, toc_digest, self.layer.digest, self.build(&stored))?;
        self.finish(Format::ZstdChunked, trust, identity, &stored, parsed)
    }

    /// A filesystem image, by what vouches for parts of it.
    fn image(&self, source: &dyn ByteSource, external: ExternalToc<'_>) -> Result<Found, Error> {
        let Some(named) = self.vouchers.named.image else { return self.plain() };
        let (identity, known) = (Identity::Toc(named.digest()), self.known_whole());
        let blob: &dyn ByteSource = known.as_ref().map_or(source, |known| known);
        let (layer, mut charge) = (self.layer.digest, self.memory.build(self.layer.size));
        let (chunks, len) = match named {
            OfImage::ChunkIndex(place) => self.chunk_index(blob, place, external, &mut charge)?,
            OfImage::Verity(place) => (self.verity(blob, &place, &mut charge)?, 0),
        };
        let vouchers = filesystem::Vouchers { identity, chunks, len };
        let made = filesystem::make_vouched(layer, blob, vouchers, charge).map_err(|failed| match failed {
            Failed::Layer(error) => error,
            Failed::Stream(error) if filesystem::is_wrong_chunk(&error) => {
                Error::Unvouched { layer, what: "image", problem: error.to_string() }
            }
            Failed::Stream(error) => {
                let range = ByteRange { start: 0, end: self.layer.size };
                Error::Read { layer, range, source: error.into() }
            }
        });
        let (format, Encoded { bytes: encoded, charge }) = made?;
        let (trust, identity) = (Trust::Manifest, Some(identity));
        Ok(Found::Indexed(Opened { format, trust, identity, encoded, blob: known, charge }))
    }

    fn chunk_index(
        &self,
        blob: &dyn ByteSource,
        place: chunk_index::Place,
        external: ExternalToc<'_>,
        charge: &mut Charge,
    ) -> Result<(Chunks, u64), Error> {
        let layer = self.layer.digest;
        let unusable = |problem| Error::Unvouched { layer, what: "chunk index", problem };
        // As it is, and its records.
        let mut exceeded = None;
        let mut room = |len: u64| {
            if len > chunk_index::LARGEST {
                return Err(format!("it has {len} bytes, more than the {} that crfs reads", chunk_index::LARGEST));
            }
            let bytes = len.saturating_mul(3);
            charge.cover(bytes, bytes).map_err(|source| exceeded.insert(source).to_string())
        };
        let section = match place.range {
            Some(range) => {
                let read = || blob.read_at(range).map_err(|source| Error::Read { layer, range, source });
                room(range.len()).map_err(unusable).and_then(|()| read())
            }
            None => external(self.layer, &mut |len| Ok(room(len)?)).map_err(|source| unusable(source.to_string())),
        };
        if let Some(source) = exceeded {
            return Err(Error::Memory { layer, what: "its chunk index", source });
        }
        let section = section?;
        let payload = chunk_index::payload(&section).map_err(unusable)?;
        match Digest::of(payload) {
            got if got == place.digest => {}
            got => return Err(unusable(format!("it has the digest {got}, but the manifest names {}", place.digest))),
        }
        let end = place.range.map_or(self.layer.size, |range| range.start);
        Ok((chunk_index::chunks(payload, end).map_err(unusable)?, section.len() as u64))
    }

    fn verity(&self, blob: &dyn ByteSource, place: &verity::Place, charge: &mut Charge) -> Result<Chunks, Error> {
        let layer = self.layer.digest;
        let mut exceeded = None;
        let chunks = verity::chunks(blob, place, &mut |bytes| {
            charge.cover(bytes, bytes).map_err(|source| exceeded.insert(source).to_string())
        });
        if let Some(source) = exceeded {
            return Err(Error::Memory { layer, what: "its hash tree", source });
        }
        chunks.map_err(|bad| match bad {
            verity::Bad::Read(range, source) => Error::Read { layer, range, source },
            verity::Bad::Tree(problem) => Error::Unvouched { layer, what: "dm-verity tree", problem },
        })
    }

    /// A layer without a TOC.
    fn plain(&self) -> Result<Found, Error> {
        match self.vouchers.named.identity() {
            Some(_) => Err(Error::NoToc { layer: self.layer.digest }),
            None => Ok(Found::Plain { blob: self.known_whole() }),
        }
    }

    /// The whole blob, where it was read for the first time now and has its digest.
    fn known_whole(&self) -> Option<Bytes> {
        match self.vouchers.whole {
            Whole::Read => Some(self.blob.bytes().clone()),
            Whole::No => self.blob.if_whole().cloned(),
            Whole::Verified => None,
        }
    }

    /// Who vouches for a TOC in the blob. `None`: nobody yet.
    fn trust(&self, is_named: bool) -> Option<Trust> {
        if is_named {
            Some(Trust::Manifest)
        } else if self.vouchers.whole != Whole::No || self.blob.if_whole().is_some() {
            Some(Trust::Blob)
        } else if self.vouchers.insecure {
            Some(Trust::Unverified)
        } else {
            None
        }
    }

    fn finish(
        &self,
        format: Format,
        trust: Trust,
        named: Option<Identity>,
        toc: &Stored,
        parsed: Layer,
    ) -> Result<Found, Error> {
        let identity = match trust {
            Trust::Manifest => named,
            Trust::Blob => Some(Identity::Own),
            Trust::Soci | Trust::Unverified => None,
        };
        let format = if parsed.is_empty { Format::Empty } else { format };
        let Encoded { bytes: encoded, charge } =
            stored::encode(self.layer.digest, identity, format, toc.len(), None, parsed)?;
        Ok(Found::Indexed(Opened { format, trust, identity, encoded, blob: self.known_whole(), charge }))
    }
}
