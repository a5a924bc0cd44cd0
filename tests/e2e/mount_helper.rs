//! crfs as the helper of mount(8) and umount(8).

use std::process::Command;

use crate::support::lab::CRFS;
use crate::support::lies::Liar;
use crate::support::tree::{Entry, push};
use crate::support::{Lab, run};

const SUPPORT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/support");

/// In a mount namespace of its own: the helpers have to be in /sbin.
fn unshared() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]);
    command
}

#[test]
fn images_are_mounted_and_unmounted_by_mount_and_fstab() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let image = format!("docker://{}", push(&liar, &[&[Entry::file("f", "hello")]]));
    let mut command = unshared();
    command.args(["sh", &format!("{SUPPORT}/mount-helper.sh"), CRFS, &image]).arg(lab.fresh("mount"));
    run(command.current_dir(lab.fresh("work"))).ok();
}

/// Everybody but the process group of the service manager waits at an autofs while it is mounted over, and nothing is mounted that waits there.
#[test]
fn an_image_is_mounted_over_an_autofs() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let image = format!("docker://{}", push(&liar, &[&[Entry::file("f", "hello")]]));
    let mut command = unshared();
    command.args(["python3", &format!("{SUPPORT}/automount.py"), CRFS, &image]).arg(lab.fresh("mount"));
    run(command.current_dir(lab.fresh("work"))).ok();
}
