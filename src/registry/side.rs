//! What one place that is asked for a blob does with it: the way to its bytes, and whether it sends parts.
//!
//! ```text
//! open: [route known?] -- no --> registry --(redirects)--> host    one reader finds the way, the others wait for it
//!            `--------- yes ------------------------------> host   400 401 403 410: the way is found anew, once
//!                               400 403 405 416 501 to a range     the same without Range, once, where no other place sends parts
//! ```

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use moka::ops::compute::Op;
use reqwest::Response;
use reqwest::header::{CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE};
use tokio::time::Instant;
use url::Url;

use super::ask::{Ask, Counters};
use super::errors::Retry;
use super::gate::SPACING;
use super::health::Health;
use super::link::{Link, Transfer};
use super::shared::Route;
use super::site::Site;
use super::throttle::status_error;
use super::transport::Connection;
use super::{Error, Freshness, Redacted, hosts};
use crate::blob::{ByteRange, Digest};
use crate::metrics::{Counter, METRICS};

/// What hosts answer that know no ranges, or do not want to know this one.
const NO_RANGES: [u16; 5] = [400, 403, 405, 416, 501];

/// Of these, what may also mean that the way to the host has ended.
const MAY_HAVE_ENDED: [u16; 2] = [400, 403];

/// A remembered way elsewhere that a request goes: the registry's URL for the blob, and the route's number.
pub(super) type Taken = (Url, u64);

/// One place's side of a blob.
pub(super) struct Side {
    pub(super) site: Site,
    digest: Digest,
    size: u64,
    counters: Arc<Counters>,
    /// Whether it has it, and sends parts of it.
    pub(super) health: Health,
    /// It lately sent the whole blob when it was asked for a part.
    pub(super) sent_whole: AtomicBool,
    /// How often all of it came to its end.
    pub(super) wholes: AtomicU64,
    /// It has sent parts.
    pub(super) sends_parts: AtomicBool,
    /// Something on the way has sent other parts than those asked for.
    mixed_up: AtomicBool,
    /// What one of those takes who were told that all of it is sent.
    unread: Mutex<Weak<Mutex<Option<Answer>>>>,
    /// To the host that the blob's bytes came from last, from whatever place.
    link: Arc<Mutex<Option<Arc<Link>>>>,
}

/// One request for a part.
pub(super) struct Part<'a> {
    pub(super) range: ByteRange,
    pub(super) freshness: Freshness,
    pub(super) connection: Connection,
    /// How often all of it had been sent, where nothing has come here yet.
    pub(super) before: Option<u64>,
    /// Whether another place may send the part alone where this one sends all of it.
    pub(super) has_other: bool,
    /// The way elsewhere that it goes, known at any time, so that whoever stops waiting knows what has been silent.
    pub(super) taken: &'a Mutex<Option<Taken>>,
}

/// The whole blob, as its host has begun to send it for a part. Whoever comes to read all of it takes it; it is let go with the last who may.
pub(super) type Unread = Arc<Mutex<Option<Answer>>>;

/// What finding the way to a blob brings beside the way.
enum Found {
    /// The answer to whoever has asked.
    Answer(Box<(Url, Response)>),
    /// All of it, for one of those who wait.
    Whole(Unread),
}

/// What comes of asking for a part.
pub(super) enum Opened {
    Answer(Box<Answer>),
    /// Somebody was sent all of the blob, or is sent it.
    Whole(Option<Unread>),
}

/// An answer that holds the wanted bytes, after `skip` others.
pub(super) struct Answer {
    pub(super) url: Url,
    pub(super) response: Response,
    pub(super) skip: u64,
    /// It has bytes that came before, and nothing else yet.
    pub(super) in_vain: bool,
    pub(super) transfer: Transfer,
    /// What its host has sent.
    pub(super) received: Counter,
}

impl Answer {
    /// Whether it has the whole blob, whatever was asked for.
    pub(super) fn is_whole(&self) -> bool {
        self.response.status().as_u16() != 206
    }
}

