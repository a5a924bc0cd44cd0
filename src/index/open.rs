//! From a descriptor to a layer index: what is read, who vouches for it, and what comes out.

use bytes::Bytes;

use super::annotations::Named;
use super::builder::{Builder, Layer};
use super::error::{Error, Problem, Rejected};
use super::footer::{Footer, TocPosition};
use super::parse::Payload;
use super::source::{Blob, Stored};
use super::stored::{self, Codec};
use super::{Descriptor, ExternalToc, Format, Identity, Opened, Options, Trust, estargz, foreign, zstd_chunked};
use crate::blob::{ByteRange, ByteSource};

pub(super) fn open(
    layer: &Descriptor,
    source: &dyn ByteSource,
    external: ExternalToc<'_>,
    options: &Options,
) -> Result<Opened, Error> {
    if source.size() != layer.size {
        return Err(Error::Size { layer: layer.digest, said: layer.size, got: source.size() });
    }
    let named = Named::of(layer)?;
    let is_whole = layer.size < options.whole_layer_below;
    // A position that no digest goes with is only somebody's word: the blob's own digest vouches for its bytes, not for where its TOC is, so
    // there the footer counts. (An index that the blob vouches for is used for every image with that blob.)
    let vouched = named.identity().is_some() || (options.insecure_unverified_toc && !is_whole);
    let position = named.position.filter(|_| vouched);
    let blob = match position {
        _ if is_whole => Blob::whole(layer, source)?,
        Some(_) => Blob::nothing(layer, source),
        None => Blob::tail(layer, source)?,
    };
    let opening = Opening { layer, blob: &blob, named, is_whole, insecure: options.insecure_unverified_toc };
    match position.map(Footer::ZstdChunked).or_else(|| Footer::find(blob.bytes())) {
        None => opening.foreign(),
        Some(Footer::ZstdChunked(position)) => opening.zstd_chunked(position),
        Some(Footer::External) => opening.external(external),
        Some(footer @ Footer::Stargz { toc }) => opening.gzip(Format::Stargz, toc, footer.len()),
        Some(footer @ Footer::EStargz { toc }) => opening.gzip(Format::EStargz, toc, footer.len()),
    }
}

struct Opening<'a> {
    layer: &'a Descriptor,
    blob: &'a Blob<'a>,
    named: Named,
    /// The whole blob was asked for, and its digest was right.
    is_whole: bool,
    insecure: bool,
}

impl Opening<'_> {
    fn gzip(&self, format: Format, toc: u64, footer: u64) -> Result<Opened, Error> {
        let named = self.named.toc_digest;
        let trust = self.trust(format, named.is_some())?;
        let end = self.layer.size - footer;
        let range = ByteRange::new(toc, end).ok_or_else(|| {
            let at = ByteRange { start: end, end: toc };
            Rejected::from(Problem::Position(at)).at(self.layer.digest)
        })?;
        let stored = self.blob.toc(range)?;
        let payload = Payload { codec: Codec::Gzip, end: toc };
        let parsed = estargz::layer(stored.reader(), named, payload, self.layer.digest)?;
        self.finish(format, trust, named.map(Identity::Toc), &stored, parsed)
    }

    /// Only the TOC's own digest vouches for it: the blob's says nothing of another image.
    fn external(&self, external: ExternalToc<'_>) -> Result<Opened, Error> {
        let format = Format::EStargzExternalToc;
        let named = self.named.toc_digest;
        let trust = match named {
            Some(_) => Trust::Manifest,
            None if self.insecure => Trust::Unverified,
            None => return Err(self.unvouched(format)),
        };
        let toc = external(self.layer).map_err(|source| Error::ExternalToc { layer: self.layer.digest, source })?;
        let stored = Stored([toc, Bytes::new()]);
        let payload = Payload { codec: Codec::Gzip, end: self.layer.size - Footer::External.len() };
        let parsed = estargz::layer(stored.reader(), named, payload, self.layer.digest)?;
        self.finish(format, Some(trust), named.map(Identity::Toc), &stored, parsed)
    }

    fn zstd_chunked(&self, position: TocPosition) -> Result<Opened, Error> {
        let Named { checksum, toc_digest, .. } = self.named;
        let identity = self.named.identity();
        let trust = self.trust(Format::ZstdChunked, identity.is_some())?;
        let stored = self.blob.toc(position.stored)?;
        let parsed = zstd_chunked::layer(&stored, position, checksum, toc_digest, self.layer.digest)?;
        self.finish(Format::ZstdChunked, trust, identity, &stored, parsed)
    }

    /// A layer of another format: served where it is known to be empty.
    fn foreign(&self) -> Result<Opened, Error> {
        let whole = if self.is_whole { Some(self.blob.bytes()) } else { self.blob.if_whole() };
        if whole.is_some_and(|blob| foreign::is_empty_tar(blob)) {
            let empty = Builder::new(Codec::Gzip, 0).finish().map_err(|rejected| rejected.at(self.layer.digest))?;
            let stored = Stored([Bytes::new(), Bytes::new()]);
            return self.finish(Format::Empty, Some(Trust::Blob), None, &stored, empty);
        }
        let what = foreign::name(self.layer, whole.map(AsRef::as_ref));
        Err(Error::Foreign { layer: self.layer.digest, what })
    }

    /// Who vouches for a TOC in the blob. `None`: nobody yet, but what was read is the whole blob, which counts for an empty layer.
    fn trust(&self, format: Format, is_named: bool) -> Result<Option<Trust>, Error> {
        if is_named {
            Ok(Some(Trust::Manifest))
        } else if self.is_whole {
            Ok(Some(Trust::Blob))
        } else if self.insecure {
            Ok(Some(Trust::Unverified))
        } else if self.blob.if_whole().is_some() {
            Ok(None)
        } else {
            Err(self.unvouched(format))
        }
    }

    fn unvouched(&self, format: Format) -> Error {
        Error::Unvouched { layer: self.layer.digest, format, size: self.layer.size }
    }

    fn finish(
        &self,
        format: Format,
        trust: Option<Trust>,
        named: Option<Identity>,
        toc: &Stored,
        parsed: Layer,
    ) -> Result<Opened, Error> {
        let trust = match trust {
            Some(trust) => trust,
            None if parsed.is_empty => Trust::Blob,
            None => return Err(self.unvouched(format)),
        };
        let identity = match trust {
            Trust::Manifest => named,
            Trust::Blob => Some(Identity::Own),
            Trust::Unverified => None,
        };
        let format = if parsed.is_empty { Format::Empty } else { format };
        let encoded = stored::encode(self.layer.digest, identity, format, toc.len(), parsed)
            .map_err(|source| Error::Encode { layer: self.layer.digest, source })?;
        let blob = self.is_whole.then(|| self.blob.bytes().clone());
        Ok(Opened { format, trust, identity, encoded, blob })
    }
}
