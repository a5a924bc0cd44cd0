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
use std::io::{self, BufRead, Read};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::arrival::Arrival;
use super::asker::Guess;
use super::assemble::{Assembler, Brought, MEMORY_PER_CHECK, Wanted};
use super::chunked::{Chunked, Place};
use super::decode::Units;
use super::flight::{Duty, Waiter};
use super::plan::{self, Run};
use super::seams::{Head, Lender};
use super::source::Stream;
use super::unordered;
use super::whole::{Duties, Handed, Reader};
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
    /// The start of its first unit comes with another request.
    head: Option<Head>,
    /// The start of the unit behind its last one comes with it, for another.
    lender: Option<Lender>,
    /// Nobody waits for it.
    guess: Option<Box<dyn Guess>>,
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
        Self { layer, run, wanted, duties, head: None, lender: None, guess: None }
    }

    /// The same where its run begins or ends with a slice that cuts a unit.
    pub(super) fn cut(self, head: Option<Head>, lender: Option<Lender>) -> Self {
        Self { head, lender, ..self }
    }

    /// What it asks for.
    pub(super) fn compressed(&self) -> ByteRange {
        self.run.compressed
    }

    /// The same for nobody in particular: not counted with the requests of readers.
    pub(super) fn for_nobody(self, guess: Box<dyn Guess>) -> Self {
        Self { guess: Some(guess), ..self }
    }

    /// Runs to its end whoever still waits. Wrong bytes are fetched once more, past caches: of each place that may have them.
    pub(super) async fn run(mut self) -> Result<(), Error> {
        let (mut failed, mut others) = (None, Vec::new());
        let past_caches = std::iter::repeat_n(Freshness::PastCaches, self.layer.source.places());
        for freshness in std::iter::once(Freshness::Any).chain(past_caches) {
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

    /// What its run takes of the blob.
    async fn place(&self) -> Result<Place, Error> {
        let (layer, units) = (Arc::clone(&self.layer), self.run.compressed);
        if layer.index.packing().is_none() {
            return layer.place(units);
        }
        threads::run(Work::Local, move || layer.place(units)).await.map_err(|_| Error::Interrupted)?
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
        let (layer, duties) = (Arc::clone(&self.layer), std::mem::take(&mut self.duties));
        let permit = match self.guess {
            Some(_) => None,
            None => match layer.permit().await {
                Ok(permit) => Some(permit),
                Err(failed) => return Attempt { duties, failed: Some(failed), ..Attempt::default() },
            },
        };
        let duties = match self.hand_over(duties).await {
            Handed::Over(others) => return Attempt { others, ..Attempt::default() },
            Handed::Back(duties) if duties.is_empty() => return Attempt::default(),
            Handed::Back(duties) => duties,
        };
        tracing::debug!(layer = %self.layer.digest(), compressed = %self.run.compressed, guess = self.guess.is_some(), "fetching");
        let place = match self.place().await {
            Ok(place) => place,
            Err(failed) => return Attempt { duties, failed: Some(failed), ..Attempt::default() },
        };
        let streaming = self.layer.source.stream(place.blob, freshness);
        match self.unless_restrained(streaming).await {
            Some(Ok(Sent::Part(body))) => {
                let duties = Duties::of(duties.into_values());
                let Decoded { mut failed, rest, .. } = self.bring(body, place, false, &duties).await;
                // Who brings the start may wait for its turn.
                drop(permit);
                if let (None, Some(head)) = (&failed, self.head.take()) {
                    failed = self.bring_cut(head, rest, &duties).await;
                }
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

    /// All of the layer may be coming, or have come, while this waited for its turn. What another waits for is fetched all the same.
    async fn hand_over(&self, duties: HashMap<u32, Duty>) -> Handed {
        if !self.layer.whole.was_begun() || self.lender.is_some() {
            return Handed::Back(duties);
        }
        let layer = Arc::clone(&self.layer);
        // Where no thread can be had whoever waits is told that it was interrupted.
        let handed = threads::run(Work::Local, move || layer.join_whole(duties)).await;
        handed.unwrap_or_else(|_| Handed::Back(HashMap::new()))
    }

    /// All of the blob comes: it is read to its end for all who wait for any of it, unless somebody does that already.
    async fn bring_whole(&mut self, body: Stream, duties: HashMap<u32, Duty>) -> Attempt {
        let layer = Arc::clone(&self.layer);
        (self.head, self.lender) = (None, None);
        let reader = threads::run(Work::Local, move || layer.read_whole(duties)).await;
        match reader.map_err(|_| Error::Interrupted).and_then(|reader| Ok(reader?)) {
            Ok(Reader::First { run, wanted, duties }) => {
                tracing::debug!(layer = %self.layer.digest(), "its host sends all of it");
                (self.run, self.wanted) = (run, wanted);
                let all = Place { blob: ByteRange { start: 0, end: self.layer.source.size() }, image: 0 };
                let Decoded { failed, lacking, .. } = self.bring(body, all, true, &duties).await;
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

    /// The first unit, once its start came with another request; `rest` is what came with this one.
    async fn bring_cut(&self, head: Head, rest: Bytes, duties: &Duties) -> Option<Error> {
        let Ok(head) = head.await else { return Some(Error::Interrupted) };
        let at = self.run.compressed.start;
        let start = at.saturating_sub(head.len() as u64);
        let run = Run {
            units: self.run.units.start..self.run.units.start.saturating_add(1),
            compressed: ByteRange { start, end: at.saturating_add(rest.len() as u64) },
        };
        let (sender, receiver) = mpsc::channel(2);
        for part in [head, rest] {
            sender.send(Ok(part)).await.ok()?;
        }
        drop(sender);
        let decoder = Decoder { run, ends: Ends::default(), ..self.decoder(duties) };
        let place = Place { blob: decoder.run.compressed, image: start };
        let decoded = threads::run(Work::Incoming, move || decoder.run(&place, receiver)).await;
        decoded.map_or(Some(Error::Interrupted), |decoded| decoded.failed)
    }

    fn decoder(&self, duties: &Duties) -> Decoder {
        Decoder {
            layer: Arc::clone(&self.layer),
            run: self.run.clone(),
            wanted: self.wanted.clone(),
            duties: duties.clone(),
            ends: Ends::default(),
        }
    }

    /// Decodes what comes while it comes.
    async fn bring(&mut self, mut body: Stream, comes: Place, is_whole: bool, duties: &Duties) -> Decoded {
        let (sender, receiver) = mpsc::channel(PARTS);
        let ends = Ends { is_cut: self.head.is_some(), lender: self.lender.take() };
        let decoder = Decoder { ends, ..self.decoder(duties) };
        let decoder = threads::run(Work::Incoming, move || decoder.run(&comes, receiver));
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
        let mut decoded = decoder.await.unwrap_or_else(|_| {
            // Who waits is told that it was interrupted.
            drop(duties.take());
            Decoded { failed: Some(Error::Interrupted), ..Decoded::default() }
        });
        decoded.failed = stopped.or(decoded.failed);
        decoded
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
    ends: Ends,
}

/// What of a run belongs to units that it has only a part of.
#[derive(Default)]
struct Ends {
    /// Of the first one the start comes with another request.
    is_cut: bool,
    /// For the start of the one behind the last.
    lender: Option<Lender>,
}

/// What came of a request.
#[derive(Default)]
struct Decoded {
    failed: Option<Error>,
    /// The checks that did not come right.
    lacking: HashSet<u32>,
    /// Of a first unit that is cut, what came of it.
    rest: Bytes,
}

impl Decoder {
    /// `comes`: what of the blob comes, and where that is among the units.
    fn run(self, comes: &Place, parts: mpsc::Receiver<Result<Bytes, registry::Error>>) -> Decoded {
        let Self { layer, mut run, wanted, duties, ends } = self;
        let chunked = layer.index.packing().map(|_| Chunked::new(&layer, comes.image, comes.blob.start)).transpose();
        let mut arrival = match chunked {
            Ok(chunked) => Arrival::new(parts, comes.image, chunked),
            Err(error) => {
                let lacking = wanted.iter().map(|wanted| wanted.check).collect();
                return Decoded { failed: Some(error), lacking, rest: Bytes::new() };
            }
        };
        let mut lacking: HashSet<u32> = wanted.iter().map(|wanted| wanted.check).collect();
        let mut outcome = |wanted: Wanted, brought: Option<Brought>| {
            let Some(brought) = brought else { return };
            lacking.remove(&wanted.check);
            layer.land(&duties, wanted, brought);
        };
        let is_all = run.units == (0..layer.index.summary().units);
        if is_all && layer.index.summary().format.is_filesystem() && !ends.is_cut && ends.lender.is_none() {
            let failed = unordered::decode(&layer, &run, &mut arrival, &wanted, &mut outcome).err();
            let failed = arrival.into_error().map(|error| layer.registry_error(error)).or(failed);
            return Decoded { failed, lacking, rest: Bytes::new() };
        }
        if wanted.iter().any(|wanted| wanted.range.len() > MEMORY_PER_CHECK) {
            layer.aside.drop_files();
        }
        let assembler = Assembler::new(&layer.cache, &layer.file, wanted, &mut outcome);
        let rest = if ends.is_cut { take_rest(&layer, &mut run, &mut arrival) } else { Ok(Bytes::new()) };
        let decoded = rest.and_then(|rest| {
            decode_run(&layer, &run, &mut arrival, assembler)?;
            ends.lender.map_or(Ok(()), |lender| lend(&layer, &run, &mut arrival, lender))?;
            Ok(rest)
        });
        let (rest, failed) = match decoded {
            Ok(rest) => (rest, None),
            Err(error) => (Bytes::new(), Some(error)),
        };
        let failed = arrival.into_error().map(|error| layer.registry_error(error)).or(failed);
        Decoded { failed, lacking, rest }
    }
}

/// What comes of a first unit whose start is elsewhere; the run is from then on what is behind it.
fn take_rest(layer: &Layer, run: &mut Run, arrival: &mut Arrival) -> Result<Bytes, Error> {
    let unit = layer.index.unit(run.units.start)?.compressed;
    run.units.start = run.units.start.saturating_add(1);
    Ok(arrival.bytes(ByteRange { start: run.compressed.start, end: unit.end }))
}

/// Hands on the start of the unit behind a run.
fn lend(layer: &Layer, run: &Run, arrival: &mut Arrival, lender: Lender) -> Result<(), Error> {
    let unit = layer.index.unit(run.units.end)?.compressed;
    let part = ByteRange { start: unit.start, end: run.compressed.end };
    let bytes = arrival.bytes(part);
    if bytes.len() as u64 == part.len() {
        lender.give(bytes);
    }
    Ok(())
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
            if arrival.has_failed() {
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
