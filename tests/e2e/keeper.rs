//! Mounts that outlive the processes that serve them: killed, crashed, upgraded.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::faults::{Connection, layer, memory};
use crate::image::ramp;
use crate::lying::{Fault, Lie, On};
use crate::readers::drop_caches;
use crate::support::command::{ends, send, start};
use crate::support::lab::CRFS;
use crate::support::lies::Liar;
use crate::support::mount::until_gone;
use crate::support::{Lab, Mount, run, until};

pub(crate) const LAZILY: [&str; 4] = ["--whole-layer-below", "0", "--prefetch", "none"];

fn number(status: &Value, field: &str) -> u32 {
    let number = status[field].as_u64().unwrap_or_else(|| panic!("no {field} in {status}"));
    u32::try_from(number).unwrap()
}

fn refuse_all(liar: &Liar) {
    for on in [On::Manifests, On::Blobs] {
        liar.fault(Fault::always(on, Lie::Status(503, Vec::new())));
    }
}

/// Who keeps a mount.
pub(crate) fn keeper(mount: &Mount) -> u32 {
    number(&mount.status().unwrap(), "keeper")
}

/// Waits for a server that is not the one that was there before.
#[track_caller]
pub(crate) fn other_than(mount: &Mount, before: u32) -> u32 {
    until("another server", || {
        let status = mount.status()?;
        let pid = status["pid"].as_u64().filter(|pid| status["state"] == "serving" && *pid != u64::from(before));
        pid.map(|pid| u32::try_from(pid).unwrap())
    })
}

/// Ends a mount's server for good.
#[track_caller]
pub(crate) fn kill_for_good(mount: &Mount) {
    kill_both(keeper(mount), mount.pid());
}

/// Neither finds out in time that the other one is gone.
#[track_caller]
pub(crate) fn kill_both(keeper: u32, server: u32) {
    send(server, Signal::SIGSTOP);
    send(keeper, Signal::SIGKILL);
    until_gone(keeper);
    send(server, Signal::SIGKILL);
    until_gone(server);
}

/// The numbers of all inodes, by the names of the files.
fn inodes(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut found: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found.into_iter().map(|path| (path.clone(), fs::symlink_metadata(&path).unwrap().ino())).collect()
}

#[test]
fn a_mount_goes_on_when_its_server_is_killed() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let files = layer("file", 4, 300_000);
    let mount = lab.mount(&liar.push(&[&files]), &LAZILY);
    let before = (inodes(mount.dir()), keeper(&mount), mount.pid());
    let open = fs::File::open(mount.path("file0")).unwrap();
    assert_eq!(fs::read(mount.path("file0")).unwrap(), ramp(300_000, 0));
    let asked = liar.requests().len();

    for restarts in 1..=3 {
        let pid = mount.pid();
        send(pid, Signal::SIGKILL);
        // Metadata and what is cached, through a file that was open before.
        drop_caches();
        assert_eq!(inodes(mount.dir()), before.0);
        let mut bytes = vec![0; 300_000];
        open.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, ramp(300_000, 0));
        other_than(&mount, pid);
        let status = mount.status().unwrap();
        assert_eq!((number(&status, "keeper"), number(&status, "restarts")), (before.1, restarts), "{status}");
    }
    assert_eq!(liar.requests().len(), asked, "what is cached is asked of nobody");
    assert_eq!(fs::read(mount.path("file1")).unwrap(), ramp(300_000, 1));
    let text = run(Command::new(CRFS).arg("status")).ok();
    assert!(text.contains("was started again 3 times"), "{text}");

    drop(open);
    mount.umount().ok();
    [before.1, before.2].into_iter().for_each(until_gone);
    assert!(mount.status().is_none());
}

#[test]
fn reads_that_a_killed_server_has_begun_are_answered_by_the_next() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let files = layer("file", 3, 100_000);
    let mount = lab.mount(&liar.push(&[&files]), &LAZILY);
    let connection = Connection::of(&lab, &mount);
    liar.fault(Fault::always(On::Blobs, Lie::Silence));
    let readers: Vec<_> = (0..3)
        .map(|number| {
            let path = mount.path(format!("file{number}").leak());
            thread::spawn(move || fs::read(path).unwrap())
        })
        .collect();
    until("the reads at the kernel", || (connection.waiting() >= 3).then_some(()));
    // The second one is asked the same, and killed, too.
    for faults_are_over in [false, true] {
        if faults_are_over {
            liar.clear_faults();
        }
        let pid = mount.pid();
        send(pid, Signal::SIGKILL);
        other_than(&mount, pid);
    }
    for (number, reader) in readers.into_iter().enumerate() {
        assert_eq!(reader.join().unwrap(), ramp(100_000, number));
    }
}

