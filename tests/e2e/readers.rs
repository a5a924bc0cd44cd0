//! Many readers of one thing, and readers that die.

use std::fs;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use crate::support::command::{ends, send, start};
use crate::support::registry::Access;
use crate::support::{Lab, Mount, Proxy, Registry, until};

const LAZILY: [&str; 4] = ["--whole-layer-below", "0", "--prefetch", "none"];
const LARGE: &str = "big/ramp-8400953";

fn sum(mount: &Mount, name: &str) -> Child {
    start(Command::new("sha256sum").arg(mount.path(name)).stdout(Stdio::piped()).stderr(Stdio::piped()))
}

/// Waits for a reader and gives the digest that it computed.
#[track_caller]
fn digest(mut reader: Child) -> String {
    ends("the end of sha256sum", &mut reader);
    let output = reader.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().trim_start_matches('\\').to_owned()
}

#[test]
fn sixty_four_processes_read_one_cold_file_and_no_byte_is_sent_twice() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    for fixture in ["big-zc-new", "big-estargz", "big-zc-stargz"] {
        let proxy = Proxy::new(registry.port());
        let mount = lab.mount(&proxy.through(&registry.push(&lab, fixture)), &LAZILY);
        // The tail that was read for the TOC may hold some of the contents as well; from here on nothing is asked for twice.
        let before = proxy.blobs().len();

        let readers: Vec<_> = (0..64).map(|_| sum(&mount, LARGE)).collect();
        let expected = lab.expected("big", &format!("/{LARGE}"), "sha256");
        for reader in readers {
            assert_eq!(digest(reader), expected.as_str().unwrap());
        }

        let mut ranges: Vec<_> = proxy.blobs()[before..].iter().map(|asked| asked.range.unwrap()).collect();
        assert!(!ranges.is_empty(), "{fixture}: nothing was fetched");
        ranges.sort_unstable();
        let apart = ranges.windows(2).all(|pair| pair[0].1 < pair[1].0);
        assert!(apart, "{fixture}: asked for twice: {ranges:?}");
    }
}

#[test]
fn a_waiting_reader_can_be_killed_and_its_fetch_is_kept() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    let proxy = Proxy::new(registry.port());
    let mount = lab.mount(&proxy.through(&registry.push(&lab, "big-zc-new")), &LAZILY);
    registry.freeze();
    let before = proxy.blobs().len();
    let mut reader = sum(&mount, LARGE);
    until("the reader's request", || (proxy.blobs().len() > before).then_some(()));
    assert!(reader.try_wait().unwrap().is_none(), "the reader did not wait");

    send(reader.id(), Signal::SIGKILL);
    ends("the end of a killed reader", &mut reader);
    assert!(fs::symlink_metadata(mount.path("big/after")).is_ok(), "metadata must not wait");

    registry.thaw();
    assert_eq!(digest(sum(&mount, LARGE)), lab.expected("big", &format!("/{LARGE}"), "sha256").as_str().unwrap());
}

#[test]
fn readers_that_wait_for_one_layer_do_not_keep_others_from_cached_data() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    let mount = lab.mount(&registry.push(&lab, "big-zc-new"), &LAZILY);
    let cached = fs::read(mount.path("big/after")).unwrap();
    registry.freeze();
    let mut waiting: Vec<_> = (0..64).map(|_| sum(&mount, LARGE)).collect();
    drop_caches();
    let mut reader = start(Command::new("cat").arg(mount.path("big/after")).stdout(Stdio::piped()));
    ends("reading cached data while others wait", &mut reader);
    assert_eq!(reader.wait_with_output().unwrap().stdout, cached);
    for reader in &mut waiting {
        send(reader.id(), Signal::SIGKILL);
        ends("the end of a killed reader", reader);
    }
    registry.thaw();
}

/// Lets the kernel forget what it has cached, so that the next read comes to crfs.
pub(crate) fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}
