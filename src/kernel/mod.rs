//! What crfs asks of the kernel: mounts, /dev/fuse, and what is mounted where. Knows nothing of images.

mod attach;
mod error;
pub(crate) mod fusedev;
pub(crate) mod mounts;

pub use error::Error;

use std::path::Path;

/// What is mounted where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    /// A directory, absolute, without symbolic links.
    pub(crate) dir: &'a Path,
    /// What /proc/mounts shows: the image.
    pub(crate) source: &'a str,
    /// Whether other users may look into it.
    pub(crate) allow_other: bool,
    /// Whether the kernel asks the server what becomes of a change, instead of refusing it. Each read then costs a GETATTR for the access time, the
    /// next time that somebody wants that.
    pub(crate) is_asked_for_changes: bool,
    /// Whether nobody may start a program from it.
    pub(crate) noexec: bool,
}
