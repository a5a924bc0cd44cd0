//! Verified bytes that the cache would not have, kept for the next reader: of all layers together, so that an image of many layers takes no more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use moka::sync::Cache as Memory;

use super::assemble::Kept;

/// Bytes that are kept in memory.
pub(super) const MEMORY: u64 = 64 << 20;

/// What one layer has set aside.
#[derive(Clone)]
pub(super) struct Aside {
    /// By layer and check.
    all: Memory<(u64, u32), Kept>,
    layers: Arc<AtomicU64>,
    layer: u64,
}

impl Aside {
    pub(super) fn new() -> Self {
        let all = Memory::builder().max_capacity(MEMORY).weigher(|_, kept: &Kept| kept.weight()).build();
        Self { all, layers: Arc::default(), layer: 0 }
    }

    /// The same room, for another layer.
    pub(super) fn for_layer(&self) -> Self {
        Self { layer: self.layers.fetch_add(1, Ordering::Relaxed).saturating_add(1), ..self.clone() }
    }

    pub(super) fn get(&self, check: u32) -> Option<Kept> {
        self.all.get(&(self.layer, check))
    }

    pub(super) fn has(&self, check: u32) -> bool {
        self.all.contains_key(&(self.layer, check))
    }

    pub(super) fn set(&self, check: u32, kept: Kept) {
        if u64::from(kept.weight()) <= MEMORY {
            self.all.insert((self.layer, check), kept);
            self.all.run_pending_tasks();
        }
    }

    /// Bytes of memory that are kept, of all layers together.
    pub(super) fn bytes(&self) -> u64 {
        self.all.weighted_size()
    }

    /// Lets go of the files that checks are kept in, of all layers: they take the room on disk that the next needs.
    pub(super) fn drop_files(&self) {
        for (check, _) in self.all.iter().filter(|(_, kept)| matches!(kept, Kept::File(_))) {
            self.all.invalidate(&*check);
        }
        self.all.run_pending_tasks();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::cache::Cache;

    fn in_memory(bytes: usize) -> Kept {
        Kept::Memory(Bytes::from(vec![1; bytes]))
    }

    #[test]
    fn files_make_room_for_the_next() {
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::of_size(temp.path(), 4 << 20);
        let spooled = || {
            let mut spool = cache.spool().unwrap();
            spool.append(&vec![1; 3 << 20]).map(|()| Kept::File(Arc::new(spool)))
        };
        let (one, other) = (Aside::new().for_layer(), Aside::new().for_layer());
        one.set(1, in_memory(1));
        one.set(2, spooled().unwrap());
        assert!(spooled().is_err());
        other.drop_files();
        assert!(spooled().is_err(), "the files of another engine stay");
        one.for_layer().drop_files();
        assert!(spooled().is_ok() && one.has(1));
    }

    #[test]
    fn all_layers_together_have_so_much_room() {
        let engine = Aside::new();
        let layers: Vec<_> = (0..40).map(|_| engine.for_layer()).collect();
        for layer in &layers {
            (0..4).for_each(|check| layer.set(check, in_memory(1 << 20)));
        }
        engine.all.run_pending_tasks();
        assert!(engine.all.weighted_size() <= MEMORY);
        let kept = layers.iter().flat_map(|layer| (0..4).filter(|check| layer.has(*check))).count();
        assert!(kept > 32, "{kept}");
        layers[0].set(9, in_memory(1));
        assert!(!layers[1].has(9), "a check of another layer");
    }
}
