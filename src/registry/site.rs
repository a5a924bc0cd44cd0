//! One repository at one place that may be asked for it (OCI distribution specification 1.1): a request to it with authorisation and redirects,
//! as often as the rules allow and no more.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::Response;
use reqwest::header::HeaderMap;
use url::Url;

use super::ask::Ask;
use super::auth::{Challenge, Scope, challenge, no_challenge, unauthorized};
use super::config::Endpoint;
use super::credentials::Login;
use super::gate::SPACING;
use super::peer::Peer;
use super::redirect::{Trail, same_origin};
use super::shared::Shared;
use super::transport::Connection;
use super::{Error, Redacted};

/// How long a loopback registry may take to say that it speaks TLS.
const LONGEST_PROBE: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub(super) struct Site {
    pub(super) shared: Arc<Shared>,
    pub(super) peer: Arc<Peer>,
    pub(super) endpoint: Arc<Endpoint>,
    scope: Scope,
}

impl Site {
    /// Reads certificates: blocking.
    pub(super) fn new(shared: Arc<Shared>, endpoint: Endpoint) -> Result<Self, Error> {
        let peer = shared.peer(&endpoint)?;
        let scope = Scope { registry: endpoint.registry.clone(), repository: endpoint.repository.clone() };
        Ok(Self { shared, peer, endpoint: Arc::new(endpoint), scope })
    }

    /// How people name it.
    pub(super) fn name(&self) -> &str {
        &self.endpoint.registry
    }

    /// The URL of something in this repository; `kind` is `blobs`, `manifests` or `referrers`.
    pub(super) async fn url(&self, kind: &str, name: &str) -> Result<Url, Error> {
        let base = self.base().await?;
        self.below(&base, &format!("/{}/{kind}/{name}", self.endpoint.repository))
    }

    /// The URL of something of the API.
    fn below(&self, base: &Url, path: &str) -> Result<Url, Error> {
        let mut url = base.join(&format!("{}{path}", self.endpoint.api)).map_err(|_| self.no_host())?;
        if let Some(namespace) = &self.endpoint.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    fn no_host(&self) -> Error {
        Error::Reference { text: self.scope.registry.clone(), reason: "not the name of a host".to_owned() }
    }

    /// Its own URL. One that may speak either is asked by https, and by http where it does not speak that, as podman does it; a loopback registry
    /// is asked by http, as docker does, unless something says otherwise.
    async fn base(&self) -> Result<Url, Error> {
        match self.peer.base() {
            Some(base) => Ok(base.clone()),
            None => {
                let (https, http) = self.peer.both();
                self.peer.settled.get_or_try_init(|| Box::pin(self.probe(https.clone(), http.clone()))).await.cloned()
            }
        }
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
        let url = self.below(base, "/")?;
        let request = self.peer.transport.get(&url, Connection::Pooled)?.headers(self.peer.headers.clone());
        self.shared.throttle.admit(&url).await;
        self.peer.transport.send(&url, request, &self.shared.throttle).await
    }

    /// Settles that a loopback registry speaks http, which was a guess until it answered. Where it does not, it may speak TLS:
    /// it is asked by https from then on, or not at all where its certificate is not trusted.
    async fn settle(&self, base: &Url, answer: Result<Response, Error>) -> Result<Response, Error> {
        let is_guess = self.peer.is_guess(base);
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
                    // Another may have been told at the same time.
                    let _same = self.peer.settled.set(base.clone());
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
                let _same = self.peer.settled.set(https);
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
        match self.peer.greeting() {
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
            self.peer.greeted(greeting.clone());
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
        let authority = &self.peer.authority;
        let mut grant = authority.current(&self.scope).await?;
        let mut renewed = false;
        loop {
            let mut headers = ask.headers.clone();
            headers.extend(self.peer.headers.clone());
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
        let request = self.peer.transport.get(url, ask.connection)?.headers(headers);
        self.peer.transport.send(url, request, &self.shared.throttle).await
    }
}
