//! The tar-splits of layers, by which podman pushes them: it puts together the tar that a layer was unpacked from (src/index/tar_split).

use std::fs::File;

use super::open::Store;
use super::records::{Layer, Records, Tar};
use super::{Error, files};
use crate::blob::Digest;
use crate::index::TarSplit;

impl Layer {
    /// Whether podman has a tar-split of it that is known to be right.
    pub(super) fn is_verified(&self) -> bool {
        self.tar.is_some_and(|tar| tar.is_verified)
    }
}

/// The layer whose tar-split is that of any layer with these contents and this diffID: the best one.
pub(super) fn donor<'a>(records: &'a Records, contents: &str, diff_id: &Digest) -> Option<&'a Layer> {
    let same = |layer: &&Layer| layer.tar.is_some() && layer.contents == contents && layer.diff_id == *diff_id;
    let donors = records.layers.iter().filter(same);
    donors.max_by_key(|layer| layer.is_verified())
}

impl Store {
    /// Gives a layer its tar-split, before podman is told.
    pub(super) fn take_tar_split(
        &self,
        records: &mut Records,
        id: &Digest,
        mut split: TarSplit,
        is_verified: bool,
    ) -> Result<(), Error> {
        let Some(layer) = records.layers.iter_mut().find(|layer| layer.id == *id) else { return Ok(()) };
        files::write_tar_split(&self.paths, id, &mut split.file)?;
        layer.tar = Some(Tar { len: split.tar_len, is_verified });
        Ok(())
    }

    /// Gives the tar-splits of layers to others that are the same on top of something else: podman pushes any of those that have one diffID.
    pub(super) fn share_tar_splits(&self, records: &mut Records) {
        let share = |layer: &Layer| {
            let donor = donor(records, &layer.contents, &layer.diff_id)?;
            let is_better = layer.tar.is_none() || (donor.is_verified() && !layer.is_verified());
            is_better.then_some((layer.id, donor.id, donor.tar))
        };
        let shares: Vec<_> = records.layers.iter().filter_map(share).collect();
        for (id, donor, tar) in shares {
            let path = self.paths.tar_split(&donor);
            let copied = File::open(&path)
                .map_err(|source| Error::File { path, source })
                .and_then(|mut split| files::write_tar_split(&self.paths, &id, &mut split));
            match (copied, records.layers.iter_mut().find(|layer| layer.id == id)) {
                (Ok(()), Some(layer)) => layer.tar = tar,
                (Err(error), _) => tracing::warn!(layer = %id, error = error.chain(), "podman may not be able to push it"),
                (Ok(()), None) => {}
            }
        }
    }
}
