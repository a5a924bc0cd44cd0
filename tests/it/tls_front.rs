//! TLS in front of a registry: certificates of tests/data/tls, and clients that must have one of their own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// Hands on what comes by TLS. What is not TLS is hung up on.
pub(crate) struct Front {
    host: String,
    task: JoinHandle<()>,
}

pub(crate) fn pem(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls").join(name).with_extension("pem")
}

fn certificate(name: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(pem(name)).unwrap()
}

impl Front {
    /// Before `host`, as the chain says, its own certificate first; for clients alone that `clients` has signed.
    pub(crate) async fn start(host: String, chain: &[&str], clients: Option<&str>) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(certificate(authority)).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let certificates = chain.iter().map(|name| certificate(name)).collect();
        let key = PrivateKeyDer::from_pem_file(pem(chain[0])).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(certificates, key).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().to_string();
        Self { host: own, task: tokio::spawn(accept(listener, acceptor, host)) }
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, host: String) {
    while let Ok((client, _)) = listener.accept().await {
        let (acceptor, host) = (acceptor.clone(), host.clone());
        tokio::spawn(async move {
            let mut client = acceptor.accept(client).await.ok()?;
            let mut registry = TcpStream::connect(host).await.ok()?;
            tokio::io::copy_bidirectional(&mut client, &mut registry).await.ok()
        });
    }
}
