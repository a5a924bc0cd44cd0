//! One request: from the registry through decoding and verification to those who wait.
//!
//! ```text
//! Blob::stream --async--> channel (bounded) --blocking thread--> decode units -> Assembler -> land flights
//! ```
//!
//! Bytes are decoded while they arrive, so memory does not grow with the size of a unit, and a check can be read as soon as its last byte
//! came.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::io::{self, BufRead, Cursor, Read};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::around::Guess;
use super::assemble::{Assembler, Brought, MEMORY_PER_CHECK, Wanted};
use super::decode::Units;
use super::flight::{Duty, Waiter};
use super::plan::{self, Run};
use super::source::Stream;
use super::whole::{Duties, Reader};
use super::{Error, Layer};
use crate::blob::{ByteRange, Digest};
use crate::index::{Codec, Piece};
use crate::registry::{self, Freshness, Sent};
use crate::threads::{self, Work};

/// Parts of a body that wait for the decoder.
const PARTS: usize = 16;

/// How often a guess looks whether its host asks for restraint.
const LOOK: Duration = Duration::from_millis(100);

/// The checks that a request is to bring, in the order of the layer file.
pub(super) struct Job {
    layer: Arc<Layer>,
    run: Run,
    wanted: Vec<Wanted>,
    duties: HashMap<u32, Duty>,
    /// Nobody waits for it.
    guess: Option<Guess>,
}

/// What one attempt left.
#[derive(Default)]
struct Attempt {
    duties: HashMap<u32, Duty>,
    failed: Option<Error>,
    /// Others bring the rest.
    others: Vec<Waiter>,
}

impl Job {
    pub(super) fn new(layer: Arc<Layer>, run: Run, wanted: Vec<Wanted>, duties: Vec<Duty>) -> Self {
        let duties: HashMap<u32, Duty> = duties.into_iter().map(|duty| (duty.check(), duty)).collect();
        let wanted = wanted.into_iter().filter(|wanted| duties.contains_key(&wanted.check)).collect();
        Self { layer, run, wanted, duties, guess: None }
    }

    /// The same for nobody in particular: not counted with the requests of readers.
    pub(super) fn for_nobody(self, guess: Guess) -> Self {
        Self { guess: Some(guess), ..self }
    }

    /// Runs to its end whoever still waits. Wrong bytes are fetched once more, past caches.
    pub(super) async fn run(mut self) -> Result<(), Error> {
        let layer = Arc::clone(&self.layer);
        let permit = if self.guess.is_some() { None } else { Some(layer.permit().await) };
        let mut failed = permit.as_ref().and_then(|permit| permit.as_ref().err().cloned());
        let mut others = Vec::new();
        for freshness in [Freshness::Any, Freshness::PastCaches] {
            if failed.is_some() || self.duties.is_empty() {
                break;
            }
            if freshness == Freshness::PastCaches {
                self.narrow().await;
                tracing::warn!(layer = %self.layer.digest(), compressed = %self.run.compressed, "wrong bytes; fetching them once more");
            }
            let attempt = self.attempt(freshness).await;
            (self.duties, failed, others) = (attempt.duties, attempt.failed, attempt.others);
        }
        drop(permit);
        if self.duties.is_empty() {
            for other in others {
                other.wait().await?;
            }
            return Ok(());
        }
        let error = failed.unwrap_or_else(|| self.wrong_bytes());
        // Whoever has come to wait for a guess tries for itself.
        let told = if self.guess.is_some() { Error::Interrupted } else { error.clone() };
        for (_, duty) in self.duties {
            duty.land(Err(told.clone()));
        }
        Err(error)
    }

    /// What came right at either end is not asked for again.
    async fn narrow(&mut self) {
        self.wanted.retain(|wanted| self.duties.contains_key(&wanted.check));
        let Some((first, last)) = self.wanted.first().zip(self.wanted.last()) else { return };
        let (layer, first, last) = (Arc::clone(&self.layer), first.range, last.range);
        let run = threads::run(Work::Local, move || plan::run_over(&layer.index, first, last)).await;
        if let Ok(Ok(Some(run))) = run {
            self.run = run;
        }
    }

    fn wrong_bytes(&self) -> Error {
        Error::WrongBytes { layer: *self.layer.digest(), compressed: self.run.compressed }
    }

