//! What a store's images hold is read in processes of their own: whatever becomes of one, the server serves on.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::evil::{Evil, estargz};
use crate::image::{File, Layer, config, manifest_with, ramp};
use crate::lying::{Fault, Lie, OCI_MANIFEST, On, Registry};
use crate::store::derived;
use crate::support::command::{ends, send};
use crate::support::lab::skip;
use crate::support::lies::Liar;
use crate::support::podman::{Podman, Store};
use crate::support::registry::Access;
use crate::support::{self, Lab, until};

const BUSY: &str = "localhost/busy:1";

/// A process and what it is: its parent, and its state.
fn process(pid: u32) -> Option<(u32, char)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.nth(1)?.parse().ok()?, stat.rsplit_once(") ")?.1.chars().next()?))
}

/// The children of a server, and in what state they are.
fn children(server: u32) -> Vec<(u32, char)> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let of = |pid| process(pid).filter(|(parent, _)| *parent == server).map(|(_, state)| (pid, state));
    pids.filter_map(of).collect()
}

/// One of its readers, which has begun.
fn reader(server: u32) -> Option<u32> {
    let is_reader = |pid: &u32| {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let adj = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap_or_default();
        command.contains("store-reader") && adj.trim() == "1000"
    };
    children(server).into_iter().map(|(pid, _)| pid).find(is_reader)
}

fn is_gone(pid: u32) -> Option<()> {
    process(pid).is_none().then_some(())
}

/// Says nothing when it is asked for a blob with a digest.
fn silent(liar: &Liar, layer: &Layer) {
    liar.fault(Fault::always(On::Blobs, Lie::Silence).about(&layer.digest().hex()));
}

pub(crate) fn push(liar: &Liar, layer: &Layer) -> String {
    let config = config(&[layer.digest()]);
    let registry: &Registry = liar;
    registry.push("a", "1", OCI_MANIFEST, &manifest_with(&config, &[layer]), &[&layer.blob, &config]);
    format!("{}/a:1", registry.host())
}

fn honest() -> Layer {
    crate::image::estargz(&[File { name: "file", content: ramp(50_000, 1) }], 1 << 20)
}

fn adding(store: &Store, image: &str) -> Child {
    let mut command = store.command("add");
    command.args(["--name", "localhost/other:1", image]).stdin(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// That a store's server has lived all the time, and what it serves with it.
struct Served<'a> {
    podman: Podman,
    store: &'a Store,
    pid: u32,
}

impl<'a> Served<'a> {
    fn new(lab: &Lab, store: &'a Store) -> Self {
        let podman = Podman::new(lab, store);
        store.add(BUSY, &lab.layout("busy"));
        podman.start("user", BUSY);
        Self { podman, store, pid: store.pid() }
    }

    #[track_caller]
    fn is_unharmed(&self) {
        until("the end of the readers", || reader(self.pid).is_none().then_some(()));
        assert!(children(self.pid).iter().all(|(_, state)| *state != 'Z'), "something is left of a process");
        // What the container has not read yet.
        let sum = self.podman.podman(&["exec", "user", "/bin/busybox", "md5sum", "/bin/zcat"]);
        assert!(sum.good(), "{sum}");
        assert_eq!(self.podman.run(&[], BUSY, "echo new").ok(), "new\n");
        let listed: Vec<_> = self.store.list().iter().map(|image| image["served"] == json!(true)).collect();
        assert!(!listed.is_empty() && listed.iter().all(|served| *served), "{:?}", self.store.list());
    }
}

#[test]
fn a_reader_that_is_killed_costs_its_image_and_nothing_else() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let served = Served::new(&lab, &store);
    let (liar, layer) = (Liar::new(), honest());
    let image = push(&liar, &layer);
    silent(&liar, &layer);
    for signal in [Signal::SIGKILL, Signal::SIGABRT] {
        let add = adding(&store, &image);
        let pid = until("a reader", || reader(served.pid));
        send(pid, signal);
        let output = add.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("localhost/other:1") && said.contains(signal.as_str()), "{said}");
        assert!(!output.status.success());
        served.is_unharmed();
    }
    liar.clear_faults();
    store.add("localhost/other:1", &image);
    served.is_unharmed();
}

