//! Layers made in the test process: eStargz, zstd:chunked and plain ones, of files whose bytes name their own offset.
//!
//! Of those only what readers look at is written: payloads, TOC and footer, no tar headers. Plain layers are whole tars. The fixtures of other people's writers are in the
//! end-to-end tests; these are for faults and counts.

use std::collections::BTreeMap;
use std::io::Write;

use crfs::blob::Digest;
use serde_json::{Value, json};

pub(crate) struct File {
    pub(crate) name: &'static str,
    pub(crate) content: Vec<u8>,
}

/// A layer: its blob and its descriptor.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) blob: Vec<u8>,
    pub(crate) media_type: &'static str,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// `len` bytes that name their offset: a ramp modulo a prime.
pub(crate) fn ramp(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| ((at + seed) % 251) as u8 ^ ((at / 251) % 241) as u8).collect()
}

/// Noise that no codec makes smaller, so that requests have the size of what is read.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

impl Layer {
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.blob)
    }

    pub(crate) fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest().to_string(), "size": self.blob.len(), "annotations": self.annotations})
    }
}

/// An image manifest of these layers.
pub(crate) fn manifest(layers: &[&Layer]) -> Vec<u8> {
    manifest_with(b"{}", layers)
}

/// With this config.
pub(crate) fn manifest_with(config: &[u8], layers: &[&Layer]) -> Vec<u8> {
    let layers: Vec<Value> = layers.iter().map(|layer| layer.descriptor()).collect();
    let config = json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(config).to_string(), "size": config.len()});
    json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": layers})
        .to_string()
        .into_bytes()
}

/// An image config that names the digests of the unpacked layers.
pub(crate) fn config(diff_ids: &[Digest]) -> Vec<u8> {
    let diff_ids: Vec<_> = diff_ids.iter().map(Digest::to_string).collect();
    json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}})
        .to_string()
        .into_bytes()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// The chunks of `files`, each compressed on its own, and the TOC entries that describe them.
fn payload(files: &[File], chunk: usize, compress: fn(&[u8]) -> Vec<u8>) -> (Vec<u8>, Vec<Value>) {
    // A real layer begins with a tar header; to a writer in Go an offset of 0 is none.
    let (mut blob, mut entries) = (compress(&[0; 512]), Vec::new());
    for file in files {
        let digest = Digest::of(&file.content).to_string();
        let many = file.content.len() > chunk;
        let mut first = None;
        for (number, part) in file.content.chunks(chunk).enumerate() {
            let start = blob.len();
            blob.extend(compress(part));
            let mut entry = json!({"name": file.name, "type": "chunk", "offset": start, "chunkDigest": Digest::of(part).to_string(),
                "chunkOffset": number * chunk, "chunkSize": part.len()});
            if number == 0 {
                entry["type"] = json!("reg");
                entry["size"] = json!(file.content.len());
                entry["digest"] = json!(digest);
                entry["mode"] = json!(0o644);
                if !many {
                    entry["chunkSize"] = json!(0);
                }
                first = Some(entries.len());
            }
            entries.push(entry);
        }
        match first {
            Some(first) => entries[first]["endOffset"] = json!(blob.len()),
            None => entries.push(json!({"name": file.name, "type": "reg", "size": 0, "digest": digest, "mode": 0o644})),
        }
    }
    (blob, entries)
}

/// eStargz: 51-byte footer, TOC digest in the annotation.
pub(crate) fn estargz(files: &[File], chunk: usize) -> Layer {
    let (mut blob, entries) = payload(files, chunk, gzip);
    let toc = json!({"version": 1, "entries": entries}).to_string().into_bytes();
    let offset = blob.len();
    blob.extend(gzip(&toc_tar(&toc)));
    blob.extend(estargz_footer(offset as u64));
    let annotations =
        BTreeMap::from([("containerd.io/snapshot/stargz/toc.digest".to_owned(), Digest::of(&toc).to_string())]);
    Layer { blob, media_type: "application/vnd.oci.image.layer.v1.tar+gzip", annotations }
}

/// stargz as google/crfs wrote it in 2019: 47-byte footer, no annotation, and of each file only a digest of the whole.
pub(crate) fn stargz(files: &[File], chunk: usize) -> Layer {
    let (mut blob, mut entries) = payload(files, chunk, gzip);
    for entry in entries.iter_mut().filter_map(Value::as_object_mut) {
        entry.remove("chunkDigest");
        entry.remove("endOffset");
    }
    let toc = json!({"version": 1, "entries": entries}).to_string().into_bytes();
    let offset = blob.len();
    blob.extend(gzip(&toc_tar(&toc)));
    blob.extend([0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 22, 0]);
    blob.extend(format!("{offset:016x}STARGZ").bytes());
    blob.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    Layer { blob, media_type: "application/vnd.oci.image.layer.v1.tar+gzip", annotations: BTreeMap::new() }
}

