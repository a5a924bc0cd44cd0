//! HTTP connections: TLS by the user's options, no redirects and no decompression of reqwest's own, pooled or fresh.
//!
//! Proxies are read from the environment when a client is made (proxy.rs); loopback hosts are never asked through one, as
//! Go's tools have it. `SSL_CERT_FILE` and `SSL_CERT_DIR` are read by rustls-native-certs (tls.rs).
//!
//! HTTP/1.1 only: reads of one layer run beside each other, and on one HTTP/2 connection a body that nobody takes for a
//! while holds up the window that all others share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};
use reqwest::{Client, RequestBuilder, Response};
use rustls::ClientConfig;
use tracing::Instrument as _;
use url::Url;

use super::config::Endpoint;
use super::errors::{ProxyTrouble, deepest, tls_failure};
use super::loopback::is_loopback;
use super::proxy::{Proxies, Proxy};
use super::resolver::Resolver;
use super::throttle::Throttle;
use super::tls::{self, Certificates};
use super::{Error, Options, Redacted, curve, hosts};
use crate::metrics::METRICS;

const USER_AGENT: &str = concat!("crfs/", env!("CARGO_PKG_VERSION"));
const LONGEST_CONNECT: Duration = Duration::from_secs(10);
const POOL_IDLE: Duration = Duration::from_secs(60);

/// Which connection a request goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Connection {
    Pooled,
    /// A new one: the last one may be what is broken.
    Fresh,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    https: bool,
    loopback: bool,
    connection: Connection,
}

/// The HTTP clients, each made when first needed: reading the system's certificates takes milliseconds, and plain http and
/// image layouts need none.
pub(super) struct Transport {
    clients: Mutex<HashMap<Kind, Client>>,
    tls: OnceLock<ClientConfig>,
    proxies: Proxies,
    verify: bool,
    certificates: Certificates,
    connect_timeout: Duration,
    resolver: Resolver,
    /// Requests so far, which are told apart by their numbers in the log.
    sent: AtomicU64,
}

impl Transport {
    /// Reads certificates: blocking.
    pub(super) fn new(endpoint: &Endpoint, options: &Options, resolver: Resolver) -> Result<Self, Error> {
        // reqwest is built without a default, and wants one also for plain http. Err: there was one already.
        let _ = curve::provider().install_default();
        Ok(Self {
            clients: Mutex::default(),
            tls: OnceLock::new(),
            proxies: Proxies::from_environment(),
            verify: endpoint.verify,
            certificates: Certificates::of(&endpoint.certificates)?,
            connect_timeout: endpoint.dial_timeout.unwrap_or(LONGEST_CONNECT).min(options.io_deadline / 4),
            resolver,
            sent: AtomicU64::new(1),
        })
    }

    /// Sends a request that was made for `url`, and learns from what comes of it.
    pub(super) async fn send(&self, url: &Url, request: RequestBuilder, learns: &Throttle) -> Result<Response, Error> {
        let number = self.sent.fetch_add(1, Ordering::Relaxed);
        let span = tracing::debug_span!("http", number, url = %Redacted::of(url));
        self.send_and_learn(url, request, learns).instrument(span).await
    }

    async fn send_and_learn(&self, url: &Url, request: RequestBuilder, learns: &Throttle) -> Result<Response, Error> {
        let (asked, start) = (METRICS.asks(hosts::named(url)), Instant::now());
        match request.send().await {
            Ok(response) => {
                let status = response.status().as_u16();
                asked.answered(status);
                tracing::debug!(status, took = ?start.elapsed(), "answered");
                learns.note(url, &response);
                Ok(response)
            }
            Err(source) => Err(self.failure(url, source, learns.has_answered(url)).await),
        }
    }

    /// Why there was no answer; where a proxy is between, it is asked.
    async fn failure(&self, url: &Url, source: reqwest::Error, let_through: bool) -> Error {
        if let Some(reason) = tls_failure(&source) {
            return Error::Handshake { url: Redacted::of(url), reason, identified: self.certificates.has_identity() };
        }
        let proxy = self.proxies.of(url).filter(|_| source.is_connect() && !is_loopback(url));
        let Some(proxy) = proxy else { return Error::transfer(url, "no answer", Some(source)) };
        let trouble = proxy.trouble(self.connect_timeout).await;
        let trouble = trouble.unwrap_or_else(|| ProxyTrouble::Failed(deepest(Some(&source))));
        let Proxy { url: proxy, variable, .. } = proxy;
        Error::Proxy { url: Redacted::of(url), proxy, variable, trouble, let_through }
    }

    pub(super) fn get(&self, url: &Url, connection: Connection) -> Result<RequestBuilder, Error> {
        Ok(self.client(url, connection)?.get(url.clone()))
    }

    pub(super) fn post(&self, url: &Url) -> Result<RequestBuilder, Error> {
        Ok(self.client(url, Connection::Pooled)?.post(url.clone()))
    }

    fn client(&self, url: &Url, connection: Connection) -> Result<Client, Error> {
        let kind = Kind { https: url.scheme() == "https", loopback: is_loopback(url), connection };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&kind) {
            return Ok(client.clone());
        }
        let client = self.build(kind)?;
        clients.insert(kind, client.clone());
        Ok(client)
    }

    fn build(&self, kind: Kind) -> Result<Client, Error> {
        let mut builder = Client::builder()
            .user_agent(USER_AGENT)
            .default_headers(HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .http1_only()
            .connect_timeout(self.connect_timeout)
            .pool_idle_timeout(POOL_IDLE)
            .tcp_nodelay(true)
            .dns_resolver(self.resolver.clone());
        if kind.loopback {
            builder = builder.no_proxy();
        }
        if kind.connection == Connection::Fresh {
            builder = builder.pool_max_idle_per_host(0);
        }
        builder = if kind.https { builder.tls_backend_preconfigured(self.tls()?) } else { builder.tls_certs_only([]) };
        let failed = |source: reqwest::Error| Error::Setup {
            what: "no HTTP client can be made".to_owned(),
            source: Some(source.into()),
        };
        builder.build().map_err(failed)
    }

    /// Made when first needed; the clones share sessions.
    fn tls(&self) -> Result<ClientConfig, Error> {
        if let Some(config) = self.tls.get() {
            return Ok(config.clone());
        }
        let config = tls::config(self.verify, &self.certificates)?;
        Ok(self.tls.get_or_init(|| config).clone())
    }
}
