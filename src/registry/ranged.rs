//! Ranged reads of a blob in a registry: exactly the bytes that were asked for, or an error.
//!
//! ```text
//! open: [route known?] -- no --> registry --(redirects)--> host    one reader finds the way, the others wait for it
//!            `--------- yes ------------------------------> host   400 401 403 410: the way is found anew, once
//! body: 206 with the very range | 200, skipped to the start  -->  bytes  --(cut, stall, error)--> open at where it stopped,
//!                                                                                                 by a way that is found anew
//! ```

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt as _;
use moka::ops::compute::Op;
use reqwest::Response;
use reqwest::header::{CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE};
use tokio::time::Instant;
use url::Url;

use super::errors::Retry;
use super::link::{Capacity, Link, Transfer};
use super::patience::Patience;
use super::remote::{Ask, Counters, Repository};
use super::throttle::{SPACING, status_error};
use super::transport::Connection;
use super::{Error, Freshness, Redacted};
use crate::blob::{ByteRange, Digest};

/// Of a host that sends the whole blob instead of a range, so much is thrown away to reach the range; beyond it no byte is taken.
const MOST_SKIPPED: u64 = 64 << 20;

/// Where a blob's bytes were found.
#[derive(Debug, Clone)]
pub(super) struct Route {
    id: u64,
    /// The last redirect's target; `None` where the registry answers itself.
    target: Option<Url>,
}

/// A remembered way elsewhere that a request goes: the registry's URL for the blob, and the route's number.
type Taken = (Url, u64);

pub(super) struct RemoteBlob {
    pub(super) repository: Repository,
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) counters: Counters,
    /// To the host that its bytes came from last.
    pub(super) link: Mutex<Option<Arc<Link>>>,
}

/// An answer that holds the wanted bytes, after `skip` others.
struct Answer {
    url: Url,
    response: Response,
    skip: u64,
    transfer: Transfer,
}

impl RemoteBlob {
    /// `taken` is known at any time, so that whoever stops waiting knows what has been silent.
    async fn open(
        &self,
        range: ByteRange,
        freshness: Freshness,
        connection: Connection,
        taken: &mut Option<Taken>,
    ) -> Result<Answer, Error> {
        let asked = Instant::now();
        let url = self.repository.url("blobs", &self.digest.to_string()).await?;
        let mut ask = Ask { headers: range_header(range), connection, counters: &self.counters };
        ask.past_caches(freshness);
        let routes = &self.repository.shared.routes;
        if freshness == Freshness::PastCaches {
            routes.invalidate(&url).await;
        }
        let mut renewed = false;
        loop {
            let mut found = None;
            // Boxed, as are the others below a cache: its own frames are large.
            let finding = Box::pin(self.find_route(&url, &ask, &mut found));
            let route = routes.try_get_with_by_ref(&url, finding).await;
            let route = route.map_err(Error::shared)?;
            *taken = route.target.is_some().then(|| (url.clone(), route.id));
            if let Some((url, response)) = found {
                return self.accept(range, url, response, asked);
            }
            let known = route.target.as_ref().unwrap_or(&url);
            let error = match self.repository.follow(known, &ask).await {
                Ok((url, response)) if is_taken(&response) => return self.accept(range, url, response, asked),
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

    /// Asks the registry itself. The answer goes to whoever asked, the way to it to everyone.
    async fn find_route(&self, url: &Url, ask: &Ask<'_>, found: &mut Option<(Url, Response)>) -> Result<Route, Error> {
        let (last, response) = self.repository.follow(url, ask).await?;
        if !is_taken(&response) {
            let error = status_error(&last, &response);
            if let Error::Denied { .. } = error {
                // Even where the registry sent us just now: the next reader must not ask again at once.
                self.repository.shared.throttle.restrain(&last, SPACING);
            }
            return Err(error);
        }
        let target = Some(last.clone()).filter(|last| last != url);
        *found = Some((last, response));
        Ok(Route { id: self.repository.shared.next_route(), target })
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
    fn accept(&self, range: ByteRange, url: Url, response: Response, asked: Instant) -> Result<Answer, Error> {
        let breach = |what: String| Err(Error::protocol(&url, what));
        if let Some(encoding) = response.headers().get(CONTENT_ENCODING).filter(|value| *value != "identity") {
            return breach(format!("Content-Encoding {encoding:?} was not asked for"));
        }
        let content_type = response.headers().get(CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
        if content_type.to_ascii_lowercase().starts_with(b"multipart/") {
            return breach("a multipart body was not asked for".to_owned());
        }
        if response.status().as_u16() == 206 {
            self.counters.sent_whole.store(false, Ordering::Relaxed);
            let mut ranges = response.headers().get_all(CONTENT_RANGE).iter();
            let said = ranges.next().and_then(|value| value.to_str().ok());
            if ranges.next().is_some() || !said.is_some_and(|said| is_range(said, range, self.size)) {
                return breach(format!("asked for {range}, its Content-Range is {:?}", said.unwrap_or_default()));
            }
            return Ok(self.answer(url, response, asked, 0));
        }
        if range.len() != self.size {
            self.counters.sent_whole.store(true, Ordering::Relaxed);
        }
        match response.content_length() {
            Some(length) if length != self.size => {
                breach(format!("a whole body of {length} bytes, and the blob has {}", self.size))
            }
            _ if range.start > MOST_SKIPPED => {
                breach(format!("it sends whole blobs only, and {range} is too far from the start"))
            }
            _ => Ok(self.answer(url, response, asked, range.start)),
        }
    }

    fn answer(&self, url: Url, response: Response, asked: Instant, skip: u64) -> Answer {
        let link = self.repository.shared.hosts.link(&url);
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&link));
        Answer { url, response, skip, transfer: link.answered(asked) }
    }

    /// What the way to its bytes can carry; `None` until that is known.
    pub(super) fn capacity(&self) -> Option<Capacity> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.capacity()
    }
}

fn is_taken(response: &Response) -> bool {
    matches!(response.status().as_u16(), 200 | 206)
}

fn range_header(range: ByteRange) -> HeaderMap {
    let text = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
    // Digits and ASCII only: always a valid value.
    HeaderValue::from_str(&text).map(|value| HeaderMap::from_iter([(RANGE, value)])).unwrap_or_default()
}

/// Whether a Content-Range is exactly `range` of a whole of `size` bytes (RFC 9110, section 14.4).
fn is_range(said: &str, range: ByteRange, size: u64) -> bool {
    let parsed = said.trim().strip_prefix("bytes ").and_then(|said| {
        let (span, total) = said.trim().split_once('/')?;
        let (first, last) = span.split_once('-')?;
        let total = if total == "*" { size } else { total.parse().ok()? };
        Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?, total))
    });
    parsed == Some((range.start, range.end.saturating_sub(1), size))
}

