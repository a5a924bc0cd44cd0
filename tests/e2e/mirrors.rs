//! Mounts through mirrors: while one dies, hangs or lies, and through the neighbours of a fleet.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::image::{File, noise, zstd_chunked};
use crate::lying::{Fault, Lie, On};
use crate::support::fakes::Fake;
use crate::support::lab::CRFS;
use crate::support::lies::Liar;
use crate::support::registry::Access;
use crate::support::{Lab, Mount, Registry, run, until};

const LAZILY: [&str; 4] = ["--whole-layer-below", "0", "--prefetch", "none"];

/// Of a file, and of each part of it that is fetched by itself.
const SIZE: usize = 2000 * PART;
const PART: usize = 16_384;

/// A directory of hosts.toml for one registry, with these tables of hosts and the registry last.
fn hosts(lab: &Lab, registry: &str, tables: &[String]) -> String {
    let dir = lab.fresh("hosts");
    fs::create_dir(dir.join(registry)).unwrap();
    let text = format!("server = \"http://{registry}\"\n{}", tables.concat());
    fs::write(dir.join(registry).join("hosts.toml"), text).unwrap();
    dir.to_str().unwrap().to_owned()
}

fn table(host: &str) -> String {
    format!("[host.\"http://{host}\"]\ncapabilities = [\"pull\", \"resolve\"]\ndial_timeout = \"1s\"\n")
}

fn through(hosts: &str) -> Vec<&str> {
    [&LAZILY[..], &["--hosts-dir", hosts]].concat()
}

/// What is said of one endpoint.
#[track_caller]
fn endpoint(said: &Value, host: &str) -> Value {
    let all = said["endpoints"].as_array().unwrap_or_else(|| panic!("no endpoints: {said}"));
    all.iter().find(|endpoint| endpoint["host"] == host).unwrap_or_else(|| panic!("no {host}: {said}")).clone()
}

#[track_caller]
fn told(mount: &Mount, host: &str) -> Value {
    endpoint(&mount.status().unwrap(), host)
}

fn count(of: &Value, field: &str) -> u64 {
    of[field].as_u64().unwrap_or_else(|| panic!("no {field}: {of}"))
}

#[track_caller]
fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&run(Command::new(CRFS).args(arguments)).ok()).unwrap()
}

#[test]
fn a_mirror_dies_and_comes_back_under_a_mount() {
    let Some(lab) = Lab::new() else { return };
    let (mirror, registry) = (Liar::new(), Liar::new());
    let layer = zstd_chunked(&[File { name: "file", content: noise(SIZE, 1) }], PART);
    mirror.push(&[&layer]);
    let image = registry.push(&[&layer]);
    let hosts = hosts(&lab, &registry.host(), &[table(&mirror.host())]);
    let mount = lab.mount(&image, &through(&hosts));
    let file = fs::File::open(mount.path("file")).unwrap();
    let content = noise(SIZE, 1);
    let mut at = 0;
    let mut read = || {
        let mut part = vec![0; PART];
        assert!(at < SIZE, "all of the file was read");
        file.read_exact_at(&mut part, at as u64).unwrap();
        assert!(part == content[at..at + PART], "at {at}");
        at += PART;
    };
    read();
    let (first, last) = (told(&mount, &mirror.host()), told(&mount, &registry.host()));
    assert!(first["mirror"] == true && count(&first, "asked") > 1 && count(&first, "failed") == 0, "{first}");
    assert!(last["mirror"] == false && count(&last, "asked") == 0, "{last}");

    mirror.stop();
    until("a failure of the mirror", || {
        read();
        (count(&told(&mount, &mirror.host()), "failed") > 0).then_some(())
    });
    let (first, last) = (told(&mount, &mirror.host()), told(&mount, &registry.host()));
    assert!(first["last_error"].is_string() && !first["rests"].is_null(), "{first}");
    assert!(count(&last, "asked") > 0 && count(&last, "failed") == 0, "{last}");
    let explained = json(&["explain", "--json", mount.dir().to_str().unwrap()]);
    assert!(count(&endpoint(&explained, &mirror.host()), "failed") > 0, "{explained}");

    mirror.start();
    until("an answer of the mirror", || {
        read();
        told(&mount, &mirror.host())["rests"].is_null().then_some(())
    });
    assert_eq!(mount.counter("errors"), 0);
}

