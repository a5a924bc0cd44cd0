//! TLS: whom crfs trusts, and who it is to a server.
//!
//! Trusted is a certificate that leads to an authority of the system or of `--cert-dir`, or that is itself among their
//! certificates. The latter is what most private registries have: `openssl req -x509` makes a certificate that signs
//! itself and says CA:TRUE, which webpki takes for no server's. Its name, its dates and its key count as ever.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::curve::provider;
use super::{Error, config as endpoints};
use crate::sys::{limit, outside};

/// Bytes of all that a file of certificates may have.
const LARGEST_FILE: u64 = 16 << 20;

/// What a directory of certificates holds (containers-certs.d(5)).
#[derive(Debug, Default)]
pub(super) struct Certificates {
    /// `*.crt`: authorities beside the system's, or servers' own certificates.
    trusted: Vec<CertificateDer<'static>>,
    /// The first `*.cert` with its `*.key`: the client's.
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

impl Certificates {
    /// Those of directories and files.
    ///
    /// # Errors
    /// Where one cannot be read, or its filesystem does not answer.
    pub(super) fn of(places: &[endpoints::Certificates]) -> Result<Self, Error> {
        let mut found = Self::default();
        for place in places {
            let (asked, path) = match place {
                endpoints::Certificates::Dir(path)
                | endpoints::Certificates::Authorities(path)
                | endpoints::Certificates::Client(path, _) => (place.clone(), path),
            };
            let read = limit::within(PATIENCE, move || match &asked {
                endpoints::Certificates::Dir(dir) => Self::read(dir),
                endpoints::Certificates::Authorities(file) => Ok(Self { trusted: certificates(file)?, identity: None }),
                endpoints::Certificates::Client(chain, key) => {
                    Ok(Self { trusted: Vec::new(), identity: Some((certificates(chain)?, private_key(key)?)) })
                }
            });
            let read = read.unwrap_or_else(|| Err(unreadable(path, limit::silence(PATIENCE))))?;
            found.trusted.extend(read.trusted);
            found.identity = found.identity.or(read.identity);
        }
        Ok(found)
    }

    fn read(dir: &Path) -> Result<Self, Error> {
        let entries = std::fs::read_dir(dir).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
        let entries = entries.map_err(|source| unreadable(dir, source))?;
        let mut paths: Vec<_> = entries.iter().map(std::fs::DirEntry::path).collect();
        paths.sort();
        let mut found = Self::default();
        for path in &paths {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => found.trusted.extend(certificates(path)?),
                Some("cert") if found.identity.is_none() => {
                    found.identity = Some((certificates(path)?, private_key(&path.with_extension("key"))?));
                }
                _ => {}
            }
        }
        Ok(found)
    }

    pub(super) const fn has_identity(&self) -> bool {
        self.identity.is_some()
    }
}

fn unreadable(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Setup { what: format!("reading {}", path.display()), source: Some(source.into()) }
}

/// All certificates of a PEM file.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = outside::read(path, LARGEST_FILE).map_err(|source| unreadable(path, source))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|source| unreadable(path, source))?;
    if found.is_empty() {
        return Err(unreadable(path, "it holds no certificate in PEM"));
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let pem = outside::read(path, LARGEST_FILE).map_err(|source| unreadable(path, source))?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|source| unreadable(path, source))
}

/// How TLS is spoken; without `verify`, to anybody.
pub(super) fn config(verify: bool, certificates: &Certificates) -> Result<ClientConfig, Error> {
    let failed = |source: rustls::Error| Error::Setup {
        what: "the client's certificate cannot be used".to_owned(),
        source: Some(source.into()),
    };
    let provider = Arc::new(provider());
    let algorithms = provider.signature_verification_algorithms;
    let trusted = if verify { Some(Trusted::with(&certificates.trusted)?) } else { None };
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(failed)?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Verifier { trusted, algorithms }));
    match &certificates.identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain.clone(), key.clone_key()).map_err(failed),
        None => Ok(builder.with_no_client_auth()),
    }
}

/// How long the system's certificates may take to be read, and those of `--cert-dir`.
const PATIENCE: Duration = Duration::from_secs(10);
const SILENT: &str = "the system's certificates cannot be read: what they are in (see SSL_CERT_FILE and SSL_CERT_DIR) is no file, or its filesystem does \
                      not answer";

/// Who is trusted.
#[derive(Debug)]
struct Trusted {
    authorities: RootCertStore,
    certificates: HashSet<CertificateDer<'static>>,
}

