//! An OCI image layout in a tar (`oci-archive:`): the headers are read once, the blobs where they lie.
//!
//! Just enough of tar to find regular files by name: POSIX ustar, GNU long names and pax `path` and `size`
//! (POSIX.1-2024, pax). Anything that is not part of a layout is passed over.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::Error;
use super::layout::FileBlob;
use super::manifest::LARGEST_DOCUMENT;
use crate::blob::{ByteRange, Digest};

const BLOCK: u64 = 512;

/// Long names and pax headers beyond this are no layout's.
const LARGEST_HEADER: u64 = 64 << 10;

/// Entries beyond this are no layout's.
const MOST_ENTRIES: usize = 1 << 20;

/// Where the files of a layout lie in its archive.
pub(super) struct Archive {
    path: PathBuf,
    file: File,
    index: Option<ByteRange>,
    blobs: HashMap<Digest, ByteRange>,
}

impl Archive {
    /// Reads all headers. Blocking.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let error = |source| Error::File { path: path.to_owned(), what: "cannot be read", source };
        let file = File::open(path).map_err(error)?;
        let end = file.metadata().map_err(error)?.len();
        let mut archive = Self { path: path.to_owned(), file, index: None, blobs: HashMap::new() };
        let mut scan = Scan { file: &archive.file, at: 0, end };
        let mut found = Vec::new();
        for _ in 0..MOST_ENTRIES {
            match scan.next() {
                Ok(Some(entry)) => found.push(entry),
                Ok(None) => break,
                Err(Broken::Io(source)) => return Err(error(source)),
                Err(Broken::Format(what)) => {
                    let what = format!("an uncompressed tar: {what} at byte {}", scan.at);
                    return Err(Error::NotALayout { path: path.to_owned(), what });
                }
            }
        }
        // As with any tar, the last of two entries of one name counts.
        for (name, range) in found {
            archive.note(&name, range);
        }
        Ok(archive)
    }

    fn note(&mut self, name: &[u8], range: ByteRange) {
        let Ok(name) = std::str::from_utf8(name) else { return };
        let name = name.trim_start_matches("./");
        if name == "index.json" {
            self.index = Some(range);
        } else if let Some(digest) =
            name.strip_prefix("blobs/sha256/").and_then(|hex| format!("sha256:{hex}").parse().ok())
        {
            self.blobs.insert(digest, range);
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn blob(&self, digest: &Digest) -> Result<FileBlob, Error> {
        let range = self.blobs.get(digest).ok_or_else(|| Error::NoBlob { path: self.path.clone(), digest: *digest })?;
        self.at(*range)
    }

    pub(super) fn index(&self) -> Result<Bytes, Error> {
        let missing = || Error::NotALayout {
            path: self.path.clone(),
            what: "an archive of an OCI image layout: it has no index.json of a fit size".to_owned(),
        };
        let fits = |range: &ByteRange| range.len() <= LARGEST_DOCUMENT as u64;
        let range = self.index.filter(fits).ok_or_else(missing)?;
        self.at(range)?.read(ByteRange { start: 0, end: range.len() })
    }

    fn at(&self, range: ByteRange) -> Result<FileBlob, Error> {
        let error = |source| Error::File { path: self.path.clone(), what: "cannot be opened", source };
        let file = self.file.try_clone().map_err(error)?;
        Ok(FileBlob::new(self.path.clone(), file, range.start, range.len()))
    }
}

enum Broken {
    Io(std::io::Error),
    Format(&'static str),
}

struct Scan<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

/// One header: its fields, and where the data is.
struct Header {
    kind: u8,
    name: Vec<u8>,
    data: ByteRange,
}

impl Scan<'_> {
    /// The next regular file: its name, and where its bytes are.
    fn next(&mut self) -> Result<Option<(Vec<u8>, ByteRange)>, Broken> {
        let mut name = None;
        let mut size = None;
        while let Some(header) = self.header(size)? {
            match header.kind {
                b'L' => name = Some(self.text(header.data)?),
                b'x' => {
                    let records = self.text(header.data)?;
                    name = record(&records, b"path").map(<[u8]>::to_vec).or(name);
                    let number = record(&records, b"size").map(decimal);
                    size = number.map(|number| number.ok_or(Broken::Format("a pax size is no number"))).transpose()?;
                }
                b'0' | 0 => return Ok(Some((name.unwrap_or(header.name), header.data))),
                b'K' | b'g' => {}
                _ => (name, size) = (None, None),
            }
        }
        Ok(None)
    }

    fn header(&mut self, pax_size: Option<u64>) -> Result<Option<Header>, Broken> {
        if self.at.saturating_add(BLOCK) > self.end {
            return if self.at == self.end && self.at > 0 {
                Ok(None)
            } else {
                Err(Broken::Format("the file ends in a header"))
            };
        }
        let mut block = [0u8; BLOCK as usize];
        self.file.read_exact_at(&mut block, self.at).map_err(Broken::Io)?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let (raw_size, checksum) = (number(part(&block, 124, 12)), number(part(&block, 148, 8)));
        if checksum != Some(sum(&block)) {
            return Err(Broken::Format("a header's checksum is wrong"));
        }
        let kind = block.get(156).copied().unwrap_or(0);
        // A pax size is that of the file, not of the headers between.
        let own = if matches!(kind, b'L' | b'K' | b'x' | b'g') { None } else { pax_size };
        let size = own.or(raw_size).ok_or(Broken::Format("a size is no number"))?;
        // Links and directories may state a size without having data.
        let size = if matches!(kind, b'1'..=b'6') { 0 } else { size };
        let data = ByteRange::at(self.at.saturating_add(BLOCK), size).filter(|data| data.end <= self.end);
        let data = data.ok_or(Broken::Format("an entry passes the end of the file"))?;
        self.at =
            data.end.checked_next_multiple_of(BLOCK).ok_or(Broken::Format("an entry is too large"))?.min(self.end);
        Ok(Some(Header { kind, name: full_name(&block), data }))
    }

    fn text(&self, data: ByteRange) -> Result<Vec<u8>, Broken> {
        let length = usize::try_from(data.len()).ok().filter(|_| data.len() <= LARGEST_HEADER);
        let mut text = vec![0; length.ok_or(Broken::Format("a name is too long"))?];
        self.file.read_exact_at(&mut text, data.start).map_err(Broken::Io)?;
        while text.last() == Some(&0) {
            text.pop();
        }
        Ok(text)
    }
}

fn part(block: &[u8], start: usize, length: usize) -> &[u8] {
    block.get(start..start.saturating_add(length)).unwrap_or_default()
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn full_name(block: &[u8]) -> Vec<u8> {
    let (name, prefix) = (until_nul(part(block, 0, 100)), until_nul(part(block, 345, 155)));
    // GNU's own format has other things in the place of the prefix.
    let posix = part(block, 257, 6) == b"ustar\0";
    if posix && !prefix.is_empty() { [prefix, b"/", name].concat() } else { name.to_vec() }
}

/// Octal text, or GNU's base-256 where the first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if *first & 0x80 != 0 {
        let start = u64::from(*first & 0x7f);
        return rest.iter().try_fold(start, |value, byte| value.checked_mul(256)?.checked_add(u64::from(*byte)));
    }
    let text = until_nul(field).trim_ascii();
    text.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

fn decimal(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The sum of a header's bytes, its checksum field counted as blanks.
fn sum(block: &[u8]) -> u64 {
    let bytes = block.iter().enumerate();
    bytes.map(|(index, byte)| if (148..156).contains(&index) { 32 } else { u64::from(*byte) }).sum()
}

/// The value of a pax record: `LENGTH KEY=VALUE\n`. The last one of a key counts.
fn record<'a>(mut records: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let mut found = None;
    while let Some(blank) = records.iter().position(|byte| *byte == b' ') {
        let length = records.get(..blank).and_then(decimal).and_then(|length| usize::try_from(length).ok())?;
        let record = records.get(blank.checked_add(1)?..length)?.strip_suffix(b"\n")?;
        let value = record.strip_prefix(key).and_then(|rest| rest.strip_prefix(b"="));
        found = value.or(found);
        records = records.get(length..)?;
    }
    found
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn header(name: &str, kind: u8, size: &[u8]) -> Vec<u8> {
        let mut block = vec![0u8; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..124 + size.len()].copy_from_slice(size);
        block[156] = kind;
        block[257..263].copy_from_slice(b"ustar\0");
        let checksum = format!("{:06o}\0 ", sum(&block));
        block[148..156].copy_from_slice(checksum.as_bytes());
        block
    }

    fn entry(name: &str, kind: u8, data: &[u8]) -> Vec<u8> {
        let mut entry = header(name, kind, format!("{:011o}", data.len()).as_bytes());
        entry.extend(data);
        entry.resize(entry.len().next_multiple_of(512), 0);
        entry
    }

    fn open(parts: &[Vec<u8>]) -> Result<Archive, Error> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&parts.concat()).unwrap();
        Archive::open(file.path())
    }

    fn read(archive: &Archive, data: &[u8]) -> Bytes {
        let blob = archive.blob(&Digest::of(data)).unwrap();
        blob.read(ByteRange { start: 0, end: blob.size }).unwrap()
    }

    #[test]
    fn blobs_are_found_by_any_spelling_of_their_names() {
        let name = |data: &[u8]| format!("blobs/sha256/{}", Digest::of(data).hex());
        let pax = format!("{} path={}\n", 3 + 6 + name(b"pax").len(), name(b"pax"));
        assert_eq!(pax.len(), 86);
        let archive = open(&[
            entry("index.json", b'0', b"{}"),
            entry("blobs/", b'5', b""),
            entry(&format!("./{}", name(b"plain")), 0, b"plain"),
            entry("././@LongLink", b'L', format!("{}\0", name(b"gnu")).as_bytes()),
            entry("short", b'0', b"gnu"),
            entry("PaxHeader", b'x', pax.as_bytes()),
            entry("short", b'0', b"pax"),
            entry("blobs/sha256/../../../etc/passwd", b'0', b"x"),
            vec![0; 1024],
        ])
        .unwrap();
        assert_eq!(archive.index().unwrap(), "{}");
        for data in [&b"plain"[..], b"gnu", b"pax"] {
            assert_eq!(read(&archive, data), data);
        }
        assert_eq!(archive.blobs.len(), 3);
    }

    #[test]
    fn a_pax_size_counts_and_large_numbers_are_read() {
        let name = format!("blobs/sha256/{}", Digest::of(b"12345").hex());
        let mut data = header(&name, b'0', b"00000000000");
        data.extend(b"12345");
        data.resize(1024, 0);
        let archive = open(&[entry("PaxHeader", b'x', b"9 size=5\n"), data]).unwrap();
        assert_eq!(read(&archive, b"12345"), "12345");
        assert_eq!(number(&[0x80, 0, 0, 0, 2, 0, 0, 0, 1]), Some(0x2_0000_0001));
        assert_eq!(number(&[0xff; 12]), None);
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"9"), None);
    }

    #[test]
    fn what_is_no_tar_is_said_to_be_none() {
        let cut = entry("index.json", b'0', b"{}")[..513].to_vec();
        let beyond = header("index.json", b'0', b"77777777777");
        for parts in [vec![b"\x1f\x8b compressed".repeat(100)], vec![cut], vec![beyond], vec![Vec::new()]] {
            assert!(matches!(open(&parts), Err(Error::NotALayout { .. })));
        }
        assert!(matches!(open(&[vec![0; 1024]]).unwrap().index(), Err(Error::NotALayout { .. })));
    }
}
