//! Keepers that are killed below a service manager that keeps descriptors (FDSTORE).

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use crate::faults::layer;
use crate::image::ramp;
use crate::keeper::{LAZILY, keeper, kill_both, other_than};
use crate::support::command::{ends, run, send, start};
use crate::support::lab::CRFS;
use crate::support::lies::Liar;
use crate::support::mount::until_gone;
use crate::support::{Lab, Mount, until};

/// What tells of another keeper that has all of what the one before had.
const PARTS: [&str; 4] = ["crfs-device", "crfs-listener", "crfs-lock", "crfs-kept"];

/// support/manager.py, and what it has said.
struct Manager {
    process: Child,
    said: std::path::PathBuf,
}

impl Manager {
    /// `arguments`: of crfs.
    fn start(lab: &Lab, arguments: &[&std::ffi::OsStr]) -> Self {
        let (dir, script) = (lab.fresh("manager"), lab.fresh("script").join("manager.py"));
        fs::write(&script, include_str!("support/manager.py")).unwrap();
        let said = dir.join("said");
        let mut command = Command::new("python3");
        command.arg("-B").arg(script).arg(dir.join("socket")).arg(CRFS).args(arguments);
        let output = fs::File::create(&said).unwrap();
        let process = start(command.stdout(output).stderr(Stdio::null()));
        Self { process, said }
    }

    fn said(&self, what: &str) -> Vec<String> {
        let text = fs::read_to_string(&self.said).unwrap();
        text.lines().filter_map(|line| line.strip_prefix(what)).map(|rest| rest.trim().to_owned()).collect()
    }

    /// The process that it started as the `times`th one, when that is ready.
    #[track_caller]
    fn is_ready(&self, times: usize) -> u32 {
        until("word that it is ready", || (self.said("ready").len() >= times).then_some(()));
        self.said("started")[times - 1].parse().unwrap()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // Whatever it started ends before, or as its mount does.
        send(self.process.id(), Signal::SIGKILL);
        let _ended = self.process.wait();
    }
}

fn mounted(lab: &Lab, image: &str) -> (Manager, Mount) {
    let (cache, dir) = (lab.fresh("cache"), lab.fresh("mount"));
    let options = ["mount", "--foreground", "--cache-dir"].map(Path::new);
    let arguments = [&options[..], &[&cache], &LAZILY.map(Path::new), &[Path::new(image), &dir]].concat();
    let arguments: Vec<_> = arguments.iter().map(|argument| argument.as_os_str()).collect();
    (Manager::start(lab, &arguments), Mount::new(dir, String::new()))
}

#[test]
fn a_keeper_that_is_killed_below_a_service_manager_is_followed_by_another_with_the_same_mount() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let (mut manager, mount) = mounted(&lab, &liar.push(&[&layer("file", 3, 100_000)]));
    let first = manager.is_ready(1);
    assert_eq!(first, keeper(&mount));
    let open = fs::File::open(mount.path("file0")).unwrap();
    let read = |size: usize| {
        let mut bytes = vec![0; size];
        open.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert_eq!(read(100_000), ramp(100_000, 0));
    // Its server goes on alone until the next keeper comes, which ends it: nobody answers beside another one.
    let server = mount.pid();
    send(first, Signal::SIGKILL);
    let second = manager.is_ready(2);
    until_gone(server);
    other_than(&mount, server);
    assert_eq!((keeper(&mount), mount.counter("restarts")), (second, 1));
    assert_eq!(fs::read(mount.path("file1")).unwrap(), ramp(100_000, 1));
    // And where both are gone: also of a server that is not the first one.
    let server = mount.pid();
    send(server, Signal::SIGKILL);
    other_than(&mount, server);
    kill_both(second, mount.pid());
    let third = manager.is_ready(3);
    assert_eq!(read(100_000), ramp(100_000, 0));
    assert_eq!(fs::read(mount.path("file2")).unwrap(), ramp(100_000, 2));
    other_than(&mount, 0);
    assert_eq!((keeper(&mount), mount.counter("restarts")), (third, 3));

    drop(open);
    mount.umount().ok();
    assert!(ends("the end of the manager", &mut manager.process).success());
    let gone = manager.said("removed");
    assert!(PARTS.iter().all(|part| gone.iter().any(|name| name == part)), "{gone:?}");
    let workers = |said: Vec<String>| said.into_iter().filter(|name| name.starts_with("crfs-worker-")).count();
    assert_eq!(workers(manager.said("kept")), workers(gone), "what is known of servers");
}