/// As a server would that crashes on what it is asked.
#[test]
fn a_request_that_two_servers_have_crashed_on_fails_and_the_mount_goes_on() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let (guilty, others) = (layer("guilty", 1, 100_000), layer("other", 2, 100_000));
    let mount = lab.mount(&liar.push(&[&guilty, &others]), &LAZILY);
    let connection = Connection::of(&lab, &mount);
    assert_eq!(fs::read(mount.path("other0")).unwrap(), ramp(100_000, 0));
    let asked = || liar.requests_to(&guilty.digest().to_string()).len();
    let before = asked();
    liar.fault(Fault::always(On::Blobs, Lie::Silence).about(&guilty.digest().to_string()));
    // Past the page cache: else the kernel asks once more for a page that it has not got.
    let file = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECT).open(mount.path("guilty0")).unwrap();
    let reader = thread::spawn(move || file.read_at(&mut [0; 4096], 0).map_err(|error| error.raw_os_error()));
    until("the read at the kernel", || (connection.waiting() >= 1).then_some(()));
    for turn in 1..=2 {
        // The server at hand is at it.
        until("the request to the registry", || (asked() >= before + turn).then_some(()));
        let pid = mount.pid();
        send(pid, Signal::SIGABRT);
        other_than(&mount, pid);
    }
    assert_eq!(reader.join().unwrap(), Err(Some(nix::libc::EIO)));
    assert_eq!(fs::read(mount.path("other1")).unwrap(), ramp(100_000, 1));
    liar.clear_faults();
    assert_eq!(fs::read(mount.path("guilty0")).unwrap(), ramp(100_000, 0), "a later read asks again");
}

#[test]
fn where_no_server_comes_up_reads_fail_at_the_deadline_until_one_does() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let files = layer("file", 2, 100_000);
    let cache = lab.fresh("cache");
    let options = [&LAZILY as &[&str], &["--io-deadline", "1s", "--mount-deadline", "2s"]].concat();
    let mount = lab.mount_with(&liar.push(&[&files]), &cache, &options);
    // Neither the cache nor the registry has the image any more.
    run(Command::new(CRFS).args(["cache", "clear", "--cache-dir"]).arg(&cache)).ok();
    fs::rename(&cache, lab.path("moved")).unwrap();
    fs::create_dir(&cache).unwrap();
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o700)).unwrap();
    refuse_all(&liar);
    let pid = mount.pid();
    send(pid, Signal::SIGKILL);
    drop_caches();
    assert_eq!(fs::read(mount.path("file0")).unwrap_err().raw_os_error(), Some(nix::libc::EIO));
    assert_eq!(fs::metadata(mount.path("missing")).unwrap_err().raw_os_error(), Some(nix::libc::EIO));
    let failing = until("word of what is wrong", || mount.status().filter(|status| status["state"] == "failing"));
    let said = failing["last_error"].as_str().unwrap();
    assert!(said.contains("its worker died") && said.contains("/v2/a/manifests/"), "{said}");

    liar.clear_faults();
    other_than(&mount, pid);
    assert_eq!(fs::read(mount.path("file1")).unwrap(), ramp(100_000, 1));
    assert!(!mount.path("missing").exists());
}

/// It is by the digest that a mount goes on, where the cache has lost its manifest.
#[test]
fn a_tag_that_has_moved_is_not_followed() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let cache = lab.fresh("cache");
    let mount = lab.mount_with(&liar.push(&[&layer("file", 2, 100_000)]), &cache, &LAZILY);
    liar.push(&[&layer("other", 1, 100)]);
    fs::rename(&cache, lab.path("moved")).unwrap();
    let pid = mount.pid();
    send(pid, Signal::SIGKILL);
    assert_eq!(fs::read(mount.path("file1")).unwrap(), ramp(100_000, 1));
    other_than(&mount, pid);
}

#[test]
fn a_single_layer_goes_on_as_it_was_whatever_is_known_of_the_others_by_now() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let image = liar.push(&[&layer("lower", 1, 100_000), &layer("upper", 1, 100_000)]);
    let cache = lab.fresh("cache");
    let options = [&LAZILY as &[&str], &["--layer", "1"]].concat();
    let mount = lab.mount_with(&image, &cache, &options);
    drop(lab.mount_with(&image, &cache, &LAZILY));
    for _ in 0..2 {
        let pid = mount.pid();
        send(pid, Signal::SIGKILL);
        other_than(&mount, pid);
    }
    assert_eq!(fs::read(mount.path("upper0")).unwrap(), ramp(100_000, 0));
}

