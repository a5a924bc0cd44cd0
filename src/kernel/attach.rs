//! A mount that is known before anybody can see it: it is made where there is no path to it, and attached then (fsopen(2), fsmount(2), move_mount(2)).
//!
//! What is found at a directory after mount(2) may be somebody else's mount.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::unistd::geteuid;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, move_mount,
};

use super::Target;
use super::mounts::{Device, Identity};

/// Mounts, with those options of the kernel's fuse. The descriptor is one of the mount's root directory, and keeps the mount busy.
///
/// Fails before Linux 5.8, or where the source is longer than 255 bytes. Nothing is mounted then.
pub(super) fn mount(target: &Target<'_>, options: &str) -> io::Result<(Identity, OwnedFd)> {
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    set(context.as_fd(), "source", target.source)?;
    set(context.as_fd(), "subtype", "crfs")?;
    for option in options.split(',') {
        match option.split_once('=') {
            Some((name, value)) => set(context.as_fd(), name, value)?,
            None => fsconfig_set_flag(context.as_fd(), option)?,
        }
    }
    // The superblock, not only the mount, becomes read-only: else each read would cost a GETATTR for the access time.
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    if !target.is_asked_for_changes {
        fsconfig_set_flag(context.as_fd(), "ro")?;
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    fsconfig_create(context.as_fd())?;
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, target.noexec);
    let root = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let identity = identity(root.as_fd(), target.source)?;
    move_mount(root.as_fd(), "", CWD, target.dir, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok((identity, root))
}

fn set(context: BorrowedFd<'_>, name: &str, value: &str) -> io::Result<()> {
    Ok(fsconfig_set_string(context, name, value)?)
}

/// What a mount is known by. Its server, which does not answer yet, is asked nothing.
fn identity(root: BorrowedFd<'_>, source: &str) -> io::Result<Identity> {
    let found = statx(root, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID)?;
    if found.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(Identity {
        id: u32::try_from(found.stx_mnt_id).map_err(io::Error::other)?,
        device: Device { major: found.stx_dev_major, minor: found.stx_dev_minor },
        source: source.to_owned(),
        user: Some(geteuid().as_raw()),
    })
}
