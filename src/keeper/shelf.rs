//! What a service manager keeps for a keeper: all that another one needs to go on, should this one be killed (FDSTORE of sd_notify(3),
//! sd_listen_fds(3), FileDescriptorStoreMax= of systemd.service(5)).
//!
//! ```text
//! keeper ──> $NOTIFY_SOCKET: crfs-device, crfs-listener, crfs-lock, crfs-kept (a sealed memfd), crfs-worker-BEFORE-UPGRADES (a pidfd)
//!    ╳ killed; the manager starts the unit again
//! keeper <── descriptors 3, 4, ... by $LISTEN_FDS and $LISTEN_FDNAMES: kills the worker that the other one had, and starts the next
//! ```

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::notify::tell;
use super::refusing::{Mount, mount};
use super::wire::{Go, Held};
use crate::sys;

/// The first descriptor that a manager passes on.
pub(crate) const FIRST: RawFd = 3;

/// The form of the description. Another one is for another version of crfs.
const FORM: u8 = 1;

const DEVICE: &str = "crfs-device";
const LISTENER: &str = "crfs-listener";
const LOCK: &str = "crfs-lock";
const KEPT: &str = "crfs-kept";
/// Before how many workers there were before it, and how often for an upgrade.
const WORKER: &str = "crfs-worker-";

/// How long the manager may take to hear something. Nobody is served meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the kernel may take to end a worker that was killed.
const FENCED: Duration = Duration::from_secs(1);

/// What a service manager has told a process by its environment.
#[derive(Debug, Clone, Default)]
pub struct Manager {
    /// Where it listens ($NOTIFY_SOCKET).
    pub socket: Option<OsString>,
    /// What it has passed on, by name, in the order of their numbers ($LISTEN_FDNAMES). None where that is for another process.
    pub passed_on: Vec<String>,
}

/// Where the manager keeps things.
#[derive(Debug)]
pub(super) struct Shelf {
    manager: OsString,
    /// Whether it has all that is held.
    is_filled: bool,
    /// What the worker is called there.
    worker: Option<String>,
}

impl Shelf {
    /// `worker`: how many there were before the one that is there already, and how many of them have gone for an upgrade.
    pub(super) fn at(manager: OsString, worker: Option<(u32, u32)>) -> Self {
        let is_filled = worker.is_some();
        Self { manager, is_filled, worker: worker.map(|(before, upgrades)| name_of(before, upgrades)) }
    }

    /// Has it kept, once, and who serves it. Whether a manager keeps anything it does not say.
    pub(super) fn keep(&mut self, held: &Held, process: Option<&OwnedFd>, counts: (u32, u32)) -> io::Result<()> {
        if std::mem::replace(&mut self.is_filled, true) {
            return Ok(());
        }
        process.map_or(Ok(()), |process| self.keep_worker(process, counts))?;
        self.put(LISTENER, &held.listener)?;
        self.put(LOCK, &held.lock)?;
        self.put(KEPT, &description(held)?)?;
        // Last: without it the rest is of no use. The manager lets it go by itself when there is no mount any more.
        tell(PATIENCE, &self.manager, &format!("FDSTORE=1\nFDNAME={DEVICE}"), Some(held.device.as_fd()))
    }

    /// To be done before that worker serves, so that nobody ever serves who is not known there.
    pub(super) fn keep_worker(&mut self, process: &OwnedFd, (before, upgrades): (u32, u32)) -> io::Result<()> {
        let name = name_of(before, upgrades);
        self.put(&name, process)?;
        match self.worker.replace(name.clone()).filter(|old| *old != name) {
            Some(old) => self.remove(&old),
            None => Ok(()),
        }
    }

