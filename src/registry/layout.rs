//! Images on this machine: an OCI image layout (image specification 1.1, "Image Layout") as a directory, or as it is in a tar.
//!
//! ```text
//! index.json                    which images there are, and what they are called (names.rs)
//! blobs/sha256/<64 hex digits>  manifests and layers. Names are made of digests alone, so none leads elsewhere
//! ```

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::archive::Archive;
use super::file_blob::FileBlob;
use super::manifest::{Content, Descriptor, LARGEST_DOCUMENT, parse};
use super::{Error, names};
use crate::blob::{ByteRange, Digest, FileSource};
use crate::sys::outside;

/// A layout, wherever it is.
#[derive(Clone)]
pub(super) enum Layout {
    Directory(PathBuf),
    Archive(Arc<Archive>),
}

impl Layout {
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Directory(path) => path,
            Self::Archive(archive) => archive.path(),
        }
    }

    /// A blob of the size that its descriptor says, or any where that is not known.
    pub(super) fn blob(&self, digest: &Digest, size: Option<u64>) -> Result<FileBlob, Error> {
        let blob = match self {
            Self::Directory(dir) => open_file(dir, digest)?,
            Self::Archive(archive) => archive.blob(digest)?,
        };
        match size.filter(|size| *size != blob.size) {
            Some(expected) => {
                Err(Error::BlobSize { path: self.path().to_owned(), digest: *digest, expected, found: blob.size })
            }
            None => Ok(blob),
        }
    }

    /// A manifest or index, checked against its digest.
    pub(super) fn document(&self, digest: &Digest, size: Option<u64>) -> Result<Bytes, Error> {
        let what = format!("{} in {}", digest, self.path().display());
        let blob = self.blob(digest, size)?;
        if blob.size > LARGEST_DOCUMENT as u64 {
            let reason = format!("it has more than {LARGEST_DOCUMENT} bytes");
            return Err(Error::Manifest { what, kind: "manifest", reason });
        }
        let bytes = blob.read(ByteRange { start: 0, end: blob.size })?;
        let found = Digest::of(&bytes);
        if found == *digest { Ok(bytes) } else { Err(Error::WrongDigest { what, expected: *digest, found }) }
    }

    /// The entry of index.json that a tag or a name means; without one the only image, or the one called latest.
    pub(super) fn find(&self, name: &str, tag: Option<&str>) -> Result<Descriptor, Error> {
        names::choose(name, tag, self.entries(name)?)
    }

    /// All that index.json has.
    pub(super) fn entries(&self, name: &str) -> Result<Vec<Descriptor>, Error> {
        let bytes = match self {
            Self::Directory(dir) => read_index(dir)?,
            Self::Archive(archive) => archive.index()?,
        };
        let Content::Index(entries) = parse(name, &bytes)? else {
            let what = "an OCI image layout: its index.json is not an image index".to_owned();
            return Err(Error::NotALayout { path: self.path().to_owned(), what });
        };
        Ok(entries)
    }
}

fn read_index(dir: &Path) -> Result<Bytes, Error> {
    let path = dir.join("index.json");
    let error = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => Error::NotALayout {
            path: dir.to_owned(),
            what: "an OCI image layout: it has no index.json; name the directory that has one".to_owned(),
        },
        _ => Error::File { path: path.clone(), what: "cannot be read", source },
    };
    let mut bytes = Vec::new();
    let limit = LARGEST_DOCUMENT as u64 + 1;
    outside::open_file(&path).and_then(|file| file.take(limit).read_to_end(&mut bytes)).map_err(error)?;
    Ok(bytes.into())
}

fn open_file(dir: &Path, digest: &Digest) -> Result<FileBlob, Error> {
    let path = dir.join("blobs/sha256").join(digest.hex());
    let error = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => Error::NoBlob { path: dir.to_owned(), digest: *digest },
        _ => Error::File { path: path.clone(), what: "cannot be opened", source },
    };
    let file = outside::open_file(&path).map_err(error)?;
    let size = file.metadata().map_err(error)?.len();
    Ok(FileBlob::new(path, Arc::new(FileSource::new(file, size)), ByteRange { start: 0, end: size }))
}
