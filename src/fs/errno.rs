//! From what went wrong to the errno that a caller sees: the one place where that is decided.

use nix::errno::Errno;

use super::view::ReadError;

/// Why a request gets no answer but an errno.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("no such inode")]
    UnknownInode,
    #[error("not a directory")]
    NotADirectory,
    #[error("not a symlink")]
    NotASymlink,
    #[error("a name of more than 255 bytes")]
    NameTooLong,
    #[error("past the last data of the file")]
    NoMoreData,
    #[error("no such way to seek")]
    NoSuchSeek,
    #[error("no such xattr")]
    NoSuchXattr,
    #[error("the buffer is too small")]
    BufferTooSmall,
    #[error("an image cannot be changed")]
    ReadOnly,
    /// The kernel does it by itself from then on, and does not ask again.
    #[error("left to the kernel")]
    LeftToKernel,
    #[error("no such ioctl")]
    NoSuchIoctl,
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Refused {
    pub(super) fn errno(&self) -> Errno {
        match self {
            // The kernel names only inodes that it was given, so this is our fault. Not ENOENT: READDIR answered so shows an empty
            // directory. Not ESTALE: overlayfs passes it on for good.
            Self::UnknownInode => Errno::EIO,
            Self::NotADirectory => Errno::ENOTDIR,
            Self::NotASymlink => Errno::EINVAL,
            Self::NameTooLong => Errno::ENAMETOOLONG,
            Self::NoMoreData => Errno::ENXIO,
            Self::NoSuchSeek => Errno::EINVAL,
            Self::NoSuchXattr => Errno::ENODATA,
            Self::BufferTooSmall => Errno::ERANGE,
            Self::ReadOnly => Errno::EROFS,
            Self::LeftToKernel => Errno::ENOSYS,
            // ENOSYS breaks overlayfs's copy-up on Linux 5.15.
            Self::NoSuchIoctl => Errno::ENOTTY,
            // Whatever the cause, content trouble is EIO: EINTR or EAGAIN make programs retry for ever, and anything else tells a lie about the file.
            Self::Read(
                ReadError::NotAFile { .. }
                | ReadError::NoSuchLayer { .. }
                | ReadError::Contents { .. }
                | ReadError::WrongLength { .. },
            ) => Errno::EIO,
        }
    }
}
