//! Watches over a server, from a process of its own: when the server is gone, however it ended, its mounts are taken away, so that podman sees the
//! stubs below (stubs.rs) and not a mount that fails for whatever is asked of it.
//!
//! It has the store's lock as its standard output, and so do server and guard together: the next server starts when both have ended. Its
//! standard input says what to take away, and ends with the server.

use std::io::{self, BufRead, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde::{Deserialize, Serialize};

use super::open::Lock;
use super::paths::Paths;
use super::{Error, share};
use crate::mount::fusedev::{self, Detach};
use crate::mount::mounts::{self, Device};
use crate::mount::signals;
use crate::{sys, threads};

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "store-guard";

/// What is mounted where.
#[derive(Serialize, Deserialize)]
struct Guarded {
    root: PathBuf,
    device: Device,
}

/// A guard, for as long as this lives; it outlives this by the time that it needs.
pub(super) struct Guard {
    _input: Child,
}

impl Guard {
    pub(super) fn start(paths: &Paths, device: Device, lock: &Lock) -> io::Result<Self> {
        sys::close_inherited_on_exec();
        let mut line = serde_json::to_vec(&Guarded { root: paths.root.clone(), device })?;
        line.push(b'\n');
        let mut command = Command::new("/proc/self/exe");
        std::os::unix::process::CommandExt::arg0(&mut command, "crfs");
        command.arg(SUBCOMMAND).env_remove("NOTIFY_SOCKET").stdin(Stdio::piped()).stdout(lock.share()?);
        let mut child = command.stderr(Stdio::null()).spawn().map_err(threads::explained)?;
        child.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?.write_all(&line)?;
        Ok(Self { _input: child })
    }
}

/// The hidden subcommand's side.
///
/// # Errors
/// Where it is told nothing, or a mount cannot be taken away.
pub fn guard() -> Result<(), Error> {
    // It ends with the server. A service manager that stops a service asks all of its processes to end at once.
    signals::block_requests_to_end();
    // What a terminal sends to the server and its children is not for the guard. Fails only for the leader of a process group.
    let _own_session = nix::unistd::setsid();
    let failed = |source| Error::Guard { source };
    let mut input = io::stdin().lock();
    let mut line = String::new();
    input.read_line(&mut line).map_err(failed)?;
    let guarded: Guarded = serde_json::from_str(&line).map_err(|error| failed(error.into()))?;
    // Its end is that of the server.
    input.read_to_end(&mut Vec::new()).map_err(failed)?;
    let paths = Paths::new(&guarded.root, None);
    share::take_clones_away(&paths, Detach::Lazily);
    let is_its = move |mount: &mounts::Mount| mount.is_ours() && mount.device == guarded.device;
    match mounts::at(&paths.mount()).map_err(failed)?.filter(is_its) {
        Some(mount) => Ok(fusedev::unmount(&mount.point, Detach::Lazily, is_its)?),
        None => Ok(()),
    }
}
