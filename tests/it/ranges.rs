//! Ranged reads: exactly the bytes that were asked for, however the registry breaks them off, or an error that says why not.

use std::collections::BTreeSet;
use std::time::Duration;

use crfs::blob::ByteSource as _;
use crfs::registry::{Blob, Error, Freshness, Hosts, Options};

use crate::registry::{Fault, Lasting, Lie, On, Registry, ramp};
use crate::support::{client, options, range, read, read_with, resolve, until, whole_text, within};

async fn blob_of(registry: &Registry, options: Options, bytes: &[u8]) -> Blob {
    registry.push_image("a", "1", &[bytes]);
    resolve(&client(options), &format!("{}/a:1", registry.host())).await.unwrap().layers[0].blob.clone()
}

#[tokio::test]
async fn a_range_is_one_request_over_one_connection() {
    let registry = Registry::start().await;
    let bytes = ramp(100_000);
    let blob = blob_of(&registry, options(), &bytes).await;
    for (start, end) in [(0, 1), (99_999, 100_000), (500, 70_000), (0, 100_000)] {
        assert_eq!(read(&blob, range(start, end)).await.unwrap(), bytes[start as usize..end as usize]);
    }
    assert_eq!(read(&blob, range(7, 7)).await.unwrap(), b"");
    assert_eq!(registry.requests_to("/blobs/").len(), 4);
    assert_eq!(registry.connections(), 1);
    let traffic = blob.traffic();
    assert_eq!((traffic.requests, traffic.elsewhere, traffic.bytes), (4, 0, 1 + 1 + 69_500 + 100_000));
    assert!(matches!(read(&blob, range(0, 100_001)).await, Err(Error::OutOfRange { .. })));
}

#[tokio::test]
async fn reading_at_blocks_until_all_is_there() {
    let registry = Registry::start().await;
    let bytes = ramp(10_000);
    let blob = blob_of(&registry, options(), &bytes).await;
    registry.fault(Fault::times(1, On::Blobs, Lie::Cut(5)));
    let read = tokio::task::spawn_blocking(move || blob.read_at(range(10, 9000)));
    assert_eq!(within(read).await.unwrap().unwrap(), bytes[10..9000]);
}

#[tokio::test]
async fn a_body_cut_at_any_byte_goes_on_where_it_stopped() {
    let registry = Registry::start().await;
    let bytes = ramp(70_000);
    let blob = blob_of(&registry, options(), &bytes).await;
    let kinds: [fn(usize) -> Lie; 2] = [Lie::Cut, Lie::Reset];
    for (index, at) in [0, 1, 2, 511, 4096, 65_535, 65_536, 65_537, 68_998].into_iter().enumerate() {
        let before = registry.requests_to("/blobs/").len();
        registry.fault(Fault::times(1, On::Blobs, kinds[index % 2](at)));
        assert_eq!(read(&blob, range(1000, 69_999)).await.unwrap(), bytes[1000..69_999], "cut at {at}");
        let requests = registry.requests_to("/blobs/");
        assert_eq!(requests.len(), before + 2, "cut at {at}");
        // A reset may swallow what was on its way; a cut does not.
        if index % 2 == 0 {
            assert_eq!(requests[before + 1].header("range"), Some(format!("bytes={}-69998", 1000 + at).as_str()));
        }
        assert_ne!(requests[before].connection, requests[before + 1].connection, "cut at {at}");
    }
}

#[tokio::test]
async fn a_body_cut_again_and_again_still_arrives() {
    let registry = Registry::start().await;
    let bytes = ramp(300_000);
    let blob = blob_of(&registry, options(), &bytes).await;
    registry.fault(Fault::always(On::Blobs, Lie::Cut(30_000)));
    assert_eq!(read(&blob, range(0, 300_000)).await.unwrap(), bytes);
    assert_eq!(registry.sent(&crfs::blob::Digest::of(&bytes)), 300_000);
}

