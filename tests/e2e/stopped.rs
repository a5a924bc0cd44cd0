//! Filesystems that do not answer: whatever a command is told to read there, it ends, and names it. The filesystem is a mount of crfs's own whose server
//! is stopped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::image::{File, zstd_chunked};
use crate::lying::{Fault, Lie, On};
use crate::ours::apart;
use crate::readers::drop_caches;
use crate::support::command::{Finished, send};
use crate::support::lab::{CRFS, say_skipped};
use crate::support::lies::Liar;
use crate::support::mount::{Disk, until_gone};
use crate::support::{Lab, Mount, run, until};

const IMAGE: &str = "late-zc-new";

/// A mount whose server is stopped for as long as this lives.
struct Stopped {
    mount: Mount,
    pid: u32,
}

impl Stopped {
    fn new(lab: &Lab) -> Self {
        let mount = lab.mount(&lab.layout(IMAGE), &[]);
        let pid = mount.pid();
        let stopped = Self { mount, pid };
        send(pid, Signal::SIGSTOP);
        // A thread goes on until one of them has heard of it.
        let is_stopped = |task: fs::DirEntry| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
        };
        let tasks = || fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        until("the stop of all of its threads", || tasks().all(is_stopped).then_some(()));
        stopped
    }

    /// A path in it that nobody has asked for.
    fn path(&self, name: &str) -> PathBuf {
        self.mount.path(name)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        send(self.pid, Signal::SIGCONT);
    }
}

#[test]
fn whatever_a_command_reads_where_nobody_answers_it_ends_and_names_it() {
    let Some(lab) = Lab::new() else { return };
    let stopped = Stopped::new(&lab);
    let cache = lab.fresh("cache");
    let at = |name: &str| stopped.path(name).display().to_string();
    let https = "127.0.0.1:1/a:1";
    let ls = |more: &[&str]| {
        let mut command = Command::new(CRFS);
        command.args(["ls", "--cache-dir"]).arg(&cache).args(more);
        command
    };
    let crfs = |words: &[&str]| {
        let mut command = Command::new(CRFS);
        command.args(words);
        command
    };
    let mut certificates = ls(&["--tls-verify", https, "/"]);
    certificates.env("SSL_CERT_FILE", at("ca.pem")).env("SSL_CERT_DIR", at("certs.d"));
    let mut configured = crfs(&["store", "serve", "--root"]);
    configured.arg(lab.path("served")).args(["--cache-dir"]).arg(&cache);
    configured.env("CONTAINERS_STORAGE_CONF", at("storage.conf"));
    let mut registries = ls(&[https, "/"]);
    registries.env("CONTAINERS_REGISTRIES_CONF", at("registries.conf"));
    let commands = vec![
        (registries, "registries.conf"),
        (ls(&["--hosts-dir", &at("hosts"), https, "/"]), "hosts"),
        (ls(&["--tls-verify", "--cert-dir", &at("certs"), https, "/"]), "certs"),
        (certificates, "SSL_CERT_FILE"),
        (ls(&[&format!("oci:{}", at("layout")), "/"]), "layout"),
        (ls(&[&format!("oci-archive:{}", at("a.tar")), "/"]), "a.tar"),
        (ls(&[&format!("docker-archive:{}", at("b.tar")), "/"]), "b.tar"),
        (crfs(&["cache", "show", "--cache-dir", &at("shown")]), "shown"),
        (crfs(&["cache", "clear", "--cache-dir", &at("cleared")]), "cleared"),
        (crfs(&["cache", "verify", "--cache-dir", &at("verified")]), "verified"),
        (crfs(&["store", "ls", "--root", &at("listed")]), "listed"),
        (crfs(&["store", "add", "--root", &at("added"), &lab.layout(IMAGE)]), "added"),
        (configured, "storage.conf"),
    ];
    std::thread::scope(|scope| {
        for (mut command, named) in commands {
            scope.spawn(move || {
                let finished = run(&mut command);
                assert!(!finished.good() && finished.stderr.contains(named), "{finished}");
            });
        }
        let mut config = crfs(&["store", "config"]);
        config.env("CONTAINERS_STORAGE_CONF", at("podman.conf"));
        scope.spawn(move || {
            let told = run(&mut config).ok();
            assert!(told.contains("podman.conf cannot be read here (its filesystem has not answered"), "{told}");
        });
    });
}

/// A layout on a filesystem of which only what is small comes, as from a server of files that stops.
#[test]
fn a_layer_in_a_layout_that_never_comes_is_waited_for_as_long_as_a_manifest() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let names: Vec<String> = fs::read_dir(lab.dir_of(IMAGE).join("blobs/sha256"))
        .unwrap()
        .map(|blob| format!("blobs/sha256/{}", blob.unwrap().file_name().into_string().unwrap()))
        .chain(["index.json", "oci-layout"].map(str::to_owned))
        .collect();
    let file =
        |name: &String| File { name: name.clone().leak(), content: fs::read(lab.dir_of(IMAGE).join(name)).unwrap() };
    let files: Vec<File> = names.iter().map(file).collect();
    let image = liar.push(&[&zstd_chunked(&files, 1 << 20)]);
    let options = ["--whole-layer-below", "0", "--prefetch", "none", "--io-deadline", "10m"];
    let mount = lab.mount(&image, &options);
    for file in files.iter().filter(|file| file.content.starts_with(b"{")) {
        assert_eq!(fs::read(mount.path(file.name)).unwrap(), file.content);
    }
    liar.fault(Fault::always(On::Blobs, Lie::Silence));
    let layout = format!("oci:{}:latest", mount.dir().display());
    std::thread::scope(|scope| {
        for whole in ["0", "1GiB"] {
            let (lab, layout) = (&lab, &layout);
            scope.spawn(move || {
                let cache = lab.fresh("cache");
                let mut ls = Command::new(CRFS);
                ls.args(["ls", "--whole-layer-below", whole, "--cache-dir"]).arg(cache).args([layout, "/"]);
                let said = run(&mut ls).refused();
                assert!(said.contains("blobs/sha256") && said.contains("has not answered for 20 s"), "{said}");
            });
        }
    });
}

