//! Answers the kernel while no worker does: EIO, to all but those who wait for no answer.
//!
//! What a worker had read before it died, the kernel gives out once more (FUSE_NOTIFY_RESEND, Linux 6.9), marked in its number. So it is known which
//! requests a worker died on, and nobody has to keep a journal of them.
//!
//! The descriptor is read without waiting: of a request that somebody gave up on, nothing is left to read. All who have the descriptor see that
//! setting. So it is only changed while no worker uses it, and changed back before the next one does.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};

/// Bytes of the header of a request, and of an answer (struct fuse_in_header, fuse_out_header).
const IN_HEADER: usize = 40;
const OUT_HEADER: u32 = 16;
/// Requests that want no answer.
const FORGET: u32 = 2;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
/// A notification that asks the kernel for what it has given out already.
const NOTIFY_RESEND: i32 = 7;
/// The bit of a request's number that says that it was given out before.
const RESENT: u64 = 1 << 63;
/// The kernel reads into nothing that is too short for a request to write, as long as these may be: 1 MiB and its header.
const BUFFER: usize = (1 << 20) + (64 << 10);
/// As many are refused before somebody else is heard.
const AT_A_TIME: usize = 256;
/// As many requests are looked at to find those that a worker died on.
const LOOKED_AT: usize = 100_000;

/// A request, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    number: u64,
    is_answered: bool,
}

/// What reading found.
enum Found {
    Asked(Asked),
    NothingNow,
    /// The mount is no more.
    Gone,
}

/// Whoever answers in a worker's place. The mount is what it was when this is dropped.
#[derive(Debug)]
pub(super) struct Refusing {
    device: OwnedFd,
    buffer: Vec<u8>,
}

/// Whether there is still a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mount {
    There,
    Gone,
}

impl Refusing {
    /// To be begun while no worker has the descriptor.
    pub(super) fn begin(device: &OwnedFd) -> io::Result<Self> {
        let refusing = Self { device: device.try_clone()?, buffer: vec![0; BUFFER] };
        set_waiting(device.as_fd(), false)?;
        Ok(refusing)
    }

    /// Has what was read and not answered asked once more.
    pub(super) fn resend(&self) -> io::Result<()> {
        resend(self.device.as_fd())
    }

    /// Refuses what the kernel has asked until now, or some of it: there may be more all the time.
    pub(super) fn refuse_some(&mut self) -> io::Result<Mount> {
        for _ in 0..AT_A_TIME {
            match self.next()? {
                Found::Asked(asked) => self.refuse(asked)?,
                Found::NothingNow => break,
                Found::Gone => return Ok(Mount::Gone),
            }
        }
        Ok(Mount::There)
    }

    /// The numbers of the requests that a worker had read and not answered. They stay unanswered.
    pub(super) fn unanswered(&mut self) -> io::Result<BTreeSet<u64>> {
        // What is still to be read, no worker has died on.
        let innocent: BTreeSet<_> = self.numbers()?.into_iter().map(|number| number & !RESENT).collect();
        self.resend()?;
        let all = self.numbers()?;
        let was_read = |number: &u64| number & RESENT != 0 && !innocent.contains(&(number & !RESENT));
        Ok(all.into_iter().filter(was_read).collect())
    }

    /// The numbers of what there is to be read.
    fn numbers(&mut self) -> io::Result<BTreeSet<u64>> {
        let mut numbers = BTreeSet::new();
        for _ in 0..LOOKED_AT {
            match self.next()? {
                Found::Asked(asked) => drop(numbers.insert(asked.number)),
                Found::NothingNow | Found::Gone => break,
            }
        }
        Ok(numbers)
    }

    /// Refuses the requests with these numbers, which were read before.
    pub(super) fn refuse_these(&self, numbers: impl IntoIterator<Item = u64>) -> io::Result<()> {
        numbers.into_iter().try_for_each(|number| self.refuse(Asked { number, is_answered: true }))
    }