#[test]
fn a_mount_whose_server_fails_can_be_unmounted() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let cache = lab.fresh("cache");
    let options = [&LAZILY as &[&str], &["--io-deadline", "1s", "--mount-deadline", "1s"]].concat();
    let mount = lab.mount_with(&liar.push(&[&layer("file", 1, 100)]), &cache, &options);
    let keeper = keeper(&mount);
    fs::rename(&cache, lab.path("moved")).unwrap();
    refuse_all(&liar);
    send(mount.pid(), Signal::SIGKILL);
    until("failure", || mount.status().filter(|status| status["state"] == "failing"));
    mount.umount().ok();
    until_gone(keeper);
    assert!(!mount.is_mounted() && mount.status().is_none());
}

#[test]
fn a_mount_whose_keeper_is_killed_has_another_one() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let mount = lab.mount(&liar.push(&[&layer("file", 2, 100_000)]), &LAZILY);
    let open = fs::File::open(mount.path("file0")).unwrap();
    for restarts in [1, 2] {
        let (before, server) = (keeper(&mount), mount.pid());
        send(before, Signal::SIGKILL);
        other_than(&mount, server);
        let status = mount.status().unwrap();
        assert_ne!(number(&status, "keeper"), before);
        assert_eq!(number(&status, "restarts"), 2 * restarts - 1, "{status}");
        let mut bytes = vec![0; 100_000];
        open.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, ramp(100_000, 0));
        // It does what the first one did.
        let server = mount.pid();
        send(server, Signal::SIGKILL);
        other_than(&mount, server);
        assert_eq!(fs::read(mount.path("file1")).unwrap(), ramp(100_000, 1));
    }
    let log = run(Command::new(CRFS).arg("status")).ok();
    assert!(log.contains("was started again 4 times"), "{log}");
    let (keeper, server) = (keeper(&mount), mount.pid());
    drop(open);
    mount.umount().ok();
    [keeper, server].into_iter().for_each(until_gone);
}

/// Nobody serves then, and the one that is to go on has the mount alone.
#[test]
fn a_keeper_that_is_killed_before_the_next_server_is_ready_has_a_follower_too() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let cache = lab.fresh("cache");
    let options = [&LAZILY as &[&str], &["--mount-deadline", "100s"]].concat();
    let mount = lab.mount_with(&liar.push(&[&layer("file", 2, 100_000)]), &cache, &options);
    // So that it needs the registry, which says nothing.
    fs::rename(&cache, lab.path("moved")).unwrap();
    for on in [On::Manifests, On::Blobs] {
        liar.fault(Fault::always(on, Lie::Silence));
    }
    let (keeper, server, asked) = (keeper(&mount), mount.pid(), liar.requests().len());
    send(server, Signal::SIGKILL);
    until("the next server's question", || (liar.requests().len() > asked).then_some(()));
    send(keeper, Signal::SIGKILL);
    until_gone(keeper);
    liar.clear_faults();
    assert_eq!(fs::read(mount.path("file1")).unwrap(), ramp(100_000, 1));
    other_than(&mount, server);
    assert_ne!(self::keeper(&mount), keeper);
    mount.umount().ok();
}

#[test]
fn a_mount_whose_keeper_and_server_are_killed_is_dead() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let mount = lab.mount(&liar.push(&[&layer("file", 1, 100)]), &LAZILY);
    kill_for_good(&mount);
    assert_eq!(mount.status().unwrap()["state"], "dead");
    mount.umount().ok();
}

#[test]
fn a_keeper_is_small_and_has_one_thread() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let mount = lab.mount(&liar.push(&[&layer("file", 1, 100)]), &LAZILY);
    let keeper = keeper(&mount);
    let tasks = fs::read_dir(format!("/proc/{keeper}/task")).unwrap().count();
    let own = memory(keeper, "RssAnon");
    assert!(tasks == 1 && own < 1536, "{tasks} threads, {own} KiB of its own");
    let name = fs::read_to_string(format!("/proc/{keeper}/comm")).unwrap();
    assert_eq!(name, "crfs-keeper\n");
}

/// A crfs of its own, which can be replaced.
fn installed(lab: &Lab) -> PathBuf {
    let crfs = lab.path("installed");
    copy(Path::new(CRFS), &crfs);
    crfs
}

fn mounted_by(crfs: &Path, lab: &Lab, image: &str) -> Mount {
    let dir = lab.fresh("mount");
    let options = ["mount", "--cache-dir"];
    run(Command::new(crfs).args(options).arg(lab.fresh("cache")).args(LAZILY).arg(image).arg(&dir)).ok();
    Mount::new(dir, String::new())
}

