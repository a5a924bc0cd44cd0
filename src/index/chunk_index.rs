//! The chunk index of an EROFS image (draft of erofs-image-spec, section 3.4): the digests of all parts of a blob as they are stored.
//!
//! ```text
//! header   32   cd e4 ec 67, u8 version 1, u8 packing (0 none, 1 a zstd frame for each chunk), u16 flags 0,
//!               u64 bytes of the image, u32 chunks, u8 hash (0 none, 1 SHA-2), u8 its bytes, 10 zeros
//! chunk  16+n   u64 where it is in the blob, u64 where in the image, its digest as it is stored
//! ```
//!
//! It is in the blob, behind the image; of one that is packed, in a skippable frame of zstd (8 bytes more at its beginning). The manifest names
//! its place and its digest. Or it is a layer of its own behind the one that it is of.

use super::Descriptor;
use super::stored::chunks::{Chunk, Chunks, Packing};
use crate::blob::{ByteRange, Digest};

const RANGE: &str = "org.erofs.chunk-index.range";
const DIGEST: &str = "org.erofs.chunk-index.digest";
const MEDIA_TYPE: &str = "org.erofs.chunk-index.mediaType";

/// Not of a manifest: the layer behind this one is its index, and has this digest.
pub(crate) const LAYER: &str = "crfs.chunk-index-layer";

/// The type of the version that is read.
const VERSION_1: &str = "application/vnd.erofs.chunk-index.v1";

const MAGIC: [u8; 4] = [0xcd, 0xe4, 0xec, 0x67];
const HEADER: usize = 32;

/// What a skippable frame begins with (RFC 8878, section 3.1.2), and its length.
const SKIPPABLE: u32 = 0x184d_2a50;
const FRAME: usize = 8;

/// Bytes of the largest that is read: 1.4 million chunks.
pub(crate) const LARGEST: u64 = 64 << 20;

/// Bytes of the largest chunk, as it is stored and in the image: it is verified as a whole before anything in it is used.
const LARGEST_STORED: u64 = 32 << 20;
const LARGEST_CHUNK: u64 = 64 << 20;

/// Where a manifest says that the chunk index of a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// `None`: it is a layer of its own.
    pub(super) range: Option<ByteRange>,
    pub(super) digest: Digest,
}

impl Place {
    /// `None`: the manifest names none, or no digest of it, so that nothing would vouch for it, or one of another version.
    pub(super) fn of(layer: &Descriptor) -> Option<Self> {
        let get = |key: &str| layer.annotations.get(key);
        if let Some(digest) = get(LAYER).and_then(|digest| digest.parse().ok()) {
            return Some(Self { range: None, digest });
        }
        if get(MEDIA_TYPE).is_some_and(|kind| kind != VERSION_1) {
            return None;
        }
        let digest = get(DIGEST)?.parse().ok()?;
        let range = get(RANGE)?;
        let (start, end) = range.split_once(':').map_or((range.as_str(), None), |(start, end)| (start, Some(end)));
        let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok())?;
        let end = match end {
            Some(end) => number(end)?,
            None => layer.size,
        };
        let range = ByteRange::new(number(start)?, end).filter(|range| !range.is_empty() && range.end <= layer.size);
        Some(Self { range: Some(range?), digest })
    }
}

/// The chunk index itself in what a layer has at its place.
pub(super) fn payload(section: &[u8]) -> Result<&[u8], String> {
    let word = |at: usize| section.get(at..).and_then(<[u8]>::first_chunk).map(|word| u32::from_le_bytes(*word));
    if section.starts_with(&MAGIC) {
        return Ok(section);
    }
    let is_frame = word(0).is_some_and(|magic| magic & !0xf == SKIPPABLE);
    let len = word(4).filter(|_| is_frame).and_then(|len| usize::try_from(len).ok());
    let payload = len.and_then(|len| section.get(FRAME..)?.get(..len));
    payload.ok_or_else(|| "what is at its place is neither one nor a frame with one".to_owned())
}

