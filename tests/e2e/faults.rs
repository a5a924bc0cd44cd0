//! Faults of the machine that crfs runs on: what they do to readers of real mounts. (Those of the network: tests/it/faults.rs.)

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;

use crate::image::{File, Layer, ramp, zstd_chunked};
use crate::lying::{Fault, Lie, On};
use crate::readers::drop_caches;
use crate::support::command::{ends, send, start};
use crate::support::lab::{CRFS, say_skipped};
use crate::support::lies::Liar;
use crate::support::mount::Disk;
use crate::support::registry::Access;
use crate::support::{Lab, Mount, Proxy, Registry, run, until};

const LAZILY: [&str; 4] = ["--whole-layer-below", "0", "--prefetch", "none"];

fn name(prefix: &str, number: usize) -> &'static str {
    format!("{prefix}{number}").leak()
}

/// A layer of so many files of `len` bytes, called `{prefix}{number}`.
pub(crate) fn layer(prefix: &str, files: usize, len: usize) -> Layer {
    let file = |number| File { name: name(prefix, number), content: ramp(len, number) };
    zstd_chunked(&(0..files).map(file).collect::<Vec<_>>(), 1 << 20)
}

/// The bytes that a reader of its own gets, who must come to an end.
#[track_caller]
fn read(path: PathBuf) -> Vec<u8> {
    read_by(Command::new("cat"), path)
}

#[track_caller]
fn read_by(mut program: Command, path: PathBuf) -> Vec<u8> {
    let mut reader = start(program.arg(&path).stdout(Stdio::piped()));
    let output = reader.stdout.take().unwrap();
    let bytes = std::thread::spawn(move || std::io::Read::bytes(output).map(Result::unwrap).collect());
    assert!(ends(&format!("reading {}", path.display()), &mut reader).success());
    bytes.join().unwrap()
}

/// A number of /proc/PID/status, in KiB.
pub(crate) fn memory(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// One for each reader: they are all requests of their own to the kernel, which counts those that it has under way.
const STUCK: usize = 10_000;

#[test]
fn ten_thousand_reads_stuck_on_one_layer_leave_the_others_alone() {
    let Some(lab) = Lab::new() else { return };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let readers = 10_000.min(usize::try_from(hard).unwrap() - 500);
    let liar = Liar::new();
    let (stuck, others) = (layer("stuck", STUCK + 1, 100), layer("other", 3, 50_000));
    let mount = lab.mount(&liar.push(&[&stuck, &others]), &LAZILY);
    assert_eq!(read(mount.path("other0")), ramp(50_000, 0));
    liar.fault(Fault::always(On::Blobs, Lie::Silence).about(&stuck.digest().to_string()));

    let begun = Arc::new(AtomicUsize::new(0));
    let wrong = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..readers)
        .map(|number| {
            let (path, begun, wrong) =
                (mount.path(name("stuck", number % STUCK)), Arc::clone(&begun), Arc::clone(&wrong));
            let work = move || {
                begun.fetch_add(1, Ordering::SeqCst);
                let right = fs::read(path).is_ok_and(|bytes| bytes == ramp(100, number % STUCK));
                wrong.fetch_or(!right, Ordering::SeqCst);
            };
            std::thread::Builder::new().stack_size(64 << 10).spawn(work).unwrap()
        })
        .collect();
    until("all readers", || (begun.load(Ordering::SeqCst) == readers).then_some(()));
    let connection = Connection::of(&lab, &mount);
    until("all reads at the kernel", || (connection.waiting() >= STUCK).then_some(()));

    drop_caches();
    assert_eq!(read(mount.path("other0")), ramp(50_000, 0), "cached");
    assert_eq!(read(mount.path("other1")), ramp(50_000, 1), "not cached, of another layer");
    // Where only few pages are asked for, the kernel does not fall back to a request that has no limit.
    let mut first_byte = Command::new("head");
    first_byte.args(["-c", "1"]);
    assert_eq!(read_by(first_byte, mount.path("other2")), ramp(1, 2), "one byte of another layer");
    assert_eq!(fs::read_dir(mount.dir()).unwrap().count(), STUCK + 4, "a listing");
    let mut late = start(Command::new("cat").arg(mount.path(name("stuck", STUCK))));
    until("one reader more at the kernel", || (connection.waiting() > STUCK).then_some(()));
    send(late.id(), Signal::SIGKILL);
    ends("a reader that was killed beside them", &mut late);
    let used = memory(mount.pid(), "VmHWM");
    assert!(used < 200 << 10, "the server took {used} KiB");

    liar.clear_faults();
    liar.restart();
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(!wrong.load(Ordering::SeqCst), "a read that was stuck failed, or was wrong");
}

/// The kernel's side of a mount, as fusectl shows it.
pub(crate) struct Connection {
    waiting: PathBuf,
    _fusectl: Disk,
}

impl Connection {
    pub(crate) fn of(lab: &Lab, mount: &Mount) -> Self {
        let device = nix::sys::stat::stat(mount.dir()).unwrap().st_dev;
        let fusectl = Disk::of_type(lab, "fusectl", None);
        let waiting = fusectl.dir().join(nix::sys::stat::minor(device).to_string()).join("waiting");
        Self { waiting, _fusectl: fusectl }
    }

    pub(crate) fn waiting(&self) -> usize {
        fs::read_to_string(&self.waiting).unwrap().trim().parse().unwrap()
    }
}

