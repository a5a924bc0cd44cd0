//! `crfs doctor` on machines that lack something.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::keeper::kill_for_good;
use crate::support::command::Finished;
use crate::support::lab::CRFS;
use crate::support::mount::Disk;
use crate::support::registry::{Access, PASSWORD, USER};
use crate::support::{Lab, Registry, run};

/// What it says of this machine, with a home and a cache of its own.
fn command(lab: &Lab, cache: &Path) -> Command {
    let mut command = Command::new(CRFS);
    command.args(["doctor", "--json", "--cache-size", "1M", "--cache-dir"]).arg(cache);
    command.args(["--root".as_ref(), lab.path("store").as_os_str()]).env("HOME", lab.path("home"));
    command.env_remove("XDG_RUNTIME_DIR").env_remove("HTTPS_PROXY");
    command
}

/// A disk with room.
fn roomy(lab: &Lab) -> Disk {
    Disk::new(lab, "256m")
}

fn told(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished}"))
}

/// The findings of a check that are not ok.
fn bad(told: &Value, check: &str) -> Vec<String> {
    let all = told["findings"].as_array().unwrap().iter();
    all.filter(|one| one["check"] == check && one["verdict"] != "ok").map(Value::to_string).collect()
}

#[track_caller]
fn one_problem(finished: &Finished, check: &str, said: &[&str]) {
    assert_eq!(finished.status, Some(1), "{finished}");
    let bad = bad(&told(finished), check);
    let is_it = |text: &String| text.contains("\"problem\"") && said.iter().all(|said| text.contains(said));
    assert!(bad.iter().any(is_it), "{check}: {said:?}: {finished}");
}

fn left_behind() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    mounts.lines().filter(|line| line.starts_with("crfs-doctor ")).map(str::to_owned).collect()
}

#[test]
fn a_machine_that_has_what_is_needed_is_well() {
    let Some(lab) = Lab::new() else { return };
    let disk = roomy(&lab);
    let finished = run(&mut command(&lab, disk.dir()));
    let told = told(&finished);
    for check in ["fuse", "kernel", "credentials", "podman"] {
        assert_eq!(bad(&told, check), [""; 0], "{finished}");
    }
    // It is in memory.
    assert!(bad(&told, "cache")[0].contains("tmpfs"), "{finished}");
    assert_eq!(told["version"], env!("CARGO_PKG_VERSION"));
    assert!(left_behind().is_empty());
    let text = run(Command::new(CRFS).args(["doctor", "--all", "--cache-dir"]).arg(disk.dir())).stdout;
    assert!(text.contains("ok       kernel: a FUSE filesystem was mounted here, and answers\n"), "{text}");
}

#[test]
fn what_is_missing_is_a_problem() {
    let Some(lab) = Lab::new() else { return };
    let disk = roomy(&lab);
    let within = |script: &str| {
        let mut command = Command::new("unshare");
        let own = self::command(&lab, disk.dir());
        command.args(["--mount", "--propagation", "private", "sh", "-c"]).arg(format!("{script}; exec \"$0\" \"$@\""));
        command.arg(own.get_program()).args(own.get_args()).env("HOME", lab.path("home"));
        run(&mut command)
    };
    let finished = within("mount -t tmpfs x /dev; mknod -m 0666 /dev/null c 1 3");
    one_problem(&finished, "fuse", &["there is no /dev/fuse", "modprobe fuse"]);
    one_problem(&finished, "kernel", &["there is no /dev/fuse"]);
    let finished =
        within(&format!("mount -o remount,ro,bind {0} 2>/dev/null || mount -o remount,ro {0}", disk.dir().display()));
    one_problem(&finished, "cache", &["read-only filesystem", "--cache-dir"]);
}

#[test]
fn a_full_disk_is_a_problem() {
    let Some(lab) = Lab::new() else { return };
    let disk = Disk::new(&lab, "1m");
    let _full = fs::write(disk.dir().join("all"), vec![1; 2 << 20]);
    one_problem(&run(&mut command(&lab, disk.dir())), "cache", &["--cache-dir"]);
}