/// An upgrade is no reason to forget anything.
#[test]
fn a_keeper_that_became_another_program_is_followed_as_well() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let (manager, mount) = mounted(&lab, &liar.push(&[&layer("file", 2, 100_000)]));
    let first = manager.is_ready(1);
    run(Command::new(CRFS).arg("upgrade").arg(mount.dir())).ok();
    let before = fs::read(format!("/proc/{first}/cmdline")).unwrap();
    until("the keeper's next life", || {
        let now = fs::read(format!("/proc/{first}/cmdline")).ok()?;
        (now != before).then_some(())
    });
    kill_both(first, mount.pid());
    let second = manager.is_ready(2);
    assert_eq!(fs::read(mount.path("file1")).unwrap(), ramp(100_000, 1));
    other_than(&mount, 0);
    let status = mount.status().unwrap();
    assert_eq!((keeper(&mount), status["restarts"].as_u64()), (second, Some(2)), "{status}");
    mount.umount().ok();
    until_gone(second);
}

#[test]
fn what_was_unmounted_meanwhile_is_mounted_anew() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let (manager, mount) = mounted(&lab, &liar.push(&[&layer("file", 1, 100_000)]));
    let first = manager.is_ready(1);
    let server = mount.pid();
    send(manager.process.id(), Signal::SIGSTOP);
    kill_both(first, server);
    run(Command::new("umount").arg("-l").arg(mount.dir())).ok();
    send(manager.process.id(), Signal::SIGCONT);
    let second = manager.is_ready(2);
    assert_eq!((keeper(&mount), mount.counter("restarts")), (second, 0));
    assert_eq!(fs::read(mount.path("file0")).unwrap(), ramp(100_000, 0));
    mount.umount().ok();
    until_gone(second);
}

#[test]
fn a_store_goes_on_as_well() {
    let Some(lab) = Lab::new() else { return };
    let (root, cache) = (lab.fresh("store"), lab.fresh("cache"));
    let arguments = ["store", "serve", "--root", root.to_str().unwrap(), "--cache-dir", cache.to_str().unwrap()];
    let mut manager = Manager::start(&lab, &arguments.map(std::ffi::OsStr::new));
    let first = manager.is_ready(1);
    let image = lab.layout("busy");
    run(Command::new(CRFS).args(["store", "add", "--name", "localhost/a:1", "--root"]).arg(&root).arg(image)).ok();
    let layers = || fs::read_dir(root.join("overlay/l")).map(Iterator::count).ok().filter(|count| *count > 0);
    let before = layers().unwrap();
    let status = || {
        let told = run(Command::new(CRFS).args(["status", "--json", "--root"]).arg(&root)).ok();
        let all: Vec<serde_json::Value> = serde_json::from_str(&told).unwrap();
        all.into_iter().find(|one| one["dir"].as_str().map(Path::new) == Some(&root))
    };
    let server = u32::try_from(status().unwrap()["pid"].as_u64().unwrap()).unwrap();
    let open = fs::File::open(root.join("overlay/l")).unwrap();
    kill_both(first, server);
    let second = manager.is_ready(2);
    assert_eq!(layers(), Some(before));
    until("the store", || status().filter(|status| status["keeper"].as_u64() == Some(u64::from(second))));
    drop(open);
    send(second, Signal::SIGTERM);
    assert!(ends("the end of the manager", &mut manager.process).success());
}
