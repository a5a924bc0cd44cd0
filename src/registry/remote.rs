//! One repository of one registry (OCI distribution specification 1.1): where it is, and a request to it with authorisation
//! and redirects, as often as the rules allow and no more.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moka::future::Cache;
use reqwest::Response;
use reqwest::header::{ACCEPT, CACHE_CONTROL, HeaderMap, HeaderValue};
use url::Url;

use super::auth::{Authority, Challenge, Scope, challenge, no_challenge, unauthorized};
use super::credentials::Login;
use super::gate::{Gate, SPACING};
use super::hosts::Hosts;
use super::loopback::is_loopback;
use super::manifest::{LARGEST_DOCUMENT, MEDIA_TYPES};
use super::patience::Patience;
use super::redirect::{Trail, same_origin};
use super::throttle::{Throttle, status_error};
use super::transport::{Connection, Transport};
use super::waits::Waiting;
use super::{Error, Freshness, Options, Redacted};
use crate::blob::Digest;

/// Where Docker Hub's API is.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// How long a loopback registry may take to say that it speaks TLS.
const LONGEST_PROBE: Duration = Duration::from_secs(2);

/// A registry may come to want a login.
const GREETING_KEPT: Duration = Duration::from_secs(60);

/// Where a blob's bytes were found.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) id: u64,
    /// The last redirect's target; `None` where the registry answers itself.
    pub(super) target: Option<Url>,
}

/// What all repositories of one client share: connections, grants, and what is remembered of blobs.
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) transport: Arc<Transport>,
    pub(super) throttle: Arc<Throttle>,
    pub(super) authority: Authority,
    /// Where each blob's bytes are, by the URL that its registry has for it.
    pub(super) routes: Cache<Url, Route>,
    pub(super) hosts: Hosts,
    /// Each registry's own URL, once it is known whether it speaks https.
    bases: Cache<String, Url>,
    /// What each registry has answered at /v2/, where that was asked for: its challenge, if it has one.
    greetings: Cache<String, Option<Challenge>>,
    last_route: AtomicU64,
}

impl Shared {
    pub(super) fn new(options: Options, hosts: Hosts) -> Result<Self, Error> {
        let transport = Arc::new(Transport::new(&options, hosts.resolver.clone())?);
        let throttle = Arc::new(Throttle::new(options.io_deadline, hosts.clone()));
        let authority = Authority::new(options.auth_files.clone(), &hosts, transport.clone(), throttle.clone());
        Ok(Self {
            options,
            transport,
            throttle,
            authority,
            routes: Cache::new(100_000),
            hosts,
            bases: Cache::new(1000),
            greetings: Cache::builder().max_capacity(1000).time_to_live(GREETING_KEPT).build(),
            last_route: AtomicU64::new(0),
        })
    }

    pub(super) fn next_route(&self) -> u64 {
        self.last_route.fetch_add(1, Ordering::Relaxed)
    }
}

/// What was asked on behalf of one blob.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) requests: AtomicU64,
    pub(super) elsewhere: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) progress: AtomicU64,
    /// Its host lately sent the whole blob when it was asked for a part.
    pub(super) sent_whole: AtomicBool,
    /// How often all of it came to its end.
    pub(super) wholes: AtomicU64,
    /// Its host has sent parts of it.
    pub(super) sends_parts: AtomicBool,
    /// Something on the way has sent other parts than those asked for.
    pub(super) mixed_up: AtomicBool,
    /// To the host that was asked last.
    gate: Mutex<Option<Arc<Gate>>>,
    /// Requests that wait for their turn with a host that asks for restraint.
    queued: AtomicUsize,
}

/// A request that waits for its turn.
struct Queued<'a>(&'a Counters);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Counters {
    /// Waits until the host behind the gate may be asked.
    async fn admit(&self, gate: &Arc<Gate>) {
        *self.gate.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(gate));
        self.queued.fetch_add(1, Ordering::Relaxed);
        let _queued = Queued(self);
        gate.admit().await;
    }

    /// Whether a request has not been sent yet, since its host asks for restraint.
    pub(super) fn is_queued(&self) -> bool {
        self.queued.load(Ordering::Relaxed) > 0
    }

    /// The error of whoever waited too long for an answer.
    pub(super) fn late(&self, url: Redacted) -> Error {
        let what = if self.is_restrained() {
            "no answer in time: its host asks for pauses between requests"
        } else {
            "no answer in time"
        };
        Error::Transfer { url, what, source: None }
    }

    /// Whether the host that was asked last asks for restraint just now.
    pub(super) fn is_restrained(&self) -> bool {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|gate| gate.is_restrained())
    }
}