/// Where chunks may be: before the index of a blob that has it, and within the blob.
pub(super) fn chunks(payload: &[u8], end: u64) -> Result<Chunks, String> {
    let (head, entries) = payload.split_at_checked(HEADER).ok_or("it is cut off")?;
    let u64_at = |bytes: &[u8], at: usize| {
        bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u64::from_le_bytes(*word))
    };
    let [m0, m1, m2, m3, version, packing, flags0, flags1] = *head.first_chunk().ok_or("it is cut off")?;
    if [m0, m1, m2, m3] != MAGIC {
        return Err("it begins as none does".to_owned());
    }
    if version != 1 || [flags0, flags1] != [0, 0] || head.get(22..).is_none_or(|rest| rest.iter().any(|b| *b != 0)) {
        return Err(format!("it is of the version {version} with flags that crfs does not know"));
    }
    let size = u64_at(head, 8);
    let count = (u64_at(head, 16) & u64::from(u32::MAX)) as usize;
    if head.get(20..22) != Some(&[1, 32]) {
        return Err("its digests are not those of sha256".to_owned());
    }
    let packing = match packing {
        0 => Packing::Stored,
        1 => Packing::Zstd,
        other => return Err(format!("its chunks are packed in the way {other}")),
    };
    const ENTRY: usize = 16 + 32;
    if Some(entries.len()) != count.checked_mul(ENTRY) {
        return Err(format!("it has {} bytes for {count} chunks", entries.len()));
    }
    let (is_stored, mut chunks) = (packing == Packing::Stored, Chunks::new(packing));
    let mut entries = entries.chunks_exact(ENTRY).peekable();
    while let Some(entry) = entries.next() {
        let (blob, image) = (u64_at(entry, 0), u64_at(entry, 8));
        let next = entries.peek();
        let image = ByteRange::new(image, next.map_or(size, |next| u64_at(next, 8)));
        let blob = match image.filter(|_| is_stored) {
            Some(image) => ByteRange::at(blob, image.len()),
            None => ByteRange::new(blob, next.map_or(end, |next| u64_at(next, 0))),
        };
        let digest = entry.get(16..).and_then(<[u8]>::first_chunk).map(|digest| Digest::from_bytes(*digest));
        let places = image.zip(blob.filter(|blob| blob.end <= end));
        let chunk = places.zip(digest).map(|((image, blob), digest)| Chunk { image, blob, digest });
        let chunk = chunk.ok_or("a chunk lies outside of the layer")?;
        if chunk.blob.len() > LARGEST_STORED || chunk.image.len() > LARGEST_CHUNK {
            return Err(format!(
                "the chunk at {} unpacks to {} bytes, too much to verify at once",
                chunk.blob,
                chunk.image.len()
            ));
        }
        chunks.add(&chunk).ok_or_else(|| format!("the chunk at {} does not follow the one before it", chunk.blob))?;
    }
    if chunks.len() == 0 { Err("it has no chunks".to_owned()) } else { Ok(chunks) }
}

