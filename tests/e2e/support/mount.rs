//! Mounts that end with their test, whatever became of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use super::command::{Finished, run, until};
use super::counts;
use super::lab::{CRFS, Lab};

/// A directory that crfs has mounted an image at.
pub(crate) struct Mount {
    dir: PathBuf,
    /// The line that `crfs mount` printed.
    pub(crate) line: String,
}

impl Mount {
    pub(crate) fn new(dir: PathBuf, line: String) -> Self {
        Self { dir, line }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn is_mounted(&self) -> bool {
        is_mount_point(&self.dir)
    }

    /// `crfs umount`
    #[track_caller]
    pub(crate) fn umount(&self) -> Finished {
        self.settle();
        run(Command::new(CRFS).arg("umount").arg(&self.dir))
    }

    /// Compares what it says that it was answered with what its registry has counted.
    #[track_caller]
    fn settle(&self) {
        // One that was unmounted in another way is not there any more to be asked.
        match std::thread::panicking() || !self.is_mounted() || self.has_begun_anew() {
            true => counts::give_up(&self.dir),
            false => counts::settle(&self.dir),
        }
    }

    /// Whether another server has asked before the one that there is now, if there is one.
    fn has_begun_anew(&self) -> bool {
        let restarts = |status: Value| (status["state"] == "serving").then(|| status["restarts"].as_u64()).flatten();
        self.status().and_then(restarts) != Some(0)
    }

    /// What `crfs status --json` says of this mount, if it knows it.
    #[track_caller]
    pub(crate) fn status(&self) -> Option<Value> {
        let text = run(Command::new(CRFS).args(["status", "--json"])).ok();
        let all: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        all.into_iter().find(|one| one["dir"].as_str().map(Path::new) == Some(&self.dir))
    }

    /// One number of `crfs status --json`.
    #[track_caller]
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let status = self.status().expect("the mount is not in crfs status");
        status[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {status}"))
    }

    /// The server's process id.
    #[track_caller]
    pub(crate) fn pid(&self) -> u32 {
        u32::try_from(self.counter("pid")).unwrap()
    }

    /// The line of /proc/mounts: source, directory, type, options.
    pub(crate) fn proc_line(&self) -> Option<String> {
        proc_line(&self.dir)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _detached = Detached(&self.dir);
        self.settle();
    }
}

/// Something that another filesystem is mounted at: an overlay over mounts of ours.
pub(crate) struct Overlay {
    dir: PathBuf,
}

/// Who merges the layers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Merger {
    Kernel,
    FuseOverlayfs,
}

impl Overlay {
    /// `lowers`: the lowest first, as an image has its layers.
    #[track_caller]
    pub(crate) fn new(lab: &Lab, merger: Merger, lowers: &[&Path]) -> Self {
        Self::with(lab, merger, lowers, "")
    }

    /// The same with more options of the mount.
    #[track_caller]
    pub(crate) fn with(lab: &Lab, merger: Merger, lowers: &[&Path], more: &str) -> Self {
        let dir = lab.fresh("merged");
        let (upper, work) = (lab.fresh("upper"), lab.fresh("work"));
        let lowers: Vec<_> = lowers.iter().rev().map(|lower| lower.to_str().unwrap()).collect();
        let (lowers, upper, work) = (lowers.join(":"), upper.display(), work.display());
        let options = format!("lowerdir={lowers},upperdir={upper},workdir={work}{more}");
        let mut command = match merger {
            Merger::Kernel => Command::new("mount"),
            Merger::FuseOverlayfs => Command::new("fuse-overlayfs"),
        };
        if matches!(merger, Merger::Kernel) {
            command.args(["-t", "overlay", "overlay"]);
        }
        run(command.arg("-o").arg(options).arg(&dir)).ok();
        Self { dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        detach(&self.dir);
    }
}

/// Unmounted at its end, whatever the comparison before has found.
struct Detached<'a>(&'a Path);

impl Drop for Detached<'_> {
    fn drop(&mut self) {
        detach(self.0);
    }
}

/// Unmounts what is there, in use or not, so that a failed test leaves nothing behind.
fn detach(dir: &Path) {
    if is_mount_point(dir) {
        let _ = umount2(dir, MntFlags::MNT_DETACH);
    }
}

/// By the mount table, which asks no filesystem anything: the server may be dead.
fn is_mount_point(dir: &Path) -> bool {
    proc_line(dir).is_some()
}

/// The line of /proc/mounts for what is mounted at `dir`: source, directory, type, options.
fn proc_line(dir: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    mounts.lines().rfind(|line| line.split(' ').nth(1).map(Path::new) == Some(dir)).map(str::to_owned)
}

/// A directory that nothing can be written to, root included.
pub(crate) struct ReadOnly(PathBuf);

impl ReadOnly {
    #[track_caller]
    pub(crate) fn new(dir: &Path) -> Self {
        let bind =
            |flags: MsFlags| mount(Some(dir), dir, None::<&str>, MsFlags::MS_BIND | flags, None::<&str>).unwrap();
        bind(MsFlags::empty());
        bind(MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
        Self(dir.to_owned())
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

/// A filesystem of the kernel's own at a directory of its own.
pub(crate) struct Disk(PathBuf);

impl Disk {
    /// A disk of that size.
    #[track_caller]
    pub(crate) fn new(lab: &Lab, size: &str) -> Self {
        Self::of_type(lab, "tmpfs", Some(&format!("mode=0700,size={size}")))
    }

    #[track_caller]
    pub(crate) fn of_type(lab: &Lab, kind: &str, options: Option<&str>) -> Self {
        let dir = lab.fresh(kind);
        mount(Some(kind), &dir, Some(kind), MsFlags::empty(), options).unwrap();
        Self(dir)
    }

    /// What is mounted there already.
    pub(crate) fn at(dir: PathBuf) -> Self {
        Self(dir)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.0
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

/// Waits until a process is gone (or is a zombie that nobody has waited for yet).
#[track_caller]
pub(crate) fn until_gone(pid: u32) {
    until(&format!("the end of process {pid}"), || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start().starts_with('Z'));
        state.unwrap_or(true).then_some(())
    });
}
