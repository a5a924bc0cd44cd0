//! What is said of a mount by its keeper, since the server may be killed meanwhile.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::faults::layer;
use crate::image::ramp;
use crate::keeper::{LAZILY, keeper, other_than};
use crate::support::command::{HANG, ends, run, send, start};
use crate::support::lab::CRFS;
use crate::support::lies::Liar;
use crate::support::mount::until_gone;
use crate::support::podman::Store;
use crate::support::{Lab, Mount, until};

/// What a pipe takes (pipe(7)).
const PIPE: usize = 1 << 16;

fn pipe() -> (File, File) {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (reader.into(), writer.into())
}

/// One that takes nothing until it is read, for what a server says.
fn full_pipe() -> (File, Stdio) {
    let (reader, mut writer) = pipe();
    writer.write_all(&[b'x'; PIPE]).unwrap();
    (reader, writer.into())
}

/// Reads until a line with that has come.
#[track_caller]
fn hears(mut said: File, what: &'static str) {
    let (heard, is_heard) = mpsc::channel();
    thread::spawn(move || {
        let (mut all, mut some) = (Vec::new(), [0; 4096]);
        loop {
            let len = said.read(&mut some).unwrap();
            all.extend_from_slice(&some[..len]);
            if len == 0 || String::from_utf8_lossy(&all).contains(what) {
                return heard.send(String::from_utf8_lossy(&all[PIPE.min(all.len())..]).into_owned());
            }
        }
    });
    let text = is_heard.recv_timeout(HANG).unwrap_or_else(|_| panic!("nobody says {what:?}"));
    assert!(text.contains(what), "{text:?}");
}

/// A server is killed when it has said to its keeper that the mount can be used, and to nobody else.
#[test]
fn that_a_mount_can_be_used_is_said_although_its_server_was_killed_meanwhile() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let (image, mount) = (liar.push(&[&layer("file", 2, 100_000)]), Mount::new(lab.fresh("mount"), String::new()));
    let (said, output) = full_pipe();
    let mut command = Command::new(CRFS);
    command.args(["mount", "--foreground", "--cache-dir"]).arg(lab.fresh("cache")).args(LAZILY).arg(&image);
    let mut crfs = start(command.arg(mount.dir()).stdout(output).stderr(Stdio::null()));
    drop(command);
    let pid = until("the mount", || mount.status().filter(|status| status["keeper"].is_u64())?["pid"].as_u64());
    send(u32::try_from(pid).unwrap(), Signal::SIGKILL);
    assert_eq!(fs::read(mount.path("file0")).unwrap(), ramp(100_000, 0));
    other_than(&mount, u32::try_from(pid).unwrap());
    hears(said, "1 layer (lazy)");
    send(crfs.id(), Signal::SIGINT);
    assert!(ends("the end of crfs mount --foreground", &mut crfs).success());
}

#[test]
fn that_a_store_serves_is_said_although_its_server_was_killed_meanwhile() {
    let Some(lab) = Lab::new() else { return };
    let root = lab.fresh("store");
    let (said, error) = full_pipe();
    let mut command = Command::new(CRFS);
    command.args(["store", "serve", "--root"]).arg(&root).arg("--cache-dir").arg(lab.fresh("cache"));
    let mut crfs = start(command.stdout(Stdio::null()).stderr(error));
    drop(command);
    let pid = until("the store", || {
        let told = run(Command::new(CRFS).args(["status", "--json", "--root"]).arg(&root));
        let all: Vec<Value> = serde_json::from_str(&told.stdout).ok()?;
        let own = all.into_iter().find(|one| one["dir"].as_str().map(Path::new) == Some(&root));
        own.filter(|store| store["keeper"].is_u64())?["pid"].as_u64()
    });
    send(u32::try_from(pid).unwrap(), Signal::SIGKILL);
    hears(said, "serving ");
    send(crfs.id(), Signal::SIGTERM);
    ends("the end of crfs store serve", &mut crfs);
}

/// `crfs upgrade` in the middle of its question.
fn upgrading(target: &Path) -> Child {
    let asking = start(Command::new(CRFS).arg("upgrade").arg(target).stdout(Stdio::null()).stderr(Stdio::piped()));
    let is_connected = || {
        let open = fs::read_dir(format!("/proc/{}/fd", asking.id())).ok()?;
        let is_socket = |fd: std::io::Result<fs::DirEntry>| {
            fs::read_link(fd.ok()?.path()).ok().filter(|file| file.to_string_lossy().starts_with("socket:"))
        };
        open.into_iter().find_map(is_socket)
    };
    until("the connection", is_connected);
    asking
}

#[track_caller]
fn is_refused_at_once(asking: Child) {
    let done = asking.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(said.contains("goes on with the server that it has"), "{said}");
    assert!(!said.contains("not answer") || said.contains("Broken pipe"), "it was waited for: {said}");
}

#[test]
fn an_upgrade_is_not_waited_for_whose_keeper_is_killed() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let mount = lab.mount(&liar.push(&[&layer("file", 1, 100_000)]), &LAZILY);
    let (before, server) = (keeper(&mount), mount.pid());
    send(before, Signal::SIGSTOP);
    let asking = upgrading(mount.dir());
    send(before, Signal::SIGKILL);
    until_gone(before);
    is_refused_at_once(asking);
    other_than(&mount, server);
    assert_eq!(fs::read(mount.path("file0")).unwrap(), ramp(100_000, 0));
}

/// Where no other keeper comes.
#[test]
fn nor_is_the_upgrade_of_a_store() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::new(&lab) else { return };
    let pid = store.pid();
    send(store.keeper(), Signal::SIGSTOP);
    let asking = upgrading(store.root());
    store.lose_keeper();
    is_refused_at_once(asking);
    send(pid, Signal::SIGKILL);
    until_gone(pid);
}
