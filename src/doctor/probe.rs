//! What the kernel can do, found by doing it: a child of `crfs doctor` mounts a filesystem of one file, and tries what crfs needs of it.
//!
//! As root it does so in a mount namespace of its own, so that nobody sees it and nothing is left of it, however it ends. An ordinary user has none, and
//! mounts at a directory of their own by fusermount3; whoever started the child unmounts what it may have left.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::errors::chain;
use crate::fs::forest::{Forest, Grown, Made, ROOT};
use crate::fs::fuse::{Frontend, Options, Resends, Server};
use crate::image::look::runtime;
use crate::kernel::Target;
use crate::kernel::fusedev::{self, Detach};
use crate::kernel::mounts::{self, Mount};
use crate::podman;
use crate::sys::limit;
use crate::threads;

/// The hidden subcommand, followed by a directory.
pub const SUBCOMMAND: &str = "probe-kernel";

/// How long the child may take, and its mount after it.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a mount table shows of the mount.
pub(super) const SOURCE: &str = "crfs-doctor";

/// Where what is in the directory of the child.
const MOUNT: &str = "mnt";
const FILE: &str = "file";
const CONTENTS: &[u8] = b"crfs\n";

/// More than a child says.
const LONGEST: u64 = 64 << 10;

/// What came of trying something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Tried {
    /// It was not tried: what it needs does not work, or this user may not.
    #[default]
    Not,
    Works,
    Fails(String),
}

impl Tried {
    fn of<T>(result: io::Result<T>) -> Self {
        match result {
            Ok(_) => Self::Works,
            Err(error) => Self::Fails(chain(&error)),
        }
    }
}

/// All that is tried.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Probed {
    /// Mounting by FUSE, and reading what is mounted.
    pub(super) fuse: Tried,
    /// Requests are given out again to the next server (Linux 6.9): mounts outlive their server.
    pub(super) resend: Tried,
    /// overlayfs over it.
    pub(super) overlay: Tried,
    /// Its owners mapped (Linux 6.12).
    pub(super) idmap: Tried,
}

/// Has a child try it.
pub(super) fn ask_child() -> io::Result<Probed> {
    let dir = tempfile::Builder::new().prefix("crfs-doctor-").tempdir()?;
    let said = run_child(dir.path());
    // Left only where the child was killed, or could not unmount it.
    let point = dir.path().canonicalize()?.join(MOUNT);
    if mounts::at(&point)?.is_some_and(|mount| is_ours(&mount)) {
        let _left = fusedev::unmount(&point, Detach::Lazily, is_ours);
    }
    said
}

fn is_ours(mount: &Mount) -> bool {
    mount.is_ours() && mount.source == SOURCE
}

fn run_child(dir: &Path) -> io::Result<Probed> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(SUBCOMMAND).arg(dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(threads::explained)?;
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no end within {} s", PATIENCE.as_secs()));
    let status = limit::wait_for(&mut child, PATIENCE)?.ok_or_else(late)?;
    let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let read = move || io::read_to_string(io::Read::take(output, LONGEST));
    let text = limit::answered(PATIENCE, read)?;
    if !status.success() {
        return Err(io::Error::other(format!("it ended with {status}")));
    }
    Ok(serde_json::from_str(&text)?)
}

/// The child's side.
///
/// # Errors
/// Where it has nothing to say.
pub fn answer_parent(dir: &Path) -> Result<String, crate::image::Error> {
    let probed = serde_json::to_string(&probe(dir));
    probed.map_err(|error| crate::image::Error::Output { source: error.into() })
}

fn probe(dir: &Path) -> Probed {
    let is_private = own_namespace(dir);
    let tried = Probing::begin(dir);
    match tried {
        Ok(probing) => probing.all(is_private),
        Err(why) => Probed { fuse: Tried::Fails(why), ..Probed::default() },
    }
}

