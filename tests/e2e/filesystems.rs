//! Layers that are filesystem images, made by the real tools: what crfs mounts of them is what the kernel mounts.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crfs::blob::Digest;

use crate::image::{File, Layer, gzip, noise, plain, tar};
use crate::lying::{Fault, Lie, On};
use crate::support::Lab;
use crate::support::command::run;
use crate::support::lab::skip;
use crate::support::lies::Liar;

pub(crate) const EROFS: &str = "application/vnd.erofs.layer.v1";
pub(crate) const SQUASHFS: &str = "application/vnd.stacker.image.layer.squashfs";

/// A place for a test that needs the tools.
pub(crate) fn lab() -> Option<Lab> {
    let lab = Lab::new()?;
    for name in ["mkfs.erofs", "mksquashfs"] {
        let is_there = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].iter().any(|dir| Path::new(dir).join(name).exists());
        if !is_there {
            return skip(&format!("{name} is not installed"));
        }
    }
    Some(lab)
}

/// Text that packs well, and is nowhere the same.
pub(crate) fn text(len: usize, seed: usize) -> Vec<u8> {
    (0..).flat_map(|line: usize| format!("line {} of {seed}\n", line * 7919).into_bytes()).take(len).collect()
}

/// A tree with what images hold.
pub(crate) fn tree(lab: &Lab) -> PathBuf {
    let root = lab.fresh("tree");
    let write = |name: &str, bytes: &[u8]| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    for number in 0..50 {
        write(&format!("many/a-file-with-the-number-{number}"), &text(number * 97, number));
    }
    for len in [0, 1, 4095, 4096, 4097, 131_072, 131_073] {
        write(&format!("sizes/{len}"), &text(len, len));
    }
    write("big/text", &text(2_000_000, 1));
    write("big/noise", &noise(300_000, 2));
    write("big/zeros", &vec![0; 300_000]);
    write("big/mixed", &[text(50_000, 3), noise(20_000, 4), vec![0; 40_000], text(3_000, 5)].concat());
    fs::File::create(root.join("big/sparse")).unwrap().set_len(5 << 20).unwrap();
    fs::hard_link(root.join("big/text"), root.join("many/linked")).unwrap();
    symlink("text", root.join("big/link")).unwrap();
    symlink("x/".repeat(400), root.join("big/long-link")).unwrap();
    fs::set_permissions(root.join("big/noise"), fs::Permissions::from_mode(0o4750)).unwrap();
    chown_to(&root.join("big/noise"), 70_000, 70_001);
    let node = |kind: &str, more: &[&str]| run(Command::new("mknod").arg(root.join(kind)).arg(kind).args(more)).ok();
    node("p", &[]);
    node("c", &["1", "3"]);
    node("b", &["259", "70000"]);
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    for number in 0..9 {
        xattr(&root.join(format!("many/a-file-with-the-number-{number}")), "user.shared", "by several");
    }
    xattr(&root.join("sizes"), "trusted.of-a-directory", "");
    xattr(&root.join("big/text"), "user.one", "1");
    root
}

fn chown_to(path: &Path, uid: u32, gid: u32) {
    let mode = fs::metadata(path).unwrap().permissions();
    chown(path, Some(uid), Some(gid)).unwrap();
    fs::set_permissions(path, mode).unwrap();
}

const XATTRS: &str = "
import os, sys
if len(sys.argv) > 2:
    os.setxattr(sys.argv[1], sys.argv[2], sys.argv[3].encode())
else:
    for dir, dirs, files in os.walk(sys.argv[1]):
        for name in sorted(dirs + files) + ['.']:
            path = os.path.join(dir, name)
            for key in sorted(os.listxattr(path, follow_symlinks=False)):
                if not key.startswith('trusted.overlay.'):
                    print(os.path.relpath(path, sys.argv[1]), key, os.getxattr(path, key, follow_symlinks=False))
";

pub(crate) fn xattr(path: &Path, key: &str, value: &str) {
    run(Command::new("python3").args(["-c", XATTRS]).arg(path).args([key, value])).ok();
}

