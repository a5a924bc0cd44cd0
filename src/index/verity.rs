//! The hash tree of dm-verity (Linux, Documentation/admin-guide/device-mapper/verity.rst) behind an image, whose root digest the manifest names.
//!
//! ```text
//! superblock   512   "verity", u32 version 1, u32 type 1, 16 bytes uuid, 32 bytes algorithm, u32 data block, u32 hash block, u64 data blocks,
//!                    u16 length of the salt, 6 zeros, salt; up to the next block. There may be none
//! tree               blocks of digests, those of the highest level first, which is one block
//! ```
//!
//! Nothing vouches for what the superblock says but that the tree that it describes has the root digest.

use super::Descriptor;
use super::stored::chunks::{Chunk, Chunks, LONGEST_SALT, Packing, of_block};
use crate::blob::{ByteRange, ByteSource, Digest};

/// The draft of erofs-image-spec.
const ROOT: &str = "org.erofs.dmverity.root_digest";
const OFFSET: &str = "org.erofs.dmverity.hash_offset";
const BLOCK: &str = "org.erofs.dmverity.block_size";

/// stacker: the tree is behind the image, wherever that ends.
const STACKER: [&str; 2] =
    ["io.stackeroci.stacker.squashfs_verity_root_hash", "io.stackeroci.stacker.atomfs_verity_root_hash"];

const DEFAULT_BLOCK: u64 = 4096;
const SUPERBLOCK: u64 = 512;
const DIGEST: usize = 32;

/// Data blocks of which each is a chunk. Where there are more, all that one block of digests covers are one, and the lowest level is not read.
const EACH: u64 = 256 << 10;

/// Bytes of a tree that are read at most: good for 256 GiB.
const LARGEST: u64 = 32 << 20;

/// What a manifest says of a layer's tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) root: Digest,
    /// Where the superblock is, or the tree.
    offset: Option<u64>,
    block: u64,
}

impl Place {
    /// `None`: it names no root digest of sha256.
    pub(super) fn of(layer: &Descriptor) -> Option<Self> {
        let get = |key: &str| layer.annotations.get(key);
        let number = |key: &str| get(key).map(|text| text.parse::<u64>().ok());
        let digest = |text: &String| text.parse().or_else(|_| format!("sha256:{text}").parse()).ok();
        if let Some(root) = get(ROOT) {
            let (root, offset) = (digest(root)?, number(OFFSET)??);
            let block = number(BLOCK).map_or(Some(DEFAULT_BLOCK), |block| block)?;
            return Some(Self { root, offset: Some(offset), block });
        }
        let root = STACKER.iter().find_map(|key| get(key))?;
        Some(Self { root: digest(root)?, offset: None, block: DEFAULT_BLOCK })
    }
}

/// What a tree is like.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tree {
    /// Where the data ends at the latest, and where the blocks of digests begin.
    end: u64,
    start: u64,
    block: u64,
    data_blocks: u64,
    salt: Vec<u8>,
}

/// Why there are no chunks.
#[derive(Debug)]
pub(super) enum Bad {
    /// The bytes cannot be had.
    Read(ByteRange, crate::blob::SourceError),
    Tree(String),
}

/// The chunks of the image before a tree, which has the root digest. `room` is asked whether so many bytes of memory may be taken.
pub(super) fn chunks(
    blob: &dyn ByteSource,
    place: &Place,
    room: &mut dyn FnMut(u64) -> Result<(), String>,
) -> Result<Chunks, Bad> {
    let offset = match place.offset {
        Some(offset) => offset,
        None => end_of_image(blob)?,
    };
    let head = read(blob, offset, SUPERBLOCK)?;
    let trees = match Tree::of(&head, offset) {
        Some(tree) => vec![tree.map_err(Bad::Tree)?],
        None => Tree::without_superblock(offset, place.block),
    };
    let mut refused = Bad::Tree("its blocks are of a size that no image has".to_owned());
    for tree in trees {
        match tree.chunks(blob, place.root, room) {
            Err(Bad::Tree(why)) => refused = Bad::Tree(why),
            other => return other,
        }
    }
    Err(refused)
}