    fn put(&self, name: &str, what: &impl AsFd) -> io::Result<()> {
        tell(PATIENCE, &self.manager, &format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), Some(what.as_fd()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        tell(PATIENCE, &self.manager, &format!("FDSTOREREMOVE=1\nFDNAME={name}"), None)
    }

    /// There is nothing to be kept any more.
    pub(super) fn clear(&self) {
        let mut names = [DEVICE, LISTENER, LOCK, KEPT].into_iter().chain(self.worker.as_deref());
        // A manager that does not listen has nothing of it, or lets it go with the unit.
        let _gone = names.try_for_each(|name| self.remove(name));
    }
}

fn name_of(before: u32, upgrades: u32) -> String {
    format!("{WORKER}{before}-{upgrades}")
}

/// The counts in the name of a worker.
fn counts(name: &str) -> Option<(u32, u32)> {
    let (before, upgrades) = name.strip_prefix(WORKER)?.split_once('-')?;
    Some((before.parse().ok()?, upgrades.parse().ok()?))
}

/// What is no descriptor of what is held, as a file that nobody can change any more.
fn description(held: &Held) -> io::Result<OwnedFd> {
    let file = memfd_create(c"crfs-kept", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(file);
    file.write_all(&[FORM])?;
    file.write_all(&held.described())?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file.into())
}

/// Takes back what a manager has kept, and ends whoever still serves it. `None`: it has kept nothing that is of use any more, and has let go of it.
///
/// To be called once, before the process opens anything.
pub(super) fn taken_back(manager: &Manager) -> Option<(Held, Go)> {
    let own = |(number, name): (RawFd, &String)| Some((name.clone(), sys::own_inherited(number).ok()?));
    let passed_on: Vec<_> = (FIRST..).zip(&manager.passed_on).filter_map(own).collect();
    let found: Vec<_> = passed_on.into_iter().filter(|(name, _)| name.starts_with("crfs-")).collect();
    if found.is_empty() {
        return None;
    }
    let names: Vec<_> = found.iter().map(|(name, _)| name.clone()).collect();
    let taken = put_together(found);
    if taken.is_none() {
        let socket = manager.socket.clone()?;
        let shelf = Shelf::at(socket, None);
        let _gone = names.iter().try_for_each(|name| shelf.remove(name));
    }
    taken
}

fn put_together(found: Vec<(String, OwnedFd)>) -> Option<(Held, Go)> {
    let (workers, mut rest): (Vec<_>, Vec<_>) = found.into_iter().partition(|(name, _)| counts(name).is_some());
    let last = workers.iter().filter_map(|(name, _)| counts(name)).max();
    // Whatever becomes of the mount: nobody would ever end them otherwise.
    workers.iter().for_each(|(_, process)| end(process));
    let mut take = |wanted: &str| {
        let at = rest.iter().position(|(name, _)| name == wanted)?;
        Some(rest.swap_remove(at).1)
    };
    let (device, listener, lock, kept) = (take(DEVICE)?, take(LISTENER)?, take(LOCK)?, take(KEPT)?);
    if mount(device.as_fd()) == Mount::Gone {
        return None;
    }
    let mut kept = File::from(kept);
    let mut bytes = Vec::new();
    kept.rewind().and_then(|()| kept.read_to_end(&mut bytes)).ok()?;
    let described = bytes.split_first().filter(|(form, _)| **form == FORM)?.1;
    let held = Held::of(described, device, listener, lock)?;
    let (before, upgrades) = last.unwrap_or_default();
    Some((held, Go { before, upgrades, why: "its keeper was killed".to_owned() }))
}

/// Kills a process, and waits for its end. One that does not end waits for a disk, and answers nobody any more.
fn end(process: &OwnedFd) {
    let _gone = sys::kill_process(process.as_fd());
    let mut asked = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    let _ended = poll(&mut asked, PollTimeout::try_from(FENCED).unwrap_or(PollTimeout::MAX));
}

/// The variables by which a manager speaks to one process alone.
pub(super) const VARIABLES: [&str; 5] = ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "FDSTORE"];

/// What `$LISTEN_PID`, `$LISTEN_FDS` and `$LISTEN_FDNAMES` say to a process.
#[must_use]
pub fn passed_on(process: u32, [pid, count, names]: [Option<&OsStr>; 3]) -> Vec<String> {
    let number = |text: Option<&OsStr>| text?.to_str()?.parse::<u32>().ok();
    let count = number(count).filter(|_| number(pid) == Some(process)).and_then(|count| usize::try_from(count).ok());
    let names = names.and_then(OsStr::to_str).unwrap_or_default().split(':').map(str::to_owned);
    // As many as there are descriptors: what has no name is not ours.
    names.chain(std::iter::repeat(String::new())).take(count.unwrap_or_default().min(MOST)).collect()
}

/// More than anybody passes on.
const MOST: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> Held {
        let file = || OwnedFd::from(tempfile::tempfile().unwrap());
        Held {
            description: b"what is served".to_vec(),
            io_deadline: Duration::from_millis(1500),
            device: file(),
            listener: file(),
            lock: file(),
        }
    }

    fn parts(held: &Held) -> Vec<(String, OwnedFd)> {
        let again = held.try_clone().unwrap();
        let named = [(DEVICE, again.device), (LISTENER, again.listener), (LOCK, again.lock)];
        let mut parts: Vec<_> = named.into_iter().map(|(name, fd)| (name.to_owned(), fd)).collect();
        parts.push((KEPT.to_owned(), description(held).unwrap()));
        parts
    }

    #[test]
    fn what_was_kept_is_put_together_whatever_its_order() {
        let held = held();
        let mut parts = parts(&held);
        parts.reverse();
        let child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let (old, new) = (sys::open_process(child.id()).unwrap(), sys::open_process(child.id()).unwrap());
        parts.extend([(name_of(9, 1), old), (name_of(10, 2), new)]);
        let (taken, go) = put_together(parts).unwrap();
        assert_eq!((taken.description, taken.io_deadline), (held.description, held.io_deadline));
        assert_eq!((go.before, go.upgrades), (10, 2));
        let mut child = child;
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "it served");
    }

    #[test]
    fn what_is_not_whole_or_of_another_form_is_of_no_use() {
        let held = held();
        for lacks in 0..4 {
            let mut parts = parts(&held);
            parts.remove(lacks);
            assert!(put_together(parts).is_none());
        }
        let mut other = tempfile::tempfile().unwrap();
        other.write_all(&[FORM + 1]).unwrap();
        let mut parts = parts(&held);
        parts[3].1 = other.into();
        assert!(put_together(parts).is_none());
    }

    #[test]
    fn only_what_is_for_this_process_was_passed_on_to_it() {
        let told = |pid, count, names| passed_on(7, [pid, count, names].map(|text: Option<&str>| text.map(OsStr::new)));
        assert_eq!(told(Some("7"), Some("3"), Some("a:b")), ["a", "b", ""]);
        for (pid, count) in [(Some("8"), Some("3")), (None, Some("3")), (Some("7"), None), (Some("7"), Some("x"))] {
            assert!(told(pid, count, Some("a:b")).is_empty());
        }
    }
}