    async fn attempt(&mut self, freshness: Freshness) -> Attempt {
        let duties = std::mem::take(&mut self.duties);
        tracing::trace!(layer = %self.layer.digest(), compressed = %self.run.compressed, guess = self.guess.is_some(), "fetching");
        let streaming = self.layer.source.stream(self.run.compressed, freshness);
        match self.unless_restrained(streaming).await {
            Some(Ok(Sent::Part(body))) => {
                let duties = Duties::of(duties.into_values());
                let (failed, _) = self.bring(body, self.run.compressed, &duties).await;
                Attempt { duties: duties.take(), failed, ..Attempt::default() }
            }
            Some(Ok(Sent::Whole(body))) if self.guess.is_none() => self.bring_whole(body, duties).await,
            Some(Err(source)) => {
                Attempt { duties, failed: Some(self.layer.registry_error(source)), ..Attempt::default() }
            }
            // Whoever needs any of it reads all of it.
            Some(Ok(Sent::Whole(_))) | None => {
                Attempt { duties, failed: Some(Error::Interrupted), ..Attempt::default() }
            }
        }
    }

    /// All of the blob comes: it is read to its end for all who wait for any of it, unless somebody does that already.
    async fn bring_whole(&mut self, body: Stream, duties: HashMap<u32, Duty>) -> Attempt {
        let layer = Arc::clone(&self.layer);
        let reader = threads::run(Work::Local, move || layer.read_whole(duties)).await;
        match reader.map_err(|_| Error::Interrupted).and_then(|reader| Ok(reader?)) {
            Ok(Reader::First { run, wanted, duties }) => {
                tracing::debug!(layer = %self.layer.digest(), "its host sends all of it");
                (self.run, self.wanted) = (run, wanted);
                let all = ByteRange { start: 0, end: self.layer.source.size() };
                let (failed, lacking) = self.bring(body, all, &duties).await;
                let mut left = self.layer.whole.end(&duties);
                // What was there when it began, or came right, and went before it was waited for, is nobody's fault.
                left.retain(|check, _| lacking.contains(check));
                Attempt { duties: left, failed, ..Attempt::default() }
            }
            Ok(Reader::Another(others)) => Attempt { others, ..Attempt::default() },
            Ok(Reader::None) => Attempt::default(),
            Err(error) => Attempt { failed: Some(error), ..Attempt::default() },
        }
    }

    /// Decodes what comes while it comes. Tells what went wrong, and which checks did not come right.
    async fn bring(&self, mut body: Stream, comes: ByteRange, duties: &Duties) -> (Option<Error>, HashSet<u32>) {
        let (sender, receiver) = mpsc::channel(PARTS);
        let decoder = Decoder {
            layer: Arc::clone(&self.layer),
            run: self.run.clone(),
            wanted: self.wanted.clone(),
            duties: duties.clone(),
        };
        let decoder = threads::run(Work::Incoming, move || decoder.run(comes.start, receiver));
        let is_whole = comes != self.run.compressed;
        let mut stopped = None;
        loop {
            let Some(next) = self.unless_restrained(body.next()).await else {
                stopped = Some(Error::Interrupted);
                break;
            };
            let Some(part) = next else { break };
            if let (Some(guess), Ok(part)) = (&self.guess, &part) {
                guess.arrived(part.len() as u64);
            }
            // Behind what is decoded of a whole blob there is more.
            if sender.send(part).await.is_err() && !is_whole {
                break;
            }
        }
        drop(sender);
        let (failed, lacking) = decoder.await.unwrap_or_else(|_| {
            // Who waits is told that it was interrupted.
            drop(duties.take());
            (Some(Error::Interrupted), HashSet::new())
        });
        (stopped.or(failed), lacking)
    }

    /// What `future` gives; `None` where it is for nobody, and the host has come to ask for restraint: in the queue for it are readers.
    async fn unless_restrained<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        if self.guess.is_none() {
            return Some(future.await);
        }
        loop {
            match timeout(LOOK, &mut future).await {
                Ok(output) => return Some(output),
                Err(_) if self.layer.source.is_restrained() => return None,
                Err(_) => {}
            }
        }
    }
}

/// The blocking half of an attempt.
struct Decoder {
    layer: Arc<Layer>,
    run: Run,
    wanted: Vec<Wanted>,
    duties: Duties,
}

impl Decoder {
    /// `start`: the place in the blob of the first byte that comes. Gives the checks that did not come right, too.
    fn run(self, start: u64, parts: mpsc::Receiver<Result<Bytes, registry::Error>>) -> (Option<Error>, HashSet<u32>) {
        let Self { layer, run, wanted, duties } = self;
        let mut arrival = Arrival { parts, part: Bytes::new(), position: start, last: 0, error: None };
        let mut lacking: HashSet<u32> = wanted.iter().map(|wanted| wanted.check).collect();
        let mut outcome = |wanted: Wanted, brought: Option<Brought>| {
            let Some(brought) = brought else { return };
            lacking.remove(&wanted.check);
            layer.land(&duties, wanted, brought);
        };
        if wanted.iter().any(|wanted| wanted.range.len() > MEMORY_PER_CHECK) {
            layer.aside.drop_files();
        }
        let assembler = Assembler::new(&layer.cache, &layer.file, wanted, &mut outcome);
        let decoded = decode_run(&layer, &run, &mut arrival, assembler);
        (arrival.error.map(|error| layer.registry_error(error)).or(decoded.err()), lacking)
    }
}

