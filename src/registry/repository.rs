//! One repository as a user names it, wherever it is asked for: at mirrors in their order, and at its registry last.
//!
//! Each request goes to the first place that is well; where it fails there, or takes far longer than usual, to the next. What is ill rests.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::Response;
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue};
use url::Url;

use super::ask::{Ask, Counters};
use super::errors::Retry;
use super::grammar::Reference;
use super::health::{Asking, Health};
use super::manifest::{LARGEST_DOCUMENT, MEDIA_TYPES};
use super::patience::Patience;
use super::race::{self, race};
use super::shared::Shared;
use super::site::Site;
use super::throttle::status_error;
use super::transport::Connection;
use super::waits::Waiting;
use super::{Error, Freshness, Redacted};
use crate::blob::Digest;
use crate::metrics::METRICS;

/// How long a body may stand still where another mirror could go on with it.
const LONGEST_LULL: Duration = Duration::from_secs(1);

/// How long a mirror may take before the registry itself is asked beside it. One that serves many may have to fetch first what they all want, and is
/// there so that the registry is not asked for it by each of them.
const WAIT_FOR_MIRROR: Duration = Duration::from_secs(5);

/// How long a place may take at least where many requests were made twice already.
const WAIT_OVER_BUDGET: Duration = Duration::from_secs(3);

#[derive(Clone)]
pub(super) struct Repository {
    pub(super) shared: Arc<Shared>,
    /// As the user says it.
    registry: Arc<str>,
    name: Arc<str>,
    pub(super) sites: Arc<[Site]>,
    /// Why there are none.
    broken: Option<Arc<Error>>,
}

/// Places in the order in which they are asked: first those that are well.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) places: Vec<usize>,
    pub(super) well: usize,
}

impl Order {
    /// `is_well`: what each place that may be asked is; `None` for those that may not.
    pub(super) fn of(places: usize, is_well: impl Fn(usize) -> Option<bool>) -> Self {
        let known: Vec<_> = (0..places).filter_map(|place| Some((place, is_well(place)?))).collect();
        let only = |wanted: bool| known.iter().filter(move |(_, well)| *well == wanted).map(|(place, _)| *place);
        let well = only(true).count();
        Self { places: only(true).chain(only(false)).collect(), well }
    }

    /// Who is asked behind a place that is well, where that one is well, too.
    fn after(&self, place: usize) -> Option<usize> {
        let mut well = self.places.iter().take(self.well);
        well.find(|well| **well == place)?;
        well.next().copied()
    }

    fn without(&mut self, place: usize) {
        let is_well = self.places.iter().take(self.well).any(|other| *other == place);
        self.well -= usize::from(is_well);
        self.places.retain(|other| *other != place);
    }
}

/// Requests for one thing, by their places.
#[derive(Default)]
pub(super) struct Asks(Mutex<State>);

#[derive(Default)]
struct State {
    under_way: HashMap<usize, Vec<Asking>>,
    failed: Vec<(usize, Error)>,
    /// Who was asked last.
    last: Option<usize>,
}

impl Asks {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives who was asked before.
    fn begin(&self, place: usize, healths: &[Health]) -> Option<usize> {
        let begun = healths.iter().map(Health::ask).collect();
        let mut state = self.lock();
        state.under_way.insert(place, begun);
        state.last.replace(place)
    }

    fn end(&self, place: usize) -> Vec<Asking> {
        self.lock().under_way.remove(&place).unwrap_or_default()
    }

    fn fail(&self, place: usize, error: Error) {
        self.lock().failed.push((place, error));
    }

    fn failed(&self) -> Vec<(usize, Error)> {
        std::mem::take(&mut self.lock().failed)
    }

    /// All that are under way have got no answer. With what has failed before.
    pub(super) fn late(&self, error: impl Fn() -> Error) -> Vec<(usize, Error)> {
        let late = std::mem::take(&mut self.lock().under_way);
        for (place, asking) in late {
            let error = error();
            if let Some(own) = asking.into_iter().next() {
                let _was_well = own.failed(&error);
            }
            self.fail(place, error);
        }
        self.failed()
    }
}

/// Which document is asked for.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    kind: &'static str,
    name: &'a str,
    /// Its name, where that is a digest.
    digest: Option<Digest>,
    /// Only referrers of this type.
    artifact_type: Option<&'a str>,
    freshness: Freshness,
}

/// A document with the digest of its bytes.
pub(super) struct Document {
    pub(super) digest: Digest,
    pub(super) bytes: bytes::Bytes,
}

