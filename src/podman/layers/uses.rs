//! Who uses layers: podman counts itself while it asks, and each layer of its own that stands on one. The counts are in the records, so that a layer
//! stays for as long as podman stands on it, whatever ends meanwhile.

use std::collections::HashSet;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::Layers;
use crate::blob::Digest;
use crate::podman::Store;
use crate::podman::records::PulledLayer;

/// How long a layer stays that nobody uses: who pulls again finds it open.
const LINGER: Duration = Duration::from_secs(60);

impl Layers {
    /// Counts a user more or less. Comes back when that is on the disk.
    pub(super) fn count(&self, reference: String, digest: Digest, is_more: bool) -> BoxFuture<'static, ()> {
        let Some(store) = self.store.upgrade() else { return std::future::ready(()).boxed() };
        async move { store.count_use(&reference, &digest, is_more).await }.boxed()
    }
}

impl Store {
    async fn count_use(&self, reference: &str, digest: &Digest, is_more: bool) {
        let mut records = self.records.lock().await;
        let mut changed = records.clone();
        let Some(layer) = changed.used_mut(reference, digest, is_more) else { return };
        layer.uses = if is_more { layer.uses.saturating_add(1) } else { layer.uses.saturating_sub(1) };
        tracing::debug!(reference, layer = %digest, uses = layer.uses, "podman uses a layer, or does not any more");
        if let Err(error) = tokio::task::block_in_place(|| changed.write(&self.paths.records())) {
            tracing::warn!(error = error.chain(), "who uses a layer cannot be written down yet");
        }
        // It counts for this server in any case, and is written with the next change.
        *records = changed;
        if let Some(layers) = self.layers.get() {
            layers.count_uses(&records);
        }
        if !is_more {
            self.sweeping.wake();
        }
    }

    /// Closes layers that podman has not used for a while and that the kernel knows no more. `false`: some are left that nobody uses.
    pub(in crate::podman) async fn sweep_pulled(&self) -> bool {
        let Some(layers) = self.layers.get() else { return true };
        let mut records = self.records.lock().await;
        let unused: HashSet<u32> = {
            let unused = records.pulled.iter().filter(|pulled| pulled.layers.iter().all(|layer| !layer.is_used()));
            unused.flat_map(|pulled| &pulled.layers).map(|layer| layer.layer.number).collect()
        };
        let due: HashSet<u32> = {
            let mut idle = layers.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.retain(|number, _| unused.contains(number));
            for number in &unused {
                idle.entry(*number).or_insert_with(Instant::now);
            }
            let due = idle.iter().filter(|(_, since)| since.elapsed() >= LINGER);
            due.map(|(number, _)| *number).collect()
        };
        // Whoever looks one up from here on waits for the records.
        layers.hide(&due);
        let is_due =
            |layer: &PulledLayer| due.contains(&layer.layer.number) && !self.trees.is_remembered(layer.layer.number);
        let mut changed = records.clone();
        changed.forget_pulled(is_due);
        if changed != *records {
            match tokio::task::block_in_place(|| changed.write(&self.paths.records())) {
                Ok(()) => *records = changed,
                Err(error) => tracing::warn!(error = error.chain(), "layers that podman does not use stay"),
            }
            tokio::task::block_in_place(|| self.trees.close_left_over(&records));
        }
        self.show_pulled(&records);
        if records.pulled.is_empty() {
            layers.forget_logins(self).await;
        }
        records.pulled.iter().all(|pulled| pulled.layers.iter().any(PulledLayer::is_used))
    }
}
