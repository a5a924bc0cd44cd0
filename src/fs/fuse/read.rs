//! How a READ is answered: with as few threads and copies as its bytes allow.
//!
//! | where its bytes are | who answers it |
//! |---|---|
//! | verified, in the layer file, in memory (the kernel's page cache) | the FUSE thread, at once |
//! | verified, in the layer file, on disk | a blocking thread; the look into memory has made the kernel begin to read. EIO where that takes longer than a read may wait |
//! | anywhere else, or not verified yet | a task, which fetches |
//!
//! One FUSE thread, which waits for nothing that may take long (a block of the index may have to be read from disk): with more of them the kernel wakes one after the other, each with cold caches of its CPU, which
//! made metadata three times as expensive (docs/performance.md).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use fuser::{Errno, ReplyData};
use tokio::runtime::Handle;
use tracing::Instrument as _;

use super::errno;
use super::overdue::Overdue;
use crate::fetch::Disk;
use crate::fs::errno::Refused;
use crate::fs::tree::Ino;
use crate::fs::view::View;
use crate::metrics::{Found, METRICS};
use crate::threads::{self, Work};

/// Buffers that are kept while nobody uses them.
const KEPT: usize = 4;

/// A READ that was not answered yet.
pub(super) struct Read {
    pub(super) ino: Ino,
    pub(super) offset: u64,
    pub(super) size: u32,
    pub(super) reply: ReplyData,
    came: Instant,
}

/// The reply to a READ that local disk may keep from being given.
pub(super) struct Late {
    view: Arc<View>,
    ino: Ino,
    reply: ReplyData,
    came: Instant,
}

impl Late {
    /// The disk has not answered in time.
    pub(super) fn give_up(self) {
        self.view.gave_up(self.ino);
        self.reply.error(Errno::EIO);
        METRICS.read(Found::Fetched, self.came.elapsed());
    }
}

impl Read {
    /// One that has just come.
    pub(super) fn new(ino: Ino, offset: u64, size: u32, reply: ReplyData) -> Self {
        Self { ino, offset, size, reply, came: Instant::now() }
    }

    /// Answers it, here and now if that needs no waiting.
    pub(super) fn answer(self, runtime: &Handle, view: &Arc<View>, buffers: &Arc<Buffers>, overdue: &Overdue<Late>) {
        let _in_runtime = runtime.enter();
        let Some(Self { ino, offset, size, reply, came }) = self.answer_from_memory(view, buffers) else { return };
        let held = overdue.hold(Late { view: Arc::clone(view), ino, reply, came }, view.patience());
        let (view, buffers, tasks) = (Arc::clone(view), Arc::clone(buffers), runtime.clone());
        let _answered = threads::run(Work::Local, move || {
            let mut buffer = buffers.take();
            let cached = view.read_cached(ino, offset, size.into(), &mut buffer, Disk::MayWait);
            match (cached, held.take()) {
                (Some(bytes), Some(Late { reply, .. })) => {
                    reply.data(bytes);
                    METRICS.read(Found::There, came.elapsed());
                }
                (None, Some(Late { reply, .. })) => {
                    let read = Self { ino, offset, size, reply, came };
                    drop(tasks.spawn(read.by_fetching(view).in_current_span()));
                }
                // It has taken too long.
                (_, None) => {}
            }
            buffers.give_back(buffer);
        });
    }

    /// Gives it back where its bytes cannot be had so.
    fn answer_from_memory(self, view: &View, buffers: &Buffers) -> Option<Self> {
        let mut buffer = buffers.take();
        let unanswered = match view.read_cached(self.ino, self.offset, self.size.into(), &mut buffer, Disk::InMemory) {
            Some(bytes) => {
                self.reply.data(bytes);
                METRICS.read(Found::There, self.came.elapsed());
                None
            }
            None => Some(self),
        };
        buffers.give_back(buffer);
        unanswered
    }

    async fn by_fetching(self, view: Arc<View>) {
        let Self { ino, offset, size, reply, came } = self;
        match view.read(ino, offset, size.into()).await {
            Ok(bytes) => {
                reply.data(&bytes);
                tracing::debug!(offset, size, took = ?came.elapsed(), "read");
            }
            Err(error) => {
                let refused = Refused::from(error);
                let why = &refused as &dyn std::error::Error;
                tracing::debug!(offset, size, took = ?came.elapsed(), error = why, "a read failed");
                reply.error(errno(&refused));
            }
        }
        METRICS.read(Found::Fetched, came.elapsed());
    }
}

/// Buffers for READs, used again: a fresh one of 1 MiB costs more than the copy into it.
#[derive(Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// What is in it is from whoever had it before.
    fn take(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(buffer);
        }
    }
}
