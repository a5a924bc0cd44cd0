//! Ranged reads of a blob in a registry: exactly the bytes that were asked for, all of the blob where its hosts send nothing less, or an error.
//!
//! ```text
//! connect: the first place that is well, the next where it fails or takes long     (repository.rs, side.rs)
//! body:    206 with the very range | 200 with the whole blob  -->  bytes  --(cut, stall, error)--> connect at where it stopped
//! ```

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::time::Instant;

use super::ask::Counters;
use super::blame::Blame;
use super::errors::Retry;
use super::link::{Capacity, Link};
use super::patience::Patience;
use super::repository::{Asks, Order, Repository, Won};
use super::side::{Answer, Opened, Part, Side, Taken, Unread};
use super::transport::Connection;
use super::waits::Waiting;
use super::{Error, Freshness, Redacted};
use crate::blob::{ByteRange, Digest};

/// Answers in a row that break off before they have come to where an earlier one ended: a host that sends whole blobs only begins anew each time.
const MOST_IN_VAIN: u32 = 3;

pub(super) struct RemoteBlob {
    pub(super) repository: Repository,
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) counters: Arc<Counters>,
    /// As the repository's places.
    sides: Vec<Side>,
    /// Who has sent what, where several may have.
    blame: Mutex<Blame>,
    /// To the host that its bytes came from last.
    link: Arc<Mutex<Option<Arc<Link>>>>,
}

impl RemoteBlob {
    pub(super) fn new(repository: Repository, digest: Digest, size: u64) -> Self {
        let (counters, link) = (Arc::<Counters>::default(), Arc::default());
        let side =
            |site: &super::site::Site| Side::new(site.clone(), digest, size, Arc::clone(&counters), Arc::clone(&link));
        let sides: Vec<_> = repository.sites.iter().map(side).collect();
        let blame = Mutex::new(Blame::new(sides.len()));
        Self { repository, digest, size, counters, sides, blame, link }
    }

    /// Places in the order in which they are asked for a part.
    fn order(&self, range: ByteRange) -> Order {
        let blame = self.blame.lock().unwrap_or_else(PoisonError::into_inner);
        let order = Order::of(self.sides.len(), |place| {
            let side = self.sides.get(place).filter(|_| !blame.is_distrusted(place, range))?;
            Some(!side.rests())
        });
        // Where each has been wrong about another piece of it, somebody has to be asked all the same.
        if order.places.is_empty() { Order::of(self.sides.len(), |_| Some(false)) } else { order }
    }

    /// The place that would be asked now, where it sends all of it for a part. One that has rested is asked for a part once more, where there are
    /// others.
    fn sends_whole(&self) -> Option<&Side> {
        let side = self.sides.get(*self.order(self.all()).places.first()?)?;
        let is_believed = self.sides.len() == 1 || side.rests();
        Some(side).filter(|side| is_believed && side.sent_whole.load(Ordering::Relaxed))
    }

    pub(super) fn is_sent_whole(&self) -> bool {
        self.sends_whole().is_some()
    }

    /// What came for a range was wrong: whoever has sent it is not asked for that any more.
    fn distrust(&self, range: ByteRange) {
        if self.sides.len() < 2 {
            return;
        }
        let liars = self.blame.lock().unwrap_or_else(PoisonError::into_inner).distrust(range);
        for side in liars.into_iter().filter_map(|place| self.sides.get(place)) {
            let error = Error::protocol_of(side.site.name(), format!("wrong bytes of layer {}, {range}", self.digest));
            let _was_well = side.health.failed(Instant::now(), &error);
            side.site.peer.health.was_wrong(&error);
        }
    }

    pub(super) fn places(&self) -> usize {
        self.sides.len()
    }

    fn all(&self) -> ByteRange {
        ByteRange { start: 0, end: self.size }
    }

    /// What the way to its bytes can carry, or would be asked for at a time; `None` until that is known.
    pub(super) fn capacity(&self) -> Option<Capacity> {
        let measured = self.link.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.capacity()?;
        let wish = self.sides.iter().find(|side| !side.rests()).and_then(|side| side.site.endpoint.wish());
        Some(wish.map_or(measured, |wish| measured.of_at_least(wish)))
    }
}

