//! Layers with all that a tar can say of an entry.

use std::ops::Deref;

use crate::image::{Layer, config, estargz_footer, gzip, manifest_with, plain, toc_tar};
use crate::lying::OCI_MANIFEST;
use crfs::blob::Digest;
use serde_json::{Value, json};

use super::lies::Liar;

/// An entry of a tar (POSIX.1-2024, "pax Interchange Format").
#[derive(Clone)]
pub(crate) struct Entry {
    name: &'static str,
    kind: u8,
    mode: u32,
    gid: u32,
    target: &'static str,
    content: Vec<u8>,
    /// Records of its extended header.
    records: Vec<(String, Vec<u8>)>,
}

impl Entry {
    fn new(name: &'static str, kind: u8, mode: u32) -> Self {
        Self { name, kind, mode, gid: 0, target: "", content: Vec::new(), records: Vec::new() }
    }

    pub(crate) fn dir(name: &'static str) -> Self {
        Self::new(name, b'5', 0o755)
    }

    pub(crate) fn file(name: &'static str, content: impl Into<Vec<u8>>) -> Self {
        Self { content: content.into(), ..Self::new(name, b'0', 0o644) }
    }

    pub(crate) fn symlink(name: &'static str, target: &'static str) -> Self {
        Self { target, ..Self::new(name, b'2', 0o777) }
    }

    pub(crate) fn hard_link(name: &'static str, target: &'static str) -> Self {
        Self { target, ..Self::new(name, b'1', 0o644) }
    }

    pub(crate) fn fifo(name: &'static str) -> Self {
        Self::new(name, b'6', 0o644)
    }

    pub(crate) fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    pub(crate) fn gid(self, gid: u32) -> Self {
        Self { gid, ..self }
    }

    pub(crate) fn record(mut self, key: &str, value: impl Into<Vec<u8>>) -> Self {
        self.records.push((key.to_owned(), value.into()));
        self
    }

    pub(crate) fn xattr(self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.record(&format!("SCHILY.xattr.{name}"), value)
    }

    fn put(&self, tar: &mut Vec<u8>) {
        if !self.records.is_empty() {
            let records: Vec<u8> = self.records.iter().flat_map(|(key, value)| record(key, value)).collect();
            let header = Self { content: records, ..Self::new("pax", b'x', 0o644) };
            header.put(tar);
        }
        let mut header = vec![0u8; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, self.name.as_bytes());
        put(100, format!("{:07o}\0{:07o}\0{:07o}\0", self.mode, 0, self.gid).as_bytes());
        put(124, format!("{:011o}\0{:011o}\0        ", self.content.len(), 1_700_000_000).as_bytes());
        put(156, &[self.kind]);
        put(157, self.target.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend(header);
        tar.extend(&self.content);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let len = (1..9).map(|digits| digits + rest.len()).find(|len| len.to_string().len() + rest.len() == *len);
    [len.unwrap().to_string().as_bytes(), &rest].concat()
}

pub(crate) fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut tar = Vec::new();
    entries.iter().for_each(|entry| entry.put(&mut tar));
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// A blob of gzip members, and what they decode to.
#[derive(Default)]
struct Members {
    blob: Vec<u8>,
    decoded: Vec<u8>,
}

impl Members {
    /// Ends a member; gives where it begins.
    fn add(&mut self, bytes: &[u8]) -> usize {
        let start = self.blob.len();
        self.blob.extend(gzip(bytes));
        self.decoded.extend(bytes);
        start
    }
}

/// The layer as eStargz, whose members together are a whole tar, and its diffID. Its entries may be directories, files and hard links, without
/// extended headers.
pub(crate) fn estargz(entries: &[Entry], chunk: usize) -> (Layer, Digest) {
    let (mut members, mut toc, mut headers) = (Members::default(), Vec::new(), Vec::new());
    for entry in entries {
        let mut line =
            json!({"name": entry.name, "modtime": "2023-11-14T22:13:20Z", "mode": entry.mode, "gid": entry.gid});
        let mut bytes = Vec::new();
        entry.put(&mut bytes);
        headers.extend(&bytes[..512]);
        match entry.kind {
            b'5' => line["type"] = json!("dir"),
            b'1' => (line["type"], line["linkName"]) = (json!("hardlink"), json!(entry.target)),
            _ => {
                members.add(&std::mem::take(&mut headers));
                toc.extend(chunks(&mut members, line, &entry.content, chunk));
                headers.extend(&bytes[512 + entry.content.len()..]);
                continue;
            }
        }
        toc.push(line);
    }
    members.add(&headers);
    let toc = json!({"version": 1, "entries": toc}).to_string().into_bytes();
    let offset = members.add(&toc_tar(&toc));
    members.blob.extend(estargz_footer(offset as u64));
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    let annotations = [("containerd.io/snapshot/stargz/toc.digest".to_owned(), Digest::of(&toc).to_string())].into();
    (Layer { blob: members.blob, media_type, annotations }, Digest::of(&members.decoded))
}

/// Adds a file's contents; gives the lines of its entry and of its further chunks.
fn chunks(members: &mut Members, mut line: Value, content: &[u8], chunk: usize) -> Vec<Value> {
    (line["type"], line["size"], line["digest"]) =
        (json!("reg"), json!(content.len()), json!(Digest::of(content).to_string()));
    let name = line["name"].clone();
    let mut lines = vec![line];
    for (number, part) in content.chunks(chunk).enumerate() {
        if number > 0 {
            lines.push(json!({"name": name, "type": "chunk", "chunkOffset": number * chunk}));
        }
        let line = lines.last_mut().unwrap();
        (line["offset"], line["chunkSize"]) = (json!(members.add(part)), json!(part.len()));
        line["chunkDigest"] = json!(Digest::of(part).to_string());
    }
    lines
}

/// Pushes an image of such layers, the lowest first, and gives its reference.
pub(crate) fn push(liar: &Liar, layers: &[&[Entry]]) -> String {
    let layers: Vec<Layer> = layers.iter().map(|entries| plain(tar(entries))).collect();
    let config = config(&layers.iter().map(Layer::digest).collect::<Vec<Digest>>());
    let blobs: Vec<_> = layers.iter().map(|layer| layer.blob.as_slice()).chain([config.as_slice()]).collect();
    let manifest = manifest_with(&config, &layers.iter().collect::<Vec<_>>());
    Deref::deref(liar).push("a", "1", OCI_MANIFEST, &manifest, &blobs);
    format!("{}/a:1", liar.host())
}
