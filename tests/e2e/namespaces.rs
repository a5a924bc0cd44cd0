//! Mounts in other mount namespaces, and elsewhere than where they were made: who is told of them, and who ends them.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use serde_json::Value;

use crate::keeper::kill_both;
use crate::support::command::until;
use crate::support::lab::CRFS;
use crate::support::lies::Liar;
use crate::support::mount::{Merger, until_gone};
use crate::support::tree::{Entry, push};
use crate::support::{Lab, Mount, Overlay, run};

/// An image with one file, `f`.
fn hello(liar: &Liar) -> String {
    push(liar, &[&[Entry::file("f", "hello")]])
}

/// What `crfs status` says of the mount that was made at `dir`.
fn status_of(dir: &Path) -> Option<Value> {
    Mount::new(dir.to_owned(), String::new()).status()
}

/// What it says once its server is in this state, and this process, or none but the server, has the mount.
fn status_when(dir: &Path, state: &str, holder: Option<&str>) -> Value {
    until("who has the mount", || {
        let status = status_of(dir).filter(|status| status["state"] == state)?;
        let first = status["elsewhere"]["holders"].as_array()?.first().map(|holder| holder["process"].as_str());
        (first == holder.map(Some)).then_some(status)
    })
}

#[track_caller]
fn umount(target: impl AsRef<Path>) -> crate::support::command::Finished {
    run(Command::new(CRFS).arg("umount").arg(target.as_ref()))
}

/// A shell in another namespace, which goes on whenever it is told to.
struct Shell {
    process: Child,
    input: ChildStdin,
}

impl Shell {
    /// `script` has crfs as $0, a cache as $1, an image as $2 and a directory as $3.
    fn start(lab: &Lab, unshare: &[&str], script: &str, image: &str, dir: &Path) -> Self {
        let mut command = Command::new("unshare");
        command.args(unshare).args(["sh", "-c", script, CRFS]).arg(lab.fresh("cache")).arg(image).arg(dir);
        let mut process = command.stdin(Stdio::piped()).spawn().unwrap();
        Self { input: process.stdin.take().unwrap(), process }
    }

    fn go_on(&mut self) {
        self.input.write_all(b"\n").unwrap();
    }

    /// Whether its last command was successful.
    fn end(mut self) -> bool {
        drop(self.input);
        self.process.wait().unwrap().success()
    }
}

const MOUNT_NAMESPACE: [&str; 3] = ["--mount", "--propagation", "private"];

#[test]
fn a_mount_of_a_mount_namespace_that_is_gone_is_told_of_and_ends() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let image = hello(&liar);
    for by_id in [false, true] {
        let dir = lab.fresh("mount");
        let script = r#""$0" mount --cache-dir "$1" "$2" "$3" && grep -q hello "$3/f""#;
        assert!(Shell::start(&lab, &MOUNT_NAMESPACE, script, &image, &dir).end());
        let status = status_when(&dir, "serving", None);
        assert!(status["elsewhere"]["namespace"].as_str().unwrap().starts_with("mnt:["), "{status}");
        let (id, text) = (status["id"].as_str().unwrap(), run(Command::new(CRFS).arg("status")).ok());
        assert!(text.contains(&format!("nothing but its server sees it: `crfs umount {id}`")), "{text}");
        umount(if by_id { id.as_ref() } else { dir.as_path() }).ok();
        until_gone(u32::try_from(status["pid"].as_u64().unwrap()).unwrap());
        assert_eq!(status_of(&dir), None);
    }
}

#[test]
fn a_mount_that_others_see_in_their_namespace_is_theirs() {
    let Some(lab) = Lab::new() else { return };
    let (liar, dir) = (Liar::new(), lab.fresh("mount"));
    let script = r#"
        "$0" mount --cache-dir "$1" "$2" "$3"; exec 3<"$3/f"; read line; exec 3<&-; read line; test ! -e "$3/f"
    "#;
    let mut shell = Shell::start(&lab, &MOUNT_NAMESPACE, script, &hello(&liar), &dir);
    let status = status_when(&dir, "serving", Some("sh"));
    let id = status["id"].as_str().unwrap();
    let refused = umount(&dir).refused();
    assert!(["another mount namespace", "(sh)", id].iter().all(|part| refused.contains(part)), "{refused}");
    until("the open file", || Path::new(&format!("/proc/{}/fd/3", shell.process.id())).exists().then_some(()));
    let refused = umount(id).refused();
    assert!(refused.contains("in use"), "{refused}");
    shell.go_on();
    until("its end by its id", || umount(id).good().then_some(()));
    shell.go_on();
    assert!(shell.end(), "it is mounted there no more");
}

/// Its server has another number here than it has in its own PID namespace.
#[test]
fn a_server_in_another_pid_namespace_is_not_taken_for_a_user_of_its_mount() {
    let Some(lab) = Lab::new() else { return };
    let (liar, dir) = (Liar::new(), lab.fresh("mount"));
    let script = r#"unshare --mount --propagation private "$0" mount --cache-dir "$1" "$2" "$3"; read line"#;
    let shell = Shell::start(&lab, &["--pid", "--fork"], script, &hello(&liar), &dir);
    status_when(&dir, "serving", None);
    umount(&dir).ok();
    assert_eq!(status_of(&dir), None);
    shell.end();
}

