//! One host as it is spoken to by one configuration: its connections, what it has granted us, and what is remembered of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::OnceCell;
use tokio::time::Instant;
use url::Url;

use super::auth::{Authority, Challenge};
use super::config::{Endpoint, Scheme};
use super::grammar::{DOCKER_HUB, DOCKER_HUB_HOST};
use super::health::Health;
use super::hosts::Hosts;
use super::loopback::is_loopback;
use super::throttle::Throttle;
use super::transport::Transport;
use super::{Error, Options};

/// A registry may come to want a login.
const GREETING_KEPT: Duration = Duration::from_secs(60);

pub(super) struct Peer {
    pub(super) transport: Arc<Transport>,
    pub(super) authority: Authority,
    pub(super) health: Health,
    /// Sent to it, and to nobody whom it sends us to.
    pub(super) headers: HeaderMap,
    https: Url,
    http: Url,
    scheme: Scheme,
    /// Its URL, once it is known whether it speaks https.
    pub(super) settled: OnceCell<Url>,
    /// What it has answered at /v2/, where that was asked for: its challenge, if it has one; and when.
    greeting: Mutex<Option<(Instant, Option<Challenge>)>>,
}

impl Peer {
    /// Reads certificates: blocking.
    pub(super) fn new(
        endpoint: &Endpoint,
        options: &Options,
        hosts: &Hosts,
        throttle: &Arc<Throttle>,
    ) -> Result<Self, Error> {
        let host = if endpoint.registry == DOCKER_HUB { DOCKER_HUB_HOST } else { &endpoint.registry };
        let no_host =
            |_| Error::Reference { text: endpoint.registry.clone(), reason: "not the name of a host".to_owned() };
        let parse = |scheme: &str| Url::parse(&format!("{scheme}://{host}/")).map_err(no_host);
        let transport = Arc::new(Transport::new(endpoint, options, hosts.resolver.clone())?);
        let authority = Authority::new(options.auth_files.clone(), hosts, Arc::clone(&transport), Arc::clone(throttle));
        Ok(Self {
            transport,
            authority,
            health: hosts.health(endpoint),
            headers: headers(endpoint)?,
            https: parse("https")?,
            http: parse("http")?,
            scheme: endpoint.scheme,
            settled: OnceCell::new(),
            greeting: Mutex::default(),
        })
    }

    /// Where it is asked without having been asked before; `None` where that has to be found out.
    pub(super) fn base(&self) -> Option<&Url> {
        match self.scheme {
            Scheme::Https => Some(&self.https),
            Scheme::Http => Some(&self.http),
            Scheme::Usual if is_loopback(&self.http) => self.settled.get().or(Some(&self.http)),
            Scheme::Usual => Some(&self.https),
            Scheme::Either => self.settled.get(),
        }
    }

    /// By https, and by http.
    pub(super) const fn both(&self) -> (&Url, &Url) {
        (&self.https, &self.http)
    }

    /// Whether it is asked by http, which nobody has said of it and no answer has confirmed.
    pub(super) fn is_guess(&self, base: &Url) -> bool {
        self.scheme == Scheme::Usual && base.scheme() == "http" && self.settled.get().is_none()
    }

    /// What it said at /v2/ a moment ago.
    pub(super) fn greeting(&self) -> Option<Option<Challenge>> {
        let greeting = self.greeting.lock().unwrap_or_else(PoisonError::into_inner);
        let (when, said) = greeting.as_ref()?;
        (when.elapsed() < GREETING_KEPT).then(|| said.clone())
    }

    pub(super) fn greeted(&self, said: Option<Challenge>) {
        *self.greeting.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), said));
    }
}

/// What the configuration has sent along. Values may be secrets, so no error shows them.
fn headers(endpoint: &Endpoint) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    for (name, value) in &endpoint.headers {
        let refused = || Error::Setup {
            what: format!("the header {name:?} for {} cannot be sent", endpoint.registry),
            source: None,
        };
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| refused())?;
        let mut value = HeaderValue::from_str(value.reveal()).map_err(|_| refused())?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}