/// Whether this process has a mount namespace of its own from now on, with an empty filesystem at `dir`. It has no threads yet.
fn own_namespace(dir: &Path) -> bool {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).is_ok()
        && mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).is_ok()
        && mount(Some(SOURCE), dir, Some("tmpfs"), MsFlags::empty(), Some("mode=0700,size=1m")).is_ok()
}

/// A mount that is tried. Unmounted when it is dropped.
struct Probing {
    dir: PathBuf,
    point: PathBuf,
    resends: Resends,
    _runtime: threads::Runtime,
}

impl Probing {
    fn begin(dir: &Path) -> Result<Self, String> {
        let said = |error: &io::Error| chain(error);
        let dir = dir.canonicalize().map_err(|error| said(&error))?;
        let point = dir.join(MOUNT);
        fs::create_dir(&point).map_err(|error| said(&error))?;
        let runtime = runtime().map_err(|error| error.chain())?;
        let target =
            Target { dir: &point, source: SOURCE, allow_other: false, is_asked_for_changes: false, noexec: false };
        let made = fusedev::mount(&target).map_err(|error| chain(&error))?;
        // While its root is open, the mount is busy.
        drop(made.root);
        let options = Options { list_trusted: false, nfs_export: false };
        let frontend = Frontend::new(forest(), runtime.handle().clone(), options);
        let resends = frontend.resends();
        let probing = Self { dir, point, resends, _runtime: runtime };
        serve(frontend, made.device).map_err(|error| said(&error))?;
        Ok(probing)
    }

    fn all(&self, is_private: bool) -> Probed {
        let fuse = Tried::of(self.read());
        if fuse != Tried::Works {
            return Probed { fuse, ..Probed::default() };
        }
        let resend = match self.resends.get() {
            true => Tried::Works,
            false => Tried::Fails("the kernel does not offer it".to_owned()),
        };
        let private = |try_it: &dyn Fn() -> io::Result<()>| if is_private { Tried::of(try_it()) } else { Tried::Not };
        Probed {
            fuse,
            resend,
            overlay: private(&|| self.overlay()),
            idmap: private(&|| podman::can_map_owners(&self.point)),
        }
    }

    /// A directory above views is root's alone: others may only look at it.
    fn read(&self) -> io::Result<()> {
        if !geteuid().is_root() {
            return fs::metadata(&self.point).map(drop);
        }
        match fs::read(self.point.join(FILE))? == CONTENTS {
            true => Ok(()),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// As podman makes one for a container; it goes with the namespace.
    fn overlay(&self) -> io::Result<()> {
        let place = |name: &str| {
            let place = self.dir.join(name);
            fs::create_dir(&place).map(|()| place)
        };
        let (upper, work, merged) = (place("upper")?, place("work")?, place("merged")?);
        let options =
            format!("lowerdir={},upperdir={},workdir={}", self.point.display(), upper.display(), work.display());
        mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str()))?;
        fs::write(merged.join(FILE), "changed")?;
        fs::read(merged.join(FILE)).map(drop)
    }
}

impl Drop for Probing {
    fn drop(&mut self) {
        // Whoever started this process looks again.
        let _unmounted = fusedev::unmount(&self.point, Detach::Lazily, is_ours);
    }
}

/// A directory with one file.
fn forest() -> Arc<Forest> {
    const NUMBER: u64 = ROOT + 1;
    let entries = BTreeMap::from([(FILE.as_bytes().to_vec(), NUMBER)]);
    let made = HashMap::from([(ROOT, Made::Dir { entries, lasting: true }), (NUMBER, Made::File(CONTENTS.into()))]);
    Arc::new(Forest::store(Grown { made, ..Grown::default() }))
}

fn serve(frontend: Frontend, device: OwnedFd) -> io::Result<()> {
    // It ends with the mount, or with the process.
    threads::spawn("fuse", move || drop(Server::handshake(frontend, device).and_then(Server::run)))
}
