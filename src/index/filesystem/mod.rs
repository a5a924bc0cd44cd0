//! Layers that are filesystem images: an image in, which is here as a whole, and a layer index of our own out.
//!
//! ```text
//! format (erofs, squashfs)    inodes, directories, and where each file's contents are
//! tree.rs                     walks it: entries for the builder, files in the order of their contents
//! contents.rs                 extents to units, pieces and checks
//! ```
//!
//! Both formats are read as their kernel drivers read them (Linux, fs/erofs and fs/squashfs). All that an image says is hostile until it is used.

mod codec;
mod contents;
mod erofs;
mod image;
mod squashfs;
mod tree;
mod vouched;

#[cfg(fuzzing)]
pub(crate) mod fuzzing;
#[cfg(test)]
mod tests;

use std::io;

use self::contents::{Contents, Extent};
use self::image::Image;
use self::vouched::{Vouched, WrongChunk};
use super::builder::{Builder, Layer};
use super::error::{Problem, Rejected};
use super::plain::{Failed, Keep, Made};
use super::stored::{self, Chunks, Codec, Encoded};
use super::tar_split::NoTarSplit;
use super::xattrs::Xattr;
use super::{Format, Identity, Time};
use crate::blob::{ByteRange, ByteSource, Digest};
use crate::budget::Charge;
use crate::sys::expansion::{Allowance, Meter};

/// Why an image gives no index.
#[derive(Debug)]
pub(super) enum Bad {
    /// Its bytes cannot be had, or come to too much.
    Stream(io::Error),
    Layer(Rejected),
}

impl Bad {
    fn at(self, blob: Digest) -> Failed {
        match self {
            Self::Stream(error) => Failed::Stream(error),
            Self::Layer(rejected) => Failed::Layer(rejected.at(blob)),
        }
    }

    /// The same, of that entry.
    fn of(self, path: &[u8]) -> Self {
        match self {
            Self::Layer(Rejected { entry: None, problem }) => Self::Layer(Rejected::entry(path, problem)),
            other => other,
        }
    }
}

impl From<Problem> for Bad {
    fn from(problem: Problem) -> Self {
        Self::Layer(problem.into())
    }
}

impl From<Rejected> for Bad {
    fn from(rejected: Rejected) -> Self {
        Self::Layer(rejected)
    }
}

/// It is no image that its format's kernel driver would read.
fn broken(what: impl Into<String>) -> Bad {
    Problem::Filesystem(what.into()).into()
}

/// It is, but crfs does not read such.
fn unread(what: impl Into<String>) -> Bad {
    Problem::FilesystemFeature(what.into()).into()
}

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Dir,
    File,
    Symlink,
    Char,
    Block,
    Fifo,
    Socket,
}

/// An inode, but for what it holds.
#[derive(Debug)]
struct Inode {
    kind: Kind,
    /// Permissions, with set-id and sticky bits.
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: Time,
    size: u64,
    /// Major and minor number of a device.
    device: (u32, u32),
    /// More names than one may have it.
    is_linked: bool,
    xattrs: Vec<Xattr>,
}

/// Takes a part of a file.
type EachExtent<'a> = &'a mut dyn FnMut(Extent) -> Result<Enough, Bad>;

/// Takes an entry of a directory.
type EachName<'a> = &'a mut dyn FnMut(&[u8], u64) -> Result<(), Bad>;

/// What a format reads. An inode is known by a number of the format's own.
trait Layout {
    fn root(&self) -> u64;

    fn inode(&self, id: u64) -> Result<Inode, Bad>;

