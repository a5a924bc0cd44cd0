//! Tests of whole layers: other writers' images, and TOCs that lie.

mod fixtures;
mod hostile;
mod layers;
mod memory;
mod trees;
mod trust;
mod unpack;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::{Admit, Descriptor, Error, Found, Opened, Options, StoredIndex};
use crate::blob::{ByteRange, ByteSource, SourceError};
use crate::budget::Budget;

/// Where other writers' images are.
pub(super) fn fixtures_dir() -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    assert!(dir.is_dir(), "there is no {}: a crate package has no fixtures, a clone has", dir.display());
    dir
}

/// Reads a blob and remembers which ranges were asked for.
struct Counted {
    blob: Bytes,
    reads: Mutex<Vec<ByteRange>>,
}

impl Counted {
    fn new(blob: Bytes) -> Self {
        Self { blob, reads: Mutex::default() }
    }

    fn reads(&self) -> Vec<ByteRange> {
        self.reads.lock().unwrap().clone()
    }
}

impl ByteSource for Counted {
    fn size(&self) -> u64 {
        self.blob.len() as u64
    }

    fn read_at(&self, range: ByteRange) -> Result<Bytes, SourceError> {
        self.reads.lock().unwrap().push(range);
        self.blob.read_at(range)
    }
}

const NEVER_WHOLE: Options =
    Options { whole_layer_below: 0, insecure_unverified_toc: false, memory: Budget::UNLIMITED };
const INSECURE: Options = Options { whole_layer_below: 0, insecure_unverified_toc: true, memory: Budget::UNLIMITED };
const WHOLE: Options =
    Options { whole_layer_below: 1 << 40, insecure_unverified_toc: false, memory: Budget::UNLIMITED };

fn no_external(_: &Descriptor, _: Admit<'_>) -> Result<Bytes, SourceError> {
    Err("no external TOC is expected".into())
}

/// What was found has to have a TOC that something vouches for.
fn indexed(found: Result<Found, Error>) -> Result<Opened, Error> {
    match found? {
        Found::Indexed(opened) => Ok(opened),
        Found::Plain { .. } => panic!("it is plain"),
        Found::Unvouched(format) => panic!("nothing vouches for it ({format})"),
    }
}

/// The index that was made.
fn stored(layer: &Descriptor, opened: &Opened) -> StoredIndex {
    let key = opened.identity.map(|identity| super::LayerKey { blob: layer.digest, identity });
    StoredIndex::open(Arc::new(opened.encoded.clone()), &layer.digest, key.as_ref()).unwrap()
}
