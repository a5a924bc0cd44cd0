//! An OCI image layout in a tar (`oci-archive:`): the headers are read once, the blobs where they lie.
//!
//! Anything that is not part of a layout is passed over.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::Error;
use super::file_blob::FileBlob;
use super::manifest::LARGEST_DOCUMENT;
use super::tarfile::{Content, members};
use crate::blob::{ByteRange, ByteSource, Digest};

/// Where the files of a layout lie in its archive.
pub(super) struct Archive {
    path: PathBuf,
    file: Arc<dyn ByteSource>,
    index: Option<ByteRange>,
    blobs: HashMap<Digest, ByteRange>,
}

impl Archive {
    /// Reads all headers. Blocking.
    pub(super) fn open(path: &Path, file: Arc<dyn ByteSource>) -> Result<Self, Error> {
        let found = members(path, &*file)?;
        let mut archive = Self::new(path, file, HashMap::new());
        // As with any tar, the last of two entries of one name counts.
        for member in found {
            if let Content::File(range) = member.content {
                archive.note(&member.name, range);
            }
        }
        Ok(archive)
    }

    /// Blobs whose places were found otherwise.
    pub(super) fn new(path: &Path, file: Arc<dyn ByteSource>, blobs: HashMap<Digest, ByteRange>) -> Self {
        Self { path: path.to_owned(), file, index: None, blobs }
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
        Ok(self.at(*range))
    }

    pub(super) fn index(&self) -> Result<Bytes, Error> {
        let missing = || Error::NotALayout {
            path: self.path.clone(),
            what: "an archive of an OCI image layout: it has no index.json of a fit size".to_owned(),
        };
        let fits = |range: &ByteRange| range.len() <= LARGEST_DOCUMENT as u64;
        let range = self.index.filter(fits).ok_or_else(missing)?;
        self.at(range).read(ByteRange { start: 0, end: range.len() })
    }

    fn at(&self, range: ByteRange) -> FileBlob {
        FileBlob::new(self.path.clone(), Arc::clone(&self.file), range)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tarfile::tests::{archive, entry, sized};
    use super::*;

    fn open(parts: &[Vec<u8>]) -> Result<Archive, Error> {
        Archive::open(Path::new("/x.tar"), archive(parts))
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
    fn a_pax_size_counts() {
        let name = format!("blobs/sha256/{}", Digest::of(b"12345").hex());
        let data = sized(&name, b'0', b"00000000000", b"12345");
        let archive = open(&[entry("PaxHeader", b'x', b"9 size=5\n"), data]).unwrap();
        assert_eq!(read(&archive, b"12345"), "12345");
    }

    #[test]
    fn what_is_no_tar_is_said_to_be_none() {
        let cut = entry("index.json", b'0', b"{}")[..513].to_vec();
        let beyond = sized("index.json", b'0', b"77777777777", b"");
        for parts in [vec![b"no tar".repeat(100)], vec![cut], vec![beyond], vec![Vec::new()]] {
            assert!(matches!(open(&parts), Err(Error::NotALayout { .. })));
        }
        assert!(matches!(open(&[vec![0; 1024]]).unwrap().index(), Err(Error::NotALayout { .. })));
    }
}
