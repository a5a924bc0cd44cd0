//! What goes when there is no room: groups of contents, least recently used first, whatever layer they are of; then whole layers that nobody
//! uses, with their indexes; then documents, the oldest first.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::dir::Dir;
use super::documents;
use super::presence::Use;
use super::stored::{self, Stored};
use crate::metrics::METRICS;

/// How long a layer is waited for that others have locked. Who stores into it has it for the time of a write, but where many do, hardly a moment is
/// free; one that is stopped has it for ever, and the layer is passed over.
const PATIENCE: Duration = Duration::from_millis(50);

/// A group of contents, and when it was last used.
struct Candidate {
    last_use: u64,
    layer: usize,
    group: usize,
}

/// Makes `needed` bytes free, if there are as many, and of contents `slack` more. Gives how many are. To be called by one at a time.
/// `newest` is told the latest of all last uses.
pub(super) fn free(dir: &Dir, needed: u64, slack: u64, newest: impl FnOnce(u64)) -> u64 {
    free_within(PATIENCE, dir, needed, slack, newest)
}

/// The same, with so much patience for a layer that others have locked.
pub(super) fn free_within(patience: Duration, dir: &Dir, needed: u64, slack: u64, newest: impl FnOnce(u64)) -> u64 {
    let layers = stored::own_layers(dir);
    let candidates = candidates(dir, &layers);
    newest(candidates.last().map_or(0, |candidate| candidate.last_use));
    let mut freed = free_groups(dir, &layers, &candidates, needed.saturating_add(slack), patience);
    if freed < needed {
        freed += free_layers(dir, &layers, &candidates, needed - freed);
    }
    if freed < needed {
        freed += documents::free(dir, needed - freed);
    }
    METRICS.evicted.inc_by(freed);
    tracing::debug!(needed, freed, "evicted from the cache");
    freed
}

/// Least recently used first.
fn candidates(dir: &Dir, layers: &[PathBuf]) -> Vec<Candidate> {
    let uses = |layer: &Path| Stored::open(dir, layer).map_or_else(Vec::new, |stored| stored.present.uses());
    let of_layer = |(layer, path): (usize, &PathBuf)| {
        let candidate = move |used: Use| Candidate { last_use: used.last_use, layer, group: used.group };
        uses(path).into_iter().map(candidate)
    };
    let mut candidates: Vec<Candidate> = layers.iter().enumerate().flat_map(of_layer).collect();
    candidates.sort_by_key(|candidate| (candidate.last_use, candidate.layer, candidate.group));
    candidates
}

fn free_groups(dir: &Dir, layers: &[PathBuf], candidates: &[Candidate], goal: u64, patience: Duration) -> u64 {
    let (mut freed, mut locked) = (0, HashSet::new());
    // One at a time, since there may be more layers than descriptors; neighbours in time are often of one layer.
    let mut open: Option<(usize, Stored)> = None;
    for candidate in candidates {
        if freed >= goal {
            break;
        }
        if locked.contains(&candidate.layer) {
            continue;
        }
        if open.as_ref().is_none_or(|(layer, _)| *layer != candidate.layer) {
            let path = layers.get(candidate.layer);
            open = path.and_then(|path| Stored::open(dir, path)).map(|stored| (candidate.layer, stored));
        }
        match open.as_ref().map(|(_, stored)| stored.evict(candidate.group, patience)) {
            Some(Some(bytes)) => freed += bytes,
            Some(None) => drop(locked.insert(candidate.layer)),
            None => {}
        }
    }
    freed
}

fn free_layers(dir: &Dir, layers: &[PathBuf], candidates: &[Candidate], goal: u64) -> u64 {
    let mut order: Vec<(u64, &PathBuf)> = layers.iter().map(|path| (0, path)).collect();
    for candidate in candidates {
        // Ascending, so that the last one stays.
        order.iter_mut().skip(candidate.layer).take(1).for_each(|layer| layer.0 = candidate.last_use);
    }
    order.sort_by_key(|(last_use, _)| *last_use);
    let mut freed = 0;
    for (_, layer) in order {
        if freed >= goal {
            break;
        }
        freed += stored::remove(dir, layer, true).unwrap_or(0);
    }
    freed
}
