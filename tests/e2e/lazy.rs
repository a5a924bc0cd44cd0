//! How little is asked for: counted at the registry, and by crfs itself.

use std::fs;

use crate::support::proxy::Asked;
use crate::support::registry::Access;
use crate::support::{Fixture, LAZY, Lab, Proxy, Registry, until};

/// A mount that reads no layer whole and nothing ahead.
const LAZILY: [&str; 4] = ["--whole-layer-below", "0", "--prefetch", "none"];

fn sent(asked: &[Asked]) -> u64 {
    asked.iter().map(|one| one.sent).sum()
}

fn options(fixture: Fixture) -> Vec<&'static str> {
    [&LAZILY, fixture.trust()].concat()
}

#[test]
fn a_mount_and_one_small_cat_ask_for_less_than_the_image() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    for &fixture in LAZY.iter().filter(|fixture| fixture.tree() == "big") {
        let proxy = Proxy::new(registry.port());
        let mount = lab.mount(&proxy.through(&registry.push(&lab, fixture.name)), &options(fixture));
        assert_eq!(fs::read(mount.path("big/after")).unwrap().len(), 18);

        let (_, size) = lab.layers(fixture.name)[0];
        let blobs = proxy.blobs();
        assert!(sent(&blobs) < size, "{}: {} bytes sent of a blob of {size}: {blobs:?}", fixture.name, sent(&blobs));
        let fetched = mount.counter("fetched");
        assert!(fetched > 0 && fetched < size, "{}: status says {fetched} of {size}", fixture.name);
    }
}

#[test]
fn a_layout_is_read_as_sparingly() {
    let Some(lab) = Lab::new() else { return };
    for &fixture in LAZY.iter().filter(|fixture| fixture.tree() == "big") {
        let mount = lab.mount(&lab.layout(fixture.name), &options(fixture));
        assert_eq!(fs::read(mount.path("big/after")).unwrap().len(), 18);
        let (_, size) = lab.layers(fixture.name)[0];
        let fetched = mount.counter("fetched");
        assert!(fetched > 0 && fetched < size, "{}: status says {fetched} of {size}", fixture.name);
    }
}

/// How often each layer was asked for while the image was mounted with these options.
fn requests_per_layer(lab: &Lab, registry: &Registry, fixture: &str, options: &[&str]) -> Vec<usize> {
    let proxy = Proxy::new(registry.port());
    let _mount = lab.mount(&proxy.through(&registry.push(lab, fixture)), options);
    lab.layers(fixture).iter().map(|(digest, _)| proxy.blob(digest).len()).collect()
}

#[test]
fn a_toc_position_in_the_manifest_saves_the_second_request() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    for fixture in ["sink-zc-new", "sink-zc-148", "sink-zc-podman43", "sink-zc-stargz"] {
        assert_eq!(requests_per_layer(&lab, &registry, fixture, &LAZILY), [1; 4], "{fixture}");
    }
}

#[test]
fn without_a_toc_position_two_requests_are_enough() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    for &fixture in LAZY.iter().filter(|fixture| fixture.name.starts_with("sink-") && fixture.name != "sink-index") {
        let requests = requests_per_layer(&lab, &registry, fixture.name, &options(fixture));
        assert!(requests.iter().all(|n| (1..=2).contains(n)), "{}: {requests:?}", fixture.name);
    }
}

#[test]
fn a_small_layer_is_one_request_and_needs_no_other_ever() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    for fixture in ["sink-estargz", "sink-stargz", "sink-zc-bare"] {
        let proxy = Proxy::new(registry.port());
        let mount = lab.mount(&proxy.through(&registry.push(&lab, fixture)), &["--prefetch", "none"]);
        lab.assert_equal(mount.dir(), "sink", &[]);
        for (digest, size) in lab.layers(fixture) {
            let asked = proxy.blob(&digest);
            assert_eq!((asked.len(), sent(&asked)), (1, size), "{fixture}: {asked:?}");
        }
    }
}

#[test]
fn reading_everything_sends_no_more_than_the_image() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    for (fixture, tree) in [("big-zc-new", "big"), ("sink-zc-new", "sink"), ("built-zc-podman43", "built")] {
        let proxy = Proxy::new(registry.port());
        let mount = lab.mount(&proxy.through(&registry.push(&lab, fixture)), &LAZILY);
        lab.assert_equal(mount.dir(), tree, &[]);
        for (digest, size) in lab.layers(fixture) {
            let asked = proxy.blob(&digest);
            assert!(sent(&asked) <= size, "{fixture}: {} bytes sent of {size}: {asked:?}", sent(&asked));
        }
    }
}

#[test]
fn prefetch_all_fetches_all_without_a_reader() {
    let Some(lab) = Lab::new() else { return };
    let mut registry = Registry::new(&lab, Access::Open);
    let image = registry.push(&lab, "big-zc-new");
    let mount = lab.mount(&image, &["--whole-layer-below", "0", "--prefetch", "all"]);
    let (_, size) = lab.layers("big-zc-new")[0];
    // Nothing says when it is done: it is once the count, more than half of the blob, has stopped.
    let (mut last, mut same) = (0, 0);
    until("the end of the prefetch", || {
        let fetched = mount.counter("fetched");
        same = if fetched == last { same + 1 } else { 0 };
        last = fetched;
        (same > 100 && fetched > size / 2).then_some(())
    });
    registry.stop();
    lab.assert_equal(mount.dir(), "big", &[]);
}
