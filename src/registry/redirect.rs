//! Which redirects are followed: to http(s) only, never from https down, never to a link-local address, never in a circle.

use std::net::IpAddr;

use reqwest::header::LOCATION;
use url::{Host, Url};

use super::resolver::is_link_local;
use super::{Error, Redacted};

/// As many as are followed for one request.
const MOST_HOPS: usize = 10;

/// The URLs that one request has gone through.
#[derive(Debug)]
pub(super) struct Trail(Vec<Url>);

impl Trail {
    pub(super) fn new(start: Url) -> Self {
        Self(vec![start])
    }

    /// The next URL, where the answer is a redirect.
    pub(super) fn next(&mut self, from: &Url, response: &reqwest::Response) -> Result<Option<Url>, Error> {
        if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let target = location.and_then(|location| from.join(location).ok());
        let target = target.ok_or_else(|| Error::protocol(from, "a redirect without a usable Location"))?;
        self.step(from, target).map(Some)
    }

    fn step(&mut self, from: &Url, mut target: Url) -> Result<Url, Error> {
        let refused = |target: &Url, reason| {
            Err(Error::Redirect { url: Redacted::of(from), target: Redacted::of(target), reason })
        };
        match (from.scheme(), target.scheme()) {
            (_, "https") | ("http", "http") => {}
            (_, "http") => return refused(&target, "from https to http is refused"),
            _ => return refused(&target, "only http and https are followed"),
        }
        if leads_to_link_local(&target) {
            return refused(&target, "a link-local address is refused");
        }
        // reqwest would send them as credentials. Neither call can fail for http URLs.
        let _ = target.set_username("");
        let _ = target.set_password(None);
        target.set_fragment(None);
        if self.0.contains(&target) {
            return refused(&target, "that is a loop");
        }
        if self.0.len() > MOST_HOPS {
            return refused(&target, "more than 10 redirects");
        }
        self.0.push(target.clone());
        Ok(target)
    }
}

/// Whether a URL names a link-local address outright; names are judged when they are resolved.
pub(super) fn leads_to_link_local(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => is_link_local(IpAddr::V4(ip)),
        Some(Host::Ipv6(ip)) => is_link_local(IpAddr::V6(ip)),
        _ => false,
    }
}

/// Whether credentials for one may go to the other: scheme, host and port are the same.
pub(super) fn same_origin(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host() == other.host()
        && one.port_or_known_default() == other.port_or_known_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(from: &str, to: &str) -> Result<String, Error> {
        let from: Url = from.parse().unwrap();
        let target = from.join(to).unwrap();
        Trail::new(from.clone()).step(&from, target).map(String::from)
    }

    #[test]
    fn redirects_are_followed_by_the_rules() {
        // Names of other letters are asked for by their ASCII form (UTS 46), which the Unicode tables of idna_adapter make.
        for name in ["bücher.example", "BÜCHER.example", "xn--bcher-kva.example"] {
            assert_eq!(step("https://r/a", &format!("https://{name}/b")).unwrap(), "https://xn--bcher-kva.example/b");
        }
        assert!("https://xn--a/b".parse::<Url>().is_err(), "no ASCII form of any name");
        assert_eq!(step("https://r/a", "https://user:pw@s/b?sig=1#f").unwrap(), "https://s/b?sig=1");
        assert_eq!(step("http://r/a", "/b").unwrap(), "http://r/b");
        assert_eq!(step("http://r/a", "https://s/b").unwrap(), "https://s/b");
        let refused = [
            ("https://r/a", "http://r/a"),
            ("http://r/a", "ftp://r/a"),
            ("http://r/a", "file:///etc/passwd"),
            ("http://r/a", "http://169.254.169.254/latest"),
            ("http://r/a", "http://[fe80::1]/"),
            ("http://r/a", "http://0xa9fea9fe/"),
            ("http://r/a", "http://r/a"),
        ];
        for (from, to) in refused {
            assert!(matches!(step(from, to), Err(Error::Redirect { .. })), "{from} {to}");
        }
    }

    #[test]
    fn ten_hops_are_followed_and_no_more() {
        let mut from: Url = "http://r/0".parse().unwrap();
        let mut trail = Trail::new(from.clone());
        for hop in 1..=10 {
            from = trail.step(&from, from.join(&format!("/{hop}")).unwrap()).unwrap();
        }
        assert!(trail.step(&from, from.join("/11").unwrap()).is_err());
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |one: &str, other: &str| same_origin(&one.parse().unwrap(), &other.parse().unwrap());
        assert!(same("https://r/a", "https://R:443/b"));
        for other in ["http://r/a", "https://r:444/a", "https://x.r/a"] {
            assert!(!same("https://r/a", other), "{other}");
        }
    }
}
