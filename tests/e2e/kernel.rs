//! What the kernel does with a mount beyond reading it: ACLs, xattrs, holes, file handles, whiteouts under overlayfs, mount namespaces.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::command::until;
use crate::support::lab::CRFS;
use crate::support::lies::Liar;
use crate::support::mount::{Merger, until_gone};
use crate::support::podman::{Podman, Store};
use crate::support::tree::{Entry, push};
use crate::support::{Lab, Overlay, run};

/// What Python says of a path: it has the system calls that this needs.
#[track_caller]
fn python(script: &str, path: &Path) -> String {
    run(Command::new("python3").args(["-c", &format!("import os, sys\np = sys.argv[1]\n{script}")]).arg(path)).ok()
}

/// Opens a file, and a directory, by handles that were made before the kernel forgot all that it could.
const HANDLES: &str = r#"
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
class Handle(ctypes.Structure): _fields_ = [("n", ctypes.c_uint), ("t", ctypes.c_int), ("h", ctypes.c_ubyte * 128)]
def made(path):
    handle, mount = Handle(n=128), ctypes.c_int()
    assert libc.name_to_handle_at(-100, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), 0) == 0, ctypes.get_errno()
    return handle
def opened(handle):
    root = os.open(p, os.O_RDONLY | os.O_DIRECTORY)
    file = libc.open_by_handle_at(root, ctypes.byref(handle), os.O_RDONLY)
    assert file >= 0, os.strerror(ctypes.get_errno())
    return file
def forget(): open("/proc/sys/vm/drop_caches", "w").write("2\n")
file, directory = made(p + "/d/e/a"), made(p + "/d/e")
inode = os.stat(p + "/d/e/a").st_ino
forget()
f = opened(file)
print(os.read(f, 5).decode(), os.fstat(f).st_ino == inode)
forget()
print(*os.listdir(opened(directory)), os.readlink("/proc/self/fd/%d" % opened(directory)) == p + "/d/e")
"#;

#[test]
fn file_handles_outlive_what_the_kernel_remembers() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let image = push(&liar, &[&[Entry::dir("d"), Entry::dir("d/e"), Entry::file("d/e/a", "hello")]]);
    for options in [&[][..], &["--layer", "0"]] {
        let mount = lab.mount(&image, options);
        assert_eq!(python(HANDLES, mount.dir()), "hello True\na True\n");
    }
}

#[test]
fn file_handles_of_a_store_outlive_what_the_kernel_remembers() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let Some(store) = Store::new(&lab) else { return };
    let entries = [Entry::dir("d"), Entry::dir("d/e"), Entry::file("d/e/a", "hello")];
    store.add("localhost/a:1", &push(&liar, &[&entries]));
    let mut layers = fs::read_dir(store.path("overlay")).unwrap().map(|entry| entry.unwrap().path());
    let layer = layers.find(|path| path.file_name().unwrap() != "l").unwrap();
    assert_eq!(python(HANDLES, &layer.join("diff")), "hello True\na True\n");
}

#[test]
fn a_name_that_is_too_long_is_said_to_be() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let mount = lab.mount(&push(&liar, &[&[Entry::dir("d")]]), &[]);
    for (len, errno) in [(255, nix::libc::ENOENT), (256, nix::libc::ENAMETOOLONG), (900, nix::libc::ENAMETOOLONG)] {
        let error = fs::metadata(mount.path("d").join("x".repeat(len))).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(errno), "{len}");
    }
}