/// A range on its way, through as many connections as it takes.
pub(super) struct RangedBody {
    blob: Arc<RemoteBlob>,
    /// What is still to come.
    rest: ByteRange,
    /// Of that, what lies before this is not handed out.
    from: u64,
    freshness: Freshness,
    connection: Connection,
    patience: Patience,
    /// What is sent, by whom, and since when.
    answer: Option<Answer>,
    place: usize,
    asked: Instant,
    /// Where the answer has begun.
    began: u64,
    /// All of it, which somebody may take.
    unread: Option<Unread>,
    taken: Option<Taken>,
    /// No place sends a part alone.
    is_whole_taken: bool,
    /// How long it may stand still before another goes on with it.
    lull: Option<Duration>,
    /// Answers that ended before anything new came.
    in_vain: u32,
}

impl RangedBody {
    /// Starts reading; an error here is final. What comes may be all of the blob ([`RangedBody::is_whole`]).
    pub(super) async fn open(blob: Arc<RemoteBlob>, range: ByteRange, freshness: Freshness) -> Result<Self, Error> {
        let waits = &blob.repository.shared.hosts.waits;
        let wait = waits.begin(Waiting::for_registry(format!("layer {}", blob.digest)));
        let patience = Patience::new(blob.repository.shared.options.io_deadline, wait);
        if freshness == Freshness::PastCaches {
            blob.distrust(range);
        }
        let before: Vec<_> = blob.sides.iter().map(|side| side.wholes.load(Ordering::Relaxed)).collect();
        let mut body = Self {
            blob,
            rest: range,
            from: 0,
            freshness,
            connection: Connection::Pooled,
            patience,
            answer: None,
            place: 0,
            asked: Instant::now(),
            began: range.start,
            unread: None,
            taken: None,
            is_whole_taken: false,
            lull: None,
            in_vain: 0,
        };
        if let Some(side) = body.blob.sends_whole().filter(|_| !range.is_empty()) {
            // Its host would send all of it once more for each part. Whoever takes it asks for it.
            (body.rest, body.unread) = (body.blob.all(), side.unread(freshness));
            body.is_whole_taken = true;
            return Ok(body);
        }
        while body.answer.is_none() && !body.rest.is_empty() {
            if let Err(error) = body.connect(Some(&before)).await {
                body.recover(error).await?;
            }
            if body.believes_whole(&before) {
                return Ok(body);
            }
        }
        Ok(body)
    }

    /// Whether it brings all of the blob, of which `asked` is a part.
    pub(super) fn is_whole(&self, asked: ByteRange) -> bool {
        self.rest != asked
    }

    /// Hands out only what lies in a range.
    pub(super) fn only(&mut self, range: ByteRange) {
        (self.from, self.rest.end) = (range.start, range.end);
    }

    fn side(&self) -> Option<&Side> {
        self.blob.sides.get(self.place)
    }

    /// Whether a first request for a part is to bring the whole blob: it comes, or did so to somebody else. A host that has sent parts is asked
    /// once more.
    fn believes_whole(&mut self, before: &[u64]) -> bool {
        let all = self.blob.all();
        if self.rest == all {
            return false;
        }
        let Some(side) = self.blob.sides.get(self.place) else { return false };
        match &mut self.answer {
            Some(answer) if answer.is_whole() && side.sends_parts.swap(false, Ordering::Relaxed) => {
                (self.answer, self.connection) = (None, Connection::Fresh);
                return false;
            }
            Some(answer) if answer.is_whole() => {
                (answer.skip, answer.in_vain) = (0, false);
                side.sent_whole.store(true, Ordering::Relaxed);
            }
            None if before.get(self.place).is_some_and(|before| side.came_whole(*before)) => {}
            _ => return false,
        }
        (self.rest, self.began) = (all, 0);
        true
    }

