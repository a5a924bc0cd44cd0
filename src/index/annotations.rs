//! What a layer's descriptor says of its TOC.
//!
//! Tools that rewrite a layer leave the annotations of the layer that it was. Those of another compression than the media
//! type's are not looked at, nor is a position that the blob cannot have. A digest that does not fit shows when the TOC is read.

use std::collections::BTreeMap;

use super::error::Error;
use super::footer::TocPosition;
use super::{Descriptor, Identity, chunk_index, foreign, limits, verity};
use crate::blob::{ByteRange, Digest};

/// sha256 of the uncompressed TOC (stargz-snapshotter docs/estargz.md, v0.15).
const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
/// The prefix of today, and that of podman up to 4.3 and of stargz-snapshotter (containers/storage docs/containers-storage-zstd-chunked.md).
const ZSTD_CHUNKED: [&str; 2] = ["io.github.containers.zstd-chunked.", "io.containers.zstd-chunked."];
/// sha256 of the compressed TOC.
const CHECKSUM: &str = "manifest-checksum";
/// `offset:stored length:decoded length:type`, of which the type is 1.
const POSITION: &str = "manifest-position";

/// `offset:stored length:decoded length`.
const TAR_SPLIT_POSITION: &str = "tarsplit-position";
/// sha256 of the compressed tar-split.
const TAR_SPLIT_CHECKSUM: &str = "tarsplit-checksum";

/// What the manifest names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Named {
    /// The digest of the TOC as it is stored (zstd:chunked).
    pub(super) checksum: Option<Digest>,
    /// The digest of the TOC's JSON.
    pub(super) toc_digest: Option<Digest>,
    /// Where the TOC of a zstd:chunked layer is; a blob says so itself at its end.
    pub(super) position: Option<TocPosition>,
    /// What vouches for parts of a filesystem image.
    pub(super) image: Option<OfImage>,
}

/// What vouches for parts of a filesystem image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OfImage {
    ChunkIndex(chunk_index::Place),
    Verity(verity::Place),
}

impl OfImage {
    fn of(layer: &Descriptor) -> Option<Self> {
        // Chunks of one index are as large as its writer has meant; blocks of a tree are small.
        let index = chunk_index::Place::of(layer).map(Self::ChunkIndex);
        index.or_else(|| verity::Place::of(layer).map(Self::Verity))
    }

    pub(super) const fn digest(&self) -> Digest {
        match self {
            Self::ChunkIndex(place) => place.digest,
            Self::Verity(place) => place.root,
        }
    }
}

/// Whether podman from 5.1 on asks an additional layer store for a layer: by the digest of its table of contents, where the manifest has that in the one
/// place of the two in which podman looks for it. Layers of zstd:chunked by other writers have it elsewhere, or in both.
#[must_use]
pub fn podman_asks(annotations: &BTreeMap<String, String>) -> bool {
    let [new, old] = ZSTD_CHUNKED.map(|prefix| annotations.contains_key(&format!("{prefix}{CHECKSUM}")));
    let is_estargz = annotations.contains_key(TOC_DIGEST);
    (new && !is_estargz) || (is_estargz && !new && !old)
}

impl Named {
    pub(super) fn of(layer: &Descriptor) -> Result<Self, Error> {
        if foreign::filesystem(layer).is_some() {
            return Ok(Self { image: OfImage::of(layer), ..Self::default() });
        }
        let refused = |(key, value): (String, &String), wanted| {
            let value = value.chars().take(200).collect();
            Error::Annotation { layer: layer.digest, key, value, wanted }
        };
        let digest = |found: Option<(String, &String)>| {
            let parse =
                |(key, value): (String, &String)| value.parse().map_err(|_| refused((key, value), "a sha256 digest"));
            found.map(parse).transpose()
        };
        let compression = Compression::of(&layer.media_type);
        let zstd_chunked = |name| zstd_chunked(layer, name).filter(|_| compression != Some(Compression::Gzip));
        let checksum = zstd_chunked(CHECKSUM);
        let toc_digest = layer.annotations.get(TOC_DIGEST).map(|value| (TOC_DIGEST.to_owned(), value));
        // stargz-snapshotter names both for its zstd:chunked layers.
        let toc_digest = toc_digest.filter(|_| compression != Some(Compression::Zstd) || checksum.is_some());
        Ok(Self {
            checksum: digest(checksum)?,
            toc_digest: digest(toc_digest)?,
            position: zstd_chunked(POSITION).and_then(|(_, value)| position(value, layer.size)),
            image: None,
        })
    }

