//! A store's server comes and goes, as do images: what podman and containers see meanwhile.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::store::{derived, file_layer, layout, read_json};
use crate::support::command::{HANG, send, start};
use crate::support::lab::{CRFS, skip};
use crate::support::podman::{LIMITS, Podman, Store};
use crate::support::registry::Access;
use crate::support::{Lab, Registry, run, until};

const BUSY: &str = "localhost/busy:1";

#[test]
fn a_server_that_is_ended_by_force_breaks_only_what_reads_its_layers() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    store.add(BUSY, &lab.layout("busy"));
    podman.start("user", BUSY);
    podman.podman(&["commit", "-q", "user", "localhost/committed:1"]).ok();
    store.add("localhost/reader:1", &layout(&derived(&lab, "busy", 1)));
    let reader = LateReader::start(&lab, &podman, "localhost/reader:1", "/file-1");
    let links = link_names(&store);
    store.end_by_force();
    let told = reader.reads();
    let is_clear = ["not connected", "I/O error", "Input/output error"].iter().any(|clear| told.contains(clear));
    assert!(told.contains("/file-1") && is_clear, "{told}");

    assert!(fs::metadata(store.path("overlay/l")).is_ok(), "what is below the mount shows");

    let without: [&[&str]; 8] = [
        &["images"],
        &["ps", "-a"],
        &["inspect", "user"],
        &["inspect", BUSY],
        &["image", "exists", BUSY],
        &["logs", "user"],
        &["system", "df"],
        &["tag", "localhost/committed:1", "localhost/committed:2"],
    ];
    for command in without {
        podman.podman(command).ok();
    }
    assert!(podman.image(BUSY).is_some());
    // There is nothing to run it from, and no empty root instead.
    let refused = podman.run(&[], BUSY, "true");
    assert!(!refused.good() && refused.stderr.contains("creating overlay mount"), "{refused}");
    assert!(!podman.podman(&["exec", "user", "/bin/busybox", "md5sum", "/bin/zcat"]).good());
    assert_eq!(store.list()[0]["served"], json!(false));

    store.serve();
    assert_eq!(link_names(&store), links);
    assert_eq!(podman.run(&[], BUSY, "echo again").ok(), "again\n");
    podman.podman(&["stop", "-t", "0", "user"]).ok();
    podman.podman(&["start", "user"]).ok();
    assert_eq!(podman.podman(&["exec", "user", "/bin/busybox", "echo", "here"]).ok(), "here\n");
}

/// A container that reads a file once it is told to.
struct LateReader<'a> {
    podman: &'a Podman,
    fifo: PathBuf,
}

impl<'a> LateReader<'a> {
    fn start(lab: &Lab, podman: &'a Podman, image: &str, file: &str) -> Self {
        let dir = lab.fresh("fifo");
        let fifo = dir.join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // All of the shell is in memory then, also what tells of an error, and it needs no other program.
        let script = format!(
            "/bin/busybox cat /bin/busybox > /dev/null; read x < /missing; echo waiting; read x < /fifo/fifo; \
             read x < {file}; echo \"read: $?\""
        );
        let volume = format!("{}:/fifo", dir.display());
        let command = ["/bin/busybox", "sh", "-c", &script];
        let arguments = [&["run", "-d", "--name", "reader", "-v", &volume][..], &LIMITS, &[image], &command].concat();
        podman.podman(&arguments).ok();
        let reader = Self { podman, fifo };
        until("the container", || reader.log().contains("waiting").then_some(()));
        reader
    }

    fn log(&self) -> String {
        let log = self.podman.podman(&["logs", "reader"]);
        log.stdout + &log.stderr
    }

    /// Tells it to; gives what it said.
    fn reads(&self) -> String {
        run(Command::new("sh").args(["-c", "echo > \"$0\""]).arg(&self.fifo)).ok();
        until("what was read, or why not", || Some(self.log()).filter(|log| log.contains("read: ")))
    }
}

