//! What shows a forest to the kernel, whatever it serves, and what became of it.
//!
//! A frontend mounts, and answers the kernel as long as there is something to answer. FUSE is one (fuse.rs). One that the kernel reads by itself, or
//! that goes on with a mount that another process has made, has the same three things to say: which mount it is, when it can be used, when it ended.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use super::Error;
use super::signals::{Asked, ServerSignals};
use crate::errors::chain;
use crate::fs::forest::Forest;
use crate::kernel;
use crate::kernel::Target;
use crate::kernel::fusedev::{self, Detach};
use crate::kernel::mounts::{self, Identity};
use crate::sys::own::short_path;
use crate::threads;

/// How long the end of serving may come after the failure of the lookup that it made fail.
const CAUSE: Duration = Duration::from_millis(200);

/// A way to show a forest to the kernel.
pub(crate) trait Frontend {
    /// Its name in `crfs status`.
    fn name(&self) -> &'static str;

    /// Shows the forest at a place. Needs a tokio runtime. Not to be interrupted half-way, hence not async: it takes milliseconds.
    fn attach(&self, forest: Arc<Forest>, target: &Target<'_>) -> Result<Attached, Error>;

    /// Goes on with a mount that another process has attached in the same way, by what that one had for this ([`Attached::keep`]). It answers nobody
    /// any more.
    fn resume(&self, forest: Arc<Forest>, mounted: Mounted, device: OwnedFd) -> Result<Attached, Error>;
}

/// What another process needs to go on with a mount; `None` where none can. It is known once the place can be used.
pub(crate) type Keep = Box<dyn FnOnce() -> Option<OwnedFd> + Send>;

/// A forest that the kernel has at a place.
pub(crate) struct Attached {
    pub(crate) mounted: Mounted,
    /// Comes true when the place can be used.
    pub(crate) usable: BoxFuture<'static, io::Result<()>>,
    /// Comes true when nobody answers the kernel any more.
    pub(crate) ended: BoxFuture<'static, io::Error>,
    /// `None` where nobody is to go on with it.
    pub(crate) keep: Option<Keep>,
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

impl Attached {
    /// Comes back when the mount point can be used. The kernel's read-ahead may be set from then on: what FUSE waits for here, the answer to INIT,
    /// lowers it to 128 KiB. An open file keeps what it found.
    pub(crate) async fn become_usable(&mut self) -> Result<(), Error> {
        let dir = self.mounted.dir.clone();
        let looked = tokio::select! {
            looked = &mut self.usable => looked,
            source = &mut self.ended => return Err(Error::Session { dir, source }),
        };
        let Err(source) = looked else { return Ok(()) };
        // Where serving failed, that is the cause, and about to be known.
        Err(match tokio::time::timeout(CAUSE, &mut self.ended).await {
            Ok(source) => Error::Session { dir, source },
            Err(_) => Error::NotReady { dir, source },
        })
    }

