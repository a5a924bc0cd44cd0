//! The parts of a request's body, as they come.

use std::io;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::registry;

/// The parts of a body as they come.
pub(super) struct Coming {
    receiver: mpsc::Receiver<Result<Bytes, registry::Error>>,
    error: Option<registry::Error>,
}

impl Coming {
    pub(super) const fn new(receiver: mpsc::Receiver<Result<Bytes, registry::Error>>) -> Self {
        Self { receiver, error: None }
    }

    /// Whether no more comes, since that has failed.
    pub(super) const fn has_failed(&self) -> bool {
        self.error.is_some()
    }

    /// Why no more comes.
    pub(super) fn into_error(self) -> Option<registry::Error> {
        self.error
    }

    /// Waits for the next one; `None`: no more come.
    pub(super) fn next(&mut self) -> io::Result<Option<Bytes>> {
        match self.receiver.blocking_recv() {
            Some(Ok(part)) => Ok(Some(part)),
            Some(Err(error)) => {
                let text = error.to_string();
                self.error = Some(error);
                Err(io::Error::other(text))
            }
            None => Ok(None),
        }
    }
}