/// What is seen of a tree.
pub(crate) fn listing(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut seen = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let mut line =
            format!("{:o} {}:{} {}.{}", meta.mode(), meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec());
        if kind.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            line += &format!(" {} links, {}, device {}", meta.nlink(), meta.size(), meta.rdev());
        }
        if kind.is_file() {
            line += &Digest::of(&fs::read(&path).unwrap()).to_string();
        } else if kind.is_symlink() {
            line += &format!("{:?}", fs::read_link(&path).unwrap());
        }
        seen.insert(path.strip_prefix(root).unwrap().to_owned(), line);
    }
    let xattrs = run(Command::new("python3").args(["-c", XATTRS]).arg(root)).ok();
    seen.insert("xattrs".into(), xattrs);
    seen
}

#[track_caller]
pub(crate) fn assert_same(what: &str, wanted: &BTreeMap<PathBuf, String>, got: &BTreeMap<PathBuf, String>) {
    for path in wanted.keys().chain(got.keys()) {
        assert_eq!(wanted.get(path), got.get(path), "{what}: {}", path.display());
    }
}

/// What the kernel mounts of an image.
pub(crate) fn by_the_kernel(lab: &Lab, kind: &str, image: &Path) -> Option<BTreeMap<PathBuf, String>> {
    let dir = lab.fresh("kernel");
    let mounted = run(Command::new("mount").args(["-t", kind, "-o", "loop,ro"]).arg(image).arg(&dir));
    if !mounted.good() {
        return skip(&format!("the kernel does not mount {kind}: {mounted}"));
    }
    let seen = listing(&dir);
    run(Command::new("umount").arg(&dir)).ok();
    Some(seen)
}

pub(crate) fn erofs(lab: &Lab, tree: &Path, options: &[&str]) -> PathBuf {
    // mkfs.erofs 1.5 gathers chunks in a file of /tmp, from which it can fill only an image on the same filesystem.
    let made = tempfile::Builder::new().prefix("crfs-e2e-").tempdir_in("/tmp").unwrap();
    let (path, image) = (made.path().join("image"), lab.fresh("erofs").join("image"));
    run(Command::new("mkfs.erofs").args(["--quiet", "-T1600000000"]).args(options).arg(&path).arg(tree)).ok();
    fs::copy(&path, &image).unwrap();
    image
}

pub(crate) fn squashfs(lab: &Lab, tree: &Path, options: &[&str]) -> PathBuf {
    let image = lab.fresh("squashfs").join("image");
    let mut command = Command::new("mksquashfs");
    run(command.arg(tree).arg(&image).args(["-quiet", "-no-progress", "-xattrs"]).args(options)).ok();
    image
}

pub(crate) fn layer(image: &Path, media_type: &'static str) -> Layer {
    Layer { blob: fs::read(image).unwrap(), media_type, annotations: BTreeMap::new() }
}

/// Mounted at once, by the index alone, and once the contents were evicted: from parts of the blob, and from a host that only sends all of it.
fn check(lab: &Lab, what: &str, wanted: &BTreeMap<PathBuf, String>, layer: &Layer) {
    let (liar, cache) = (Liar::new(), lab.fresh("cache"));
    let image = liar.push(&[layer]);
    let options = ["--prefetch", "none"];
    let mount = lab.mount_with(&image, &cache, &options);
    assert_same(what, wanted, &listing(mount.dir()));
    drop(mount);
    assert_eq!(liar.sent(&layer.digest()), layer.blob.len() as u64, "{what}: read once");
    let mount = lab.mount_with(&image, &cache, &options);
    assert_same(what, wanted, &listing(mount.dir()));
    drop(mount);
    for whole in [false, true] {
        let data = cache.join(crfs::cache::LAYOUT).join("layers").join(layer.digest().hex()).join("own/data");
        fs::remove_file(&data).unwrap_or_else(|error| panic!("{}: {error}", data.display()));
        fs::remove_file(data.with_file_name("present")).unwrap();
        let before = liar.sent(&layer.digest());
        if whole {
            liar.fault(Fault::always(On::Blobs, Lie::Whole));
        }
        let mount = lab.mount_with(&image, &cache, &options);
        fs::read(mount.path("sizes/1")).unwrap();
        let little = liar.sent(&layer.digest()) - before;
        assert!(whole || little < 600_000.min(layer.blob.len() as u64), "{what}: {little} bytes for a small file");
        assert_same(what, wanted, &listing(mount.dir()));
        let all = layer.blob.len() as u64;
        assert!(!whole || liar.sent(&layer.digest()) - before == all, "{what}: all of it once");
    }
}

