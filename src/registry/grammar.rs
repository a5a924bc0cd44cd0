//! The grammar of references to registries (distribution/reference v0.6, reference.go), and what they leave out completed.

use std::fmt;
use std::net::Ipv6Addr;

pub(super) const DOCKER_HUB: &str = "docker.io";
/// Where its API is.
pub(super) const DOCKER_HUB_HOST: &str = "registry-1.docker.io";
pub(super) const DOCKER_HUB_OF_OLD: &str = "index.docker.io";

/// Bytes of the longest repository name.
const LONGEST_NAME: usize = 255;

/// Bytes of the longest tag.
const LONGEST_TAG: usize = 128;

/// An image in a registry, with nothing left out. Displayed as `REGISTRY/REPOSITORY[:TAG][@DIGEST]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// `HOST[:PORT]`
    pub(crate) registry: String,
    pub(crate) repository: String,
    /// There is one where no digest was given.
    pub(crate) tag: Option<String>,
    pub(crate) digest: Option<String>,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))?;
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

/// `[HOST[:PORT]/]NAME[:TAG][@DIGEST]`
pub(super) fn parse(text: &str) -> Result<Reference, &'static str> {
    let (text, digest) = match text.split_once('@') {
        Some((text, digest)) => (text, Some(digest)),
        None => (text, None),
    };
    let (name, tag) = match text.rsplit_once(':').filter(|(_, tag)| !tag.contains(['/', ']'])) {
        Some((name, tag)) => (name, Some(tag)),
        None => (text, None),
    };
    if name.is_empty() {
        return Err("the name is empty");
    }
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("the tag may have letters, digits, _, . and -, 128 at most, and starts with none of the last two");
    }
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return Err("the digest is not sha256: and 64 hexadecimal digits");
    }
    let (registry, repository) = completed(name)?;
    let tag = if digest.is_none() { tag.or(Some("latest")) } else { tag };
    Ok(Reference { registry, repository, tag: tag.map(str::to_owned), digest: digest.map(str::to_owned) })
}

/// The host before the first slash, and what is behind it; `None` where nothing there looks like a host.
pub(super) fn with_host(name: &str) -> Option<(&str, &str)> {
    name.split_once('/').filter(|(host, _)| host.contains(['.', ':']) || *host == "localhost")
}

/// The registry and the repository.
fn completed(name: &str) -> Result<(String, String), &'static str> {
    let (registry, repository) = with_host(name).unwrap_or((DOCKER_HUB, name));
    if !is_host(registry) {
        return Err("the registry is not HOST[:PORT]; an IPv6 address stands in brackets, as in [::1]:5000");
    }
    if !repository.split('/').all(is_component) {
        return Err("the name may have lower case letters and digits, and between them one . or _, two _, or some -");
    }
    let registry = if registry == DOCKER_HUB_OF_OLD { DOCKER_HUB } else { registry };
    let is_official = registry == DOCKER_HUB && !repository.contains('/');
    let repository = if is_official { format!("library/{repository}") } else { repository.to_owned() };
    if repository.len() > LONGEST_NAME {
        return Err("the name is longer than 255 characters");
    }
    Ok((registry.to_owned(), repository))
}

pub(super) fn is_host(text: &str) -> bool {
    // The colons of an IPv6 address are in its brackets.
    let port = text.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
    let (host, port) = port.unwrap_or((text, "0"));
    let is_port = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    is_port && (is_ipv6(host) || host.split('.').all(is_label))
}

/// An address without a zone, and without an IPv4 address in it.
fn is_ipv6(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    address.is_some_and(|address| !address.contains('.') && address.parse::<Ipv6Addr>().is_ok())
}

/// A part of a domain name.
fn is_label(label: &str) -> bool {
    let is_of_it = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    !label.is_empty() && label.bytes().all(is_of_it) && !label.starts_with('-') && !label.ends_with('-')
}

fn is_component(text: &str) -> bool {
    let is_of_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_separator = |text: &str| matches!(text, "" | "." | "_" | "__") || text.bytes().all(|byte| byte == b'-');
    let is_known = |byte: u8| is_of_word(byte) || matches!(byte, b'.' | b'_' | b'-');
    let ends_in_words = text.bytes().next().is_some_and(is_of_word) && text.bytes().next_back().is_some_and(is_of_word);
    ends_in_words
        && text.bytes().all(is_known)
        && text.split(|char: char| char.is_ascii_lowercase() || char.is_ascii_digit()).all(is_separator)
}

fn is_tag(text: &str) -> bool {
    let is_of_it = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    (1..=LONGEST_TAG).contains(&text.len()) && text.bytes().all(is_of_it) && !text.starts_with(['.', '-'])
}