#[test]
fn the_mounts_that_are_known_are_shown_where_one_directory_of_states_does_not_answer() {
    let Some(lab) = Lab::new() else { return };
    let stopped = Stopped::new(&lab);
    let mount = lab.mount(&lab.layout(IMAGE), &[]);
    for words in [&["status"][..], &["status", "--json"]] {
        let mut command = Command::new(CRFS);
        let finished = run(command.args(words).env("XDG_RUNTIME_DIR", stopped.path("run")));
        let dir = mount.dir().to_str().unwrap();
        assert!(!finished.good() && finished.stdout.contains(dir), "{finished}");
        assert!(finished.stderr.contains(stopped.path("run").to_str().unwrap()), "{finished}");
    }
}

/// A filesystem that takes no writes, until this is dropped.
struct Frozen<'a>(&'a Disk);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        run(Command::new("fsfreeze").arg("-u").arg(self.0.dir())).ok();
    }
}

#[test]
fn a_cache_on_a_frozen_filesystem_is_shown_and_verified() {
    let Some(lab) = Lab::new() else { return };
    if !Path::new("/dev/loop-control").exists() {
        return say_skipped("there are no loop devices");
    }
    let (file, disk) = (lab.path("disk"), lab.fresh("disk"));
    fs::File::create(&file).unwrap().set_len(100 << 20).unwrap();
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&file)).ok();
    run(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(&disk)).ok();
    let disk = Disk::at(disk);
    let mount = lab.mount_with(&lab.layout(IMAGE), disk.dir(), &["--whole-layer-below", "0"]);
    lab.assert_equal(mount.dir(), "late", &[]);
    mount.umount().ok();
    run(Command::new("fsfreeze").arg("-f").arg(disk.dir())).ok();
    let frozen = Frozen(&disk);
    // Nothing of it is in memory.
    drop_caches();
    for command in ["show", "verify"] {
        let told = run(Command::new(CRFS).args(["cache", command, "--json", "--cache-dir"]).arg(disk.dir())).ok();
        assert!(!told.contains("\"wrong\":[{"), "{told}");
    }
    drop(frozen);
}

#[test]
fn a_mount_is_ended_whatever_is_wrong_with_the_directories_of_states() {
    let Some(lab) = Lab::new() else { return };
    let stopped = Stopped::new(&lab);
    let ends = |words: &[&str], mount: &Mount| -> Finished {
        let mut command = Command::new(CRFS);
        command.arg("umount").args(words).env("XDG_RUNTIME_DIR", stopped.path("run"));
        let finished = run(&mut command);
        assert!(!mount.is_mounted(), "{finished}");
        finished
    };
    let mount = lab.mount(&lab.layout(IMAGE), &[]);
    let pid = mount.pid();
    ends(&[mount.dir().to_str().unwrap()], &mount).ok();
    until_gone(pid);
    let mount = lab.mount(&lab.layout(IMAGE), &[]);
    let id = mount.status().unwrap()["id"].as_str().unwrap().to_owned();
    ends(&[&id], &mount).ok();
}

#[test]
fn all_mounts_are_ended_that_are_known_where_something_answers() {
    let Some(lab) = Lab::new() else { return };
    let stopped = Stopped::new(&lab);
    let script = format!(
        r#"
        mkdir "$LAB/a" "$LAB/b"
        for at in a b; do "$CRFS" mount --cache-dir "$LAB/cache" "$IMAGE" "$LAB/$at"; done
        XDG_RUNTIME_DIR={} "$CRFS" umount --all && echo all good
        grep -c "$LAB/[ab] " /proc/self/mountinfo || echo gone
        "#,
        stopped.path("run").display()
    );
    let told = apart(&lab, &[("/run/crfs", "0700")], &script);
    assert!(told.stderr.contains("has not answered"), "{told}");
    assert!(told.ok().ends_with("0\ngone\n"));
}

#[test]
fn mounts_are_listed_with_fewer_descriptors_than_there_are_mounts() {
    let Some(lab) = Lab::new() else { return };
    let script = r#"
        mkdir "$LAB/mnt"
        "$CRFS" mount --cache-dir "$LAB/cache" "$IMAGE" "$LAB/mnt" > /dev/null
        cd /run/crfs
        one=$(ls)
        for number in $(seq 100 299); do
            mkdir -m 0700 mount$number
            cp $one/mount.json mount$number
            printf mount$number > mount$number/state.id
        done
        (ulimit -n 32; "$CRFS" status --json) | grep -o '"state":"dead"' | wc -l
        (ulimit -n 32; "$CRFS" umount "$LAB/mnt")
        "$CRFS" status > /dev/null
        ls | wc -l
    "#;
    let told = apart(&lab, &[("/run/crfs", "0700")], script).ok();
    assert_eq!(told, "200\n0\n");
}
