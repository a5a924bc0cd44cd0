//! A mount's life: how it begins, what ends it and what does not.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::keeper::kill_for_good;
use crate::support::command::{ends, send, start};
use crate::support::lab::CRFS;
use crate::support::mount::until_gone;
use crate::support::{Lab, Mount, run, until};

const IMAGE: &str = "late-zc-new";

#[test]
fn a_mount_says_one_line_and_is_usable_at_once() {
    let Some(lab) = Lab::new() else { return };
    let mount = lab.mount(&lab.layout(IMAGE), &[]);
    assert_eq!(mount.line.matches('\n').count(), 1, "{:?}", mount.line);
    assert!(
        mount.line.ends_with('\n') && mount.line.contains(IMAGE) && mount.line.contains("2 layers"),
        "{:?}",
        mount.line
    );
    assert!(mount.path("again/after").exists());
}

#[test]
fn every_way_to_unmount_ends_the_server() {
    let Some(lab) = Lab::new() else { return };
    let commands: [&[&str]; 4] = [&[CRFS, "umount"], &["umount"], &["fusermount3", "-u"], &["umount", "-l"]];
    for command in commands {
        let mount = lab.mount(&lab.layout(IMAGE), &[]);
        let pid = mount.pid();
        run(Command::new(command[0]).args(&command[1..]).arg(mount.dir())).ok();
        assert!(!mount.is_mounted(), "{command:?}");
        until_gone(pid);
        until("the end of its state", || mount.status().is_none().then_some(()));
    }
}

#[test]
fn sigterm_unmounts() {
    let Some(lab) = Lab::new() else { return };
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mount = lab.mount(&lab.layout(IMAGE), &[]);
        let pid = mount.pid();
        send(pid, signal);
        until_gone(pid);
        assert!(!mount.is_mounted(), "{signal}");
    }
}

#[test]
fn a_busy_mount_stays() {
    let Some(lab) = Lab::new() else { return };
    let mount = lab.mount(&lab.layout(IMAGE), &[]);
    let pid = mount.pid();
    let open = fs::File::open(mount.path("again/after")).unwrap();

    let message = mount.umount().refused();
    assert!(message.contains("in use") || message.contains("busy"), "{message}");
    assert!(mount.is_mounted());

    send(pid, Signal::SIGTERM);
    until("word of the refused SIGTERM in the server's log", || {
        let log = state_text(&mount);
        (log.contains("in use") || log.contains("busy")).then_some(())
    });
    lab.assert_equal(mount.dir(), "late", &[]);

    send(pid, Signal::SIGTERM);
    until_gone(pid);
    assert!(!mount.is_mounted());
    drop(open);
}

/// Everything that is written in the mount's directory below /run/crfs, the log among it.
fn state_text(mount: &Mount) -> String {
    let files = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let text =
        |path: PathBuf| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let point = mount.dir().to_str().unwrap();
    let mine = files("/run/crfs".into()).find(|dir| text(dir.join("mount.json")).contains(point));
    mine.into_iter().flat_map(files).filter(|path| path.is_file()).map(text).collect()
}

#[test]
fn state_is_private() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    let Some(lab) = Lab::new() else { return };
    let mount = lab.mount(&lab.layout(IMAGE), &[]);
    assert!(!state_text(&mount).is_empty());
    for entry in fs::read_dir("/run/crfs").unwrap() {
        let dir = entry.unwrap().path();
        // Others come and go while this looks.
        let Ok(metadata) = fs::metadata(&dir) else { continue };
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o700, "{}", dir.display());
        for socket in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(metadata) = socket.metadata() else { continue };
            let private = !metadata.file_type().is_socket() || metadata.permissions().mode() & 0o7777 == 0o600;
            assert!(private, "{}", socket.path().display());
        }
    }
}