    /// Name and inode of each entry of a directory; `.` and `..` may be among them.
    fn list(&self, id: u64, each: EachName<'_>) -> Result<(), Bad>;

    fn target(&self, id: u64) -> Result<Vec<u8>, Bad>;

    /// A file's extents, in order, until `each` says that it has enough.
    fn extents(&self, id: u64, each: EachExtent<'_>) -> Result<(), Bad>;
}

/// Whether more is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Enough {
    No,
    Yes,
}

/// Bytes of all values of an inode's xattrs, of which many inodes and names may share one in the image. Disks have less for an inode.
const XATTR_VALUES: usize = 1 << 20;

/// So many, if they are no more than an inode may have.
fn few(values: usize) -> Result<usize, Bad> {
    if values > XATTR_VALUES {
        return Err(broken(format!("the values of an inode's xattrs have more than {XATTR_VALUES} bytes")));
    }
    Ok(values)
}

/// Permission bits and type of a mode.
fn kind_of(mode: u16) -> Result<Kind, Bad> {
    Ok(match mode & 0o170_000 {
        0o040_000 => Kind::Dir,
        0o100_000 => Kind::File,
        0o120_000 => Kind::Symlink,
        0o020_000 => Kind::Char,
        0o060_000 => Kind::Block,
        0o010_000 => Kind::Fifo,
        0o140_000 => Kind::Socket,
        _ => return Err(broken(format!("an inode has the mode {mode:o}"))),
    })
}

/// A device's numbers as the kernel packs them into 32 bits.
fn device_of(word: u32) -> (u32, u32) {
    (word >> 8 & 0xfff, word & 0xff | word >> 12 & 0xf_ff00)
}

/// Reads an image of which all bytes are here, with the digest that they are known by. `keep` takes the layer file.
pub(crate) fn make(
    blob: Digest,
    format: Format,
    source: &dyn ByteSource,
    keep: Keep<'_>,
    meter: Meter,
    charge: Charge,
) -> Result<Made, Failed> {
    let frames = Frames { diff_id: blob, chunks: Chunks::default() };
    make_unpacked(blob, (format, frames), source, keep, meter, charge)
}

/// What a blob was unpacked from to be an image: all of it, with its digest, and which parts come from where.
pub(crate) struct Frames {
    pub(crate) diff_id: Digest,
    pub(crate) chunks: Chunks,
}

/// The same of an image that the blob has in zstd frames, and that is unpacked in `source`.
pub(crate) fn make_unpacked(
    blob: Digest,
    (format, frames): (Format, Frames),
    source: &dyn ByteSource,
    keep: Keep<'_>,
    meter: Meter,
    charge: Charge,
) -> Result<Made, Failed> {
    let Frames { diff_id, chunks } = frames;
    let mut layer = read(format, source, Some(keep), (meter, &charge)).map_err(|bad| bad.at(blob))?;
    layer.tables.within(chunks);
    let encoded = stored::encode(blob, Some(Identity::Own), format, 0, Some(diff_id), layer);
    let Encoded { bytes: encoded, charge } = encoded.map_err(Failed::Layer)?;
    Ok(Made { diff_id, encoded, split: Some(Err(NoTarSplit::Filesystem)), charge })
}

/// Who vouches for an image, and what all of its chunks are.
pub(super) struct Vouchers {
    pub(super) identity: Identity,
    pub(super) chunks: Chunks,
    /// Bytes that they were read from.
    pub(super) len: u64,
}

/// Reads the metadata of an image of which `source` has the blob, by the chunks that the manifest vouches for. Nothing of its contents is read.
pub(super) fn make_vouched(
    blob: Digest,
    source: &dyn ByteSource,
    vouchers: Vouchers,
    charge: Charge,
) -> Result<(Format, Encoded), Failed> {
    let Vouchers { identity, chunks, len } = vouchers;
    let image = Vouched::new(source, &chunks);
    let head = image.read_at(ByteRange { start: 0, end: image.size().min(super::HEAD as u64) });
    let head = head.map_err(|error| Failed::Stream(io::Error::other(error)))?;
    let format = super::foreign::of_image(&head);
    let format = format.map_err(|what| Failed::Layer(super::Error::Foreign { layer: blob, what }))?;
    let layer = read(format, &image, None, (Meter::new(&Allowance::default()), &charge));
    let mut layer = layer.map_err(|bad| bad.at(blob))?;
    layer.tables.within(chunks);
    let encoded = stored::encode(blob, Some(identity), format, len, None, layer).map_err(Failed::Layer)?;
    Ok((format, encoded))
}

/// Whether chunks were read that do not have their digests.
pub(super) fn is_wrong_chunk(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|error| error.is::<WrongChunk>())
}

fn read(
    format: Format,
    source: &dyn ByteSource,
    keep: Option<Keep<'_>>,
    (meter, charge): (Meter, &Charge),
) -> Result<Layer, Bad> {
    let image = Image::new(source, meter, keep.is_none());
    #[expect(clippy::needless_match, reason = "it becomes one for as long as the image is there")]
    let keep: Option<Keep<'_>> = match keep {
        Some(keep) => Some(keep),
        None => None,
    };
    let builder = Builder::new(Codec::Stored, 0).charged(charge.beside());
    let contents = Contents::new(&image, keep, charge.beside_windows(0));
    let read = match format {
        Format::Squashfs => squashfs::Squashfs::open(&image, charge)
            .and_then(|layout| tree::read(&layout, builder, contents, charge.beside())),
        _ => erofs::Erofs::open(&image, charge)
            .and_then(|layout| tree::read(&layout, builder, contents, charge.beside())),
    };
    let layer = read?;
    image.finish();
    Ok(layer)
}
