//! What processes do about signals.

use std::io;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use nix::sys::signal::{SigSet, Signal as Kind};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::sys::{self, limit};
use crate::threads;

/// Signals that still do what they do: a server listens for the first four; the next ones are harmless, and others listen for them; the rest tells of
/// a fault of the process itself.
const LET_THROUGH: [Kind; 15] = [
    Kind::SIGTERM,
    Kind::SIGINT,
    Kind::SIGHUP,
    Kind::SIGQUIT,
    Kind::SIGCHLD,
    Kind::SIGCONT,
    Kind::SIGURG,
    Kind::SIGWINCH,
    Kind::SIGABRT,
    Kind::SIGBUS,
    Kind::SIGFPE,
    Kind::SIGILL,
    Kind::SIGSEGV,
    Kind::SIGSYS,
    Kind::SIGTRAP,
];

/// Lets no signal end or stop this process that means nothing to it (USR1, ALRM, TSTP, XFSZ, those of real time and others): whoever uses the mount would pay
/// for it. What it starts inherits that: those are few, and end soon (fusermount3, credential helpers), or set their own (workers).
///
/// To be called before the process has threads. SIGKILL and SIGSTOP cannot be blocked.
pub(crate) fn block_meaningless() {
    let mut blocked = SigSet::all();
    LET_THROUGH.iter().for_each(|kind| blocked.remove(*kind));
    // Set, not added: whoever started this process may have blocked others. Fails only for what is no set of signals.
    let _cannot_fail = blocked.thread_set_mask();
}

/// The signals that ask a process to end. While one of these is held, they do not end it by themselves.
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

/// How long that may take.
const TIDYING: Duration = Duration::from_secs(1);

/// Lets something be done before this process is ended by SIGINT or SIGTERM, as it is otherwise. To be called once.
pub fn before_the_end(tidy: fn()) {
    let kinds = [(Kind::SIGINT, SignalKind::interrupt()), (Kind::SIGTERM, SignalKind::terminate())];
    // What whoever started this process has it ignore stays ignored.
    let kinds: Vec<_> = kinds.into_iter().filter(|(kind, _)| sys::ends_by(*kind)).collect();
    let wait = move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
        runtime.block_on(async {
            let listened = kinds.into_iter().filter_map(|(kind, listened)| Some((kind, signal(listened).ok()?)));
            let heard = listened.map(|(kind, mut signal)| async move { signal.recv().await.map(|()| kind) });
            if let Some(Some(kind)) = heard.collect::<FuturesUnordered<_>>().next().await {
                // A terminal that takes nothing is not waited for.
                let _tidied = limit::within(TIDYING, tidy);
                sys::end_by(kind);
            }
        });
    };
    // Where it cannot be waited for, the process ends untidily.
    let _untidy = threads::spawn("signals", wait);
}

/// What signals ask a server for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    End,
    /// To say what it does.
    Tell,
}

/// The signals that a server listens for.
pub(crate) struct ServerSignals {
    pub(crate) end: EndSignals,
    quit: Signal,
}

impl ServerSignals {
    /// Needs a tokio runtime.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self { end: EndSignals::listen()?, quit: signal(SignalKind::quit())? })
    }

    pub(crate) async fn next(&mut self) -> Asked {
        tokio::select! {
            () = self.end.next() => Asked::End,
            _ = self.quit.recv() => Asked::Tell,
        }
    }
}
