//! Many at once: one request for all, one renewal for all, and two processes with one cache.

use std::sync::Arc;

use crate::contents::{FORMATS, Lab, Opened, open};
use crate::image::zstd_chunked;
use crate::registry::{Auth, Fault, Lie, On, Registry};
use crate::support::within;

const READERS: usize = 1000;

/// So many read the same file at once; all get what it holds.
async fn crowd(opened: &Arc<Opened>, name: &'static str, content: &[u8]) {
    let read = |opened: Arc<Opened>| tokio::spawn(async move { opened.read(name, 0, u64::MAX).await });
    let readers: Vec<_> = (0..READERS).map(|_| read(Arc::clone(opened))).collect();
    for reader in readers {
        assert!(within(reader).await.unwrap().unwrap() == content);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_readers_of_one_cold_unit_are_one_request() {
    for (format, write) in FORMATS {
        let lab = Lab::new(write).await;
        let opened = Arc::new(lab.open().await);
        let before = lab.sent().0;
        crowd(&opened, "one", lab.content("one")).await;
        assert_eq!(lab.sent().0 - before, 1, "{format}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_for_those_who_waited_and_not_for_those_who_come_later() {
    let lab = Lab::new(zstd_chunked).await;
    let opened = Arc::new(lab.open().await);
    lab.registry.fault(Fault::always(On::Blobs, Lie::Status(404, Vec::new())));
    let read = |opened: Arc<Opened>| tokio::spawn(async move { opened.read("one", 0, u64::MAX).await.is_err() });
    let readers: Vec<_> = (0..READERS).map(|_| read(Arc::clone(&opened))).collect();
    for reader in readers {
        assert!(within(reader).await.unwrap());
    }
    lab.registry.clear_faults();
    assert!(opened.read("one", 0, u64::MAX).await.unwrap() == lab.content("one"));
}

/// Readers of many units, when what they are let in with has just ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_and_a_signature_are_renewed_once_for_all_who_wait() {
    let lab = Lab::new(zstd_chunked).await;
    let (storage, tokens) = (lab.registry.start_sharing().await, lab.registry.start_sharing().await);
    lab.registry.redirect_blobs_to(&storage);
    let realm = tokens.url("/token");
    lab.registry.set_auth(Auth::Bearer { realm, user: None, refresh_token: None, expires_in: Some(3600) });
    let opened = Arc::new(lab.open().await);
    let before = (asked(&lab, &lab.registry), tokens.requests().len());
    lab.registry.expire_tokens();
    lab.registry.expire_signatures(403);
    let content = Arc::new(lab.content("many").to_vec());
    let readers: Vec<_> = (0..100)
        .map(|reader| {
            let (opened, content) = (Arc::clone(&opened), Arc::clone(&content));
            tokio::spawn(async move {
                let offset = reader * 2000;
                assert!(opened.read("many", offset as u64, 10).await.unwrap() == content[offset..offset + 10]);
            })
        })
        .collect();
    for reader in readers {
        within(reader).await.unwrap();
    }
    let after = (asked(&lab, &lab.registry), tokens.requests().len());
    // With the old token, and with the new one.
    assert_eq!((after.0 - before.0, after.1 - before.1), (2, 1));
}

fn asked(lab: &Lab, host: &Registry) -> usize {
    host.requests_to(&lab.layer.digest().to_string()).len()
}

/// Two engines on one cache directory stand for two processes: they share nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn two_processes_on_one_empty_cache_ask_for_no_unit_more_than_twice() {
    // Of stargz nothing is kept for others: no digest vouches for its table of contents.
    for (format, write) in [FORMATS[0], FORMATS[1]] {
        let lab = Lab::new(write).await;
        let (one, two) = tokio::join!(lab.open(), lab.open());
        let (_, before) = lab.sent();
        tokio::join!(lab.assert_right(&one), lab.assert_right(&two));
        let sent = lab.sent().1 - before;
        assert!(sent <= 2 * lab.layer.blob.len() as u64, "{format}: {sent} bytes");
        lab.assert_right(&lab.open().await).await;
        let (_, again) = lab.sent();
        lab.assert_right(&open(&lab.options()).await.unwrap()).await;
        assert_eq!(lab.sent().1, again, "{format}: all of it is there for a third");
    }
}
