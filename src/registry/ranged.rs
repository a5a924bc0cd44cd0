//! Ranged reads of a blob in a registry: exactly the bytes that were asked for, all of the blob where its host sends nothing less, or an error.
//!
//! ```text
//! open: [route known?] -- no --> registry --(redirects)--> host    one reader finds the way, the others wait for it
//!            `--------- yes ------------------------------> host   400 401 403 410: the way is found anew, once
//!                               400 403 405 416 501 to a range     the same without Range, once
//! body: 206 with the very range | 200 with the whole blob  -->  bytes  --(cut, stall, error)--> open at where it stopped,
//!                                                                                               by a way that is found anew
//! ```

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use futures_util::FutureExt as _;
use moka::ops::compute::Op;
use reqwest::Response;
use reqwest::header::{CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE};
use tokio::time::Instant;
use url::Url;

use super::errors::Retry;
use super::gate::SPACING;
use super::link::{Capacity, Link, Transfer};
use super::patience::Patience;
use super::remote::{Ask, Counters, Repository, Route};
use super::throttle::status_error;
use super::transport::Connection;
use super::waits::Waiting;
use super::{Error, Freshness, Redacted, hosts};
use crate::blob::{ByteRange, Digest};
use crate::metrics::{Counter, METRICS};

/// Answers in a row that break off before they have come to where an earlier one ended: a host that sends whole blobs only begins anew each time.
const MOST_IN_VAIN: u32 = 3;

/// What hosts answer that know no ranges, or do not want to know this one.
const NO_RANGES: [u16; 5] = [400, 403, 405, 416, 501];

/// Of these, what may also mean that the way to the host has ended.
const MAY_HAVE_ENDED: [u16; 2] = [400, 403];

/// A remembered way elsewhere that a request goes: the registry's URL for the blob, and the route's number.
type Taken = (Url, u64);

pub(super) struct RemoteBlob {
    pub(super) repository: Repository,
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) counters: Counters,
    /// To the host that its bytes came from last.
    link: Mutex<Option<Arc<Link>>>,
    /// What one of those takes who were told that all of it is sent.
    unread: Mutex<Weak<Mutex<Option<Answer>>>>,
}

/// The whole blob, as its host has begun to send it for a part. Whoever comes to read all of it takes it; it is let go with the last who may.
type Unread = Arc<Mutex<Option<Answer>>>;

/// What finding the way to a blob brings beside the way.
enum Found {
    /// The answer to whoever has asked.
    Answer(Box<(Url, Response)>),
    /// All of it, for one of those who wait.
    Whole(Unread),
}

/// What comes of asking for a part.
enum Opened {
    Answer(Box<Answer>),
    /// Somebody was sent all of the blob, or is sent it.
    Whole(Option<Unread>),
}

/// An answer that holds the wanted bytes, after `skip` others.
struct Answer {
    url: Url,
    response: Response,
    skip: u64,
    /// It has bytes that came before, and nothing else yet.
    in_vain: bool,
    transfer: Transfer,
    /// What its host has sent.
    received: Counter,
}

impl Answer {
    /// Whether it has the whole blob, whatever was asked for.
    fn is_whole(&self) -> bool {
        self.response.status().as_u16() != 206
    }
}

impl RemoteBlob {
    pub(super) fn new(repository: Repository, digest: Digest, size: u64) -> Self {
        let (counters, link, unread) = (Counters::default(), Mutex::default(), Mutex::default());
        Self { repository, digest, size, counters, link, unread }
    }

