//! Images that real tools have made of one tree (tests/data/filesystems), and what is made of them when they are damaged.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use bytes::Bytes;

use super::super::plain::Failed;
use super::{Vouchers, make, make_vouched};
use crate::blob::{ByteRange, Digest};
use crate::budget::Budget;
use crate::index::stored::chunks::{Chunk, Chunks, Packing};
use crate::index::{Child, Entries, Error, Format, Identity, Kind, LayerKey, NodeId, StoredIndex};
use crate::sys::expansion::{Allowance, Meter};

fn images() -> Vec<(String, Vec<u8>)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/filesystems");
    let mut images: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "zst"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, zstd::decode_all(&std::fs::read(path).unwrap()[..]).unwrap())
        })
        .collect();
    images.sort();
    images
}

fn format(name: &str) -> Format {
    if name.starts_with("squashfs") { Format::Squashfs } else { Format::Erofs }
}

struct Read {
    index: StoredIndex,
    entries: Entries,
    file: BTreeMap<u64, Vec<u8>>,
}

fn read(format: Format, image: &[u8], budget: &Budget) -> Result<Read, Error> {
    let (mut file, image) = (BTreeMap::new(), Bytes::copy_from_slice(image));
    let blob = Digest::of(&image);
    let mut keep = |at: u64, bytes: &[u8]| drop(file.insert(at, bytes.to_vec()));
    let (meter, charge) = (Meter::new(&Allowance::small(64 << 20)), budget.charge(image.len() as u64));
    let made = make(blob, format, &image, &mut keep, meter, charge).map_err(|failed| match failed {
        Failed::Layer(error) => error,
        Failed::Stream(source) => Error::Undecodable { layer: blob, source },
    })?;
    let key = LayerKey { blob, identity: Identity::Own };
    let index = StoredIndex::open(std::sync::Arc::new(made.encoded), &blob, Some(&key)).unwrap();
    let entries = index.entries().unwrap();
    Ok(Read { index, entries, file })
}

impl Read {
    fn contents(&self, start: u64, size: u64) -> Vec<u8> {
        let mut bytes = vec![0; size as usize];
        let first = self.file.range(..=start).next_back().map_or(start, |(at, _)| *at);
        for (at, part) in self.file.range(first..start + size) {
            for (byte, place) in part.iter().zip(*at..).filter(|(_, place)| (start..start + size).contains(place)) {
                bytes[(place - start) as usize] = *byte;
            }
        }
        bytes
    }

    /// A line for each entry. squashfs has no fractions of seconds, and neither has ACLs.
    fn listing(&self) -> Vec<String> {
        let (mut lines, mut todo) = (Vec::new(), vec![(Entries::ROOT, String::new())]);
        while let Some((dir, path)) = todo.pop() {
            lines.push(format!("{path}/ {}", self.describe(dir)));
            for (name, child) in self.entries.children(dir) {
                let path = format!("{path}/{}", String::from_utf8_lossy(name));
                match child {
                    Child::Node(node) if matches!(self.entries.kind(node), Kind::Dir { .. }) => todo.push((node, path)),
                    Child::Node(node) => lines.push(format!("{path} {}", self.describe(node))),
                    _ => lines.push(format!("{path} whiteout")),
                }
            }
        }
        lines.sort();
        lines
    }

    fn describe(&self, node: NodeId) -> String {
        let meta = self.entries.meta(node);
        let what = match self.entries.kind(node) {
            Kind::Dir { opaque, .. } => format!("dir{}", if opaque { " opaque" } else { "" }),
            Kind::File { start, size } => format!("{size} {}", Digest::of(&self.contents(start, size))),
            Kind::Symlink(target) => format!("-> {}", String::from_utf8_lossy(target)),
            other => format!("{other:?}"),
        };
        let xattrs: Vec<_> = self
            .entries
            .xattrs(node)
            .filter(|(name, _)| !name.starts_with(b"system."))
            .map(|(name, value)| format!("{}={}", String::from_utf8_lossy(name), String::from_utf8_lossy(value)))
            .collect();
        format!("{:o} {}:{} {} {xattrs:?} {what}", meta.mode, meta.uid, meta.gid, meta.mtime.secs)
    }
}

#[test]
fn all_images_of_a_tree_come_to_that_tree() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/filesystems");
    let wanted = std::fs::read_to_string(dir.join("tree.txt")).unwrap();
    let images = images();
    assert!(images.len() >= 12, "{}", images.len());
    for (name, image) in images {
        let read = read(format(&name), &image, &Budget::UNLIMITED).unwrap_or_else(|error| panic!("{name}: {error}"));
        read.index.verify().unwrap();
        let got = read.listing().join("\n") + "\n";
        if std::env::var_os("CRFS_WRITE_TREE").is_some() {
            std::fs::write(format!("/var/tmp/fsl/{name}.txt"), &got).unwrap();
            continue;
        }
        assert!(got == wanted, "{name}:\n{got}");
    }
}

/// The same index, but for what is known of contents, by metadata alone: with digests of the parts of an image.
fn read_vouched(image: &[u8], part: usize, budget: &Budget) -> Result<StoredIndex, Error> {
    let (image, blob) = (Bytes::copy_from_slice(image), Digest::of(image));
    let mut chunks = Chunks::new(Packing::Stored);
    for (number, bytes) in image.chunks(part).enumerate() {
        let range = ByteRange::at((number * part) as u64, bytes.len() as u64).unwrap();
        chunks.add(&Chunk { image: range, blob: range, digest: Digest::of(bytes) }).unwrap();
    }
    let identity = Identity::Toc(Digest::of(b"index"));
    let made = make_vouched(blob, &image, Vouchers { identity, chunks, len: 9 }, budget.charge(image.len() as u64));
    let (_, encoded) = made.map_err(|failed| match failed {
        Failed::Layer(error) => error,
        Failed::Stream(source) => Error::Undecodable { layer: blob, source },
    })?;
    Ok(StoredIndex::open(std::sync::Arc::new(encoded.bytes), &blob, Some(&LayerKey { blob, identity })).unwrap())
}

