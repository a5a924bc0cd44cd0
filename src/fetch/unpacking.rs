//! A blob is unpacked beside who takes what comes of it: on a thread of its own, or where none can be made, in between.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc as threads;
use std::thread::{Builder, scope};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use crate::blob::Digest;
use crate::budget::Arrived;
use crate::index::{self, Event, Failed, Format, Unpacker};
use crate::sys::expansion::Meter;

/// Events that wait to be taken.
const EVENTS: usize = 16;

/// Bytes that a layer is recognised by.
const HEAD: usize = index::HEAD;

/// Bytes at the end of a blob that tell whether it has a table of contents.
const TAIL: usize = 72;

/// Bytes of a blob that are unpacked at once where nobody takes what comes of them meanwhile: it may be much more.
const SLICE: usize = 256;

/// Gives one event after the other; `None` after the last.
pub(super) type Take<'a> = &'a mut dyn FnMut() -> io::Result<Option<Event>>;

/// How unpacking ended; the digest of the whole blob, and its last bytes; and what it has taken of the allowance.
type Unpacked = (io::Result<()>, (Digest, Vec<u8>), Meter);

/// Unpacks a blob for `work`, as far as `meter` lets it. An error: that was given up.
pub(super) fn unpack<T>(
    format: Format,
    parts: Parts,
    meter: Meter,
    work: impl FnOnce(Take<'_>) -> Result<T, Failed>,
) -> (io::Result<Unpacked>, Result<T, Failed>) {
    scope(|scope| {
        // Both go with this closure, also where `work` panics: nobody waits on for the other.
        let (events, received) = threads::sync_channel(EVENTS);
        let (hand_over, handed_over) = threads::sync_channel::<(Parts, Meter)>(1);
        let beside = move || {
            let (mut parts, mut meter) = handed_over.recv().ok()?;
            let unpacked = all(format, &mut parts, &mut meter, &mut |event| send(&events, event));
            drop(events);
            Some((unpacked, parts.end(), meter))
        };
        let Ok(unpacking) = Builder::new().name("unpacking".to_owned()).spawn_scoped(scope, beside) else {
            return in_between(format, parts, meter, work);
        };
        // It waits for them.
        let _taken = hand_over.send((parts, meter));
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

fn all(
    format: Format,
    parts: &mut Parts,
    meter: &mut Meter,
    tell: &mut dyn FnMut(Event) -> io::Result<()>,
) -> io::Result<()> {
    let mut unpacker = Unpacker::new(format)?;
    while let Some(part) = parts.next() {
        meter.packed(part.len());
        unpacker.push(&part, &mut |event| metered(meter, event).and_then(&mut *tell))?;
    }
    unpacker.finish(tell)
}

/// The same event, if it is not too much.
fn metered(meter: &mut Meter, event: Event) -> io::Result<Event> {
    if let Event::Bytes(bytes) = &event {
        meter.unpacked(bytes.len())?;
    }
    Ok(event)
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
    meter: Meter,
    work: impl FnOnce(Take<'_>) -> Result<T, Failed>,
) -> (io::Result<Unpacked>, Result<T, Failed>) {
    let (unpacker, failed) = match Unpacker::new(format) {
        Ok(unpacker) => (Some(unpacker), None),
        Err(error) => (None, Some(error)),
    };
    let (part, events) = (Bytes::new(), VecDeque::new());
    let mut slices = Slices { parts, part, meter, unpacker, failed, events, is_over: false };
    let made = work(&mut || slices.take());
    let Slices { parts, failed, meter, .. } = slices;
    (Ok((failed.map_or(Ok(()), Err), parts.end(), meter)), made)
}

/// A blob that is unpacked a little at a time.
struct Slices {
    parts: Parts,
    /// What is left of the last of them.
    part: Bytes,
    meter: Meter,
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
        let is_over = self.part.is_empty() && self.parts.next().map(|part| self.part = part).is_none();
        let slice = self.part.split_to(SLICE.min(self.part.len()));
        let (events, meter) = (&mut self.events, &mut self.meter);
        meter.packed(slice.len());
        let mut tell = |event| {
            events.push_back(metered(meter, event)?);
            Ok(())
        };
        match &mut self.unpacker {
            Some(unpacker) if !is_over => unpacker.push(&slice, &mut tell),
            unpacker => unpacker.take().map_or(Ok(()), |unpacker| unpacker.finish(&mut tell)),
        }
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
    arrived: Arrived,
}

impl Parts {
    pub(super) fn new(parts: mpsc::Receiver<Bytes>) -> Self {
        Self { parts, hash: Sha256::new(), head: Vec::new(), tail: Vec::new(), arrived: Arrived::default() }
    }

    /// The same, which counts what comes.
    pub(super) fn counted(self, arrived: &Arrived) -> Self {
        Self { arrived: arrived.clone(), ..self }
    }

    /// The first bytes, which come again.
    pub(super) fn head(&mut self) -> Vec<u8> {
        let seen = self.head.iter().rev().map(|part| part.get(..HEAD).unwrap_or(part));
        let mut head = seen.collect::<Vec<_>>().concat();
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
        self.arrived.add(part.len());
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
    use crate::sys::expansion::{Allowance, Expands};

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

    fn metered(blob: &[u8], allowance: u64) -> (Parts, Meter) {
        (parts(blob), Meter::new(&Allowance::small(allowance)))
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
            let ((parts, meter), (again, its_meter)) = (metered(&blob, 0), metered(&blob, 0));
            let beside = unpack(format, parts, meter, taken);
            let in_between = in_between(format, again, its_meter, taken);
            for (unpacked, made) in [&beside, &in_between] {
                let (ended, (digest, tail), _) = unpacked.as_ref().unwrap();
                assert!(ended.is_ok() && *digest == Digest::of(&blob) && blob.ends_with(tail));
                assert!(made.as_ref().ok().unwrap().0 == tar);
            }
        }
    }

    #[test]
    fn without_a_thread_a_cut_blob_fails_as_it_does_with_one_and_who_gives_up_gets_its_digest() {
        let (blob, _) = blob(Format::TarGzip);
        let cut = &blob[..blob.len() / 2];
        let ((parts, meter), (again, its_meter)) = (metered(cut, 0), metered(cut, 0));
        let beside = unpack(Format::TarGzip, parts, meter, taken);
        for (unpacked, made) in [beside, in_between(Format::TarGzip, again, its_meter, taken)] {
            let (ended, (digest, _), _) = unpacked.unwrap();
            assert!(ended.is_err() && digest == Digest::of(cut));
            assert!(matches!(made, Err(Failed::Stream(error)) if error.kind() == io::ErrorKind::UnexpectedEof));
        }
        let give_up = |_: Take<'_>| Ok(());
        let (parts, meter) = metered(&blob, 0);
        let (unpacked, made) = in_between(Format::TarGzip, parts, meter, give_up);
        assert!(made.is_ok() && unpacked.unwrap().1.0 == Digest::of(&blob));
    }

    #[test]
    fn zeros_without_end_are_given_up_and_those_that_gzip_can_pack_are_not() {
        let zeros = vec![0; 64 << 20];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&zeros).unwrap();
        let gzip = gzip.finish().unwrap();
        assert!(gzip.len() < 70_000, "it is packed as well as can be");
        let zstd = zstd::encode_all(&zeros[..], 1).unwrap();
        // A thing that unpacks to nothing, again and again, is no way around it.
        let empty = [zstd::encode_all(&b""[..], 1).unwrap(), b"\x50\x2a\x4d\x18\0\0\0\0".to_vec()].concat();
        let padded = [empty.repeat(50), zstd.clone()].concat();
        let count = |events: Take<'_>| {
            let mut count = 0;
            while let Some(event) = events().map_err(Failed::Stream)? {
                count += if let Event::Bytes(bytes) = event { bytes.len() } else { 0 };
            }
            Ok(count)
        };
        for (format, blob, allowance, fits) in [
            (Format::TarGzip, &gzip, 0, true),
            (Format::TarZstd, &zstd, 64 << 20, true),
            (Format::TarZstd, &zstd, 32 << 20, false),
            (Format::TarZstd, &padded, 32 << 20, false),
        ] {
            let ((parts, meter), (again, its_meter)) = (metered(blob, allowance), metered(blob, allowance));
            let beside = unpack(format, parts, meter, count);
            for (unpacked, made) in [beside, in_between(format, again, its_meter, count)] {
                let (ended, (digest, _), _) = unpacked.unwrap();
                assert!(digest == Digest::of(blob), "its digest is told in any case");
                match fits {
                    true => assert!(made.ok() == Some(zeros.len()) && ended.is_ok()),
                    false => {
                        let error = ended.unwrap_err();
                        let found: &Expands = error.get_ref().unwrap().downcast_ref().unwrap();
                        assert!(found.unpacked < 40 << 20 && made.is_err(), "{found:?}");
                    }
                }
            }
        }
    }
}
