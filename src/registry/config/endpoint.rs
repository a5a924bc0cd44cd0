//! One place where a repository may be asked for: plain data, made from the configuration, used by the client.

use std::path::PathBuf;
use std::time::Duration;

/// How a host is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::registry) enum Scheme {
    /// https; a loopback host by http unless it turns out to speak TLS.
    Usual,
    Https,
    Http,
    /// https, and http where it does not speak that.
    Either,
}

/// Certificates beside the system's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::registry) enum Certificates {
    /// A directory of `*.crt`, `*.cert` and `*.key` (containers-certs.d(5)).
    Dir(PathBuf),
    /// A file of authorities.
    Authorities(PathBuf),
    /// The client's own chain, and its key; both may be in one file.
    Client(PathBuf, PathBuf),
}

/// One place where a repository may be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::registry) struct Endpoint {
    /// `HOST[:PORT]`; docker.io stands for Docker Hub. Credentials are looked up by it.
    pub(in crate::registry) registry: String,
    /// What the repository is called there.
    pub(in crate::registry) repository: String,
    /// The path of the API before the repository: `/v2`, but for hosts.toml's `override_path`. No slash at its end.
    pub(in crate::registry) api: String,
    pub(in crate::registry) scheme: Scheme,
    /// Whether its certificate has to be right.
    pub(in crate::registry) verify: bool,
    pub(in crate::registry) certificates: Vec<Certificates>,
    /// Sent with each request to it, and to nobody else. Values may be secrets.
    pub(in crate::registry) headers: Vec<(String, String)>,
    /// `?ns=`: whose mirror it is asked as.
    pub(in crate::registry) namespace: Option<String>,
    /// How long a connection may take.
    pub(in crate::registry) dial_timeout: Option<Duration>,
    /// Whether it says what a tag means.
    pub(in crate::registry) resolves: bool,
    /// Whether it stands for another registry.
    pub(in crate::registry) is_mirror: bool,
}
