//! The tar-splits of layers, by which podman pushes them: it puts together the tar that a layer was unpacked from (src/index/tar_split).
//!
//! `crfs store add --full` makes them, by reading the layers; those that blobs carry a server takes (carried.rs).

use std::fs::File;

use tempfile::NamedTempFile;

use super::Store;
use super::paths::Paths;
use super::records::{Layer, Records, Tar};
use super::{Error, files};
use crate::blob::Digest;

/// A tar-split that needs nothing but its name.
pub(super) struct Staged {
    file: NamedTempFile,
    tar_len: u64,
}

impl Staged {
    /// Takes a while: it is not for whoever has the records.
    pub(super) fn new(paths: &Paths, (mut split, tar_len): (File, u64)) -> Result<Self, Error> {
        Ok(Self { file: files::stage_tar_split(paths, &mut split)?, tar_len })
    }
}

impl Layer {
    /// Whether podman has a tar-split of it that is known to be right.
    pub(super) fn is_verified(&self) -> bool {
        self.tar.is_some_and(|tar| tar.is_verified)
    }
}

/// The layer whose tar-split is that of any layer with these contents and this diffID: the best one.
pub(super) fn donor<'a>(records: &'a Records, contents: &str, diff_id: &Digest) -> Option<&'a Layer> {
    let donors = records.layers.iter().filter(|layer| layer.tar.is_some() && is_same(layer, contents, diff_id));
    donors.max_by_key(|layer| layer.is_verified())
}

/// Whether a layer has the tar-split of any with these contents and this diffID.
pub(super) fn is_same(layer: &Layer, contents: &str, diff_id: &Digest) -> bool {
    layer.contents == contents && layer.diff_id == *diff_id
}

impl Store {
    /// Gives layers their tar-splits, and others that can have the same, before podman is told.
    pub(super) fn take_tar_splits(
        &self,
        records: &mut Records,
        splits: impl IntoIterator<Item = (Digest, Staged)>,
        is_verified: bool,
    ) -> Result<(), Error> {
        for (id, Staged { file, tar_len }) in splits {
            files::put_tar_split(&self.paths, records, &id, file)?;
            if let Some(layer) = records.layers.iter_mut().find(|layer| layer.id == id) {
                layer.tar = Some(Tar { len: tar_len, is_verified });
            }
        }
        self.share_tar_splits(records);
        Ok(())
    }

    /// Gives the tar-splits of layers to others that are the same on top of something else: podman pushes any of those that have one diffID.
    fn share_tar_splits(&self, records: &mut Records) {
        let share = |layer: &Layer| {
            let donor = donor(records, &layer.contents, &layer.diff_id)?;
            let is_better = layer.tar.is_none() || (donor.is_verified() && !layer.is_verified());
            is_better.then_some((layer.id, donor.id, donor.tar))
        };
        let shares: Vec<_> = records.layers.iter().filter_map(share).collect();
        for (id, donor, tar) in shares {
            let linked = files::link_tar_split(&self.paths, &donor, &id);
            match (linked, records.layers.iter_mut().find(|layer| layer.id == id)) {
                (Ok(()), Some(layer)) => layer.tar = tar,
                (Err(error), _) => {
                    tracing::warn!(layer = %id, error = error.chain(), "podman may not be able to push it")
                }
                (Ok(()), None) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podman::records::tests::layer;

    #[test]
    fn a_tar_split_is_shared_by_layers_of_one_blob_and_diff_id() {
        let mut records = Records::default();
        let tar = |is_verified| Some(Tar { len: 1, is_verified });
        for (id, contents, tar) in [("a", "x", tar(false)), ("b", "x", tar(true)), ("c", "x", None), ("d", "y", None)] {
            let mut new = layer(&mut records, id, None);
            (new.contents, new.tar) = (contents.to_owned(), tar);
            records.layers.push(new);
        }
        let diff_id = records.layers[0].diff_id;
        let found = |contents, diff_id| donor(&records, contents, diff_id).map(|layer| layer.id);
        assert_eq!(found("x", &diff_id), Some(Digest::of(b"b")), "the one that is known to be right");
        assert_eq!((found("y", &diff_id), found("x", &Digest::of(b"other"))), (None, None));
    }
}
