//! What a keeper and its worker say to each other: packets on a pair of sockets (SOCK_SEQPACKET, unix(7)), some with descriptors.
//!
//! | packet | from | what follows its first byte |
//! |---|---|---|
//! | held; beside, where another serves still | the worker that mounted; to the one that goes on with it | the I/O deadline in ms (8 bytes, little-endian), the description; three descriptors |
//! | ready | a worker that could take over | the form in which its program takes over from a keeper (1 byte); of the first one: what the keeper is to say to whoever waits for the mount (the length of what goes to standard output, 4 bytes; that; what goes to standard error) |
//! | told | the keeper, to its first worker: it has been said | |
//! | kept | a keeper to the program that it becomes | the worker's process, how many workers there were before it, how often for an upgrade (4 bytes each); a descriptor |
//! | go | the keeper: it does, from now on; a worker to the keeper that it starts because its own is gone | how many workers there were before it, how often for an upgrade (4 bytes each), how the last one ended |
//! | failed | a worker that ends | why |
//! | upgrade | a worker that was asked for one | |
//! | refused | the keeper: there will be none | why |

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};

use crate::sys;

/// Bytes of the longest packet. A description has some paths of up to 4 KiB, of which each byte may take four.
const LONGEST: usize = 160 << 10;
/// How many descriptors a packet can have.
const DESCRIPTORS: usize = 3;

/// All that a mount needs to go on without the worker that made it.
#[derive(Debug)]
pub(crate) struct Held {
    /// What is served, in words that only workers know.
    pub(crate) description: Vec<u8>,
    /// How long whoever uses the mount may wait while nobody serves it.
    pub(crate) io_deadline: Duration,
    /// /dev/fuse.
    pub(crate) device: OwnedFd,
    /// The control socket.
    pub(crate) listener: OwnedFd,
    /// Its state's directory is locked as long as this is open.
    pub(crate) lock: OwnedFd,
}

impl Held {
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            description: self.description.clone(),
            io_deadline: self.io_deadline,
            device: self.device.try_clone()?,
            listener: self.listener.try_clone()?,
            lock: self.lock.try_clone()?,
        })
    }

    fn bytes(&self, beside: bool) -> (u8, Vec<u8>) {
        (if beside { b'b' } else { b'h' }, self.described())
    }

    /// What is no descriptor of it.
    pub(super) fn described(&self) -> Vec<u8> {
        let deadline = u64::try_from(self.io_deadline.as_millis()).unwrap_or(u64::MAX);
        [&deadline.to_le_bytes(), &*self.description].concat()
    }

    /// `None` where it is not whole.
    pub(super) fn of(described: &[u8], device: OwnedFd, listener: OwnedFd, lock: OwnedFd) -> Option<Self> {
        let (deadline, description) = described.split_first_chunk()?;
        let io_deadline = Duration::from_millis(u64::from_le_bytes(*deadline));
        Some(Self { description: description.to_vec(), io_deadline, device, listener, lock })
    }

    fn descriptors(&self) -> [RawFd; DESCRIPTORS] {
        [&self.device, &self.listener, &self.lock].map(AsRawFd::as_raw_fd)
    }
}

/// How a worker came to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Go {
    /// How many there were before it.
    pub(crate) before: u32,
    /// How many of them have gone for an upgrade.
    pub(crate) upgrades: u32,
    /// How the last of them came to its end.
    pub(crate) why: String,
}

/// What whoever waits for a mount is told, once it can be used. The keeper says it: its worker may be gone by then, and the mount is not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Words {
    /// For standard output, and for standard error.
    pub output: String,
    pub error: String,
}

impl Words {
    fn bytes(&self) -> Vec<u8> {
        let len = u32::try_from(self.output.len()).unwrap_or(u32::MAX);
        [&len.to_le_bytes(), self.output.as_bytes(), self.error.as_bytes()].concat()
    }

    /// None at all where they are not whole.
    fn of(bytes: &[u8]) -> Self {
        let words = || {
            let (len, rest) = bytes.split_first_chunk()?;
            let (output, error) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*len)).ok()?)?;
            let [output, error] = [output, error].map(|words| String::from_utf8_lossy(words).into_owned());
            Some(Self { output, error })
        };
        words().unwrap_or_default()
    }
}

/// Whom a keeper has, besides what it holds.
#[derive(Debug)]
pub(crate) struct Kept {
    /// The process that serves.
    pub(crate) worker: i32,
    pub(crate) channel: Channel,
    pub(crate) before: u32,
    pub(crate) upgrades: u32,
}

#[derive(Debug)]
pub(crate) enum Packet {
    /// With whether another process serves it still.
    Held(Held, bool),
    /// With the form in which its program takes over from a keeper; 0: it does not. And with what whoever waits is to be told.
    Ready(u8, Words),
    Told,
    Kept(Kept),
    Go(Go),
    Failed(String),
    Upgrade,
    Refused(String),
}