impl Side {
    pub(super) fn new(
        site: Site,
        digest: Digest,
        size: u64,
        counters: Arc<Counters>,
        link: Arc<Mutex<Option<Arc<Link>>>>,
    ) -> Self {
        Self {
            site,
            digest,
            size,
            counters,
            health: Health::default(),
            sent_whole: AtomicBool::new(false),
            wholes: AtomicU64::new(0),
            sends_parts: AtomicBool::new(false),
            mixed_up: AtomicBool::new(false),
            unread: Mutex::default(),
            link,
        }
    }

    /// Whether others are asked before it.
    pub(super) fn rests(&self) -> bool {
        self.health.rests() || self.site.peer.health.rests()
    }

    pub(super) async fn open(&self, part: Part<'_>) -> Result<Opened, Error> {
        let Part { range, freshness, connection, before, has_other, taken } = part;
        if has_other {
            self.sent_whole.store(false, Ordering::Relaxed);
        }
        let asked = Instant::now();
        let url = self.site.url("blobs", &self.digest.to_string()).await?;
        let mut ask = Ask { headers: self.range_header(range), connection, counters: &self.counters };
        let is_mixed_up = self.mixed_up.load(Ordering::Relaxed);
        ask.past_caches(if is_mixed_up { Freshness::PastCaches } else { freshness });
        let routes = &self.site.shared.routes;
        if freshness == Freshness::PastCaches {
            routes.invalidate(&url).await;
        }
        let mut renewed = false;
        loop {
            let mut found = None;
            // Boxed, as are the others below a cache: its own frames are large.
            let finding = Box::pin(self.find_route(&url, &ask, asked, (before.is_some(), has_other), &mut found));
            let route = match routes.try_get_with_by_ref(&url, finding).await {
                // Somebody else has passed it over, who had others to ask.
                Err(error) if !has_other && matches!(error.root(), Error::SendsWhole { .. }) => continue,
                route => route.map_err(Error::shared)?,
            };
            *taken.lock().unwrap_or_else(PoisonError::into_inner) =
                route.target.is_some().then(|| (url.clone(), route.id));
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
            let error = match self.ask(known, &ask, may_have_ended, has_other).await {
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
    pub(super) fn came_whole(&self, before: u64) -> bool {
        self.sent_whole.load(Ordering::Relaxed) || self.wholes.load(Ordering::Relaxed) != before
    }

    /// Asks for a range, and where the answer is that there are none, for the whole blob; but not where another place may have ranges.
    /// `may_have_ended`: what may mean something else is not taken for that.
    async fn ask(
        &self,
        url: &Url,
        ask: &Ask<'_>,
        may_have_ended: bool,
        has_other: bool,
    ) -> Result<(Url, Response), Error> {
        let (last, response) = self.site.follow(url, ask).await?;
        let status = response.status().as_u16();
        let is_refused = NO_RANGES.contains(&status) && !(may_have_ended && MAY_HAVE_ENDED.contains(&status));
        if !ask.headers.contains_key(RANGE) || !(is_refused || status == 200) {
            return Ok((last, response));
        }
        if has_other && !self.sends_parts.load(Ordering::Relaxed) {
            // A 403 says both; whoever wants a login is told so by the next place that has the same to say.
            return Err(Error::SendsWhole { url: Redacted::of(&last), status });
        }
        if status == 200 {
            return Ok((last, response));
        }
        tracing::debug!(url = %Redacted::of(&last), status, "a range is refused; asking for the whole blob");
        let mut whole = Ask { headers: ask.headers.clone(), ..*ask };
        whole.headers.remove(RANGE);
        self.site.follow(url, &whole).await
    }

    /// Asks the registry itself. The answer goes to whoever asked, the way to it to everyone, and so does all of the blob where that was sent for a
    /// part: whoever asked may not be the one who reads it. But to whoever goes on behind what has come, it is the rest.
    async fn find_route(
        &self,
        url: &Url,
        ask: &Ask<'_>,
        asked: Instant,
        (is_first, has_other): (bool, bool),
        found: &mut Option<Found>,
    ) -> Result<Route, Error> {
        let (last, response) = self.ask(url, ask, false, has_other).await?;
        if !is_taken(&response) {
            let error = status_error(&last, &response);
            if let Error::Denied { .. } = error {
                // Even where the registry sent us just now: the next reader must not ask again at once.
                self.site.shared.throttle.restrain(&last, SPACING);
            }
            return Err(error);
        }
        let target = Some(last.clone()).filter(|last| last != url);
        // Before those hear of it who wait for the way.
        let is_whole = response.status().as_u16() != 206 && ask.headers.contains_key(RANGE);
        let is_new = !self.sends_parts.load(Ordering::Relaxed);
        *found = Some(if is_first && is_whole && is_new && self.breach(&response).is_none() {
            self.sent_whole.store(true, Ordering::Relaxed);
            let unread = Arc::new(Mutex::new(Some(self.answer(last, response, asked, 0))));
            *self.unread.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&unread);
            Found::Whole(unread)
        } else {
            self.sent_whole.fetch_or(is_whole && is_new, Ordering::Relaxed);
            Found::Answer(Box::new((last, response)))
        });
        Ok(Route { id: self.site.shared.next_route(), target })
    }

    /// What may have come from a cache is for nobody who asks past them.
    pub(super) fn unread(&self, freshness: Freshness) -> Option<Unread> {
        if freshness == Freshness::PastCaches {
            return None;
        }
        self.unread.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }

    /// Drops a route, unless another reader has found a new one already.
    pub(super) async fn forget(&self, url: &Url, id: u64) {
        let drop_old = |entry: Option<moka::Entry<Url, Route>>| {
            let old = entry.is_some_and(|entry| entry.value().id == id);
            std::future::ready(if old { Op::Remove } else { Op::Nop })
        };
        self.site.shared.routes.entry_by_ref(url).and_compute_with(drop_old).await;
    }

    /// Takes an answer for what it says it is, if that is what was asked for.
    fn accept(&self, range: ByteRange, url: Url, response: Response, asked: Instant) -> Result<Box<Answer>, Error> {
        if let Some(breach) = self.breach(&response) {
            return Err(Error::protocol(&url, breach));
        }
        if response.status().as_u16() != 206 {
            return Ok(Box::new(self.answer(url, response, asked, range.start)));
        }
        let sent = self.in_pieces(range);
        let mut ranges = response.headers().get_all(CONTENT_RANGE).iter();
        let said = ranges.next().and_then(|value| value.to_str().ok()).unwrap_or_default();
        match content_range(said, self.size).filter(|_| ranges.next().is_none()) {
            Some(said) if said == sent => {}
            Some(said) => return Err(self.mixed_up(&url, sent, said)),
            None => {
                return Err(Error::protocol(&url, format!("asked for {sent}, its Content-Range is {said:?}")));
            }
        }
        self.sends_parts.store(true, Ordering::Relaxed);
        self.sent_whole.store(false, Ordering::Relaxed);
        Ok(Box::new(self.answer(url, response, asked, range.start.saturating_sub(sent.start))))
    }

    /// What is asked for where a part is wanted.
    fn in_pieces(&self, range: ByteRange) -> ByteRange {
        if range == self.all() { range } else { self.site.endpoint.whole_pieces(range, self.size) }
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
        if !self.mixed_up.swap(true, Ordering::Relaxed) {
            tracing::warn!(url = %Redacted::of(url), %asked, %said, "other bytes of a layer came than were asked for; it is read past caches from now on");
        }
        Error::MixedUp { url: Redacted::of(url), asked, said }
    }

    /// All of a blob is asked for without a range, as other clients do: caches on the way keep that.
    fn range_header(&self, range: ByteRange) -> HeaderMap {
        if range.len() == self.size {
            return HeaderMap::new();
        }
        let range = self.in_pieces(range);
        let text = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        // Digits and ASCII only: always a valid value.
        HeaderValue::from_str(&text).map(|value| HeaderMap::from_iter([(RANGE, value)])).unwrap_or_default()
    }

    fn answer(&self, url: Url, response: Response, asked: Instant, skip: u64) -> Answer {
        let link = self.site.shared.hosts.link(&url);
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&link));
        let received = METRICS.received_from(hosts::named(&url));
        Answer { url, response, skip, in_vain: skip > 0, transfer: link.answered(asked), received }
    }

    pub(super) fn all(&self) -> ByteRange {
        ByteRange { start: 0, end: self.size }
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
