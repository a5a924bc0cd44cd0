//! The signals that ask a process to end. While one of these is held, they do not end it by themselves.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Makes a write past the limit of a file's size (RLIMIT_FSIZE) fail, instead of ending the process: the cache can be done without. For
/// good. Needs a tokio runtime.
pub(crate) fn survive_file_size_limit() -> io::Result<()> {
    // A handler stays when its stream is dropped.
    signal(SignalKind::from_raw(nix::libc::SIGXFSZ)).map(drop)
}

pub(crate) struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl EndSignals {
    /// Needs a tokio runtime.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
