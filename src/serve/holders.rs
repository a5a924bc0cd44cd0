//! Who has a mount: the mount tables of all processes, as far as this user may read them (proc_pid_mountinfo(5)).
//!
//! A mount that was unmounted here lives on in each mount namespace that has a copy of it, and below each overlayfs that is made of it.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::keeper;
use crate::kernel::mounts::{self, Mount};
use crate::registry::list;

/// A place where a mount is, or an overlayfs that is made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// A process that sees it: this one, where it can.
    pub pid: u32,
    /// The name of its program.
    pub process: String,
    /// The name of its mount namespace, where this user may know it.
    pub namespace: Option<String>,
    /// Where it is for that process.
    #[serde(serialize_with = "lossy")]
    pub point: PathBuf,
    /// Whether it is an overlayfs.
    pub overlay: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, process, point, overlay, .. } = self;
        let kind = if *overlay { "the overlayfs on " } else { "" };
        write!(f, "{kind}{}", point.display())?;
        if *pid == own_pid() { Ok(()) } else { write!(f, " of process {pid} ({process})") }
    }
}

/// The first holders by name, and the number of the others.
pub fn named(holders: &[Holder]) -> String {
    list(&holders.iter().map(Holder::to_string).collect::<Vec<_>>())
}

/// The name of the mount namespace that this process is in, as the kernel has it: `mnt:[4026531841]`.
pub(crate) fn own_namespace() -> Option<String> {
    link(own_pid(), "ns/mnt")
}

/// Whether a process has a mount namespace still: one that has ended has none, also where nobody has taken notice of its end.
pub(crate) fn has_namespace(pid: u32) -> bool {
    link(pid, "ns/mnt").is_some()
}

/// The keeper of a process, if it has one.
pub(super) fn keeper_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name, in parentheses, may hold anything; then come its state and its parent.
    let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
    (name_of(parent) == keeper::NAME).then_some(parent)
}

/// The number of this process in /proc, which may be that of another PID namespace.
fn own_pid() -> u32 {
    let number = fs::read_link("/proc/self").ok();
    number.and_then(|number| number.to_str()?.parse().ok()).unwrap_or_else(std::process::id)
}

/// All places of the mount that `is_it` knows, and each overlayfs that names its directory `dir` as a lower one. Processes of `except` do not count.
pub(crate) fn of(is_it: impl Fn(&Mount) -> bool, dir: &Path, except: &[u32]) -> Vec<Holder> {
    let (mut holders, mut known) = (Vec::new(), HashSet::new());
    for (pid, namespace, table) in tables(except) {
        let found = table.into_iter().filter(|mount| is_it(mount) || mount.has_lower(dir));
        holders.extend(found.filter(|mount| known.insert(mount.id)).map(|mount| Holder {
            pid,
            process: name_of(pid),
            namespace: namespace.clone(),
            overlay: !mount.is_ours(),
            point: mount.point,
        }));
    }
    holders
}

/// The mount tables of all processes, each but once where it can be known to be the same. That of this process comes first: for what it sees itself,
/// nobody else need be named.
fn tables(except: &[u32]) -> impl Iterator<Item = (u32, Option<String>, Vec<Mount>)> {
    let own = own_pid();
    let others = processes().filter(move |pid| *pid != own && !except.contains(pid));
    let mut known = HashSet::new();
    std::iter::once(own).chain(others).filter_map(move |pid| {
        let namespace = link(pid, "ns/mnt");
        // A process with another root sees a part of its namespace only.
        let view = namespace.clone().zip(link(pid, "root"));
        if view.is_some_and(|view| !known.insert(view)) {
            return None;
        }
        Some((pid, namespace, mounts::of_process(pid).ok()?))
    })
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// What a link in a process's directory of /proc says. Nothing is opened.
fn link(pid: u32, name: &str) -> Option<String> {
    Some(fs::read_link(format!("/proc/{pid}/{name}")).ok()?.to_string_lossy().into_owned())
}

/// Its name may hold anything.
fn name_of(pid: u32) -> String {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    crate::image::escape(name.trim_ascii_end())
}

pub(super) fn lossy<S: serde::Serializer>(path: &std::path::Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_named_first_and_each_mount_once() {
        let proc = mounts::at(Path::new("/proc")).unwrap().unwrap();
        let found = of(|mount| mount.id == proc.id, Path::new("/nowhere"), &[]);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].pid, found[0].point.as_path()), (std::process::id(), Path::new("/proc")));
        assert_eq!(found[0].namespace, own_namespace());
        assert!(own_namespace().unwrap().starts_with("mnt:["));
        assert_eq!(of(|_| false, Path::new("/nowhere"), &[]), []);
    }

    #[test]
    fn processes_of_one_view_are_read_once() {
        let own = own_namespace();
        let root = link(own_pid(), "root");
        let same = tables(&[]).filter(|(pid, namespace, _)| *namespace == own && link(*pid, "root") == root);
        assert_eq!(same.map(|(pid, ..)| pid).collect::<Vec<_>>(), [std::process::id()]);
    }

    #[test]
    fn many_holders_are_counted() {
        let holder = |pid| Holder { pid, process: "sh".into(), namespace: None, point: "/m".into(), overlay: pid == 1 };
        assert_eq!(named(&[holder(1), holder(2)]), "the overlayfs on /m of process 1 (sh), /m of process 2 (sh)");
        assert_eq!(named(&[holder(std::process::id())]), "/m");
        assert!(named(&(1..14).map(holder).collect::<Vec<_>>()).ends_with("/m of process 10 (sh) and 3 more"));
    }
}
