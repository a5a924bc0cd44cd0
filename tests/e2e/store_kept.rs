//! A store that outlives the processes that serve it: containers run on.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::faults::layer;
use crate::lying::{Fault, Lie, On};
use crate::readers::drop_caches;
use crate::store::{derived, layout};
use crate::store_readers::push;
use crate::support::command::{ends, run, send};
use crate::support::lab::CRFS;
use crate::support::lies::Liar;
use crate::support::mount::until_gone;
use crate::support::podman::{LIMITS, Podman, Store};
use crate::support::registry::Access;
use crate::support::{Lab, Registry, until};

const BUSY: &str = "localhost/busy:1";

/// A container that reads all of its program again and again, and says what it has read.
struct Reading<'a> {
    podman: &'a Podman,
    dir: PathBuf,
}

impl<'a> Reading<'a> {
    fn start(lab: &Lab, podman: &'a Podman, image: &str) -> Self {
        let dir = lab.fresh("told");
        let script = "while [ ! -e /told/stop ]; do \
             /bin/busybox md5sum /bin/busybox /bin/zcat && /bin/busybox find / -xdev -name missing || echo failed; \
             done > /told/sums 2>&1; echo ended > /told/ended";
        let volume = format!("{}:/told", dir.display());
        let command = ["/bin/busybox", "sh", "-c", script];
        let arguments = [&["run", "-d", "--name", "reading", "-v", &volume][..], &LIMITS, &[image], &command].concat();
        podman.podman(&arguments).ok();
        let reading = Self { podman, dir };
        until("what it reads", || (reading.said().len() > 4).then_some(()));
        reading
    }

    fn said(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join("sums")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until it has read something from its start to its end.
    #[track_caller]
    fn reads_on(&self) {
        let before = self.said().len();
        until("what it reads", || (self.said().len() > before + 4).then_some(()));
    }

    /// It has never read anything but what is there.
    #[track_caller]
    fn ends(self) {
        fs::write(self.dir.join("stop"), "").unwrap();
        until("its end", || fs::metadata(self.dir.join("ended")).ok());
        let said = self.said();
        let sum = |line: &String| line.split_once("  ").map(|(sum, _)| sum.to_owned());
        assert!(said.iter().all(|line| sum(line).is_some_and(|found| Some(found) == sum(&said[0]))), "{said:?}");
        self.podman.podman(&["rm", "-f", "-t", "0", "reading"]).ok();
    }
}

fn number(status: &Value, field: &str) -> u64 {
    status[field].as_u64().unwrap_or_else(|| panic!("no {field} in {status}"))
}

/// The roots of all layers that podman is told of, with their numbers.
fn layers(store: &Store) -> Vec<(String, u64)> {
    let entries = fs::read_dir(store.path("overlay/l")).unwrap();
    let mut found: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::metadata(path).unwrap().ino())
        })
        .collect();
    found.sort();
    found
}

#[test]
fn containers_run_on_when_the_server_of_their_store_is_killed() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    store.add(BUSY, &lab.layout("busy"));
    let reading = Reading::start(&lab, &podman, BUSY);
    podman.start("user", BUSY);
    let (keeper, before) = (store.keeper(), layers(&store));
    for round in 1..=4 {
        drop_caches();
        store.kill_worker();
        reading.reads_on();
        let name = format!("localhost/other{round}:1");
        let id = store.add(&name, &layout(&derived(&lab, "busy", round)));
        assert_eq!(podman.run(&[], &name, "cat /file-0 2> /dev/null; echo new").ok().lines().last(), Some("new"));
        if round > 2 {
            store.crfs("rm", &["--podman-root", podman.graph().to_str().unwrap(), &id[..12]]).ok();
        }
        assert_eq!(podman.podman(&["exec", "user", "/bin/busybox", "echo", "still"]).ok(), "still\n");
    }
    let now = layers(&store);
    assert!(before.iter().all(|layer| now.contains(layer)), "{before:?} {now:?}");
    let status = store.status().unwrap();
    assert_eq!((number(&status, "keeper"), number(&status, "restarts")), (keeper.into(), 4), "{status}");
    assert_eq!(number(&status, "images"), 3, "{status}");
    // Two in a row, of which the first has hardly begun.
    send(store.pid(), Signal::SIGKILL);
    send(store.pid(), Signal::SIGKILL);
    reading.reads_on();
    assert_eq!(podman.run(&[], "localhost/other2:1", "cat /file-1").ok(), "1");
    reading.ends();
}

