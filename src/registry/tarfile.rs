//! The headers of a tar on this machine: which files and links it has, and where their bytes lie.
//!
//! Just enough of tar to find what an archive of images holds: POSIX ustar, GNU long names and pax `path`, `linkpath` and `size`
//! (POSIX.1-2024, pax). Other kinds of entries are passed over.

use std::path::Path;

use super::Error;
use crate::blob::{ByteRange, ByteSource, SourceError};
use crate::tar::{self, Block};

const BLOCK: u64 = tar::BLOCK as u64;

/// Long names and pax headers beyond this are no image's.
const LARGEST_HEADER: u64 = 64 << 10;

/// Entries beyond this are no image's.
const MOST_ENTRIES: usize = 1 << 20;

/// Bytes of all names beyond this are no image's.
const MOST_NAMES: usize = 128 << 20;

/// A file or a link in a tar.
pub(super) struct Member {
    pub(super) name: Vec<u8>,
    pub(super) content: Content,
}

pub(super) enum Content {
    File(ByteRange),
    /// The target as it is written: it may start from the link's own directory.
    Symlink(Vec<u8>),
    /// The name of another member.
    HardLink(Vec<u8>),
}

/// Reads all headers; `path` names the tar in errors. Blocking.
pub(super) fn members(path: &Path, file: &dyn ByteSource) -> Result<Vec<Member>, Error> {
    let mut scan = Scan { file, at: 0 };
    let mut found = Vec::new();
    let mut names = 0;
    loop {
        let broken = match scan.next() {
            Ok(Some(_)) if found.len() == MOST_ENTRIES || names > MOST_NAMES => "too many entries",
            Ok(Some(member)) => {
                names += member.len();
                found.push(member);
                continue;
            }
            Ok(None) => return Ok(found),
            Err(Broken::Read(source)) => {
                let (path, source) = (path.to_owned(), std::io::Error::other(source));
                return Err(Error::File { path, what: "cannot be read", source });
            }
            Err(Broken::Format(what)) => what,
        };
        let what = format!("a tar of images: {broken}, at byte {}", scan.at);
        return Err(Error::NotALayout { path: path.to_owned(), what });
    }
}

impl Member {
    /// Bytes of its names.
    fn len(&self) -> usize {
        let target = match &self.content {
            Content::File(_) => 0,
            Content::Symlink(target) | Content::HardLink(target) => target.len(),
        };
        self.name.len() + target
    }
}

enum Broken {
    Read(SourceError),
    Format(&'static str),
}

struct Scan<'a> {
    file: &'a dyn ByteSource,
    at: u64,
}

/// One header: its fields, and where the data is.
struct Header {
    kind: u8,
    name: Vec<u8>,
    target: Vec<u8>,
    data: ByteRange,
}