/// eStargz with this TOC, whose digest the manifest names, behind `payload`.
pub(crate) fn estargz_with(payload: &[u8], toc: &[u8]) -> Layer {
    let mut blob = gzip(payload);
    let offset = blob.len();
    blob.extend(gzip(&toc_tar(toc)));
    blob.extend(estargz_footer(offset as u64));
    let annotations =
        BTreeMap::from([("containerd.io/snapshot/stargz/toc.digest".to_owned(), Digest::of(toc).to_string())]);
    Layer { blob, media_type: "application/vnd.oci.image.layer.v1.tar+gzip", annotations }
}

/// A tar of regular files (POSIX.1-2024, "ustar Interchange Format").
pub(crate) fn tar(files: &[File]) -> Vec<u8> {
    let mut tar: Vec<u8> =
        files.iter().flat_map(|file| tar_entry(file.name, file.content.len(), &file.content)).collect();
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// A regular file in a tar, which says that it has `size` bytes.
pub(crate) fn tar_entry(name: &str, size: usize, content: &[u8]) -> Vec<u8> {
    let mut entry = tar_header(b'0', name, "", size);
    entry.extend(content);
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

/// The header of an entry of that type.
pub(crate) fn tar_header(kind: u8, name: &str, link: &str, size: usize) -> Vec<u8> {
    let mut entry = vec![0u8; 512];
    entry[..name.len()].copy_from_slice(name.as_bytes());
    entry[100..108].copy_from_slice(b"0000644\0");
    entry[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    entry[148..156].copy_from_slice(b"        ");
    entry[156] = kind;
    entry[157..157 + link.len()].copy_from_slice(link.as_bytes());
    entry[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = entry.iter().map(|byte| u32::from(*byte)).sum();
    entry[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    entry
}

/// A layer without a table of contents: a blob and its media type, no more.
pub(crate) fn plain(blob: Vec<u8>) -> Layer {
    let media_type = match blob.first_chunk() {
        Some([0x1f, 0x8b]) => "application/vnd.oci.image.layer.v1.tar+gzip",
        Some([0x28 | 0x50, ..]) => "application/vnd.oci.image.layer.v1.tar+zstd",
        _ => "application/vnd.oci.image.layer.v1.tar",
    };
    Layer { blob, media_type, annotations: BTreeMap::new() }
}

pub(crate) fn toc_tar(toc: &[u8]) -> Vec<u8> {
    tar(&[File { name: "stargz.index.json", content: toc.to_vec() }])
}

pub(crate) fn estargz_footer(toc_offset: u64) -> Vec<u8> {
    let mut footer = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0, b'S', b'G', 22, 0];
    footer.extend(format!("{toc_offset:016x}STARGZ").bytes());
    footer.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(footer.len(), 51);
    footer
}

/// zstd:chunked as containers/storage >= 1.50 writes it, without a tar-split.
pub(crate) fn zstd_chunked(files: &[File], chunk: usize) -> Layer {
    let (mut blob, entries) = payload(files, chunk, zstd);
    let toc = json!({"version": 1, "entries": entries}).to_string().into_bytes();
    let compressed = zstd(&toc);
    let position = blob.len() + 8;
    blob.extend(skippable(&compressed));
    let mut footer = Vec::new();
    for number in [position as u64, compressed.len() as u64, toc.len() as u64, 1, 0, 0, 0] {
        footer.extend(number.to_le_bytes());
    }
    footer.extend(b"GNUlInUx");
    blob.extend(skippable(&footer));
    let prefix = "io.github.containers.zstd-chunked.";
    let annotations = BTreeMap::from([
        (format!("{prefix}manifest-checksum"), Digest::of(&compressed).to_string()),
        (format!("{prefix}manifest-position"), format!("{position}:{}:{}:1", compressed.len(), toc.len())),
    ]);
    Layer { blob, media_type: "application/vnd.oci.image.layer.v1.tar+zstd", annotations }
}

pub(crate) fn skippable(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x50, 0x2a, 0x4d, 0x18];
    frame.extend((payload.len() as u32).to_le_bytes());
    frame.extend(payload);
    frame
}