#[test]
fn a_full_cache_disk_is_not_seen() {
    let Some(lab) = Lab::new() else { return };
    for size in ["64k", "1m", "6m"] {
        let disk = Disk::new(&lab, size);
        let mount = lab.mount_with(&lab.layout("big-zc-new"), disk.dir(), &LAZILY);
        lab.assert_equal(mount.dir(), "big", &[]);
        lab.assert_equal(mount.dir(), "big", &[]);
        assert_eq!(mount.counter("errors"), 0, "{size}");
        mount.umount().ok();
        // What did fit is not wrong for the next one.
        let mount = lab.mount_with(&lab.layout("big-zc-new"), disk.dir(), &LAZILY);
        lab.assert_equal(mount.dir(), "big", &[]);
        mount.umount().ok();
    }
}

/// A disk whose second half is gone, so that reads there are I/O errors: a filesystem in a file that is cut while it is mounted.
#[test]
fn a_cache_disk_that_fails_is_not_seen() {
    let Some(lab) = Lab::new() else { return };
    if !Path::new("/dev/loop-control").exists() {
        return say_skipped("there are no loop devices");
    }
    let (file, disk) = (lab.path("disk"), lab.fresh("disk"));
    fs::File::create(&file).unwrap().set_len(400 << 20).unwrap();
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&file)).ok();
    run(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(&disk)).ok();
    let disk = Disk::at(disk);
    let mount = lab.mount_with(&lab.layout("big-zc-new"), disk.dir(), &LAZILY);
    lab.assert_equal(mount.dir(), "big", &[]);
    let len = |path: &Path| fs::metadata(path).map(|metadata| metadata.blocks() * 512).unwrap_or(0);
    assert!(files(disk.dir()).iter().map(|path| len(path)).sum::<u64>() > 8 << 20, "it was cached");
    nix::unistd::sync();
    drop_caches();
    fs::File::options().write(true).open(&file).unwrap().set_len(4 << 20).unwrap();
    assert!(files(disk.dir()).iter().any(|path| fs::read(path).is_err()), "the disk does not fail");
    drop_caches();
    lab.assert_equal(mount.dir(), "big", &[]);
    assert_eq!(mount.counter("errors"), 0);
    mount.umount().ok();
}

/// All files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let below = |path: PathBuf| if path.is_dir() { files(&path) } else { vec![path] };
    entries.flat_map(|entry| below(entry.path())).collect()
}

/// Mounts under limits of the process (prlimit(1)).
#[track_caller]
fn limited(lab: &Lab, limit: &str, image: &str, cache: &Path) -> Mount {
    let dir = lab.fresh("mount");
    let mut command = Command::new("prlimit");
    command.arg(limit).arg(CRFS).arg("mount").arg("--cache-dir").arg(cache).args(LAZILY).arg(image).arg(&dir);
    let line = run(&mut command).ok();
    Mount::new(dir, line)
}

#[test]
fn a_limit_of_file_sizes_is_not_seen() {
    let Some(lab) = Lab::new() else { return };
    let mount = limited(&lab, "--fsize=100000", &lab.layout("big-zc-new"), &lab.fresh("cache"));
    lab.assert_equal(mount.dir(), "big", &[]);
    assert_eq!(mount.counter("errors"), 0);
}

#[test]
fn a_server_takes_all_descriptors_that_it_may_have() {
    let Some(lab) = Lab::new() else { return };
    let mount = limited(&lab, "--nofile=64:4000", &lab.layout("late-zc-new"), &lab.fresh("cache"));
    let limits = fs::read_to_string(format!("/proc/{}/limits", mount.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(line.split_whitespace().nth(3), Some("4000"), "{line}");
}

/// Two descriptors a layer for the cache, and more for connections: with too few of them the cache is what is done without.
#[test]
fn too_few_descriptors_are_not_seen() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let layers: Vec<_> = (0..40).map(|number| layer(name("layer", number), 2, 10_000)).collect();
    let image = liar.push(&layers.iter().collect::<Vec<_>>());
    let mount = limited(&lab, "--nofile=80:80", &image, &lab.fresh("cache"));
    for number in 0..40 {
        for file in 0..2 {
            assert_eq!(read(mount.path(&format!("layer{number}{file}"))), ramp(10_000, file));
        }
    }
    assert_eq!(mount.counter("errors"), 0);
}

/// Two servers with one empty cache, and readers in both.
#[test]
fn two_servers_with_one_empty_cache_ask_for_no_byte_more_than_twice() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    let proxy = Proxy::new(registry.port());
    let (image, cache) = (proxy.through(&registry.push(&lab, "big-zc-new")), lab.fresh("cache"));
    let mounts = [lab.mount_with(&image, &cache, &LAZILY), lab.mount_with(&image, &cache, &LAZILY)];
    let before = proxy.blobs().len();
    std::thread::scope(|scope| {
        for mount in &mounts {
            scope.spawn(|| lab.assert_equal(mount.dir(), "big", &[]));
        }
    });
    let mut edges: Vec<(u64, i32)> = Vec::new();
    for (first, last) in proxy.blobs()[before..].iter().map(|asked| asked.range.unwrap()) {
        edges.extend([(first, 1), (last + 1, -1)]);
    }
    edges.sort_unstable();
    let mut open = 0;
    for (at, change) in edges {
        open += change;
        assert!(open <= 2, "byte {at} was asked for {open} times");
    }
}
