//! HTTP connections: TLS by the user's options, no redirects and no decompression of reqwest's own, pooled or fresh.
//!
//! `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` are read by reqwest itself when a client is made; loopback hosts
//! are never asked through a proxy, as Go's tools have it. `SSL_CERT_FILE` and `SSL_CERT_DIR` are read by
//! rustls-native-certs, below reqwest's verifier.
//!
//! HTTP/1.1 only: reads of one layer run beside each other, and on one HTTP/2 connection a body that nobody takes for a
//! while holds up the window that all others share.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};
use reqwest::{Certificate, Client, Identity};
use url::{Host, Url};

use super::resolver::Resolver;
use super::{Error, Options};
use crate::sys::outside;

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
    verify: bool,
    authorities: Vec<Certificate>,
    identity: Option<Identity>,
    connect_timeout: Duration,
    resolver: Resolver,
}

impl Transport {
    pub(super) fn new(options: &Options, resolver: Resolver) -> Result<Self, Error> {
        // reqwest is built without a default: this is the one that crfs ships. Err: there was one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (authorities, identity) = options.cert_dir.as_deref().map(certificates).transpose()?.unwrap_or_default();
        Ok(Self {
            clients: Mutex::default(),
            verify: options.tls_verify != Some(false),
            authorities,
            identity,
            connect_timeout: (options.io_deadline / 4).min(LONGEST_CONNECT),
            resolver,
        })
    }

    pub(super) fn get(&self, url: &Url, connection: Connection) -> Result<reqwest::RequestBuilder, Error> {
        Ok(self.client(url, connection)?.get(url.clone()))
    }

    pub(super) fn post(&self, url: &Url) -> Result<reqwest::RequestBuilder, Error> {
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
        builder = match (kind.https, self.verify) {
            (false, _) => builder.tls_certs_only([]),
            (true, false) => builder.tls_danger_accept_invalid_certs(true),
            (true, true) => builder.tls_certs_merge(self.authorities.clone()),
        };
        if let Some(identity) = self.identity.clone().filter(|_| kind.https) {
            builder = builder.identity(identity);
        }
        builder.build().map_err(|source| Error::Setup {
            what: "reading the system's certificates or the client's own".to_owned(),
            source: Some(source.into()),
        })
    }
}

/// Bytes of all that a file of certificates may have.
const LARGEST_FILE: u64 = 16 << 20;

/// `*.crt` are authorities beside the system's, the first `*.cert` with its `*.key` is the client's (containers-certs.d(5)).
fn certificates(dir: &Path) -> Result<(Vec<Certificate>, Option<Identity>), Error> {
    let at = |path: &Path, source| Error::Setup { what: format!("reading {}", path.display()), source: Some(source) };
    let read = |path: &Path| outside::read(path, LARGEST_FILE).map_err(|source| at(path, source.into()));
    let entries = std::fs::read_dir(dir).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
    let mut paths: Vec<_> =
        entries.map_err(|source| at(dir, source.into()))?.iter().map(std::fs::DirEntry::path).collect();
    paths.sort();
    let (mut authorities, mut identity) = (Vec::new(), None);
    for path in &paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => {
                let bundle = Certificate::from_pem_bundle(&read(path)?);
                let bundle = bundle.map_err(|source| at(path, source.into()))?;
                if bundle.is_empty() {
                    return Err(at(path, "it holds no certificate in PEM".into()));
                }
                authorities.extend(bundle);
            }
            Some("cert") if identity.is_none() => {
                let mut pem = read(path)?;
                pem.push(b'\n');
                pem.extend(read(&path.with_extension("key"))?);
                identity = Some(Identity::from_pem(&pem).map_err(|source| at(path, source.into()))?);
            }
            _ => {}
        }
    }
    Ok((authorities, identity))
}

/// `localhost`, 127.0.0.0/8 and ::1, to which docker and podman speak plain http.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_classified_however_they_are_written() {
        let url = |text: &str| text.parse::<Url>().unwrap();
        for loopback in ["http://localhost:5000", "http://127.9.9.9/", "http://[::1]:1/", "http://x.localhost"] {
            assert!(is_loopback(&url(loopback)), "{loopback}");
        }
        for other in ["http://localhost.example", "http://128.0.0.1", "http://[::2]"] {
            assert!(!is_loopback(&url(other)), "{other}");
        }
    }
}