#[test]
fn metadata_alone_makes_the_same_tree() {
    for (name, image) in images() {
        let whole = read(format(&name), &image, &Budget::UNLIMITED).unwrap();
        let vouched =
            read_vouched(&image, 16 << 10, &Budget::UNLIMITED).unwrap_or_else(|error| panic!("{name}: {error}"));
        vouched.verify().unwrap();
        let entries = vouched.entries().unwrap();
        let names = |entries: &Entries| {
            let (mut names, mut todo) = (Vec::new(), vec![Entries::ROOT]);
            while let Some(dir) = todo.pop() {
                for (name, child) in entries.children(dir) {
                    let kind =
                        if let Child::Node(node) = child { format!("{:?}", entries.kind(node)) } else { String::new() };
                    names.push((name.to_vec(), kind));
                    todo.extend(match child {
                        Child::Node(node) if matches!(entries.kind(node), Kind::Dir { .. }) => Some(node),
                        _ => None,
                    });
                }
            }
            names
        };
        assert!(names(&entries) == names(&whole.entries), "{name}");
        assert_eq!(vouched.summary().layer_file_len, whole.index.summary().layer_file_len, "{name}");
        let last = vouched.chunks() - 1;
        assert_eq!(vouched.chunk(last).unwrap().image.end, image.len() as u64);
        assert_eq!(vouched.chunks_over(ByteRange { start: 20_000, end: 20_001 }).unwrap(), 1..2);
        assert!(vouched.keeps_sums() && vouched.packing() == Some(&Packing::Stored));
    }
}

/// The same of images whose writer vouches for damage.
#[test]
fn damaged_images_that_are_vouched_for_are_refused_or_read() {
    let images = images();
    for wanted in [Format::Erofs, Format::Squashfs] {
        let images: Vec<_> = images.iter().filter(|(name, _)| format(name) == wanted).collect();
        let (mut refused, mut slowest) = (0, (0, 0));
        for seed in 0..5000_u64 {
            let (name, image) = images[seed as usize % images.len()];
            let image = damaged(image, seed);
            let budget = Budget::of_process().of_image(crate::budget::DEFAULT_LIMIT);
            let start = Instant::now();
            match read_vouched(&image, 4096, &budget) {
                Err(error) => {
                    refused += 1;
                    let message = crate::errors::chain(&error).to_string();
                    assert_eq!(message.lines().count(), 1, "{name} {seed}: {message}");
                }
                Ok(index) => index.verify().unwrap(),
            }
            slowest = slowest.max((start.elapsed().as_millis(), seed));
        }
        assert!(refused > 200, "{refused}");
        println!("{wanted}: {refused} of 5000 refused; the slowest took {} ms (seed {})", slowest.0, slowest.1);
    }
}

/// A generator of numbers that is the same everywhere.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below.max(1)
    }
}

fn damaged(image: &[u8], seed: u64) -> Vec<u8> {
    let (mut image, mut numbers) = (image.to_vec(), Numbers(seed));
    for _ in 0..=numbers.next(4) {
        let at = numbers.next(image.len() as u64) as usize;
        match numbers.next(6) {
            0 => image[at] ^= 1 << numbers.next(8),
            1 => image[at] = [0, 1, 0x7f, 0x80, 0xff][numbers.next(5) as usize],
            2 => {
                let value = [0_u64, 1, u64::MAX, 1 << 31, u64::from(u32::MAX), 1 << 40][numbers.next(6) as usize];
                image[at..].iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
            }
            3 => {
                let from = numbers.next(image.len() as u64) as usize;
                let len = numbers.next(64) as usize;
                let copy: Vec<u8> = image[from..].iter().take(len).copied().collect();
                image[at..].iter_mut().zip(copy).for_each(|(to, from)| *to = from);
            }
            // The superblock says what all else is.
            4 => {
                let base = if image.starts_with(b"hsqs") { 4 } else { 1028 };
                image[base + numbers.next(92) as usize] ^= 1 << numbers.next(8);
            }
            _ => image.truncate(at.max(1200)),
        }
    }
    image
}

/// 5,000 of each format: each is refused in one line, or read; in time, and within the memory of an image.
#[test]
fn damaged_images_are_refused_or_read() {
    let images = images();
    for wanted in [Format::Erofs, Format::Squashfs] {
        let images: Vec<_> = images.iter().filter(|(name, _)| format(name) == wanted).collect();
        let (mut refused, mut slowest) = (0, (0, 0));
        for seed in 0..5000_u64 {
            let (name, image) = images[seed as usize % images.len()];
            let image = damaged(image, seed);
            let budget = Budget::of_process().of_image(crate::budget::DEFAULT_LIMIT);
            let start = Instant::now();
            if let Err(error) = read(wanted, &image, &budget) {
                refused += 1;
                let message = crate::errors::chain(&error).to_string();
                assert_eq!(message.lines().count(), 1, "{name} {seed}: {message}");
            }
            slowest = slowest.max((start.elapsed().as_millis(), seed));
        }
        assert!(refused > 500, "{refused}");
        println!("{wanted}: {refused} of 5000 refused; the slowest took {} ms (seed {})", slowest.0, slowest.1);
    }
}
