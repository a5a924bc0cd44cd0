//! Names that leave their registry open.

use super::config::{Candidates, Configuration};
use super::reference::names_path;
use super::{Error, Places, grammar};

/// The name in what somebody typed, where it is short. With `docker://` before it, it means docker.io.
#[must_use]
pub fn short_name(text: &str) -> Option<&str> {
    let names_transport = text.contains("://") || names_path(text);
    (!names_transport && grammar::with_host(text).is_none()).then_some(text)
}

/// The images that a short name may mean, by the configuration of this machine. Blocking.
///
/// # Errors
/// Where a file cannot be read or understood, or the name is ambiguous, and that is not allowed.
pub fn candidates(places: &Places, short: &str) -> Result<Candidates, Error> {
    Ok(Configuration::read(places)?.candidates(short)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_where_no_host_stands_before_it() {
        for short in
            ["alpine", "alpine:3", "alpine@sha256:0", "a/b", "localhost", "localhost:5", "a.b", "registry/a/b:5"]
        {
            assert_eq!(short_name(short), Some(short));
        }
        for long in [
            "docker://alpine",
            "localhost/x",
            "a.b/c",
            "a:5/c",
            "[::1]/x",
            "oci:/a",
            "oci-archive:a",
            "docker-archive:/a",
        ] {
            assert_eq!(short_name(long), None, "{long}");
        }
    }
}