#[test]
fn broken_files_are_named_with_their_line() {
    let Some(lab) = Lab::new() else { return };
    let disk = roomy(&lab);
    let (conf, auth, storage) = (lab.path("registries.conf"), lab.path("auth.json"), lab.path("storage.conf"));
    fs::write(&conf, "[[registry]]\nlocation = \"a.io\"\nblocked = 7\n").unwrap();
    fs::write(&auth, "{\"auths\":{\n\"a.io\":{\"auth\":\"hunter2").unwrap();
    fs::write(&storage, "[storage]\ndriver = \n").unwrap();
    let mut command = command(&lab, disk.dir());
    command.env("CONTAINERS_REGISTRIES_CONF", &conf).env("REGISTRY_AUTH_FILE", &auth);
    command.env("CONTAINERS_STORAGE_CONF", &storage).env("HTTPS_PROXY", "http://user:hunter2@proxy:port");
    let finished = run(&mut command);
    one_problem(&finished, "registries", &["registries.conf, line 3"]);
    one_problem(&finished, "credentials", &["auth.json", "line 2"]);
    one_problem(&finished, "podman", &["storage.conf", "line 2"]);
    one_problem(&finished, "proxies", &["HTTPS_PROXY is not the URL of a proxy"]);
    assert!(!finished.stdout.contains("hunter2"), "{finished}");
    let finished = run(command.env("REGISTRY_AUTH_FILE", lab.path("nowhere.json")));
    one_problem(&finished, "credentials", &["nowhere.json", "podman login --authfile"]);
}

#[test]
fn a_dead_mount_is_a_problem() {
    let Some(lab) = Lab::new() else { return };
    let disk = roomy(&lab);
    let mount = lab.mount(&lab.layout("late-zc-new"), &[]);
    let dir = mount.dir().display().to_string();
    let about = |finished: &Finished| bad(&told(finished), "mounts").iter().any(|one| one.contains(&dir));
    assert!(!about(&run(&mut command(&lab, disk.dir()))));
    kill_for_good(&mount);
    let finished = run(&mut command(&lab, disk.dir()));
    one_problem(&finished, "mounts", &[&format!("the server of {dir} is gone"), &format!("crfs umount {dir}")]);
    mount.umount().ok();
    assert!(!about(&run(&mut command(&lab, disk.dir()))));
}

/// What a filesystem without answers holds cannot be killed; doctor ends all the same.
#[test]
fn doctor_ends_where_a_filesystem_does_not_answer() {
    let Some(lab) = Lab::new() else { return };
    let dir = lab.fresh("hung");
    let mut hung = Command::new("python3");
    hung.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/support/hung.py")).arg(&dir);
    let mut hung = hung.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(hung.stdout.take().unwrap()).read_line(&mut said).unwrap();
    let finished = (said == "ready\n").then(|| run(&mut command(&lab, &dir.join("cache"))));
    // It ends with its input.
    drop(hung.stdin.take());
    hung.wait().unwrap();
    let finished = finished.expect("the filesystem is there");
    one_problem(&finished, "cache", &["has not come to an end within", "findmnt"]);
}

#[test]
fn the_way_to_an_image_is_told() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Password);
    let image = registry.push(&lab, "late-zc-new");
    let auth = lab.path("auth.json");
    let login = |password: &str| {
        use base64::Engine as _;
        let secret = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{password}"));
        let text = format!("{{\"auths\":{{\"{}\":{{\"auth\":\"{secret}\"}}}}}}", registry.host());
        fs::write(&auth, text).unwrap();
        let disk = roomy(&lab);
        let finished = run(command(&lab, disk.dir()).arg("--authfile").arg(&auth).arg(&image));
        assert!(!finished.stdout.contains(password) && !finished.stdout.contains(&secret), "{finished}");
        finished
    };
    let finished = login(PASSWORD);
    assert!(bad(&told(&finished), "image").iter().all(|one| !one.contains("problem")), "{finished}");
    for said in ["can be had", "is told the credentials of", "clock and that of the registry agree", "layers are lazy"]
    {
        assert!(finished.stdout.contains(said), "{said}: {finished}");
    }
    one_problem(&login("hunter2"), "image", &["refused the credentials", "log in again"]);
}

/// A user's machine as distributions make it, and one without fuse3.
#[test]
fn a_user_is_told_what_users_need() {
    let Some(lab) = Lab::new() else { return };
    let (crfs, script) = (lab.path("crfs"), lab.path("script"));
    fs::copy(CRFS, &crfs).unwrap();
    let as_user = |text: &str| {
        fs::write(&script, text).unwrap();
        run(Command::new("chmod").args(["0644".as_ref(), script.as_os_str()])).ok();
        let mut command = Command::new("sh");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/support/as-user.sh"));
        run(command.arg(lab.fresh("home")).args([&script, &crfs]))
    };
    let finished = as_user("\"$1\" doctor --json");
    let told = told(&finished);
    assert!(bad(&told, "fuse").is_empty() && bad(&told, "kernel").is_empty(), "{finished}");
    assert!(finished.stdout.contains("fusermount3 mounts for this user"), "{finished}");
    assert!(left_behind().is_empty());
    one_problem(&as_user("PATH=/nowhere \"$1\" doctor --json"), "fuse", &["no fusermount3", "package fuse3"]);
    let unreadable = "echo '{}' > a; chmod 0 a; REGISTRY_AUTH_FILE=$PWD/a \"$1\" doctor --json";
    one_problem(&as_user(unreadable), "credentials", &["Permission denied"]);
}
