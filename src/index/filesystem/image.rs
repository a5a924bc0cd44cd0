//! The bytes of an image that is here as a whole: what of them is metadata is looked at again and again, and what is packed is unpacked.

use std::cell::{Cell, RefCell};
use std::io;

use bytes::Bytes;

use super::codec::{self, How};
use super::{Bad, broken};
use crate::blob::{ByteRange, ByteSource};
use crate::sys::expansion::Meter;

/// Bytes that are read at once, and how many such parts are kept.
const PART: u64 = 32 << 10;
const PARTS: usize = 16;

/// Bytes of what is packed as one: EROFS packs 1 MiB at most, squashfs as much.
const MOST_PACKED: u64 = 1 << 20;

/// How often metadata may be looked at beside once for each byte of the image: an inode of 32 bytes takes some 20 looks. What is malformed
/// could lead on and on.
const LOOKS: u64 = 1 << 20;

/// Bytes for which a look at them counts once more.
pub(super) const EACH_LOOK: u64 = 64;

/// What was unpacked last.
struct Last {
    range: ByteRange,
    how: How,
    bytes: Bytes,
}

pub(super) struct Image<'a> {
    source: &'a dyn ByteSource,
    parts: RefCell<[Option<(u64, Bytes)>; PARTS]>,
    last: RefCell<Option<Last>>,
    meter: RefCell<Meter>,
    /// How often something may still be looked at.
    looks: Cell<u64>,
    /// Only its metadata is read.
    is_lazy: bool,
}

impl<'a> Image<'a> {
    /// Of what it unpacks to so much is read as `meter` says that its bytes are worth.
    pub(super) fn new(source: &'a dyn ByteSource, mut meter: Meter, is_lazy: bool) -> Self {
        meter.packed(usize::try_from(source.size()).unwrap_or(usize::MAX));
        let (parts, last) = (RefCell::new([const { None }; PARTS]), RefCell::new(None));
        let looks = Cell::new(source.size().saturating_add(LOOKS));
        Self { source, parts, last, meter: RefCell::new(meter), looks, is_lazy }
    }

    pub(super) fn size(&self) -> u64 {
        self.source.size()
    }

    pub(super) const fn is_lazy(&self) -> bool {
        self.is_lazy
    }

    /// All that was read counts.
    pub(super) fn finish(self) {
        self.meter.into_inner().keep();
    }

    /// Metadata: so many bytes at a place.
    pub(super) fn read(&self, at: u64, len: usize) -> Result<Vec<u8>, Bad> {
        self.look(1 + len as u64 / EACH_LOOK)?;
        let range = self.range(at, len as u64)?;
        let mut bytes = Vec::with_capacity(len);
        let mut at = range.start;
        while at < range.end {
            let part = self.part(at / PART)?;
            let start = (at % PART) as usize;
            let take = (part.len() - start.min(part.len())).min((range.end - at) as usize);
            bytes.extend_from_slice(part.get(start..start + take).unwrap_or_default());
            at += take as u64;
        }
        Ok(bytes)
    }

    /// Counts that something is looked at: what takes longer as several times.
    pub(super) fn look(&self, times: u64) -> Result<(), Bad> {
        let left = self.looks.get().checked_sub(times);
        self.looks.set(
            left.ok_or_else(|| broken("it leads on and on: its metadata is looked at more often than it has bytes"))?,
        );
        Ok(())
    }

    fn part(&self, number: u64) -> Result<Bytes, Bad> {
        let mut parts = self.parts.borrow_mut();
        let Some(slot) = parts.get_mut((number % PARTS as u64) as usize) else { return Err(broken("it has no parts")) };
        if let Some((_, bytes)) = slot.as_ref().filter(|(kept, _)| *kept == number) {
            return Ok(bytes.clone());
        }
        let start = number * PART;
        let bytes = self.fetch(ByteRange { start, end: (start + PART).min(self.size()) })?;
        *slot = Some((number, bytes.clone()));
        Ok(bytes)
    }

    /// A place, if it is one of the image's.
    pub(super) fn range(&self, at: u64, len: u64) -> Result<ByteRange, Bad> {
        let range = ByteRange::at(at, len).filter(|range| range.end <= self.size());
        range.ok_or_else(|| broken(format!("{len} bytes at {at} are asked for, and it has {}", self.size())))
    }

    fn fetch(&self, range: ByteRange) -> Result<Bytes, Bad> {
        self.source.read_at(range).map_err(|error| Bad::Stream(io::Error::other(error)))
    }

    /// Contents as they are.
    pub(super) fn stored(&self, range: ByteRange) -> Result<Bytes, Bad> {
        self.range(range.start, range.len())?;
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
        self.meter.borrow_mut().unpacked(len).map_err(Bad::Stream)?;
        self.fetch(range)
    }

    /// Counts contents that some file has of what was unpacked: as often as files have them.
    pub(super) fn shown(&self, len: u64) -> Result<(), Bad> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.meter.borrow_mut().unpacked(len).map_err(Bad::Stream)
    }

    /// What a range unpacks to: `needed` bytes at least, and `most` at most.
    pub(super) fn unpacked(&self, range: ByteRange, how: How, needed: u64, most: u64) -> Result<Bytes, Bad> {
        if let Some(last) = self.last.borrow().as_ref() {
            if last.range == range && last.how == how && last.bytes.len() as u64 >= needed {
                return Ok(last.bytes.clone());
            }
        }
        self.range(range.start, range.len())?;
        if range.is_empty() || range.len() > MOST_PACKED || needed > most {
            return Err(broken(format!("{range} is to be unpacked to {needed} bytes, and {most} are possible")));
        }
        let bytes = codec::unpack(how, &self.fetch(range)?, needed, most);
        let bytes = bytes.map_err(|error| broken(format!("what it has at {range} cannot be unpacked: {error}")))?;
        self.meter.borrow_mut().unpacked(bytes.len()).map_err(Bad::Stream)?;
        let bytes = Bytes::from(bytes);
        *self.last.borrow_mut() = Some(Last { range, how, bytes: bytes.clone() });
        Ok(bytes)
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u16::from_le_bytes(*word))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_le_bytes(*word))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u64::from_le_bytes(*word))
}

pub(super) fn u8_at(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}
