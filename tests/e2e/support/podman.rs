//! podman with stores of its own, and a crfs store for it.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::busy;
use super::command::{Finished, ends, run, send, until};
use super::lab::{CRFS, Lab, skip};
use super::mount::until_gone;

/// What containers need on machines without cgroups v2, or without the right to raise limits. No network: nothing of it is of interest here.
pub(crate) const LIMITS: [&str; 5] = [
    "--network=none",
    "--ulimit=nofile=20000:20000",
    "--ulimit=nproc=1000:1000",
    "--security-opt=seccomp=unconfined",
    "--log-driver=k8s-file",
];

/// Where podman of root keeps what it knows of blobs: no option moves it.
const BLOB_CACHE: &str = "/var/lib/containers/cache";

/// The commands that use that. None of them leaves a mount.
const USE_BLOB_CACHE: [&str; 5] = ["build", "commit", "pull", "push", "save"];

/// A crfs store, served until dropped.
pub(crate) struct Store {
    root: PathBuf,
    cache: PathBuf,
    /// Where its state is, if not below its root.
    pub(crate) state: Option<PathBuf>,
    /// The socket of a service manager.
    pub(crate) manager: Option<PathBuf>,
    /// What serves it, if it is not the crfs of the tests.
    pub(crate) program: Option<PathBuf>,
    server: Option<Child>,
}

impl Store {
    /// A store that is served. `None`, said on stderr, where there is no podman, or nothing to run in it.
    #[track_caller]
    pub(crate) fn new(lab: &Lab) -> Option<Self> {
        let mut store = Self::unserved(lab)?;
        store.serve();
        Some(store)
    }

    /// One that is not served yet.
    pub(crate) fn unserved(lab: &Lab) -> Option<Self> {
        for program in ["podman", "runc"] {
            if Command::new(program).arg("--version").stdout(Stdio::null()).status().is_err() {
                return skip(&format!("there is no {program}: install the package {program}"));
            }
        }
        busy::is_there()?;
        let (root, cache) = (lab.path("store"), lab.fresh("cache"));
        Some(Self { root, cache, state: None, manager: None, program: None, server: None })
    }

    pub(crate) fn cache(&self) -> &Path {
        &self.cache
    }

    /// Kills its keeper alone.
    #[track_caller]
    pub(crate) fn lose_keeper(&mut self) {
        let mut server = self.server.take().expect("no server runs");
        send(server.id(), Signal::SIGKILL);
        ends("the end of the keeper", &mut server);
    }

    /// Loses all that is cached; no server may run.
    pub(crate) fn forget_cache(&self) {
        assert!(self.server.is_none());
        fs::remove_dir_all(&self.cache).unwrap();
        fs::create_dir(&self.cache).unwrap();
    }

    /// Has a file in the place of its cache; no server may run.
    pub(crate) fn without_cache(&self) {
        assert!(self.server.is_none());
        fs::remove_dir_all(&self.cache).unwrap();
        fs::write(&self.cache, "").unwrap();
    }

    /// Starts the server, and waits until it says that podman can use the store. Gives that line.
    #[track_caller]
    pub(crate) fn serve(&mut self) -> String {
        self.serve_with(&[])
    }

    /// The same with more options.
    #[track_caller]
    pub(crate) fn serve_with(&mut self, options: &[&str]) -> String {
        let ready = self.start_with(options).find(|line| line.contains("crfs: serving"));
        ready.unwrap_or_else(|| panic!("the server ended: {}", self.log()))
    }

    /// Starts the server. Gives what it says on stderr, as far as that is listened to.
    #[track_caller]
    pub(crate) fn start(&mut self) -> impl Iterator<Item = String> + use<> {
        self.start_with(&[])
    }

    fn start_with(&mut self, options: &[&str]) -> impl Iterator<Item = String> + use<> {
        let mut command = self.command_of(self.program.as_deref().unwrap_or(Path::new(CRFS)), "serve");
        command.arg("--cache-dir").arg(&self.cache).args(options);
        command.envs(self.manager.iter().map(|socket| ("NOTIFY_SOCKET", socket)));
        let mut server = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(server.stderr.take().unwrap()).lines();
        self.server = Some(server);
        let (sender, receiver) = mpsc::channel();
        // Read on where nobody listens, so that the server never waits for us; what it says there is in server.log, too.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(sender.send(line))));
        receiver.into_iter()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.root.join("crfs/server.log")).unwrap_or_default()
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// `crfs store COMMAND --root ...`
    #[track_caller]
    pub(crate) fn crfs(&self, command: &str, arguments: &[impl AsRef<OsStr>]) -> Finished {
        run(self.command(command).args(arguments))
    }

