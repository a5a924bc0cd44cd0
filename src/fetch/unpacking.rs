//! A blob is unpacked beside who takes what comes of it: on a thread of its own, or where none can be made, in between.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc as threads;
use std::thread::{Builder, scope};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use crate::blob::Digest;
use crate::index::{Event, Failed, Format, Unpacker};

/// Events that wait to be taken.
const EVENTS: usize = 16;

/// Bytes that a layer is recognised by.
const HEAD: usize = 512;

/// Bytes at the end of a blob that tell whether it has a table of contents.
const TAIL: usize = 72;

/// Bytes of a blob that are unpacked at once where nobody takes what comes of them meanwhile: it may be much more.
const SLICE: usize = 256;

/// Gives one event after the other; `None` after the last.
pub(super) type Take<'a> = &'a mut dyn FnMut() -> io::Result<Option<Event>>;

/// How unpacking ended; the digest of the whole blob, and its last bytes.
type Unpacked = (io::Result<()>, (Digest, Vec<u8>));

/// Unpacks a blob for `work`. An error: that was given up.
pub(super) fn unpack<T>(
    format: Format,
    parts: Parts,
    work: impl FnOnce(Take<'_>) -> Result<T, Failed>,
) -> (io::Result<Unpacked>, Result<T, Failed>) {
    scope(|scope| {
        // Both go with this closure, also where `work` panics: nobody waits on for the other.
        let (events, received) = threads::sync_channel(EVENTS);
        let (hand_over, handed_over) = threads::sync_channel::<Parts>(1);
        let beside = move || {
            let mut parts = handed_over.recv().ok()?;
            let unpacked = all(format, &mut parts, &mut |event| send(&events, event));
            drop(events);
            Some((unpacked, parts.end()))
        };
        let Ok(unpacking) = Builder::new().name("unpacking".to_owned()).spawn_scoped(scope, beside) else {
            return in_between(format, parts, work);
        };
        // It waits for them.
        let _taken = hand_over.send(parts);
        let made = work(&mut taker(&received));
        // What is still coming is for nobody.
        drop(received);
        let unpacked = unpacking.join().ok().flatten();
        (unpacked.ok_or_else(|| io::Error::other("unpacking was given up")), made)
    })
}

fn send(events: &threads::SyncSender<Event>, event: Event) -> io::Result<()> {
    events.send(event).map_err(|_| io::ErrorKind::BrokenPipe.into())
}

fn all(format: Format, parts: &mut Parts, tell: &mut dyn FnMut(Event) -> io::Result<()>) -> io::Result<()> {
    let mut unpacker = Unpacker::new(format)?;
    while let Some(part) = parts.next() {
        unpacker.push(&part, tell)?;
    }
    unpacker.finish(tell)
}

fn taker(events: &threads::Receiver<Event>) -> impl FnMut() -> io::Result<Option<Event>> {
    let mut is_over = false;
    move || match events.recv() {
        Ok(event) => {
            is_over |= matches!(event, Event::End { .. });
            Ok(Some(event))
        }
        Err(_) if is_over => Ok(None),
        Err(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Unpacks on the thread that takes what comes of it.
fn in_between<T>(
    format: Format,
    parts: Parts,
    work: impl FnOnce(Take<'_>) -> Result<T, Failed>,
) -> (io::Result<Unpacked>, Result<T, Failed>) {
    let (unpacker, failed) = match Unpacker::new(format) {
        Ok(unpacker) => (Some(unpacker), None),
        Err(error) => (None, Some(error)),
    };
    let mut slices = Slices { parts, part: Bytes::new(), unpacker, failed, events: VecDeque::new(), is_over: false };
    let made = work(&mut || slices.take());
    let Slices { parts, failed, .. } = slices;
    (Ok((failed.map_or(Ok(()), Err), parts.end())), made)
}

/// A blob that is unpacked a little at a time.
struct Slices {
    parts: Parts,
    /// What is left of the last of them.
    part: Bytes,
    /// `None`: at its end, or where that failed.
    unpacker: Option<Unpacker>,
    failed: Option<io::Error>,
    events: VecDeque<Event>,
    is_over: bool,
}

impl Slices {
    fn take(&mut self) -> io::Result<Option<Event>> {
        while self.events.is_empty() && self.unpacker.is_some() {
            self.failed = self.unpack_more().err();
            if self.failed.is_some() {
                self.unpacker = None;
            }
        }
        match self.events.pop_front() {
            Some(event) => {
                self.is_over |= matches!(event, Event::End { .. });
                Ok(Some(event))
            }
            None if self.is_over => Ok(None),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn unpack_more(&mut self) -> io::Result<()> {
        let events = &mut self.events;
        let mut tell = |event| {
            events.push_back(event);
            Ok(())
        };
        if self.part.is_empty() {
            match self.parts.next() {
                Some(part) => self.part = part,
                None => return self.unpacker.take().map_or(Ok(()), |unpacker| unpacker.finish(&mut tell)),
            }
        }
        let slice = self.part.split_to(SLICE.min(self.part.len()));
        self.unpacker.as_mut().map_or(Ok(()), |unpacker| unpacker.push(&slice, &mut tell))
    }
}

/// The blob as it comes.
pub(super) struct Parts {
    parts: mpsc::Receiver<Bytes>,
    hash: Sha256,
    /// What was looked at before.
    head: Vec<Bytes>,
    /// The last bytes that came.
    tail: Vec<u8>,
}

impl Parts {
    pub(super) fn new(parts: mpsc::Receiver<Bytes>) -> Self {
        Self { parts, hash: Sha256::new(), head: Vec::new(), tail: Vec::new() }
    }

    /// The first bytes, which come again.
    pub(super) fn head(&mut self) -> Vec<u8> {
        let mut head = Vec::new();
        while head.len() < HEAD {
            let Some(part) = self.parts.blocking_recv() else { break };
            head.extend_from_slice(part.get(..HEAD).unwrap_or(&part));
            self.head.insert(0, part);
        }
        head
    }

    pub(super) fn next(&mut self) -> Option<Bytes> {
        let part = self.head.pop().or_else(|| self.parts.blocking_recv())?;
        self.hash.update(&part);
        self.tail.extend_from_slice(part.get(part.len().saturating_sub(TAIL)..).unwrap_or(&part));
        self.tail.drain(..self.tail.len().saturating_sub(TAIL));
        Some(part)
    }

    /// The digest of the whole blob, and its last bytes.
    pub(super) fn end(mut self) -> (Digest, Vec<u8>) {
        while self.next().is_some() {}
        (Digest::from_bytes(self.hash.finalize().into()), self.tail)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// A blob, its parts as they come, and its tar.
    fn blob(format: Format) -> (Vec<u8>, Vec<u8>) {
        let tar: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 7 % 251) as u8).collect();
        let packed = match format {
            Format::TarGzip => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gzip.write_all(&tar).unwrap();
                gzip.finish().unwrap()
            }
            Format::TarZstd => zstd::encode_all(&tar[..], 1).unwrap(),
            _ => tar.clone(),
        };
        (packed, tar)
    }

    fn parts(blob: &[u8]) -> Parts {
        let (sender, receiver) = mpsc::channel(blob.len() / 100_000 + 1);
        for part in blob.chunks(100_000) {
            sender.try_send(Bytes::copy_from_slice(part)).unwrap();
        }
        Parts::new(receiver)
    }

    /// What the tar is, and how many events told it, where the end was told.
    fn taken(events: Take<'_>) -> Result<(Vec<u8>, usize), Failed> {
        let (mut tar, mut count) = (Vec::new(), 0);
        while let Some(event) = events().map_err(Failed::Stream)? {
            count += 1;
            if let Event::Bytes(bytes) = event {
                tar.extend_from_slice(&bytes);
            }
        }
        Ok((tar, count))
    }

    #[test]
    fn the_same_comes_of_a_blob_with_a_thread_for_it_and_without() {
        for format in [Format::TarGzip, Format::TarZstd, Format::Tar] {
            let (blob, tar) = blob(format);
            let (beside, in_between) = (unpack(format, parts(&blob), taken), in_between(format, parts(&blob), taken));
            for (unpacked, made) in [&beside, &in_between] {
                let (ended, (digest, tail)) = unpacked.as_ref().unwrap();
                assert!(ended.is_ok() && *digest == Digest::of(&blob) && blob.ends_with(tail));
                assert!(made.as_ref().ok().unwrap().0 == tar);
            }
        }
    }

    #[test]
    fn without_a_thread_a_cut_blob_fails_as_it_does_with_one_and_who_gives_up_gets_its_digest() {
        let (blob, _) = blob(Format::TarGzip);
        let cut = &blob[..blob.len() / 2];
        for (unpacked, made) in
            [unpack(Format::TarGzip, parts(cut), taken), in_between(Format::TarGzip, parts(cut), taken)]
        {
            let (ended, (digest, _)) = unpacked.unwrap();
            assert!(ended.is_err() && digest == Digest::of(cut));
            assert!(matches!(made, Err(Failed::Stream(error)) if error.kind() == io::ErrorKind::UnexpectedEof));
        }
        let give_up = |_: Take<'_>| Ok(());
        let (unpacked, made) = in_between(Format::TarGzip, parts(&blob), give_up);
        assert!(made.is_ok() && unpacked.unwrap().1.0 == Digest::of(&blob));
    }
}