/// How something is asked for.
pub(super) struct Ask<'a> {
    pub(super) headers: HeaderMap,
    pub(super) connection: Connection,
    pub(super) counters: &'a Counters,
}

impl Ask<'_> {
    pub(super) fn past_caches(&mut self, freshness: Freshness) {
        if freshness == Freshness::PastCaches {
            self.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        }
    }
}

#[derive(Clone)]
pub(super) struct Repository {
    pub(super) shared: Arc<Shared>,
    scope: Scope,
}

/// Which document is asked for.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    kind: &'static str,
    name: &'a str,
    /// Only referrers of this type.
    artifact_type: Option<&'a str>,
}

/// A document with the digest of its bytes.
pub(super) struct Document {
    pub(super) digest: Digest,
    pub(super) bytes: bytes::Bytes,
}

impl Repository {
    pub(super) fn new(shared: Arc<Shared>, registry: &str, repository: &str) -> Self {
        Self { shared, scope: Scope { registry: registry.to_owned(), repository: repository.to_owned() } }
    }

    /// The URL of something in this repository; `kind` is `blobs`, `manifests` or `referrers`.
    pub(super) async fn url(&self, kind: &str, name: &str) -> Result<Url, Error> {
        let base = self.base().await?;
        let path = format!("/v2/{}/{kind}/{name}", self.scope.repository);
        base.join(&path).map_err(|_| self.no_host())
    }

    /// How long a document is tried for; `what` says what it is.
    pub(super) fn patience(&self, what: &str, name: &str, deadline: Duration) -> Patience {
        let Scope { registry, repository } = &self.scope;
        let waiting = Waiting::for_registry(format!("{what} {registry}/{repository}:{name}"));
        Patience::new(deadline, self.shared.hosts.waits.begin(waiting))
    }

    /// The URL for messages, which need not wait until the scheme is known.
    pub(super) fn shown(&self, kind: &str, name: &str) -> Redacted {
        let Scope { registry, repository } = &self.scope;
        Redacted::plain(format!("{registry}/v2/{repository}/{kind}/{name}"))
    }

    fn no_host(&self) -> Error {
        Error::Reference { text: self.scope.registry.clone(), reason: "not the name of a host".to_owned() }
    }

    /// The registry's own URL. With `--tls-verify=false` one that does not speak https is asked by http, as podman does;
    /// a loopback registry is asked by http, as docker does, unless `--tls-verify` or certificates for it say otherwise.
    async fn base(&self) -> Result<Url, Error> {
        let registry = &self.scope.registry;
        let host = if registry == "docker.io" { DOCKER_HUB_HOST } else { registry };
        let parse = |scheme: &str| Url::parse(&format!("{scheme}://{host}/")).map_err(|_| self.no_host());
        let (https, http) = (parse("https")?, parse("http")?);
        match self.shared.options.tls_verify {
            Some(true) => Ok(https),
            None if self.is_plain_loopback(&http) => Ok(self.shared.bases.get(registry).await.unwrap_or(http)),
            None => Ok(https),
            Some(false) => {
                let settled = self.shared.bases.try_get_with_by_ref(registry, Box::pin(self.probe(https, http))).await;
                settled.map_err(Error::shared)
            }
        }
    }

    fn is_plain_loopback(&self, http: &Url) -> bool {
        let Options { tls_verify, cert_dir, .. } = &self.shared.options;
        tls_verify.is_none() && cert_dir.is_none() && is_loopback(http)
    }

    async fn probe(&self, https: Url, http: Url) -> Result<Url, Error> {
        match self.ping(&https).await {
            Ok(_) => Ok(https),
            Err(error) if error.is_of_tls() => Err(error),
            Err(error) => match self.ping(&http).await {
                Ok(_) => Ok(http),
                Err(_) => Err(error),
            },
        }
    }

    async fn ping(&self, base: &Url) -> Result<Response, Error> {
        let url = base.join("/v2/").map_err(|_| self.no_host())?;
        let request = self.shared.transport.get(&url, Connection::Pooled)?;
        self.shared.throttle.admit(&url).await;
        self.shared.transport.send(&url, request, &self.shared.throttle).await
    }

