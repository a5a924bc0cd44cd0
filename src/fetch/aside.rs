//! Verified bytes that the cache would not have, kept for the next reader: of all layers together, so that an image of many layers takes no more. Only for
//! a while: the cache is full for a moment, and a server lives for months.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::sync::Cache as Memory;
use tokio::runtime::Handle;

use super::kept::{Kept, MEMORY};
use crate::sys;

/// How long a check is kept that nobody reads: the kernel asks for the rest of a unit, and a program for the file behind the one that it reads, much
/// sooner.
const KEPT: Duration = Duration::from_secs(5);

/// Where a check is kept. The cache lets go of what was in it when no thread looks at it any more, and that may be a while: what has to go at once is
/// taken out.
#[derive(Clone)]
struct Slot(Arc<Mutex<Option<Kept>>>);

impl Slot {
    fn new(kept: Kept) -> Self {
        Self(Arc::new(Mutex::new(Some(kept))))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn weight(&self) -> u32 {
        self.lock().as_ref().map_or(0, Kept::weight)
    }
}

/// What one layer has set aside.
#[derive(Clone)]
pub(super) struct Aside {
    /// By layer and check.
    all: Memory<(u64, u32), Slot>,
    layers: Arc<AtomicU64>,
    layer: u64,
    kept: Duration,
    /// A task waits for the end of what is kept.
    is_watched: Arc<AtomicBool>,
}

impl Aside {
    pub(super) fn new() -> Self {
        Self::keeping_for(KEPT)
    }

    fn keeping_for(kept: Duration) -> Self {
        let weighed = Memory::builder().max_capacity(MEMORY).weigher(|_, slot: &Slot| slot.weight());
        let all = weighed.time_to_idle(kept).build();
        Self { all, layers: Arc::default(), layer: 0, kept, is_watched: Arc::default() }
    }

    /// The same room, for another layer.
    pub(super) fn for_layer(&self) -> Self {
        Self { layer: self.layers.fetch_add(1, Ordering::Relaxed).saturating_add(1), ..self.clone() }
    }

    pub(super) fn get(&self, check: u32) -> Option<Kept> {
        self.all.get(&(self.layer, check))?.lock().clone()
    }

    pub(super) fn has(&self, check: u32) -> bool {
        self.all.contains_key(&(self.layer, check))
    }

    pub(super) fn set(&self, check: u32, kept: Kept) {
        if u64::from(kept.weight()) <= MEMORY {
            self.all.insert((self.layer, check), Slot::new(kept));
            self.all.run_pending_tasks();
            self.watch();
        }
    }

    /// Takes care that what nobody reads goes, also where nobody comes any more.
    fn watch(&self) {
        if let Ok(runtime) = Handle::try_current() {
            if !self.is_watched.swap(true, Ordering::AcqRel) {
                runtime.spawn(self.clone().give_back());
            }
        }
    }

    async fn give_back(self) {
        while self.all.entry_count() > 0 {
            tokio::time::sleep(self.kept).await;
            self.all.run_pending_tasks();
        }
        self.is_watched.store(false, Ordering::Release);
        sys::give_back_heap();
        // What has come meanwhile was not watched.
        if self.all.entry_count() > 0 {
            self.watch();
        }
    }

    /// Bytes of memory that are kept, of all layers together.
    pub(super) fn bytes(&self) -> u64 {
        self.all.weighted_size()
    }

    /// Lets go of the files that checks are kept in, of all layers: they take the room on disk that the next needs.
    pub(super) fn drop_files(&self) {
        for (check, slot) in &self.all {
            let file = slot.lock().take_if(|kept| matches!(kept, Kept::File(_)));
            if file.is_some() {
                self.all.invalidate(&*check);
            }
        }
        self.all.run_pending_tasks();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::cache::Cache;

    /// No test takes so long.
    const LONG: Duration = Duration::from_secs(3600);

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
        let [one, other] = [0, 1].map(|_| Aside::keeping_for(LONG).for_layer());
        one.set(1, in_memory(1));
        one.set(2, spooled().unwrap());
        assert!(spooled().is_err());
        other.drop_files();
        assert!(spooled().is_err(), "the files of another engine stay");
        one.for_layer().drop_files();
        assert!(spooled().is_ok() && one.has(1));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_nobody_reads_goes_by_itself_again_and_again() {
        let aside = Aside::keeping_for(Duration::from_millis(20)).for_layer();
        for check in 0..3 {
            aside.set(check, in_memory(1 << 20));
            // Nobody asks for it, nor for anything else; the test hangs where it stays.
            while aside.is_watched.load(Ordering::Acquire) {
                tokio::task::yield_now().await;
            }
            assert_eq!((aside.all.entry_count(), aside.bytes()), (0, 0));
        }
    }

    #[test]
    fn all_layers_together_have_so_much_room() {
        let engine = Aside::keeping_for(LONG);
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
