//! The frame of all servers: how a process becomes one, and how its mount lives and ends.
//!
//! ```text
//! run: heap, signals ─> what is its own ─> log, directory, descriptors, runtime ─> Server::attach ─> usable: all threads ─> ... ─> ENODEV
//! ```
//!
//! A mount ends when the kernel is done with it and not before. A signal only asks the kernel: it unmounts where nothing uses the mount. Where serving
//! fails, the mount is left as it is, so that its readers see ENOTCONN and not the files of the directory below.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::control::{self, Answering};
use super::frontend::{Attached, End, Frontend, Mounted};
use super::kept::Keeping;
use super::listen::Listening;
use super::log::{self, RotatingLog};
use super::options::LogOptions;
use super::service::Service;
use super::signals::{self, ServerSignals};
use super::{Error, doing};
use crate::errors::chain;
use crate::fs::forest::Forest;
use crate::kernel::Target;
use crate::kernel::fusedev::Detach;
use crate::{sys, threads};

/// Makes a server of this process, for as long as `serve` takes. `prepare` gives what it is made of, and where its log is to be.
pub(crate) fn run<T, E, F>(
    log: &LogOptions,
    prepare: impl FnOnce() -> Result<(T, PathBuf), E>,
    serve: impl FnOnce(T, ServerSignals) -> F,
) -> Result<(), E>
where
    E: std::error::Error + From<Error>,
    F: Future<Output = Result<(), E>>,
{
    sys::keep_heap_small();
    signals::block_meaningless();
    let (prepared, file) = prepare()?;
    let failed = |source| Error::Runtime { source };
    let _log = log::start_server(log, RotatingLog::open(&file).ok()).map_err(failed)?;
    // A working directory on a mount would keep that one busy, its own for ever.
    nix::unistd::chdir("/").map_err(|errno| failed(errno.into()))?;
    raise_descriptor_limit();
    let runtime = threads::runtime().map_err(failed)?;
    let outcome = runtime.block_on(async { serve(prepared, ServerSignals::listen().map_err(failed)?).await });
    // What is still in flight is for nobody.
    drop(runtime);
    if let Err(error) = &outcome {
        tracing::info!(error = chain(error), "the server ends");
    }
    outcome
}

/// As many descriptors as may be had without asking anyone: a layer takes two in the cache, a request one.
fn raise_descriptor_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        tracing::debug!(%errno, "the limit of open files stays as it is");
    }
}

/// A service that the kernel shows.
pub(crate) struct Server<S> {
    pub(crate) attached: Attached,
    pub(crate) frontend: &'static str,
    /// Seconds since 1970.
    pub(crate) started: u64,
    /// `None`: it ends with this process.
    pub(crate) kept: Arc<Mutex<Option<Keeping>>>,
    service: Arc<S>,
}

/// A mount that another process has made.
pub(crate) struct Resumed {
    pub(crate) mounted: Mounted,
    pub(crate) device: OwnedFd,
    pub(crate) started: u64,
    pub(crate) kept: Keeping,
}

impl<S: Service> Server<S> {
    /// Mounts. What is mounted goes when this is dropped, unless it stays.
    pub(crate) fn attach(
        service: Arc<S>,
        forest: Arc<Forest>,
        frontend: &dyn Frontend,
        target: &Target<'_>,
    ) -> Result<Self, Error> {
        let attached = frontend.attach(forest, target)?;
        let started = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        Ok(Self { attached, frontend: frontend.name(), started, kept: Arc::default(), service })
    }

    /// Goes on with a mount.
    pub(crate) fn resume(
        service: Arc<S>,
        forest: Arc<Forest>,
        frontend: &dyn Frontend,
        Resumed { mounted, device, started, kept }: Resumed,
    ) -> Result<Self, Error> {
        let attached = frontend.resume(forest, mounted, device)?;
        Ok(Self { attached, frontend: frontend.name(), started, kept: Arc::new(Mutex::new(Some(kept))), service })
    }

    pub(crate) fn service(&self) -> &S {
        &self.service
    }

    /// Answers who asks, from now on.
    pub(crate) fn answer(&self, listener: UnixListener, http: Option<Listening>) {
        let (service, place) = (Arc::clone(&self.service), self.attached.mounted.place());
        let (frontend, started, kept) = (self.frontend, self.started, Arc::clone(&self.kept));
        let answering = Answering { service, frontend, started, kept, place };
        let answering = Arc::new(answering);
        if let Some(http) = http {
            let asked = Arc::clone(&answering);
            tokio::spawn(http.answer(move || {
                let asked = Arc::clone(&asked);
                async move { asked.metrics().await }
            }));
        }
        tokio::spawn(control::answer(listener, answering));
    }

    /// Comes back when the mount can be used.
    pub(crate) async fn become_usable(&mut self) -> Result<(), Error> {
        self.attached.become_usable().await?;
        // Now that all threads are there that it cannot do without.
        threads::fill();
        Ok(())
    }

    /// Comes back when the kernel is done with the mount, or two signals wanted it to end.
    pub(crate) async fn live(mut self, signals: &mut ServerSignals) -> Result<(), Error> {
        let (dir, source) = (self.attached.mounted.dir.clone(), self.attached.mounted.identity.source.clone());
        tracing::info!(dir = %dir.display(), source, "mounted");
        let tell = || {
            tracing::warn!(dir = %dir.display(), source, "SIGQUIT: mounted");
            doing::tell(&self.service.layers(), self.service.common().cache());
        };
        let end = self.attached.end(signals, || self.service.let_go(Detach::IfIdle), tell).await;
        self.service.let_go(Detach::Lazily);
        match end {
            End::Unmounted => {
                tracing::info!(dir = %dir.display(), "unmounted");
                Ok(())
            }
            End::GivenUp => {
                self.attached.mounted.stays = false;
                Ok(())
            }
            End::Failed(source) => {
                tracing::error!(dir = %dir.display(), error = %source, "serving failed; the mount is dead until it is unmounted");
                Err(Error::Session { dir, source })
            }
        }
    }
}