    pub(super) async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        while !self.rest.is_empty() {
            let error = match self.step().await {
                Ok(bytes) if bytes.is_empty() => continue,
                Ok(bytes) => return Some(Ok(bytes)),
                Err(error) => error,
            };
            self.note_sent();
            let recovered = match self.answer.take() {
                Some(answer) => self.go_on(&answer, error).await,
                None => self.recover(error).await,
            };
            if let Err(error) = recovered {
                // Nothing follows an error.
                self.rest.start = self.rest.end;
                return Some(Err(error));
            }
        }
        None
    }

    /// After a body that broke off: the next place goes on with it at once; where none is well, after a pause.
    async fn go_on(&mut self, answer: &Answer, error: Error) -> Result<(), Error> {
        self.in_vain += u32::from(answer.in_vain);
        if self.in_vain >= MOST_IN_VAIN {
            return Err(error);
        }
        if let Some(side) = self.side() {
            self.blob.repository.note_ill(&side.site, self.asked, &error);
        }
        if self.blob.sides.len() > 1 && self.blob.order(self.rest).well > 0 {
            self.connection = Connection::Fresh;
            let taken = self.taken.take();
            self.forget(self.place, taken).await;
            self.blob.repository.turn_from(self.place);
            return Ok(());
        }
        self.recover(error).await
    }

    async fn connect(&mut self, before: Option<&[u64]>) -> Result<(), Error> {
        self.answer = self.take_unread();
        (self.asked, self.began) = (Instant::now(), self.rest.start);
        if self.answer.is_some() {
            return Ok(());
        }
        let opened = match self.ask(before, !self.is_whole_taken).await {
            Err(failed) if failed.iter().any(|(_, error)| matches!(error.root(), Error::SendsWhole { .. })) => {
                // Nobody is left who would send a part alone.
                self.is_whole_taken = true;
                self.ask(before, false).await
            }
            opened => opened,
        };
        let breaks_rules = |error: &Error| matches!(error.root(), Error::MixedUp { .. } | Error::Protocol { .. });
        match opened {
            Ok(Opened::Answer(answer)) => self.answer = Some(*answer),
            Ok(Opened::Whole(unread)) => self.unread = unread,
            Err(failed) if failed.len() > 1 => {
                if failed.iter().any(|(_, error)| breaks_rules(error)) {
                    self.freshness = Freshness::PastCaches;
                }
                return Err(self.blob.repository.together(failed, false));
            }
            Err(failed) => return Err(self.blob.repository.together(failed, false)),
        }
        self.lull = self.blob.repository.lull(&self.blob.order(self.rest), self.place);
        Ok(())
    }

    /// Asks the places in their order. `has_other`: who sends all of it for a part is passed over, where there are others.
    async fn ask(&mut self, before: Option<&[u64]>, has_other: bool) -> Result<Opened, Vec<(usize, Error)>> {
        let Self { blob, rest, freshness, connection, patience, .. } = self;
        let (range, freshness, connection) = (*rest, *freshness, *connection);
        let (order, asks) = (blob.order(range), Asks::default());
        let has_other = has_other && order.places.len() > 1;
        let taken: Vec<Mutex<Option<Taken>>> = blob.sides.iter().map(|_| Mutex::default()).collect();
        // Of who sends all of it for want of others nothing is known but that it answers.
        let of_this = |side: &Side| has_other.then(|| side.health.clone());
        let healths = |place: usize| {
            let side = blob.sides.get(place);
            let healths =
                side.map(|side| std::iter::once(side.site.peer.health.clone()).chain(of_this(side)).collect());
            healths.unwrap_or_default()
        };
        let (none, repository) = (Mutex::default(), &blob.repository);
        let open = |place: usize| {
            let (side, taken) = (blob.sides.get(place), taken.get(place).unwrap_or(&none));
            let before = before.map(|before| before.get(place).copied().unwrap_or(0));
            async move {
                let side = side.ok_or_else(|| repository.nobody())?;
                let part = Part { range, freshness, connection, before, has_other, taken };
                Box::pin(side.open(part)).await
            }
        };
        let asking = blob.repository.first(&order, &asks, patience.for_one(), healths, open);
        let answer = patience.answer(|| blob.counters.is_queued(), asking).await;
        let way = |place: usize| taken.get(place)?.lock().unwrap_or_else(PoisonError::into_inner).take();
        match answer {
            Some(Ok(Won { place, value, .. })) => {
                (self.place, self.taken) = (place, way(place));
                Ok(value)
            }
            Some(Err(failed)) => {
                for (place, error) in &failed {
                    if matches!(error.retry(), Retry::After(_)) {
                        self.forget(*place, way(*place)).await;
                    }
                }
                Err(failed)
            }
            None => {
                let late = || self.blob.counters.late(self.shown_url());
                for place in order.places {
                    self.forget(place, way(place)).await;
                }
                Err(asks.late(late))
            }
        }
    }

    /// A host that falls silent does not say so: only the registry may know of a better one.
    async fn forget(&self, place: usize, taken: Option<Taken>) {
        if let Some((side, (url, id))) = self.blob.sides.get(place).zip(taken) {
            side.forget(&url, id).await;
        }
    }

    /// What another was sent and has left to whoever reads all of it.
    fn take_unread(&mut self) -> Option<Answer> {
        let unread = self.unread.take().filter(|_| self.rest.start == 0)?;
        unread.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn step(&mut self) -> Result<Bytes, Error> {
        // Another could go on with it.
        let lull = self.lull;
        let Some(answer) = &mut self.answer else {
            return self.connect(None).await.map(|()| Bytes::new());
        };
        let chunk = self.patience.body(lull, answer.response.chunk()).await;
        let chunk = chunk.ok_or_else(|| Error::transfer(&answer.url, "the body stalled", None))?;
        let chunk = chunk.map_err(|source| Error::transfer(&answer.url, "the body broke off", Some(source)))?;
        let mut bytes = chunk.ok_or_else(|| Error::transfer(&answer.url, "the body ended early", None))?;
        let length = bytes.len() as u64;
        self.blob.counters.bytes.fetch_add(length, Ordering::Relaxed);
        let is_progress = self.patience.moved(length);
        answer.transfer.moved(length);
        answer.received.inc_by(length);
        let skipped = answer.skip.min(length);
        answer.skip -= skipped;
        bytes = from(bytes, skipped);
        bytes.truncate(usize::try_from(self.rest.len()).unwrap_or(usize::MAX));
        let unwanted = self.from.saturating_sub(self.rest.start);
        if !bytes.is_empty() {
            (self.in_vain, answer.in_vain) = (0, false);
        }
        self.rest.start = self.rest.start.saturating_add(bytes.len() as u64);
        if is_progress || self.rest.is_empty() {
            self.blob.counters.progress.fetch_add(1, Ordering::Relaxed);
        }
        if self.rest.is_empty() {
            self.end();
        }
        Ok(from(bytes, unwanted))
    }

    /// Remembers who has sent what came.
    fn note_sent(&self) {
        let range = ByteRange::new(self.began, self.rest.start).filter(|range| !range.is_empty());
        if let Some(range) = range.filter(|_| self.blob.sides.len() > 1 && self.answer.is_some()) {
            self.blob.blame.lock().unwrap_or_else(PoisonError::into_inner).sent(self.place, range);
        }
    }

    fn end(&mut self) {
        self.note_sent();
        let Some(mut answer) = self.answer.take() else { return };
        if let Some(side) = self.side().filter(|_| answer.is_whole() && self.rest.end == self.blob.size) {
            // A cache that had nothing of the blob has all of it now, and may send parts.
            side.wholes.fetch_add(1, Ordering::Relaxed);
            side.sent_whole.store(false, Ordering::Relaxed);
        }
        // Takes the body's end where it is there already, so that the connection can be used again.
        let _ = answer.response.chunk().now_or_never();
    }

    /// What broke off says something of who sent it, and is asked of the next at once; where there is none, after a pause.
    async fn recover(&mut self, error: Error) -> Result<(), Error> {
        self.connection = Connection::Fresh;
        match error.root() {
            // It was asked for past caches as well.
            Error::MixedUp { .. } if self.freshness == Freshness::PastCaches => return Err(error),
            // A cache may have said so.
            Error::MixedUp { .. } | Error::Protocol { .. } => self.freshness = Freshness::PastCaches,
            _ => {}
        }
        if matches!(error.retry(), Retry::After(_)) {
            let taken = self.taken.take();
            self.forget(self.place, taken).await;
        }
        let url = self.shown_url();
        self.patience.pause(error, &url).await
    }

    fn shown_url(&self) -> Redacted {
        self.blob.repository.shown("blobs", &self.blob.digest.to_string())
    }
}

impl Drop for RangedBody {
    fn drop(&mut self) {
        self.note_sent();
    }
}

/// Without the first bytes.
fn from(mut bytes: Bytes, skipped: u64) -> Bytes {
    bytes.split_off(usize::try_from(skipped).unwrap_or(usize::MAX).min(bytes.len()))
}
