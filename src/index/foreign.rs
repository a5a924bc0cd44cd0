//! What a layer without a table of contents is: one that can be indexed in one pass, or one of a format that crfs does not read, by name.

use super::{Descriptor, Error, Format};
use crate::blob::Packing;

/// Refuses what its media type says that crfs cannot read.
pub(super) fn refuse(layer: &Descriptor) -> Result<(), Error> {
    if filesystem(layer).is_some() {
        return Ok(());
    }
    let media_type: String = layer.media_type.chars().take(200).collect();
    by_media_type(&media_type).map_or(Ok(()), |what| Err(Error::Foreign { layer: layer.digest, what: what.to_owned() }))
}

/// Types of layers that are filesystem images, and of which. What follows the last name is how the image is packed inside (stacker).
const IMAGES: [(&str, Format); 5] = [
    ("application/vnd.erofs.layer.v1", Format::Erofs),
    ("application/vnd.erofs", Format::Erofs),
    ("application/vnd.sylabs.image.layer.v1.squashfs", Format::Squashfs),
    ("application/vnd.stacker.image.layer.squashfs", Format::Squashfs),
    ("application/vnd.stacker.image.layer.erofs", Format::Erofs),
];
const STACKER: &str = "application/vnd.stacker.image.layer.";

/// Behind the name of a type of [`IMAGES`], but for stacker's: the image is in a zstd stream.
const IN_ZSTD: &str = "+zstd";

/// Which filesystem image a layer is by its type.
pub(super) fn filesystem(layer: &Descriptor) -> Option<Format> {
    let of = |kind: &str| IMAGES.iter().find(|(name, _)| *name == kind).map(|(_, format)| *format);
    let kind = layer.media_type.as_str();
    let packed_inside = kind.rsplit_once('+').filter(|(kind, _)| kind.starts_with(STACKER));
    let packed = kind.strip_suffix(IN_ZSTD).filter(|kind| kind.starts_with(EROFS_TYPES));
    of(kind).or_else(|| of(packed_inside?.0)).or_else(|| of(packed?))
}

/// The draft erofs-image-spec, and containerd.
const EROFS_TYPES: &str = "application/vnd.erofs";

/// Media types that mean something else than a tar.
fn by_media_type(media_type: &str) -> Option<&'static str> {
    let is_layer = ["application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."];
    if media_type.ends_with("+encrypted") {
        Some("encrypted")
    } else if media_type.contains("erofs") {
        Some("an EROFS filesystem image of a type that crfs does not know")
    } else if !media_type.is_empty() && !is_layer.iter().any(|prefix| media_type.starts_with(prefix)) {
        Some("an artifact, not a filesystem layer")
    } else {
        None
    }
}

/// Where a filesystem's superblock begins with what it is known by.
const EROFS: (usize, &[u8]) = (1024, &[0xe2, 0xe1, 0xf5, 0xe0]);
const SQUASHFS: (usize, &[u8]) = (0, b"hsqs");

/// Bytes that a layer is recognised by.
pub(super) const HEAD: usize = 1024 + 4;

/// What a blob is by its first bytes, whatever its media type says: registries hold gzip that is called tar, and zstd that is called gzip. What
/// is called a filesystem image is one, though of either kind; a tar may begin as one does.
pub(super) fn format(layer: &Descriptor, head: &[u8]) -> Result<Format, String> {
    if let Some(format) = filesystem(layer) {
        // Whether there is an image in a zstd stream shows when it is unpacked.
        return if Packing::of(head) == Some(Packing::Zstd) { Ok(format) } else { of_image(head) };
    }
    match Packing::of(head) {
        Some(Packing::Gzip) => Ok(Format::TarGzip),
        Some(Packing::Zstd) => Ok(Format::TarZstd),
        Some(Packing::Other(by, _)) => Err(format!("a tar compressed with {by}")),
        None => Ok(Format::Tar),
    }
}

/// Which filesystem image begins so.
pub(super) fn of_image(head: &[u8]) -> Result<Format, String> {
    let is = |(at, magic): (usize, &[u8])| head.get(at..).is_some_and(|head| head.starts_with(magic));
    match (is(SQUASHFS), is(EROFS)) {
        (true, _) => Ok(Format::Squashfs),
        (_, true) => Ok(Format::Erofs),
        _ => Err("called a filesystem image, but has neither an EROFS nor a squashfs superblock".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(media_type: &str) -> Descriptor {
        let digest = crate::blob::Digest::of(b"");
        Descriptor { digest, size: 0, media_type: media_type.to_owned(), annotations: Default::default() }
    }

    #[test]
    fn a_filesystem_image_is_known_by_its_type_and_which_by_its_bytes() {
        let erofs = [&[0; 1024][..], &[0xe2, 0xe1, 0xf5, 0xe0, 0]].concat();
        let squashfs = b"hsqs____".to_vec();
        let types = [
            "application/vnd.erofs",
            "application/vnd.erofs.layer.v1",
            "application/vnd.sylabs.image.layer.v1.squashfs",
            "application/vnd.stacker.image.layer.squashfs",
            "application/vnd.stacker.image.layer.squashfs+zstd",
            "application/vnd.stacker.image.layer.erofs+lz4hc",
        ];
        for layer in types.map(of) {
            assert!(refuse(&layer).is_ok());
            assert_eq!(super::format(&layer, &erofs), Ok(Format::Erofs));
            assert_eq!(super::format(&layer, &squashfs), Ok(Format::Squashfs));
            assert!(super::format(&layer, &[0; HEAD]).unwrap_err().contains("neither"));
        }
        let tar = of("application/vnd.oci.image.layer.v1.tar");
        assert_eq!(super::format(&tar, &squashfs), Ok(Format::Tar), "a name");
        for packed in ["application/vnd.erofs.layer.v1+zstd", "application/vnd.erofs+zstd"].map(of) {
            assert!(refuse(&packed).is_ok());
            assert_eq!(super::format(&packed, &[0x28, 0xb5, 0x2f, 0xfd, 0]), Ok(Format::Erofs));
        }
        assert!(refuse(&of("application/vnd.erofs.v9")).unwrap_err().to_string().contains("an EROFS filesystem image"));
        assert!(refuse(&of("application/vnd.sylabs.image.layer.v1.squashfs+zstd")).is_err());
    }

    #[test]
    fn a_layer_is_known_by_its_first_bytes() {
        let format = |head: &[u8]| super::format(&of(""), head);
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