#[test]
fn a_dead_mount_is_told_of_while_its_mount_namespace_has_it() {
    let Some(lab) = Lab::new() else { return };
    let (liar, dir) = (Liar::new(), lab.fresh("mount"));
    let script = r#""$0" mount --cache-dir "$1" "$2" "$3"; read line; "$0" umount "$3""#;
    let mut shell = Shell::start(&lab, &MOUNT_NAMESPACE, script, &hello(&liar), &dir);
    let status = status_when(&dir, "serving", Some("sh"));
    let [keeper, server] = ["keeper", "pid"].map(|name| u32::try_from(status[name].as_u64().unwrap()).unwrap());
    kill_both(keeper, server);
    let status = status_when(&dir, "dead", Some("sh"));
    let refused = umount(status["id"].as_str().unwrap()).refused();
    assert!(refused.contains("cannot be asked"), "{refused}");
    shell.go_on();
    assert!(shell.end());
    assert_eq!(status_of(&dir), None);
}

#[test]
fn who_still_uses_an_unmounted_mount_is_named() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let mount = lab.mount(&hello(&liar), &[]);
    let (pid, own) = (mount.pid(), fs::read_link("/proc/self/ns/mnt").unwrap());
    let other = Shell::start(&lab, &MOUNT_NAMESPACE, "read line", "", mount.dir());
    let namespace = format!("/proc/{}/ns/mnt", other.process.id());
    until("its namespace", || fs::read_link(&namespace).is_ok_and(|other| other != own).then_some(()));
    let merged = Overlay::new(&lab, Merger::Kernel, &[mount.dir()]);
    let said = mount.umount().ok();
    let overlay = format!("the overlayfs on {}", merged.dir().display());
    let process = format!("{} of process {} (", mount.dir().display(), other.process.id());
    assert!(["still in use", &overlay, &process].iter().all(|part| said.contains(part)), "{said}");
    let status = status_of(mount.dir()).unwrap();
    assert_eq!(status["elsewhere"]["namespace"], Value::Null, "{status}");
    other.end();
    drop(merged);
    until_gone(pid);
}

#[test]
fn nothing_else_is_unmounted_for_a_mount_that_is_covered_or_bound() {
    let Some(lab) = Lab::new() else { return };
    let (liar, bound) = (Liar::new(), Mount::new(lab.fresh("bound"), String::new()));
    let mount = lab.mount(&hello(&liar), &[]);
    let (id, pid) = (mount.status().unwrap()["id"].as_str().unwrap().to_owned(), mount.pid());
    run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(mount.dir())).ok();
    let refused = umount(&id).refused();
    assert!(refused.contains("covered") && refused.contains("tmpfs") && mount.is_mounted(), "{refused}");
    assert_eq!(mount.status().unwrap()["elsewhere"], Value::Null);
    run(Command::new("umount").arg(mount.dir())).ok();
    run(Command::new("mount").arg("--bind").arg(mount.dir()).arg(bound.dir())).ok();
    let place = bound.dir().to_str().unwrap();
    for target in [mount.dir(), id.as_ref()] {
        let said = umount(target).ok();
        assert!(said.contains("still in use") && said.contains(place), "{said}");
        assert!(bound.is_mounted() && !mount.is_mounted());
        assert_eq!(mount.status().unwrap()["elsewhere"]["holders"][0]["point"], place);
    }
    bound.umount().ok();
    until_gone(pid);
}

/// In a mount namespace with a /run of its own, so that no mount of anybody else is meant.
#[test]
fn all_mounts_are_unmounted_at_once() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let script = r#"
        set -e
        mount -t tmpfs tmpfs /run
        mounts() { "$0" status --json | grep -o '"id"' | wc -l; }
        mkdir "$3/a" "$3/b" "$3/c"
        "$0" mount --cache-dir "$1" "$2" "$3/a"
        "$0" mount --cache-dir "$1" "$2" "$3/b"
        unshare --mount --propagation private "$0" mount --cache-dir "$1" "$2" "$3/c"
        exec 3<"$3/b/f"
        test "$(mounts)" = 3
        if "$0" umount --all; then exit 1; fi
        test "$(mounts)" = 1
        exec 3<&-
        "$0" umount --all
        test "$(mounts)" = 0
    "#;
    assert!(Shell::start(&lab, &MOUNT_NAMESPACE, script, &hello(&liar), &lab.fresh("mounts")).end());
}

/// Also where a record in the user's own directory says of root's mount that it is the user's.
#[test]
fn all_mounts_of_a_user_are_the_users_own() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    // The repository may lie where others cannot go.
    fs::copy(CRFS, lab.path("crfs")).unwrap();
    let script = r#"
        set -e
        mount -t tmpfs -o mode=0755 tmpfs /run
        mkdir "$3/root"
        "$0" mount --cache-dir "$1" "$2" "$3/root"
        cp -r /run/crfs /run/user
        chown -R nobody /run/user
        mkdir -m 0700 /run/nobody
        mv /run/user /run/nobody/crfs
        chown nobody /run/nobody
        user() { setpriv --reuid nobody --clear-groups env XDG_RUNTIME_DIR="$1" "$3/../crfs" "$2" $4; }
        user /run status "$3" | grep 'nothing is mounted'
        user /run umount "$3" --all
        user /run/nobody status "$3" | grep dead
        if user /run/nobody umount "$3" --all; then exit 1; fi
        XDG_RUNTIME_DIR=/run/nobody "$0" status --json | grep -o '"id"' | wc -l | grep -x 1
        grep -q hello "$3/root/f"
        "$0" umount "$3/root"
    "#;
    assert!(Shell::start(&lab, &MOUNT_NAMESPACE, script, &hello(&liar), &lab.fresh("mounts")).end());
}