fn link_names(store: &Store) -> Vec<String> {
    let entries = fs::read_dir(store.path("overlay/l")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What is cached is served without its registry, and what cannot be had keeps nothing else from being served.
#[test]
fn images_survive_a_restart_and_a_dead_registry() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    let mut registry = Registry::new(&lab, Access::Open);
    store.add(BUSY, &registry.push(&lab, "busy"));
    let gone = derived(&lab, "big-estargz", 1);
    store.add("localhost/gone:1", &layout(&gone));
    assert_eq!(podman.run(&[], BUSY, "echo cached").ok(), "cached\n");
    registry.stop();
    store.end(Signal::SIGKILL);
    fs::remove_dir_all(&gone).unwrap();

    let ready = store.serve();
    assert!(ready.contains("2 images, 1 of them not yet"), "{ready}");
    assert_eq!(podman.run(&[], BUSY, "echo cached").ok(), "cached\n");
    assert!(podman.image("localhost/gone:1").is_some(), "it is still the store's");
    let listed = store.list().into_iter().find(|image| image["names"][0] == "localhost/gone:1").unwrap();
    assert!(listed["problem"].as_str().unwrap().contains(gone.to_str().unwrap()), "{listed}");
    assert!(!podman.podman(&["run", "--rm", "localhost/gone:1", "/x"]).good());
}

/// A layer that can be had is served whatever its images' other layers are like (one is damaged), and a problem is told of those alone that have it.
#[test]
fn a_layer_below_one_that_is_damaged_is_served() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::unserved(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    let both = derived(&lab, "busy", 1);
    store.add("localhost/both:1", &layout(&both));
    store.add(BUSY, &lab.layout("busy"));
    store.forget_cache();
    let top = both.join("blobs/sha256").join(crfs::blob::Digest::of(&file_layer(1)).hex());
    let bytes = fs::read(&top).unwrap();
    fs::write(&top, vec![7; bytes.len()]).unwrap();

    let ready = store.serve();
    assert!(ready.contains("2 images, 1 of them not yet"), "{ready}");
    assert_eq!(podman.run(&[], BUSY, "echo served").ok(), "served\n");
    let listed = |name: &str| store.list().into_iter().find(|image| image["names"][0] == name).unwrap();
    assert_eq!((&listed(BUSY)["served"], &listed(BUSY)["problem"]), (&json!(true), &json!(null)));
    assert!(listed("localhost/both:1")["problem"].as_str().unwrap().contains("layer 1 ("));

    fs::write(&top, bytes).unwrap();
    store.add("localhost/both:1", &layout(&both));
    let mended = listed("localhost/both:1");
    assert_eq!((&mended["served"], &mended["problem"]), (&json!(true), &json!(null)));
    assert_eq!(podman.run(&[], "localhost/both:1", "cat /file-1").ok(), "1");
}

/// One that takes connections and says nothing is waited for, by its own images.
#[test]
fn a_registry_that_hangs_keeps_no_other_image_closed() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::unserved(&lab) else { return };
    let registry = Registry::new(&lab, Access::Open);
    store.add("localhost/hangs:1", &registry.push(&lab, "late-zc-new"));
    store.add(BUSY, &lab.layout("busy"));
    let layers: Vec<serde_json::Value> = read_json(&store.path("overlay-layers/layers.json"));
    let root = |layer: &serde_json::Value| store.path("overlay").join(layer["id"].as_str().unwrap()).join("diff");
    let (hangs, other) = (root(&layers[0]), root(layers.last().unwrap()));
    store.forget_cache();
    registry.freeze();
    let _lines = store.start();
    until("the image of the other source", || fs::read_dir(&other).is_ok().then_some(()));
    assert!(fs::read_dir(&hangs).is_err());
    registry.thaw();
    until("the image of the registry", || fs::read_dir(&hangs).is_ok().then_some(()));
}

#[test]
fn commands_work_without_a_server() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::unserved(&lab) else { return };
    store.add(BUSY, &lab.layout("busy"));
    store.add("localhost/other:1", &lab.layout("late-zc-new"));
    let podman = Podman::new(&lab, &store);
    assert!(podman.image(BUSY).is_some() && podman.image("localhost/other:1").is_some());
    store.crfs("rm", &["localhost/other:1"]).ok();
    assert!(podman.image("localhost/other:1").is_none());
    let ready = store.serve();
    assert!(ready.ends_with("1 images"), "{ready}");
    assert_eq!(podman.run(&[], BUSY, "echo here").ok(), "here\n");
    let second = run(Command::new(CRFS).args(["store", "serve", "--root"]).arg(store.root())).refused();
    assert!(second.contains("served already"), "{second}");
}

