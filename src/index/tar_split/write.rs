//! Writes a tar-split.

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;

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

pub(super) struct Writer<W: Write> {
    out: GzEncoder<W>,
    /// Bytes of the segment at hand.
    segment: Vec<u8>,
    /// Lines that were written.
    position: u64,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out: GzEncoder::new(out, Compression::default()), segment: Vec::new(), position: 0 }
    }

    /// The tar goes on with these bytes.
    pub(super) fn segment(&mut self, mut bytes: &[u8]) -> io::Result<()> {
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

    /// The tar goes on with the contents of the file at `path`.
    pub(super) fn file(&mut self, path: &[u8], size: u64, crc: u64) -> io::Result<()> {
        self.flush()?;
        let name = std::str::from_utf8(path).ok();
        let name_raw = if name.is_none() { Some(STANDARD.encode(path)) } else { None };
        let payload = STANDARD.encode(crc.to_be_bytes());
        self.line(&Line { kind: FILE, name, name_raw, size: Some(size), payload, position: self.position })
    }

    /// The tar ends.
    pub(super) fn finish(mut self) -> io::Result<W> {
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
