//! What the kernel does with a mount beyond reading it: ACLs, xattrs, holes, file handles and whiteouts under overlayfs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::lies::Liar;
use crate::support::mount::Merger;
use crate::support::podman::{Podman, Store};
use crate::support::tree::{Entry, push};
use crate::support::{Lab, Overlay, run};

/// A POSIX ACL of tags, permissions and ids as its xattr has it (acl(5)).
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let entries = entries.iter().flat_map(|(tag, permissions, id)| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    });
    [2, 0, 0, 0].into_iter().chain(entries).collect()
}

const OWNER: (u16, u16, u32) = (1, 6, u32::MAX);
const OWNING_GROUP: (u16, u16, u32) = (4, 0, u32::MAX);
const OTHERS: (u16, u16, u32) = (0x20, 0, u32::MAX);

/// User 1000 may read, and the owning group, 7, may do nothing, although the mode's bits of the group say otherwise.
fn one_user() -> Vec<u8> {
    acl(&[OWNER, (2, 4, 1000), OWNING_GROUP, (0x10, 7, u32::MAX), OTHERS])
}

/// What Python says of a path: it has the system calls that this needs.
#[track_caller]
fn python(script: &str, path: &Path) -> String {
    run(Command::new("python3").args(["-c", &format!("import os, sys\np = sys.argv[1]\n{script}")]).arg(path)).ok()
}

/// The names of its xattrs, each of which could be read.
#[track_caller]
fn xattrs(path: &Path) -> String {
    let script = "n = os.listxattr(p, follow_symlinks=False)\nfor x in n: os.getxattr(p, x, follow_symlinks=False)\nprint(*sorted(n))";
    python(script, path).trim_end().to_owned()
}

#[track_caller]
fn may_read(path: &Path, user: u32, group: u32) -> bool {
    let (user, group) = (format!("--reuid={user}"), format!("--regid={group}"));
    let mut command = Command::new("setpriv");
    command.args([&user, &group, "--clear-groups", "test", "-r"]).arg(path.file_name().unwrap());
    // Relative, since the way there may be closed to others.
    run(command.current_dir(path.parent().unwrap())).good()
}

/// Who may read a file of [`one_user`].
#[track_caller]
fn is_enforced(path: &Path) {
    assert!(
        may_read(path, 1000, 1000) && !may_read(path, 2000, 7) && !may_read(path, 2000, 2000),
        "{}",
        path.display()
    );
}

fn with_acls() -> Vec<Entry> {
    let access = "system.posix_acl_access";
    vec![
        Entry::file("acl", "x").mode(0o670).gid(7).xattr(access, one_user()),
        // The mode contradicts the ACL, which is what counts where podman unpacks it.
        Entry::file("other-mode", "x").mode(0o604).gid(7).xattr(access, one_user()),
        // No more than a mode can say.
        Entry::file("bits", "x").mode(0o600).xattr(access, acl(&[OWNER, (4, 4, u32::MAX), (0x20, 4, u32::MAX)])),
        Entry::dir("closed")
            .mode(0o770)
            .gid(7)
            .xattr(access, acl(&[(1, 7, 0), (2, 5, 1000), OWNING_GROUP, (0x10, 7, 0), OTHERS])),
        Entry::file("closed/in", "x"),
        Entry::dir("heirs").mode(0o777).xattr("system.posix_acl_default", one_user()),
        Entry::symlink("link", "acl").xattr(access, one_user()),
        Entry::fifo("pipe").xattr("system.posix_acl_default", one_user()),
    ]
}

