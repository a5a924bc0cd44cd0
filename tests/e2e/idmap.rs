//! An id-mapped clone of a mount shows mapped owners: what containers with user namespaces are given.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use crate::support::mount::Merger;
use crate::support::{Lab, Mount, Overlay, run};

#[test]
fn owners_are_mapped() {
    let Some(lab) = Lab::new() else { return };
    let mount = lab.mount(&lab.layout("sink-zc-new"), &[]);
    let clone = lab.fresh("clone");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/support/idmap.py");
    run(Command::new("python3").arg(script).arg(mount.dir()).arg(&clone).args(["100000", "65536"])).ok();
    let clone = Mount::new(clone, String::new());

    let root = fs::metadata(mount.dir()).unwrap();
    let mapped = fs::metadata(clone.dir()).unwrap();
    assert_eq!((root.uid(), root.gid()), (7, 11), "the fixture's root");
    assert_eq!((mapped.uid(), mapped.gid()), (100_007, 100_011));
    let file = "etc/passwd";
    assert_eq!(fs::metadata(clone.path(file)).unwrap().uid(), 100_000);
    assert_eq!(fs::read(clone.path(file)).unwrap(), fs::read(mount.path(file)).unwrap());

    let overlay = Overlay::new(&lab, Merger::Kernel, &[clone.dir()]);
    assert_eq!(fs::metadata(overlay.path(file)).unwrap().uid(), 100_000);
}
