//! One pass over a whole blob: downloaded, decompressed, indexed and stored at once, and nothing of it used before its digest is right.
//!
//! ```text
//! Blob::stream --async--> parts --thread--> sha256, unpack --> events --thread--> tar, index, sha256 --> a file without a name
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::source::Stream;
use super::unpacking::{Parts, Take, unpack};
use super::{Error, Source};
use crate::blob::{ByteRange, ByteSource, Digest};
use crate::budget::{Arrived, Budget, Charge, Exceeded};
use crate::cache::{Cache, Spool, Staged};
use crate::index::{
    self, Chunk, Chunks, Descriptor, Event, Failed, Format, Frames, Made, Packing, Split, TarSplitOrder, Unpacker,
};
use crate::registry::{self, Body, Freshness, Sent};
use crate::sys::expansion::{Allowance, Expands, Meter};
use crate::sys::frames::WideWindow;
use crate::threads::{self, Work};

/// Parts of a body that wait to be decompressed.
const PARTS: usize = 32;

/// What a pass has made: the index, and the contents, unless the cache would not have them.
pub struct Passed {
    pub made: Made,
    pub staged: Option<Staged>,
    /// The blob ends as one does that has a table of contents: the index was to be made of that.
    pub has_toc: bool,
}

/// Why it has made nothing.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error(transparent)]
    Index(#[from] index::Error),
    #[error(transparent)]
    Fetch(#[from] Error),
}

impl PassError {
    /// Whether other bytes came than the manifest names, so that a read past caches may mend it.
    #[must_use]
    pub const fn is_wrong_bytes(&self) -> bool {
        matches!(self, Self::Index(error) if error.is_wrong_bytes())
    }
}

/// A layer of which all is read.
pub struct Pass {
    pub layer: Descriptor,
    pub source: Source,
    /// What has begun to come of it, from its first byte on.
    pub body: Option<Body>,
    pub freshness: Freshness,
    pub cache: Cache,
    /// Told of each byte of the blob.
    pub progress: Arc<AtomicU64>,
    /// Whether it is known that what it holds cannot be had in parts.
    pub is_huge: bool,
    /// What it may unpack to, together with the other layers of its image.
    pub allowance: Allowance,
    /// Within which it is indexed.
    pub memory: Budget,
}

impl Pass {
    /// Indexes a layer that has no table of contents, and stores what it holds. `order`: where its tar-split is to be written as well.
    ///
    /// # Errors
    /// Where the blob cannot be had, does not have its digest, or is of no format that crfs can index.
    pub(crate) async fn index(self, order: Option<TarSplitOrder>) -> Result<Passed, PassError> {
        let (is_huge, memory, meter) = (self.is_huge, self.memory.clone(), Meter::new(&self.allowance));
        self.run(move |layer, parts, cache| {
            let (parts, charge) = counted(parts, &memory);
            Ok(index_blob(layer, (parts, meter), cache, is_huge, order, charge)?)
        })
        .await
    }

    /// Makes the tar-split of a layer.
    ///
    /// # Errors
    /// Where the blob cannot be had, does not have its digest, or cannot be unpacked.
    pub(crate) async fn split(self, order: TarSplitOrder) -> Result<Split, PassError> {
        let (memory, meter) = (self.memory.clone(), Meter::new(&self.allowance));
        self.run(move |layer, parts, _cache| {
            let (parts, charge) = counted(parts, &memory);
            let work = |_format, events: Take<'_>| index::split(layer.digest, events, order, charge);
            Ok(read_blob(layer, (parts, meter), work)?.0)
        })
        .await
    }

    /// Keeps the blob of a layer whose table of contents nothing else vouches for. Gives its bytes, which have its digest.
    ///
    /// # Errors
    /// Where the blob cannot be had, does not have its digest, or the cache has no room for it.
    pub async fn hold(self) -> Result<Arc<dyn ByteSource>, PassError> {
        self.run(keep_blob).await
    }

    /// Hands the blob as it comes to `work`, on a thread that may block.
    async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce(&Descriptor, mpsc::Receiver<Bytes>, &Cache) -> Result<T, PassError> + Send + 'static,
    ) -> Result<T, PassError> {
        let Self { layer, source, body, freshness, cache, progress, .. } = self;
        let (sender, receiver) = mpsc::channel(PARTS);
        let size = layer.size;
        let worker = threads::run(Work::Incoming, move || work(&layer, receiver, &cache));
        let body = match body {
            Some(body) => Ok(Stream::Body(body)),
            None => source.stream(ByteRange { start: 0, end: size }, freshness).await.map(Sent::into_inner),
        };
        let fed = feed(body, sender, &progress).await;
        let done = worker.await.map_err(|_| Error::Interrupted)?;
        fed?;
        done
    }
}

/// Hands the blob on as it comes, until nobody takes it.
async fn feed(
    body: Result<Stream, registry::Error>,
    sender: mpsc::Sender<Bytes>,
    progress: &AtomicU64,
) -> Result<(), registry::Error> {
    let mut body = body?;
    while let Some(part) = body.next().await {
        let part = part?;
        progress.fetch_add(part.len() as u64, Ordering::Relaxed);
        if sender.send(part).await.is_err() {
            break;
        }
    }
    Ok(())
}