#[test]
fn acls_are_enforced() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let image = push(&liar, &[&with_acls()]);
    for options in [&[][..], &["--layer", "0"]] {
        let mount = lab.mount(&image, options);
        for name in ["acl", "other-mode"] {
            is_enforced(&mount.path(name));
            assert_eq!(fs::metadata(mount.path(name)).unwrap().mode() & 0o7777, 0o670, "{name}");
        }
        assert!(may_read(&mount.path("closed/in"), 1000, 1000) && !may_read(&mount.path("closed/in"), 2000, 7));
        assert_eq!(xattrs(&mount.path("acl")), "system.posix_acl_access");
        assert_eq!(
            (xattrs(&mount.path("bits")), fs::metadata(mount.path("bits")).unwrap().mode() & 0o777),
            (String::new(), 0o644)
        );
        assert_eq!((xattrs(&mount.path("link")), xattrs(&mount.path("pipe"))), (String::new(), String::new()));

        let merged = Overlay::new(&lab, Merger::Kernel, &[mount.dir()]);
        is_enforced(&merged.path("acl"));
        // A copy-up takes the ACL with it, and a new file inherits the default one.
        fs::File::options().append(true).open(merged.path("acl")).unwrap();
        is_enforced(&merged.path("acl"));
        fs::write(merged.path("heirs/new"), "x").unwrap();
        assert_eq!(xattrs(&merged.path("heirs/new")), "system.posix_acl_access");
        assert!(may_read(&merged.path("heirs/new"), 1000, 1000) && !may_read(&merged.path("heirs/new"), 2000, 7));
    }
}

/// The ids in an ACL are mapped as owners are.
#[test]
fn acls_are_mapped_with_their_mount() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let mount = lab.mount(&push(&liar, &[&with_acls()]), &[]);
    let clone = lab.fresh("clone");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/support/idmap.py");
    run(Command::new("python3").arg(script).arg(mount.dir()).arg(&clone).args(["100000", "65536"])).ok();
    let clone = crate::support::Mount::new(clone, String::new());
    let file = clone.path("acl");
    assert!(may_read(&file, 101_000, 101_000) && !may_read(&file, 1000, 1000) && !may_read(&file, 102_000, 100_007));
}

#[test]
fn acls_are_enforced_in_a_store() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let liar = Liar::new();
    store.add("localhost/a:1", &push(&liar, &[&[Entry::file("before", "x")]]));
    let id = store.add("localhost/b:1", &push(&liar, &[&[Entry::file("below", "x")], &with_acls()]));
    let podman = Podman::new(&lab, &store);
    let mounted = podman.mount(&id);
    is_enforced(&mounted.dir.join("acl"));
    is_enforced(&mounted.dir.join("other-mode"));
}

#[test]
fn an_acl_that_the_kernel_would_refuse_is_refused_by_name() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let whole = one_user();
    for (what, value) in
        [("cut", whole[..whole.len() - 3].to_vec()), ("no mask", acl(&[OWNER, (2, 4, 7), OWNING_GROUP, OTHERS]))]
    {
        let image = push(&liar, &[&[Entry::dir("d"), Entry::file("d/f", "x").xattr("system.posix_acl_access", value)]]);
        let refused = lab.try_mount(&image, &lab.fresh("cache"), &[]).err().unwrap().refused();
        assert!(refused.contains("\"d/f\"") && refused.contains("system.posix_acl_access"), "{what}: {refused}");
    }
}

#[test]
fn xattrs_that_no_filesystem_could_have_are_not_shown() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let odd = |entry: Entry| {
        ["user.x", "system.x", "other.x", "security.capability", "trusted.x"]
            .iter()
            .fold(entry, |entry, name| entry.xattr(name, "x"))
    };
    let capability = [&0x0200_0001_u32.to_le_bytes()[..], &[0, 4, 0, 0], &[0; 12]].concat();
    let image = push(
        &liar,
        &[&[
            odd(Entry::symlink("link", "file")),
            odd(Entry::fifo("pipe")),
            odd(Entry::file("file", "x")),
            odd(Entry::dir("dir")),
            Entry::file("able", "x").xattr("security.capability", capability),
        ]],
    );
    let mount = lab.mount(&image, &[]);
    let merged = Overlay::new(&lab, Merger::Kernel, &[mount.dir()]);
    for (name, shown) in [
        ("link", "trusted.x"),
        ("pipe", "trusted.x"),
        ("file", "trusted.x user.x"),
        ("dir", "trusted.x user.x"),
        ("able", "security.capability"),
    ] {
        assert_eq!(xattrs(&mount.path(name)), shown, "{name}");
        run(Command::new("chown").args(["-h", "1:1"]).arg(merged.path(name))).ok();
    }
}

