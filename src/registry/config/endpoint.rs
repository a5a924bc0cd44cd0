//! One place where a repository may be asked for: plain data, made from the configuration, used by the client.

use std::path::PathBuf;
use std::time::Duration;

use super::super::secret::Secret;
use crate::blob::ByteRange;

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
    /// Sent with each request to it, and to nobody else.
    pub(in crate::registry) headers: Vec<(String, Secret)>,
    /// `?ns=`: whose mirror it is asked as.
    pub(in crate::registry) namespace: Option<String>,
    /// How long a connection may take.
    pub(in crate::registry) dial_timeout: Option<Duration>,
    /// Whether it says what a tag means.
    pub(in crate::registry) resolves: bool,
    /// Whether it stands for another registry.
    pub(in crate::registry) is_mirror: bool,
}

/// By this header Dragonfly's daemon is told which registry it stands for. It fetches blobs in pieces, and shares with its peers what is more than
/// one of them.
const DRAGONFLY: &str = "x-dragonfly-registry";
const PIECE: u64 = 4 << 20;

impl Endpoint {
    /// What is best asked of it for a range of a blob of `size` bytes: whole pieces, where it keeps such, and more than one.
    pub(in crate::registry) fn whole_pieces(&self, range: ByteRange, size: u64) -> ByteRange {
        if range.is_empty() || !self.keeps_pieces() {
            return range;
        }
        let start = range.start - range.start % PIECE;
        let end = range.end.div_ceil(PIECE).saturating_mul(PIECE).max(start.saturating_add(2 * PIECE)).min(size);
        // The last piece may be a short one.
        let start = if end.saturating_sub(start) > PIECE { start } else { start.saturating_sub(PIECE) };
        ByteRange { start, end }
    }

    /// Bytes that it is best asked for at a time, where it has a wish.
    pub(in crate::registry) fn wish(&self) -> Option<u64> {
        self.keeps_pieces().then_some(2 * PIECE)
    }

    fn keeps_pieces(&self) -> bool {
        self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(DRAGONFLY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(header: &str) -> Endpoint {
        Endpoint {
            registry: "m".into(),
            repository: "a".into(),
            api: "/v2".into(),
            scheme: Scheme::Http,
            verify: true,
            certificates: Vec::new(),
            headers: vec![(header.into(), Secret::new("https://r".into()))],
            namespace: None,
            dial_timeout: None,
            resolves: true,
            is_mirror: true,
        }
    }

    #[test]
    fn whole_pieces_are_asked_of_who_keeps_them() {
        let (dragonfly, other) = (endpoint("X-Dragonfly-Registry"), endpoint("X-Other"));
        let size = 9 * PIECE + 7;
        for (start, end, first, last) in [
            (0, 1, 0, 2 * PIECE),
            (PIECE - 1, PIECE + 1, 0, 2 * PIECE),
            (PIECE, 5 * PIECE, PIECE, 5 * PIECE),
            (5 * PIECE + 3, 8 * PIECE + 1, 5 * PIECE, 9 * PIECE),
            (9 * PIECE + 1, size, 8 * PIECE, size),
            (8 * PIECE, size, 8 * PIECE, size),
        ] {
            let range = ByteRange { start, end };
            assert_eq!(dragonfly.whole_pieces(range, size), ByteRange { start: first, end: last }, "{start}..{end}");
            assert_eq!(other.whole_pieces(range, size), range);
        }
        assert_eq!(dragonfly.whole_pieces(ByteRange { start: 3, end: 4 }, 10), ByteRange { start: 0, end: 10 });
        assert_eq!((dragonfly.wish(), other.wish()), (Some(2 * PIECE), None));
    }
}