/// By another process: what this one has open to write, its children have open as well for a moment, and nobody can run it then.
fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg(from).arg(to)).ok();
}

/// As a package manager does it: the file that runs is not written to.
fn replace(installed: &Path, with: &Path) {
    let new = installed.with_extension("new");
    copy(with, &new);
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&new, installed).unwrap();
}

/// The same with a script.
fn replace_by_script(installed: &Path, script: &str) {
    let text = installed.with_extension("script");
    fs::write(&text, script).unwrap();
    replace(installed, &text);
}

#[test]
fn an_upgrade_lets_the_program_serve_that_is_installed_now() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let image = liar.push(&[&layer("file", 2, 100_000)]);
    let crfs = installed(&lab);
    let mount = mounted_by(&crfs, &lab, &image);
    let (keeper, before) = (keeper(&mount), mount.pid());
    replace(&crfs, Path::new(CRFS));
    let program = |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).unwrap().to_string_lossy().into_owned();
    assert!(program(before).ends_with(" (deleted)"));

    let said = run(Command::new(CRFS).arg("upgrade").arg(mount.dir())).ok();
    assert!(said.contains("served by the crfs that is installed now"), "{said}");
    assert_eq!(program(mount.pid()), crfs.to_str().unwrap());
    assert_eq!(fs::read(mount.path("file0")).unwrap(), ramp(100_000, 0));

    // By a signal as well.
    let pid = mount.pid();
    send(keeper, Signal::SIGHUP);
    let pid = other_than(&mount, pid);
    assert_eq!(mount.counter("restarts"), 2);
    // What is installed goes on with it later, too; and once that is not there any more, what ran before.
    send(pid, Signal::SIGKILL);
    let pid = other_than(&mount, pid);
    assert_eq!(program(pid), crfs.to_str().unwrap());
    fs::remove_file(&crfs).unwrap();
    send(pid, Signal::SIGKILL);
    other_than(&mount, pid);
    assert_eq!(fs::read(mount.path("file1")).unwrap(), ramp(100_000, 1));
}

/// Once what is installed has shown that it lives: only then has nobody a reason to go back.
#[test]
fn a_keeper_becomes_what_is_installed_without_having_lost_anything() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let image = liar.push(&[&layer("file", 4, 100_000)]);
    let crfs = installed(&lab);
    let background = mounted_by(&crfs, &lab, &image);
    let foreground = Mount::new(lab.fresh("mount"), String::new());
    let mut command = Command::new(&crfs);
    command.args(["mount", "--foreground", "--cache-dir"]).arg(lab.fresh("cache")).args(LAZILY).arg(&image);
    let mut process = start(command.arg(foreground.dir()).stdout(Stdio::piped()).stderr(Stdio::piped()));
    until("the mount", || foreground.status()?["keeper"].as_u64());
    let mounts = [&background, &foreground];
    let keepers = mounts.map(keeper);
    replace(&crfs, Path::new(CRFS));
    for mount in mounts {
        run(Command::new(CRFS).arg("upgrade").arg(mount.dir())).ok();
    }
    let open = mounts.map(|mount| fs::File::open(mount.path("file0")).unwrap());
    for pid in keepers {
        let program = || fs::read_link(format!("/proc/{pid}/exe")).ok().filter(|program| *program == crfs);
        until("the keeper that is installed", program);
    }
    for ((mount, pid), open) in mounts.into_iter().zip(keepers).zip(open) {
        // It starts the next server as before, and that one knows how many there were.
        let server = mount.pid();
        send(server, Signal::SIGKILL);
        let mut bytes = vec![0; 100_000];
        open.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, ramp(100_000, 0));
        let server = other_than(mount, server);
        run(Command::new(CRFS).arg("upgrade").arg(mount.dir())).ok();
        other_than(mount, server);
        let status = mount.status().unwrap();
        assert_eq!((number(&status, "keeper"), number(&status, "restarts")), (pid, 3), "{status}");
        assert_eq!(fs::read(mount.path("file1")).unwrap(), ramp(100_000, 1));
    }
    background.umount().ok();
    until_gone(keepers[0]);
    send(keepers[1], Signal::SIGINT);
    assert!(ends("the end of crfs mount --foreground", &mut process).success());
    assert!(!foreground.is_mounted());
}

