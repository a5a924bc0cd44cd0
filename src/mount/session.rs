//! A mount and the thread that answers for it, whatever it serves.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::oneshot;

use super::Error;
use super::fusedev::{self, Detach, Target};
use super::mounts::{self, Device};
use super::signals::{Asked, ServerSignals};
use crate::threads;

/// How long the end of serving may come after the failure of the lookup that it made fail.
const CAUSE: Duration = Duration::from_millis(200);

/// Answers the kernel's requests on the descriptor of /dev/fuse, the first (FUSE_INIT) included, until it says ENODEV.
pub(crate) type Serve = Box<dyn FnOnce(OwnedFd) -> io::Result<()> + Send>;

/// A mount that nobody answers for yet.
pub(crate) struct Unserved {
    device: OwnedFd,
    pub(crate) mounted: Mounted,
}

impl Unserved {
    pub(crate) fn mount(target: &Target<'_>) -> Result<Self, Error> {
        let device = fusedev::mount(target)?;
        Ok(Self { device, mounted: Mounted::find(target.dir.to_owned())? })
    }

    /// Lets `serve` answer, on a thread of its own.
    pub(crate) fn serve(self, serve: Serve) -> Result<Session, Error> {
        let Self { device, mounted } = self;
        Ok(Session { ended: on_thread("fuse", move || serve(device))?, mounted })
    }
}

/// A mount that is being served.
pub(crate) struct Session {
    ended: oneshot::Receiver<io::Result<()>>,
    pub(crate) mounted: Mounted,
}

/// How it came to an end.
pub(crate) enum End {
    /// The kernel is done with it.
    Unmounted,
    /// Two signals wanted it, although it is in use.
    GivenUp,
    /// Serving failed, and the mount is still there.
    Failed(io::Error),
}

impl Session {
    /// Comes back when the mount point can be used. The kernel's read-ahead may be set from then on: the answer to INIT, which this waits for, lowers it
    /// to 128 KiB. An open file keeps what it found.
    pub(crate) async fn become_usable(&mut self) -> Result<(), Error> {
        let dir = self.mounted.dir.clone();
        // Not on a thread of the runtime: where the view does not answer, this waits for as long as the process lives.
        let looked = on_thread("first-lookup", {
            let dir = dir.clone();
            move || first_lookup(&dir)
        })?;
        let looked = tokio::select! {
            looked = looked => looked.unwrap_or_else(|_| Err(panicked())),
            ended = &mut self.ended => return Err(Error::Session { dir, source: why(ended) }),
        };
        if let Err(source) = looked {
            // Where serving failed, that is the cause, and about to be known.
            return Err(match tokio::time::timeout(CAUSE, &mut self.ended).await {
                Ok(ended) => Error::Session { dir, source: why(ended) },
                Err(_) => Error::NotReady { dir, source },
            });
        }
        Ok(())
    }

    /// Comes back when the kernel is done with the mount, or two signals wanted it to end. `let_go` is called at the first one, before the mount is
    /// unmounted where nothing uses it; `tell` where a signal asks what the server does.
    pub(crate) async fn end(&mut self, signals: &mut ServerSignals, let_go: impl Fn(), tell: impl Fn()) -> End {
        let mut asked = false;
        loop {
            tokio::select! {
                ended = &mut self.ended => return match self.mounted.is_there() {
                    true => End::Failed(why(ended)),
                    false => End::Unmounted,
                },
                signal = signals.next() => match (signal, asked) {
                    (Asked::Tell, _) => tell(),
                    (Asked::End, true) => return End::GivenUp,
                    (Asked::End, false) => {
                        asked = true;
                        let_go();
                        self.mounted.leave_if_idle();
                    }
                },
            }
        }
    }
}

/// As many descriptors as may be had without asking anyone: a layer takes two in the cache, a request one.
pub(crate) fn raise_descriptor_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        tracing::debug!(%errno, "the limit of open files stays as it is");
    }
}

/// Runs something that may block for ever; a panic in it looks like a lost answer.
fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<T>, Error> {
    let (answer, answered) = oneshot::channel();
    // Nobody may be waiting any more for the answer.
    let work = move || drop(answer.send(work()));
    threads::spawn(name, work).map_err(|source| Error::Runtime { source })?;
    Ok(answered)
}

fn why(ended: Result<io::Result<()>, oneshot::error::RecvError>) -> io::Error {
    match ended {
        Ok(Ok(())) => io::Error::new(io::ErrorKind::ConnectionAborted, "the kernel ended the connection"),
        Ok(Err(error)) => error,
        Err(_) => panicked(),
    }
}

fn panicked() -> io::Error {
    io::Error::other("a thread panicked; the log says where")
}

/// Whether this very mount, and not another one, is at its directory.
fn is_on_top(dir: &Path, device: Device) -> bool {
    matches!(mounts::at(dir), Ok(Some(mount)) if mount.is_ours() && mount.device == device)
}

/// Unmounts a mount where nothing uses it, in the mount namespace of this process.
pub(crate) fn unmount_if_idle(dir: &Path, device: Device) -> Result<(), Error> {
    if !is_on_top(dir, device) {
        return Err(Error::NotMounted { dir: dir.to_owned() });
    }
    fusedev::unmount(dir, Detach::IfIdle)
}

/// What a first user would do: stat the directory, and look a name up in it. One that is missing is as good.
fn first_lookup(dir: &Path) -> io::Result<()> {
    fs::metadata(dir)?;
    match fs::symlink_metadata(dir.join(".crfs-ready")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A mount that this process made. Taken away when it is dropped, unless it stays.
pub(crate) struct Mounted {
    pub(crate) dir: PathBuf,
    pub(crate) device: Device,
    /// Who mounted it, as the mount table has it.
    pub(crate) user: Option<u32>,
    pub(crate) stays: bool,
}

impl Mounted {
    /// The mount that was just made at `dir`.
    fn find(dir: PathBuf) -> Result<Self, Error> {
        match mounts::at(&dir) {
            Ok(Some(mount)) if mount.is_ours() => {
                Ok(Self { dir, device: mount.device, user: mount.user(), stays: false })
            }
            Ok(_) => Err(Error::NotMounted { dir }),
            Err(source) => Err(Error::Directory { dir, source }),
        }
    }

    fn is_on_top(&self) -> bool {
        is_on_top(&self.dir, self.device)
    }

    /// Whether it is anywhere in the mount table.
    fn is_there(&self) -> bool {
        mounts::all().is_ok_and(|table| table.iter().any(|mount| mount.is_ours() && mount.device == self.device))
    }

    /// Unmounts where nothing uses it; says so where something does.
    fn leave_if_idle(&self) {
        let dir = self.dir.display();
        if !self.is_on_top() {
            return tracing::warn!(%dir, "asked to end: still in use by another mount; once more to leave all the same");
        }
        match fusedev::unmount(&self.dir, Detach::IfIdle) {
            Ok(()) if self.device.exists() => {
                tracing::warn!(%dir, "unmounted; still in use by another mount; once more to leave all the same");
            }
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(error = error.chain(), "asked to end, and staying; once more to leave all the same");
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.stays || !self.is_on_top() {
            return;
        }
        if let Err(error) = fusedev::unmount(&self.dir, Detach::Lazily) {
            tracing::error!(error = error.chain(), "a mount stays behind");
        }
    }
}
