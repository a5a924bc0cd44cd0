//! What all images of a process have in common.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::aside::Aside;
use super::heat::Record;

/// Requests of all images of a process at a time. Each has a thread while its body comes in (`Work::Incoming`).
const REQUESTS_OF_ALL: usize = 384;

/// What all images of a process have in common. Clones are the same.
#[derive(Clone)]
pub struct Shared {
    pub(super) requests: Arc<Semaphore>,
    pub(super) aside: Aside,
    pub(super) record: Option<Arc<Record>>,
}

impl Shared {
    /// What becomes of the bytes of an image is recorded from now on.
    #[must_use]
    pub fn recording(self) -> Self {
        Self { record: Some(Arc::default()), ..self }
    }

    #[must_use]
    pub fn record(&self) -> Option<&Arc<Record>> {
        self.record.as_ref()
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self { requests: Arc::new(Semaphore::new(REQUESTS_OF_ALL)), aside: Aside::new(), record: None }
    }
}