/// The names in a directory, each of which is there.
#[track_caller]
fn names(dir: &Path) -> String {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    for name in &names {
        fs::symlink_metadata(dir.join(name)).unwrap_or_else(|error| panic!("{}: {error}", dir.join(name).display()));
    }
    names.join(" ".as_ref()).into_string().unwrap()
}

fn layers_with_ghosts() -> [Vec<Entry>; 3] {
    let empty = |name| Entry::file(name, "");
    [
        vec![
            Entry::dir("d"),
            empty("d/a"),
            empty("d/b"),
            Entry::dir("m"),
            empty("m/gone"),
            empty("m/stays"),
            Entry::dir("o"),
            empty("o/x"),
        ],
        vec![
            Entry::dir("o"),
            empty("o/.wh..wh..opq"),
            empty("o/.wh.x"),
            empty("o/y"),
            Entry::dir("new"),
            empty("new/.wh.z"),
            empty("new/q"),
        ],
        vec![
            Entry::dir("d"),
            empty("d/.wh..wh..opq"),
            empty("d/.wh.a"),
            empty("d/c"),
            empty("m/.wh.gone"),
            empty("m/.wh.none"),
            Entry::dir("last"),
            Entry::dir("last/deep"),
            empty("last/deep/.wh.z"),
        ],
    ]
}

#[track_caller]
fn is_merged(root: &Path) {
    let shown = ["d", "m", "o", "new", "last/deep"].map(|dir| names(&root.join(dir)));
    assert_eq!(shown, ["c", "stays", "y", "q", ""]);
}

/// overlayfs lists a whiteout as a name that is not there, in a directory that it does not merge.
#[test]
fn whiteouts_that_hide_nothing_leave_no_ghosts() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let layers = layers_with_ghosts();
    let image = push(&liar, &layers.each_ref().map(Vec::as_slice));
    for merger in [Merger::Kernel, Merger::FuseOverlayfs] {
        // Each with a cache of its own, the highest first: none of them knows the others.
        let mounts = ["2", "1", "0"].map(|layer| lab.mount(&image, &["--layer", layer]));
        let lowers: Vec<_> = mounts.iter().rev().map(crate::support::Mount::dir).collect();
        is_merged(Overlay::new(&lab, merger, &lowers).dir());
        assert!(fs::symlink_metadata(mounts[0].path("m/gone")).is_ok());
    }
}

#[test]
fn a_store_has_no_ghosts() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::new(&lab) else { return };
    let (liar, layers) = (Liar::new(), layers_with_ghosts());
    let id = store.add("localhost/a:1", &push(&liar, &layers.each_ref().map(Vec::as_slice)));
    let look = |store: &Store| is_merged(&Podman::new(&lab, store).mount(&id).dir);
    look(&store);
    store.end(nix::sys::signal::Signal::SIGTERM);
    store.serve();
    look(&store);
}