fn decode_run(layer: &Layer, run: &Run, arrival: &mut Arrival, mut assembler: Assembler<'_>) -> Result<(), Error> {
    let mut units = Units::new().map_err(|_| Error::Interrupted)?;
    for number in run.units.clone() {
        let unit = layer.index.unit(number)?;
        let pieces = unit.pieces.clone().map(|piece| layer.index.piece(piece)).collect::<Result<Vec<Piece>, _>>()?;
        let window = match unit.codec {
            Codec::Deflate { window: Some(window), .. } => layer.index.window(window)?,
            _ => Vec::new(),
        };
        let Ok(input) = arrival.unit(unit.compressed) else { break };
        let mut input = Hashed { input, hash: layer.index.has_spans().then(Sha256::new) };
        let decoded =
            units.decode(unit.codec, &window, &mut input, &pieces, &mut |at, bytes| assembler.push(at, bytes));
        if let Some(span) = input.digest() {
            assembler.span_ended(span);
        }
        if let Err(error) = decoded {
            if arrival.error.is_some() {
                break;
            }
            // The next unit can be right all the same: where it starts is known.
            tracing::debug!(layer = %layer.digest(), unit = number, %error, "a unit cannot be decoded");
        }
        if let Some(last) = pieces.last() {
            assembler.skip_to(last.range.end);
        }
    }
    match assembler.finish() {
        Some(needed) => Err(Error::NoRoom { layer: *layer.digest(), needed }),
        None => Ok(()),
    }
}

/// A unit's bytes, hashed as they are read, where their digest matters.
struct Hashed<R> {
    input: R,
    hash: Option<Sha256>,
}

impl<R: BufRead> Hashed<R> {
    /// Of all bytes, those included that were not read yet.
    fn digest(mut self) -> Option<Digest> {
        self.hash.as_ref()?;
        // Where not all of them come, the digest is another.
        let _all = io::copy(&mut self, &mut io::sink());
        Some(Digest::from_bytes(self.hash?.finalize().into()))
    }
}

impl<R: BufRead> BufRead for Hashed<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.input.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        if let (Some(hash), Ok(bytes)) = (&mut self.hash, self.input.fill_buf()) {
            hash.update(bytes.get(..amount).unwrap_or(bytes));
        }
        self.input.consume(amount);
    }
}

impl<R: BufRead> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

/// The body as it arrives, for a decoder that reads and waits.
struct Arrival {
    parts: mpsc::Receiver<Result<Bytes, registry::Error>>,
    part: Bytes,
    /// Place in the blob of the first byte not yet read.
    position: u64,
    /// The byte before that.
    last: u8,
    error: Option<registry::Error>,
}

impl Arrival {
    /// The bytes of a unit. It may start with the byte that the one before has ended with.
    fn unit(&mut self, compressed: ByteRange) -> io::Result<impl BufRead> {
        let mut again = Vec::new();
        if compressed.start.checked_add(1) == Some(self.position) {
            again.push(self.last);
        } else {
            self.skip_to(compressed.start)?;
        }
        let rest = compressed.end.saturating_sub(self.position);
        Ok(Read::chain(Cursor::new(again), self.take(rest)))
    }

    fn skip_to(&mut self, position: u64) -> io::Result<()> {
        let skip = position.checked_sub(self.position).ok_or(io::ErrorKind::InvalidInput)?;
        let skipped = io::copy(&mut self.by_ref().take(skip), &mut io::sink())?;
        if skipped == skip { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

impl BufRead for Arrival {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.part.is_empty() {
            match self.parts.blocking_recv() {
                Some(Ok(part)) => self.part = part,
                Some(Err(error)) => {
                    let text = error.to_string();
                    self.error = Some(error);
                    return Err(io::Error::other(text));
                }
                None => break,
            }
        }
        Ok(&self.part)
    }

    fn consume(&mut self, amount: usize) {
        let amount = amount.min(self.part.len());
        self.last = self.part.get(..amount).and_then(|read| read.last()).copied().unwrap_or(self.last);
        self.part.advance(amount);
        self.position += amount as u64;
    }
}

impl Read for Arrival {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}
