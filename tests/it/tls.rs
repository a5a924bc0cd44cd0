//! TLS: whose certificate is taken, and what is said of one that is not.

use std::fs;

use crfs::registry::{Client, Error, Options, Places};

use crate::registry::Registry;
use crate::support::{client, options, range, read, resolve};
use crate::tls_front::{Front, pem};

async fn registry() -> Registry {
    let registry = Registry::start().await;
    registry.push_image("a", "1", &[b"0123456789"]);
    registry
}

/// A directory for --cert-dir: files, each a copy of what NAME.pem of tests/data/tls has.
fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (file, name) in files {
        fs::copy(pem(name), dir.path().join(file)).unwrap();
    }
    dir
}

/// Reads the directory when a registry is first asked.
fn client_with(dir: &tempfile::TempDir) -> Client {
    client(Options { places: Places { cert_dir: Some(dir.path().to_owned()), ..Places::default() }, ..options() })
}

async fn error(client: &Client, front: &Front) -> Error {
    resolve(client, &format!("{}/a:1", front.host())).await.err().unwrap()
}

async fn succeeds(client: &Client, front: &Front) {
    let image = resolve(client, &format!("{}/a:1", front.host())).await.unwrap();
    assert_eq!(read(&image.layers[0].blob, range(0, 2)).await.unwrap(), b"01");
}

#[tokio::test]
async fn a_registry_is_trusted_by_its_own_certificate() {
    let registry = registry().await;
    for name in ["rsa", "rsa-4096", "p256", "p384", "ed25519", "no-ca"] {
        let front = Front::start(registry.host(), &[name], None).await;
        succeeds(&client_with(&directory(&[("ca.crt", name)])), &front).await;
        let other = error(&client_with(&directory(&[("ca.crt", "other-name")])), &front).await;
        assert!(other.to_string().contains("not trusted") && other.to_string().contains("--cert-dir"), "{other}");
    }
}

#[tokio::test]
async fn a_registry_is_trusted_by_a_chain() {
    let registry = registry().await;
    let front = Front::start(registry.host(), &["leaf", "intermediate"], None).await;
    succeeds(&client_with(&directory(&[("ca.crt", "root")])), &front).await;
    let front = Front::start(registry.host(), &["leaf"], None).await;
    succeeds(&client_with(&directory(&[("one.crt", "root"), ("two.crt", "intermediate")])), &front).await;
    error(&client_with(&directory(&[("ca.crt", "root")])), &front).await;
}

#[tokio::test]
async fn a_certificate_of_another_name_is_refused_with_its_names() {
    let front = Front::start(registry().await.host(), &["other-name"], None).await;
    let error = error(&client_with(&directory(&[("ca.crt", "other-name")])), &front).await.to_string();
    for part in ["127.0.0.1", "registry.example", "name the registry as its certificate does"] {
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn a_loopback_registry_that_speaks_tls_is_not_taken_for_one_that_is_broken() {
    let registry = registry().await;
    let front = Front::start(registry.host(), &["rsa"], None).await;
    let error = error(&client(options()), &front).await;
    assert!(matches!(error.root(), Error::Handshake { .. }), "{error}");
    assert!(error.to_string().contains("not trusted"), "{error}");
    succeeds(&client(Options { places: Places { tls_verify: Some(false), ..Places::default() }, ..options() }), &front)
        .await;
    assert_eq!(registry.requests_to("/manifests/").len(), 1, "none by http");
}

#[tokio::test]
async fn a_client_certificate_that_is_wanted_is_named_at_once() {
    let registry = registry().await;
    let front = Front::start(registry.host(), &["rsa"], Some("intermediate")).await;
    let trusting = directory(&[("ca.crt", "rsa")]);
    let without = client_with(&trusting);
    let insecure = client(Options { places: Places { tls_verify: Some(false), ..Places::default() }, ..options() });
    for client in [without, insecure, client(options())] {
        let error = error(&client, &front).await;
        assert!(matches!(error.root(), Error::Handshake { identified: false, .. }), "{error}");
    }
    let with = |name| directory(&[("ca.crt", "rsa"), ("me.cert", name), ("me.key", name)]);
    let wrong = error(&client_with(&with("p256")), &front).await;
    assert!(wrong.to_string().contains("does not take the client certificate"), "{wrong}");
    assert!(registry.requests().is_empty());
    succeeds(&client_with(&with("client")), &front).await;
}