impl Trusted {
    /// The system's, and these.
    fn with(own: &[CertificateDer<'static>]) -> Result<Self, Error> {
        let setup = |what: &str, source| Error::Setup { what: what.to_owned(), source };
        // SSL_CERT_FILE and SSL_CERT_DIR may name what never answers.
        let system = limit::within(PATIENCE, rustls_native_certs::load_native_certs);
        let mut system = system.ok_or_else(|| setup(SILENT, None))?;
        let mut authorities = RootCertStore::empty();
        // The system's may have some that nobody can read.
        let (_taken, _ignored) = authorities.add_parsable_certificates(system.certs.iter().cloned());
        for certificate in own {
            let added = authorities.add(certificate.clone());
            added.map_err(|source| setup("a certificate of --cert-dir cannot be used", Some(source.into())))?;
        }
        if authorities.is_empty() {
            let source = system.errors.pop().map(Into::into);
            return Err(setup("the system has no certificates; install ca-certificates, or give --cert-dir", source));
        }
        let certificates = system.certs.into_iter().chain(own.iter().cloned()).collect();
        Ok(Self { authorities, certificates })
    }

    fn holds(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let is_there = self.certificates.contains(certificate);
        if is_there { Ok(()) } else { Err(CertificateError::UnknownIssuer.into()) }
    }
}

/// Without `trusted`, everybody is.
#[derive(Debug)]
struct Verifier {
    trusted: Option<Trusted>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Whether all that is wrong is who has signed a certificate: its dates are looked at before that.
fn is_of_no_authority(error: &rustls::Error) -> bool {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => true,
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
            matches!(other.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
        }
        _ => false,
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(trusted) = &self.trusted else { return Ok(ServerCertVerified::assertion()) };
        let parsed = ParsedCertificate::try_from(certificate)?;
        let (authorities, algorithms) = (&trusted.authorities, self.algorithms.all);
        match verify_server_cert_signed_by_trust_anchor(&parsed, authorities, intermediates, now, algorithms) {
            Err(error) if is_of_no_authority(&error) => trusted.holds(certificate)?,
            verified => verified?,
        }
        verify_server_name(&parsed, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match &self.trusted {
            Some(_) => verify_tls12_signature(message, certificate, signed, &self.algorithms),
            None => Ok(HandshakeSignatureValid::assertion()),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match &self.trusted {
            Some(_) => verify_tls13_signature(message, certificate, signed, &self.algorithms),
            None => Ok(HandshakeSignatureValid::assertion()),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    macro_rules! pem {
        ($name:literal) => {
            CertificateDer::from_pem_slice(include_bytes!(concat!("../../tests/data/tls/", $name, ".pem"))).unwrap()
        };
    }

    /// In the life of all of them.
    const NOW: u64 = 2_000_000_000;
    const TOO_LATE: u64 = 9_000_000_000;

    type Certificate = CertificateDer<'static>;

    fn verify(trusted: &[Certificate], chain: &[Certificate], name: &str, now: u64) -> Result<(), rustls::Error> {
        let mut authorities = RootCertStore::empty();
        trusted.iter().for_each(|certificate| authorities.add(certificate.clone()).unwrap());
        let trusted = Trusted { authorities, certificates: trusted.iter().cloned().collect() };
        let algorithms = provider().signature_verification_algorithms;
        let verifier = Verifier { trusted: Some(trusted), algorithms };
        let (server, intermediates) = chain.split_first().unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        verifier.verify_server_cert(server, intermediates, &name, &[], now).map(drop)
    }

    #[test]
    fn a_server_is_trusted_whose_own_certificate_is_there() {
        let own = [
            pem!("rsa"),
            pem!("rsa-4096"),
            pem!("p256"),
            pem!("p384"),
            pem!("p521"),
            pem!("p521-sha256"),
            pem!("ed25519"),
            pem!("no-ca"),
        ];
        for (number, certificate) in own.iter().enumerate() {
            let chain = [certificate.clone()];
            for name in ["localhost", "127.0.0.1"] {
                assert_eq!(verify(&own, &chain, name, NOW), Ok(()), "{number} {name}");
            }
            let others: Vec<_> = own.iter().filter(|other| *other != certificate).cloned().collect();
            let unknown = verify(&others, &chain, "localhost", NOW);
            assert_eq!(unknown, Err(CertificateError::UnknownIssuer.into()), "{number} is not there");
        }
    }

    #[test]
    fn the_name_and_the_dates_of_a_certificate_count_also_where_it_is_there() {
        for certificate in [pem!("rsa"), pem!("no-ca"), pem!("leaf")] {
            let own = [certificate];
            let error = verify(&own, &own, "registry.example", NOW).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("registry.example") && text.contains("localhost"), "{text}");
            let error = verify(&own, &own, "localhost", TOO_LATE).unwrap_err().to_string();
            assert!(error.contains("expired"), "{error}");
            assert!(verify(&own, &own, "localhost", 0).unwrap_err().to_string().contains("not valid yet"));
        }
        let other_name = [pem!("other-name")];
        assert_eq!(verify(&other_name, &other_name, "registry.example", NOW), Ok(()));
        assert!(verify(&other_name, &other_name, "localhost", NOW).is_err());
    }

    #[test]
    fn a_chain_leads_to_what_is_there() {
        let chain = [pem!("leaf"), pem!("intermediate")];
        assert_eq!(verify(&[pem!("root")], &chain, "localhost", NOW), Ok(()));
        assert_eq!(verify(&[pem!("intermediate")], &chain[..1], "localhost", NOW), Ok(()));
        assert_eq!(verify(&[pem!("leaf")], &chain[..1], "localhost", NOW), Ok(()), "itself");
        assert!(verify(&[pem!("root")], &chain[..1], "localhost", NOW).is_err(), "its intermediate is missing");
        assert!(verify(&[pem!("p521")], &chain, "localhost", NOW).is_err(), "another root");
        let client = verify(&[pem!("intermediate")], &[pem!("client")], "localhost", NOW);
        assert!(client.is_err(), "a client's certificate");
    }

    #[test]
    fn what_a_directory_holds_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        put("ca.crt", include_bytes!("../../tests/data/tls/root.pem"));
        put("README", b"not a certificate");
        put("me.cert", include_bytes!("../../tests/data/tls/client.pem"));
        let missing = Certificates::read(dir.path()).unwrap_err().to_string();
        assert!(missing.contains("me.key"), "{missing}");
        put("me.key", include_bytes!("../../tests/data/tls/client.pem"));
        let certificates = Certificates::read(dir.path()).unwrap();
        assert!(certificates.trusted == [pem!("root")] && certificates.has_identity());
        assert!(config(true, &certificates).unwrap().client_auth_cert_resolver.has_certs());
        put("broken.crt", b"not a certificate");
        let broken = Certificates::read(dir.path()).unwrap_err();
        assert!(broken.to_string().contains("broken.crt"), "{broken}");
    }
}