/// A crfs of its own, which can be replaced.
fn installed(lab: &Lab) -> PathBuf {
    let crfs = lab.path("installed");
    // By another process: what this one has open to write, its children have open as well for a moment.
    run(Command::new("cp").arg(CRFS).arg(&crfs)).ok();
    crfs
}

#[test]
fn an_upgrade_of_a_store_goes_unnoticed() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::unserved(&lab) else { return };
    let crfs = installed(&lab);
    store.program = Some(crfs.clone());
    store.serve();
    let podman = Podman::new(&lab, &store);
    store.add(BUSY, &lab.layout("busy"));
    let reading = Reading::start(&lab, &podman, BUSY);
    let program = |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).unwrap().to_string_lossy().into_owned();
    let new = crfs.with_extension("new");
    run(Command::new("cp").arg(CRFS).arg(&new)).ok();
    fs::rename(&new, &crfs).unwrap();
    let before = store.pid();
    assert!(program(before).ends_with(" (deleted)"));
    drop_caches();
    let said = run(Command::new(CRFS).arg("upgrade").arg(store.root())).ok();
    assert!(said.contains("served by the crfs that is installed now"), "{said}");
    assert_eq!(program(store.other_than(before)), crfs.to_str().unwrap());
    reading.reads_on();
    // With all others, and by a signal as well.
    run(Command::new(CRFS).args(["upgrade", "--all", "--root"]).arg(store.root())).ok();
    let before = store.pid();
    send(store.keeper(), Signal::SIGHUP);
    store.other_than(before);
    store.add("localhost/other:1", &layout(&derived(&lab, "busy", 1)));
    assert_eq!(podman.run(&[], "localhost/other:1", "cat /file-1").ok(), "1");
    reading.ends();

    fs::write(&new, "#!/bin/sh\nexit 3\n").unwrap();
    run(Command::new("chmod").arg("755").arg(&new)).ok();
    fs::rename(&new, &crfs).unwrap();
    let before = store.pid();
    let said = run(Command::new(CRFS).arg("upgrade").arg(store.root())).refused();
    assert!(said.contains("goes on with the server that it has") && said.contains("status 3"), "{said}");
    assert_eq!(store.pid(), before);
}

/// By its records a crfs sees that it makes another tree of a layer than the one before it.
#[test]
fn an_upgrade_that_would_serve_less_is_refused() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    store.add(BUSY, &lab.layout("busy"));
    let reading = Reading::start(&lab, &podman, BUSY);
    let path = store.path("crfs/store.json");
    let mut records: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    for layer in records["layers"].as_array_mut().unwrap() {
        layer["tree"] = json!(format!("sha256:{}", "0".repeat(64)));
    }
    fs::write(&path, records.to_string()).unwrap();
    let before = store.pid();
    let said = run(Command::new(CRFS).arg("upgrade").arg(store.root())).refused();
    assert!(said.contains("cannot open all layers that are in use"), "{said}");
    assert_eq!(store.pid(), before);
    drop_caches();
    reading.reads_on();
    reading.ends();
}

/// Whoever runs from a layer that was replaced, or whose image is gone, runs on.
#[test]
fn what_is_left_of_a_layer_is_served_on() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let add = || store.add("localhost/sink:1", &lab.layout("sink-soci2"));
    add();
    let before = layers(&store);
    let largest = |dir: PathBuf| {
        let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        files
            .filter(|path| path.symlink_metadata().unwrap().is_file())
            .max_by_key(|path| path.metadata().unwrap().len())
    };
    let path = before.iter().find_map(|(link, _)| largest(store.path("overlay/l").join(link))).unwrap();
    let (open, bytes) = (fs::File::open(&path).unwrap(), fs::read(&path).unwrap());
    // What was read whole vouches for more than its zTOC.
    run(Command::new(CRFS).args(["index", "--cache-dir"]).arg(store.cache()).arg(lab.layout("sink-soci2"))).ok();
    add();
    let records = || fs::read_to_string(store.path("crfs/store.json")).unwrap();
    let left = || serde_json::from_str::<Value>(&records()).unwrap()["left"].as_array().unwrap().len();
    assert!(left() > 0 && layers(&store) != before, "nothing was replaced");
    for _ in 0..2 {
        store.kill_worker();
        drop_caches();
        let mut read = vec![0; bytes.len()];
        open.read_exact_at(&mut read, 0).unwrap();
        assert!(read == bytes);
        assert_eq!(open.metadata().unwrap().len(), bytes.len() as u64);
    }
    assert!(left() > 0, "it is open");
}