    /// Comes back when the kernel is done with the mount, or two signals wanted it to end. `let_go` is called at the first one, before the mount is
    /// unmounted where nothing uses it; `tell` where a signal asks what the server does.
    pub(crate) async fn end(&mut self, signals: &mut ServerSignals, let_go: impl Fn(), tell: impl Fn()) -> End {
        let mut asked = false;
        loop {
            tokio::select! {
                source = &mut self.ended => return match self.mounted.is_gone() {
                    true => End::Unmounted,
                    false => End::Failed(source),
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

/// Waits for what a first user would do. Not on a thread of the runtime: where nobody answers, it waits for as long as the process lives. `root`: the
/// mount's root directory, whatever is mounted on it; while it is open, the mount is busy.
pub(super) async fn looked_up(dir: PathBuf, root: Option<OwnedFd>) -> io::Result<()> {
    let look = move || first_lookup(&root.as_ref().map_or(dir, |root| short_path(root.as_fd())));
    on_thread("first-lookup", look)?.await.unwrap_or_else(|_| Err(panicked()))
}

/// A directory of its own, and a name in it that is most likely missing, which is as good.
fn first_lookup(dir: &Path) -> io::Result<()> {
    fs::metadata(dir)?;
    match fs::symlink_metadata(dir.join(".crfs-ready")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Runs something that may block for ever; a panic in it looks like a lost answer.
pub(super) fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let (answer, answered) = oneshot::channel();
    // Nobody may be waiting any more for the answer.
    threads::spawn(name, move || drop(answer.send(work())))?;
    Ok(answered)
}

pub(super) fn panicked() -> io::Error {
    io::Error::other("a thread panicked; the log says where")
}

/// A mount that this process made. Taken away when it is dropped, unless it stays.
pub(crate) struct Mounted {
    pub(crate) dir: PathBuf,
    pub(crate) identity: Identity,
    pub(crate) stays: bool,
}

/// Which mount it is: for whoever unmounts it while another holds it.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    dir: PathBuf,
    identity: Identity,
}

impl Place {
    /// Unmounts it where nothing uses it, in the mount namespace of this process.
    pub(crate) fn leave(&self) -> Result<(), kernel::Error> {
        unmount(&self.dir, &self.identity, Detach::IfIdle).map_err(|error| match error {
            kernel::Error::Replaced { dir } => kernel::Error::NotMounted { dir },
            error => error,
        })
    }
}

/// Unmounts this very mount, and no other.
fn unmount(dir: &Path, identity: &Identity, how: Detach) -> Result<(), kernel::Error> {
    let identity = identity.clone();
    fusedev::unmount(dir, how, move |mount| identity.is(mount))
}

impl Mounted {
    /// Mounts by `make`. Opening an image takes its time: somebody else may have mounted there meanwhile.
    pub(super) fn by<T>(
        target: &Target<'_>,
        make: impl FnOnce() -> Result<(Identity, T), kernel::Error>,
    ) -> Result<(Self, T), kernel::Error> {
        let _reserved = mounts::reserve(target.dir)?;
        let (identity, made) = make()?;
        let mounted = Self { dir: target.dir.to_owned(), identity, stays: false };
        mounted.refuse_over_another()?;
        Ok((mounted, made))
    }

    pub(crate) fn place(&self) -> Place {
        Place { dir: self.dir.clone(), identity: self.identity.clone() }
    }

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
                tracing::warn!(%dir, "shutdown requested: unmounted here, and still in use elsewhere; send the signal again to end all the same");
            }
            Ok(()) => {}
            Err(kernel::Error::Replaced { .. }) => {
                tracing::warn!(%dir, "shutdown requested: not mounted here any more, and still in use elsewhere; send the signal again to end all the same");
            }
            Err(error) => {
                tracing::warn!(%dir, error = chain(&error), "shutdown requested, but the mount is busy; send the signal again to detach it");
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
    use crate::kernel::fusedev::Made;

    /// A mount that nobody answers for.
    fn made(target: &Target<'_>) -> Result<(Mounted, OwnedFd), kernel::Error> {
        Mounted::by(target, || fusedev::mount(target).map(|Made { device, identity, .. }| (identity, device)))
    }

    #[test]
    fn of_mounts_at_one_directory_each_is_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let target = Target {
            dir: &dir,
            source: "image@digest",
            allow_other: false,
            is_asked_for_changes: false,
            noexec: false,
        };
        let Ok(first) = made(&target) else { return };
        assert!(matches!(made(&target), Err(kernel::Error::AlreadyMounted { .. })));
        // By somebody who looked before the first was there.
        let upper = fusedev::mount(&target).unwrap();
        let second = Mounted { dir: dir.clone(), identity: upper.identity, stays: false };
        assert_ne!(first.0.identity, second.identity);
        assert!(matches!(second.refuse_over_another(), Err(kernel::Error::AlreadyMounted { .. })));
        first.0.refuse_over_another().unwrap();
        let below = unmount(&dir, &first.0.identity, Detach::Lazily);
        assert!(matches!(below, Err(kernel::Error::Replaced { .. })), "the second is not the first's to unmount");
        drop(second);
        assert!(first.0.identity.is(&mounts::at(&dir).unwrap().unwrap()));
        drop(first);
        assert_eq!(mounts::at(&dir).unwrap(), None);
    }

    #[test]
    fn what_others_have_mounted_over_a_mount_stays() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let Ok(mount) = made(&Target {
            dir: &dir,
            source: "image@digest",
            allow_other: false,
            is_asked_for_changes: false,
            noexec: false,
        }) else {
            return;
        };
        nix::mount::mount(Some("theirs"), &dir, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        assert!(!mount.0.is_gone());
        drop(mount);
        assert_eq!(mounts::at(&dir).unwrap().unwrap().source, "theirs");
        umount2(&dir, MntFlags::empty()).unwrap();
        // Covered, it could not be taken away.
        assert!(mounts::at(&dir).unwrap().unwrap().is_ours());
        umount2(&dir, MntFlags::MNT_DETACH).unwrap();
    }

    /// What another frontend than FUSE would give. Nothing is mounted.
    fn attached(
        usable: impl Future<Output = io::Result<()>> + Send + 'static,
        ended: impl Future<Output = io::Error> + Send + 'static,
    ) -> Attached {
        let device = mounts::Device { major: 0, minor: u32::MAX };
        let identity = Identity { id: u32::MAX, device, source: "none".into(), user: None };
        let mounted = Mounted { dir: "/nowhere".into(), identity, stays: true };
        Attached { mounted, usable: Box::pin(usable), ended: Box::pin(ended), keep: None }
    }

    #[tokio::test(start_paused = true)]
    async fn why_a_place_cannot_be_used_is_what_ended_it_where_it_has_ended() {
        use std::future::{pending, ready};
        let refused = || ready(Err(io::ErrorKind::NotConnected.into()));
        let late = |wait| async move {
            tokio::time::sleep(wait).await;
            io::Error::from(io::ErrorKind::UnexpectedEof)
        };
        attached(ready(Ok(())), pending()).become_usable().await.unwrap();
        let never = attached(pending(), late(CAUSE)).become_usable().await;
        assert!(matches!(never, Err(Error::Session { source, .. }) if source.kind() == io::ErrorKind::UnexpectedEof));
        let cause = attached(refused(), late(CAUSE / 2)).become_usable().await;
        assert!(matches!(cause, Err(Error::Session { source, .. }) if source.kind() == io::ErrorKind::UnexpectedEof));
        let alone = attached(refused(), late(CAUSE * 2)).become_usable().await;
        assert!(matches!(alone, Err(Error::NotReady { source, .. }) if source.kind() == io::ErrorKind::NotConnected));
    }
}
