//! Filesystem images of which the manifest vouches for the parts: a chunk index or a hash tree makes them lazy from the first byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crfs::blob::Digest;

use crate::filesystems::{EROFS, SQUASHFS, assert_same, by_the_kernel, erofs, lab, listing, squashfs, text, tree};
use crate::image::{Layer, noise};
use crate::lying::{Fault, Lie, On};
use crate::support::Lab;
use crate::support::command::{run, until};
use crate::support::lab::skip;
use crate::support::lies::Liar;

const PACKED: &str = "application/vnd.erofs+zstd";
const PLAIN: &str = "application/vnd.erofs";

/// A chunk index as containerd's draft writes it (erofs-image-spec, section 3.4): in a skippable frame behind zstd frames, or behind the image.
pub(crate) fn chunked(image: &[u8], chunk: usize, is_packed: bool) -> Layer {
    let (mut blob, mut chunks) = (Vec::new(), Vec::new());
    for (number, part) in image.chunks(chunk).enumerate() {
        let stored = if is_packed { zstd::encode_all(part, 3).unwrap() } else { part.to_vec() };
        chunks.extend_from_slice(&(blob.len() as u64).to_le_bytes());
        chunks.extend_from_slice(&((number * chunk) as u64).to_le_bytes());
        chunks.extend_from_slice(Digest::of(&stored).as_bytes());
        blob.extend(stored);
    }
    let mut index = [&[0xcd, 0xe4, 0xec, 0x67, 1, u8::from(is_packed), 0, 0][..], &image.len().to_le_bytes()].concat();
    index.extend_from_slice(&((chunks.len() / 48) as u32).to_le_bytes());
    index.extend_from_slice(&[1, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    index.extend(chunks);
    let start = blob.len();
    if is_packed {
        blob.extend_from_slice(&0x184d_2a50_u32.to_le_bytes());
        blob.extend_from_slice(&(index.len() as u32).to_le_bytes());
    }
    blob.extend_from_slice(&index);
    let annotations = BTreeMap::from([
        ("org.erofs.chunk-index.range".to_owned(), format!("{start}:{}", blob.len())),
        ("org.erofs.chunk-index.digest".to_owned(), Digest::of(&index).to_string()),
        ("org.erofs.chunk-index.mediaType".to_owned(), "application/vnd.erofs.chunk-index.v1".to_owned()),
    ]);
    Layer { blob, media_type: if is_packed { PACKED } else { PLAIN }, annotations }
}

fn data_of(cache: &Path, layer: &Layer) -> PathBuf {
    let layers = cache.join(crfs::cache::LAYOUT).join("layers").join(layer.digest().hex());
    let of_index = |entry: fs::DirEntry| entry.path().join("data");
    let mut found: Vec<PathBuf> = fs::read_dir(&layers).unwrap().map(|entry| of_index(entry.unwrap())).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// Mounted lazily at once, by the cache, once the contents were evicted, from a host that only sends all of it, and past one wrong answer.
fn check(lab: &Lab, what: &str, wanted: &BTreeMap<PathBuf, String>, layer: &Layer, metadata: u64) {
    let (liar, cache) = (Liar::new(), lab.fresh("cache"));
    let image = liar.push(&[layer]);
    let options = ["--prefetch", "none"];
    let all = layer.blob.len() as u64;
    let mount = lab.mount_with(&image, &cache, &options);
    let read = liar.sent(&layer.digest());
    assert!(read <= metadata.min(all), "{what}: {read} of {all} bytes before it was ready");
    assert_same(what, wanted, &listing(mount.dir()));
    drop(mount);
    let before = liar.sent(&layer.digest());
    let mount = lab.mount_with(&image, &cache, &options);
    assert_same(what, wanted, &listing(mount.dir()));
    drop(mount);
    assert_eq!(liar.sent(&layer.digest()), before, "{what}: all was there");
    for whole in [false, true] {
        let data = data_of(&cache, layer);
        fs::remove_file(&data).unwrap();
        fs::remove_file(data.with_file_name("present")).unwrap();
        let fault =
            if whole { Fault::always(On::Blobs, Lie::Whole) } else { Fault::times(1, On::Blobs, Lie::WrongBytes) };
        liar.fault(fault);
        let mount = lab.mount_with(&image, &cache, &options);
        assert_same(what, wanted, &listing(mount.dir()));
    }
    // All of it comes before anything of it is known.
    let mount = lab.mount_with(&image, &lab.fresh("cache"), &options);
    assert_same(what, wanted, &listing(mount.dir()));
}

#[test]
fn a_chunk_index_makes_images_lazy_from_the_first_byte() {
    let Some(lab) = lab() else { return };
    let tree = tree(&lab);
    for options in [&["-Enoinline_data"] as &[&str], &["-zlz4hc", "-C65536"], &["-zlz4hc", "-Eztailpacking"], &[]] {
        let image = erofs(&lab, &tree, options);
        let Some(wanted) = by_the_kernel(&lab, "erofs", &image) else { return };
        let image = fs::read(&image).unwrap();
        for (chunk, is_packed) in [(16 << 10, false), (64 << 10, true), (1 << 20, false)] {
            let what = format!("{options:?} in chunks of {chunk}");
            check(&lab, &what, &wanted, &chunked(&image, chunk, is_packed), u64::MAX);
        }
    }
}

/// As the draft of erofs-image-spec names it, or containerd's, or stacker.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Verity {
    Superblock,
    NoSuperblock,
    Stacker,
}

/// An image with the tree that the real tool makes behind it.
fn with_tree(lab: &Lab, image: &[u8], of: Verity, block: usize) -> Option<(Vec<u8>, BTreeMap<String, String>)> {
    if !["/usr/sbin/veritysetup", "/sbin/veritysetup"].iter().any(|path| Path::new(path).exists()) {
        return skip("veritysetup is not installed (cryptsetup-bin)");
    }
    let path = lab.fresh("verity").join("image");
    let mut bytes = image.to_vec();
    bytes.resize(image.len().next_multiple_of(4096), 0);
    let offset = bytes.len().to_string();
    fs::write(&path, &bytes).unwrap();
    let mut command = Command::new("veritysetup");
    command.arg("format").arg(&path).arg(&path).args(["--hash-offset", &offset]);
    command.args([format!("--data-blocks={}", bytes.len() / block), format!("--data-block-size={block}")]);
    command.arg(format!("--hash-block-size={block}"));
    if of == Verity::NoSuperblock {
        command.args(["--no-superblock", &format!("--salt={}", "00".repeat(32))]);
    }
    let told = run(&mut command).ok();
    let root = told.lines().find_map(|line| line.strip_prefix("Root hash:")).unwrap().trim().to_owned();
    let annotations = match of {
        Verity::Stacker => vec![("io.stackeroci.stacker.squashfs_verity_root_hash", root)],
        _ => vec![
            ("org.erofs.dmverity.root_digest", format!("sha256:{root}")),
            ("org.erofs.dmverity.hash_offset", offset),
            ("org.erofs.dmverity.block_size", block.to_string()),
        ],
    };
    let annotations = annotations.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Some((fs::read(&path).unwrap(), annotations))
}

#[test]
fn a_hash_tree_makes_images_lazy_from_the_first_byte() {
    let Some(lab) = lab() else { return };
    let tree = tree(&lab);
    let plain = erofs(&lab, &tree, &["-Enoinline_data"]);
    let lz4 = erofs(&lab, &tree, &["-zlz4hc", "-C65536"]);
    let squashfs = [squashfs(&lab, &tree, &[]), squashfs(&lab, &tree, &["-comp", "zstd"])];
    for (image, kind, of, block) in [
        (&plain, "erofs", Verity::Superblock, 4096),
        (&lz4, "erofs", Verity::NoSuperblock, 4096),
        (&lz4, "erofs", Verity::Superblock, 512),
        (&squashfs[0], "squashfs", Verity::Stacker, 4096),
        (&squashfs[1], "squashfs", Verity::Stacker, 4096),
        (&lz4, "erofs", Verity::Stacker, 4096),
    ] {
        let Some(wanted) = by_the_kernel(&lab, kind, image) else { return };
        let Some((blob, annotations)) = with_tree(&lab, &fs::read(image).unwrap(), of, block) else { return };
        let media_type = if kind == "erofs" { EROFS } else { SQUASHFS };
        check(&lab, &format!("{kind} {of:?}"), &wanted, &Layer { blob, media_type, annotations }, u64::MAX);
    }
}

/// A zstd stream is read once. What is read later comes from its frames; what has one frame is kept.
#[test]
fn images_in_a_zstd_stream_are_mounted_as_the_kernel_mounts_them() {
    let Some(lab) = lab() else { return };
    let tree = tree(&lab);
    for options in [&["-Enoinline_data"] as &[&str], &["-zlz4hc", "-C65536"]] {
        let image = erofs(&lab, &tree, options);
        let Some(wanted) = by_the_kernel(&lab, "erofs", &image) else { return };
        let image = fs::read(&image).unwrap();
        let one = Layer { blob: zstd::encode_all(&image[..], 3).unwrap(), ..layer_of(&image) };
        let frames = Layer { annotations: BTreeMap::new(), ..chunked(&image, 100_000, true) };
        for (what, layer) in [("one frame", one), ("frames", frames)] {
            check(&lab, &format!("{options:?} in {what}"), &wanted, &layer, u64::MAX);
        }
    }
}

fn layer_of(image: &[u8]) -> Layer {
    Layer { blob: image.to_vec(), media_type: "application/vnd.erofs.layer.v1+zstd", annotations: BTreeMap::new() }
}

/// 500 MB, of which a mount reads less than a hundredth, and a small file its chunks.
#[test]
fn a_large_image_with_a_chunk_index_is_mounted_by_a_hundredth_of_it() {
    let Some(lab) = lab() else { return };
    let tree = lab.fresh("large");
    for number in 0..100 {
        fs::create_dir(tree.join(format!("{number}"))).unwrap();
        let bytes = [noise(5_000_000, number), text(30_000, number as usize)].concat();
        fs::write(tree.join(format!("{number}/large")), bytes).unwrap();
        (0..9).for_each(|small| fs::write(tree.join(format!("{number}/{small}")), text(5_000, small)).unwrap());
    }
    let image = fs::read(erofs(&lab, &tree, &["-Enoinline_data"])).unwrap();
    for (chunk, is_packed) in [(64 << 10, false), (64 << 10, true)] {
        let layer = chunked(&image, chunk, is_packed);
        let (liar, cache) = (Liar::new(), lab.fresh("cache"));
        let mount = lab.mount_with(&liar.push(&[&layer]), &cache, &["--prefetch", "none"]);
        let (sent, all) = (liar.sent(&layer.digest()), layer.blob.len() as u64);
        assert!(sent * 100 < all && all > 500_000_000, "{sent} of {all} bytes before it was ready");
        assert_eq!(fs::read(mount.path("7/3")).unwrap(), text(5_000, 3));
        let little = liar.sent(&layer.digest()) - sent;
        assert!(little < 1_000_000, "{little} bytes for a small file");
        assert_eq!(fs::read(mount.path("7/large")).unwrap(), [noise(5_000_000, 7), text(30_000, 7)].concat());
        drop(mount);
    }
}

/// An index that is a layer of its own, and none of the tree.
#[test]
fn a_chunk_index_may_be_a_layer_of_its_own() {
    let Some(lab) = lab() else { return };
    let tree = lab.fresh("little");
    fs::write(tree.join("file"), text(6_000_000, 1)).unwrap();
    let image = fs::read(erofs(&lab, &tree, &["-Enoinline_data"])).unwrap();
    let whole = chunked(&image, 64 << 10, false);
    let (blob, index) = whole.blob.split_at(image.len());
    let layer = Layer { blob: blob.to_vec(), annotations: BTreeMap::new(), ..whole.clone() };
    let index = |target: String| Layer {
        blob: index.to_vec(),
        media_type: "application/vnd.erofs.chunk-index.v1",
        annotations: BTreeMap::from([("org.erofs.chunk-index.target".to_owned(), target)]),
    };
    let above =
        Layer { annotations: BTreeMap::new(), ..crate::image::plain(crate::image::gzip(&crate::image::tar(&[]))) };
    for (target, is_lazy) in [(layer.digest(), true), (Digest::of(b"another"), false)] {
        let liar = Liar::new();
        let image = liar.push(&[&layer, &index(target.to_string()), &above]);
        let mount = lab.mount_with(&image, &lab.fresh("cache"), &["--prefetch", "none"]);
        assert_eq!(liar.sent(&layer.digest()) < 1_000_000, is_lazy, "{target}");
        assert_eq!(fs::read(mount.path("file")).unwrap(), text(6_000_000, 1));
        drop(mount);
    }
}

/// What does not fit is not used: the layer is read whole, as without it.
#[test]
fn an_index_that_does_not_fit_is_passed_over() {
    let Some(lab) = lab() else { return };
    let tree = lab.fresh("little");
    fs::write(tree.join("file"), text(300_000, 1)).unwrap();
    let image = fs::read(erofs(&lab, &tree, &[])).unwrap();
    let good = chunked(&image, 64 << 10, false);
    let mut other = good.clone();
    other.annotations.insert("org.erofs.chunk-index.digest".to_owned(), Digest::of(b"another").to_string());
    let mut newer = good.clone();
    newer
        .annotations
        .insert("org.erofs.chunk-index.mediaType".to_owned(), "application/vnd.erofs.chunk-index.v2".into());
    // Its chunks are those of another image.
    let mut lying = good;
    lying.blob[20_000] ^= 1;
    for (what, layer) in [("another digest", other), ("a newer one", newer), ("another image", lying)] {
        let liar = Liar::new();
        let mount = lab.mount_with(&liar.push(&[&layer]), &lab.fresh("cache"), &["--prefetch", "none"]);
        assert!(liar.sent(&layer.digest()) >= layer.blob.len() as u64, "{what}");
        assert_eq!(fs::read(mount.path("file")).unwrap().len(), 300_000);
        drop(mount);
    }
}

/// No byte of a chunk is shown that does not have its digest.
#[test]
fn wrong_chunks_are_errors() {
    let Some(lab) = lab() else { return };
    let tree = lab.fresh("little");
    fs::write(tree.join("file"), noise(3_000_000, 1)).unwrap();
    let image = fs::read(erofs(&lab, &tree, &["-Enoinline_data"])).unwrap();
    for is_packed in [false, true] {
        let layer = chunked(&image, 64 << 10, is_packed);
        let liar = Liar::new();
        let mount = lab.mount_with(&liar.push(&[&layer]), &lab.fresh("cache"), &["--prefetch", "none"]);
        liar.fault(Fault::always(On::Blobs, Lie::WrongBytes));
        assert!(fs::read(mount.path("file")).is_err());
        liar.clear_faults();
        // What the kernel has read ahead may be wrong still, and on its way.
        let read = until("a read without an error", || fs::read(mount.path("file")).ok());
        assert_eq!(read, noise(3_000_000, 1));
        drop(mount);
    }
}
