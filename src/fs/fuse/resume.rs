//! Goes on with a connection whose terms another process has settled with the kernel.
//!
//! The kernel says FUSE_INIT once in the life of a connection, and fuser serves none before it has heard that. So it hears it from here, over a pair of
//! sockets; then the descriptor that it reads from becomes that of /dev/fuse. The answer says nothing that the kernel has not been told before: it is
//! what the same code answered to the process before.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use fuser::{Filesystem, InitFlags, Session};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::write;

use super::{CAPABILITIES, session};
use crate::sys;

/// The operation, and the kernel's version of the protocol (struct fuse_init_in): from 7.31 on there is no difference to what crfs answers.
const INIT: u32 = 26;
const VERSION: [u32; 2] = [7, 40];
/// Bytes of the request: struct fuse_in_header and struct fuse_init_in.
const HEADER: u32 = 40;
const BODY: u32 = 64;

/// A session on a descriptor of /dev/fuse that has served before. What was read from it and not answered is to be asked for again, before the session
/// runs.
pub(super) fn resumed<F: Filesystem>(filesystem: F, device: OwnedFd) -> io::Result<Session<F>> {
    let (kernel, server) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    write(&kernel, &init_request())?;
    let session = session(filesystem, server)?;
    sys::replace(session.as_fd(), device.as_fd())?;
    Ok(session)
}

fn init_request() -> Vec<u8> {
    let offered = CAPABILITIES.into_iter().fold(InitFlags::FUSE_INIT_EXT, |all, one| all | one)
        | InitFlags::FUSE_POSIX_ACL
        | InitFlags::FUSE_EXPORT_SUPPORT
        | InitFlags::FUSE_HAS_RESEND;
    let [low, high] = [offered.bits() as u32, (offered.bits() >> 32) as u32];
    let mut request = Vec::new();
    // Its number is 1, and nobody asks.
    let header = [HEADER + BODY, INIT, 1, 0, 0, 0, 0, 0, 0, 0];
    let [major, minor] = VERSION;
    let body = [major, minor, super::MAX_REQUEST, low, high];
    header.into_iter().chain(body).for_each(|word| request.extend(word.to_ne_bytes()));
    request.resize((HEADER + BODY) as usize, 0);
    request
}
