//! Why the kernel does not mount or unmount, and what to do about it.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}", dir.display())]
    Directory { dir: PathBuf, source: io::Error },
    #[error("{} has not answered for {seconds} s: the server of a filesystem that leads to it is gone or stopped", path.display())]
    Unanswered { path: PathBuf, seconds: u64 },
    #[error("there is no directory {0}: make it first (mkdir -p {0})", dir.display())]
    Missing { dir: PathBuf },
    #[error("{} is not a directory", dir.display())]
    NotADirectory { dir: PathBuf },
    #[error("{} is already a crfs mount, of {image}: `crfs umount` it first", dir.display())]
    AlreadyMounted { dir: PathBuf, image: String },
    #[error("there is no /dev/fuse: load the kernel module fuse (modprobe fuse), or give the container that device")]
    NoDevice,
    #[error("cannot open /dev/fuse")]
    Device { source: io::Error },
    #[error("cannot mount on {}", dir.display())]
    Mount { dir: PathBuf, source: io::Error },
    #[error("an ordinary user mounts by fusermount3, which is not installed: install the package fuse3")]
    NoHelper,
    #[error("cannot mount on {}: {message}", dir.display())]
    Helper { dir: PathBuf, message: String },
    #[error("cannot talk to fusermount3")]
    HelperTalk { source: io::Error },
    #[error("{} is not a mount point; `crfs status` shows what is mounted where", dir.display())]
    NotMounted { dir: PathBuf },
    #[error("{}: what is mounted there has changed meanwhile; it was left alone", dir.display())]
    Replaced { dir: PathBuf },
    #[error("{} is in use; see by whom with `fuser -vm {0}` or `lsof +f -- {0}`", dir.display())]
    Busy { dir: PathBuf },
    #[error("cannot change the options of the mount {}", dir.display())]
    Remount { dir: PathBuf, source: io::Error },
    #[error("cannot unmount {}", dir.display())]
    Unmount { dir: PathBuf, source: io::Error },
    #[error("cannot unmount {}: {message}", dir.display())]
    HelperUnmount { dir: PathBuf, message: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_mount_says_what_to_look_with() {
        let text = Error::Busy { dir: PathBuf::from("/mnt/a") }.to_string();
        assert!(text.contains("fuser -vm /mnt/a") && text.contains("lsof +f -- /mnt/a"), "{text}");
    }
}