impl Scan<'_> {
    /// The next file or link.
    fn next(&mut self) -> Result<Option<Member>, Broken> {
        let (mut name, mut target, mut size) = (None, None, None);
        while let Some(header) = self.header(size)? {
            let content = match header.kind {
                b'L' => {
                    name = Some(self.text(header.data)?);
                    continue;
                }
                b'K' => {
                    target = Some(self.text(header.data)?);
                    continue;
                }
                b'x' => {
                    let records = self.text(header.data)?;
                    name = record(&records, b"path")?.map(<[u8]>::to_vec).or(name);
                    target = record(&records, b"linkpath")?.map(<[u8]>::to_vec).or(target);
                    let number = record(&records, b"size")?.map(tar::decimal);
                    size = number.map(|number| number.ok_or(Broken::Format("a pax size is no number"))).transpose()?;
                    continue;
                }
                b'g' => continue,
                b'0' | 0 => Content::File(header.data),
                b'1' => Content::HardLink(target.take().unwrap_or(header.target)),
                b'2' => Content::Symlink(target.take().unwrap_or(header.target)),
                _ => {
                    (name, target, size) = (None, None, None);
                    continue;
                }
            };
            return Ok(Some(Member { name: name.unwrap_or(header.name), content }));
        }
        Ok(None)
    }

    fn header(&mut self, pax_size: Option<u64>) -> Result<Option<Header>, Broken> {
        let end = self.file.size();
        let Some(block) = ByteRange::at(self.at, BLOCK).filter(|block| block.end <= end) else {
            let is_end = self.at == end && end > 0;
            return if is_end { Ok(None) } else { Err(Broken::Format("the file ends in a header")) };
        };
        let block = self.file.read_at(block).map_err(Broken::Read)?;
        let block: &Block = block.as_ref().try_into().map_err(|_| Broken::Format("a header is cut"))?;
        if tar::is_zero(block) {
            return Ok(None);
        }
        tar::check(block).map_err(|_sum| Broken::Format("a header's checksum is wrong"))?;
        let raw_size = tar::number(tar::field(block, 124, 12)).and_then(|size| u64::try_from(size).ok());
        let kind = block.get(156).copied().unwrap_or(0);
        // A pax size is that of the file, not of the headers between.
        let own = if matches!(kind, b'L' | b'K' | b'x' | b'g') { None } else { pax_size };
        let size = own.or(raw_size).ok_or(Broken::Format("a size is no number"))?;
        // Links and directories may state a size without having data.
        let size = if matches!(kind, b'1'..=b'6') { 0 } else { size };
        let data = ByteRange::at(self.at.saturating_add(BLOCK), size).filter(|data| data.end <= end);
        let data = data.ok_or(Broken::Format("it ends within an entry, so it was cut: copy it again"))?;
        self.at = data.end.checked_next_multiple_of(BLOCK).ok_or(Broken::Format("an entry is too large"))?.min(end);
        let mut name = Vec::new();
        tar::name_into(block, &mut name);
        Ok(Some(Header { kind, name, target: tar::text(tar::field(block, 157, 100)).to_vec(), data }))
    }

    fn text(&self, data: ByteRange) -> Result<Vec<u8>, Broken> {
        if data.len() > LARGEST_HEADER {
            return Err(Broken::Format("a name is too long"));
        }
        let mut text = self.file.read_at(data).map_err(Broken::Read)?.to_vec();
        while text.last() == Some(&0) {
            text.pop();
        }
        Ok(text)
    }
}

/// The value of a pax record. The last one of a key counts.
fn record<'a>(records: &'a [u8], key: &[u8]) -> Result<Option<&'a [u8]>, Broken> {
    tar::records(records).try_fold(None, |last, record| match record {
        Ok((found, value)) if found == key => Ok(Some(value)),
        Ok(_) => Ok(last),
        Err(_at) => Err(Broken::Format("a pax header has something else than records")),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;

    fn header(name: &str, kind: u8, size: &[u8], target: &str) -> Vec<u8> {
        let mut block = vec![0u8; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..124 + size.len()].copy_from_slice(size);
        block[156] = kind;
        block[157..157 + target.len()].copy_from_slice(target.as_bytes());
        block[257..263].copy_from_slice(b"ustar\0");
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    pub(in crate::registry) fn entry(name: &str, kind: u8, data: &[u8]) -> Vec<u8> {
        sized(name, kind, format!("{:011o}", data.len()).as_bytes(), data)
    }

    /// With another size in its header.
    pub(in crate::registry) fn sized(name: &str, kind: u8, size: &[u8], data: &[u8]) -> Vec<u8> {
        let mut entry = header(name, kind, size, "");
        entry.extend(data);
        entry.resize(entry.len().next_multiple_of(512), 0);
        entry
    }

    pub(in crate::registry) fn link(name: &str, kind: u8, target: &str) -> Vec<u8> {
        header(name, kind, b"", target)
    }

    pub(in crate::registry) fn archive(parts: &[Vec<u8>]) -> Arc<dyn ByteSource> {
        Arc::new(Bytes::from(parts.concat()))
    }

    #[test]
    fn links_are_found_with_targets_of_any_length() {
        let long = "d/".repeat(80) + "f";
        let pax = format!("{} linkpath={long}\n", 4 + 9 + 1 + long.len());
        let file = archive(&[
            link("a", b'1', "short"),
            entry("././@LongLink", b'K', format!("{long}\0").as_bytes()),
            link("b", b'2', "cut"),
            entry("PaxHeader", b'x', pax.as_bytes()),
            link("c", b'2', "cut"),
            entry("d", b'0', b"x"),
        ]);
        let found = members(Path::new("/x.tar"), &*file).unwrap();
        let [a, b, c, d] = &found[..] else { panic!("{} members", found.len()) };
        assert!(matches!(&a.content, Content::HardLink(target) if target == b"short"));
        for symlink in [b, c] {
            assert!(matches!(&symlink.content, Content::Symlink(target) if target == long.as_bytes()));
        }
        assert!(d.name == b"d" && matches!(d.content, Content::File(data) if data.len() == 1));
    }
}