    /// Settles that a loopback registry speaks http, which was a guess until it answered. Where it does not, it may speak TLS:
    /// it is asked by https from then on, or not at all where its certificate is not trusted.
    async fn settle(&self, base: &Url, answer: Result<Response, Error>) -> Result<Response, Error> {
        let registry = &self.scope.registry;
        let is_guess =
            base.scheme() == "http" && self.is_plain_loopback(base) && !self.shared.bases.contains_key(registry);
        let may_be_tls = match &answer {
            // What a TLS server says to plain http, where it says anything.
            Ok(response) => response.status().as_u16() == 400,
            Err(error) => error.is_broken_off(),
        };
        match (is_guess, may_be_tls) {
            (false, _) => answer,
            (true, true) => self.unless_it_speaks_tls(base, answer).await,
            (true, false) => {
                if answer.is_ok() {
                    self.shared.bases.insert(registry.clone(), base.clone()).await;
                }
                answer
            }
        }
    }

    async fn unless_it_speaks_tls(&self, base: &Url, answer: Result<Response, Error>) -> Result<Response, Error> {
        let mut https = base.clone();
        // Fails only for URLs without a host.
        let _ = https.set_scheme("https");
        // One that speaks plain http may wait for the end of the line.
        match tokio::time::timeout(LONGEST_PROBE, self.ping(&https)).await {
            Ok(Ok(_)) => {
                self.shared.bases.insert(self.scope.registry.clone(), https).await;
                Err(Error::Transfer { url: Redacted::of(base), what: "it speaks TLS", source: None })
            }
            Ok(Err(error)) if error.is_of_tls() => Err(error),
            _ => answer,
        }
    }

    /// What the registry wants to hear of who we are. It says so when it refuses, or at /v2/ alone, where other clients ask first.
    async fn challenge(&self, base: &Url, refusal: &Response) -> Result<Option<Challenge>, Error> {
        let is_refused = refusal.status().as_u16() == 401;
        let named = if is_refused { challenge(&self.scope, base, refusal.headers())? } else { None };
        if named.is_some() {
            return Ok(named);
        }
        match self.shared.greetings.get(&self.scope.registry).await {
            Some(greeting) => Ok(greeting),
            None => self.greeting(base).await,
        }
    }

    /// The challenge at /v2/. A registry that has none to say is not asked for a while.
    async fn greeting(&self, base: &Url) -> Result<Option<Challenge>, Error> {
        let response = match self.ping(base).await {
            Ok(response) => response,
            Err(error) => {
                tracing::debug!(%error, "no answer at /v2/; the refusal stands");
                return Ok(None);
            }
        };
        let is_refused = response.status().as_u16() == 401;
        let greeting = if is_refused { challenge(&self.scope, base, response.headers())? } else { None };
        if is_refused || response.status().is_success() {
            self.shared.greetings.insert(self.scope.registry.clone(), greeting.clone()).await;
        }
        Ok(greeting)
    }

    /// Asks, and follows redirects; the URL is that of the answer, whatever its status.
    pub(super) async fn follow(&self, start: &Url, ask: &Ask<'_>) -> Result<(Url, Response), Error> {
        let base = self.base().await?;
        let mut url = start.clone();
        let mut trail = Trail::new(url.clone());
        loop {
            let response = if same_origin(&url, &base) {
                self.authorised(&base, &url, ask).await?
            } else {
                ask.counters.elsewhere.fetch_add(1, Ordering::Relaxed);
                self.send(&url, ask.headers.clone(), ask).await?
            };
            match trail.next(&url, &response)? {
                Some(target) => url = target,
                None => return Ok((url, response)),
            }
        }
    }

    /// Asks the registry itself: the only host that ever sees a grant. A refused one is renewed once.
    async fn authorised(&self, base: &Url, url: &Url, ask: &Ask<'_>) -> Result<Response, Error> {
        let authority = &self.shared.authority;
        let mut grant = authority.current(&self.scope).await?;
        let mut renewed = false;
        loop {
            let mut headers = ask.headers.clone();
            grant.iter().for_each(|grant| grant.apply(&mut headers));
            let response = self.settle(base, self.send(url, headers, ask).await).await?;
            let status = response.status().as_u16();
            // Some say to whoever is not logged in that there is nothing.
            let may_want_login = status == 401 || (grant.is_none() && matches!(status, 403 | 404));
            if !may_want_login {
                return Ok(response);
            }
            let refused = grant.as_ref().map(|grant| grant.id);
            if renewed {
                self.shared.throttle.restrain(url, SPACING);
                return Err(unauthorized(&self.scope, grant.map_or(Login::Nobody, |grant| grant.login.clone())));
            }
            let Some(challenge) = self.challenge(base, &response).await? else {
                return if status == 401 { Err(no_challenge(&self.scope)) } else { Ok(response) };
            };
            let granted = authority.renew(&self.scope, challenge, refused).await;
            grant = Some(granted.map_err(|error| self.login_wanted(url, status, error))?);
            renewed = true;
        }
    }

