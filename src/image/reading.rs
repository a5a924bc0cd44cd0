//! How far layers are read that are read whole, for whoever waits for them.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::event::{Event, LayerRead, Report};
use crate::blob::Digest;
use crate::registry;

/// The layers that are read whole.
pub(super) struct Reading {
    /// The numbers of all layers that may be.
    numbers: HashMap<Digest, usize>,
    layers: Mutex<BTreeMap<usize, One>>,
}

/// One of them.
struct One {
    digest: Digest,
    bytes: Arc<AtomicU64>,
    of: u64,
    /// It was not begun yet.
    waits: bool,
    done: bool,
    /// What was told of it.
    told: Option<(u64, u64, bool)>,
}

impl One {
    fn new(layer: &registry::Layer) -> Self {
        Self { digest: layer.digest, bytes: Arc::default(), of: layer.size, waits: true, done: false, told: None }
    }
}

impl Reading {
    /// `layers`: those that are opened, each by its lowest number.
    pub(super) fn new(layers: impl IntoIterator<Item = (usize, Digest)>) -> Self {
        let numbers = layers.into_iter().map(|(number, digest)| (digest, number)).collect();
        Self { numbers, layers: Mutex::default() }
    }

    /// A layer will be read, when its turn comes.
    pub(super) fn expect(&self, layer: &registry::Layer) {
        let number = self.number(&layer.digest);
        self.lock().entry(number).or_insert_with(|| One::new(layer));
    }

    /// All of a layer is read from now on: what is to be told of it.
    pub(super) fn begin(&self, layer: &registry::Layer) -> Arc<AtomicU64> {
        let number = self.number(&layer.digest);
        let mut layers = self.lock();
        let one = layers.entry(number).or_insert_with(|| One::new(layer));
        if !std::mem::take(&mut one.waits) {
            one.of = one.of.saturating_add(layer.size);
        }
        one.done = false;
        Arc::clone(&one.bytes)
    }

    /// A layer is not read any more, or will not be.
    pub(super) fn end(&self, digest: &Digest) {
        let (number, mut layers) = (self.number(digest), self.lock());
        layers.retain(|at, one| *at != number || !one.waits);
        layers.get_mut(&number).into_iter().for_each(|one| one.done = true);
    }

    fn number(&self, digest: &Digest) -> usize {
        self.numbers.get(digest).copied().unwrap_or_default()
    }

    /// Tells what is new.
    pub(super) fn tell(&self, report: &Report) {
        let (mut bytes, mut of, mut news) = (0_u64, 0_u64, Vec::new());
        for (number, one) in self.lock().iter_mut() {
            let now = (one.bytes.load(Ordering::Relaxed), one.of, one.done);
            bytes = bytes.saturating_add(now.0);
            of = of.saturating_add(now.1);
            if !one.waits && one.told.replace(now) != Some(now) {
                news.push(LayerRead { number: *number, digest: one.digest, bytes: now.0, of: now.1, done: now.2 });
            }
        }
        if !news.is_empty() {
            // Progress that nobody hears is none.
            let _heard = report(&Event::Reading { bytes, of, layers: news });
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, One>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