#[test]
fn what_a_mirror_has_needs_no_registry_and_what_is_cached_no_mirror() {
    let Some(lab) = Lab::new() else { return };
    let (mut mirror, mut registry) = (Registry::new(&lab, Access::Open), Registry::new(&lab, Access::Open));
    mirror.push(&lab, "sink-zc-new");
    let image = registry.push(&lab, "sink-zc-new");
    let (hosts, cache) = (hosts(&lab, &registry.host(), &[table(&mirror.host())]), lab.fresh("cache"));
    registry.stop();
    let inspected = json(&["inspect", "--json", "--hosts-dir", &hosts, &image]);
    assert!(count(&endpoint(&inspected, &mirror.host()), "asked") > 0, "{inspected}");
    let mount = lab.mount_with(&image, &cache, &through(&hosts));
    lab.assert_equal(mount.dir(), "sink", &[]);
    mount.umount().ok();

    mirror.stop();
    let deadlines = ["--io-deadline", "1s", "--mount-deadline", "10s"];
    let mount = lab.mount_with(&image, &cache, &[&through(&hosts)[..], &deadlines].concat());
    lab.assert_equal(mount.dir(), "sink", &[]);
    mount.umount().ok();
    let nothing = lab.fresh("cache");
    let Err(finished) = lab.try_mount(&image, &nothing, &[&through(&hosts)[..], &deadlines].concat()) else {
        panic!("mounted from nowhere")
    };
    let said = finished.refused();
    assert!(said.contains(&registry.host()), "{said}");
}

#[test]
fn a_lying_mirror_costs_nothing_but_time() {
    let Some(lab) = Lab::new() else { return };
    let (liar, honest) = (Liar::new(), Liar::new());
    let files =
        || ["a", "b", "c", "d"].map(|name| File { name, content: noise(100_000, u64::from(name.as_bytes()[0])) });
    let layer = zstd_chunked(&files(), 10_000);
    liar.push(&[&layer]);
    let image = honest.push(&[&layer]);
    liar.fault(Fault::always(On::Blobs, Lie::WrongBytes));
    let hosts = hosts(&lab, &honest.host(), &[table(&liar.host())]);
    let mount = lab.mount(&image, &through(&hosts));
    for File { name, content } in files() {
        assert!(fs::read(mount.path(name)).unwrap() == content, "{name}");
    }
    let said = told(&mount, &liar.host());
    assert!(count(&said, "failed") > 0 && said["last_error"].as_str().unwrap().contains("wrong bytes"), "{said}");
    assert_eq!(mount.counter("errors"), 0);
}

/// dfdaemon is told the registry by a header, passes on what is no blob, and fetches blobs in large pieces.
#[test]
fn dragonfly_serves_an_image_for_its_registry() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    let image = registry.push(&lab, "big-zc-new");
    let dragonfly = Fake::dragonfly();
    // As dragonfly-client-init writes it.
    let url = dragonfly.url();
    let table = format!(
        "[host.\"{url}\"]\ncapabilities = [\"pull\", \"resolve\"]\n\
         [host.\"{url}\".header]\nX-Dragonfly-Registry = \"http://{}\"\n",
        registry.host()
    );
    let mount = lab.mount(&image, &through(&hosts(&lab, &registry.host(), &[table])));
    lab.assert_equal(mount.dir(), "big", &[]);
    let heard = dragonfly.heard();
    let header = format!("http://{}", registry.host());
    assert!(heard.iter().all(|heard| heard.header("x-dragonfly-registry") == Some(&header)), "{heard:?}");
    assert!(heard.iter().all(|heard| heard.header("authorization").is_none()), "{heard:?}");
    assert!(dragonfly.blobs().iter().any(|heard| heard.status == 206), "{heard:?}");
    // It shares with its peers what is more than a piece.
    let ranges: Vec<_> =
        dragonfly.blobs().iter().filter_map(|heard| heard.header("range").map(str::to_owned)).collect();
    let whole_pieces = |range: &String| {
        let (first, _) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')).unwrap();
        first.parse::<u64>().unwrap() % (4 << 20) == 0
    };
    assert!(!ranges.is_empty() && ranges.iter().all(whole_pieces), "{ranges:?}");
    assert_eq!(count(&told(&mount, &registry.host()), "asked"), 0, "the registry itself");
    assert_eq!(count(&told(&mount, &dragonfly.host()), "failed"), 0);
}

