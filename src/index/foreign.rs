//! Layers of other formats: empty ones are served, the others are named.

use std::io::Read;

use flate2::bufread::MultiGzDecoder;

use super::{Descriptor, limits};

/// Whether a whole blob is a tar without entries: nothing but zeros, compressed or not.
pub(super) fn is_empty_tar(blob: &[u8]) -> bool {
    if blob.starts_with(GZIP) {
        return is_zeros(MultiGzDecoder::new(blob));
    }
    if is_zstd(blob) {
        return zstd::stream::read::Decoder::with_buffer(blob).is_ok_and(is_zeros);
    }
    is_zeros(blob)
}

fn is_zeros(tar: impl Read) -> bool {
    let mut bytes = tar.take(limits::EMPTY_TAR + 1);
    let mut buffer = [0; 4096];
    let mut seen = 0;
    loop {
        match bytes.read(&mut buffer) {
            Ok(0) => return seen <= limits::EMPTY_TAR,
            Ok(got) if buffer.iter().take(got).all(|byte| *byte == 0) => seen += got as u64,
            _ => return false,
        }
    }
}

const GZIP: &[u8] = &[0x1f, 0x8b];

fn is_zstd(blob: &[u8]) -> bool {
    let skippable = matches!(blob, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]);
    skippable || blob.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
}

/// What a layer is, for the message that refuses it. `head`: the blob's first bytes, where they were read.
pub(super) fn name(layer: &Descriptor, head: Option<&[u8]>) -> String {
    let media_type: String = layer.media_type.chars().take(200).collect();
    let what = by_media_type(&media_type).or_else(|| head.and_then(by_magic)).or_else(|| by_suffix(&media_type));
    what.map_or_else(|| format!("of an unknown format (media type {media_type:?})"), str::to_owned)
}

/// Media types that mean something else than a tar.
fn by_media_type(media_type: &str) -> Option<&'static str> {
    let is_layer = ["application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."];
    if media_type.ends_with("+encrypted") {
        Some("encrypted")
    } else if media_type.contains("erofs") {
        Some("an EROFS filesystem image")
    } else if !media_type.is_empty() && !is_layer.iter().any(|prefix| media_type.starts_with(prefix)) {
        Some("an artifact, not a filesystem layer")
    } else {
        None
    }
}

fn by_magic(head: &[u8]) -> Option<&'static str> {
    const EROFS: &[u8] = &[0xe2, 0xe1, 0xf5, 0xe0];
    if head.starts_with(GZIP) {
        Some(PLAIN_GZIP)
    } else if is_zstd(head) {
        Some(PLAIN_ZSTD)
    } else if head.starts_with(b"\xfd7zXZ\0") {
        Some("a tar compressed with xz")
    } else if head.starts_with(b"BZh") {
        Some("a tar compressed with bzip2")
    } else if head.get(257..).is_some_and(|rest| rest.starts_with(b"ustar")) {
        Some(PLAIN_TAR)
    } else if head.get(1024..).is_some_and(|rest| rest.starts_with(EROFS)) {
        Some("an EROFS filesystem image")
    } else {
        None
    }
}

fn by_suffix(media_type: &str) -> Option<&'static str> {
    let ends = |suffixes: &[&str]| suffixes.iter().any(|suffix| media_type.ends_with(suffix));
    if ends(&["+gzip", ".gzip"]) {
        Some(PLAIN_GZIP)
    } else if ends(&["+zstd", ".zstd"]) {
        Some(PLAIN_ZSTD)
    } else if ends(&[".tar"]) {
        Some(PLAIN_TAR)
    } else {
        None
    }
}

const PLAIN_GZIP: &str = "a plain tar compressed with gzip, which has no table of contents";
const PLAIN_ZSTD: &str = "a plain tar compressed with zstd, which has no table of contents";
const PLAIN_TAR: &str = "a plain tar, which has no table of contents";