    pub(crate) fn command(&self, name: &str) -> Command {
        self.command_of(Path::new(CRFS), name)
    }

    fn command_of(&self, program: &Path, name: &str) -> Command {
        let mut command = Command::new(program);
        command.args(["store", name, "--root"]).arg(&self.root);
        if let Some(state) = &self.state {
            command.arg("--state").arg(state);
        }
        command
    }

    /// Adds an image under a name of its own; gives its id.
    #[track_caller]
    pub(crate) fn add(&self, name: &str, image: &str) -> String {
        let text = self.crfs("add", &["--json", "--name", name, image]).ok();
        let added: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(added[0]["served"], self.server.is_some(), "{text}");
        added[0]["id"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub(crate) fn list(&self) -> Vec<Value> {
        serde_json::from_str(&self.crfs("ls", &["--json"]).ok()).unwrap()
    }

    /// Who keeps it: the process that was started.
    pub(crate) fn keeper(&self) -> u32 {
        self.server.as_ref().expect("no server runs").id()
    }

    /// Who serves it.
    #[track_caller]
    pub(crate) fn pid(&self) -> u32 {
        until("a server", || children(self.keeper()).first().copied())
    }

    /// What `crfs status` says of it.
    #[track_caller]
    pub(crate) fn status(&self) -> Option<Value> {
        let status = run(Command::new(CRFS).args(["status", "--json", "--root"]).arg(&self.root)).ok();
        let all: Vec<Value> = serde_json::from_str(&status).unwrap();
        all.into_iter().find(|one| one["dir"].as_str().map(Path::new) == Some(&self.root))
    }

    /// Kills who serves it; gives who serves it then.
    #[track_caller]
    pub(crate) fn kill_worker(&self) -> u32 {
        let before = self.pid();
        send(before, Signal::SIGKILL);
        self.other_than(before)
    }

    /// Waits for another server than that.
    #[track_caller]
    pub(crate) fn other_than(&self, before: u32) -> u32 {
        until("another server", || {
            let status = self.status()?;
            let pid = status["pid"].as_u64().filter(|pid| status["state"] == "serving" && *pid != u64::from(before));
            pid.map(|pid| u32::try_from(pid).unwrap())
        })
    }

    /// Sends its server a signal, and waits for its end. SIGKILL is for whoever serves it as well: nobody clears up after them.
    #[track_caller]
    pub(crate) fn end(&mut self, signal: Signal) {
        let Some(mut server) = self.server.take() else { return };
        let workers = if signal == Signal::SIGKILL { children(server.id()) } else { Vec::new() };
        send(server.id(), signal);
        ends("the end of the server", &mut server);
        workers.iter().for_each(|worker| send(*worker, signal));
        workers.into_iter().for_each(until_gone);
    }

    /// Ends its server although somebody uses the store.
    #[track_caller]
    pub(crate) fn end_by_force(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        until("the end of the server", || {
            send(server.id(), Signal::SIGTERM);
            server.try_wait().unwrap()
        });
    }
}

/// Processes that one with a single thread has started, and that have not ended.
fn children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

impl Drop for Store {
    fn drop(&mut self) {
        self.end(Signal::SIGKILL);
        detach_below(&self.root);
    }
}

/// podman with a root of its own, and a crfs store beside it. Its containers are gone when it is dropped.
pub(crate) struct Podman {
    root: PathBuf,
    options: Vec<String>,
    /// What podman is started by, if not directly.
    pub(crate) under: Vec<String>,
}

impl Podman {
    pub(crate) fn new(lab: &Lab, store: &Store) -> Self {
        Self::at(lab, store.root())
    }

    /// By a name of the store's root: podman hands the paths of all layers to the kernel in one page.
    pub(crate) fn at(lab: &Lab, imagestore: &Path) -> Self {
        let root = lab.fresh("podman");
        fs::create_dir(root.join("blobs")).unwrap();
        let mut options: Vec<String> =
            ["--runtime=runc", "--cgroup-manager=cgroupfs", "--events-backend=file"].map(str::to_owned).into();
        options.push(format!("--root={}/graph", root.display()));
        options.push(format!("--runroot={}/run", root.display()));
        options.push(format!("--tmpdir={}/tmp", root.display()));
        options.push(format!("--storage-opt=overlay.imagestore={}", imagestore.display()));
        Self { root, options, under: Vec::new() }
    }

    /// With another option.
    pub(crate) fn with(mut self, option: &str) -> Self {
        self.options.push(option.to_owned());
        self
    }

    /// podman's own store.
    pub(crate) fn graph(&self) -> PathBuf {
        self.root.join("graph")
    }

    #[track_caller]
    pub(crate) fn command(&self, arguments: &[impl AsRef<OsStr>]) -> Command {
        let first = arguments.first().map(|first| first.as_ref().to_string_lossy().into_owned());
        let uses_blob_cache = first.is_some_and(|first| USE_BLOB_CACHE.contains(&&*first));
        let with_cache = if uses_blob_cache { self.with_own_blob_cache() } else { Vec::new() };
        let mut words = with_cache.into_iter().chain(self.under.iter().cloned()).chain(["podman".to_owned()]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(&self.options).args(arguments).stdin(Stdio::null());
        command
    }

    /// What podman is started by, so that it knows of blobs what it was told itself, and no other test: in a mount namespace of its own.
    fn with_own_blob_cache(&self) -> Vec<String> {
        let own = self.root.join("blobs");
        let script = format!("mkdir -p {BLOB_CACHE} && mount --bind {} {BLOB_CACHE} && exec \"$@\"", own.display());
        ["unshare", "--mount", "--propagation=private", "sh", "-c", &script, "sh"].map(str::to_owned).into()
    }

    /// Lets podman forget what it knows of blobs.
    pub(crate) fn forget_blobs(&self) {
        let own = self.root.join("blobs");
        fs::remove_dir_all(&own).unwrap();
        fs::create_dir(own).unwrap();
    }

    /// `podman ARGUMENTS`
    #[track_caller]
    pub(crate) fn podman(&self, arguments: &[impl AsRef<OsStr>]) -> Finished {
        run(&mut self.command(arguments))
    }

    /// The command that runs a script in a new container, which goes with it.
    pub(crate) fn running(&self, options: &[&str], image: &str, script: &str) -> Command {
        let arguments = [&["run", "--rm"][..], &LIMITS, options, &[image, "/bin/busybox", "sh", "-c", script]].concat();
        self.command(&arguments)
    }

    #[track_caller]
    pub(crate) fn run(&self, options: &[&str], image: &str, script: &str) -> Finished {
        run(&mut self.running(options, image, script))
    }

    /// A container that waits for its end, by name.
    #[track_caller]
    pub(crate) fn start(&self, name: &str, image: &str) {
        let command = ["/bin/busybox", "sh", "-c", "while :; do /bin/busybox sleep 1000; done"];
        let arguments = [&["run", "-d", "--name", name][..], &LIMITS, &[image], &command].concat();
        self.podman(&arguments).ok();
    }

    /// The image's line of `podman images`, if it lists it: name, id, whether it is read-only.
    #[track_caller]
    pub(crate) fn image(&self, name: &str) -> Option<String> {
        let text = self.podman(&["images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}} {{.ReadOnly}}"]).ok();
        text.lines().find(|line| line.starts_with(name)).map(str::to_owned)
    }

    /// What a container of an image shows, until the guard is dropped.
    #[track_caller]
    pub(crate) fn mount(&self, image: &str) -> Mounted<'_> {
        let arguments = [&["create"][..], &LIMITS, &[image, "/bin/sh"]].concat();
        let container = self.podman(&arguments).ok().trim().to_owned();
        let dir = self.podman(&["mount", &container]).ok().trim().into();
        Mounted { podman: self, container, dir }
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _removed = self.podman(&["rm", "-a", "-f", "-t", "0"]);
        detach_below(&self.root);
    }
}

/// A container's files.
pub(crate) struct Mounted<'a> {
    podman: &'a Podman,
    container: String,
    pub(crate) dir: PathBuf,
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _removed = self.podman.podman(&["rm", "-f", &self.container]);
    }
}

/// Unmounts all that is mounted below a directory, so that a failed test leaves nothing behind.
pub(crate) fn detach_below(dir: &Path) {
    let below = || {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let mut points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
        points.rfind(|point| point.starts_with(dir))
    };
    while let Some(point) = below() {
        if umount2(&point, MntFlags::MNT_DETACH).is_err() {
            break;
        }
    }
}