    /// `taken` is known at any time, so that whoever stops waiting knows what has been silent.
    /// `before`: how often all of it had been sent, where nothing has come here yet.
    async fn open(
        &self,
        range: ByteRange,
        freshness: Freshness,
        connection: Connection,
        before: Option<u64>,
        taken: &mut Option<Taken>,
    ) -> Result<Opened, Error> {
        let asked = Instant::now();
        let url = self.repository.url("blobs", &self.digest.to_string()).await?;
        let mut ask = Ask { headers: self.range_header(range), connection, counters: &self.counters };
        let is_mixed_up = self.counters.mixed_up.load(Ordering::Relaxed);
        ask.past_caches(if is_mixed_up { Freshness::PastCaches } else { freshness });
        let routes = &self.repository.shared.routes;
        if freshness == Freshness::PastCaches {
            routes.invalidate(&url).await;
        }
        let mut renewed = false;
        loop {
            let mut found = None;
            // Boxed, as are the others below a cache: its own frames are large.
            let finding = Box::pin(self.find_route(&url, &ask, asked, before.is_some(), &mut found));
            let route = routes.try_get_with_by_ref(&url, finding).await;
            let route = route.map_err(Error::shared)?;
            *taken = route.target.is_some().then(|| (url.clone(), route.id));
            match found {
                Some(Found::Answer(answer)) => {
                    let (url, response) = *answer;
                    return self.accept(range, url, response, asked).map(Opened::Answer);
                }
                Some(Found::Whole(unread)) => return Ok(Opened::Whole(Some(unread))),
                None => {}
            }
            if range != self.all() && before.is_some_and(|before| self.came_whole(before)) {
                return Ok(Opened::Whole(self.unread(freshness)));
            }
            let known = route.target.as_ref().unwrap_or(&url);
            let may_have_ended = route.target.is_some() && !renewed;
            let error = match self.ask(known, &ask, may_have_ended).await {
                Ok((url, response)) if is_taken(&response) => {
                    return self.accept(range, url, response, asked).map(Opened::Answer);
                }
                Ok((url, response)) => status_error(&url, &response),
                Err(error) => error,
            };
            // An expired signature, or storage that fails: the registry may send us elsewhere by now.
            let expired = matches!(error, Error::Denied { .. });
            if route.target.is_some() && (expired || matches!(error.retry(), Retry::After(_))) {
                self.forget(&url, route.id).await;
            }
            if !expired || route.target.is_none() || renewed {
                return Err(error);
            }
            renewed = true;
        }
    }

    /// Whether all of it is sent, or was since it had come so often.
    fn came_whole(&self, before: u64) -> bool {
        let counters = &self.counters;
        counters.sent_whole.load(Ordering::Relaxed) || counters.wholes.load(Ordering::Relaxed) != before
    }

    /// Asks for a range, and where the answer is that there are none, for the whole blob. `may_have_ended`: what may mean something else is
    /// not taken for that.
    async fn ask(&self, url: &Url, ask: &Ask<'_>, may_have_ended: bool) -> Result<(Url, Response), Error> {
        let (last, response) = self.repository.follow(url, ask).await?;
        let status = response.status().as_u16();
        let is_refused = NO_RANGES.contains(&status) && !(may_have_ended && MAY_HAVE_ENDED.contains(&status));
        if !is_refused || !ask.headers.contains_key(RANGE) {
            return Ok((last, response));
        }
        tracing::debug!(url = %Redacted::of(&last), status, "a range is refused; asking for the whole blob");
        let mut whole = Ask { headers: ask.headers.clone(), ..*ask };
        whole.headers.remove(RANGE);
        self.repository.follow(url, &whole).await
    }

