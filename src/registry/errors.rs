//! What can go wrong between a reference and the bytes of a layer: facts as fields, a source, and whether asking again makes sense.
//!
//! No text here ever holds a secret: URLs are [`Redacted`] (signed URLs carry their authority in the query), and of
//! credentials only the place they came from is named.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::artifact::Artifact;
use super::config::ConfigError;
use super::credentials::Login;
use super::left_out::LeftOut;
use super::loopback::is_loopback;
use crate::blob::Digest;
use crate::sys::expansion::Expands;

/// A URL without user, password, query and fragment, fit to be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Redacted(String);

impl Redacted {
    pub(super) fn of(url: &Url) -> Self {
        let mut shown = url.clone();
        // These fail only for URLs that cannot have a user at all.
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        shown.set_query(None);
        shown.set_fragment(None);
        Self(shown.into())
    }

    /// The host in it, with its port.
    pub(super) fn host(&self) -> &str {
        let (_, rest) = self.0.split_once("://").unwrap_or(("", &self.0));
        rest.split('/').next().unwrap_or(rest)
    }

    /// Of a text that is made of a host and a path only.
    pub(super) const fn plain(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Whether the same request may go better next time.
/// The more hopeful the larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Retry {
    Never,
    /// A server that does not keep to the protocol: a few fresh connections, then no more.
    AFewTimes,
    /// Until the deadline; not before this time where the server named one.
    After(Option<Duration>),
}

/// What is wrong with a proxy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyTrouble {
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// The first line of its answer to CONNECT.
    #[error("refuses the connection: {0}")]
    Refused(String),
    #[error("does not connect: {0}")]
    Failed(String),
}