/// A range on its way, through as many connections as it takes.
pub(super) struct RangedBody {
    blob: Arc<RemoteBlob>,
    /// What is still to come.
    rest: ByteRange,
    freshness: Freshness,
    connection: Connection,
    patience: Patience,
    answer: Option<Answer>,
    taken: Option<Taken>,
}

impl RangedBody {
    /// Starts reading; an error here is final.
    pub(super) async fn open(blob: Arc<RemoteBlob>, range: ByteRange, freshness: Freshness) -> Result<Self, Error> {
        let patience = Patience::new(blob.repository.shared.options.io_deadline);
        let connection = Connection::Pooled;
        let mut body = Self { blob, rest: range, freshness, connection, patience, answer: None, taken: None };
        while body.answer.is_none() && !body.rest.is_empty() {
            if let Err(error) = body.connect().await {
                body.recover(error).await?;
            }
        }
        Ok(body)
    }

    pub(super) async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        while !self.rest.is_empty() {
            let error = match self.step().await {
                Ok(bytes) if bytes.is_empty() => continue,
                Ok(bytes) => return Some(Ok(bytes)),
                Err(error) => error,
            };
            self.answer = None;
            if let Err(error) = self.recover(error).await {
                // Nothing follows an error.
                self.rest.start = self.rest.end;
                return Some(Err(error));
            }
        }
        None
    }

    async fn connect(&mut self) -> Result<(), Error> {
        let Self { blob, rest, freshness, connection, patience, taken, .. } = self;
        *taken = None;
        let opened = patience.answer(Box::pin(blob.open(*rest, *freshness, *connection, taken))).await;
        self.answer = Some(match opened {
            Some(answer) => answer?,
            None => return Err(Error::Transfer { url: self.shown_url(), what: "no answer in time", source: None }),
        });
        Ok(())
    }

    async fn step(&mut self) -> Result<Bytes, Error> {
        let Some(answer) = &mut self.answer else {
            return self.connect().await.map(|()| Bytes::new());
        };
        let chunk = self.patience.body(answer.response.chunk()).await;
        let chunk = chunk.ok_or_else(|| Error::transfer(&answer.url, "the body stalled", None))?;
        let chunk = chunk.map_err(|source| Error::transfer(&answer.url, "the body broke off", Some(source)))?;
        let mut bytes = chunk.ok_or_else(|| Error::transfer(&answer.url, "the body ended early", None))?;
        let length = bytes.len() as u64;
        self.blob.counters.bytes.fetch_add(length, Ordering::Relaxed);
        let is_progress = self.patience.moved(length);
        answer.transfer.moved(length);
        let skipped = answer.skip.min(length);
        answer.skip -= skipped;
        bytes = bytes.split_off(usize::try_from(skipped).unwrap_or(usize::MAX).min(bytes.len()));
        bytes.truncate(usize::try_from(self.rest.len()).unwrap_or(usize::MAX));
        self.rest.start = self.rest.start.saturating_add(bytes.len() as u64);
        if is_progress || self.rest.is_empty() {
            self.blob.counters.progress.fetch_add(1, Ordering::Relaxed);
        }
        if self.rest.is_empty() {
            // Takes the body's end where it is there already, so that the connection can be used again.
            let _ = answer.response.chunk().now_or_never();
            self.answer = None;
        }
        Ok(bytes)
    }

    async fn recover(&mut self, error: Error) -> Result<(), Error> {
        self.connection = Connection::Fresh;
        // A host that falls silent does not say so: only the registry may know of a better one.
        if let Some((url, id)) = self.taken.take().filter(|_| matches!(error.retry(), Retry::After(_))) {
            self.blob.forget(&url, id).await;
        }
        let what = format!("layer {}", self.blob.digest);
        let url = self.shown_url();
        self.patience.pause(error, &what, &url).await
    }

    fn shown_url(&self) -> Redacted {
        self.blob.repository.shown("blobs", &self.blob.digest.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_range_is_taken() {
        let range = ByteRange { start: 10, end: 20 };
        for right in ["bytes 10-19/100", "bytes 10-19/*", " bytes  10-19/100 "] {
            assert!(is_range(right, range, 100), "{right}");
        }
        for wrong in [
            "",
            "bytes",
            "bytes 10-19",
            "bytes 10-20/100",
            "bytes 9-19/100",
            "bytes 10-19/99",
            "bytes */100",
            "items 10-19/100",
        ] {
            assert!(!is_range(wrong, range, 100), "{wrong}");
        }
    }
}
