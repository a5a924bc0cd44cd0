//! `crfs index`: makes the indexes of all plain layers of an image ahead of time.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use tempfile::NamedTempFile;

use super::Error;
use super::engine::{Engine, RESOLVE_WITHIN};
use super::event::Report;
use super::layer::OpenLayer;
use super::look::runtime;
use crate::blob::{ByteRange, Digest};
use crate::cache::Cache;
use crate::image::options::ImageOptions;
use crate::index::{Identity, LayerKey, Trust};

/// What came of an image. The names of the fields are those of `crfs index --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Indexed {
    pub image: String,
    pub digest: Digest,
    /// The lowest first.
    pub layers: Vec<IndexedLayer>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IndexedLayer {
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    pub format: String,
    pub entries: u64,
    pub units: u32,
    /// Bytes of the index that crfs has made; `None`: the layer has a table of contents of its own.
    pub index_size: Option<u64>,
}

/// Reads all layers that have no index yet, and keeps the indexes in the cache; with `output`, in a tar as well, whose entries have the
/// places that they have below the cache directory.
///
/// # Errors
/// Where a layer cannot be read, the cache would not have its index, or `output` cannot be written.
pub fn index(options: &ImageOptions, output: Option<&Path>, report: &Report) -> Result<Indexed, Error> {
    let (open, cache) = runtime()?.block_on(async {
        // An index of our own is better than a zTOC, so layers that have one are read as well.
        let options = ImageOptions { soci: None, ..options.clone() };
        let engine = Arc::new(Engine::new(&options, RESOLVE_WITHIN)?);
        let image = engine.resolve(report).await?;
        Ok::<_, Error>((engine.open(image, 0, report).await?, engine.cache().clone()))
    })?;
    // Not before: what is there is lost.
    let mut archive = output.map(Archive::create).transpose()?;
    let mut layers = Vec::new();
    for layer in &open.layers {
        let index_size = if layer.trust == Trust::Blob { Some(kept(layer, &cache, archive.as_mut())?) } else { None };
        layers.push(indexed(layer, index_size));
    }
    if let Some(archive) = archive {
        archive.finish()?;
    }
    Ok(Indexed { image: open.image.name, digest: open.image.digest, layers })
}

fn indexed(layer: &OpenLayer, index_size: Option<u64>) -> IndexedLayer {
    let summary = layer.summary();
    IndexedLayer {
        digest: layer.layer.digest,
        size: layer.layer.size,
        format: summary.format.to_string(),
        entries: summary.entries,
        units: summary.units,
        index_size,
    }
}

/// The size of the index that the cache has of a layer.
fn kept(layer: &OpenLayer, cache: &Cache, archive: Option<&mut Archive>) -> Result<u64, Error> {
    let digest = layer.layer.digest;
    let not_kept = || Error::NotKept { layer: digest };
    let index = cache.index(&LayerKey { blob: digest, identity: Identity::Own }).ok_or_else(not_kept)?;
    let size = index.size();
    if let Some(archive) = archive {
        let bytes = index.read_at(ByteRange { start: 0, end: size }).map_err(|_| not_kept())?;
        archive.add(&format!("{}/layers/{}/own/index", crate::cache::LAYOUT, digest.hex()), &bytes)?;
    }
    Ok(size)
}

/// A tar of regular files (POSIX.1-2024, "ustar Interchange Format").
struct Archive {
    file: NamedTempFile,
    path: PathBuf,
}

/// tar's block.
const BLOCK: usize = 512;

impl Archive {
    /// It gets its name once all is written: the image may be read from what has that name now.
    fn create(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Archive { path: path.to_owned(), source };
        if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(failed(io::Error::other("it is there, and no regular file")));
        }
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mode = Permissions::from_mode(0o666);
        let file = tempfile::Builder::new().permissions(mode).tempfile_in(dir).map_err(failed)?;
        Ok(Self { file, path: path.to_owned() })
    }

    fn add(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let padding = vec![0; bytes.len().next_multiple_of(BLOCK) - bytes.len()];
        let header = header(name, bytes.len());
        [&header, bytes, &padding]
            .into_iter()
            .try_for_each(|part| self.file.write_all(part))
            .map_err(|e| self.failed(e))
    }

    fn finish(mut self) -> Result<(), Error> {
        self.file.write_all(&[0; 2 * BLOCK]).map_err(|error| self.failed(error))?;
        let Self { file, path } = self;
        file.persist(&path).map(drop).map_err(|error| Error::Archive { path, source: error.error })
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Archive { path: self.path.clone(), source }
    }
}

/// Fields at their places; the checksum is the sum of all bytes, its own field counted as blanks.
fn header(name: &str, size: usize) -> Vec<u8> {
    let fields: [(usize, &str); 9] = [
        (100, name),
        (8, "0000600"),
        (8, "0000000"),
        (8, "0000000"),
        (12, &format!("{size:011o}")),
        (12, "00000000000"),
        (8, "        "),
        (1, "0"),
        (100, ""),
    ];
    let mut header = Vec::with_capacity(BLOCK);
    for (len, text) in fields {
        let end = header.len() + len;
        header.extend(text.bytes().take(len));
        header.resize(end, 0);
    }
    header.extend_from_slice(b"ustar\x0000");
    header.resize(BLOCK, 0);
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    const CHECKSUM: usize = 148;
    header.iter_mut().skip(CHECKSUM).zip(format!("{sum:06o}\0").bytes()).for_each(|(to, from)| *to = from);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_once_all_is_written_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar");
        fs::write(&path, "the image").unwrap();
        let mut archive = Archive::create(&path).unwrap();
        archive.add("index", b"bytes").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"the image");
        archive.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap().len(), 4 * BLOCK);
        drop(Archive::create(&path).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "what was given up leaves nothing");
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(Archive::create(&fifo), Err(Error::Archive { .. })));
    }
}
