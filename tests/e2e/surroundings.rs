//! What happens to a server by what is around it: limits of processes and signals. None of it ends a mount.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{pipe2, write};

use crate::image::{File, Layer, ramp, zstd_chunked};
use crate::readers::drop_caches;
use crate::support::command::{ends, send, start};
use crate::support::lab::{CRFS, skip};
use crate::support::lies::Liar;
use crate::support::mount::until_gone;
use crate::support::podman::Store;
use crate::support::{Lab, Mount, run, until};

const LAZILY: [&str; 4] = ["--whole-layer-below", "0", "--prefetch", "none"];

/// Where a limit of processes can be set for some: the pids controller of version 1, or of version 2.
const CONTROLLERS: [&str; 2] = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"];

/// A cgroup with a limit of processes, which threads count for. What is still in it when it ends goes on without one.
struct Few {
    group: PathBuf,
    above: PathBuf,
}

impl Few {
    /// `None`, said on stderr, where there is no such controller.
    fn new(name: &str) -> Option<Self> {
        for above in CONTROLLERS.map(PathBuf::from) {
            let group = above.join(format!("crfs-e2e-{}-{name}", std::process::id()));
            if fs::create_dir(&group).is_ok() {
                let few = Self { group, above };
                if few.group.join("pids.max").exists() {
                    return Some(few);
                }
            }
        }
        skip("there is no cgroup with a limit of processes")
    }

    fn set(&self, name: &str, value: impl ToString) {
        fs::write(self.group.join(name), value.to_string()).unwrap();
    }