    pub(super) fn identity(&self) -> Option<Identity> {
        let of_image = self.image.map(|image| image.digest());
        self.checksum.or(self.toc_digest).or(of_image).map(Identity::Toc)
    }
}

/// What a media type says that a layer is compressed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    Gzip,
    Zstd,
}

impl Compression {
    /// `None`: it says nothing, or that the layer is not compressed; registries hold layers that are all the same.
    fn of(media_type: &str) -> Option<Self> {
        match media_type.rsplit(['.', '+']).next() {
            Some("gzip") => Some(Self::Gzip),
            Some("zstd") => Some(Self::Zstd),
            _ => None,
        }
    }
}

fn zstd_chunked<'a>(layer: &'a Descriptor, name: &str) -> Option<(String, &'a String)> {
    let mut keys = ZSTD_CHUNKED.iter().map(|prefix| format!("{prefix}{name}"));
    keys.find_map(|key| layer.annotations.get(&key).map(|value| (key, value)))
}

/// Where the tar-split of a zstd:chunked layer is by its descriptor. What cannot be so is not there: there may be none.
pub(super) fn tar_split(layer: &Descriptor) -> Option<TocPosition> {
    let (_, value) = zstd_chunked(layer, TAR_SPLIT_POSITION)?;
    match numbers(value)?.as_slice() {
        [offset, stored, decoded] => {
            range(*offset, *stored, layer.size).map(|stored| TocPosition { stored, decoded: *decoded })
        }
        _ => None,
    }
}

/// The digest that its tar-split has by its descriptor, as that has it.
pub(super) fn tar_split_checksum(layer: &Descriptor) -> Option<&String> {
    zstd_chunked(layer, TAR_SPLIT_CHECKSUM).map(|(_, value)| value)
}

fn position(text: &str, blob: u64) -> Option<TocPosition> {
    match numbers(text)?.as_slice() {
        [offset, stored, decoded, 1] => {
            range(*offset, *stored, blob).map(|stored| TocPosition { stored, decoded: *decoded })
        }
        _ => None,
    }
}

fn numbers(text: &str) -> Option<Vec<u64>> {
    let number = |text: &str| text.parse().ok().filter(|number| *number <= limits::OFFSET && !text.starts_with('+'));
    // One more than any position has.
    text.splitn(5, ':').map(number).collect()
}

