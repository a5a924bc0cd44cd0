//! Which registries are on this machine.

use url::{Host, Url};

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
