//! What goes a while after its image: layers that no image has any more, and what else is left of images.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::records::{Layer, Records};
use super::refer::Users;
use super::{Store, files};
use crate::blob::Digest;
use crate::threads::{self, Work};

/// How long layers stay that no image has any more. A podman that has read the list of images before must still find them.
const LINGER: Duration = Duration::from_secs(60);

/// What is known of what is to go.
#[derive(Default)]
pub(super) struct Sweeping {
    /// Since when no image has a layer.
    unused: Mutex<HashMap<Digest, Instant>>,
    /// Images were removed.
    removed: Notify,
}

impl Sweeping {
    /// Remembers which layers no image has any more.
    pub(super) fn note(&self, records: &Records) {
        let mut unused = self.unused();
        unused.retain(|id, _| !records.is_used(id));
        for layer in records.layers.iter().filter(|layer| !records.is_used(&layer.id)) {
            unused.entry(layer.id).or_insert_with(Instant::now);
        }
    }

    /// There is something to sweep.
    pub(super) fn wake(&self) {
        self.removed.notify_one();
    }

    #[cfg(test)]
    pub(super) fn is_woken(&self) -> bool {
        use futures_util::FutureExt as _;
        self.removed.notified().now_or_never().is_some()
    }

    fn is_due(&self, id: &Digest) -> bool {
        self.unused().get(id).is_some_and(|since| since.elapsed() >= LINGER)
    }

    fn unused(&self) -> MutexGuard<'_, HashMap<Digest, Instant>> {
        self.unused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Removes the layers that no image has had for a while, and what else is left of images, whenever something was removed. Never ends.
    pub(super) async fn sweep(&self) {
        loop {
            tokio::time::sleep(LINGER).await;
            if self.sweep_once().await {
                self.sweeping.removed.notified().await;
            }
        }
    }

    async fn sweep_once(&self) -> bool {
        let swept = {
            let mut records = self.records.lock().await;
            self.sweeping.note(&records);
            let swept = tokio::task::block_in_place(|| self.sweep_due(&mut records, |id| self.sweeping.is_due(id)));
            files::remove_other_images(&self.paths, &records);
            files::remove_other_tar_splits(&self.paths, &records);
            swept
        };
        swept & self.sweep_pulled().await & self.close_left_over().await
    }

    /// Closes removed layers that nobody has open. `false`: some are left.
    pub(super) async fn close_left_over(&self) -> bool {
        let left_over = {
            let records = self.records.lock().await;
            // Also what is left of a layer and could not be opened again: it is asked for as long as it may be known.
            let left = records.left.iter().map(|layer| layer.id);
            left.chain(self.trees.left_over(&records)).collect::<HashSet<_>>()
        };
        if left_over.is_empty() {
            return true;
        }
        // The kernel notices that a name is gone when somebody looks it up, and then forgets what is below, as far as nobody has it open.
        let mount = self.paths.mount();
        let looking = threads::run(Work::Outside, move || {
            left_over.iter().for_each(|id| drop(std::fs::symlink_metadata(mount.join(id.hex()))));
        });
        // One that hangs is looked up again.
        let _looked = tokio::time::timeout(LINGER, looking).await;
        let mut records = self.records.lock().await;
        tokio::task::block_in_place(|| self.close_left(&mut records));
        records.left.is_empty() && self.trees.left_over(&records).is_empty()
    }

    /// `false`: podman is busy, for as long as it unpacks a layer.
    pub(super) fn sweep_due(&self, records: &mut Records, due: impl Fn(&Digest) -> bool) -> bool {
        let mut changed = records.clone();
        let Some(_locks) = self.drop_layers(&mut changed, due) else { return false };
        if changed.layers.len() < records.layers.len() {
            if let Err(error) = self.commit(records, changed) {
                tracing::warn!(error = error.chain(), "layers that nobody uses stay");
            }
        }
        true
    }

    /// Drops the layers that no image has any more, where that is `due`, but for those that podman has put something on top of meanwhile.
    /// Nobody can do so for as long as what is given back lives. `None`: podman does not let anybody see now.
    pub(super) fn drop_layers(&self, records: &mut Records, due: impl Fn(&Digest) -> bool) -> Option<Users> {
        let may_go = |layer: &Layer| !records.is_used(&layer.id) && due(&layer.id);
        let going: Vec<Digest> = records.layers.iter().filter(|layer| may_go(layer)).map(|layer| layer.id).collect();
        let users = if going.is_empty() { Users::read(&[]) } else { Users::of_records(records) };
        let users = users.inspect_err(|error| {
            tracing::warn!(error = error.chain(), "layers that no image has stay for now: podman may need them");
        });
        let users = users.ok()?;
        let parents = |id: &Digest| {
            let next = |layer: &&Layer| records.layer(layer.parent.as_ref()?);
            std::iter::successors(records.layer(id), next).map(|layer| layer.id).collect::<Vec<_>>()
        };
        let needed = going.iter().filter(|id| users.of(id, &[**id]).is_some());
        let needed: HashSet<Digest> = needed.flat_map(parents).collect();
        records.layers.retain(|layer| !going.contains(&layer.id) || needed.contains(&layer.id));
        Some(users)
    }
}
