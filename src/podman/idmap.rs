//! Clones of a mount in which owners are mapped, as the user namespace of a user's podman maps them.
//!
//! A user namespace is made by a process, and lives as long as a descriptor of it: this binary starts itself for that, with a hidden subcommand.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::Error;
use crate::kernel::mounts::{self, Device};
use crate::sys::{self, outside};
use crate::threads;

/// Bytes of /etc/subuid.
const LONGEST_LIST: u64 = 16 << 20;

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "user-namespace";

/// Which owner of a layer is whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Map {
    users: Vec<Range>,
    groups: Vec<Range>,
}

impl Map {
    /// Who an owner of a layer is. `None`: nobody.
    pub(super) fn outside(&self, user: u32, group: u32) -> Option<(u32, u32)> {
        Some((outside(&self.users, user)?, outside(&self.groups, group)?))
    }
}

fn outside(ranges: &[Range], id: u32) -> Option<u32> {
    ranges.iter().find_map(|range| {
        let place = u64::from(id).checked_sub(range.inside).filter(|place| *place < range.count)?;
        u32::try_from(range.outside.checked_add(place)?).ok()
    })
}

/// `count` ids from `inside` on are those from `outside` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    inside: u64,
    outside: u64,
    count: u64,
}

/// A user of this machine, as far as podman's namespaces go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) home: PathBuf,
}

impl Account {
    pub(super) fn find(name: &str) -> Result<Self, Error> {
        let failed = |source| Error::User { name: name.to_owned(), source };
        let user = nix::unistd::User::from_name(name).map_err(|errno| failed(errno.into()))?;
        let user = user.ok_or_else(|| {
            failed(io::Error::new(io::ErrorKind::NotFound, "there is no such user; `getent passwd` lists them"))
        })?;
        Ok(Self { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw(), home: user.dir })
    }

    /// As podman makes it: the user is root, and what /etc/subuid and /etc/subgid give them (subuid(5)) comes after that.
    pub(super) fn map(&self) -> Result<Map, Error> {
        let ids = |file: &str, own: u32| {
            let failed = |source| Error::File { path: file.into(), source };
            let text = outside::read(Path::new(file), LONGEST_LIST).map_err(failed)?;
            let ranges = ranges(&String::from_utf8_lossy(&text), &self.name, self.uid, own);
            let none = || {
                failed(io::Error::new(
                    io::ErrorKind::NotFound,
                    format!("{} has no ids in it; usermod --add-subuids and --add-subgids add some", self.name),
                ))
            };
            if ranges.len() > 1 { Ok(ranges) } else { Err(none()) }
        };
        Ok(Map { users: ids("/etc/subuid", self.uid)?, groups: ids("/etc/subgid", self.gid)? })
    }
}

/// podman hands the ranges out by where they start, whatever their order in the file.
fn ranges(text: &str, name: &str, uid: u32, own: u32) -> Vec<Range> {
    let uid = uid.to_string();
    let mut given: Vec<(u64, u64)> = Vec::new();
    for line in text.lines() {
        let mut fields = line.split(':').map(str::trim);
        let (who, start, count) = (fields.next(), fields.next(), fields.next());
        let numbers = start.and_then(|start| start.parse().ok()).zip(count.and_then(|count| count.parse().ok()));
        let is_theirs = who.is_some_and(|who| who == name || who == uid);
        if let (true, Some((outside, count))) = (is_theirs, numbers) {
            given.push((outside, count));
        }
    }
    given.sort_unstable();
    let mut ranges = vec![Range { inside: 0, outside: own.into(), count: 1 }];
    for (outside, count) in given {
        let inside = ranges.last().map_or(0, |last| last.inside.saturating_add(last.count));
        ranges.push(Range { inside, outside, count });
    }
    ranges
}

fn text(ranges: &[Range]) -> String {
    ranges.iter().map(|Range { inside, outside, count }| format!("{inside} {outside} {count}\n")).collect()
}

