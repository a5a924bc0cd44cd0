//! A mount and the thread that answers for it, whatever it serves.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::oneshot;

use super::Error;
use super::signals::{Asked, ServerSignals};
use super::state::short_path;
use crate::errors::chain;
use crate::kernel;
use crate::kernel::Target;
use crate::kernel::fusedev::{self, Detach, Made};
use crate::kernel::mounts::{self, Identity};
use crate::threads;

/// How long the end of serving may come after the failure of the lookup that it made fail.
const CAUSE: Duration = Duration::from_millis(200);

/// Answers the kernel's requests on the descriptor of /dev/fuse, the first (FUSE_INIT) included, until it says ENODEV.
pub(crate) type Serve = Box<dyn FnOnce(OwnedFd) -> io::Result<()> + Send>;

/// A mount that nobody answers for yet.
pub(crate) struct Unserved {
    device: OwnedFd,
    root: Option<OwnedFd>,
    pub(crate) mounted: Mounted,
}

impl Unserved {
    pub(crate) fn mount(target: &Target<'_>) -> Result<Self, Error> {
        // Opening an image takes its time: somebody else may have mounted here meanwhile.
        let _reserved = mounts::reserve(target.dir)?;
        let Made { device, identity, root } = fusedev::mount(target)?;
        let mounted = Mounted { dir: target.dir.to_owned(), identity, stays: false };
        mounted.refuse_over_another()?;
        Ok(Self { device, root, mounted })
    }

    /// Lets `serve` answer, on a thread of its own.
    pub(crate) fn serve(self, serve: Serve) -> Result<Session, Error> {
        let Self { device, root, mounted } = self;
        Ok(Session { ended: on_thread("fuse", move || serve(device))?, root, mounted })
    }
}

/// A mount that is being served.
pub(crate) struct Session {
    ended: oneshot::Receiver<io::Result<()>>,
    /// Until it is usable.
    root: Option<OwnedFd>,
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
            let (dir, root) = (dir.clone(), self.root.take());
            move || first_lookup(&root.as_ref().map_or(dir, |root| short_path(root.as_fd())))
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
                ended = &mut self.ended => return match self.mounted.is_gone() {
                    true => End::Unmounted,
                    false => End::Failed(why(ended)),
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

/// Unmounts a mount where nothing uses it, in the mount namespace of this process.
pub(crate) fn unmount_if_idle(dir: &Path, identity: &Identity) -> Result<(), kernel::Error> {
    unmount(dir, identity, Detach::IfIdle).map_err(|error| match error {
        kernel::Error::Replaced { dir } => kernel::Error::NotMounted { dir },
        error => error,
    })
}

/// Unmounts this very mount, and no other.
fn unmount(dir: &Path, identity: &Identity, how: Detach) -> Result<(), kernel::Error> {
    let identity = identity.clone();
    fusedev::unmount(dir, how, move |mount| identity.is(mount))
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
    pub(crate) identity: Identity,
    pub(crate) stays: bool,
}

impl Mounted {
    /// An image over an image would hide a server that nobody sees any more: of two that were mounted at once, the upper one goes.
    fn refuse_over_another(&self) -> Result<(), kernel::Error> {
        let dir = || self.dir.clone();
        let table = mounts::all().map_err(|source| kernel::Error::Directory { dir: dir(), source })?;
        let own = table
            .iter()
            .find(|mount| self.identity.is(mount))
            .ok_or_else(|| kernel::Error::NotMounted { dir: dir() })?;
        // A symbolic link that has come into the path leads elsewhere.
        if own.point != self.dir {
            return Err(kernel::Error::Replaced { dir: dir() });
        }
        match mounts::ours_below(&table, own) {
            Some(other) => {
                Err(kernel::Error::AlreadyMounted { dir: dir(), image: other.source.to_string_lossy().into_owned() })
            }
            None => Ok(()),
        }
    }

    /// Whether it is nowhere in the mount table. One that cannot be read does not say so.
    fn is_gone(&self) -> bool {
        mounts::all().is_ok_and(|table| !table.iter().any(|mount| self.identity.is_of(mount)))
    }

    /// Unmounts where nothing uses it; says so where something does.
    fn leave_if_idle(&self) {
        let (dir, device) = (self.dir.display(), self.identity.device);
        let instance = device.instance();
        match unmount(&self.dir, &self.identity, Detach::IfIdle) {
            Ok(()) if instance.is_some() && device.instance() == instance => {
                tracing::warn!(%dir, "unmounted; still in use by another mount; once more to leave all the same");
            }
            Ok(()) => {}
            Err(kernel::Error::Replaced { .. }) => {
                tracing::warn!(%dir, "asked to end: still in use by another mount; once more to leave all the same");
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "asked to end, and staying; once more to leave all the same");
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.stays || self.is_gone() {
            return;
        }
        if let Err(error) = unmount(&self.dir, &self.identity, Detach::Lazily) {
            tracing::error!(error = chain(&error), "a mount stays behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::mount::{MntFlags, MsFlags, umount2};

    use super::*;

    #[test]
    fn of_mounts_at_one_directory_each_is_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let target = Target { dir: &dir, source: "image@digest", allow_other: false };
        let Ok(first) = Unserved::mount(&target) else { return };
        assert!(matches!(Unserved::mount(&target), Err(Error::Kernel(kernel::Error::AlreadyMounted { .. }))));
        // By somebody who looked before the first was there.
        let made = fusedev::mount(&target).unwrap();
        let second = Mounted { dir: dir.clone(), identity: made.identity, stays: false };
        assert_ne!(first.mounted.identity, second.identity);
        assert!(matches!(second.refuse_over_another(), Err(kernel::Error::AlreadyMounted { .. })));
        first.mounted.refuse_over_another().unwrap();
        let below = unmount(&dir, &first.mounted.identity, Detach::Lazily);
        assert!(matches!(below, Err(kernel::Error::Replaced { .. })), "the second is not the first's to unmount");
        drop(second);
        assert!(first.mounted.identity.is(&mounts::at(&dir).unwrap().unwrap()));
        drop(first);
        assert_eq!(mounts::at(&dir).unwrap(), None);
    }

    #[test]
    fn what_others_have_mounted_over_a_mount_stays() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let Ok(mount) = Unserved::mount(&Target { dir: &dir, source: "image@digest", allow_other: false }) else {
            return;
        };
        nix::mount::mount(Some("theirs"), &dir, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        assert!(!mount.mounted.is_gone());
        drop(mount);
        assert_eq!(mounts::at(&dir).unwrap().unwrap().source, "theirs");
        umount2(&dir, MntFlags::empty()).unwrap();
        // Covered, it could not be taken away.
        assert!(mounts::at(&dir).unwrap().unwrap().is_ours());
        umount2(&dir, MntFlags::MNT_DETACH).unwrap();
    }
}