    fn refuse(&self, asked: Asked) -> io::Result<()> {
        if !asked.is_answered {
            return Ok(());
        }
        match write(&self.device, &answer(asked.number, -(Errno::EIO as i32))) {
            // Whoever asked has gone.
            Ok(_) | Err(Errno::ENOENT | Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn next(&mut self) -> io::Result<Found> {
        loop {
            match read(&self.device, &mut self.buffer) {
                Ok(len) => {
                    return Ok(
                        asked(self.buffer.get(..len).unwrap_or_default()).map_or(Found::NothingNow, Found::Asked)
                    );
                }
                Err(Errno::EAGAIN) => return Ok(Found::NothingNow),
                Err(Errno::ENODEV) => return Ok(Found::Gone),
                Err(Errno::EINTR | Errno::ENOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Drop for Refusing {
    fn drop(&mut self) {
        // The next worker would take an empty queue for the end.
        let _waits_again = set_waiting(self.device.as_fd(), true);
    }
}

/// Whether the mount of a descriptor is still there.
pub(super) fn mount(device: BorrowedFd<'_>) -> Mount {
    let mut asked = [PollFd::new(device, PollFlags::empty())];
    let ended = poll(&mut asked, PollTimeout::ZERO).is_ok_and(|found| found > 0);
    if ended { Mount::Gone } else { Mount::There }
}

fn set_waiting(device: BorrowedFd<'_>, waits: bool) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(device.as_fd(), FcntlArg::F_GETFL)?);
    let flags = if waits { flags - OFlag::O_NONBLOCK } else { flags | OFlag::O_NONBLOCK };
    Ok(fcntl(device.as_fd(), FcntlArg::F_SETFL(flags)).map(drop)?)
}

/// Has the kernel give out once more what was read and not answered.
pub(crate) fn resend(device: BorrowedFd<'_>) -> io::Result<()> {
    loop {
        match write(device, &answer(0, NOTIFY_RESEND)) {
            Err(Errno::EINTR) => {}
            done => return Ok(done.map(drop)?),
        }
    }
}

/// An answer without contents; with the number 0, a notification.
fn answer(number: u64, error: i32) -> [u8; OUT_HEADER as usize] {
    let mut header = [0; OUT_HEADER as usize];
    let fields = OUT_HEADER.to_ne_bytes().into_iter().chain(error.to_ne_bytes()).chain(number.to_ne_bytes());
    header.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
    header
}

/// `None` where that is no request.
fn asked(request: &[u8]) -> Option<Asked> {
    let header = request.first_chunk::<IN_HEADER>()?;
    let (_, rest) = header.split_first_chunk::<4>()?;
    let (operation, rest) = rest.split_first_chunk()?;
    let number = u64::from_ne_bytes(*rest.first_chunk()?);
    let is_answered = ![FORGET, INTERRUPT, BATCH_FORGET].contains(&u32::from_ne_bytes(*operation));
    Some(Asked { number, is_answered })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(operation: u32, number: u64) -> Vec<u8> {
        let mut request = [40u32.to_ne_bytes(), operation.to_ne_bytes()].concat();
        request.extend(number.to_ne_bytes());
        request.resize(IN_HEADER, 0);
        request
    }

    #[test]
    fn requests_are_told_by_their_numbers_and_some_want_no_answer() {
        assert_eq!(asked(&request(15, 9)), Some(Asked { number: 9, is_answered: true }));
        for operation in [FORGET, INTERRUPT, BATCH_FORGET] {
            assert_eq!(asked(&request(operation, 10)), Some(Asked { number: 10, is_answered: false }));
        }
        assert_eq!(asked(&request(15, 9)[..39]), None);
        assert_eq!(asked(&[]), None);
    }

    #[test]
    fn an_answer_is_as_long_as_it_says() {
        let refused = answer(7 | RESENT, -5);
        assert_eq!(refused[..4], 16u32.to_ne_bytes());
        assert_eq!(refused[4..8], (-5i32).to_ne_bytes());
        assert_eq!(refused[8..], (7 | RESENT).to_ne_bytes());
    }
}