fn keep_blob(
    layer: &Descriptor,
    parts: mpsc::Receiver<Bytes>,
    cache: &Cache,
) -> Result<Arc<dyn ByteSource>, PassError> {
    let mut parts = Parts::new(parts);
    let no_room = |_| Error::NoRoom { layer: layer.digest, needed: layer.size };
    let mut spool = cache.spool().map_err(no_room)?;
    while let Some(part) = parts.next() {
        spool.append(&part).map_err(no_room)?;
    }
    match parts.end() {
        (got, _) if got == layer.digest => Ok(Arc::new(spool)),
        (got, _) => Err(index::Error::BlobDigest { layer: layer.digest, got }.into()),
    }
}

/// The parts, and a charge for what is made of those that have come.
fn counted(parts: mpsc::Receiver<Bytes>, memory: &Budget) -> (Parts, Charge) {
    let arrived = Arrived::default();
    (Parts::new(parts).counted(&arrived), memory.charge_as_it_comes(&arrived))
}

/// The blocking half of a pass.
fn index_blob(
    layer: &Descriptor,
    parts: (Parts, Meter),
    cache: &Cache,
    is_huge: bool,
    order: Option<TarSplitOrder>,
    charge: Charge,
) -> Result<Passed, index::Error> {
    let (mut parts, meter) = parts;
    let head = parts.head();
    let format = index::plain_format(layer, &head)?;
    if format.is_filesystem() {
        return index_filesystem(layer, format, (parts, meter), cache, order.is_some(), charge);
    }
    let ((made, staged), tail) = read_blob(layer, (parts, meter), |format, events| {
        // A zstd blob is often one frame.
        let staged = cache.stage(is_huge || format == Format::TarZstd).ok();
        make(layer, format, events, staged, order, charge)
    })?;
    let has_toc = index::Footer::find(&tail).is_some_and(|footer| footer != index::Footer::External);
    Ok(Passed { made, staged, has_toc })
}

/// The same of a filesystem image: it is looked at when all of it is here and has its digest, since what is where stands anywhere in it.
fn index_filesystem(
    layer: &Descriptor,
    format: Format,
    (mut parts, mut meter): (Parts, Meter),
    cache: &Cache,
    is_split_wanted: bool,
    charge: Charge,
) -> Result<Passed, index::Error> {
    let is_packed = index::is_in_zstd(&parts.head());
    let unpacked = if is_packed {
        unpack_image(layer, &mut parts, &mut meter, cache)
    } else {
        take_image(layer, &mut parts, cache)
    };
    // Its digest tells whether it is the blob that is wrong, or what came of it.
    match parts.end() {
        (got, _) if got == layer.digest => {}
        (got, _) => return Err(index::Error::BlobDigest { layer: layer.digest, got }),
    }
    let (spool, frames) = unpacked?;
    let format = if is_packed { format_in(layer, &spool)? } else { format };
    let mut staged = Keeper { layer: layer.digest, staged: cache.stage(is_packed).ok(), has_room: true };
    let mut keep = |at: u64, bytes: &[u8]| staged.put(at, bytes);
    let made = match frames {
        Some(frames) => {
            index::make_of_unpacked_filesystem(layer.digest, (format, frames), &spool, &mut keep, meter, charge)
        }
        None => index::make_of_filesystem(layer.digest, format, &spool, &mut keep, meter, charge),
    };
    let mut made = made.map_err(|failed| match failed {
        Failed::Layer(error) => error,
        Failed::Stream(error) => broken(layer, error),
    })?;
    if !is_split_wanted {
        made.split = None;
    }
    Ok(Passed { made, staged: staged.staged, has_toc: false })
}

/// An image in a file of the cache; of one that was unpacked, its frames as well.
type Image = (Spool, Option<Frames>);

/// All of an image as it comes.
fn take_image(layer: &Descriptor, parts: &mut Parts, cache: &Cache) -> Result<Image, index::Error> {
    let no_room = |source| index::Error::NoRoom { layer: layer.digest, needed: layer.size, source };
    let mut spool = cache.spool().map_err(no_room)?;
    while let Some(part) = parts.next() {
        spool.append(&part).map_err(no_room)?;
    }
    Ok((spool, None))
}