#[tokio::test]
async fn a_stalled_body_and_a_silent_server_are_asked_again() {
    let registry = Registry::start().await;
    let bytes = ramp(50_000);
    let blob = blob_of(&registry, Options { io_deadline: Duration::from_secs(4), ..options() }, &bytes).await;
    registry.fault(Fault::times(1, On::Blobs, Lie::Stall(20_000)));
    registry.fault(Fault::times(1, On::Blobs, Lie::Silence));
    assert_eq!(read(&blob, range(0, 50_000)).await.unwrap(), bytes);
    assert_eq!(registry.requests_to("/blobs/").len(), 3);
}

#[tokio::test]
async fn nothing_for_the_deadline_is_an_error_that_says_what_and_where() {
    let registry = Registry::start().await;
    let storage = registry.start_sharing().await;
    let bytes = ramp(1000);
    let blob = blob_of(&registry, Options { io_deadline: Duration::from_millis(600), ..options() }, &bytes).await;
    registry.redirect_blobs_to(&storage);
    for lie in [Lie::Stall(3), Lie::Cut(0), Lie::Silence, Lie::Status(500, Vec::new())] {
        storage.clear_faults();
        storage.fault(Fault::always(On::Storage, lie));
        let error = read(&blob, range(0, 1000)).await.err().unwrap();
        let Error::NoProgress { waited, .. } = &error else { panic!("{error}") };
        assert!(*waited >= Duration::from_millis(600));
        let text = whole_text(&error);
        assert!(text.contains(&crfs::blob::Digest::of(&bytes).to_string()), "{text}");
        assert!(text.contains(&registry.host()) && !text.contains("sig="), "{text}");
    }
    storage.clear_faults();
    assert_eq!(read(&blob, range(0, 1000)).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_registry_that_is_gone_and_comes_back_is_read_again() {
    let registry = Registry::start().await;
    let bytes = ramp(1000);
    let blob = blob_of(&registry, Options { io_deadline: Duration::from_millis(400), ..options() }, &bytes).await;
    registry.go_down().await;
    assert!(read(&blob, range(0, 10)).await.err().unwrap().is_unreachable());
    registry.come_up();
    assert_eq!(read(&blob, range(0, 10)).await.unwrap(), bytes[..10]);
}

#[tokio::test]
async fn it_shows_while_the_host_that_the_bytes_come_from_asks_for_restraint() {
    let registry = Registry::start().await;
    let storage = registry.start_sharing().await;
    let bytes = ramp(1000);
    let blob = blob_of(&registry, options(), &bytes).await;
    registry.redirect_blobs_to(&storage);
    assert!(!blob.is_restrained(), "nobody was asked yet");
    read(&blob, range(0, 1)).await.unwrap();
    assert!(!blob.is_restrained());
    storage.fault(Fault::always(On::Storage, Lie::Status(429, Vec::new())));
    let reading = read(&blob, range(0, 1000));
    let watching = async {
        until(|| blob.is_restrained()).await;
        storage.clear_faults();
    };
    let (read, ()) = futures_util::future::join(reading, watching).await;
    assert_eq!(read.unwrap(), bytes);
    assert!(!blob.is_restrained(), "it answers well again");
}

#[tokio::test]
async fn clients_that_share_hosts_restrain_themselves_together() {
    let registry = Registry::start().await;
    let bytes = ramp(1000);
    registry.push_image("a", "1", &[&bytes]);
    let hosts = Hosts::default();
    let name = format!("{}/a:1", registry.host());
    let mut blobs = Vec::new();
    for _ in 0..2 {
        let image = resolve(&client(options()).with_hosts(hosts.clone()), &name).await.unwrap();
        blobs.push(image.layers[0].blob.clone());
    }
    let (one, other) = (&blobs[0], &blobs[1]);
    read(other, range(0, 1)).await.unwrap();
    registry.fault(Fault::always(On::Blobs, Lie::Status(503, Vec::new())));
    let watching = async {
        until(|| other.is_restrained()).await;
        registry.clear_faults();
    };
    let (read, ()) = futures_util::future::join(read(one, range(0, 1000)), watching).await;
    assert_eq!(read.unwrap(), bytes);
    assert!(!other.is_restrained(), "it answers well again");
}

#[tokio::test]
async fn restraint_is_honoured_and_invisible() {
    let registry = Registry::start().await;
    let bytes = ramp(1000);
    let blob = blob_of(&registry, Options { io_deadline: Duration::from_secs(6), ..options() }, &bytes).await;
    let retry_after = |value: &str| vec![("Retry-After", value.to_owned())];
    registry.fault(Fault::times(1, On::Blobs, Lie::Status(429, retry_after("0"))));
    registry.fault(Fault::times(1, On::Blobs, Lie::Status(503, retry_after("Sun, 06 Nov 1994 08:49:37 GMT"))));
    registry.fault(Fault::times(1, On::Blobs, Lie::Status(503, retry_after("99999999999999999999"))));
    assert_eq!(read(&blob, range(0, 1000)).await.unwrap(), bytes);
    assert_eq!(registry.requests_to("/blobs/").len(), 4);
}

#[tokio::test]
async fn wrong_answers_are_never_taken() {
    let registry = Registry::start().await;
    let bytes = ramp(10_000);
    let blob = blob_of(&registry, options(), &bytes).await;
    let lies = [
        Lie::ContentRange(None),
        Lie::ContentRange(Some("bytes 100-199/9999".into())),
        Lie::Multipart,
        Lie::Header("Content-Encoding", "gzip".into()),
        Lie::Status(204, Vec::new()),
    ];
    for lie in lies {
        registry.fault(Fault::always(On::Blobs, lie.clone()));
        let before = registry.requests_to("/blobs/").len();
        let error = read(&blob, range(100, 200)).await.err().unwrap();
        assert!(matches!(error.root(), Error::Protocol { .. }), "{lie:?}: {error}");
        let requests = registry.requests_to("/blobs/").split_off(before);
        let connections: BTreeSet<_> = requests.iter().map(|request| request.connection).collect();
        assert_eq!((requests.len(), connections.len()), (3, 3), "{lie:?}");
        registry.clear_faults();
        registry.fault(Fault::times(1, On::Blobs, lie.clone()));
        assert_eq!(read(&blob, range(100, 200)).await.unwrap(), bytes[100..200], "{lie:?}");
    }
}

#[tokio::test]
async fn a_range_that_is_refused_is_cut_out_of_the_whole_blob() {
    let registry = Registry::start().await;
    let storage = registry.start_sharing().await;
    let bytes = ramp(10_000);
    for status in [400, 403, 405, 416, 501] {
        let blob = blob_of(&registry, options(), &bytes).await;
        registry.fault(Fault::always(On::Blobs, Lie::RefusesRanges(status)));
        let before = registry.requests_to("/blobs/").len();
        assert_eq!(read(&blob, range(100, 200)).await.unwrap(), bytes[100..200], "{status}");
        let requests = registry.requests_to("/blobs/").split_off(before);
        let ranges: Vec<_> = requests.iter().map(|request| request.header("range").is_some()).collect();
        assert_eq!(ranges, [true, false], "{status}");
        registry.clear_faults();
        // Behind a redirect a new signature may help: it is tried first, where the old one was good before.
        let blob = blob_of(&registry, options(), &bytes).await;
        registry.redirect_blobs_to(&storage);
        assert_eq!(read(&blob, range(0, 10)).await.unwrap(), bytes[..10]);
        storage.fault(Fault::always(On::Storage, Lie::RefusesRanges(status)));
        assert_eq!(read(&blob, range(100, 200)).await.unwrap(), bytes[100..200], "{status} from storage");
        storage.clear_faults();
        registry.clear_faults();
    }
}

#[tokio::test]
async fn a_refusal_that_is_not_about_ranges_is_said_as_it_is() {
    let registry = Registry::start().await;
    let blob = blob_of(&registry, options(), &ramp(10_000)).await;
    for (status, requests) in [(403, 2), (405, 2), (404, 1)] {
        registry.fault(Fault::always(On::Blobs, Lie::Status(status, Vec::new())));
        let before = registry.requests_to("/blobs/").len();
        let error = read(&blob, range(100, 200)).await.err().unwrap();
        assert!(error.to_string().contains(&status.to_string()), "{error}");
        assert_eq!(registry.requests_to("/blobs/").len() - before, requests, "{status}");
        registry.clear_faults();
    }
}

#[tokio::test]
async fn what_a_cache_mixes_up_is_read_past_it_from_then_on() {
    let registry = Registry::start().await;
    let bytes = ramp(10_000);
    let blob = blob_of(&registry, options(), &bytes).await;
    registry.fault(Fault::always(On::Blobs, Lie::ContentRangeInCaches("bytes 0-99/10000")));
    assert_eq!(read(&blob, range(0, 100)).await.unwrap(), bytes[..100], "the range that the cache has");
    assert_eq!(read(&blob, range(100, 300)).await.unwrap(), bytes[100..300]);
    assert_eq!(read(&blob, range(500, 700)).await.unwrap(), bytes[500..700]);
    let requests = registry.requests_to("/blobs/");
    let past: Vec<_> = requests.iter().map(|request| request.header("cache-control").is_some()).collect();
    assert_eq!(past, [false, false, true, true]);
    assert_ne!(requests[1].connection, requests[2].connection);
}

#[tokio::test]
async fn a_host_that_mixes_up_ranges_is_named_at_once() {
    let registry = Registry::start().await;
    let blob = blob_of(&registry, options(), &ramp(10_000)).await;
    registry.fault(Fault::always(On::Blobs, Lie::ContentRange(Some("bytes 0-99/10000".into()))));
    let error = read(&blob, range(100, 300)).await.err().unwrap();
    let text = error.to_string();
    assert!(matches!(error.root(), Error::MixedUp { .. }), "{text}");
    assert!(
        text.contains("asked for bytes 100..300, it sends bytes 0..100") && text.contains("proxy_cache_key"),
        "{text}"
    );
    assert_eq!(registry.requests_to("/blobs/").len(), 2);
}

#[tokio::test]
async fn a_whole_body_is_taken_for_a_part_and_remembered_until_it_was_read() {
    let registry = Registry::start().await;
    let bytes = ramp(200_000);
    let blob = blob_of(&registry, options(), &bytes).await;
    assert!(!blob.is_sent_whole());
    registry.fault(Fault::always(On::Blobs, Lie::Whole));
    assert_eq!(read(&blob, range(150_000, 150_100)).await.unwrap(), bytes[150_000..150_100]);
    assert!(blob.is_sent_whole());
    assert_eq!(registry.requests_to("/blobs/").len(), 1);
    registry.fault(Fault::times(1, On::Blobs, Lie::Cut(10)));
    assert_eq!(read(&blob, range(0, 200_000)).await.unwrap(), bytes);
    assert!(!blob.is_sent_whole(), "a cache may have it now");
    registry.clear_faults();
    assert_eq!(read(&blob, range(7, 9)).await.unwrap(), bytes[7..9]);
    assert_eq!(registry.requests_to("/blobs/").last().unwrap().header("range"), Some("bytes=7-8"));
}

#[tokio::test]
async fn a_host_that_has_sent_parts_is_asked_once_more_before_all_is_taken() {
    let registry = Registry::start().await;
    let bytes = ramp(200_000);
    let blob = blob_of(&registry, options(), &bytes).await;
    assert_eq!(read(&blob, range(0, 10)).await.unwrap(), bytes[..10]);
    registry.fault(Fault::times(1, On::Blobs, Lie::Whole));
    assert_eq!(read(&blob, range(500, 510)).await.unwrap(), bytes[500..510]);
    assert!(!blob.is_sent_whole());
    registry.fault(Fault::always(On::Blobs, Lie::Whole));
    assert_eq!(read(&blob, range(500, 510)).await.unwrap(), bytes[500..510]);
    assert!(blob.is_sent_whole());
    assert_eq!(registry.requests_to("/blobs/").len(), 5);
}

#[tokio::test]
async fn a_whole_body_that_breaks_off_goes_on_but_not_for_ever() {
    let registry = Registry::start().await;
    let bytes = ramp(300_000);
    let blob = blob_of(&registry, options(), &bytes).await;
    for cut in [100_000, 200_000] {
        registry.fault(Fault::times(1, On::Blobs, Lie::WholeUntil(cut, true)));
    }
    registry.fault(Fault::times(1, On::Blobs, Lie::Whole));
    assert_eq!(read(&blob, range(0, 300_000)).await.unwrap(), bytes);
    assert_eq!(registry.requests_to("/blobs/").len(), 3);
    registry.fault(Fault::always(On::Blobs, Lie::WholeUntil(100_000, true)));
    let error = read(&blob, range(0, 300_000)).await.err().unwrap();
    assert!(error.to_string().contains("body"), "{error}");
    assert_eq!(registry.requests_to("/blobs/").len(), 3 + 4);
}

/// Wherever its bytes are, and whether or not caches may answer: nothing is asked for more often than it breaks off.
#[tokio::test]
async fn a_whole_body_goes_on_as_well_past_caches_and_behind_a_redirect() {
    for freshness in [Freshness::Any, Freshness::PastCaches] {
        for is_elsewhere in [false, true] {
            let registry = Registry::start().await;
            let storage = registry.start_sharing().await;
            if is_elsewhere {
                registry.redirect_blobs_to(&storage);
            }
            let (host, on) = if is_elsewhere { (&storage, On::Storage) } else { (&registry, On::Blobs) };
            let bytes = ramp(300_000);
            let blob = blob_of(&registry, options(), &bytes).await;
            for cut in [100_000, 200_000] {
                host.fault(Fault::times(1, on, Lie::WholeUntil(cut, true)));
            }
            host.fault(Fault::always(on, Lie::Whole));
            assert!(read_with(&blob, range(0, 300_000), freshness).await.unwrap() == bytes);
            let asked = registry.requests_to("/blobs/").len() + storage.requests().len();
            assert_eq!(asked, if is_elsewhere { 6 } else { 3 }, "{freshness:?}");
        }
    }
}

#[tokio::test]
async fn a_whole_body_of_another_size_is_not_taken() {
    let registry = Registry::start().await;
    let blob = blob_of(&registry, options(), &ramp(10_000)).await;
    registry.fault(Fault::always(On::Blobs, Lie::Status(200, Vec::new())));
    let error = read(&blob, range(0, 10)).await.err().unwrap();
    assert!(error.to_string().contains("a whole body of 0 bytes"), "{error}");
}

#[tokio::test]
async fn what_is_gone_fails_at_once() {
    let registry = Registry::start().await;
    let blob = blob_of(&registry, options(), b"0123456789").await;
    registry.fault(Fault::always(On::Blobs, Lie::Status(404, Vec::new())));
    assert!(read(&blob, range(0, 10)).await.err().unwrap().is_not_found());
    assert_eq!(registry.requests_to("/blobs/").len(), 1);
}

#[tokio::test]
async fn past_caches_says_so_and_finds_the_way_anew() {
    let registry = Registry::start().await;
    let storage = registry.start_sharing().await;
    let bytes = ramp(1000);
    let blob = blob_of(&registry, options(), &bytes).await;
    registry.redirect_blobs_to(&storage);
    storage.fault(Fault::new(On::Storage, Lasting::UntilNoCache, Lie::WrongBytes));
    assert_ne!(read(&blob, range(0, 1000)).await.unwrap(), bytes);
    assert_eq!(read_with(&blob, range(0, 1000), Freshness::PastCaches).await.unwrap(), bytes);
    assert_eq!(registry.requests_to("/blobs/").len(), 2);
    assert_eq!(storage.requests()[1].header("cache-control"), Some("no-cache"));
}
