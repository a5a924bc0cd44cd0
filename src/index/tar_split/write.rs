//! Writes a tar-split, and keeps account of what it names.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;

use super::files::{Files, Named};
use super::{NoTarSplit, TarSplit};
use crate::budget::Charge;
use crate::index::limits;

/// Bytes of the longest segment: podman holds one in memory.
const SEGMENT: usize = 256 << 10;

/// One line.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_raw: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    payload: String,
    position: u64,
}

const FILE: u8 = 1;
const SEGMENT_LINE: u8 = 2;

/// A tar-split that is being written.
pub(super) struct Sheet {
    lines: Writer<File>,
    files: Files,
    replaced: BTreeSet<u64>,
    /// Bytes of all names, of the tar, and of its segments.
    names: usize,
    len: u64,
    segments: u64,
    charge: Charge,
}

/// Bytes for a number in a set, and in the one that comes of it.
const EACH_NUMBER: u64 = 48;

impl Sheet {
    pub(super) fn new(file: File, charge: Charge) -> Self {
        let (lines, files, replaced) = (Writer::new(file), Files::default(), BTreeSet::new());
        Self { lines, files, replaced, names: 0, len: 0, segments: 0, charge }
    }

    /// Sees to it that there is room for one more of each, and for so much besides.
    pub(super) fn cover(&mut self, besides: u64) -> Result<(), NoTarSplit> {
        let files = (self.files.len() as u64 + 1) * Files::EACH;
        let held = files + (self.replaced.len() as u64 + 1) * EACH_NUMBER + besides;
        Ok(self.charge.cover(held, files)?)
    }

    /// Another entry has a cleaned path: what is named by it cannot be read by it any more. Says whether anything was.
    pub(super) fn replace(&mut self, path: &[u8]) -> bool {
        let replaced = self.files.remove(path);
        self.replaced.extend(replaced.map(|file| file.entry));
        replaced.is_some()
    }

    /// A file is named. Its contents come with the next call, of [`file`](Self::file).
    pub(super) fn name(&mut self, path: &[u8], entry: u64, size: u64) -> Result<(), NoTarSplit> {
        self.names = self.names.saturating_add(path.len());
        if self.files.len() >= limits::ENTRIES {
            return Err(NoTarSplit::TooMany { what: "files", limit: limits::ENTRIES as u64 });
        }
        if self.names > limits::NAMES {
            return Err(NoTarSplit::TooMany { what: "bytes of names", limit: limits::NAMES as u64 });
        }
        self.files.insert(path, Named { entry, size });
        Ok(())
    }

    /// The tar goes on with the contents of a file.
    pub(super) fn file(&mut self, path: &[u8], size: u64, crc: u64) -> Result<(), NoTarSplit> {
        self.grow(size)?;
        Ok(self.lines.file(path, size, crc)?)
    }

    /// The tar goes on with these bytes.
    pub(super) fn segment(&mut self, bytes: &[u8]) -> Result<(), NoTarSplit> {
        self.grow(bytes.len() as u64)?;
        self.segments = self.segments.saturating_add(bytes.len() as u64);
        let limit = limits::TAR_SPLIT_SEGMENTS;
        if self.segments > limit {
            return Err(NoTarSplit::TooLarge { what: "headers", limit });
        }
        Ok(self.lines.segment(bytes)?)
    }

    /// podman reads the length of the tar as a signed number, and over one that it cannot read it refuses the whole store. Empty files and hard
    /// links make a tar that long in a small blob.
    fn grow(&mut self, by: u64) -> Result<(), NoTarSplit> {
        self.len = self.len.saturating_add(by);
        let limit = limits::OFFSET;
        if self.len > limit { Err(NoTarSplit::TooMany { what: "bytes", limit }) } else { Ok(()) }
    }

    /// The tar ends.
    pub(super) fn finish(self) -> Result<TarSplit, NoTarSplit> {
        let Self { lines, files, replaced, len: tar_len, charge, .. } = self;
        Ok(TarSplit { file: lines.finish()?, tar_len, files, replaced, charge })
    }
}

struct Writer<W: Write> {
    out: GzEncoder<W>,
    /// Bytes of the segment at hand.
    segment: Vec<u8>,
    /// Lines that were written.
    position: u64,
}

impl<W: Write> Writer<W> {
    fn new(out: W) -> Self {
        Self { out: GzEncoder::new(out, Compression::default()), segment: Vec::new(), position: 0 }
    }

    fn segment(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = SEGMENT.saturating_sub(self.segment.len());
            let (part, rest) = bytes.split_at(room.min(bytes.len()));
            self.segment.extend_from_slice(part);
            bytes = rest;
            if self.segment.len() >= SEGMENT {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &[u8], size: u64, crc: u64) -> io::Result<()> {
        self.flush()?;
        let name = std::str::from_utf8(path).ok();
        let name_raw = if name.is_none() { Some(STANDARD.encode(path)) } else { None };
        let payload = STANDARD.encode(crc.to_be_bytes());
        self.line(&Line { kind: FILE, name, name_raw, size: Some(size), payload, position: self.position })
    }

    fn finish(mut self) -> io::Result<W> {
        self.flush()?;
        self.out.finish()
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.segment.is_empty() {
            return Ok(());
        }
        let payload = STANDARD.encode(&self.segment);
        self.segment.clear();
        let position = self.position;
        self.line(&Line { kind: SEGMENT_LINE, name: None, name_raw: None, size: None, payload, position })
    }

    fn line(&mut self, line: &Line<'_>) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, line)?;
        self.out.write_all(b"\n")?;
        self.position = self.position.saturating_add(1);
        Ok(())
    }
}
