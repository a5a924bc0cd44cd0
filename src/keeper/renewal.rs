//! Keepers that go on where another one stopped.
//!
//! A keeper becomes the program of its worker: by execve(2), as the same process with the same children. A worker that an upgrade has brought, and that has served for a while, has shown that its program is sound. What is held goes through a pair of
//! sockets that the process has with itself: descriptors on their way in it outlive the change, and nobody has to know their numbers.
//!
//! A worker whose keeper was killed starts another one, and ends. The new keeper waits for that end, and starts the next worker as ever.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::wire::{Channel, Go, Held, Kept, Packet, Words};
use super::{BACKGROUND, SUBCOMMAND};

/// The form of what is passed on. A worker says which one its program knows (`Packet::Ready`).
pub(crate) const FORM: u8 = 1;

/// How many ms another keeper may take to come up.
const PATIENCE: u16 = 5000;

/// Between what a keeper was started as, and the number of the descriptor by which it is passed on.
const MARK: u8 = b'=';

/// Runs the program of `kept.worker` in the place of this one. Comes back only where that cannot be.
pub(super) fn renew(held: &Held, kept: Kept, ground: &str, arguments: &[OsString]) -> io::Result<()> {
    let program = CString::new(format!("/proc/{}/exe", kept.worker))?;
    let (ours, theirs) = Channel::pair()?;
    ours.hand_over(held, false)?;
    ours.send(&Packet::Kept(kept))?;
    let own = ["crfs".into(), SUBCOMMAND.into(), with_channel(ground, &theirs)];
    let arguments: Result<Vec<_>, _> =
        own.iter().chain(arguments).map(|argument| CString::new(argument.as_bytes())).collect();
    fcntl(theirs.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
    match nix::unistd::execv(&program, &arguments?) {
        Ok(never) => match never {},
        Err(errno) => Err(errno.into()),
    }
}

fn with_channel(ground: &str, channel: &Channel) -> OsString {
    let number = channel.as_fd().as_raw_fd().to_string();
    OsString::from_vec([ground.as_bytes(), &[MARK], number.as_bytes()].concat())
}

/// Starts another keeper in the background, which waits for the end of this process. `arguments`: those of its workers.
pub(crate) fn start_heir(held: &Held, go: Go, arguments: &[&str]) -> io::Result<()> {
    let (ours, theirs) = Channel::pair()?;
    ours.hand_over(held, false)?;
    ours.send(&Packet::Go(go))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("crfs").arg(SUBCOMMAND).arg(with_channel(BACKGROUND, &theirs)).args(arguments);
    // Whatever else is started at this moment gets it as well, and reads nothing of it.
    fcntl(theirs.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
    let mut heir = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    drop(theirs);
    let mut answer = [PollFd::new(ours.as_fd(), PollFlags::POLLIN)];
    let _answered = poll(&mut answer, PollTimeout::from(PATIENCE));
    if !matches!(ours.receive_now(), Ok(Some(Packet::Ready(..)))) {
        let _gone = heir.kill();
        return Err(io::ErrorKind::TimedOut.into());
    }
    // It is closed by the end of this process and not before.
    std::mem::forget(ours);
    Ok(())
}

/// What a keeper goes on with.
#[derive(Debug)]
pub(super) enum Passed {
    /// By the program that this one took the place of.
    Kept(Held, Kept),
    /// By a worker that ends: when the channel does.
    Left(Held, Go, Channel),
    /// By a keeper that was killed, to the service manager, and by that to this one (shelf.rs).
    TakenBack(Held, Go),
}

/// What a keeper was started as, and what was passed on to it.
pub(super) fn passed_on(ground: &OsStr) -> io::Result<(&OsStr, Option<Passed>)> {
    let bytes = ground.as_bytes();
    let Some(mark) = bytes.iter().position(|byte| *byte == MARK) else { return Ok((ground, None)) };
    let (ground, number) = bytes.split_at(mark);
    let number = number.get(1..).and_then(|number| std::str::from_utf8(number).ok()?.parse().ok());
    let channel = Channel::inherited(number.ok_or(io::ErrorKind::InvalidInput)?)?;
    let passed = match (channel.receive()?, channel.receive()?) {
        (Some(Packet::Held(held, _)), Some(Packet::Kept(kept))) => Passed::Kept(held, kept),
        (Some(Packet::Held(held, _)), Some(Packet::Go(go))) => {
            channel.send(&Packet::Ready(FORM, Words::default()))?;
            Passed::Left(held, go, channel)
        }
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "what was passed on to the keeper is incomplete")),
    };
    Ok((OsStr::from_bytes(ground), Some(passed)))
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
