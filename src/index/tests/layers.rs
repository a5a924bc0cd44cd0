//! Layers made of a TOC's JSON and a payload that nobody decodes.

use std::collections::BTreeMap;
use std::io::Write as _;

use bytes::Bytes;

use crate::blob::Digest;
use crate::index::Descriptor;

/// Bytes before the TOC: offsets of entries may be up to here.
pub(super) const PAYLOAD: usize = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    EStargz,
    ZstdChunked,
}

pub(super) const BOTH: [Made; 2] = [Made::EStargz, Made::ZstdChunked];

/// A layer whose manifest vouches for its TOC.
pub(super) fn layer(made: Made, json: &[u8]) -> (Descriptor, Bytes) {
    let (blob, annotations) = match made {
        Made::EStargz => estargz(json, json.len() as u64),
        Made::ZstdChunked => zstd_chunked(json, json.len() as u64),
    };
    let compression = if made == Made::EStargz { "gzip" } else { "zstd" };
    let media_type = format!("application/vnd.oci.image.layer.v1.tar+{compression}");
    (Descriptor { media_type, ..described(&blob, &annotations) }, blob.into())
}

pub(super) fn described(blob: &[u8], annotations: &[(&str, String)]) -> Descriptor {
    let annotations: BTreeMap<_, _> =
        annotations.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let media_type = "application/vnd.oci.image.layer.v1.tar".to_owned();
    Descriptor { digest: Digest::of(blob), size: blob.len() as u64, media_type, annotations }
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A tar of the one entry that holds the TOC, `len` bytes by its header.
pub(super) fn toc_tar(name: &str, json: &[u8], len: u64) -> Vec<u8> {
    let mut tar = vec![0; 512];
    tar[..name.len()].copy_from_slice(name.as_bytes());
    tar[124..135].copy_from_slice(format!("{len:011o}").as_bytes());
    tar[156] = b'0';
    tar.extend_from_slice(json);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

pub(super) fn estargz_footer(toc: u64) -> Vec<u8> {
    let mut footer = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0".to_vec();
    footer.extend_from_slice(format!("{toc:016x}STARGZ").as_bytes());
    footer.extend_from_slice(b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0");
    footer
}

pub(super) fn estargz(json: &[u8], len: u64) -> (Vec<u8>, Vec<(&'static str, String)>) {
    let mut blob = vec![b'p'; PAYLOAD];
    blob.extend_from_slice(&gzip(&toc_tar("stargz.index.json", json, len)));
    blob.extend_from_slice(&estargz_footer(PAYLOAD as u64));
    (blob, vec![("containerd.io/snapshot/stargz/toc.digest", Digest::of(json).to_string())])
}

pub(super) fn zstd_chunked(json: &[u8], len: u64) -> (Vec<u8>, Vec<(&'static str, String)>) {
    let stored = zstd::encode_all(json, 1).unwrap();
    let toc = PAYLOAD as u64 + 8;
    let mut footer: Vec<u8> =
        [toc, stored.len() as u64, len, 1, 0, 0, 0].into_iter().flat_map(u64::to_le_bytes).collect();
    footer.extend_from_slice(b"GNUlInUx");
    let mut blob = vec![b'p'; PAYLOAD];
    for payload in [&stored, &footer] {
        blob.extend_from_slice(b"\x50\x2a\x4d\x18");
        blob.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        blob.extend_from_slice(payload);
    }
    let position = format!("{toc}:{}:{len}:1", stored.len());
    let annotations = vec![
        ("io.github.containers.zstd-chunked.manifest-checksum", Digest::of(&stored).to_string()),
        ("io.github.containers.zstd-chunked.manifest-position", position),
    ];
    (blob, annotations)
}
