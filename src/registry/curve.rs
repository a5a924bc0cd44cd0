//! The curve that ring lacks: ECDSA signatures of P-521, as private authorities have them.

use std::sync::LazyLock;

use p521::ecdsa::signature::hazmat::PrehashVerifier as _;
use p521::ecdsa::{Signature, VerifyingKey};
use rustls::SignatureScheme;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// Bytes of a number of this curve.
const WIDTH: usize = 66;

/// A signature of P-521 over one of these hashes.
#[derive(Debug, Clone, Copy)]
enum P521 {
    Sha256,
    Sha384,
    Sha512,
}

type Algorithm = &'static dyn SignatureVerificationAlgorithm;
type Schemes = Vec<(SignatureScheme, &'static [Algorithm])>;

static OURS: [(SignatureScheme, P521); 3] = [
    (SignatureScheme::ECDSA_NISTP256_SHA256, P521::Sha256),
    (SignatureScheme::ECDSA_NISTP384_SHA384, P521::Sha384),
    (SignatureScheme::ECDSA_NISTP521_SHA512, P521::Sha512),
];

static ALGORITHMS: LazyLock<Vec<Algorithm>> = LazyLock::new(|| {
    let ours = OURS.iter().map(|(_, algorithm)| algorithm as Algorithm);
    ring::default_provider().signature_verification_algorithms.all.iter().copied().chain(ours).collect()
});

/// TLS 1.3 takes the first algorithm of a scheme alone. In TLS 1.2 the scheme names a hash, whatever the curve.
static SCHEMES: LazyLock<Schemes> = LazyLock::new(|| {
    let mut schemes: Schemes = ring::default_provider().signature_verification_algorithms.mapping.to_vec();
    for (scheme, algorithm) in &OURS {
        let known = schemes.iter_mut().find(|(known, _)| known == scheme);
        let before = known.as_ref().map_or(&[][..], |(_, algorithms)| algorithms);
        let all = [before, &[algorithm as Algorithm]].concat().leak();
        match known {
            Some((_, algorithms)) => *algorithms = all,
            None => schemes.push((*scheme, all)),
        }
    }
    schemes
});

/// ring's cryptography, and this curve.
pub(super) fn provider() -> CryptoProvider {
    let algorithms = WebPkiSupportedAlgorithms { all: &ALGORITHMS, mapping: &SCHEMES };
    CryptoProvider { signature_verification_algorithms: algorithms, ..ring::default_provider() }
}

impl P521 {
    /// The hash as a number of the curve: they are all shorter.
    fn hash(self, message: &[u8]) -> [u8; WIDTH] {
        let hash = match self {
            Self::Sha256 => Sha256::digest(message).to_vec(),
            Self::Sha384 => Sha384::digest(message).to_vec(),
            Self::Sha512 => Sha512::digest(message).to_vec(),
        };
        let mut number = [0; WIDTH];
        number.iter_mut().rev().zip(hash.iter().rev()).for_each(|(to, from)| *to = *from);
        number
    }
}

impl SignatureVerificationAlgorithm for P521 {
    fn verify_signature(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let key = VerifyingKey::from_sec1_bytes(public_key).map_err(|_| InvalidSignature)?;
        let signature = Signature::from_der(signature).map_err(|_| InvalidSignature)?;
        key.verify_prehash(&self.hash(message), &signature).map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P521
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        match self {
            Self::Sha256 => alg_id::ECDSA_SHA256,
            Self::Sha384 => alg_id::ECDSA_SHA384,
            Self::Sha512 => alg_id::ECDSA_SHA512,
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::server::ParsedCertificate;

    use super::*;

    const MESSAGE: &[u8] = b"a message";

    /// By `openssl dgst -HASH -sign` with the key of p521.pem.
    const SIGNATURES: [(P521, &str); 3] = [
        (
            P521::Sha256,
            "MIGIAkIBUhbyFy635rH5EzeCEdKod1pBaB3+PKK/WF9DDbSjWj1ZRuYNx5d6b+d3PIGObuNn7LeexKBTfGwYeKHfqk9Yr/ECQgFGt15qDBpKccIJbROnkZZCVFPORsQTlZ1UCU5Lpkhb9mnd6cw659gS9Kf7hK7ROHHxfHSKBsP9XKAL5ACJmYHBsQ==",
        ),
        (
            P521::Sha384,
            "MIGIAkIA1JcqBhtEV8wgOyinaVvcbXcnd95p1d/s6RJh1qEp42ZDFuYpDqphd2mVQ2KVvggsJqmH7G+Ny98UrvSfmnvHv50CQgGJNXECL7wZbov/on7qsgyAj1NG/Tz3HNZbrqMrqYjxyNNIL5++F+fP/cUkZGtE4INLiNnopoRsiemx5OW6viLD2A==",
        ),
        (
            P521::Sha512,
            "MIGIAkIBL8oV6NzINjwsOOTjChURS5YPdkMPz2I6WTz6xpTE2YjYAmwnDqPMdRlSmoJGcq08lL2kEfh2zVBBvcmY/94UUE8CQgH/l0Ln2xclL88I9bk2WcGadpY0hb+4dJ2Z6lvI8t0NxZoY1fGGmoXziUs+yRmDRAkT9Upq/LP+Y+i/xKjspbNt3g==",
        ),
    ];

    /// The key of p521.pem: the last bytes of what says which kind of key it is, and the key.
    fn public_key() -> Vec<u8> {
        let pem = include_bytes!("../../tests/data/tls/p521.pem");
        let certificate = CertificateDer::from_pem_slice(pem).unwrap();
        let info = ParsedCertificate::try_from(&certificate).unwrap().subject_public_key_info();
        info[info.len() - (1 + 2 * WIDTH)..].to_vec()
    }

    #[test]
    fn signatures_are_right_over_their_own_message_and_hash_alone() {
        let key = public_key();
        for (number, (algorithm, signature)) in SIGNATURES.iter().enumerate() {
            let mut signature = STANDARD.decode(signature).unwrap();
            assert!(algorithm.verify_signature(&key, MESSAGE, &signature).is_ok(), "{algorithm:?}");
            assert!(algorithm.verify_signature(&key, b"another", &signature).is_err());
            assert!(algorithm.verify_signature(&key[1..], MESSAGE, &signature).is_err());
            assert!(algorithm.verify_signature(&[], MESSAGE, &signature).is_err());
            let (other, _) = SIGNATURES[(number + 1) % SIGNATURES.len()];
            assert!(other.verify_signature(&key, MESSAGE, &signature).is_err());
            *signature.last_mut().unwrap() ^= 1;
            assert!(algorithm.verify_signature(&key, MESSAGE, &signature).is_err());
        }
    }

    #[test]
    fn all_that_ring_has_is_offered_before_this_curve() {
        let ring = ring::default_provider().signature_verification_algorithms;
        let ours = provider().signature_verification_algorithms;
        assert_eq!(ours.all.len(), ring.all.len() + OURS.len());
        let schemes = ours.supported_schemes();
        assert_eq!(schemes[..ring.mapping.len()], ring.supported_schemes());
        assert_eq!(schemes[ring.mapping.len()..], [SignatureScheme::ECDSA_NISTP521_SHA512]);
        for ((_, ring), (_, ours)) in ring.mapping.iter().zip(ours.mapping) {
            assert_eq!(ring[0].public_key_alg_id(), ours[0].public_key_alg_id(), "TLS 1.3 takes the first alone");
        }
    }
}