#[test]
fn a_reader_ends_with_whoever_wants_its_image_and_with_its_server() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::new(&lab) else { return };
    let (liar, layer) = (Liar::new(), honest());
    let image = push(&liar, &layer);
    silent(&liar, &layer);
    let mut add = adding(&store, &image);
    let pid = until("a reader", || reader(store.pid()));
    add.kill().unwrap();
    ends("the end of the command", &mut add);
    until("the end of its reader", || is_gone(pid));
    let mut add = adding(&store, &image);
    let pid = until("a reader", || reader(store.pid()));
    store.end(Signal::SIGKILL);
    until("the end of its reader", || is_gone(pid));
    ends("the end of the command", &mut add);
}

/// At a start images are read in the same way, where nothing of them is cached any more.
#[test]
fn a_reader_that_is_killed_at_a_start_is_replaced() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::unserved(&lab) else { return };
    let registry = support::Registry::new(&lab, Access::Open);
    store.add("localhost/late:1", &registry.push(&lab, "late-zc-new"));
    store.forget_cache();
    registry.freeze();
    let _lines = store.start();
    let pid = store.pid();
    let first = until("a reader", || reader(pid));
    send(first, Signal::SIGKILL);
    let problem = || {
        let list = store.crfs("ls", &["--json"]).ok();
        list.contains("SIGKILL").then_some(())
    };
    until("what became of it", problem);
    registry.thaw();
    until("the image", || (store.list()[0]["served"] == json!(true)).then_some(()));
    assert_eq!(store.pid(), pid);
}

/// Where nothing can be cached the server has what a reader has made all the same, and reads no layer itself.
#[test]
fn without_a_cache_indexes_are_handed_over() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::unserved(&lab) else { return };
    store.without_cache();
    store.serve();
    let podman = Podman::new(&lab, &store);
    store.add(BUSY, &lab.layout("busy"));
    store.add("localhost/two:1", &crate::store::layout(&derived(&lab, "busy", 2)));
    assert_eq!(podman.run(&[], "localhost/two:1", "cat /file-1").ok(), "1");
    for fixture in ["late-zc-new", "late-gz", "late-zst"] {
        let name = format!("localhost/{fixture}:1");
        store.add(&name, &lab.layout(fixture));
        assert!(store.list().iter().all(|image| image["served"] == json!(true)));
        lab.assert_equal(&podman.mount(&name).dir, "late", &[]);
        // They are one image, of other blobs.
        store.crfs("rm", &["--podman-root", podman.graph().to_str().unwrap(), &name]).ok();
    }
}

/// A cgroup with so much memory. What is still in it when it ends goes on in the one above.
struct Little {
    group: PathBuf,
    above: PathBuf,
}

impl Little {
    fn new(bytes: u64) -> Option<Self> {
        for (above, file) in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")] {
            let above = PathBuf::from(above);
            let group = above.join(format!("crfs-e2e-{}-memory", std::process::id()));
            if above.join("cgroup.procs").exists() && fs::create_dir(&group).is_ok() {
                let little = Self { group, above };
                if fs::write(little.group.join(file), bytes.to_string()).is_ok() {
                    return Some(little);
                }
            }
        }
        skip("there is no cgroup with a limit of memory")
    }

    fn put(&self, pid: u32) {
        fs::write(self.group.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Little {
    fn drop(&mut self) {
        let left = fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
        left.lines().for_each(|pid| drop(fs::write(self.above.join("cgroup.procs"), pid)));
        let _ = fs::remove_dir(&self.group);
    }
}

/// Where memory runs out the kernel takes the reader, and the server serves on.
#[test]
fn an_image_that_needs_all_memory_is_refused_and_the_server_lives() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let Some(little) = Little::new(256 << 20) else { return };
    let served = Served::new(&lab, &store);
    let evil = estargz(Evil::Xattrs, Evil::Xattrs.entries(300 << 20));
    let liar = Liar::new();
    let image = push(&liar, &evil);
    little.put(served.pid);
    for _ in 0..2 {
        let add = store.crfs("add", &["--memory-limit=16G", "--name=localhost/evil:1", &image]);
        let said = add.refused();
        assert!(said.contains("localhost/evil:1") && said.contains("SIGKILL") && said.contains("memory"), "{said}");
        served.is_unharmed();
    }
    store.add("localhost/good:1", &push(&liar, &honest()));
    served.is_unharmed();
}
