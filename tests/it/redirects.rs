//! Redirects: followed by the rules, remembered, renewed once for everyone, and never told a secret.

use std::time::Duration;

use crfs::registry::{Blob, Options};

use crate::registry::{Auth, Fault, Lie, On, Registry, ramp};
use crate::support::{client, options, range, read, resolve, whole_text, within};

async fn blob_of(registry: &Registry, options: Options, bytes: &[u8]) -> Blob {
    registry.push_image("a", "1", &[bytes]);
    resolve(&client(options), &format!("{}/a:1", registry.host())).await.unwrap().layers[0].blob.clone()
}

#[tokio::test]
async fn a_target_is_remembered() {
    let registry = Registry::start().await;
    let storage = registry.start_sharing().await;
    let bytes = ramp(5000);
    let blob = blob_of(&registry, options(), &bytes).await;
    registry.redirect_blobs_to(&storage);
    for start in [0, 1000, 2000] {
        let read = read(&blob, range(start, start + 1000)).await.unwrap();
        assert_eq!(read, bytes[start as usize..start as usize + 1000]);
    }
    assert_eq!((registry.requests_to("/blobs/").len(), storage.requests().len()), (1, 3));
    assert!(storage.requests().iter().all(|request| request.is_about(&crfs::blob::Digest::of(&bytes))));
    let traffic = blob.traffic();
    assert_eq!((traffic.requests, traffic.elsewhere, traffic.bytes), (4, 3, 3000));
}

#[tokio::test]
async fn an_expired_target_is_renewed_once_for_all() {
    let registry = Registry::start().await;
    let storage = registry.start_sharing().await;
    let bytes = ramp(5000);
    let blob = blob_of(&registry, options(), &bytes).await;
    registry.redirect_blobs_to(&storage);
    read(&blob, range(0, 1)).await.unwrap();
    for (round, status) in [400, 401, 403, 410].into_iter().enumerate() {
        registry.expire_signatures(status);
        let reads = (0..64).map(|start| read(&blob, range(start, start + 100)));
        for (start, read) in futures_util::future::join_all(reads).await.into_iter().enumerate() {
            assert_eq!(read.unwrap(), bytes[start..start + 100], "{status}");
        }
        assert_eq!(registry.requests_to("/blobs/").len(), round + 2, "{status}");
    }
}

#[tokio::test]
async fn a_target_that_stays_refused_fails_after_one_renewal() {
    let registry = Registry::start().await;
    let storage = registry.start_sharing().await;
    let blob = blob_of(&registry, options(), b"0123456789").await;
    registry.redirect_blobs_to(&storage);
    read(&blob, range(0, 1)).await.unwrap();
    storage.fault(Fault::always(On::Storage, Lie::Status(403, Vec::new())));
    let error = read(&blob, range(0, 10)).await.err().unwrap();
    assert!(error.to_string().contains("403"), "{error}");
    assert!(!whole_text(&error).contains("sig="), "{error:?}");
    assert_eq!((registry.requests_to("/blobs/").len(), storage.requests().len()), (2, 3));
}

#[tokio::test]
async fn a_target_whose_host_dies_is_asked_for_anew() {
    let registry = Registry::start().await;
    let (first, second) = (registry.start_sharing().await, registry.start_sharing().await);
    let bytes = ramp(1000);
    let blob = blob_of(&registry, options(), &bytes).await;
    registry.redirect_blobs_to(&first);
    read(&blob, range(0, 1)).await.unwrap();
    first.go_down().await;
    registry.clear_faults();
    registry.redirect_blobs_to(&second);
    assert_eq!(read(&blob, range(0, 1000)).await.unwrap(), bytes);
}

/// Reads where one storage says no more than `lie` lets it say, and the registry sends to another from then on. `known`: it did well before.
async fn leave_silent_target(lie: Lie, known: bool) {
    let registry = Registry::start().await;
    let (first, second) = (registry.start_sharing().await, registry.start_sharing().await);
    let bytes = ramp(50_000);
    let blob = blob_of(&registry, Options { io_deadline: Duration::from_secs(4), ..options() }, &bytes).await;
    registry.fault(Fault::times(1, On::Blobs, Lie::Redirect(first.url("/storage/{digest}?sig={sig}"))));
    registry.redirect_blobs_to(&second);
    if known {
        read(&blob, range(0, 1)).await.unwrap();
    }
    first.fault(Fault::always(On::Storage, lie.clone()));
    assert_eq!(read(&blob, range(0, 50_000)).await.unwrap(), bytes, "{lie:?}");
    assert_eq!(first.requests().len(), 1 + usize::from(known), "{lie:?}");
    let before = registry.requests_to("/blobs/").len();
    assert_eq!(read(&blob, range(1, 2)).await.unwrap(), bytes[1..2]);
    assert_eq!(registry.requests_to("/blobs/").len(), before, "the new one is remembered");
}