    /// Asks the registry itself. The answer goes to whoever asked, the way to it to everyone, and so does all of the blob where that was sent for a
    /// part: whoever asked may not be the one who reads it. But to whoever goes on behind what has come, it is the rest.
    async fn find_route(
        &self,
        url: &Url,
        ask: &Ask<'_>,
        asked: Instant,
        is_first: bool,
        found: &mut Option<Found>,
    ) -> Result<Route, Error> {
        let (last, response) = self.ask(url, ask, false).await?;
        if !is_taken(&response) {
            let error = status_error(&last, &response);
            if let Error::Denied { .. } = error {
                // Even where the registry sent us just now: the next reader must not ask again at once.
                self.repository.shared.throttle.restrain(&last, SPACING);
            }
            return Err(error);
        }
        let target = Some(last.clone()).filter(|last| last != url);
        // Before those hear of it who wait for the way.
        let is_whole = response.status().as_u16() != 206 && ask.headers.contains_key(RANGE);
        let is_new = !self.counters.sends_parts.load(Ordering::Relaxed);
        *found = Some(if is_first && is_whole && is_new && self.breach(&response).is_none() {
            self.counters.sent_whole.store(true, Ordering::Relaxed);
            let unread = Arc::new(Mutex::new(Some(self.answer(last, response, asked, 0))));
            *self.unread.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&unread);
            Found::Whole(unread)
        } else {
            self.counters.sent_whole.fetch_or(is_whole && is_new, Ordering::Relaxed);
            Found::Answer(Box::new((last, response)))
        });
        Ok(Route { id: self.repository.shared.next_route(), target })
    }

    /// What may have come from a cache is for nobody who asks past them.
    fn unread(&self, freshness: Freshness) -> Option<Unread> {
        if freshness == Freshness::PastCaches {
            return None;
        }
        self.unread.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }

    /// Drops a route, unless another reader has found a new one already.
    async fn forget(&self, url: &Url, id: u64) {
        let drop_old = |entry: Option<moka::Entry<Url, Route>>| {
            let old = entry.is_some_and(|entry| entry.value().id == id);
            std::future::ready(if old { Op::Remove } else { Op::Nop })
        };
        self.repository.shared.routes.entry_by_ref(url).and_compute_with(drop_old).await;
    }

    /// Takes an answer for what it says it is, if that is what was asked for.
    fn accept(&self, range: ByteRange, url: Url, response: Response, asked: Instant) -> Result<Box<Answer>, Error> {
        if let Some(breach) = self.breach(&response) {
            return Err(Error::protocol(&url, breach));
        }
        if response.status().as_u16() != 206 {
            return Ok(Box::new(self.answer(url, response, asked, range.start)));
        }
        let mut ranges = response.headers().get_all(CONTENT_RANGE).iter();
        let said = ranges.next().and_then(|value| value.to_str().ok()).unwrap_or_default();
        match content_range(said, self.size).filter(|_| ranges.next().is_none()) {
            Some(said) if said == range => {}
            Some(said) => return Err(self.mixed_up(&url, range, said)),
            None => {
                return Err(Error::protocol(&url, format!("asked for {range}, its Content-Range is {said:?}")));
            }
        }
        self.counters.sends_parts.store(true, Ordering::Relaxed);
        self.counters.sent_whole.store(false, Ordering::Relaxed);
        Ok(Box::new(self.answer(url, response, asked, 0)))
    }

    /// What is wrong with an answer, whatever it is to.
    fn breach(&self, response: &Response) -> Option<String> {
        if let Some(encoding) = response.headers().get(CONTENT_ENCODING).filter(|value| *value != "identity") {
            return Some(format!("Content-Encoding {encoding:?} was not asked for"));
        }
        let content_type = response.headers().get(CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
        if content_type.to_ascii_lowercase().starts_with(b"multipart/") {
            return Some("a multipart body was not asked for".to_owned());
        }
        let length =
            response.content_length().filter(|length| response.status().as_u16() != 206 && *length != self.size)?;
        Some(format!("a whole body of {length} bytes, and the blob has {}", self.size))
    }

    /// Other bytes than asked for: a cache on the way may keep parts without telling them apart. All else of the blob is read past it.
    fn mixed_up(&self, url: &Url, asked: ByteRange, said: ByteRange) -> Error {
        if !self.counters.mixed_up.swap(true, Ordering::Relaxed) {
            tracing::warn!(url = %Redacted::of(url), %asked, %said, "other bytes of a layer came than were asked for; it is read past caches from now on");
        }
        Error::MixedUp { url: Redacted::of(url), asked, said }
    }

    /// All of a blob is asked for without a range, as other clients do: caches on the way keep that.
    fn range_header(&self, range: ByteRange) -> HeaderMap {
        if range.len() == self.size {
            return HeaderMap::new();
        }
        let text = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        // Digits and ASCII only: always a valid value.
        HeaderValue::from_str(&text).map(|value| HeaderMap::from_iter([(RANGE, value)])).unwrap_or_default()
    }

    fn answer(&self, url: Url, response: Response, asked: Instant, skip: u64) -> Answer {
        let link = self.repository.shared.hosts.link(&url);
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&link));
        let received = METRICS.received_from(hosts::named(&url));
        Answer { url, response, skip, in_vain: skip > 0, transfer: link.answered(asked), received }
    }

    fn all(&self) -> ByteRange {
        ByteRange { start: 0, end: self.size }
    }

    /// What the way to its bytes can carry; `None` until that is known.
    pub(super) fn capacity(&self) -> Option<Capacity> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.capacity()
    }
}

