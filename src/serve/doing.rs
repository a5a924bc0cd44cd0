//! What a server does at this moment, for its log: SIGQUIT asks for it.

use std::sync::Arc;

use crate::cache::Cache;
use crate::fetch::Layer;
use crate::threads;

/// The cache, the threads, and the layers that something is waited for of. As warnings, so that they are seen whatever is logged.
pub(crate) fn tell(layers: &[Arc<Layer>], cache: &Cache) {
    let all: Vec<_> = layers.iter().map(|layer| (layer, layer.doing())).collect();
    let reads: usize = all.iter().map(|(_, doing)| doing.reads).sum();
    let checks: usize = all.iter().map(|(_, doing)| doing.checks).sum();
    let aside = all.iter().map(|(_, doing)| doing.aside).max().unwrap_or(0);
    let room = cache.room().unwrap_or_default();
    tracing::warn!(
        layers = layers.len(),
        reads,
        checks,
        aside,
        cache_taken = room.taken,
        cache_limit = room.limit,
        "SIGQUIT: reads that wait, checks on their way, bytes kept aside, bytes of the cache"
    );
    for kind in threads::figures() {
        let threads::Figures { name, threads, idle, waiting } = kind;
        tracing::warn!(name, threads, idle, waiting, "SIGQUIT: threads for one kind of work, and what waits for them");
    }
    for (layer, doing) in all.iter().filter(|(_, doing)| doing.reads + doing.checks > 0) {
        let (layer, error) = (layer.digest(), layer.last_error());
        tracing::warn!(%layer, doing.reads, doing.checks, error, "SIGQUIT: a layer that is waited for");
    }
}
