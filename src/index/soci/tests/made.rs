//! zTOCs made as soci-snapshotter makes them, with anything in them.

use flatbuffers::{FlatBufferBuilder, WIPOffset};

use super::super::generated::{
    CompressionInfo, CompressionInfoArgs, FileMetadata, FileMetadataArgs, Record, RecordArgs, TOC, TOCArgs, TarZinfo,
    TarZinfoArgs, Ztoc as Root, ZtocArgs,
};
use super::super::*;
use crate::budget::Charge;
use crate::sys::inflate::WINDOW;

pub(super) struct MadeEntry<'a> {
    pub(super) name: &'a [u8],
    pub(super) kind: &'a str,
    pub(super) link: &'a [u8],
    pub(super) offset: i64,
    pub(super) size: i64,
    pub(super) mtime: &'a str,
    pub(super) major: i64,
    pub(super) records: &'a [(&'a [u8], &'a [u8])],
}

pub(super) const FILE: MadeEntry<'_> = MadeEntry {
    name: b"file",
    kind: "reg",
    link: b"",
    offset: 512,
    size: 100,
    mtime: "2020-09-13T12:26:40.25Z",
    major: 0,
    records: &[],
};

/// By itself a gzip blob of 1000 bytes and 5000 decoded, in two spans.
pub(super) struct Made<'a> {
    pub(super) version: &'a str,
    pub(super) compressed: i64,
    pub(super) decoded: i64,
    pub(super) algorithm: i8,
    pub(super) max_span_id: i32,
    pub(super) digests: Vec<String>,
    pub(super) checkpoints: Vec<u8>,
    pub(super) entries: Vec<MadeEntry<'a>>,
}

pub(super) const BLOB: u64 = 1000;

pub(super) fn digest() -> String {
    Digest::of(b"span").to_string()
}

impl Default for Made<'_> {
    fn default() -> Self {
        let checkpoints = gzip(2, &[(10, 0, 0), (500, 2500, 3)]);
        Self {
            version: "0.9",
            compressed: BLOB as i64,
            decoded: 5000,
            algorithm: 1,
            max_span_id: 1,
            digests: vec![digest(); 2],
            checkpoints,
            entries: vec![FILE],
        }
    }
}

/// The encoding of checkpoints, each (in, out, bits).
pub(super) fn gzip(count: i32, checkpoints: &[(i64, i64, u8)]) -> Vec<u8> {
    let mut bytes = count.to_le_bytes().to_vec();
    bytes.extend_from_slice(&4096i64.to_le_bytes());
    for (start, out, bits) in checkpoints {
        bytes.extend_from_slice(&start.to_le_bytes());
        bytes.extend_from_slice(&out.to_le_bytes());
        bytes.push(*bits);
        bytes.extend_from_slice(&[b'w'; WINDOW]);
    }
    bytes
}

pub(super) fn tar(version: i32, span_size: i64, size: i64) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let root = TarZinfo::create(&mut builder, &TarZinfoArgs { version, span_size, size });
    builder.finish_minimal(root);
    builder.finished_data().to_vec()
}

fn entry<'b>(builder: &mut FlatBufferBuilder<'b>, made: &MadeEntry<'_>) -> WIPOffset<FileMetadata<'b>> {
    let mut records = Vec::new();
    for (key, value) in made.records {
        let (key, value) = (Some(builder.create_vector(key)), Some(builder.create_vector(value)));
        records.push(Record::create(builder, &RecordArgs { key, value }));
    }
    let args = FileMetadataArgs {
        name: Some(builder.create_vector(made.name)),
        type_: Some(builder.create_string(made.kind)),
        linkname: Some(builder.create_vector(made.link)),
        uncompressed_offset: made.offset,
        uncompressed_size: made.size,
        mode: 0o100_4755,
        uid: 7,
        mod_time: Some(builder.create_string(made.mtime)),
        devmajor: made.major,
        xattrs: Some(builder.create_vector(&records)),
        ..FileMetadataArgs::default()
    };
    FileMetadata::create(builder, &args)
}

impl Made<'_> {
    pub(super) fn bytes(&self) -> Bytes {
        let mut builder = FlatBufferBuilder::new();
        let entries: Vec<_> = self.entries.iter().map(|made| entry(&mut builder, made)).collect();
        let metadata = Some(builder.create_vector(&entries));
        let toc = Some(TOC::create(&mut builder, &TOCArgs { metadata }));
        let digests: Vec<_> = self.digests.iter().map(|digest| builder.create_string(digest)).collect();
        let info = CompressionInfoArgs {
            compression_algorithm: CompressionAlgorithm(self.algorithm),
            max_span_id: self.max_span_id,
            span_digests: Some(builder.create_vector(&digests)),
            checkpoints: Some(builder.create_vector(&self.checkpoints)),
        };
        let args = ZtocArgs {
            version: Some(builder.create_string(self.version)),
            compressed_archive_size: self.compressed,
            uncompressed_archive_size: self.decoded,
            toc,
            compression_info: Some(CompressionInfo::create(&mut builder, &info)),
            ..ZtocArgs::default()
        };
        let root = Root::create(&mut builder, &args);
        builder.finish_minimal(root);
        Bytes::copy_from_slice(builder.finished_data())
    }

    pub(super) fn read(&self) -> Result<Ztoc, Rejected> {
        read(&self.bytes(), BLOB, &mut Charge::default())
    }

    /// What is said against it, or against its entries.
    pub(super) fn refusal(&self) -> String {
        let read = self.read().and_then(|ztoc| ztoc.entries(&mut |_| Ok(())));
        let Rejected { entry, problem } = read.expect_err("nothing is said against it");
        format!("{}: {problem}", entry.unwrap_or_default())
    }
}
