//! First mounts of plain layers, as processes: how long they may take, what they leave behind when they are interrupted, and how much memory
//! a layer that is far larger than its blob can take.

use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{fs, io};

use nix::sys::signal::Signal;

use crate::image::{File, Layer, gzip, noise, plain, ramp, tar, tar_entry};
use crate::lying::{Fault, Lie, On};
use crate::support::command::{ends, send, start};
use crate::support::lab::CRFS;
use crate::support::lies::Liar;
use crate::support::{Lab, until};

const MIB: usize = 1 << 20;

fn layer(name: &'static str, content: Vec<u8>) -> Layer {
    plain(gzip(&tar(&[File { name, content }])))
}

/// Bytes of `layer` in slow motion: 64 KiB in each `pause`.
fn slowly(liar: &Liar, layer: &Layer, pause: Duration) {
    liar.fault(Fault::always(On::Blobs, Lie::Slow(64 << 10, pause)).about(&layer.digest().to_string()));
}

/// Whether a cache has an index of a layer.
fn has_index(cache: &Path, layer: &Layer) -> bool {
    cache.join(crfs::cache::LAYOUT).join("layers").join(layer.digest().hex()).join("own/index").exists()
}

#[test]
fn the_mount_deadline_does_not_count_time_in_which_bytes_come() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let slow = layer("file", noise(4 * MIB, 1));
    let image = liar.push(&[&slow]);
    // Some 3 s in all, of which no part is as long as the deadline.
    slowly(&liar, &slow, Duration::from_millis(50));
    let mount = lab.mount(&image, &["--mount-deadline", "1500ms", "--whole-layer-below", "0"]);
    assert_eq!(fs::read(mount.path("file")).unwrap(), noise(4 * MIB, 1));
}

#[test]
fn a_mount_that_is_interrupted_keeps_the_layers_that_were_complete() {
    let Some(lab) = Lab::new() else { return };
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let liar = Liar::new();
        let (quick, slow) = (layer("quick", ramp(9000, 1)), layer("slow", noise(4 * MIB, 2)));
        let (image, cache, dir) = (liar.push(&[&quick, &slow]), lab.fresh("cache"), lab.fresh("mount"));
        slowly(&liar, &slow, Duration::from_millis(500));
        let options = ["--foreground", "--whole-layer-below", "0", "--cache-dir", cache.to_str().unwrap(), &image];
        let mut crfs = start(Command::new(CRFS).arg("mount").args(options).arg(&dir));
        until("the index of the first layer", || has_index(&cache, &quick).then_some(()));
        until("some of the second layer", || (liar.sent(&slow.digest()) > 512 << 10).then_some(()));
        send(crfs.id(), signal);
        assert!(!ends("the end of crfs mount", &mut crfs).success());
        assert!(fs::read_dir(&dir).unwrap().next().is_none() && !has_index(&cache, &slow));

        liar.clear_faults();
        let before = liar.sent(&quick.digest());
        let mount = lab.mount_with(&image, &cache, &["--whole-layer-below", "0"]);
        assert_eq!(fs::read(mount.path("quick")).unwrap(), ramp(9000, 1));
        assert_eq!(fs::read(mount.path("slow")).unwrap(), noise(4 * MIB, 2));
        assert_eq!(liar.sent(&quick.digest()), before, "{signal}");
        // What the first one had of the second layer is not in the way.
        assert_eq!(lab.crfs(&["cache", "verify", "--cache-dir", cache.to_str().unwrap()]).status, Some(0));
    }
}

/// The largest resident set that a process has had, in bytes.
fn peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn zeros(mebibytes: usize, sink: &mut dyn Write) -> io::Result<()> {
    sink.write_all(&tar_entry("zeros", mebibytes * MIB, &[]))?;
    let part = vec![0; MIB];
    (0..mebibytes).try_for_each(|_| sink.write_all(&part))?;
    sink.write_all(&tar_entry("after", 5, b"after"))?;
    sink.write_all(&[0; 1024])
}

/// A thousand times larger than its blob, and than what the cache may take.
#[test]
fn a_layer_that_is_far_larger_than_its_blob_takes_no_more_memory_or_disk() {
    let Some(lab) = Lab::new() else { return };
    const SIZE: usize = 1024;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zeros(SIZE, &mut encoder).unwrap();
    let gzip = plain(encoder.finish().unwrap());
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    zeros(SIZE, &mut encoder).unwrap();
    let zstd = plain(encoder.finish().unwrap());
    for (layer, limit) in [(gzip, "64M"), (zstd, "64M")] {
        let liar = Liar::new();
        let (image, cache) = (liar.push(&[&layer]), lab.fresh("cache"));
        let options = ["--cache-size", limit, "--prefetch", "none"];
        let mount = lab.mount_with(&image, &cache, &options);
        let memory = peak(mount.pid());
        assert!(memory < 200 << 20, "{} MiB resident", memory >> 20);
        assert_eq!(fs::read(mount.path("after")).unwrap(), b"after");
        let mut file = fs::File::open(mount.path("zeros")).unwrap();
        let mut part = vec![1; MIB];
        file.read_exact(&mut part).unwrap();
        assert!(part.iter().all(|byte| *byte == 0) && file.metadata().unwrap().len() == (SIZE * MIB) as u64);
        let memory = peak(mount.pid());
        assert!(memory < 300 << 20, "{} MiB resident", memory >> 20);
        let used = run_du(&cache);
        assert!(used <= 64 << 20, "{} MiB in the cache", used >> 20);
    }
}

fn run_du(path: &Path) -> u64 {
    let text = crate::support::run(Command::new("du").arg("-s").arg("--block-size=1").arg(path)).ok();
    text.split_whitespace().next().unwrap().parse().unwrap()
}
