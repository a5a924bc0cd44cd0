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

#[cfg(fuzzing)]
pub(crate) mod fuzzing;
#[cfg(test)]
mod tests;

use std::io;

use self::contents::{Contents, Extent};
use self::image::Image;
use super::builder::Builder;
use super::error::{Problem, Rejected};
use super::plain::{Failed, Keep, Made};
use super::stored::{self, Codec, Encoded};
use super::tar_split::NoTarSplit;
use super::xattrs::Xattr;
use super::{Format, Identity, Time};
use crate::blob::{ByteSource, Digest};
use crate::budget::Charge;
use crate::sys::expansion::Meter;

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
    let image = Image::new(source, meter);
    let builder = Builder::new(Codec::Stored, 0).charged(charge.beside());
    let contents = Contents::new(&image, keep, charge.beside_windows(0));
    let read = match format {
        Format::Squashfs => squashfs::Squashfs::open(&image, &charge)
            .and_then(|layout| tree::read(&layout, builder, contents, charge.beside())),
        _ => erofs::Erofs::open(&image, &charge)
            .and_then(|layout| tree::read(&layout, builder, contents, charge.beside())),
    };
    let layer = read.map_err(|bad| bad.at(blob))?;
    image.finish();
    let encoded = stored::encode(blob, Some(Identity::Own), format, 0, Some(blob), layer);
    let Encoded { bytes: encoded, charge } = encoded.map_err(Failed::Layer)?;
    Ok(Made { diff_id: blob, encoded, split: Some(Err(NoTarSplit::Filesystem)), charge })
}