/// A file of 1 TiB that has a MiB at its start, and 4 KiB in the middle (GNU tar's sparse format 1.0, and the old one).
#[test]
fn holes_are_holes() {
    let Some(lab) = Lab::new() else { return };
    let (size, middle) = (1_u64 << 40, 1_u64 << 39);
    let map = format!("3\n0\n1048576\n{middle}\n4096\n{size}\n0\n");
    let mut content = map.into_bytes();
    content.resize(512, 0);
    content.resize(512 + (1 << 20) + 4096, b'x');
    let sparse = Entry::file("GNUSparseFile.0/sparse", content)
        .record("GNU.sparse.major", "1")
        .record("GNU.sparse.minor", "0")
        .record("GNU.sparse.name", "sparse")
        .record("GNU.sparse.realsize", size.to_string());
    let liar = Liar::new();
    let image = push(&liar, &[&[sparse, Entry::file("dense", vec![b'y'; 10_000])]]);
    for options in [&[][..], &["--layer", "0"]] {
        let mount = lab.mount(&image, options);
        let merged = Overlay::new(&lab, Merger::Kernel, &[mount.dir()]);
        let file = |root: &Path, name: &str| fs::metadata(root.join(name)).unwrap();
        assert_eq!((file(mount.dir(), "sparse").len(), file(mount.dir(), "sparse").blocks()), (size, 2056));
        assert_eq!(file(mount.dir(), "dense").blocks(), 20);
        let seeks = "f = os.open(p, os.O_RDONLY)\nprint(*(os.lseek(f, *a) for a in ((0, os.SEEK_HOLE), (1 << 20, os.SEEK_DATA), (1 << 39, os.SEEK_HOLE), (0, os.SEEK_END))))";
        assert_eq!(python(seeks, &mount.path("sparse")), format!("{} {middle} {} {size}\n", 1 << 20, middle + 4096));
        // A copy-up, and what copies files, make none of it real.
        run(Command::new("chmod").arg("600").arg(merged.path("sparse"))).ok();
        let copy = lab.fresh("copies").join("copy");
        run(Command::new("cp").arg(mount.path("sparse")).arg(&copy)).ok();
        for copied in [&merged.path("sparse"), &copy] {
            let copied = fs::metadata(copied).unwrap();
            assert!(copied.len() == size && copied.blocks() < 1 << 16, "{} blocks", copied.blocks());
        }
    }
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
    let mount = lab.mount(&image, &["--nfs-export"]);
    assert_eq!(python(HANDLES, mount.dir()), "hello True\na True\n");
    let refused = lab.crfs(&["mount", "--nfs-export", "--layer=0", &image, "/nowhere"]);
    assert!(refused.status == Some(2) && refused.stderr.contains("--layer"), "a layer is for an overlayfs: {refused}");
}

/// Writes to a file, has the kernel forget all that it can, and looks at the file more than once.
const COPIED_UP: &str = r#"
open(p, "a").write(" and more")
for _ in range(2):
    open("/proc/sys/vm/drop_caches", "w").write("2\n")
    for _ in range(2): assert open(p).read() == "hello and more", os.stat(p)
print("read")
"#;

/// overlayfs with these options finds the lower file by its handle, where the filesystem below offers that. What it finds is stale to Linux 6.18 at the
/// second look.
#[test]
fn what_an_overlayfs_has_copied_up_stays_readable_with_every_option() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let image = push(&liar, &[&[Entry::file("a", "hello")]]);
    let Some(store) = Store::new(&lab) else { return };
    store.add("localhost/a:1", &image);
    let (merged, layer) = (lab.mount(&image, &[]), lab.mount(&image, &["--layer", "0"]));
    let kept = layer_of(&store);
    for options in ["", "metacopy=on", "redirect_dir=on", "index=on", "xino=on", "index=on,nfs_export=on"] {
        for lower in [merged.dir(), layer.dir(), &kept] {
            let options = if options.is_empty() { String::new() } else { format!(",{options}") };
            let overlay = Overlay::with(&lab, Merger::Kernel, &[lower], &options);
            assert_eq!(python(COPIED_UP, &overlay.path("a")), "read\n", "{options} {}", lower.display());
        }
    }
}

/// The directory of a store's only layer.
fn layer_of(store: &Store) -> PathBuf {
    let mut layers = fs::read_dir(store.path("overlay")).unwrap().map(|entry| entry.unwrap().path());
    layers.find(|path| path.file_name().unwrap() != "l").unwrap().join("diff")
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