/// The image in a zstd stream, and where it can be unpacked from later: units are of one frame, or of small ones side by side.
fn unpack_image(
    layer: &Descriptor,
    parts: &mut Parts,
    meter: &mut Meter,
    cache: &Cache,
) -> Result<Image, index::Error> {
    let no_room = |needed, source| index::Error::NoRoom { layer: layer.digest, needed, source };
    let mut spool = cache.spool().map_err(|source| no_room(layer.size, source))?;
    let (mut starts, mut hash, mut decoded, mut end, mut full) = (Vec::new(), Sha256::new(), 0_u64, 0, None);
    let mut tell = |event| {
        match event {
            Event::Unit { compressed, decoded, .. } => starts.push((compressed, decoded)),
            Event::Bytes(bytes) => {
                meter.unpacked(bytes.len())?;
                decoded += bytes.len() as u64;
                hash.update(&bytes);
                if let Err(source) = spool.append(&bytes) {
                    full = Some(source);
                    return Err(io::ErrorKind::StorageFull.into());
                }
            }
            Event::End { compressed } => end = compressed,
            Event::Window { .. } | Event::Holds(_) => {}
        }
        Ok(())
    };
    let mut unpacker = Unpacker::new(Format::TarZstd).map_err(|error| broken(layer, error))?;
    let mut read = Ok(());
    while let (Ok(()), Some(part)) = (&read, parts.next()) {
        read = unpacker.push(&part, &mut tell);
    }
    let read = read.and_then(|()| unpacker.finish(&mut tell));
    // What is left of it tells whether it is the right blob.
    while parts.next().is_some() {}
    if let Some(source) = full {
        return Err(no_room(decoded, source));
    }
    read.map_err(|error| broken(layer, error))?;
    starts.push((end, decoded));
    let mut chunks = Chunks::new(Packing::Frames);
    for (start, next) in starts.iter().zip(starts.iter().skip(1)).filter(|(start, next)| start.1 < next.1) {
        let (blob, image) = (ByteRange { start: start.0, end: next.0 }, ByteRange { start: start.1, end: next.1 });
        // They follow each other, as they came.
        let _added = chunks.add(&Chunk { image, blob, digest: Digest::from_bytes([0; 32]) });
    }
    Ok((spool, Some(Frames { diff_id: Digest::from_bytes(hash.finalize().into()), chunks })))
}

/// Which image was unpacked.
fn format_in(layer: &Descriptor, image: &Spool) -> Result<Format, index::Error> {
    let range = ByteRange { start: 0, end: image.size().min(index::HEAD as u64) };
    let head = image.read_at(range).map_err(|source| index::Error::Read { layer: layer.digest, range, source })?;
    index::format_of_image(layer, &head)
}

/// Hands what the blob unpacks to to `work`; what that makes of it counts when the blob has its digest. Gives the blob's last bytes, too.
fn read_blob<T>(
    layer: &Descriptor,
    (mut parts, meter): (Parts, Meter),
    work: impl FnOnce(Format, Take<'_>) -> Result<T, Failed>,
) -> Result<(T, Vec<u8>), index::Error> {
    let head = parts.head();
    let format = index::plain_format(layer, &head)?;
    let (unpacked, made) = unpack(format, parts, meter, |events| work(format, events));
    // Its digest tells whether it is the blob that is wrong, or what came of it.
    let (unpacked, (got, tail), meter) = unpacked.map_err(|error| broken(layer, error))?;
    if got != layer.digest {
        return Err(index::Error::BlobDigest { layer: layer.digest, got });
    }
    match (unpacked, made) {
        // The end of the events is then that of the reader.
        (Err(error), Err(Failed::Stream(_)) | Ok(_)) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(broken(layer, error))
        }
        (_, Err(Failed::Layer(error))) => Err(error),
        (_, Err(Failed::Stream(error))) => Err(broken(layer, error)),
        (_, Ok(made)) => {
            meter.keep();
            Ok((made, tail))
        }
    }
}

fn broken(layer: &Descriptor, source: io::Error) -> index::Error {
    let cause = source.get_ref();
    if let Some(found) = cause.and_then(|error| error.downcast_ref::<Expands>()) {
        return index::Error::Expands { layer: layer.digest, found: *found };
    }
    if let Some(exceeded) = cause.and_then(|error| error.downcast_ref::<Exceeded>()) {
        let (layer, what) = (layer.digest, "what is to be kept of how it is compressed, and of where its files are");
        return index::Error::Memory { layer, what, source: *exceeded };
    }
    match cause.and_then(|error| error.downcast_ref()) {
        Some(WideWindow { window, limit }) => {
            index::Error::Window { layer: layer.digest, window: *window, limit: *limit }
        }
        None => index::Error::Undecodable { layer: layer.digest, source },
    }
}

fn make(
    layer: &Descriptor,
    format: Format,
    events: Take<'_>,
    staged: Option<Staged>,
    order: Option<TarSplitOrder>,
    charge: Charge,
) -> Result<(Made, Option<Staged>), Failed> {
    let mut keeper = Keeper { layer: layer.digest, staged, has_room: true };
    let mut keep = |at: u64, bytes: &[u8]| keeper.put(at, bytes);
    let made = index::make(layer.digest, format, events, &mut keep, order, charge)?;
    Ok((made, keeper.staged))
}

/// Puts what a layer holds into the cache, while there is room for it.
struct Keeper {
    layer: Digest,
    staged: Option<Staged>,
    has_room: bool,
}

impl Keeper {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        if self.has_room && !self.staged.as_mut().is_some_and(|staged| staged.put(at, bytes)) {
            tracing::debug!(layer = %self.layer, at, "the cache has no room for the rest of the layer; it is fetched again when it is read");
            self.has_room = false;
        }
    }
}
