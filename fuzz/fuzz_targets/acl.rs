#![no_main]
//! An ACL: crfs says of it what the kernel makes of it. The kernel is asked by setxattr(2) of a file in $TMPDIR.

use std::fs::{File, Permissions, set_permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use crfs::fs::read_acl_for_fuzzing as read;
use libfuzzer_sys::fuzz_target;
use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::io::Errno;

const NAME: &str = "system.posix_acl_access";

fuzz_target!(|acl: &[u8]| {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("file");
    File::create(&path).expect("a file");
    set_permissions(&path, Permissions::from_mode(0)).expect("a file of ours");
    let expected = match setxattr(&path, NAME, acl, XattrFlags::empty()) {
        Ok(()) => Ok((has_acl(&path), path.metadata().expect("a file of ours").mode() & 0o777)),
        // A version that it does not know: nothing happens.
        Err(Errno::OPNOTSUPP) => Ok((false, 0)),
        Err(error) => Err(error),
    };
    match (read(acl), expected) {
        (Ok((is_there, mode)), Ok(expected)) => {
            assert_eq!((is_there, u32::from(mode.unwrap_or(0))), expected);
        }
        (Err(_), Err(_)) => {}
        (ours, kernels) => panic!("crfs: {ours:?}, the kernel: {kernels:?}"),
    }
});

fn has_acl(path: &Path) -> bool {
    getxattr(path, NAME, &mut [0; 1 << 16][..]).is_ok()
}
