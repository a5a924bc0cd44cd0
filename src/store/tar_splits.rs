//! The tar-splits of layers, by which podman pushes them: it puts together the tar that a layer was unpacked from (src/index/tar_split).
//!
//! `crfs store add --full` makes them, by reading the layers. Those that zstd:chunked blobs carry a server reads when nobody reads anything else: adding
//! an image and starting it must not wait for what only a push needs.

use std::collections::HashSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::open::Store;
use super::records::{Layer, Records, Tar};
use super::{Error, files};
use crate::blob::Digest;
use crate::fetch;
use crate::index::carried_tar_split::{self as carried, Carried};
use crate::index::{Descriptor, Format, NoTarSplit, TarSplit, TocPosition};
use crate::mount::layer::{blocking, descriptor};
use crate::mount::{self, chain};

/// How long no reader has waited when a tar-split is read: whoever adds an image starts it soon.
const QUIET: Duration = Duration::from_secs(5);

/// A layer whose blob may carry a tar-split.
struct Carrier {
    id: Digest,
    blob: Descriptor,
    contents: Arc<fetch::Layer>,
}

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
    /// Gives layers their tar-splits, and others that can have the same, before podman is told.
    pub(super) fn take_tar_splits(
        &self,
        records: &mut Records,
        splits: impl IntoIterator<Item = (Digest, TarSplit)>,
        is_verified: bool,
    ) -> Result<(), Error> {
        for (id, mut split) in splits {
            let Some(layer) = records.layers.iter_mut().find(|layer| layer.id == id) else { continue };
            files::write_tar_split(&self.paths, &id, &mut split.file)?;
            layer.tar = Some(Tar { len: split.tar_len, is_verified });
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
            let path = self.paths.tar_split(&donor);
            let copied = File::open(&path)
                .map_err(|source| Error::File { path, source })
                .and_then(|mut split| files::write_tar_split(&self.paths, &id, &mut split));
            match (copied, records.layers.iter_mut().find(|layer| layer.id == id)) {
                (Ok(()), Some(layer)) => layer.tar = tar,
                (Err(error), _) => {
                    tracing::warn!(layer = %id, error = error.chain(), "podman may not be able to push it")
                }
                (Ok(()), None) => {}
            }
        }
    }

    /// Gives podman the tar-splits that blobs carry, of all layers that have none. What fails is left to `add --full`.
    pub(super) async fn take_carried_tar_splits(&self) {
        // Else nothing is to be fetched but what is read.
        if !self.trees.guesses() {
            return;
        }
        let mut looked_at = self.looked_at.lock().await;
        for carrier in self.carriers(&looked_at).await {
            let id = carrier.id;
            match self.take_carried(carrier).await {
                Ok(()) => drop(looked_at.insert(id)),
                // It is looked at again when another image was added.
                Err(error) => {
                    tracing::debug!(layer = %id, error = error.chain(), "the tar-split that a layer carries cannot be had")
                }
            }
        }
    }

    /// Layers that may carry one, but for those that were `looked_at`.
    async fn carriers(&self, looked_at: &HashSet<Digest>) -> Vec<Carrier> {
        let records = self.records.lock().await;
        let planted = self.trees.planted();
        let carrier = |layer: &Layer| {
            let open = &planted.get(&layer.number)?.layer;
            let may_carry = matches!(open.summary().format, Format::ZstdChunked | Format::Empty);
            let (blob, contents) = (descriptor(&open.layer), Arc::clone(&open.contents));
            (layer.tar.is_none() && may_carry).then_some(Carrier { id: layer.id, blob, contents })
        };
        records.layers.iter().filter(|layer| !looked_at.contains(&layer.id)).filter_map(carrier).collect()
    }

    /// Takes the one that a layer carries, if it does. What is wrong with it is logged; an error may pass.
    async fn take_carried(&self, carrier: Carrier) -> Result<(), mount::Error> {
        let Some(position) = carrier.find().await? else { return Ok(()) };
        let (id, blob) = (carrier.id, carrier.blob.digest);
        match carrier.converted(position, self.paths.tar_splits()).await? {
            Ok(split) => {
                if let Err(error) = self.keep_carried(&id, split).await {
                    tracing::warn!(layer = %blob, error = error.chain(), "podman cannot be given a tar-split");
                }
            }
            Err(problem) => {
                let problem = chain(&problem);
                tracing::warn!(layer = %blob, problem, "podman cannot push this layer by the tar-split that it carries; `crfs store add --full` makes another");
            }
        }
        Ok(())
    }

    async fn keep_carried(&self, id: &Digest, split: TarSplit) -> Result<(), Error> {
        let mut records = self.records.lock().await;
        if records.layer(id).is_none_or(|layer| layer.tar.is_some()) {
            return Ok(());
        }
        tokio::task::block_in_place(|| {
            let mut changed = records.clone();
            self.take_tar_splits(&mut changed, [(*id, split)], false)?;
            self.commit(&mut records, changed)
        })
    }
}

impl Carrier {
    /// Where the tar-split is.
    async fn find(&self) -> Result<Option<TocPosition>, mount::Error> {
        match carried::find(&self.blob) {
            Carried::At(position) => Ok(Some(position)),
            Carried::SeeFooter(range) => {
                let footer = self.contents.read_blob_quietly(range, QUIET).await?;
                Ok(carried::in_footer(&self.blob, &footer))
            }
        }
    }

    /// One for podman, written without a name.
    async fn converted(
        self,
        position: TocPosition,
        dir: PathBuf,
    ) -> Result<Result<TarSplit, NoTarSplit>, mount::Error> {
        if let Err(problem) = carried::check_stored(position.stored.len()) {
            return Ok(Err(problem));
        }
        let Self { blob, contents, .. } = self;
        let stored = contents.read_blob_quietly(position.stored, QUIET).await?;
        let convert = move || {
            let entries = contents.index().entries()?;
            let file = tempfile::tempfile_in(&dir).map_err(|source| mount::Error::TarSplit { dir, source })?;
            Ok(carried::convert(&stored, position.decoded, &entries, file))
        };
        blocking(blob.digest, convert).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::records::tests::layer;

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