/// Mounts at `target` what is mounted at `source`, if that is `device`, with its owners mapped.
pub(super) fn mount_clone(source: &Path, device: Device, target: &Path, map: &Map) -> Result<(), Error> {
    let failed = |source: io::Error| Error::Clone { dir: target.to_owned(), source };
    let namespace = namespace(map).map_err(failed)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let clone = open_tree(rustix::fs::CWD, source, flags).map_err(|errno| failed(errno.into()))?;
    // A directory of this machine's own, where the store was unmounted, must not become the user's.
    if mounts::device_of(&clone).map_err(failed)? != device {
        return Err(failed(io::Error::new(io::ErrorKind::NotFound, "the store is not mounted any more")));
    }
    sys::map_owners(clone.as_fd(), namespace.as_fd()).map_err(|error| match error.raw_os_error() {
        Some(nix::libc::EINVAL) => Error::NoMapping { dir: target.to_owned() },
        _ => failed(error),
    })?;
    let moved = move_mount(clone.as_fd(), "", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
    moved.map_err(|errno| failed(errno.into()))
}

/// Whether the owners of what is mounted at a place can be mapped at all. Nothing is mounted for that.
///
/// # Errors
/// Where they cannot, or there can be no user namespace.
pub fn can_map_owners(place: &Path) -> io::Result<()> {
    let one = Range { inside: 0, outside: 100_000, count: 1 };
    let namespace = namespace(&Map { users: vec![one], groups: vec![one] })?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    sys::map_owners(open_tree(rustix::fs::CWD, place, flags)?.as_fd(), namespace.as_fd())
}

/// A user namespace with that map.
fn namespace(map: &Map) -> io::Result<File> {
    sys::close_inherited_on_exec();
    let mut command = Command::new("/proc/self/exe");
    command.arg0("crfs").arg(SUBCOMMAND).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(threads::explained)?;
    let mapped = map_child(&mut child, map);
    // It ends when its input does.
    drop(child.stdin.take());
    child.wait()?;
    mapped
}

fn map_child(child: &mut std::process::Child, map: &Map) -> io::Result<File> {
    let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    if line.trim() != READY {
        return Err(io::Error::other("user namespaces cannot be made here"));
    }
    let dir = PathBuf::from(format!("/proc/{}", child.id()));
    fs::write(dir.join("uid_map"), text(&map.users))?;
    fs::write(dir.join("gid_map"), text(&map.groups))?;
    File::open(dir.join("ns/user"))
}

const READY: &str = "ready";

/// The hidden subcommand's side: a user namespace for as long as somebody wants it. Before this process has threads.
///
/// # Errors
/// Where there can be none.
pub fn hold_namespace() -> Result<(), Error> {
    let failed = |source| Error::Namespace { source };
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| failed(errno.into()))?;
    let mut output = io::stdout().lock();
    writeln!(output, "{READY}").and_then(|()| output.flush()).map_err(failed)?;
    io::stdin().lock().read_to_end(&mut Vec::new()).map(drop).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_root_and_their_other_ids_follow() {
        let file = "other:1:2\n1000: 300000:10\n# me:7:7\nme:100000:65536\nme:x:3\nme:5\n";
        let expected = "0 1000 1\n1 100000 65536\n65537 300000 10\n";
        assert_eq!(text(&ranges(file, "me", 1000, 1000)), expected);
        assert_eq!(text(&ranges("", "me", 1000, 50)), "0 50 1\n");
        let map = Map { users: ranges(file, "me", 1000, 1000), groups: ranges(file, "me", 1000, 50) };
        assert_eq!(map.outside(0, 0), Some((1000, 50)));
        assert_eq!(map.outside(1, 65546), Some((100_000, 300_009)));
        assert_eq!((map.outside(0, 65547), map.outside(u32::MAX, 0)), (None, None));
    }
}