#[test]
fn erofs_images_are_mounted_as_the_kernel_mounts_them() {
    let Some(lab) = lab() else { return };
    let tree = tree(&lab);
    for options in [
        &[] as &[&str],
        &["-Enoinline_data"],
        &["-zlz4"],
        &["-zlz4hc", "-C65536"],
        &["-zlz4", "-Eforce-inode-extended"],
        &["-zlz4hc", "-Eztailpacking"],
        &["--chunksize=4096"],
    ] {
        let image = erofs(&lab, &tree, options);
        let Some(wanted) = by_the_kernel(&lab, "erofs", &image) else { return };
        check(&lab, &format!("{options:?}"), &wanted, &layer(&image, EROFS));
    }
}

#[test]
fn squashfs_images_are_mounted_as_the_kernel_mounts_them() {
    let Some(lab) = lab() else { return };
    let tree = tree(&lab);
    for options in [
        &[] as &[&str],
        &["-comp", "xz"],
        &["-comp", "lz4"],
        &["-comp", "zstd", "-always-use-fragments"],
        &["-noI", "-noD", "-noF", "-noX", "-no-fragments"],
    ] {
        let image = squashfs(&lab, &tree, options);
        let Some(wanted) = by_the_kernel(&lab, "squashfs", &image) else { return };
        check(&lab, &format!("{options:?}"), &wanted, &layer(&image, SQUASHFS));
    }
}

/// overlayfs's own marks in an upper image hide what a tar below has.
#[test]
fn marks_of_overlayfs_are_merge_rules() {
    let Some(lab) = lab() else { return };
    let names = ["gone/file", "kept/file", "opaque/below", "stays"];
    let files: Vec<_> = names.iter().map(|name| File { name, content: name.as_bytes().to_vec() }).collect();
    let below = plain(gzip(&tar(&files)));
    let upper = lab.fresh("upper");
    fs::create_dir_all(upper.join("opaque")).unwrap();
    fs::create_dir_all(upper.join("kept")).unwrap();
    fs::write(upper.join("opaque/above"), "above").unwrap();
    // All whiteouts of a layer are names of one inode.
    run(Command::new("mknod").arg(upper.join("gone")).args(["c", "0", "0"])).ok();
    fs::hard_link(upper.join("gone"), upper.join("kept/file")).unwrap();
    xattr(&upper.join("opaque"), "trusted.overlay.opaque", "y");
    xattr(&upper.join("opaque"), "trusted.overlay.origin", "x");
    for layer in [layer(&erofs(&lab, &upper, &[]), EROFS), layer(&squashfs(&lab, &upper, &[]), SQUASHFS)] {
        let liar = Liar::new();
        let mount = lab.mount(&liar.push(&[&below, &layer]), &[]);
        let seen: Vec<_> = listing(mount.dir()).into_keys().map(|path| path.display().to_string()).collect();
        assert_eq!(seen, ["", "kept", "opaque", "opaque/above", "stays", "xattrs"]);
        assert_eq!(run(Command::new("python3").args(["-c", XATTRS]).arg(mount.dir())).ok(), "");
        drop(mount);
    }
}

/// What is not read is named in one line, before anything is mounted.
#[test]
fn images_that_crfs_does_not_read_are_refused() {
    let Some(lab) = lab() else { return };
    let tree = tree(&lab);
    let lzo = layer(&squashfs(&lab, &tree, &["-comp", "lzo"]), SQUASHFS);
    let erofs = layer(&erofs(&lab, &tree, &[]), EROFS);
    let none = Layer { blob: noise(5000, 1), ..erofs.clone() };
    let packed = Layer {
        media_type: "application/vnd.erofs.layer.v1+zstd",
        blob: zstd::encode_all(&noise(5000, 2)[..], 1).unwrap(),
        ..erofs.clone()
    };
    let mut boxed = erofs;
    boxed.blob[1024 + 81] |= 0x1;
    for (layer, why) in
        [(lzo, "lzo"), (none, "neither an EROFS nor"), (packed, "neither an EROFS nor"), (boxed, "metabox")]
    {
        let liar = Liar::new();
        let message = match lab.try_mount(&liar.push(&[&layer]), &lab.fresh("cache"), &["-q"]) {
            Ok(mount) => panic!("mounted: {}", mount.line),
            Err(finished) => finished.refused(),
        };
        assert!(message.contains(why) && message.contains(&layer.digest().to_string()), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}