/// Why a reference, a manifest or a layer's bytes cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("{text:?} is not an image reference: {reason}")]
    Reference { text: String, reason: String },
    #[error(
        "transport {transport:?} of {text:?} is not supported: crfs reads docker://, oci:, oci-archive: and docker-archive:"
    )]
    Transport { transport: String, text: String },
    #[error("{text:?} is not a platform: it is written os/arch or os/arch/variant, such as linux/arm64")]
    Platform { text: String },
    #[error("{image} has nothing for {wanted}; it has: {}{left_out}", list(available))]
    NoPlatform { image: String, wanted: String, available: Vec<String>, left_out: Box<LeftOut> },
    #[error(
        "{image} names no tag, and holds more than one image and none called latest; its tags are: {}{left_out}",
        list(tags)
    )]
    AmbiguousLayout { image: String, tags: Vec<String>, left_out: Box<LeftOut> },
    #[error("{what} is {artifact}, not an image; crfs serves no artifacts yet")]
    Artifact { what: String, artifact: Artifact },
    #[error("{image} holds no image{left_out}")]
    NoImage { image: String, left_out: Box<LeftOut> },
    #[error(
        "{image}: {name:?} names more than one image: {}; give each a name of its own, or name one that it has alone",
        list(owners)
    )]
    SharedName { image: String, name: String, owners: Vec<String> },
    #[error(
        "{image} names none of the {count} images that it holds (:NAME, or :@0 for the first); their names are: {}",
        list(names)
    )]
    AmbiguousArchive { image: String, count: usize, names: Vec<String> },
    #[error("{image} has no tag {tag:?}; its tags are: {}{left_out}", list(tags))]
    NoTag { image: String, tag: String, tags: Vec<String>, left_out: Box<LeftOut> },
    #[error("no image stands beside {image}: it has no tag to put {suffix:?} behind")]
    NoSibling { image: String, suffix: String },

    #[error("{path}: {what}", path = path.display())]
    File { path: PathBuf, what: &'static str, source: std::io::Error },
    #[error("{path} is compressed with {by}, which crfs does not unpack: unpack it first (`{command}`)", path = path.display())]
    Packed { path: PathBuf, by: &'static str, command: &'static str },
    #[error(
        "{path} is compressed, and the cache has no room for all that is in it ({unpacked} bytes so far): give crfs a larger --cache-size, \
         or a --cache-dir with more room, or unpack it first",
        path = path.display()
    )]
    NoRoom { path: PathBuf, unpacked: u64, source: std::io::Error },
    #[error(
        "{path} is compressed by zstd with a window of {} MiB, of which crfs would have to keep more than {} MiB in memory: unpack it first \
         (`zstd -d --long=31`)", window >> 20, limit >> 20, path = path.display()
    )]
    Window { path: PathBuf, window: u64, limit: u64 },
    #[error(
        "{path} is compressed, and {found}; unpack it first (`gzip -dk`, `zstd -d`), if it is what you want",
        path = path.display()
    )]
    Expands { path: PathBuf, found: Expands },
    #[error("{path} is not {what}", path = path.display())]
    NotALayout { path: PathBuf, what: String },
    #[error("{path} holds no blob {digest}", path = path.display())]
    NoBlob { path: PathBuf, digest: Digest },
    #[error("blob {digest} in {path} has {found} bytes, and its descriptor says {expected}", path = path.display())]
    BlobSize { path: PathBuf, digest: Digest, expected: u64, found: u64 },

    #[error("{what}: its {kind} is refused: {reason}")]
    Manifest { what: String, kind: &'static str, reason: String },
    #[error("{what}: expected {expected}, but the bytes received have {found}, also when asked past caches")]
    WrongDigest { what: String, expected: Digest, found: Digest },
    #[error("layer {layer}: {range} is outside its {size} bytes")]
    OutOfRange { layer: Digest, range: crate::blob::ByteRange, size: u64 },

    #[error("the connections cannot be set up: {what}")]
    Setup { what: String, source: Option<Box<dyn std::error::Error + Send + Sync>> },
    /// `identified`: a client certificate was given.
    #[error("{url}: no TLS connection: {reason}{}", tls_advice(reason, *identified))]
    Handshake { url: Redacted, reason: rustls::Error, identified: bool },
    /// `let_through`: it let us through to that host before.
    #[error(
        "{url}: the proxy {proxy} ({variable}) {trouble}; set {variable} to one that works, or name the host in NO_PROXY"
    )]
    Proxy { url: Redacted, proxy: Redacted, variable: &'static str, trouble: ProxyTrouble, let_through: bool },
    #[error("{url}: {what}{}", deepest(source.as_ref()))]
    Transfer { url: Redacted, what: &'static str, source: Option<reqwest::Error> },
    #[error("{url} answered {status}")]
    Status { url: Redacted, status: u16, retry_after: Option<Duration> },
    #[error("{url} is not there (404){}", to_check(url))]
    NotFound { url: Redacted },
    #[error("{url} denies access ({status})")]
    Denied { url: Redacted, status: u16 },
    #[error(
        "{url} is not there or may not be read ({status}) without a login, which registry {registry} asks for: {}{}",
        login_command(registry),
        helper_failed(login)
    )]
    LoginWanted { url: Redacted, status: u16, registry: String, login: Login },
    #[error("invalid response from {url}: {what}")]
    Protocol { url: Redacted, what: String },
    #[error(
        "{url}: asked for {asked}, it sends {said}, also past caches: something on the way mixes up the ranges of a blob, as a cache does that \
         has not the range in its key (nginx needs $slice_range or $http_range in proxy_cache_key); mend it, or go around it"
    )]
    MixedUp { url: Redacted, asked: crate::blob::ByteRange, said: crate::blob::ByteRange },
    #[error("{url} redirects to {target}: {reason}")]
    Redirect { url: Redacted, target: Redacted, reason: &'static str },
    #[error("{} for repository {repository} (401): {}", refusal(registry, login), advice(registry, login))]
    Unauthorized { registry: String, repository: String, login: Login },
    #[error("the token server of registry {registry}: {source}")]
    TokenServer { registry: String, source: Box<Error> },
    #[error("registry {registry} asks for authentication in a way that crfs refuses: {reason}")]
    Challenge { registry: String, reason: String },
    #[error(transparent)]
    Configuration(#[from] ConfigError),
    #[error("credentials in {path} cannot be read: {reason}", path = path.display())]
    Credentials { path: PathBuf, reason: String },
    #[error("{what}: nothing moved for {:.1} s and {tries} tries, the last: {source}{}", waited.as_secs_f64(), reach(source))]
    NoProgress { what: String, url: Redacted, waited: Duration, tries: u32, source: Box<Error> },

    #[error("{url} sends no part of a blob, but all of it (it answers {status} to a range)")]
    SendsWhole { url: Redacted, status: u16 },
    /// Each place that was asked, in its order, with what came of it. `decides`: whose word counts for all.
    #[error("none of the {} endpoints has it: {}", errors.len(), each(errors))]
    Endpoints { errors: Vec<(String, Error)>, decides: Option<usize> },
    #[error("{repository}: there is no host that may be asked for it")]
    NoEndpoint { repository: String },

    /// One failure that several waiters share.
    #[error(transparent)]
    Shared(Arc<Error>),
}

impl Error {
    /// The failure of work that was done for several at once.
    pub(super) fn shared(error: Arc<Self>) -> Self {
        Arc::try_unwrap(error).unwrap_or_else(Self::Shared)
    }

    /// What happened, whether it happened to one or to several at once.
    #[must_use]
    pub fn root(&self) -> &Self {
        match self {
            Self::Shared(error) => error.root(),
            other => other,
        }
    }

    /// Whether asking again may help.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self.root() {
            Self::Transfer { .. } | Self::Proxy { let_through: true, .. } => Retry::After(None),
            Self::TokenServer { source, .. } => source.retry(),
            Self::Status { status: 408 | 425 | 429 | 500..=599, retry_after, .. } => Retry::After(*retry_after),
            Self::Protocol { .. } | Self::MixedUp { .. } => Retry::AFewTimes,
            Self::Endpoints { errors, decides } => {
                counting(errors, *decides).iter().map(|(_, error)| error.retry()).max().unwrap_or(Retry::Never)
            }
            _ => Retry::Never,
        }
    }

    /// Whether the registry could not be reached or was unwell, rather than having answered "no".
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        match self.root() {
            Self::NoProgress { source, .. } => source.is_unreachable(),
            Self::Endpoints { errors, decides } => {
                counting(errors, *decides).iter().any(|(_, error)| error.is_unreachable())
            }
            error => matches!(error.retry(), Retry::After(_)),
        }
    }

    /// Whether what was asked for does not exist, as opposed to not being had.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        match self.root() {
            Self::NotFound { .. } | Self::LoginWanted { status: 404, .. } => true,
            Self::NoTag { .. } | Self::NoSibling { .. } => true,
            Self::Endpoints { errors, decides } => {
                counting(errors, *decides).iter().all(|(_, error)| error.is_not_found())
            }
            _ => false,
        }
    }

    /// Whether other bytes came than their digest says.
    pub(super) fn is_wrong_digest(&self) -> bool {
        match self.root() {
            Self::WrongDigest { .. } => true,
            Self::Endpoints { errors, .. } => errors.iter().any(|(_, error)| error.is_wrong_digest()),
            _ => false,
        }
    }

    /// Whether the other end speaks TLS, and not with us.
    pub(super) fn is_of_tls(&self) -> bool {
        matches!(self.root(), Self::Handshake { reason, .. } if !matches!(reason, rustls::Error::InvalidMessage(_)))
    }

    /// Whether there was a connection, and it ended without an answer.
    pub(super) fn is_broken_off(&self) -> bool {
        matches!(self.root(), Self::Transfer { source: Some(source), .. } if !source.is_connect())
    }

    /// Of a request: reqwest's own text would show the whole URL.
    pub(super) fn transfer(url: &Url, what: &'static str, source: Option<reqwest::Error>) -> Self {
        Self::Transfer { url: Redacted::of(url), what, source: source.map(reqwest::Error::without_url) }
    }

    /// Of a place, where the URL is not known any more.
    pub(super) fn protocol_of(host: &str, what: String) -> Self {
        Self::Protocol { url: Redacted::plain(host.to_owned()), what }
    }

    pub(super) fn protocol(url: &Url, what: impl Into<String>) -> Self {
        Self::Protocol { url: Redacted::of(url), what: what.into() }
    }
}

