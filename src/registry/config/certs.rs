//! certs.d of containers and docker (containers-certs.d(5)).

use super::endpoint::{Certificates, Scheme};
use super::error::Error;
use super::places::Places;
use super::read;

/// The certificates of a host: of `--cert-dir`, or of the first directory that knows the host by just this name.
pub(super) fn of(places: &Places, host: &str) -> Result<Vec<Certificates>, Error> {
    if let Some(dir) = &places.cert_dir {
        return Ok(vec![Certificates::Dir(dir.clone())]);
    }
    for dir in places.certs.iter().map(|dir| dir.join(host)) {
        if read::dir(&dir)?.is_some() {
            return Ok(vec![Certificates::Dir(dir)]);
        }
    }
    Ok(Vec::new())
}

/// How a host is spoken to, and whether its certificate has to be right. `--tls-verify` wins over what the files say.
pub(super) fn scheme(places: &Places, insecure: bool, has_certificates: bool) -> (Scheme, bool) {
    match places.tls_verify {
        Some(true) => (Scheme::Https, true),
        Some(false) => (Scheme::Either, false),
        None if insecure => (Scheme::Either, false),
        // Certificates for a loopback host mean that it speaks TLS.
        None if has_certificates => (Scheme::Https, true),
        None => (Scheme::Usual, true),
    }
}
