//! crfs without root: everything goes through fusermount3, and the state is below the user's own directories.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::fixtures::fixtures;
use crate::support::lab::CRFS;
use crate::support::{Lab, run};

const SUPPORT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/support");

#[test]
fn an_ordinary_user_mounts_reads_overlays_and_unmounts() {
    let Some(lab) = Lab::new() else { return };
    // The repository may lie where others cannot go.
    let crfs = lab.path("crfs");
    fs::copy(CRFS, &crfs).unwrap();
    let steps = lab.path("ordinary-user.sh");
    fs::copy(format!("{SUPPORT}/ordinary-user.sh"), &steps).unwrap();
    let image = lab.path("image");
    run(Command::new("cp").arg("-rL").arg(lab.dir_of("big-zc-new")).arg(&image)).ok();
    run(Command::new("chmod").args(["-R", "a+rX"]).arg(&image)).ok();
    let expected = lab.path("expected.jsonl");
    fs::copy(fixtures().join("big.expected.jsonl"), &expected).unwrap();
    fs::set_permissions(&expected, fs::Permissions::from_mode(0o644)).unwrap();

    let home = lab.fresh("home");
    let mut command = Command::new("sh");
    command.arg(format!("{SUPPORT}/as-user.sh")).arg(&home).arg(&steps).arg(&crfs);
    run(command.arg(format!("oci:{}:latest", image.display())).arg(&expected)).ok();
}