/// `podman tag` and `podman pull` make a record of podman's own of the store's image, which needs the store's layers, and after a tag its manifest.
#[test]
fn an_image_that_podman_has_tagged_or_pulled_stays() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    let registry = Registry::new(&lab, Access::Open);
    let image = registry.push(&lab, "busy");
    let pull = || podman.podman(&["pull", "-q", "--tls-verify=false", &image]).ok();
    let graph = podman.graph();
    let remove = || store.crfs("rm", &["--podman-root", graph.to_str().unwrap(), BUSY]);
    let forget = |name: &str| {
        podman.podman(&["rmi", name]).ok();
        // podman 5 gives its record the names of the store's image, too. podman 4.3 has nothing to remove here, and says so.
        let _removed = podman.podman(&["rmi", BUSY]);
    };
    // With layers of its own it needs nothing of the store.
    pull();
    store.add(BUSY, &lab.layout("busy"));
    remove().ok();
    assert_eq!(podman.run(&[], &image, "echo own").ok(), "own\n");
    podman.podman(&["rmi", &image]).ok();

    store.add(BUSY, &lab.layout("busy"));
    podman.podman(&["tag", BUSY, "localhost/mine:1"]).ok();
    let refused = remove().refused();
    assert!(refused.contains("the image localhost/mine:1") && refused.contains("podman rmi"), "{refused}");
    forget("localhost/mine:1");
    pull();
    let refused = remove().refused();
    assert!(refused.contains(&format!("the image {image}")), "{refused}");
    forget(&image);
    remove().ok();
    assert_eq!(podman.image("localhost/"), None);
}

/// Before the layers of an image that was removed are gone, podman may pull one that stands on them.
#[test]
fn what_podman_needs_of_a_removed_image_is_served_after_a_restart() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    let registry = Registry::new(&lab, Access::Open);
    let image = registry.push_layout(&derived(&lab, "busy", 1), "derived");
    store.crfs("add", &["--full", "--name", BUSY, &lab.layout("busy")]).ok();
    podman.podman(&["images"]).ok();
    store.crfs("rm", &["--podman-root", podman.graph().to_str().unwrap(), BUSY]).ok();
    podman.podman(&["pull", "-q", "--tls-verify=false", &image]).ok();
    store.end(Signal::SIGKILL);
    let ready = store.serve();
    assert!(ready.ends_with("0 images") && store.list().is_empty(), "{ready}");
    assert_eq!(podman.run(&[], &image, "cat /file-1; md5sum /bin/zcat | wc -l").ok(), "11\n");
    podman.podman(&["rmi", &image]).ok();
    store.end(Signal::SIGKILL);
    store.serve();
    assert!(link_names(&store).is_empty(), "nobody needs them any more");
}

/// While images come and go, podman runs another one. (`podman images` may fail then, as it does when podman itself removes an image: it lists all, and
/// looks at each after that.)
#[test]
fn images_come_and_go_while_podman_runs() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    store.add(BUSY, &lab.layout("busy"));
    let changing = layout(&derived(&lab, "busy", 3));
    let done = AtomicBool::new(false);
    let runs = std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            let mut runs = 0;
            while !done.load(Ordering::SeqCst) || runs < 10 {
                assert_eq!(podman.run(&[], BUSY, "cat /etc/hostname > /x; echo right").ok(), "right\n");
                runs += 1;
            }
            runs
        });
        for _ in 0..200 {
            store.add("localhost/changing:1", &changing);
            store.crfs("rm", &["localhost/changing:1"]).ok();
        }
        done.store(true, Ordering::SeqCst);
        running.join().unwrap()
    });
    assert!(runs >= 10, "{runs}");
}

#[test]
fn a_signal_ends_an_idle_server_and_two_a_busy_one() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::new(&lab) else { return };
    let mounted = |store: &Store| {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        mounts.contains(&format!(" {} ", store.path("overlay").display()))
    };
    assert!(mounted(&store));
    store.end(Signal::SIGTERM);
    assert!(!mounted(&store));

    store.serve();
    store.add(BUSY, &lab.layout("busy"));
    let podman = Podman::new(&lab, &store);
    podman.start("user", BUSY);
    send(store.keeper(), Signal::SIGTERM);
    until("the end of the mount", || (!mounted(&store)).then_some(()));
    assert_eq!(podman.podman(&["exec", "user", "/bin/busybox", "echo", "still"]).ok(), "still\n");
    store.end(Signal::SIGTERM);
}