/// Those that count.
fn counting(errors: &[(String, Error)], decides: Option<usize>) -> &[(String, Error)] {
    decides.and_then(|decides| errors.get(decides..=decides)).unwrap_or(errors)
}

fn each(errors: &[(String, Error)]) -> String {
    let each: Vec<_> = errors.iter().map(|(name, error)| format!("{name}: {error}")).collect();
    each.join("; ")
}

fn sources<'a>(error: &'a reqwest::Error) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    let first: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(first), |error| {
        // An io::Error made of another names that one's source as its own: the error itself would be passed over.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        inner.map(|inner| inner as &(dyn std::error::Error + 'static)).or_else(|| error.source())
    })
}

/// What a handshake failed of, which asking again would not mend. A server may refuse our certificate after the handshake.
pub(super) fn tls_failure(error: &reqwest::Error) -> Option<rustls::Error> {
    let reason = sources(error).find_map(|error| error.downcast_ref::<rustls::Error>());
    reason.filter(|reason| error.is_connect() || wants_certificate(reason)).cloned()
}

/// Whether a server refuses what it was told of who we are: nothing, or a certificate.
const fn wants_certificate(reason: &rustls::Error) -> bool {
    use rustls::AlertDescription as Alert;
    matches!(
        reason,
        rustls::Error::AlertReceived(
            Alert::NoCertificate
                | Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::AccessDenied
                | Alert::DecryptError
                | Alert::CertificateRequired
        )
    )
}