    /// How many there are.
    fn count(&self) -> u64 {
        fs::read_to_string(self.group.join("pids.current")).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Few {
    fn drop(&mut self) {
        let left = fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
        left.lines().for_each(|pid| drop(fs::write(self.above.join("cgroup.procs"), pid)));
        let _ = fs::remove_dir(&self.group);
    }
}

const FILES: usize = 40;

/// A layer of files of 50,000 bytes, each of which is a request of its own.
fn layer(prefix: &str) -> Layer {
    let name = |number| format!("{prefix}{number}").leak() as &'static str;
    let files: Vec<_> = (0..FILES).map(|number| File { name: name(number), content: ramp(50_000, number) }).collect();
    zstd_chunked(&files, 1 << 20)
}

/// Reads all files at once, as many processes would.
fn read_all(mount: &Mount, prefix: &str) {
    std::thread::scope(|scope| {
        for number in 0..FILES {
            let path = mount.path(&format!("{prefix}{number}"));
            scope.spawn(move || assert_eq!(fs::read(&path).unwrap(), ramp(50_000, number), "{}", path.display()));
        }
    });
}

#[test]
fn where_no_thread_can_be_made_everything_is_read_all_the_same() {
    let Some(lab) = Lab::new() else { return };
    let Some(few) = Few::new("reads") else { return };
    let liar = Liar::new();
    let (warm, cold, colder) = (layer("warm"), layer("cold"), layer("more"));
    let mount = lab.mount(&liar.push(&[&warm, &cold, &colder]), &LAZILY);
    few.set("cgroup.procs", mount.pid());
    let at_rest = few.count();
    read_all(&mount, "warm");
    until("the end of the threads that have nothing to do", || (few.count() <= at_rest).then_some(()));
    few.set("pids.max", few.count());
    drop_caches();
    read_all(&mount, "warm");
    read_all(&mount, "cold");
    few.set("pids.max", "max");
    drop_caches();
    read_all(&mount, "cold");
    read_all(&mount, "more");
    assert_eq!(mount.counter("errors"), 0);
    mount.umount().ok();
    // A cgroup with anything in it cannot be removed.
    until("the end of the server", || (few.count() == 0).then_some(()));
}

#[test]
fn a_mount_among_few_processes_works_or_says_which_limit_it_met() {
    let Some(lab) = Lab::new() else { return };
    let Some(few) = Few::new("mount") else { return };
    let (image, cache) = (lab.layout("late-zc-new"), lab.fresh("cache"));
    let mut worked = 0;
    for most in 1..=24 {
        few.set("pids.max", most);
        let dir = lab.fresh("mount");
        let enter = format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", few.group.display());
        let mut command = Command::new("sh");
        command.args(["-c", &enter, CRFS, "mount", "--cache-dir"]).arg(&cache).args(LAZILY).arg(&image).arg(&dir);
        let finished = run(&mut command);
        let mount = Mount::new(dir, finished.stdout.clone());
        if finished.good() {
            worked += 1;
            lab.assert_equal(mount.dir(), "late", &[]);
            mount.umount().ok();
        } else {
            let said = finished.refused();
            assert!(said.contains("pids.max") && !said.contains("bug"), "{most}: {said}");
            assert!(!mount.is_mounted(), "{most}: {said}");
        }
        until("the end of what it has started", || (few.count() == 0).then_some(()));
    }
    assert!(worked > 0, "24 are enough");
}

#[test]
fn a_command_with_few_descriptors_works_or_says_so() {
    let Some(lab) = Lab::new() else { return };
    let (image, cache) = (lab.layout("late-zc-new"), lab.fresh("cache"));
    let of = |most: u32| {
        let limit = format!("ulimit -n {most} && exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        run(command.args(["-c", &limit, CRFS, "ls", "--cache-dir"]).arg(&cache).args([&image, "/"]))
    };
    for most in 6..=16 {
        let finished = of(most);
        assert!(finished.good() || !finished.refused().contains("bug"), "{most}");
    }
    of(64).ok();
}

/// The end to write to of a pipe that nobody reads, and that takes nothing more; with the other end.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (unread, full) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap();
    while write(&full, &[b'x'; 4096]).is_ok() {}
    while write(&full, b"x").is_ok() {}
    fcntl(&full, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (unread, full)
}

#[test]
fn standard_error_that_nobody_reads_stops_nothing() {
    let Some(lab) = Lab::new() else { return };
    let (_unread, full) = full_pipe();
    let dir = lab.fresh("mount");
    let mut command = Command::new(CRFS);
    command.args(["-vvv", "mount", "--foreground", "--cache-dir"]).arg(lab.fresh("cache"));
    command.arg(lab.layout("late-zc-new")).arg(&dir);
    let mut server = start(command.stdout(Stdio::null()).stderr(full));
    let mount = Mount::new(dir, String::new());
    until("the mount", || mount.is_mounted().then_some(()));
    lab.assert_equal(mount.dir(), "late", &[]);
    mount.umount().ok();
    assert!(ends("the end of the server", &mut server).success());
}

#[test]
fn certificates_that_never_come_are_named() {
    let Some(lab) = Lab::new() else { return };
    let fifo = lab.path("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let mut command = Command::new(CRFS);
    command.args(["ls", "--tls-verify", "--cache-dir"]).arg(lab.fresh("cache")).args(["127.0.0.1:1/a:1", "/"]);
    let said = run(command.env("SSL_CERT_FILE", fifo)).refused();
    assert!(said.contains("SSL_CERT_FILE"), "{said}");
}

/// By number, since not all have names: what ends or stops a process by itself and means nothing to a server, and two of real time.
const MEANINGLESS: [i32; 17] = [
    nix::libc::SIGUSR1,
    nix::libc::SIGUSR2,
    nix::libc::SIGALRM,
    nix::libc::SIGVTALRM,
    nix::libc::SIGPROF,
    nix::libc::SIGIO,
    nix::libc::SIGPWR,
    nix::libc::SIGSTKFLT,
    nix::libc::SIGXCPU,
    nix::libc::SIGXFSZ,
    nix::libc::SIGPIPE,
    nix::libc::SIGWINCH,
    nix::libc::SIGTSTP,
    nix::libc::SIGTTIN,
    nix::libc::SIGTTOU,
    34,
    64,
];

fn send_all(pid: u32, signals: &[i32]) {
    for signal in signals {
        // By the shell's own kill: the program is in a package (procps), and nix knows no real-time signals.
        run(Command::new("sh").arg("-c").arg(format!("kill -{signal} {pid}"))).ok();
    }
}

#[track_caller]
fn until_told(log: &Path) {
    until("what the server does, in its log", || {
        let log = fs::read_to_string(log).unwrap();
        (log.contains("SIGQUIT") && log.contains("incoming")).then_some(())
    });
}

#[test]
fn signals_that_mean_nothing_to_a_server_do_nothing_and_sigquit_tells_what_it_does() {
    let Some(lab) = Lab::new() else { return };
    let mount = lab.mount(&lab.layout("late-zc-new"), &LAZILY);
    let pid = mount.pid();
    send_all(pid, &MEANINGLESS);
    send(pid, Signal::SIGQUIT);
    let id = mount.status().unwrap()["id"].as_str().unwrap().to_owned();
    until_told(&Path::new("/run/crfs").join(id).join("server.log"));
    lab.assert_equal(mount.dir(), "late", &[]);
    send(pid, Signal::SIGTERM);
    until_gone(pid);
    assert!(!mount.is_mounted());
}

#[test]
fn signals_end_neither_a_store_nor_who_keeps_it() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::new(&lab) else { return };
    let (keeper, pid) = (store.keeper(), store.pid());
    for process in [pid, keeper] {
        send_all(process, &MEANINGLESS);
    }
    send(keeper, Signal::SIGQUIT);
    until_told(&store.path("crfs/server.log"));
    assert_eq!((store.keeper(), store.pid()), (keeper, pid));
    store.end(Signal::SIGTERM);
    until_gone(pid);
    assert!(!fs::read_to_string("/proc/mounts").unwrap().contains(store.path("overlay").to_str().unwrap()));
}