fn read(blob: &dyn ByteSource, at: u64, len: u64) -> Result<Vec<u8>, Bad> {
    let range = ByteRange::at(at, len).filter(|range| range.end <= blob.size());
    let range = range.ok_or_else(|| Bad::Tree(format!("the layer ends before byte {at} and the {len} behind it")))?;
    blob.read_at(range).map(|bytes| bytes.to_vec()).map_err(|source| Bad::Read(range, source))
}

/// Where an image ends by its own superblock, up to the next block.
fn end_of_image(blob: &dyn ByteSource) -> Result<u64, Bad> {
    let head = read(blob, 0, 1536.min(blob.size()))?;
    let u64_at = |at: usize| head.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u64::from_le_bytes(*word));
    let end = if head.starts_with(b"hsqs") {
        Some(u64_at(40))
    } else {
        // Blocks, of 2^bits bytes.
        let bits = head.get(1036).copied().unwrap_or(0);
        let blocks = u64_at(1024 + 36) & u64::from(u32::MAX);
        blocks.checked_shl(u32::from(bits)).filter(|_| bits < 32)
    };
    let end = end.and_then(|end| end.checked_next_multiple_of(DEFAULT_BLOCK));
    end.ok_or_else(|| Bad::Tree("the image does not say where it ends".to_owned()))
}

impl Tree {
    /// By a superblock; `None` where there is none.
    fn of(head: &[u8], offset: u64) -> Option<Result<Self, String>> {
        let word = |at: usize| head.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_le_bytes(*word));
        let long = |at: usize| head.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u64::from_le_bytes(*word));
        if !head.starts_with(b"verity\0\0") {
            return None;
        }
        let algorithm: Vec<u8> = head.iter().skip(32).take(32).copied().take_while(|byte| *byte != 0).collect();
        let (block, len) = (u64::from(word(64)), usize::from(word(80) as u16));
        let salt = head.get(88..).and_then(|rest| rest.get(..len)).filter(|salt| salt.len() <= LONGEST_SALT);
        Some(match salt {
            _ if word(8) != 1 || word(12) != 1 => Err("it is of a version or type that crfs does not know".to_owned()),
            _ if algorithm != b"sha256" => {
                Err(format!("its digests are those of {}", String::from_utf8_lossy(&algorithm)))
            }
            _ if u64::from(word(68)) != block => {
                Err("its blocks of digests are not as large as those of data".to_owned())
            }
            None => Err(format!("its salt has {len} bytes")),
            Some(salt) => {
                let start = offset.saturating_add(SUPERBLOCK).checked_next_multiple_of(block.max(1));
                Ok(Self {
                    end: offset,
                    start: start.unwrap_or(u64::MAX),
                    block,
                    data_blocks: long(72),
                    salt: salt.to_vec(),
                })
            }
        })
    }

    /// As containerd writes it: with a salt of zeros, or with none.
    fn without_superblock(offset: u64, block: u64) -> Vec<Self> {
        let data_blocks = offset.checked_div(block).unwrap_or(0);
        let tree = |salt| Self { end: offset, start: offset, block, data_blocks, salt };
        vec![tree(vec![0; DIGEST]), tree(Vec::new())]
    }

    /// How many blocks each level has, the lowest first.
    fn levels(&self) -> Vec<u64> {
        let (each, mut levels, mut left) = (self.block / DIGEST as u64, Vec::new(), self.data_blocks);
        while left > 1 && each > 1 {
            left = left.div_ceil(each);
            levels.push(left);
        }
        levels
    }

    fn chunks(
        self,
        blob: &dyn ByteSource,
        root: Digest,
        room: &mut dyn FnMut(u64) -> Result<(), String>,
    ) -> Result<Chunks, Bad> {
        let bad = |what: &str| Bad::Tree(what.to_owned());
        let image = self.data_blocks.checked_mul(self.block).filter(|image| *image > 0 && *image <= self.end);
        let image = image.ok_or_else(|| bad("it is of more data than there is before it"))?;
        if !self.block.is_power_of_two() || !(512..=64 << 10).contains(&self.block) {
            return Err(bad("its blocks are of a size that no image has"));
        }
        let levels = self.levels();
        let several = self.data_blocks > EACH;
        let wanted: Vec<u64> = levels.iter().copied().skip(usize::from(several)).rev().collect();
        let len = wanted.iter().fold(0_u64, |sum, blocks| sum.saturating_add(blocks.saturating_mul(self.block)));
        if len > LARGEST {
            return Err(Bad::Tree(format!("it has more than {LARGEST} bytes")));
        }
        // The digests of a level beside the tree, and a record for each chunk.
        room(len.saturating_mul(5)).map_err(Bad::Tree)?;
        let bytes = if len > 0 { read(blob, self.start, len)? } else { Vec::new() };
        let digests = self.verify(&bytes, &wanted, root).ok_or_else(|| bad("it does not have the root digest"))?;
        let step = if several { self.block / DIGEST as u64 * self.block } else { self.block };
        let packing = Packing::Verity { bits: self.block.trailing_zeros() as u8, several, salt: self.salt };
        let mut chunks = Chunks::new(packing);
        for (digest, start) in digests.into_iter().zip((0..image).step_by(usize::try_from(step).unwrap_or(usize::MAX)))
        {
            let range = ByteRange { start, end: (start + step).min(image) };
            chunks.add(&Chunk { image: range, blob: range, digest }).ok_or_else(|| bad("it is malformed"))?;
        }
        if chunks.image_len() == image { Ok(chunks) } else { Err(bad("it has too few digests")) }
    }

    /// The digests of the lowest of some levels, the highest of which comes first, if all above it are right.
    fn verify(&self, bytes: &[u8], levels: &[u64], root: Digest) -> Option<Vec<Digest>> {
        let block = self.block as usize;
        let (mut wanted, mut blocks) = (vec![root], bytes.chunks_exact(block));
        for count in levels {
            let mut below = Vec::new();
            for number in 0..usize::try_from(*count).ok()? {
                let bytes = blocks.next()?;
                if of_block(bytes, block, &self.salt) != *wanted.get(number)? {
                    return None;
                }
                below.extend(
                    bytes
                        .chunks_exact(DIGEST)
                        .filter_map(|digest| digest.first_chunk())
                        .map(|digest| Digest::from_bytes(*digest)),
                );
            }
            wanted = below;
        }
        Some(wanted)
    }
}

