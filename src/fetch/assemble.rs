//! Decoded bytes into checks: collected, hashed, and passed on only when they are right.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::kept::Kept;
use crate::blob::{ByteRange, Digest};
use crate::cache::{Cache, LayerFile, Spool};
use crate::index::Of;
use crate::metrics::METRICS;

/// A check larger than this waits for its verdict in a file of the cache; where that cannot be written, in memory.
pub(super) const MEMORY_PER_CHECK: u64 = 16 << 20;

/// A check larger than this is given up where no file can be written.
const MEMORY_WITHOUT_FILE: u64 = 128 << 20;

/// Files of a layer file start at multiples of this; in between are zeros, which no unit yields.
const BLOCK: u64 = 4096;
const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// A check whose bytes are to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) check: u32,
    pub(super) range: ByteRange,
    pub(super) digest: Digest,
    pub(super) of: Of,
}

/// A check that was found right.
pub(super) struct Brought {
    /// For those who wait for it: nothing can take it from them before they have read it.
    pub(super) kept: Kept,
    /// Whether it is in the layer file as well.
    pub(super) is_stored: bool,
}

/// Takes the decoded bytes of a run of units in the order of the layer file and tells each check's outcome as soon as its last byte came.
pub(super) struct Assembler<'a> {
    cache: &'a Cache,
    file: &'a LayerFile,
    wanted: std::vec::IntoIter<Wanted>,
    open: Option<Open>,
    /// All of its bytes came, but not yet those of the blob that tell whether they are right.
    waiting: Option<Open>,
    /// The size of a check that there was no room for.
    no_room: Option<u64>,
    /// Told the verified bytes' place; `None` where the bytes do not have the check's digest or did not all come.
    outcome: &'a mut dyn FnMut(Wanted, Option<Brought>),
}

/// The check whose bytes are coming in.
struct Open {
    wanted: Wanted,
    position: u64,
    hash: Sha256,
    buffer: Buffer,
}

enum Buffer {
    Memory(Vec<u8>),
    File(Spool),
}

impl<'a> Assembler<'a> {
    /// `wanted` in the order of the layer file.
    pub(super) fn new(
        cache: &'a Cache,
        file: &'a LayerFile,
        wanted: Vec<Wanted>,
        outcome: &'a mut dyn FnMut(Wanted, Option<Brought>),
    ) -> Self {
        Self { cache, file, wanted: wanted.into_iter(), open: None, waiting: None, no_room: None, outcome }
    }

    /// Bytes of the layer file at `at`; what no check wants is dropped.
    pub(super) fn push(&mut self, mut at: u64, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let Some(open) = self.open_at(at) else { return Ok(()) };
            let skip = usize::try_from(open.wanted.range.start.saturating_sub(at)).unwrap_or(usize::MAX);
            if skip > 0 {
                let Some(rest) = bytes.get(skip..) else { return Ok(()) };
                (at, bytes) = (open.wanted.range.start, rest);
                continue;
            }
            if open.position != at {
                // The zeros between two files of one check; where bytes did not come instead, its digest will show it.
                let zeros = at.checked_sub(open.position).filter(|zeros| *zeros < BLOCK);
                let zeros = zeros.and_then(|zeros| ZEROS.get(..usize::try_from(zeros).ok()?));
                if zeros.is_none_or(|zeros| open.take(zeros).is_err()) {
                    self.give_up();
                }
                continue;
            }
            let room = usize::try_from(open.wanted.range.end - at).unwrap_or(usize::MAX);
            let (take, rest) = bytes.split_at(room.min(bytes.len()));
            if let Err(error) = open.take(take) {
                if error.kind() != io::ErrorKind::StorageFull {
                    return Err(error);
                }
                self.no_room = Some(open.wanted.range.len());
                self.give_up();
                continue;
            }
            at += take.len() as u64;
            bytes = rest;
            if open.position == open.wanted.range.end {
                self.close();
            }
        }
        Ok(())
    }

    /// The units that came so far are over: what lies before `at` will not come any more.
    pub(super) fn skip_to(&mut self, at: u64) {
        while self.open.as_ref().is_some_and(|open| open.position < at)
            || (self.open.is_none() && self.wanted.as_slice().first().is_some_and(|next| next.range.start < at))
        {
            if self.open.is_none() {
                self.open = self.wanted.next().map(|wanted| Open::new(wanted, self.cache));
            }
            self.give_up();
        }
    }

    /// A unit is over, and its bytes in the blob have this digest.
    pub(super) fn span_ended(&mut self, got: Digest) {
        if let Some(open) = self.waiting.take() {
            self.judge(open, got);
        }
    }

    /// No more bytes: every check that is still waiting did not come. Tells the size of one that there was no room for.
    pub(super) fn finish(mut self) -> Option<u64> {
        self.give_up();
        if let Some(open) = self.waiting.take() {
            (self.outcome)(open.wanted, None);
        }
        for wanted in self.wanted.by_ref() {
            (self.outcome)(wanted, None);
        }
        self.no_room
    }

    fn open_at(&mut self, at: u64) -> Option<&mut Open> {
        if self.open.as_ref().is_some_and(|open| open.wanted.range.end <= at) {
            self.give_up();
        }
        while self.open.is_none() {
            let wanted = self.wanted.next()?;
            if wanted.range.end <= at {
                (self.outcome)(wanted, None);
            } else {
                self.open = Some(Open::new(wanted, self.cache));
            }
        }
        self.open.as_mut()
    }

    fn give_up(&mut self) {
        if let Some(open) = self.open.take() {
            (self.outcome)(open.wanted, None);
        }
    }

    fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        if open.wanted.of == Of::Span {
            self.waiting = Some(open);
            return;
        }
        let got = open.digest();
        self.judge(open, got);
    }

    /// All bytes of a check came: what tells whether they are right has this digest.
    fn judge(&mut self, open: Open, got: Digest) {
        let wanted = open.wanted;
        // What comes of chunks was verified before it was unpacked.
        let is_right = wanted.of == Of::Chunks || got == wanted.digest;
        if is_right { &METRICS.verified } else { &METRICS.wrong }.inc_by(wanted.range.len());
        let brought = is_right.then(|| keep(self.file, open));
        (self.outcome)(wanted, brought);
    }
}

