//! Images on this machine: an OCI image layout (image specification 1.1, "Image Layout") as a directory, or as it is in a tar.
//!
//! ```text
//! index.json                    which images there are; annotation org.opencontainers.image.ref.name is the tag
//! blobs/sha256/<64 hex digits>  manifests and layers. Names are made of digests alone, so none leads elsewhere
//! ```

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::Error;
use super::archive::Archive;
use super::left_out::LeftOut;
use super::manifest::{Content, Descriptor, LARGEST_DOCUMENT, parse};
use crate::blob::{ByteRange, Digest};

/// The annotation that holds a tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The tag that is read where several are there and none is named.
const DEFAULT_TAG: &str = "latest";

/// A layout, wherever it is.
#[derive(Clone)]
pub(super) enum Layout {
    Directory(PathBuf),
    Archive(Arc<Archive>),
}

/// A run of bytes in a file: a blob of a directory or of an archive.
#[derive(Debug)]
pub(super) struct FileBlob {
    pub(super) path: PathBuf,
    file: File,
    offset: u64,
    pub(super) size: u64,
}

impl FileBlob {
    pub(super) const fn new(path: PathBuf, file: File, offset: u64, size: u64) -> Self {
        Self { path, file, offset, size }
    }

    /// Exactly the bytes of a range. Blocking.
    pub(super) fn read(&self, range: ByteRange) -> Result<Bytes, Error> {
        let error = |source| Error::File { path: self.path.clone(), what: "cannot be read", source };
        let length = usize::try_from(range.len()).map_err(|_| error(std::io::ErrorKind::OutOfMemory.into()))?;
        let offset =
            self.offset.checked_add(range.start).ok_or_else(|| error(std::io::ErrorKind::InvalidInput.into()))?;
        let mut bytes = BytesMut::zeroed(length);
        self.file.read_exact_at(&mut bytes, offset).map_err(error)?;
        Ok(bytes.freeze())
    }
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

    /// The entry of index.json that a tag names; without a tag the only image, or the one called latest.
    pub(super) fn find(&self, name: &str, tag: Option<&str>) -> Result<Descriptor, Error> {
        choose(name, tag, self.entries(name)?)
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

fn choose(name: &str, tag: Option<&str>, entries: Vec<Descriptor>) -> Result<Descriptor, Error> {
    fn tag_of(entry: &Descriptor) -> Option<&String> {
        entry.annotations.get(REF_NAME)
    }
    let tags: Vec<String> = entries.iter().filter_map(tag_of).cloned().collect();
    let left_out = Box::new(LeftOut::of(&entries));
    let mut images: Vec<_> = entries.into_iter().filter(Descriptor::may_be_image).collect();
    let named = |wanted: &str| images.iter().position(|entry| tag_of(entry).is_some_and(|tag| tag == wanted));
    let index = match tag {
        Some(tag) => named(tag).ok_or_else(|| Error::NoTag { image: name.into(), tag: tag.into(), tags, left_out })?,
        None if images.len() == 1 => 0,
        None => named(DEFAULT_TAG).ok_or_else(|| Error::AmbiguousLayout { image: name.into(), tags, left_out })?,
    };
    Ok(images.swap_remove(index))
}

fn read_index(dir: &Path) -> Result<Bytes, Error> {
    let path = dir.join("index.json");
    let error = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
            Error::NotALayout { path: dir.to_owned(), what: "an OCI image layout: it has no index.json".to_owned() }
        }
        _ => Error::File { path: path.clone(), what: "cannot be read", source },
    };
    let mut bytes = Vec::new();
    let limit = LARGEST_DOCUMENT as u64 + 1;
    File::open(&path).and_then(|file| file.take(limit).read_to_end(&mut bytes)).map_err(error)?;
    Ok(bytes.into())
}

fn open_file(dir: &Path, digest: &Digest) -> Result<FileBlob, Error> {
    let path = dir.join("blobs/sha256").join(digest.hex());
    let error = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => Error::NoBlob { path: dir.to_owned(), digest: *digest },
        _ => Error::File { path: path.clone(), what: "cannot be opened", source },
    };
    let file = File::open(&path).map_err(error)?;
    let metadata = file.metadata().map_err(error)?;
    if !metadata.is_file() {
        return Err(Error::NoBlob { path: dir.to_owned(), digest: *digest });
    }
    Ok(FileBlob::new(path, file, 0, metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tag: Option<&str>, artifact: bool) -> Descriptor {
        let mut json = serde_json::json!({"mediaType": "m", "digest": tag.unwrap_or("none"), "size": 1});
        if let Some(tag) = tag {
            json["annotations"] = serde_json::json!({ REF_NAME: tag });
        }
        if artifact {
            json["artifactType"] = "a".into();
        }
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_tag_is_found_and_a_missing_one_is_listed() {
        let entries = || vec![entry(Some("a"), false), entry(None, true), entry(Some("b"), false)];
        assert_eq!(choose("oci:x", Some("b"), entries()).unwrap().digest, "b");
        let error = choose("oci:x", Some("c"), entries()).unwrap_err().to_string();
        assert!(error.contains("\"c\"") && error.contains("a, b"), "{error}");
        let error = choose("oci:x", None, entries()).unwrap_err().to_string();
        assert!(error.contains("a, b"), "{error}");
    }

    #[test]
    fn without_a_tag_the_only_image_or_latest_is_meant() {
        assert_eq!(choose("oci:x", None, vec![entry(None, true), entry(Some("a"), false)]).unwrap().digest, "a");
        let entries = vec![entry(Some("a"), false), entry(Some("latest"), false)];
        assert_eq!(choose("oci:x", None, entries).unwrap().digest, "latest");
        assert!(choose("oci:x", None, Vec::new()).is_err());
    }
}