/// The catch-all of Dragonfly has no header: `ns` says which registry it is.
#[test]
fn dragonfly_hears_of_the_registry_by_ns() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    let image = registry.push(&lab, "sink-zc-new");
    let dragonfly = Fake::dragonfly();
    let dir = lab.fresh("hosts");
    fs::create_dir(dir.join("_default")).unwrap();
    fs::write(dir.join("_default/hosts.toml"), table(&dragonfly.host())).unwrap();
    let mount = lab.mount(&image, &through(dir.to_str().unwrap()));
    lab.assert_equal(mount.dir(), "sink", &[]);
    let heard = dragonfly.heard();
    assert!(!heard.is_empty() && heard.iter().all(|heard| heard.ns().is_some()), "{heard:?}");
    assert_eq!(count(&told(&mount, &registry.host()), "asked"), 0);
}

/// What Spegel writes into hosts.toml.
fn spegel_table(spegel: &Fake) -> String {
    format!("[host.'{}']\ncapabilities = ['pull', 'resolve']\ndial_timeout = '200ms'\n", spegel.url())
}

fn layout(lab: &Lab, fixture: &str) -> std::path::PathBuf {
    let layout = lab.dir_of(fixture);
    assert!(Path::new(&layout).join("index.json").exists());
    layout
}

#[test]
fn spegel_serves_what_its_store_has() {
    let Some(lab) = Lab::new() else { return };
    let mut registry = Registry::new(&lab, Access::Open);
    let image = registry.push(&lab, "big-zc-new");
    let spegel = Fake::spegel(layout(&lab, "big-zc-new"), &image, |_| false);
    registry.stop();
    let mount = lab.mount(&image, &through(&hosts(&lab, &registry.host(), &[spegel_table(&spegel)])));
    lab.assert_equal(mount.dir(), "big", &[]);
    let heard = spegel.heard();
    assert!(heard.iter().all(|heard| matches!(heard.status, 200 | 206)), "{heard:?}");
    assert!(heard.iter().any(|heard| heard.status == 206), "{heard:?}");
}

/// A node that has some layers, and no tag: the others come from the registry.
#[test]
fn spegel_is_passed_over_for_what_its_store_lacks() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    let image = registry.push(&lab, "sink-zc-new");
    let lacking = lab.layers("sink-zc-new")[0].0.clone();
    let lacks = lacking.clone();
    let spegel = Fake::spegel(layout(&lab, "sink-zc-new"), "nobody/knows:this", move |digest| digest == lacks);
    let mount = lab.mount(&image, &through(&hosts(&lab, &registry.host(), &[spegel_table(&spegel)])));
    lab.assert_equal(mount.dir(), "sink", &[]);
    let blobs = spegel.blobs();
    let of = |status: u16| blobs.iter().filter(|heard| heard.status == status).count();
    assert!(of(206) + of(200) > 0 && of(404) > 0, "{blobs:?}");
    assert!(blobs.iter().filter(|heard| heard.status == 404).all(|heard| heard.path.contains(&lacking)), "{blobs:?}");
    let said = told(&mount, &spegel.host());
    assert!(count(&said, "refused") > 0 && said["rests"].is_null(), "one that lacks a layer is not ill: {said}");
}