/// Whether all blocks of an image have the digests of the tree behind it, whose root is the digest of its first block; `None` where the tree is refused.
#[cfg(fuzzing)]
pub fn read_for_fuzzing(blob: &bytes::Bytes, offset: u64) -> Option<bool> {
    let head = read(blob, offset, SUPERBLOCK).ok()?;
    let tree = Tree::of(&head, offset)?.ok()?;
    let top = read(blob, tree.start, tree.block).ok()?;
    let root = of_block(&top, tree.block as usize, &tree.salt);
    let chunks = chunks(blob, &Place { root, offset: Some(offset), block: DEFAULT_BLOCK }, &mut |_| Ok(())).ok()?;
    let packing = chunks.packing.clone()?;
    let mut all = (0..chunks.len()).filter_map(|number| chunks.get(number));
    Some(all.all(|chunk| blob.read_at(chunk.blob).is_ok_and(|bytes| packing.verify(&chunk, &bytes))))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// A tree over data, behind it, as `veritysetup format` writes it.
    fn formatted(data: &[u8], block: usize, salt: &[u8], has_superblock: bool) -> (Vec<u8>, Digest) {
        let mut levels = vec![data.chunks(block).map(|bytes| of_block(bytes, block, salt)).collect::<Vec<_>>()];
        let mut stored = Vec::new();
        while levels[levels.len() - 1].len() > 1 {
            let bytes: Vec<u8> = levels[levels.len() - 1].iter().flat_map(|digest| *digest.as_bytes()).collect();
            let blocks: Vec<Vec<u8>> =
                bytes.chunks(block).map(|bytes| [bytes, &vec![0; block - bytes.len()][..]].concat()).collect();
            levels.push(blocks.iter().map(|bytes| of_block(bytes, block, salt)).collect());
            stored.insert(0, blocks.concat());
        }
        let mut image = data.to_vec();
        if has_superblock {
            let mut head = b"verity\0\0\x01\0\0\0\x01\0\0\0".to_vec();
            head.resize(32, 9);
            head.extend_from_slice(b"sha256");
            head.resize(64, 0);
            head.extend_from_slice(&(block as u32).to_le_bytes());
            head.extend_from_slice(&(block as u32).to_le_bytes());
            head.extend_from_slice(&((data.len() / block) as u64).to_le_bytes());
            head.extend_from_slice(&(salt.len() as u16).to_le_bytes());
            head.resize(88, 0);
            head.extend_from_slice(salt);
            head.resize(block.max(512), 0);
            image.extend(head);
        }
        image.extend(stored.concat());
        (image, levels[levels.len() - 1][0])
    }

    fn of(image: &[u8], place: &Place) -> Result<Chunks, Bad> {
        chunks(&Bytes::copy_from_slice(image), place, &mut |_| Ok(()))
    }

    fn data(blocks: usize, block: usize) -> Vec<u8> {
        (0..blocks * block).map(|at| (at / 7 % 251) as u8).collect()
    }

    #[test]
    fn trees_of_all_heights_give_the_digests_of_their_blocks() {
        for (blocks, block) in [(1, 512), (2, 512), (16, 512), (17, 512), (300, 512), (3, 4096), (129, 4096)] {
            for (salt, has_superblock) in [(&[1, 2, 3][..], true), (&[][..], true), (&[0; 32][..], false), (&[], false)]
            {
                let data = data(blocks, block);
                let (image, root) = formatted(&data, block, salt, has_superblock);
                let place = Place { root, offset: Some(data.len() as u64), block: block as u64 };
                // Behind one block without a superblock there is nothing at all.
                if image.len() < data.len() + 512 {
                    assert!(of(&image, &place).is_err());
                    continue;
                }
                let chunks = of(&image, &place).unwrap();
                assert_eq!((chunks.len(), chunks.image_len()), (blocks, data.len() as u64));
                let packing = chunks.packing.clone().unwrap();
                for chunk in (0..blocks).map(|number| chunks.get(number).unwrap()) {
                    let bytes = &data[chunk.blob.start as usize..chunk.blob.end as usize];
                    assert!(packing.verify(&chunk, bytes));
                    assert!(!packing.verify(&chunk, &vec![1; bytes.len()]));
                }
            }
        }
    }

    #[test]
    fn a_tree_that_was_changed_is_none() {
        let data = data(300, 512);
        let (image, root) = formatted(&data, 512, &[5; 32], true);
        let place = Place { root, offset: Some(data.len() as u64), block: 4096 };
        let tree = data.len() + 512;
        for at in (tree..image.len()).step_by(97).chain([data.len() + 72, data.len() + 80, data.len() + 88]) {
            let mut bad = image.clone();
            bad[at] ^= 1;
            // What follows the digests in the last block of a level counts as well.
            assert!(of(&bad, &place).is_err(), "{at}");
        }
        assert!(of(&image[..image.len() - 1], &place).is_err());
        assert!(of(&image, &Place { root: Digest::of(b""), ..place }).is_err());
        assert!(of(&image, &Place { offset: Some(u64::MAX), ..place }).is_err());
        assert!(of(&image, &Place { block: 0, offset: Some(512), ..place }).is_err());
    }

    #[test]
    fn annotations_name_a_root_and_a_place() {
        let root = Digest::of(b"root");
        let of = |annotations: &[(&str, &str)]| {
            let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            Place::of(&Descriptor { digest: root, size: 9, media_type: String::new(), annotations })
        };
        let (text, hex) = (root.to_string(), root.hex().to_string());
        let place = |offset, block| Some(Place { root, offset, block });
        assert_eq!(of(&[(ROOT, &text), (OFFSET, "8192")]), place(Some(8192), 4096));
        assert_eq!(of(&[(ROOT, &hex), (OFFSET, "512"), (BLOCK, "512")]), place(Some(512), 512));
        assert_eq!(of(&[(STACKER[0], &hex)]), place(None, 4096));
        assert_eq!(of(&[(STACKER[1], &hex)]), place(None, 4096));
        assert_eq!(of(&[(ROOT, &text)]), None);
        assert_eq!(of(&[(ROOT, "sha512:00"), (OFFSET, "1")]), None);
        assert_eq!(of(&[(ROOT, &text), (OFFSET, "1"), (BLOCK, "x")]), None);
        assert_eq!(of(&[]), None);
    }
}
