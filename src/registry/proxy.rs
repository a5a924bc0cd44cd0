//! Proxies: which one a host is asked through, and what is wrong with one that does not connect.
//!
//! reqwest reads `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` itself, and tells neither which proxy it took nor
//! what the proxy answered. So the same library is asked here again, and a proxy that did not connect once more.

use std::time::Duration;

use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use url::Url;

use super::Redacted;
use super::errors::ProxyTrouble;
use super::loopback::is_loopback;

/// A line that says why is shorter.
const LONGEST_LINE: u64 = 1000;

/// What the value of a variable names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyUrl {
    Good(Redacted),
    /// Of a kind that crfs does not speak to.
    Scheme(String),
    /// Nothing that can be understood.
    Broken,
}

/// The proxy that a variable with that value names, as requests will take it.
#[must_use]
pub fn proxy_url(value: &str) -> ProxyUrl {
    let matcher = Matcher::builder().all(value.to_owned()).build();
    // A name that no list of exceptions has.
    let found = "http://registry.invalid/".parse().ok().and_then(|uri| matcher.intercept(&uri));
    let url = found.and_then(|found| found.uri().to_string().parse::<Url>().ok());
    match url {
        Some(url) if matches!(url.scheme(), "http" | "https") => ProxyUrl::Good(Redacted::of(&url)),
        Some(url) => ProxyUrl::Scheme(url.scheme().to_owned()),
        None => ProxyUrl::Broken,
    }
}

/// The proxy that a registry is asked through by this process's environment, and the variable that names it.
#[must_use]
pub fn proxy_of(registry: &str) -> Option<(&'static str, Redacted)> {
    let url = format!("https://{registry}/").parse().ok()?;
    let proxy = Proxies::from_environment().of(&url).filter(|_| !is_loopback(&url))?;
    Some((proxy.variable, proxy.url))
}

pub(super) struct Proxies(Matcher);

/// The proxy that a host is asked through.
pub(super) struct Proxy {
    pub(super) url: Redacted,
    /// Where it is named.
    pub(super) variable: &'static str,
    /// Of the host that is asked, for CONNECT.
    target: String,
    is_tunnel: bool,
    intercept: Intercept,
}

impl Proxies {
    pub(super) fn from_environment() -> Self {
        Self(Matcher::from_env())
    }

    pub(super) fn of(&self, url: &Url) -> Option<Proxy> {
        let intercept = self.0.intercept(&url.as_str().parse().ok()?)?;
        let is_tunnel = url.scheme() == "https";
        let target = format!("{}:{}", url.host_str()?, url.port_or_known_default()?);
        let proxy: Url = intercept.uri().to_string().parse().ok()?;
        Some(Proxy { url: Redacted::of(&proxy), variable: variable(is_tunnel), target, is_tunnel, intercept })
    }
}

/// The variable that names it, in the order in which they are read.
fn variable(https: bool) -> &'static str {
    let names = if https { ["HTTPS_PROXY", "https_proxy"] } else { ["HTTP_PROXY", "http_proxy"] };
    let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    names.into_iter().chain(["ALL_PROXY", "all_proxy"]).find(is_set).unwrap_or("ALL_PROXY")
}

impl Proxy {
    /// What is wrong with it, asked now; `None` where it connects, or cannot be asked so.
    pub(super) async fn trouble(&self, within: Duration) -> Option<ProxyTrouble> {
        let uri = self.intercept.uri();
        if uri.scheme_str() != Some("http") {
            return None;
        }
        let address = (uri.host()?.trim_matches(['[', ']']), uri.port_u16().unwrap_or(80));
        let mut connection = match timeout(within, TcpStream::connect(address)).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Some(ProxyTrouble::Unreachable(error.to_string())),
            Err(_) => return Some(ProxyTrouble::Unreachable(format!("no connection within {within:?}"))),
        };
        if !self.is_tunnel {
            return None;
        }
        match timeout(within, self.connect(&mut connection)).await {
            Ok(Ok(line)) if is_good(&line) => None,
            Ok(Ok(line)) => Some(ProxyTrouble::Refused(line)),
            Ok(Err(error)) => Some(ProxyTrouble::Failed(error.to_string())),
            Err(_) => Some(ProxyTrouble::Failed(format!("no answer within {within:?}"))),
        }
    }

    /// The first line of what it answers, without the version.
    async fn connect(&self, connection: &mut TcpStream) -> std::io::Result<String> {
        let mut request = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n", self.target).into_bytes();
        if let Some(authorization) = self.intercept.basic_auth() {
            request.extend_from_slice(b"Proxy-Authorization: ");
            request.extend_from_slice(authorization.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        connection.write_all(&request).await?;
        let mut line = Vec::new();
        BufReader::new(connection.take(LONGEST_LINE)).read_until(b'\n', &mut line).await?;
        let line = String::from_utf8_lossy(&line);
        let status = line.trim().split_once(' ').map(|(_version, status)| status.to_owned());
        status.ok_or_else(|| std::io::Error::other("it answers with something other than HTTP"))
    }
}

fn is_good(status: &str) -> bool {
    status.split(' ').next() == Some("200")
}
