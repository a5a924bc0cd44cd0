//! Asks the kernel whether it knows a node, as a process has to that was not there when the kernel was told of it.
//!
//! There is no such question. But the kernel says of a notification that it is about nothing that it knows (ENOENT), and one kind does no more than to
//! have attributes asked for again (FUSE_NOTIFY_INVAL_INODE with an offset below 0). It waits for no request, nor for a lock that is held over one.

use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::unistd::write;

/// The notification, and the bytes of it: struct fuse_out_header and struct fuse_notify_inval_inode_out.
const NOTIFY_INVAL_INODE: i32 = 2;
const LENGTH: u32 = 16 + 24;
/// No pages, but attributes.
const ATTRIBUTES: i64 = -1;

/// What cannot be asked counts as known.
pub(super) fn is_known(device: impl AsFd, number: u64) -> bool {
    loop {
        match write(device.as_fd(), &notification(number)) {
            Err(Errno::EINTR) => {}
            Err(Errno::ENOENT) => return false,
            Ok(_) => return true,
            Err(errno) => {
                let error = io::Error::from(errno);
                tracing::debug!(%error, "the kernel does not say whether it knows a node");
                return true;
            }
        }
    }
}

fn notification(number: u64) -> Vec<u8> {
    let header = [LENGTH.to_ne_bytes(), NOTIFY_INVAL_INODE.to_ne_bytes()].concat();
    let body = [0u64.to_ne_bytes(), number.to_ne_bytes(), ATTRIBUTES.to_ne_bytes(), 0i64.to_ne_bytes()].concat();
    [header, body].concat()
}