    /// Why nobody was let in: where the registry did not say that itself, as what it said.
    fn login_wanted(&self, url: &Url, status: u16, error: Error) -> Error {
        match error.root() {
            Error::Unauthorized { login: login @ (Login::Nobody | Login::HelperFailed(_)), .. } if status != 401 => {
                let (url, registry, login) = (Redacted::of(url), self.scope.registry.clone(), login.clone());
                Error::LoginWanted { url, status, registry, login }
            }
            _ => error,
        }
    }

    async fn send(&self, url: &Url, headers: HeaderMap, ask: &Ask<'_>) -> Result<Response, Error> {
        ask.counters.admit(&self.shared.throttle.gate(url)).await;
        ask.counters.requests.fetch_add(1, Ordering::Relaxed);
        let request = self.shared.transport.get(url, ask.connection)?.headers(headers);
        self.shared.transport.send(url, request, &self.shared.throttle).await
    }

    /// A manifest or index, by tag or digest, whatever its digest turns out to be.
    pub(super) async fn document(
        &self,
        name: &str,
        freshness: Freshness,
        patience: &mut Patience,
    ) -> Result<(Document, Option<Digest>), Error> {
        self.ask_document(Wanted { kind: "manifests", name, artifact_type: None }, freshness, patience).await
    }

    /// The index of the manifests that refer to another, those of one type at least (distribution specification 1.1, "Listing
    /// Referrers"). What follows on further pages is not asked for.
    pub(super) async fn referrers(
        &self,
        subject: &Digest,
        artifact_type: &str,
        patience: &mut Patience,
    ) -> Result<Document, Error> {
        let name = subject.to_string();
        let wanted = Wanted { kind: "referrers", name: &name, artifact_type: Some(artifact_type) };
        Ok(self.ask_document(wanted, Freshness::Any, patience).await?.0)
    }

    async fn ask_document(
        &self,
        wanted: Wanted<'_>,
        freshness: Freshness,
        patience: &mut Patience,
    ) -> Result<(Document, Option<Digest>), Error> {
        let Wanted { kind, name, .. } = wanted;
        let mut connection = Connection::Pooled;
        loop {
            let error = match self.try_document(wanted, freshness, connection, patience).await {
                Ok(document) => return Ok(document),
                Err(error) => error,
            };
            connection = Connection::Fresh;
            patience.pause(error, &self.shown(kind, name)).await?;
        }
    }

    async fn try_document(
        &self,
        wanted: Wanted<'_>,
        freshness: Freshness,
        connection: Connection,
        patience: &mut Patience,
    ) -> Result<(Document, Option<Digest>), Error> {
        let Wanted { kind, name, artifact_type } = wanted;
        let counters = Counters::default();
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(MEDIA_TYPES))]);
        let mut ask = Ask { headers, connection, counters: &counters };
        ask.past_caches(freshness);
        let asked = async {
            let mut url = self.url(kind, name).await?;
            if let Some(kind) = artifact_type {
                url.query_pairs_mut().append_pair("artifactType", kind);
            }
            self.follow(&url, &ask).await
        };
        let answer = patience.answer(|| counters.is_queued(), asked).await;
        let (url, response) = answer.unwrap_or_else(|| Err(counters.late(self.shown(kind, name))))?;
        if response.status().as_u16() != 200 {
            return Err(status_error(&url, &response));
        }
        let said = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok()?.parse().ok());
        let bytes = read_document(&url, response, patience).await?;
        Ok((Document { digest: Digest::of(&bytes), bytes }, said))
    }
}

async fn read_document(url: &Url, mut response: Response, patience: &mut Patience) -> Result<bytes::Bytes, Error> {
    let mut body = Vec::new();
    loop {
        let chunk = patience.body(response.chunk()).await;
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