impl Repository {
    /// Reads the configuration, and certificates: blocking. A mirror that cannot be asked as its configuration has it is left out.
    pub(super) fn open(shared: Arc<Shared>, reference: &Reference) -> Result<Self, Error> {
        let (mut sites, mut failed) = (Vec::new(), None);
        for endpoint in shared.endpoints(reference)? {
            let (mirror, is_mirror) = (endpoint.registry.clone(), endpoint.is_mirror);
            match Site::new(Arc::clone(&shared), endpoint) {
                Ok(site) => sites.push(site),
                Err(error) if is_mirror => {
                    tracing::warn!(mirror, %error, "a mirror is left out");
                    failed = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        match failed {
            Some(error) if sites.is_empty() => Err(error),
            _ => Ok(Self::at(shared, reference, sites, None)),
        }
    }

    /// The same of an image that was open before. A configuration that was broken since then does not end its mount: what is cached is read, and
    /// all else fails with what is wrong.
    pub(super) fn open_again(shared: Arc<Shared>, reference: &Reference) -> Self {
        Self::open(Arc::clone(&shared), reference).unwrap_or_else(|error| {
            tracing::error!(image = %reference, %error, "it can be asked for nowhere; what is cached is served");
            Self::at(shared, reference, Vec::new(), Some(Arc::new(error)))
        })
    }

    fn at(shared: Arc<Shared>, reference: &Reference, sites: Vec<Site>, broken: Option<Arc<Error>>) -> Self {
        let Reference { registry, repository, .. } = reference;
        let (registry, name) = (registry.as_str().into(), repository.as_str().into());
        Self { shared, registry, name, sites: sites.into(), broken }
    }

    /// How long a document is tried for; `what` says what it is.
    pub(super) fn patience(&self, what: &str, name: &str, deadline: Duration) -> Patience {
        let Self { registry, name: repository, .. } = self;
        let waiting = Waiting::for_registry(format!("{what} {registry}/{repository}:{name}"));
        Patience::new(deadline, self.shared.hosts.waits.begin(waiting))
    }

    /// The URL for messages, which need not wait until the scheme is known.
    pub(super) fn shown(&self, kind: &str, name: &str) -> Redacted {
        let Self { registry, name: repository, .. } = self;
        Redacted::plain(format!("{registry}/v2/{repository}/{kind}/{name}"))
    }

    pub(super) fn site(&self, place: usize) -> Result<&Site, Error> {
        self.sites.get(place).ok_or_else(|| self.nobody())
    }

    pub(super) fn nobody(&self) -> Error {
        if let Some(broken) = &self.broken {
            return Error::Shared(Arc::clone(broken));
        }
        Error::NoEndpoint { repository: format!("{}/{}", self.registry, self.name) }
    }

    /// What is said of a failure of all places. `registry_decides`: what was asked for is what the registry says it is, which a mirror that is down
    /// does not change.
    pub(super) fn together(&self, mut failed: Vec<(usize, Error)>, registry_decides: bool) -> Error {
        match failed.len() {
            0 => self.nobody(),
            1 if self.sites.len() == 1 => failed.pop().map_or_else(|| self.nobody(), |(_, error)| error),
            _ => {
                failed.sort_by_key(|(place, _)| *place);
                let name = |place: usize| self.sites.get(place).map_or("", Site::name).to_owned();
                let is_registry = |place: usize| self.sites.get(place).is_some_and(|site| !site.endpoint.is_mirror);
                let decides = failed.iter().position(|(place, _)| registry_decides && is_registry(*place));
                let errors = failed.into_iter().map(|(place, error)| (name(place), error)).collect();
                Error::Endpoints { errors, decides }
            }
        }
    }

    /// Asks one place after the other, none of them alone for longer than `longest`. `healths`: what is asked of a place counts for these, its own
    /// first.
    pub(super) async fn first<T, F: Future<Output = Result<T, Error>>>(
        &self,
        order: &Order,
        asks: &Asks,
        longest: Duration,
        healths: impl Fn(usize) -> Vec<Health>,
        ask: impl Fn(usize) -> F,
    ) -> Result<Won<T>, Vec<(usize, Error)>> {
        let hedges = &self.shared.hosts.hedges;
        let patience = |place: usize| {
            let other = order.after(place).and_then(|other| self.sites.get(other))?;
            let site = self.sites.get(place)?;
            let (health, least) = (&site.peer.health, if hedges.may() { Duration::ZERO } else { WAIT_OVER_BUDGET });
            let usual = || health.patience().max(wait_for(site, other).unwrap_or_default()).max(least);
            Some(health.trial().unwrap_or_else(usual).min(longest))
        };
        let begin = |place: usize| {
            hedges.asked();
            if let Some(before) = asks.begin(place, &healths(place)) {
                self.turn_from(before);
            }
            let asking = ask(place);
            async move { asking.await.map_err(|error| self.note(place, asks, error)).ok() }
        };
        match race(&order.places, patience, begin).await {
            None => Err(asks.failed()),
            Some(race::Won { place, value, overtaken, spare }) => {
                asks.end(place).into_iter().for_each(Asking::answered);
                hedges.hedged(spare + overtaken.len());
                for place in overtaken {
                    asks.end(place).into_iter().take(1).for_each(Asking::overtaken);
                }
                Ok(Won { place, value, failed: asks.failed() })
            }
        }
    }

    /// Another is asked for what a place did not give.
    pub(super) fn turn_from(&self, place: usize) {
        self.sites.get(place).into_iter().for_each(|site| METRICS.failover(site.name()));
    }

    /// How long a body of a place may stand still before another goes on with it; `None`: as long as any.
    pub(super) fn lull(&self, order: &Order, place: usize) -> Option<Duration> {
        let other = order.places.iter().take(order.well).find(|other| **other != place)?;
        let (site, other) = (self.sites.get(place)?, self.sites.get(*other)?);
        Some(wait_for(site, other).unwrap_or(LONGEST_LULL))
    }

    /// What an error says of who sent it: that it is ill, or that it has not what was asked for.
    fn note(&self, place: usize, asks: &Asks, error: Error) {
        let mut ended = asks.end(place).into_iter();
        match (self.sites.get(place), ended.next()) {
            (Some(site), Some(own)) if is_ill(&error) => self.note_ill(site, own.asked(), &error),
            (_, Some(own)) => {
                own.refused(&error);
                for of_this in ended {
                    if let Error::SendsWhole { .. } = error.root() {
                        of_this.was_generous();
                    } else {
                        let _was_well = of_this.failed(&error);
                    }
                }
            }
            (_, None) => {}
        }
        asks.fail(place, error);
    }

    /// Lets a place rest that has failed.
    pub(super) fn note_ill(&self, site: &Site, asked: tokio::time::Instant, error: &Error) {
        let (was_well, endpoint) = (site.peer.health.failed(asked, error), site.name());
        if was_well && self.sites.len() > 1 {
            tracing::warn!(endpoint, %error, "an endpoint fails; the others are asked before it for a while");
        }
    }
}

/// How long a place has at least, where the other is the registry that it stands for.
fn wait_for(site: &Site, other: &Site) -> Option<Duration> {
    let longest = site.endpoint.dial_timeout.map_or(WAIT_FOR_MIRROR, |dial| dial.saturating_add(LONGEST_LULL));
    (!other.endpoint.is_mirror).then_some(WAIT_FOR_MIRROR.min(longest))
}

/// Who has answered, and who has failed before.
pub(super) struct Won<T> {
    pub(super) place: usize,
    pub(super) value: T,
    pub(super) failed: Vec<(usize, Error)>,
}

/// Whether an error says something of its host, and not only of what was asked for.
fn is_ill(error: &Error) -> bool {
    match error.root() {
        Error::Handshake { .. } | Error::Proxy { .. } | Error::Redirect { .. } | Error::WrongDigest { .. } => true,
        Error::SendsWhole { .. } => false,
        error => error.retry() != Retry::Never,
    }
}

impl Repository {
    /// A manifest or index by tag, whatever its digest turns out to be.
    pub(super) async fn by_tag(
        &self,
        name: &str,
        freshness: Freshness,
        patience: &mut Patience,
    ) -> Result<(Document, Option<Digest>), Error> {
        let wanted = Wanted { kind: "manifests", name, digest: None, artifact_type: None, freshness };
        self.ask_document(wanted, patience).await
    }

    /// The same by digest, verified.
    pub(super) async fn by_digest(
        &self,
        digest: &Digest,
        freshness: Freshness,
        patience: &mut Patience,
    ) -> Result<Document, Error> {
        let name = digest.to_string();
        let wanted = Wanted { kind: "manifests", name: &name, digest: Some(*digest), artifact_type: None, freshness };
        Ok(self.ask_document(wanted, patience).await?.0)
    }

    /// The index of the manifests that refer to another, those of one type at least (distribution specification 1.1, "Listing
    /// Referrers"). What follows on further pages is not asked for.
    pub(super) async fn referrers(
        &self,
        subject: &Digest,
        artifact_type: &str,
        patience: &mut Patience,
    ) -> Result<Document, Error> {
        let (name, freshness) = (subject.to_string(), Freshness::Any);
        let wanted =
            Wanted { kind: "referrers", name: &name, digest: None, artifact_type: Some(artifact_type), freshness };
        Ok(self.ask_document(wanted, patience).await?.0)
    }

    async fn ask_document(
        &self,
        wanted: Wanted<'_>,
        patience: &mut Patience,
    ) -> Result<(Document, Option<Digest>), Error> {
        let mut connection = Connection::Pooled;
        loop {
            let error = match self.try_document(wanted, connection, patience).await {
                Ok(document) => return Ok(document),
                Err(failed) => self.together(failed, wanted.digest.is_none()),
            };
            connection = Connection::Fresh;
            patience.pause(error, &self.shown(wanted.kind, wanted.name)).await?;
        }
    }

    /// Asks each place, until one has it.
    async fn try_document(
        &self,
        wanted: Wanted<'_>,
        connection: Connection,
        patience: &mut Patience,
    ) -> Result<(Document, Option<Digest>), Vec<(usize, Error)>> {
        let mut order = Order::of(self.sites.len(), |place| {
            let site = self.sites.get(place).filter(|site| wanted.digest.is_some() || site.endpoint.resolves)?;
            Some(!site.peer.health.rests())
        });
        let mut failed = Vec::new();
        while !order.places.is_empty() {
            let (counters, asks) = (Counters::default(), Asks::default());
            let healths =
                |place: usize| self.sites.get(place).map(|site| site.peer.health.clone()).into_iter().collect();
            let longest = patience.for_one();
            let asking =
                self.first(&order, &asks, longest, healths, |place| self.answer(place, wanted, connection, &counters));
            let answer = patience.answer(|| counters.is_queued(), asking).await;
            let Won { place, value: (url, response), failed: before } = match answer {
                Some(Ok(won)) => won,
                Some(Err(errors)) => {
                    failed.extend(errors);
                    return Err(failed);
                }
                None => {
                    failed.extend(asks.late(|| counters.late(self.shown(wanted.kind, wanted.name))));
                    return Err(failed);
                }
            };
            before.iter().for_each(|(place, _)| order.without(*place));
            failed.extend(before);
            let limit = self.lull(&order, place);
            let asked = tokio::time::Instant::now();
            match read(wanted, &url, response, limit, patience).await {
                Ok(read) => return Ok(read),
                Err(error) => {
                    self.sites.get(place).into_iter().for_each(|site| self.note_ill(site, asked, &error));
                    failed.push((place, error));
                    order.without(place);
                }
            }
        }
        Err(failed)
    }

    async fn answer(
        &self,
        place: usize,
        wanted: Wanted<'_>,
        connection: Connection,
        counters: &Counters,
    ) -> Result<(Url, Response), Error> {
        let site = self.site(place)?;
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(MEDIA_TYPES))]);
        let mut ask = Ask { headers, connection, counters };
        ask.past_caches(wanted.freshness);
        let mut url = site.url(wanted.kind, wanted.name).await?;
        if let Some(kind) = wanted.artifact_type {
            url.query_pairs_mut().append_pair("artifactType", kind);
        }
        let (url, response) = site.follow(&url, &ask).await?;
        if response.status().as_u16() == 200 { Ok((url, response)) } else { Err(status_error(&url, &response)) }
    }
}

