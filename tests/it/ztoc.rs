//! Layers with zTOCs as soci-snapshotter makes them (commit 77fb426; src/index/soci/ztoc.fbs), true ones and lying ones.

#[path = "../../src/index/soci/ztoc_generated.rs"]
#[rustfmt::skip]
#[allow(clippy::all, clippy::undocumented_unsafe_blocks, unsafe_code, unsafe_op_in_unsafe_fn, unreachable_pub, dead_code)]
mod ztoc_generated;

use crfs::blob::Digest;
use flatbuffers::{FlatBufferBuilder, WIPOffset};
use flate2::{Compress, Compression, Crc, FlushCompress};

use self::ztoc_generated::ztoc::{
    CompressionAlgorithm, CompressionInfo, CompressionInfoArgs, FileMetadata, FileMetadataArgs, TOC, TOCArgs, TarZinfo,
    TarZinfoArgs, Ztoc, ZtocArgs,
};
use crate::image::{File, tar};

/// Bytes of the tar that a checkpoint remembers.
const WINDOW: usize = 32 << 10;

/// A blob, and what its zTOC tells.
#[derive(Clone)]
pub(crate) struct Told {
    pub(crate) blob: Vec<u8>,
    pub(crate) tar: Vec<u8>,
    /// Where each span starts, in the blob and in the tar. They start with whole bytes.
    pub(crate) spans: Vec<(usize, usize)>,
    /// Of each span, for gzip; none for a plain tar.
    pub(crate) windows: Vec<Vec<u8>>,
    /// Name, and place of the contents in the tar.
    pub(crate) files: Vec<(&'static str, usize, usize)>,
    span_size: usize,
}

/// How a layer is written, by its files and the size of its spans.
pub(crate) type Writer = fn(&[File], usize) -> Told;

pub(crate) const WRITERS: [(&str, Writer); 2] = [("gzip", Told::gzip), ("tar", Told::stored)];

impl Told {
    fn new(files: &[File], span_size: usize) -> Self {
        let (mut places, mut at) = (Vec::new(), 0);
        for file in files {
            places.push((file.name, at + 512, file.content.len()));
            at += 512 + file.content.len().next_multiple_of(512);
        }
        let (blob, spans, windows) = (Vec::new(), Vec::new(), Vec::new());
        Self { blob, tar: tar(files), spans, windows, files: places, span_size }
    }

    /// One member, whose blocks end at whole bytes where spans do, and refer back beyond them.
    pub(crate) fn gzip(files: &[File], span_size: usize) -> Self {
        let mut told = Self::new(files, span_size);
        let mut compress = Compress::new(Compression::new(6), false);
        told.blob.extend([0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff]);
        let mut crc = Crc::new();
        for (number, part) in told.tar.chunks(span_size).enumerate() {
            let out = number * span_size;
            told.spans.push((told.blob.len(), out));
            let before = &told.tar[out.saturating_sub(WINDOW)..out];
            told.windows.push([&vec![0; WINDOW - before.len()], before].concat());
            let is_last = out + part.len() == told.tar.len();
            let flush = if is_last { FlushCompress::Finish } else { FlushCompress::Sync };
            told.blob.reserve(2 * part.len() + 1000);
            let taken = compress.total_in() + part.len() as u64;
            compress.compress_vec(part, &mut told.blob, flush).unwrap();
            assert_eq!(compress.total_in(), taken);
            crc.update(part);
        }
        told.blob.extend(crc.sum().to_le_bytes());
        told.blob.extend(crc.amount().to_le_bytes());
        told
    }

    /// Not compressed.
    pub(crate) fn stored(files: &[File], span_size: usize) -> Self {
        let mut told = Self::new(files, span_size);
        told.blob.clone_from(&told.tar);
        told.spans = (0..told.tar.len()).step_by(span_size).map(|at| (at, at)).collect();
        told
    }

    /// The parts of the blob that are spans.
    pub(crate) fn ranges(&self) -> Vec<std::ops::Range<usize>> {
        let ends = self.spans.iter().skip(1).map(|span| span.0).chain([self.blob.len()]);
        self.spans.iter().zip(ends).map(|(span, end)| span.0..end).collect()
    }

    fn checkpoints(&self) -> Vec<u8> {
        if self.windows.is_empty() {
            let mut builder = FlatBufferBuilder::new();
            let (span_size, size) = (self.span_size as i64, self.blob.len() as i64);
            let root = TarZinfo::create(&mut builder, &TarZinfoArgs { version: 2, span_size, size });
            builder.finish_minimal(root);
            return builder.finished_data().to_vec();
        }
        let mut bytes = (self.spans.len() as i32).to_le_bytes().to_vec();
        bytes.extend((self.span_size as i64).to_le_bytes());
        for ((start, out), window) in self.spans.iter().zip(&self.windows) {
            bytes.extend((*start as i64).to_le_bytes());
            bytes.extend((*out as i64).to_le_bytes());
            bytes.push(0);
            bytes.extend(window);
        }
        bytes
    }

    /// The zTOC.
    pub(crate) fn ztoc(&self) -> Vec<u8> {
        let mut builder = FlatBufferBuilder::new();
        let entries: Vec<_> = self.files.iter().map(|file| entry(&mut builder, file)).collect();
        let metadata = Some(builder.create_vector(&entries));
        let toc = Some(TOC::create(&mut builder, &TOCArgs { metadata }));
        let digests = self.ranges().into_iter().map(|range| Digest::of(&self.blob[range]).to_string());
        let digests: Vec<_> = digests.map(|digest| builder.create_string(&digest)).collect();
        let algorithm =
            if self.windows.is_empty() { CompressionAlgorithm::Uncompressed } else { CompressionAlgorithm::Gzip };
        let info = CompressionInfoArgs {
            compression_algorithm: algorithm,
            max_span_id: self.spans.len() as i32 - 1,
            span_digests: Some(builder.create_vector(&digests)),
            checkpoints: Some(builder.create_vector(&self.checkpoints())),
        };
        let args = ZtocArgs {
            version: Some(builder.create_string("0.9")),
            compressed_archive_size: self.blob.len() as i64,
            uncompressed_archive_size: self.tar.len() as i64,
            toc,
            compression_info: Some(CompressionInfo::create(&mut builder, &info)),
            ..ZtocArgs::default()
        };
        let root = Ztoc::create(&mut builder, &args);
        builder.finish_minimal(root);
        builder.finished_data().to_vec()
    }

    /// Says that each of two files has the other's contents.
    pub(crate) fn exchange(&mut self, one: &str, other: &str) {
        let place = |name: &str| self.files.iter().position(|file| file.0 == name).unwrap();
        let (one, other) = (place(one), place(other));
        assert_eq!(self.files[one].2, self.files[other].2);
        let name = self.files[one].0;
        self.files[one].0 = self.files[other].0;
        self.files[other].0 = name;
    }
}

fn entry<'b>(
    builder: &mut FlatBufferBuilder<'b>,
    (name, offset, size): &(&str, usize, usize),
) -> WIPOffset<FileMetadata<'b>> {
    let args = FileMetadataArgs {
        name: Some(builder.create_vector(name.as_bytes())),
        type_: Some(builder.create_string("reg")),
        uncompressed_offset: *offset as i64,
        uncompressed_size: *size as i64,
        mode: 0o644,
        mod_time: Some(builder.create_string("1970-01-01T00:00:00Z")),
        ..FileMetadataArgs::default()
    };
    FileMetadata::create(builder, &args)
}
