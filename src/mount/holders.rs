//! Who has a mount: the mount tables of all processes, as far as this user may read them (proc_pid_mountinfo(5)).
//!
//! A mount lives on in each mount namespace that has a copy of it, and below each overlayfs that is made of it, after it was unmounted here.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::mounts::{self, Device, Mount};

/// The name of the mount namespace that this process is in, as the kernel has it: `mnt:[4026531841]`.
pub(crate) fn own_namespace() -> Option<String> {
    namespace_of("self")
}

/// A place where a mount is, or an overlayfs that is made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// A process that sees it: this one, where it can.
    pub pid: u32,
    /// The name of its program.
    pub process: String,
    pub namespace: String,
    /// Where it is for that process.
    #[serde(serialize_with = "super::status::lossy")]
    pub point: PathBuf,
    /// Whether it is an overlayfs.
    pub overlay: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, process, namespace, point, overlay } = self;
        let what = if *overlay { "the overlayfs on " } else { "" };
        write!(f, "{what}{}", point.display())?;
        if *pid == std::process::id() { Ok(()) } else { write!(f, " of process {pid} ({process}) in {namespace}") }
    }
}

/// What holders are called where they are told of.
pub fn named(holders: &[Holder]) -> String {
    /// As many as fit a line or two.
    const NAMED: usize = 4;
    let mut names: Vec<_> = holders.iter().take(NAMED).map(Holder::to_string).collect();
    names.extend(holders.len().checked_sub(NAMED).filter(|more| *more > 0).map(|more| format!("{more} more")));
    names.join(", ")
}

/// Where a mount is that was made at `dir`: once for each mount namespace, and for each overlayfs that names `dir` as a lower directory. Processes of
/// `except` do not count.
pub(crate) fn of(device: Device, dir: &Path, except: &[u32]) -> Vec<Holder> {
    let (mut holders, mut known) = (Vec::new(), HashSet::new());
    // This process first: in its own namespace, nobody else need be named.
    let own = std::process::id();
    for pid in std::iter::once(own).chain(processes().filter(|pid| *pid != own && !except.contains(pid))) {
        let Some(namespace) = namespace_of(&pid.to_string()).filter(|namespace| !known.contains(namespace)) else {
            continue;
        };
        let Ok(table) = mounts::of_process(pid) else { continue };
        let found = table.iter().filter(|mount| holds(mount, device, dir));
        let before = holders.len();
        holders.extend(found.map(|mount| Holder {
            pid,
            process: name_of(pid),
            namespace: namespace.clone(),
            point: mount.point.clone(),
            overlay: !mount.is_ours(),
        }));
        // Who has another root sees a part of its namespace only.
        if holders.len() > before || fs::read_link(format!("/proc/{pid}/root")).is_ok_and(|root| root == Path::new("/"))
        {
            known.insert(namespace);
        }
    }
    holders
}

fn holds(mount: &Mount, device: Device, dir: &Path) -> bool {
    if mount.is_ours() { mount.device == device } else { mount.has_lower(dir) }
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn namespace_of(process: &str) -> Option<String> {
    let name = fs::read_link(format!("/proc/{process}/ns/mnt")).ok()?;
    Some(name.to_string_lossy().into_owned())
}

/// Its name may hold anything.
fn name_of(pid: u32) -> String {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    super::escape(name.trim_ascii_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_holds_what_it_sees() {
        let proc = mounts::at(Path::new("/proc")).unwrap().unwrap();
        assert_eq!(of(proc.device, Path::new("/proc"), &[]), [], "no mount of ours");
        let namespace = own_namespace().unwrap();
        assert!(namespace.starts_with("mnt:["), "{namespace}");
        assert!(processes().any(|pid| pid == std::process::id()));
    }

    #[test]
    fn many_holders_are_counted() {
        let holder = |pid| Holder {
            pid,
            process: "sh".into(),
            namespace: "mnt:[1]".into(),
            point: "/m".into(),
            overlay: pid == 1,
        };
        let text = named(&[holder(1), holder(2)]);
        assert_eq!(text, "the overlayfs on /m of process 1 (sh) in mnt:[1], /m of process 2 (sh) in mnt:[1]");
        assert!(named(&(1..8).map(holder).collect::<Vec<_>>()).ends_with("4 (sh) in mnt:[1], 3 more"));
        assert_eq!(named(&[]), "");
    }
}