/// As the units of contrib/ want it (sd_notify(3)).
#[test]
fn the_service_manager_is_told_and_the_state_is_where_it_is_told() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::unserved(&lab) else { return };
    let (socket, state) = (lab.path("manager"), lab.path("elsewhere/state"));
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(HANG)).unwrap();
    (store.manager, store.state) = (Some(socket), Some(state.clone()));
    store.serve();
    let mut message = [0; 100];
    let mut heard = || {
        let len = manager.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..len]).into_owned()
    };
    // What it is to keep comes before.
    let ready = std::iter::repeat_with(&mut heard).find(|told| !told.starts_with("FDSTORE=1"));
    assert_eq!(ready, Some(format!("MAINPID={}\nREADY=1\n", store.keeper())));
    store.add(BUSY, &lab.layout("busy"));
    assert!(state.join("store.json").exists() && !store.path("crfs").exists());
    store.end(Signal::SIGTERM);
    assert_eq!(store.list().len(), 1);
}

/// The units of contrib/, with this binary in them.
#[test]
fn systemd_takes_the_units() {
    let Some(lab) = Lab::new() else { return };
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        let _skipped: Option<()> = skip("there is no systemd-analyze: install the package systemd");
        return;
    }
    for (unit, scope) in [("crfs-store.service", "--system"), ("crfs-store-user.service", "--user")] {
        let path = format!("{}/contrib/{unit}", env!("CARGO_MANIFEST_DIR"));
        let text = fs::read_to_string(path).unwrap().replace("/usr/bin/crfs", CRFS);
        let copy = lab.path(unit);
        fs::write(&copy, text).unwrap();
        let runtime = lab.fresh("run");
        let mut command = Command::new("systemd-analyze");
        let verified = run(command.args([scope, "--man=no", "verify"]).arg(&copy).env("XDG_RUNTIME_DIR", runtime));
        assert!(verified.good() && verified.stderr.is_empty(), "{verified}");
    }
}

/// One that starts while another process changes the store waits for it, and podman's locks are waited for.
#[test]
fn whoever_reads_the_lists_is_waited_for() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let reader = Reader::of(&store.path("overlay-images/images.lock"));
    let mut add =
        start(Command::new(CRFS).args(["store", "add", "--root"]).arg(store.root()).arg(lab.layout("late-zc-new")));
    until("the layers are served", || (link_names(&store).len() == 2).then_some(()));
    assert!(add.try_wait().unwrap().is_none(), "the list was changed under a reader");
    reader.ends();
    until("the end of add", || add.try_wait().unwrap().map(|status| assert!(status.success())));
    assert_eq!(store.list().len(), 1);
}

/// podman has the layers' lock for as long as it unpacks one, and others may have it for ever.
#[test]
fn a_server_starts_although_the_lists_are_being_read() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::new(&lab) else { return };
    let podman = Podman::new(&lab, &store);
    store.add(BUSY, &lab.layout("busy"));
    store.end(Signal::SIGKILL);
    let images = store.path("overlay-images/images.json");
    fs::remove_file(&images).unwrap();
    let reader = Reader::of(&store.path("overlay-layers/layers.lock"));
    store.serve();
    assert!(!images.exists(), "the list was changed under a reader");
    reader.ends();
    until("the list", || images.exists().then_some(()));
    assert_eq!(podman.run(&[], BUSY, "echo served").ok(), "served\n");
}

/// Somebody who holds a lock as podman does that reads.
struct Reader(std::process::Child);

impl Reader {
    fn of(lock: &Path) -> Self {
        let script = "import fcntl, sys; f = open(sys.argv[1]); fcntl.lockf(f, fcntl.LOCK_SH); print('locked', flush=True); sys.stdin.read()";
        let mut reader = Command::new("python3");
        reader.args(["-c", script]).arg(lock).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut reader = reader.spawn().unwrap();
        let mut line = [0; 7];
        std::io::Read::read_exact(reader.stdout.as_mut().unwrap(), &mut line).unwrap();
        Self(reader)
    }

    fn ends(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}