fn is_taken(response: &Response) -> bool {
    matches!(response.status().as_u16(), 200 | 206)
}

/// The range that a Content-Range says, if it is one of a whole of `size` bytes (RFC 9110, section 14.4).
fn content_range(said: &str, size: u64) -> Option<ByteRange> {
    let (span, total) = said.trim().strip_prefix("bytes ")?.trim().split_once('/')?;
    let (first, last) = span.split_once('-')?;
    let end = last.parse::<u64>().ok()?.checked_add(1)?;
    let is_of_it = total == "*" || total.parse() == Ok(size);
    ByteRange::new(first.parse().ok()?, end).filter(|_| is_of_it)
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
    answer: Option<Answer>,
    /// All of it, which somebody may take.
    unread: Option<Unread>,
    taken: Option<Taken>,
    /// Answers that ended before anything new came.
    in_vain: u32,
}

impl RangedBody {
    /// Starts reading; an error here is final. What comes may be all of the blob ([`RangedBody::is_whole`]).
    pub(super) async fn open(blob: Arc<RemoteBlob>, range: ByteRange, freshness: Freshness) -> Result<Self, Error> {
        let waits = &blob.repository.shared.hosts.waits;
        let wait = waits.begin(Waiting::for_registry(format!("layer {}", blob.digest)));
        let patience = Patience::new(blob.repository.shared.options.io_deadline, wait);
        let before = blob.counters.wholes.load(Ordering::Relaxed);
        let mut body = Self {
            blob,
            rest: range,
            from: 0,
            freshness,
            connection: Connection::Pooled,
            patience,
            answer: None,
            unread: None,
            taken: None,
            in_vain: 0,
        };
        if body.blob.counters.sent_whole.load(Ordering::Relaxed) && !range.is_empty() {
            // Its host would send all of it once more for each part. Whoever takes it asks for it.
            (body.rest, body.unread) = (body.blob.all(), body.blob.unread(freshness));
            return Ok(body);
        }
        while body.answer.is_none() && !body.rest.is_empty() {
            if let Err(error) = body.connect(Some(before)).await {
                body.recover(error).await?;
            }
            if body.believes_whole(before) {
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

    /// Whether a first request for a part is to bring the whole blob: it comes, or did so to somebody else. A host that has sent parts is asked
    /// once more.
    fn believes_whole(&mut self, before: u64) -> bool {
        let (all, counters) = (self.blob.all(), &self.blob.counters);
        if self.rest == all {
            return false;
        }
        match &mut self.answer {
            Some(answer) if answer.is_whole() && counters.sends_parts.swap(false, Ordering::Relaxed) => {
                (self.answer, self.connection) = (None, Connection::Fresh);
                return false;
            }
            Some(answer) if answer.is_whole() => {
                (answer.skip, answer.in_vain) = (0, false);
                counters.sent_whole.store(true, Ordering::Relaxed);
            }
            None if self.blob.came_whole(before) => {}
            _ => return false,
        }
        self.rest = all;
        true
    }

    pub(super) async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        while !self.rest.is_empty() {
            let error = match self.step().await {
                Ok(bytes) if bytes.is_empty() => continue,
                Ok(bytes) => return Some(Ok(bytes)),
                Err(error) => error,
            };
            self.in_vain += u32::from(self.answer.take().is_some_and(|answer| answer.in_vain));
            let recovered = if self.in_vain < MOST_IN_VAIN { self.recover(error).await } else { Err(error) };
            if let Err(error) = recovered {
                // Nothing follows an error.
                self.rest.start = self.rest.end;
                return Some(Err(error));
            }
        }
        None
    }

    async fn connect(&mut self, before: Option<u64>) -> Result<(), Error> {
        self.answer = self.take_unread();
        if self.answer.is_some() {
            return Ok(());
        }
        let Self { blob, rest, freshness, connection, patience, taken, .. } = self;
        *taken = None;
        let opening = Box::pin(blob.open(*rest, *freshness, *connection, before, taken));
        let opened = patience.answer(|| blob.counters.is_queued(), opening).await;
        match opened.unwrap_or_else(|| Err(self.blob.counters.late(self.shown_url())))? {
            Opened::Answer(answer) => self.answer = Some(*answer),
            Opened::Whole(unread) => self.unread = unread,
        }
        Ok(())
    }

    /// What another was sent and has left to whoever reads all of it.
    fn take_unread(&mut self) -> Option<Answer> {
        let unread = self.unread.take().filter(|_| self.rest.start == 0)?;
        unread.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn step(&mut self) -> Result<Bytes, Error> {
        let Some(answer) = &mut self.answer else {
            return self.connect(None).await.map(|()| Bytes::new());
        };
        let chunk = self.patience.body(answer.response.chunk()).await;
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

    fn end(&mut self) {
        let Some(mut answer) = self.answer.take() else { return };
        if answer.is_whole() && self.rest.end == self.blob.size {
            // A cache that had nothing of the blob has all of it now, and may send parts.
            self.blob.counters.wholes.fetch_add(1, Ordering::Relaxed);
            self.blob.counters.sent_whole.store(false, Ordering::Relaxed);
        }
        // Takes the body's end where it is there already, so that the connection can be used again.
        let _ = answer.response.chunk().now_or_never();
    }

    async fn recover(&mut self, error: Error) -> Result<(), Error> {
        self.connection = Connection::Fresh;
        match error.root() {
            // It was asked for past caches as well.
            Error::MixedUp { .. } if self.freshness == Freshness::PastCaches => return Err(error),
            // A cache may have said so.
            Error::MixedUp { .. } | Error::Protocol { .. } => self.freshness = Freshness::PastCaches,
            _ => {}
        }
        // A host that falls silent does not say so: only the registry may know of a better one.
        if let Some((url, id)) = self.taken.take().filter(|_| matches!(error.retry(), Retry::After(_))) {
            self.blob.forget(&url, id).await;
        }
        let url = self.shown_url();
        self.patience.pause(error, &url).await
    }

    fn shown_url(&self) -> Redacted {
        self.blob.repository.shown("blobs", &self.blob.digest.to_string())
    }
}

/// Without the first bytes.
fn from(mut bytes: Bytes, skipped: u64) -> Bytes {
    bytes.split_off(usize::try_from(skipped).unwrap_or(usize::MAX).min(bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_is_one_of_the_whole_blob() {
        let range = Some(ByteRange { start: 10, end: 20 });
        for right in ["bytes 10-19/100", "bytes 10-19/*", " bytes  10-19/100 "] {
            assert_eq!(content_range(right, 100), range, "{right}");
        }
        for other in ["bytes 10-20/100", "bytes 9-19/100"] {
            assert!(content_range(other, 100).is_some_and(|said| Some(said) != range), "{other}");
        }
        for none in [
            "",
            "bytes",
            "bytes 10-19",
            "bytes 10-19/99",
            "bytes */100",
            "bytes 20-10/100",
            "bytes 0-18446744073709551615/*",
            "items 10-19/100",
        ] {
            assert_eq!(content_range(none, 100), None, "{none}");
        }
    }
}