impl Open {
    fn new(wanted: Wanted, cache: &Cache) -> Self {
        let len = wanted.range.len();
        let spool = if len > MEMORY_PER_CHECK { cache.spool().ok() } else { None };
        let buffer = match spool {
            Some(file) => Buffer::File(file),
            None => Buffer::Memory(Vec::with_capacity(usize::try_from(len.min(MEMORY_PER_CHECK)).unwrap_or(0))),
        };
        Self { wanted, position: wanted.range.start, hash: Sha256::new(), buffer }
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        match &mut self.buffer {
            Buffer::Memory(buffer) => {
                if (buffer.len() + bytes.len()) as u64 > MEMORY_WITHOUT_FILE {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                buffer.extend_from_slice(bytes);
            }
            Buffer::File(file) => {
                if file.append(bytes).is_err() {
                    self.buffer = Buffer::Memory(self.back_in_memory(bytes)?);
                }
            }
        }
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Of what came so far.
    fn digest(&self) -> Digest {
        Digest::from_bytes(self.hash.clone().finalize().into())
    }

    /// The disk is full: a reader is not to notice, so what was spooled comes back, with `bytes` behind it.
    fn back_in_memory(&self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let done = self.position - self.wanted.range.start;
        if done > MEMORY_WITHOUT_FILE {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let done = usize::try_from(done).map_err(io::Error::other)?;
        let mut memory = vec![0; done];
        if let Buffer::File(file) = &self.buffer {
            file.read_exact_at(&mut memory, 0)?;
        }
        memory.extend_from_slice(bytes);
        Ok(memory)
    }
}

fn keep(file: &LayerFile, open: Open) -> Brought {
    let sum = (open.wanted.of != Of::Contents).then(|| open.digest());
    let Open { wanted, buffer, .. } = open;
    match buffer {
        Buffer::Memory(bytes) => {
            let write = |data: &File| data.write_all_at(&bytes, wanted.range.start);
            let is_stored = file.publish(wanted.check, wanted.range, sum, write);
            Brought { kept: Kept::Memory(bytes.into()), is_stored }
        }
        Buffer::File(spooled) => {
            let is_stored = file.publish(wanted.check, wanted.range, sum, |data| copy(&spooled, data, wanted.range));
            Brought { kept: Kept::File(Arc::new(spooled)), is_stored }
        }
    }
}

fn copy(from: &Spool, to: &File, range: ByteRange) -> io::Result<()> {
    let mut part = vec![0; 1 << 20];
    let mut done = 0;
    while done < range.len() {
        let len = usize::try_from(range.len() - done).unwrap_or(part.len()).min(part.len());
        let part = part.get_mut(..len).ok_or(io::ErrorKind::InvalidInput)?;
        from.read_exact_at(part, done)?;
        to.write_all_at(part, range.start + done)?;
        done += len as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(check: u32, start: u64, content: &[u8]) -> Wanted {
        let range = ByteRange::at(start, content.len() as u64).unwrap();
        Wanted { check, range, digest: Digest::of(content), of: Of::Contents }
    }

    /// What came of each check: `Some(kept in the layer file?)`.
    fn run(wanted: Vec<Wanted>, parts: &[(u64, &[u8])]) -> Vec<(u32, Option<bool>)> {
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::of_any_size(temp.path());
        let file = cache.private_layer_file(100_000, &[0, 3]);
        let mut outcomes = Vec::new();
        let mut outcome = |wanted: Wanted, brought: Option<Brought>| {
            outcomes.push((wanted.check, brought.map(|brought| brought.is_stored)));
        };
        let mut assembler = Assembler::new(&cache, &file, wanted, &mut outcome);
        for (at, bytes) in parts {
            assembler.push(*at, bytes).unwrap();
        }
        assembler.finish();
        outcomes
    }

    #[test]
    fn checks_close_at_their_last_byte_however_the_bytes_are_cut() {
        let both = vec![wanted(0, 0, b"abcdef"), wanted(1, 4096, b"xyz")];
        let outcome = vec![(0, Some(true)), (1, Some(true))];
        assert_eq!(run(both.clone(), &[(0, b"abcdef"), (4096, b"xyz")]), outcome);
        assert_eq!(run(both.clone(), &[(0, b"a"), (1, b"bcd"), (4, b"ef"), (4096, b"xyz")]), outcome);
        let adjacent = vec![wanted(0, 0, b"abc"), wanted(1, 3, b"def")];
        assert_eq!(run(adjacent, &[(0, b"abcdef")]), outcome);
    }

    #[test]
    fn wrong_missing_and_unwanted_bytes() {
        let one = wanted(0, 0, b"abc");
        let two = wanted(1, 3, b"def");
        assert_eq!(run(vec![one, two], &[(0, b"abXdef")]), [(0, None), (1, Some(true))]);
        assert_eq!(run(vec![one, two], &[(0, b"ab")]), [(0, None), (1, None)]);
        assert_eq!(run(vec![one, two], &[(3, b"def")]), [(0, None), (1, Some(true))]);
        assert_eq!(run(vec![one, two], &[(1, b"bcdef")]), [(0, None), (1, Some(true))]);
        assert_eq!(run(vec![two], &[(0, b"abcdefgh")]), [(1, Some(true))]);
    }

    #[test]
    fn what_a_span_brings_waits_for_its_digest() {
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::of_any_size(temp.path());
        for (got, is_right) in [(&b"blob"[..], true), (b"blub", false)] {
            let file = cache.private_layer_file(100, &[0]);
            let (mut outcomes, mut before) = (Vec::new(), 0);
            let mut outcome = |_, brought: Option<Brought>| outcomes.push(brought.is_some());
            let span = Wanted { digest: Digest::of(b"blob"), of: Of::Span, ..wanted(0, 0, b"abc") };
            let mut assembler = Assembler::new(&cache, &file, vec![span], &mut outcome);
            assembler.push(0, b"abc").unwrap();
            before += usize::from(assembler.waiting.is_none());
            assembler.span_ended(Digest::of(got));
            assembler.finish();
            assert_eq!((before, outcomes), (0, vec![is_right]));
        }
    }

    #[test]
    fn a_check_has_zeros_between_its_files() {
        let mut content = b"one".to_vec();
        content.resize(4096, 0);
        content.extend_from_slice(b"two");
        let both = wanted(0, 0, &content);
        assert_eq!(run(vec![both], &[(0, b"one"), (4096, b"two")]), [(0, Some(true))]);
        assert_eq!(run(vec![both], &[(0, b"on"), (4096, b"two")]), [(0, None)]);
        content.resize(8192, 0);
        content.extend_from_slice(b"far");
        assert_eq!(run(vec![wanted(0, 0, &content)], &[(0, b"one"), (8192, b"far")]), [(0, None)]);
    }

    #[test]
    fn skipping_gives_up_only_what_lies_before() {
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::of_any_size(temp.path());
        let file = cache.private_layer_file(100, &[0, 3, 6]);
        let mut outcomes = Vec::new();
        let mut outcome = |wanted: Wanted, brought: Option<Brought>| outcomes.push((wanted.check, brought.is_some()));
        let list = vec![wanted(0, 0, b"abc"), wanted(1, 3, b"def"), wanted(2, 6, b"ghi")];
        let mut assembler = Assembler::new(&cache, &file, list, &mut outcome);
        assembler.push(0, b"a").unwrap();
        assembler.skip_to(6);
        assembler.push(6, b"ghi").unwrap();
        assembler.finish();
        assert_eq!(outcomes, [(0, false), (1, false), (2, true)]);
    }

    #[test]
    fn large_checks_go_through_a_file() {
        let content: Vec<u8> = (0..MEMORY_PER_CHECK + 5).map(|i| (i % 251) as u8).collect();
        let cache = Cache::of_any_size(std::path::Path::new("/proc/nowhere"));
        let file = cache.private_layer_file(0, &[0]);
        let mut kept = None;
        let mut outcome = |_, brought: Option<Brought>| kept = brought.map(|brought| brought.kept);
        let mut assembler = Assembler::new(&cache, &file, vec![wanted(0, 0, &content)], &mut outcome);
        assembler.push(0, &content).unwrap();
        assembler.finish();
        let mut tail = [0; 5];
        kept.unwrap().read(MEMORY_PER_CHECK, &mut tail).unwrap().unwrap();
        assert_eq!(tail[..], content[content.len() - 5..]);
    }
}