impl Kept {
    fn of(bytes: &[u8], descriptors: Vec<OwnedFd>) -> Option<Self> {
        let (worker, rest) = bytes.split_first_chunk()?;
        let (before, rest) = rest.split_first_chunk()?;
        let [channel] = <[OwnedFd; 1]>::try_from(descriptors).ok()?;
        Some(Self {
            worker: i32::from_le_bytes(*worker),
            channel: Channel(channel),
            before: u32::from_le_bytes(*before),
            upgrades: u32::from_le_bytes(*rest.first_chunk()?),
        })
    }
}

impl Packet {
    /// Its first byte, and what follows it.
    fn bytes(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Held(held, beside) => held.bytes(*beside),
            Self::Ready(form, words) => (b'r', [&[*form], &*words.bytes()].concat()),
            Self::Told => (b't', Vec::new()),
            Self::Kept(Kept { worker, before, upgrades, .. }) => {
                (b'k', [worker.to_le_bytes(), before.to_le_bytes(), upgrades.to_le_bytes()].concat())
            }
            Self::Go(Go { before, upgrades, why }) => {
                (b'g', [&before.to_le_bytes(), &upgrades.to_le_bytes(), why.as_bytes()].concat())
            }
            Self::Failed(why) => (b'f', why.clone().into_bytes()),
            Self::Upgrade => (b'u', Vec::new()),
            Self::Refused(why) => (b'n', why.clone().into_bytes()),
        }
    }

    /// `None` where it is no packet that is known here.
    fn of(kind: u8, rest: &[u8], descriptors: Vec<OwnedFd>) -> Option<Self> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Some(match kind {
            b'h' | b'b' => {
                let [device, listener, lock] = <[OwnedFd; DESCRIPTORS]>::try_from(descriptors).ok()?;
                Self::Held(Held::of(rest, device, listener, lock)?, kind == b'b')
            }
            b'r' => {
                let (form, words) = rest.split_first().unwrap_or((&0, &[]));
                Self::Ready(*form, Words::of(words))
            }
            b't' => Self::Told,
            b'k' => Self::Kept(Kept::of(rest, descriptors)?),
            b'g' => {
                let (before, rest) = rest.split_first_chunk()?;
                let (upgrades, why) = rest.split_first_chunk()?;
                let [before, upgrades] = [before, upgrades].map(|count| u32::from_le_bytes(*count));
                Self::Go(Go { before, upgrades, why: text(why) })
            }
            b'f' => Self::Failed(text(rest)),
            b'u' => Self::Upgrade,
            b'n' => Self::Refused(text(rest)),
            _ => return None,
        })
    }
}

