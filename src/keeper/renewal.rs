//! A keeper becomes the program of its worker: by execve(2), as the same process with the same children.
//!
//! A worker that an upgrade has brought, and that has served for a while, has shown that its program is sound. What is held goes through a pair of
//! sockets that the process has with itself: descriptors on their way in it outlive the change, and nobody has to know their numbers.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::SUBCOMMAND;
use super::wire::{Channel, Held, Kept, Packet};

/// The form of what is passed on. A worker says which one its program knows (`Packet::Ready`).
pub(crate) const FORM: u8 = 1;

/// Between what a keeper was started as, and the number of the descriptor by which it is passed on.
const MARK: u8 = b'=';

/// Runs the program of `kept.worker` in the place of this one. Comes back only where that cannot be.
pub(super) fn renew(held: &Held, kept: Kept, ground: &str, arguments: &[OsString]) -> io::Result<()> {
    let program = CString::new(format!("/proc/{}/exe", kept.worker))?;
    let (ours, theirs) = Channel::pair()?;
    ours.hand_over(held, false)?;
    ours.send(&Packet::Kept(kept))?;
    let number = theirs.as_fd().as_raw_fd().to_string();
    let ground = [ground.as_bytes(), &[MARK], number.as_bytes()].concat();
    let own = ["crfs".into(), SUBCOMMAND.into(), OsString::from_vec(ground)];
    let arguments: Result<Vec<_>, _> =
        own.iter().chain(arguments).map(|argument| CString::new(argument.as_bytes())).collect();
    fcntl(theirs.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
    match nix::unistd::execv(&program, &arguments?) {
        Ok(never) => match never {},
        Err(errno) => Err(errno.into()),
    }
}

/// What a keeper was started as, and what was passed on to it.
pub(super) fn passed_on(ground: &OsStr) -> io::Result<(&OsStr, Option<(Held, Kept)>)> {
    let bytes = ground.as_bytes();
    let Some(mark) = bytes.iter().position(|byte| *byte == MARK) else { return Ok((ground, None)) };
    let (ground, number) = bytes.split_at(mark);
    let number = number.get(1..).and_then(|number| std::str::from_utf8(number).ok()?.parse().ok());
    let channel = Channel::inherited(number.ok_or(io::ErrorKind::InvalidInput)?)?;
    match (channel.receive()?, channel.receive()?) {
        (Some(Packet::Held(held, _)), Some(Packet::Kept(kept))) => Ok((OsStr::from_bytes(ground), Some((held, kept)))),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "what was passed on to the keeper is incomplete")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keeper_is_new_unless_a_descriptor_is_named() {
        let (ground, passed_on) = passed_on(OsStr::new("background")).unwrap();
        assert_eq!(ground, "background");
        assert!(passed_on.is_none());
    }

    #[test]
    fn what_is_no_descriptor_is_refused() {
        for ground in ["background=", "background=x", "background=1", "background=99999"] {
            assert!(passed_on(OsStr::new(ground)).is_err(), "{ground}");
        }
    }
}