fn tls_advice(reason: &rustls::Error, identified: bool) -> &'static str {
    use rustls::{CertificateError as Certificate, Error as Tls};
    match reason {
        reason if wants_certificate(reason) && identified => {
            "; it does not take the client certificate of --cert-dir (*.cert and *.key)"
        }
        reason if wants_certificate(reason) => {
            "; it wants a client certificate: --cert-dir names a directory with NAME.cert and NAME.key"
        }
        Tls::InvalidCertificate(Certificate::UnknownIssuer) => {
            "; its certificate is not trusted: put it, or its authority's, into a directory for --cert-dir as *.crt, or into SSL_CERT_FILE"
        }
        Tls::InvalidCertificate(Certificate::Expired | Certificate::ExpiredContext { .. }) => {
            "; its certificate has to be renewed, or this machine's clock set"
        }
        Tls::InvalidCertificate(Certificate::NotValidYet | Certificate::NotValidYetContext { .. }) => {
            "; this machine's clock may be wrong"
        }
        Tls::InvalidCertificate(Certificate::NotValidForName | Certificate::NotValidForNameContext { .. }) => {
            "; name the registry as its certificate does"
        }
        Tls::InvalidMessage(_) => "; a registry that speaks plain http needs --tls-verify=false",
        _ => "",
    }
}

/// The innermost cause, which is the one that says something ("Connection refused").
pub(super) fn deepest(error: Option<&reqwest::Error>) -> String {
    error.and_then(|error| sources(error).last()).map(|cause| format!(": {cause}")).unwrap_or_default()
}

/// As many names as a message tells, and as much of each; a name of an image has 384 characters at most.
const MOST_NAMES: usize = 10;
const LONGEST_NAME: usize = 400;

/// The first of some names, each once and in the order in which they come, and the number of the others.
pub(crate) fn list(names: &[String]) -> String {
    let mut seen = HashSet::new();
    let names: Vec<&String> = names.iter().filter(|name| seen.insert(*name)).collect();
    let shown: Vec<String> =
        names.iter().take(MOST_NAMES).map(|name| name.chars().take(LONGEST_NAME).collect()).collect();
    match names.len() {
        0 => "(none)".to_owned(),
        count if count > MOST_NAMES => format!("{} and {} more", shown.join(", "), count - MOST_NAMES),
        _ => shown.join(", "),
    }
}