#[tokio::test]
async fn a_target_that_falls_silent_is_asked_for_anew() {
    let lies = [Lie::Silence, Lie::Stall(0), Lie::Stall(100), Lie::Cut(100), Lie::Reset(0)];
    let cases = lies.into_iter().flat_map(|lie| [(lie.clone(), false), (lie, true)]);
    futures_util::future::join_all(cases.map(|(lie, known)| leave_silent_target(lie, known))).await;
}

#[tokio::test]
async fn where_not_to_go() {
    let registry = Registry::start().await;
    let blob = blob_of(&registry, options(), b"0123456789").await;
    let own = registry.url("/v2/a/blobs/{digest}");
    let targets = ["ftp://127.0.0.1/x", "file:///etc/passwd", "http://169.254.169.254/x", "http://[fe80::1]/x", &own];
    for target in targets {
        registry.clear_faults();
        registry.fault(Fault::always(On::Blobs, Lie::Redirect(target.to_owned())));
        let before = registry.requests().len();
        let error = read(&blob, range(0, 10)).await.err().unwrap();
        assert!(whole_text(&error).contains("redirects to"), "{target}: {error}");
        assert_eq!(registry.requests().len(), before + 1, "{target}");
    }
    registry.clear_faults();
    registry.fault(Fault::always(On::Blobs, Lie::Status(307, Vec::new())));
    let error = read(&blob, range(0, 10)).await.err().unwrap();
    assert!(error.to_string().contains("Location"), "{error}");
}

#[tokio::test]
async fn ten_hops_are_followed_and_eleven_are_not() {
    let registry = Registry::start().await;
    let storage = registry.start_sharing().await;
    let bytes = ramp(100);
    // Each hop goes on with another signature, so that no URL comes twice.
    let hop = Lie::Redirect(storage.url("/storage/{digest}?sig={sig}"));
    for (hops, fine) in [(9, true), (10, false)] {
        let blob = blob_of(&registry, options(), &bytes).await;
        registry.clear_faults();
        storage.clear_faults();
        registry.fault(Fault::times(1, On::Blobs, hop.clone()));
        storage.fault(Fault::times(
            hops,
            On::Storage,
            Lie::Redirect(storage.url(&format!("/storage/{}?sig={{sig}}", crfs::blob::Digest::of(&bytes)))),
        ));
        let read = read(&blob, range(0, 100)).await;
        assert_eq!(read.is_ok(), fine, "{hops}");
        assert!(fine || read.err().unwrap().to_string().contains("more than 10"));
    }
}

#[tokio::test]
async fn a_circle_between_two_hosts_is_left() {
    let registry = Registry::start().await;
    let other = registry.start_sharing().await;
    let blob = blob_of(&registry, options(), b"0123456789").await;
    registry.fault(Fault::always(On::Blobs, Lie::Redirect(other.url("/v2/a/blobs/{digest}"))));
    other.fault(Fault::always(On::Blobs, Lie::Redirect(registry.url("/v2/a/blobs/{digest}"))));
    let error = read(&blob, range(0, 10)).await.err().unwrap();
    assert!(error.to_string().contains("loop"), "{error}");
    assert_eq!(other.requests().len(), 1);
}

#[tokio::test]
async fn credentials_stay_at_their_host() {
    let registry = Registry::start().await;
    let storage = registry.start_sharing().await;
    let bytes = ramp(1000);
    registry.set_auth(Auth::Basic { user: "user".into(), password: "hunter2".into() });
    let file = crate::auth::auth_file(&registry.host(), "user", "hunter2");
    let blob = blob_of(&registry, Options { auth_files: vec![file.path().to_owned()], ..options() }, &bytes).await;
    registry.redirect_blobs_to(&storage);
    assert_eq!(read(&blob, range(0, 1000)).await.unwrap(), bytes);
    // The same host by another name is another host.
    let port = registry.host().rsplit(':').next().unwrap().to_owned();
    registry.clear_faults();
    registry.expire_signatures(403);
    let by_name = format!("http://localhost:{port}/storage/{{digest}}?sig={{sig}}");
    registry.fault(Fault::always(On::Blobs, Lie::Redirect(by_name)));
    assert_eq!(within(read(&blob, range(0, 1000))).await.unwrap(), bytes);
    let stored = registry.requests_to("/storage/").into_iter().chain(storage.requests());
    let stored: Vec<_> = stored.collect();
    assert_eq!(stored.len(), 3);
    // A challenge of a host that we were sent to is not answered.
    let phishing = vec![("WWW-Authenticate", "Basic realm=\"trust me\"".to_owned())];
    registry.fault(Fault::always(On::Storage, Lie::Status(401, phishing)));
    assert!(read(&blob, range(0, 1000)).await.is_err());
    let stored = registry.requests_to("/storage/").into_iter().chain(storage.requests());
    let stored: Vec<_> = stored.collect();
    assert!(stored.len() > 3);
    assert!(stored.iter().all(|request| request.header("authorization").is_none()), "{stored:?}");
    assert!(registry.requests_to("/blobs/").iter().all(|request| request.header("authorization").is_some()));
}