/// What cannot be opened any more fails, and nothing else; it is there again when it can be.
#[test]
fn a_layer_that_the_next_server_cannot_open_costs_no_other() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    let registry = Registry::new(&lab, Access::Open);
    store.add("localhost/late:1", &registry.push(&lab, "late-zc-new"));
    let late = layers(&store);
    store.add(BUSY, &lab.layout("busy"));
    let reading = Reading::start(&lab, &podman, BUSY);
    for (blob, _) in lab.layers("late-zc-new") {
        fs::remove_dir_all(store.cache().join("v2/layers").join(blob.trim_start_matches("sha256:"))).unwrap();
    }
    registry.freeze();
    drop_caches();
    store.kill_worker();
    reading.reads_on();
    let root = store.path("overlay/l").join(&late[0].0);
    assert!(fs::read_dir(&root).is_err());
    registry.thaw();
    until("the image of the registry", || fs::read_dir(&root).is_ok().then_some(()));
    assert!(late.iter().all(|layer| layers(&store).contains(layer)));
    reading.ends();
}

/// Whoever waits for something that a killed server was at is told so, and the store is as it was.
#[test]
fn a_request_under_way_ends_with_its_server() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let (liar, files) = (Liar::new(), layer("file", 1, 100_000));
    let image = push(&liar, &files);
    store.add(BUSY, &lab.layout("busy"));
    liar.fault(Fault::always(On::Manifests, Lie::Silence));
    let mut command = store.command("add");
    command.args(["--name", "localhost/late:1", &image]).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut adding = command.spawn().unwrap();
    until("the request", || (!liar.requests().is_empty()).then_some(()));
    store.kill_worker();
    let ended = ends("the end of the command", &mut adding);
    let said = std::io::read_to_string(adding.stderr.take().unwrap()).unwrap();
    assert!(!ended.success() && said.contains("ended before it had answered"), "{said}");
    liar.clear_faults();
    assert_eq!(store.list().len(), 1);
    store.add("localhost/late:1", &image);
    assert!(store.list().iter().all(|image| image["served"] == json!(true)), "{:?}", store.list());
}

/// What podman looks at without reading layers is below the mount.
#[test]
fn a_keeper_takes_away_what_nobody_serves_any_more() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::new(&lab) else { return };
    store.add(BUSY, &lab.layout("busy"));
    // The next one adds an image as well, whose stubs are below the mount.
    store.kill_worker();
    store.add("localhost/other:1", &layout(&derived(&lab, "busy", 1)));
    let records = store.path("crfs/store.json");
    let text = fs::read(&records).unwrap();
    fs::write(&records, "none").unwrap();
    send(store.pid(), Signal::SIGKILL);
    let failing = until("word of what is wrong", || store.status().filter(|status| status["state"] == "failing"));
    assert!(failing["last_error"].as_str().unwrap().contains("store.json"), "{failing}");
    store.end_by_force();
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains(store.path("overlay").to_str().unwrap()), "{mounts}");
    assert_eq!(fs::read_dir(store.path("overlay/l")).unwrap().count(), 2);
    fs::write(&records, text).unwrap();
    assert!(store.serve().ends_with("2 images"));
}

#[test]
fn without_its_keeper_a_store_goes_on_as_long_as_its_server() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    store.add(BUSY, &lab.layout("busy"));
    let (keeper, pid) = (store.keeper(), store.pid());
    store.lose_keeper();
    until_gone(keeper);
    until("word that nobody keeps it", || store.status()?["keeper"].is_null().then_some(()));
    assert_eq!(podman.run(&[], BUSY, "echo served").ok(), "served\n");
    send(pid, Signal::SIGKILL);
    until_gone(pid);
    assert_eq!(store.status().unwrap()["state"], "dead");
    store.serve();
    assert_eq!(podman.run(&[], BUSY, "echo again").ok(), "again\n");
}