/// Where the chunks of an index are in a blob that it ends at `end`, and in the image; `None` where it is refused.
#[cfg(fuzzing)]
pub fn read_for_fuzzing(section: &[u8], end: u64) -> Option<Vec<(ByteRange, ByteRange)>> {
    let chunks = chunks(payload(section).ok()?, end).ok()?;
    Some((0..chunks.len()).filter_map(|number| chunks.get(number)).map(|chunk| (chunk.blob, chunk.image)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(packing: u8, size: u64, chunks: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = [&MAGIC[..], &[1, packing, 0, 0], &size.to_le_bytes()].concat();
        bytes.extend_from_slice(&(chunks.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&[1, 32]);
        bytes.resize(HEADER, 0);
        for (blob, image) in chunks {
            bytes.extend_from_slice(&blob.to_le_bytes());
            bytes.extend_from_slice(&image.to_le_bytes());
            bytes.extend_from_slice(&[7; 32]);
        }
        bytes
    }

    fn read(bytes: &[u8], end: u64) -> Result<Vec<(ByteRange, ByteRange)>, String> {
        let chunks = chunks(bytes, end)?;
        Ok((0..chunks.len()).filter_map(|number| chunks.get(number)).map(|chunk| (chunk.blob, chunk.image)).collect())
    }

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange { start, end }
    }

    #[test]
    fn chunks_end_where_the_next_begins() {
        let stored = read(&index(0, 100, &[(0, 0), (60, 60)]), 100).unwrap();
        assert_eq!(stored, [(range(0, 60), range(0, 60)), (range(60, 100), range(60, 100))]);
        let packed = read(&index(1, 100, &[(0, 0), (20, 60)]), 50).unwrap();
        assert_eq!(packed, [(range(0, 20), range(0, 60)), (range(20, 50), range(60, 100))]);
    }

    #[test]
    fn what_is_none_is_refused_by_what_is_wrong() {
        let good = index(1, 100, &[(0, 0), (20, 60)]);
        for (at, value, why) in [
            (0, 0, "begins as none"),
            (4, 2, "version 2"),
            (5, 7, "the way 7"),
            (6, 1, "flags"),
            (16, 3, "3 chunks"),
            (20, 0, "sha256"),
            (21, 64, "sha256"),
            (31, 1, "flags"),
            (40, 1, "does not follow"),
            (80, 90, "outside"),
        ] {
            let mut bad = good.clone();
            bad[at] = value;
            let got = read(&bad, 50);
            assert!(got.as_ref().is_err_and(|error| error.contains(why)), "{at}: {got:?}");
        }
        assert!(read(&good[..good.len() - 1], 50).is_err() && read(&good[..31], 50).is_err() && read(&[], 0).is_err());
        assert!(read(&good, 10).unwrap_err().contains("outside"));
        assert!(read(&index(0, 0, &[]), 0).unwrap_err().contains("no chunks"));
        assert!(read(&index(1, 1 << 40, &[(0, 0)]), 9).unwrap_err().contains("too much"));
        assert!(read(&index(0, 100, &[(u64::MAX - 3, 0)]), u64::MAX).unwrap_err().contains("outside"));
    }

    #[test]
    fn it_is_alone_or_in_a_skippable_frame() {
        let index = index(0, 100, &[(0, 0)]);
        let frame = [&0x184d_2a57_u32.to_le_bytes()[..], &(index.len() as u32).to_le_bytes(), &index].concat();
        assert_eq!(payload(&index), Ok(&index[..]));
        assert_eq!(payload(&frame), Ok(&index[..]));
        assert!(payload(&frame[..frame.len() - 1]).is_err() && payload(b"").is_err() && payload(&[0; 99]).is_err());
    }

    #[test]
    fn a_place_has_a_range_and_a_digest() {
        let digest = Digest::of(b"x");
        let of = |annotations: &[(&str, &str)]| {
            let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            Place::of(&Descriptor { digest, size: 1000, media_type: String::new(), annotations })
        };
        let text = digest.to_string();
        let some = |start, end| Some(Place { range: Some(range(start, end)), digest });
        assert_eq!(of(&[(RANGE, "900:990"), (DIGEST, &text)]), some(900, 990));
        assert_eq!(of(&[(RANGE, "900"), (DIGEST, &text), (MEDIA_TYPE, VERSION_1)]), some(900, 1000));
        for bad in ["", "900:", "990:900", "900:1001", "+1:9", "-1:9", "1:2:3", "x", "1000:1000"] {
            assert_eq!(of(&[(RANGE, bad), (DIGEST, &text)]), None, "{bad}");
        }
        assert_eq!(of(&[(LAYER, &text)]), Some(Place { range: None, digest }));
        assert_eq!(of(&[(RANGE, "900")]), None);
        assert_eq!(of(&[(RANGE, "900"), (DIGEST, "sha512:00")]), None);
        assert_eq!(of(&[(RANGE, "900"), (DIGEST, &text), (MEDIA_TYPE, "application/vnd.erofs.chunk-index.v2")]), None);
    }
}
