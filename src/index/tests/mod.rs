//! Tests of whole layers: other writers' images, and TOCs that lie.

mod fixtures;
mod hostile;
mod layers;
mod trees;
mod trust;

use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::{Descriptor, Opened, Options, StoredIndex};
use crate::blob::{ByteRange, ByteSource, SourceError};

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

const NEVER_WHOLE: Options = Options { whole_layer_below: 0, insecure_unverified_toc: false };
const INSECURE: Options = Options { whole_layer_below: 0, insecure_unverified_toc: true };
const WHOLE: Options = Options { whole_layer_below: 1 << 40, insecure_unverified_toc: false };

fn no_external(_: &Descriptor) -> Result<Bytes, SourceError> {
    Err("no external TOC is expected".into())
}

/// The index that was made.
fn stored(layer: &Descriptor, opened: &Opened) -> StoredIndex {
    let key = opened.identity.map(|identity| super::LayerKey { blob: layer.digest, identity });
    StoredIndex::open(Arc::new(opened.encoded.clone()), &layer.digest, key.as_ref()).unwrap()
}