fn is_digest(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or_default();
    hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_left_out_is_completed() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let just = format!("a/{}", "b".repeat(253));
        let tag = "t".repeat(128);
        let cases = [
            ("a", "docker.io/library/a:latest"),
            ("a:b", "docker.io/library/a:b"),
            ("a:_b", "docker.io/library/a:_b"),
            ("a/b", "docker.io/a/b:latest"),
            ("a.b/c", "a.b/c:latest"),
            ("A.b/c", "A.b/c:latest"),
            ("a.b:1/c", "a.b:1/c:latest"),
            ("a:1/c", "a:1/c:latest"),
            ("a.b:1/c:d", "a.b:1/c:d"),
            ("1.2.3.4:5/a", "1.2.3.4:5/a:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost", "docker.io/library/localhost:latest"),
            ("localhost:1", "docker.io/library/localhost:1"),
            ("a__b", "docker.io/library/a__b:latest"),
            ("a---b", "docker.io/library/a---b:latest"),
            ("index.docker.io/a", "docker.io/library/a:latest"),
            ("docker.io/a", "docker.io/library/a:latest"),
            ("docker.io/a/b", "docker.io/a/b:latest"),
            (&just, &format!("docker.io/{just}:latest")),
            (&format!("a:{tag}"), &format!("docker.io/library/a:{tag}")),
            (&format!("a@{digest}"), &format!("docker.io/library/a@{digest}")),
            (&format!("a:b@{digest}"), &format!("docker.io/library/a:b@{digest}")),
        ];
        for (text, whole) in cases {
            assert_eq!(parse(text).unwrap().to_string(), whole, "{text}");
        }
    }

    #[test]
    fn what_the_grammar_has_not_is_refused() {
        let long_name = format!("a/{}", "b".repeat(254));
        let long_tag = format!("a:{}", "t".repeat(129));
        let short_digest = format!("a@sha256:{}", "0".repeat(63));
        let empty = ["", ":", "@", "/a", "a/", "a:", "a@", "a//b", "h.x:/a"];
        let hosts = ["-h.x/a", "h-.x/a", "h..x/a", "h:x/a", "::1/a", "fe80::1:5/a"];
        let names = ["A/b", "a.", ".a", "a b", "a___b", "a-b._c", &long_name];
        let rest = ["a:.b", "a:-b", "a:b:c", "a@sha256:12", "a:b@sha256:x", &long_tag, &short_digest];
        for text in empty.iter().chain(&hosts).chain(&names).chain(&rest) {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    /// distribution has had these since 2023.
    #[test]
    fn an_ipv6_address_stands_in_brackets() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let parts = |text: &str| {
            let reference = parse(text).ok()?;
            Some((reference.registry, reference.repository, reference.tag, reference.digest))
        };
        let cases = [
            ("[::1]/a".to_owned(), "[::1]", "a", Some("latest"), None),
            ("[::1]:5000/a".to_owned(), "[::1]:5000", "a", Some("latest"), None),
            ("[2001:DB8::1]:5000/a/b:t".to_owned(), "[2001:DB8::1]:5000", "a/b", Some("t"), None),
            (format!("[fd00::2]/a@{digest}"), "[fd00::2]", "a", None, Some(digest.as_str())),
            (format!("[::]:1/a:t@{digest}"), "[::]:1", "a", Some("t"), Some(digest.as_str())),
        ];
        for (text, registry, repository, tag, digest) in cases {
            let expected = (registry.into(), repository.into(), tag.map(str::to_owned), digest.map(str::to_owned));
            assert_eq!(parts(&text), Some(expected), "{text}");
            assert_eq!(parts(&parse(&text).unwrap().to_string()), parts(&text));
        }
        for text in [
            "[::1]",
            "[::1]:5000",
            "[::1]:/a",
            "[::1]5000/a",
            "[::1]:5000",
            "[::1]:5000/",
            "[::1/a",
            "::1]/a",
            "[]/a",
            "[::1::]/a",
            "[fe80::1%eth0]/a",
            "[::ffff:1.2.3.4]/a",
            "[localhost]/a",
            "[1.2.3.4]:5/a",
            "a/[::1]",
        ] {
            assert_eq!(parts(text), None, "{text}");
        }
        assert!(parse("fe80::1/a").unwrap_err().contains("brackets"));
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back_the_same(text in "[aA0]{0,2}[a./:_@-]{0,4}[a0/.:_-]{0,4}(:[aA._-]{1,3})?(@sha256:[0a]{63,65})?") {
            if let Ok(reference) = parse(&text) {
                prop_assert_eq!(parse(&reference.to_string()), Ok(reference));
            }
        }
    }
}