/// A document, with the digest that its registry says it has.
async fn read(
    wanted: Wanted<'_>,
    url: &Url,
    response: Response,
    limit: Option<Duration>,
    patience: &mut Patience,
) -> Result<(Document, Option<Digest>), Error> {
    let said = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok()?.parse().ok());
    let bytes = read_document(url, response, limit, patience).await?;
    let document = Document { digest: Digest::of(&bytes), bytes };
    match wanted.digest.filter(|wanted| *wanted != document.digest) {
        Some(expected) => {
            Err(Error::WrongDigest { what: Redacted::of(url).to_string(), expected, found: document.digest })
        }
        None => Ok((document, said)),
    }
}

async fn read_document(
    url: &Url,
    mut response: Response,
    limit: Option<Duration>,
    patience: &mut Patience,
) -> Result<bytes::Bytes, Error> {
    let mut body = Vec::new();
    loop {
        let chunk = patience.body(limit, response.chunk()).await;
        let chunk = chunk.ok_or_else(|| Error::transfer(url, "the body stalled", None))?;
        match chunk.map_err(|source| Error::transfer(url, "the body broke off", Some(source)))? {
            Some(bytes) => body.extend_from_slice(&bytes),
            None => return Ok(body.into()),
        }
        if body.len() > LARGEST_DOCUMENT {
            let reason = format!("it has more than {LARGEST_DOCUMENT} bytes");
            return Err(Error::Manifest { what: Redacted::of(url).to_string(), kind: "manifest", reason });
        }
    }
}