#[test]
fn a_killed_server_is_shown_as_dead_and_cleaned_up() {
    let Some(lab) = Lab::new() else { return };
    let mount = lab.mount(&lab.layout(IMAGE), &[]);
    assert_eq!(mount.status().unwrap()["state"], "serving");
    kill_for_good(&mount);

    assert_eq!(mount.status().unwrap()["state"], "dead");
    let text = lab.crfs(&["status"]).ok();
    let line = text.lines().find(|line| line.contains(mount.dir().to_str().unwrap()));
    assert!(line.unwrap_or(&text).contains("dead") || text.contains("dead"), "{text}");
    // No hang, and a clear error.
    let read = run(Command::new("cat").arg(mount.path("again/after")));
    assert_eq!(read.status, Some(1), "{read}");

    mount.umount().ok();
    assert!(!mount.is_mounted());
    assert!(mount.status().is_none());
}

#[test]
fn the_foreground_server_ends_with_the_mount() {
    let Some(lab) = Lab::new() else { return };
    let dir = lab.fresh("mount");
    let mut command = Command::new(CRFS);
    command.args(["mount", "--foreground", "--cache-dir"]).arg(lab.fresh("cache")).arg(lab.layout(IMAGE)).arg(&dir);
    let mut server = start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let mount = Mount::new(dir, String::new());
    until("the mount", || mount.is_mounted().then_some(()));
    lab.assert_equal(mount.dir(), "late", &[]);
    mount.umount().ok();
    assert!(ends("the end of crfs mount --foreground", &mut server).success());
}

#[test]
fn of_mounts_at_one_directory_at_once_one_is_made() {
    let Some(lab) = Lab::new() else { return };
    let cache = lab.fresh("cache");
    let mount = Mount::new(lab.fresh("mount"), String::new());
    let begin = |_| {
        let mut command = Command::new(CRFS);
        command.arg("mount").arg("--cache-dir").arg(&cache).arg(lab.layout(IMAGE)).arg(mount.dir());
        start(command.stdout(Stdio::null()).stderr(Stdio::piped()))
    };
    for _ in 0..5 {
        let all: Vec<_> = (0..4).map(begin).collect();
        let all: Vec<_> = all.into_iter().map(|one| one.wait_with_output().unwrap()).collect();
        let refused: Vec<_> = all.iter().filter(|one| !one.status.success()).collect();
        let said: Vec<_> = refused.iter().map(|one| String::from_utf8_lossy(&one.stderr)).collect();
        assert_eq!(refused.len(), 3, "{said:?}");
        assert!(said.iter().all(|said| said.contains("already a crfs mount")), "{said:?}");
        lab.assert_equal(mount.dir(), "late", &[]);
        let pid = mount.pid();
        mount.umount().ok();
        until_gone(pid);
        assert!(!mount.is_mounted());
    }
}

#[test]
fn what_is_not_a_mount_of_crfs_is_not_unmounted() {
    let Some(lab) = Lab::new() else { return };
    let other = lab.fresh("tmpfs");
    run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&other)).ok();
    let message = lab.crfs(&["umount", other.to_str().unwrap()]).refused();
    let still = Mount::new(other, String::new());
    assert!(still.is_mounted(), "{message}");
    let message = lab.crfs(&["umount", lab.fresh("empty").to_str().unwrap()]).refused();
    assert!(message.contains("not"), "{message}");
}

/// readiness, sd_notify(3): the parent's $NOTIFY_SOCKET hears READY=1.
#[test]
fn readiness_is_told_to_the_service_manager() {
    let Some(lab) = Lab::new() else { return };
    let socket = lab.path("notify");
    let listener = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    listener.set_read_timeout(Some(crate::support::command::HANG)).unwrap();
    let dir = lab.fresh("mount");
    let mut command = Command::new(CRFS);
    command.arg("mount").arg("--cache-dir").arg(lab.fresh("cache")).arg(lab.layout(IMAGE)).arg(&dir);
    run(command.env("NOTIFY_SOCKET", &socket)).ok();
    let _mount = Mount::new(dir, String::new());
    let mut told = [0; 1024];
    let n = listener.recv(&mut told).unwrap();
    let told = String::from_utf8_lossy(&told[..n]).into_owned();
    assert!(told.lines().any(|line| line == "READY=1"), "{told}");
}