/// An end of the pair.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Channel {
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(io::Error::from)?;
        Ok((Self(one), Self(other)))
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// The end that this process was started with, as that number.
    ///
    /// # Errors
    /// Where it has no such descriptor.
    pub(crate) fn inherited(number: RawFd) -> io::Result<Self> {
        sys::own_inherited(number).map(Self)
    }

    /// Sends a packet. Does not wait: where the other end takes none any more, it is gone or stopped.
    pub(crate) fn send(&self, packet: &Packet) -> io::Result<()> {
        match packet {
            Packet::Held(held, beside) => self.hand_over(held, *beside),
            Packet::Kept(kept) => self.send_bytes(packet.bytes(), &[kept.channel.0.as_raw_fd()]),
            packet => self.send_bytes(packet.bytes(), &[]),
        }
    }

    /// Sends what is held, of which the other end gets descriptors of its own.
    pub(crate) fn hand_over(&self, held: &Held, beside: bool) -> io::Result<()> {
        let (kind, rest) = held.bytes(beside);
        if rest.len() >= LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the options of the mount are too long"));
        }
        self.send_bytes((kind, rest), &held.descriptors())
    }

    fn send_bytes(&self, (kind, mut rest): (u8, Vec<u8>), descriptors: &[RawFd]) -> io::Result<()> {
        rest.truncate(LONGEST - 1);
        let rights = [ControlMessage::ScmRights(descriptors)];
        let control: &[_] = if descriptors.is_empty() { &[] } else { &rights };
        let data = [IoSlice::new(std::slice::from_ref(&kind)), IoSlice::new(&rest)];
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        sendmsg::<()>(self.0.as_raw_fd(), &data, control, flags, None).map(drop).map_err(io::Error::from)
    }

    /// Waits for the next packet; `None`: the other end is gone.
    pub(crate) fn receive(&self) -> io::Result<Option<Packet>> {
        self.received(MsgFlags::empty())
    }

    /// The next packet, if there is one: an error of the kind `WouldBlock` where there is none yet.
    pub(crate) fn receive_now(&self) -> io::Result<Option<Packet>> {
        self.received(MsgFlags::MSG_DONTWAIT)
    }

    fn received(&self, flags: MsgFlags) -> io::Result<Option<Packet>> {
        let mut buffer = vec![0; LONGEST];
        let mut control = cmsg_space!([RawFd; DESCRIPTORS]);
        let mut data = [IoSliceMut::new(&mut buffer)];
        let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = loop {
            match recvmsg::<()>(self.0.as_raw_fd(), &mut data, Some(&mut control), flags) {
                Err(Errno::EINTR) => {}
                message => break message?,
            }
        };
        let len = message.bytes;
        let descriptors = message.cmsgs()?.filter_map(|part| match part {
            ControlMessageOwned::ScmRights(descriptors) => Some(sys::own_received(descriptors)),
            _ => None,
        });
        let descriptors: Vec<_> = descriptors.flatten().collect();
        let unknown = || io::Error::new(io::ErrorKind::InvalidData, "a packet that this version of crfs does not know");
        match buffer.get(..len).and_then(|packet| packet.split_first()) {
            None => Ok(None),
            Some((kind, rest)) => Packet::of(*kind, rest, descriptors).map(Some).ok_or_else(unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;

    fn file(text: &str) -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file.into()
    }

    fn text(of: OwnedFd) -> String {
        let mut text = String::new();
        File::from(of).read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn what_is_held_arrives_with_its_descriptors_in_their_order() {
        let (ours, theirs) = Channel::pair().unwrap();
        let held = Held {
            description: vec![7; 100 << 10],
            io_deadline: Duration::from_millis(1500),
            device: file("device"),
            listener: file("listener"),
            lock: file("lock"),
        };
        ours.send(&Packet::Held(held, true)).unwrap();
        let Some(Packet::Held(held, true)) = theirs.receive().unwrap() else { panic!("it is another packet") };
        assert_eq!((held.description, held.io_deadline), (vec![7; 100 << 10], Duration::from_millis(1500)));
        assert_eq!([held.device, held.listener, held.lock].map(text), ["device", "listener", "lock"]);
    }

    #[test]
    fn whom_a_keeper_has_arrives_with_the_channel_to_it() {
        let (ours, theirs) = Channel::pair().unwrap();
        let (channel, worker) = Channel::pair().unwrap();
        ours.send(&Packet::Kept(Kept { worker: 4711, channel, before: 3, upgrades: 2 })).unwrap();
        let Some(Packet::Kept(kept)) = theirs.receive().unwrap() else { panic!("it is another packet") };
        assert_eq!((kept.worker, kept.before, kept.upgrades), (4711, 3, 2));
        kept.channel.send(&Packet::Upgrade).unwrap();
        assert!(matches!(worker.receive().unwrap(), Some(Packet::Upgrade)));
    }

    /// Those before 0.2 said no form.
    #[test]
    fn a_worker_that_says_no_form_has_none() {
        assert!(matches!(Packet::of(b'r', b"", Vec::new()), Some(Packet::Ready(0, _))));
        assert!(
            matches!(Packet::of(b'r', b"\x01", Vec::new()), Some(Packet::Ready(1, words)) if words == Words::default())
        );
        assert_eq!(Words::of(b"\x09\0\0\0short"), Words::default());
    }

    #[test]
    fn packets_keep_their_bounds_and_what_was_said_before_the_end_is_heard() {
        let (ours, theirs) = Channel::pair().unwrap();
        assert_eq!(theirs.receive_now().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let words = Words { output: "mounted\n".into(), error: "crfs: slowly\n".into() };
        ours.send(&Packet::Ready(3, words.clone())).unwrap();
        let go = Go { before: 3, upgrades: 1, why: "it was killed".into() };
        ours.send(&Packet::Go(go.clone())).unwrap();
        ours.send(&Packet::Failed("x".repeat(1 << 20))).unwrap();
        drop(ours);
        assert!(matches!(theirs.receive().unwrap(), Some(Packet::Ready(3, heard)) if heard == words));
        assert!(matches!(theirs.receive().unwrap(), Some(Packet::Go(heard)) if heard == go));
        assert!(matches!(theirs.receive().unwrap(), Some(Packet::Failed(why)) if why.len() == LONGEST - 1));
        assert!(theirs.receive().unwrap().is_none());
    }

    #[test]
    fn what_is_no_packet_is_an_error() {
        let (ours, theirs) = Channel::pair().unwrap();
        for packet in [&b"h"[..], b"h12345678", b"g1234567", b"k12345678901", b"z"] {
            nix::unistd::write(&ours, packet).unwrap();
            assert_eq!(theirs.receive().unwrap_err().kind(), io::ErrorKind::InvalidData, "{packet:?}");
        }
    }
}
