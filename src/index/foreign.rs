//! What a layer without a table of contents is: one that can be indexed in one pass, or one of a format that crfs does not read, by name.

use super::{Descriptor, Error, Format};
use crate::blob::Packing;

/// Refuses what its media type says that crfs cannot read.
pub(super) fn refuse(layer: &Descriptor) -> Result<(), Error> {
    let media_type: String = layer.media_type.chars().take(200).collect();
    by_media_type(&media_type).map_or(Ok(()), |what| Err(Error::Foreign { layer: layer.digest, what: what.to_owned() }))
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

/// What a blob is by its first bytes, whatever its media type says: registries hold gzip that is called tar, and zstd that is called gzip.
pub(super) fn format(head: &[u8]) -> Result<Format, String> {
    match Packing::of(head) {
        Some(Packing::Gzip) => Ok(Format::TarGzip),
        Some(Packing::Zstd) => Ok(Format::TarZstd),
        Some(Packing::Other(by, _)) => Err(format!("a tar compressed with {by}")),
        None => Ok(Format::Tar),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_known_by_its_first_bytes() {
        let tar = [b"file".as_slice(), &[0; 508]].concat();
        assert_eq!(format(&tar), Ok(Format::Tar));
        assert_eq!(format(b""), Ok(Format::Tar));
        assert_eq!(format(b"BZhelp"), Ok(Format::Tar), "a name");
        assert_eq!(format(&[0x1f, 0x8b, 8, 0]), Ok(Format::TarGzip));
        assert_eq!(format(&[0x28, 0xb5, 0x2f, 0xfd, 0]), Ok(Format::TarZstd));
        assert_eq!(format(&[0x52, 0x2a, 0x4d, 0x18, 0]), Ok(Format::TarZstd));
        assert!(format(b"BZh91AY&SY").unwrap_err().contains("bzip2"));
        assert!(format(b"\xfd7zXZ\0rest").unwrap_err().contains("xz"));
        assert!(format(b"\x04\x22\x4d\x18...").unwrap_err().contains("lz4"));
    }
}