/// What may be wrong with a name that leads to nothing.
fn to_check(url: &Redacted) -> &'static str {
    if url.0.contains("/manifests/") { "; check the name of the image, and its tag" } else { "" }
}

/// What to do about a host that does not answer.
fn reach(error: &Error) -> &'static str {
    match error.root() {
        Error::Transfer { source: Some(source), .. } if source.is_connect() => {
            "; check the name and the port of the registry, and whether this machine reaches it"
        }
        Error::Transfer { .. } => "; check whether this machine reaches the registry",
        _ => "",
    }
}

fn refusal(registry: &str, login: &Login) -> String {
    match login {
        Login::Known(origin) => format!("registry {registry} refused the credentials from {origin}"),
        Login::Nobody => format!("registry {registry} wants credentials, and there are none,"),
        Login::HelperFailed(failure) => {
            format!("registry {registry} wants credentials, and {} gave none,", failure.helper)
        }
    }
}

fn advice(registry: &str, login: &Login) -> String {
    match login {
        Login::Known(_) => format!("log in again with {}, or check the repository's name", login_command(registry)),
        Login::Nobody => format!("log in with {}, or check the repository's name", login_command(registry)),
        Login::HelperFailed(failure) => format!("{}; mend it, or name another file with --authfile", failure.reason),
    }
}

/// podman speaks no http to a loopback registry by itself, as crfs does.
fn login_command(registry: &str) -> String {
    let is_loopback = Url::parse(&format!("http://{registry}")).is_ok_and(|url| is_loopback(&url));
    format!("podman login {}{registry}", if is_loopback { "--tls-verify=false " } else { "" })
}

fn helper_failed(login: &Login) -> String {
    match login {
        Login::HelperFailed(failure) => format!("; {}: {}", failure.helper, failure.reason),
        Login::Nobody | Login::Known(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_shown_without_their_secrets() {
        let url = "https://user:pass@host:1/path?X-Amz-Signature=secret#part".parse().unwrap();
        assert_eq!(Redacted::of(&url).to_string(), "https://host:1/path");
    }

    #[test]
    fn a_list_of_names_has_an_end() {
        let names = |count| (0..count).map(|number| format!("t{}", number % 12)).collect::<Vec<_>>();
        assert_eq!(list(&names(0)), "(none)");
        assert_eq!(list(&names(2)), "t0, t1");
        assert!(list(&names(10)).ends_with("t8, t9"));
        assert!(list(&names(90)).ends_with("t8, t9 and 2 more"), "each counts once");
        assert_eq!(list(&["x".repeat(100_000)]), "x".repeat(LONGEST_NAME));
    }

    #[test]
    fn no_message_names_all_tags() {
        let names = || (0..90_000).map(|number| format!("t{number}")).collect::<Vec<_>>();
        let (image, left_out) = (|| "oci:/l".to_owned(), Box::default);
        let errors = [
            Error::AmbiguousLayout { image: image(), tags: names(), left_out: left_out() },
            Error::AmbiguousArchive { image: image(), count: 9, names: names() },
            Error::NoTag { image: image(), tag: "x".to_owned(), tags: names(), left_out: left_out() },
            Error::NoPlatform { image: image(), wanted: "a/b".to_owned(), available: names(), left_out: left_out() },
            Error::SharedName { image: image(), name: "x".to_owned(), owners: names() },
        ];
        for error in errors.map(|error| error.to_string()) {
            assert!(error.contains("t9 and 89990 more") && error.len() < 300, "{error}");
        }
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let error =
            Error::Unauthorized { registry: "ghcr.io".to_owned(), repository: "a/b".to_owned(), login: Login::Nobody };
        let text = error.to_string();
        assert!(text.contains("podman login ghcr.io") && text.contains("repository a/b (401)"), "{text}");
        let error = Error::Unauthorized {
            registry: "localhost:5000".to_owned(),
            repository: "a/b".to_owned(),
            login: Login::Nobody,
        };
        assert!(error.to_string().contains("podman login --tls-verify=false localhost:5000,"), "{error}");
    }
}