#[test]
fn an_upgrade_to_what_does_not_serve_is_refused_and_nobody_notices() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let image = liar.push(&[&layer("file", 3, 100_000)]);
    let crfs = installed(&lab);
    let mount = mounted_by(&crfs, &lab, &image);
    let pid = mount.pid();
    for (script, why) in [
        ("#!/bin/sh\nexit 3\n", "it ended with status 3"),
        ("#!/bin/sh\nkill -SEGV $$\n", "it was killed by SIGSEGV"),
        ("#!/bin/sh\nexec sleep 1000\n", "it was not ready within 10 s"),
    ] {
        replace_by_script(&crfs, script);
        let said = run(Command::new(CRFS).arg("upgrade").arg(mount.dir())).refused();
        assert!(said.contains("goes on with the server that it has") && said.contains(why), "{said}");
        assert_eq!((mount.pid(), mount.counter("restarts")), (pid, 0));
    }
    fs::remove_file(&crfs).unwrap();
    let said = run(Command::new(CRFS).arg("upgrade").arg(mount.dir())).refused();
    assert!(said.contains("No such file"), "{said}");
    assert_eq!(fs::read(mount.path("file0")).unwrap(), ramp(100_000, 0));
    // One that dies is replaced by what runs, not by what is installed.
    send(pid, Signal::SIGKILL);
    assert_eq!(fs::read(mount.path("file1")).unwrap(), ramp(100_000, 1));
    other_than(&mount, pid);
}

#[test]
fn in_the_foreground_the_keeper_is_the_process_itself() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let (image, dir) = (liar.push(&[&layer("file", 2, 100_000)]), lab.fresh("mount"));
    let mut command = Command::new(CRFS);
    command.args(["mount", "--foreground", "--cache-dir"]).arg(lab.fresh("cache")).args(LAZILY).arg(&image).arg(&dir);
    let mut crfs = start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let mount = Mount::new(dir, String::new());
    until("the mount", || mount.status()?["keeper"].as_u64());
    assert_eq!(keeper(&mount), crfs.id());
    let pid = mount.pid();
    send(pid, Signal::SIGKILL);
    assert_eq!(fs::read(mount.path("file0")).unwrap(), ramp(100_000, 0));
    other_than(&mount, pid);
    // As Ctrl-C does.
    send(crfs.id(), Signal::SIGINT);
    assert!(ends("the end of crfs mount --foreground", &mut crfs).success());
    assert!(!mount.is_mounted());
}

/// Whether what is installed would ever serve is not known.
#[test]
fn a_server_that_dies_while_an_upgrade_is_under_way_is_replaced_by_what_ran() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let image = liar.push(&[&layer("file", 3, 100_000)]);
    let crfs = installed(&lab);
    let mount = mounted_by(&crfs, &lab, &image);
    for (number, script) in ["#!/bin/sh\nexec sleep 1000\n", "#!/bin/sh\nsleep 2\n"].into_iter().enumerate() {
        replace_by_script(&crfs, script);
        let (keeper, pid) = (keeper(&mount), mount.pid());
        send(keeper, Signal::SIGHUP);
        let children = format!("/proc/{keeper}/task/{keeper}/children");
        until("the next server", || (fs::read_to_string(&children).unwrap().split(' ').count() > 2).then_some(()));
        send(pid, Signal::SIGKILL);
        assert_eq!(fs::read(mount.path(format!("file{number}").leak())).unwrap(), ramp(100_000, number));
        other_than(&mount, pid);
    }
    assert_eq!(mount.counter("restarts"), 2);
}

#[test]
fn a_keeper_that_is_asked_to_end_while_nobody_serves_ends_with_the_next_server() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let mount = lab.mount(&liar.push(&[&layer("file", 1, 100)]), &LAZILY);
    let (keeper, pid) = (keeper(&mount), mount.pid());
    send(keeper, Signal::SIGSTOP);
    send(pid, Signal::SIGKILL);
    send(keeper, Signal::SIGTERM);
    send(keeper, Signal::SIGCONT);
    until_gone(keeper);
    assert!(!mount.is_mounted() && mount.status().is_none());
}

/// One that is stopped answers nobody, and is not to answer when it goes on.
#[test]
fn a_stopped_server_is_replaced_by_an_upgrade() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let mount = lab.mount(&liar.push(&[&layer("file", 2, 100_000)]), &LAZILY);
    let (keeper, stopped) = (keeper(&mount), mount.pid());
    send(stopped, Signal::SIGSTOP);
    let path = mount.path("file0");
    let reader = thread::spawn(move || fs::read(path).unwrap());
    send(keeper, Signal::SIGHUP);
    assert_eq!(reader.join().unwrap(), ramp(100_000, 0));
    other_than(&mount, stopped);
    until_gone(stopped);
}