fn range(offset: u64, len: u64, blob: u64) -> Option<ByteRange> {
    ByteRange::at(offset, len).filter(|range| range.end <= blob.min(limits::OFFSET) && !range.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(annotations: &[(&str, &str)]) -> Descriptor {
        let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Descriptor { digest: Digest::of(b"blob"), size: 1000, media_type: String::new(), annotations }
    }

    #[test]
    fn annotations_of_another_compression_are_not_looked_at() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let (checksum, toc) = (one.to_string(), two.to_string());
        let position = "900:50:70:1";
        let key = |name: &str| format!("{}{name}", ZSTD_CHUNKED[0]);
        let (checksum_key, position_key) = (key(CHECKSUM), key(POSITION));
        let all = layer(&[(TOC_DIGEST, &toc), (&checksum_key, &checksum), (&position_key, position)]);
        let of = |layer: &Descriptor, media_type: &str| {
            let named = Named::of(&Descriptor { media_type: media_type.to_owned(), ..layer.clone() }).unwrap();
            (named.checksum, named.toc_digest, named.position.is_some())
        };
        let gzip = ["application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip"];
        let zstd = ["application/vnd.oci.image.layer.v1.tar+zstd", "application/vnd.docker.image.rootfs.diff.tar.zstd"];
        let silent = ["application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar", ""];
        for media_type in gzip {
            assert_eq!(of(&all, media_type), (None, Some(two), false));
        }
        for media_type in zstd.iter().chain(&silent) {
            assert_eq!(of(&all, media_type), (Some(one), Some(two), true));
        }
        let estargz = layer(&[(TOC_DIGEST, &toc)]);
        assert_eq!(of(&estargz, zstd[0]), (None, None, false));
        assert_eq!(of(&estargz, silent[0]), (None, Some(two), false));
        let wrong = layer(&[(TOC_DIGEST, "none"), (&checksum_key, "none")]);
        assert!(Named::of(&Descriptor { media_type: gzip[0].to_owned(), ..wrong }).is_err());
    }

    #[test]
    fn a_position_that_the_blob_cannot_have_is_none() {
        let key = format!("{}{POSITION}", ZSTD_CHUNKED[1]);
        for text in ["960:50:70:1", "900:50", "900:50:70:2", "x"] {
            assert_eq!(Named::of(&layer(&[(&key, text)])).unwrap().position, None, "{text}");
        }
    }

    #[test]
    fn both_families_name_a_digest_and_the_compressed_one_is_the_identity() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let (checksum, toc) = (one.to_string(), two.to_string());
        let named = |annotations: &[(&str, &str)]| Named::of(&layer(annotations)).unwrap().identity();
        assert_eq!(named(&[]), None);
        assert_eq!(named(&[(TOC_DIGEST, &toc)]), Some(Identity::Toc(two)));
        for prefix in ZSTD_CHUNKED {
            let key = format!("{prefix}{CHECKSUM}");
            assert_eq!(named(&[(&key, &checksum), (TOC_DIGEST, &toc)]), Some(Identity::Toc(one)));
        }
    }

    /// As GetTOCDigest of containers/storage 1.57 has it.
    #[test]
    fn podman_asks_for_a_layer_by_one_digest() {
        let asks = |keys: &[&str]| podman_asks(&keys.iter().map(|key| ((*key).to_owned(), String::new())).collect());
        let [new, old] = ZSTD_CHUNKED.map(|prefix| format!("{prefix}{CHECKSUM}"));
        assert!(asks(&[TOC_DIGEST]) && asks(&[&*new]));
        for other in [&[][..], &[&*old], &[&*old, TOC_DIGEST], &[&*new, TOC_DIGEST], &["else"]] {
            assert!(!asks(other), "{other:?}");
        }
    }

    #[test]
    fn a_digest_that_cannot_be_checked_is_a_misfit_by_name() {
        let error = Named::of(&layer(&[(TOC_DIGEST, "sha512:abc")])).unwrap_err();
        let message = error.to_string();
        assert!(error.is_misfit() && message.contains("sha512:abc") && message.contains(TOC_DIGEST), "{message}");
    }

    #[test]
    fn positions_are_four_numbers_within_the_blob() {
        let stored = ByteRange { start: 900, end: 950 };
        assert_eq!(position("900:50:70:1", 1000), Some(TocPosition { stored, decoded: 70 }));
        for wrong in
            ["", "900:50:70", "900:50:70:2", "900:50:70:1:1", "960:50:70:1", "-1:50:70:1", "+900:50:70:1", "900:0:0:1"]
        {
            assert_eq!(position(wrong, 1000), None, "{wrong}");
        }
        assert_eq!(position("9223372036854775807:9223372036854775807:1:1", u64::MAX), None);
    }

    #[test]
    fn the_position_of_a_tar_split_is_three_numbers_within_the_blob() {
        let found = |text: &str| tar_split(&layer(&[("io.github.containers.zstd-chunked.tarsplit-position", text)]));
        assert_eq!(found("900:50:70"), Some(TocPosition { stored: ByteRange { start: 900, end: 950 }, decoded: 70 }));
        for wrong in ["", "900:50", "900:50:70:1", "900:50:70:1:1:1", "960:50:70", "-1:50:70", "900:0:0", "a:b:c"] {
            assert_eq!(found(wrong), None, "{wrong}");
        }
        assert_eq!(tar_split(&layer(&[])), None);
    }
}
