//! `crfs explain`: what it says of a mount is what its registry has seen.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::image::{File, gzip, noise, plain, tar};
use crate::keeper::kill_for_good;
use crate::lying::{Fault, Lie, On};
use crate::support::lab::CRFS;
use crate::support::lies::Liar;
use crate::support::registry::Access;
use crate::support::{Lab, Mount, Proxy, Registry, run, until};

/// A mount that reads no layer whole unless it has to, and nothing ahead.
const LAZILY: [&str; 4] = ["--whole-layer-below", "0", "--prefetch", "none"];

const SOCI: [&str; 3] = ["--soci-v1", "--platform", "linux/amd64"];

/// `crfs explain --json`.
#[track_caller]
fn explained(arguments: &[&str]) -> Value {
    let text = run(Command::new(CRFS).args(["explain", "--json"]).args(arguments)).ok();
    serde_json::from_str(&text).unwrap()
}

#[track_caller]
fn of_mount(mount: &Mount) -> Value {
    let json = explained(&[mount.dir().to_str().unwrap()]);
    assert_eq!(json["mount"]["told"], true, "{json}");
    json
}

fn text<'a>(layer: &'a Value, field: &str) -> &'a str {
    layer[field].as_str().unwrap_or_default()
}

/// What a layer's reason and advice are to say.
struct Said {
    lazy: bool,
    reason: &'static str,
    advice: &'static str,
}

const TOC: Said = Said { lazy: true, reason: "the manifest names the digest of its table of contents", advice: "" };

#[test]
fn a_mount_says_why_and_what_its_registry_has_seen() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    let soci = Said { lazy: true, reason: "a SOCI index", advice: "" };
    let gz = Said {
        lazy: false,
        reason: "it is plain tar+gzip, with no table of contents: crfs read all",
        advice: "zstd:chunked",
    };
    let small = Said { lazy: false, reason: "smaller than --whole-layer-below", advice: "" };
    let cases: [(&str, &[&str], Said); 5] = [
        ("big-estargz", &LAZILY, TOC),
        ("big-zc-new", &LAZILY, TOC),
        ("big-soci1", &[&LAZILY[..], &SOCI].concat(), soci),
        ("big-gz", &LAZILY, gz),
        ("sink-estargz", &["--prefetch", "none"], small),
    ];
    for (fixture, options, said) in cases {
        let proxy = Proxy::new(registry.port());
        let mount = lab.mount(&proxy.through(&registry.push(&lab, fixture)), options);
        let (digest, size) = lab.layers(fixture)[0].clone();
        let json = of_mount(&mount);
        let layer = &json["layers"][0];
        assert_eq!((text(layer, "digest"), layer["size"].as_u64()), (&*digest, Some(size)));
        assert_eq!(layer["lazy"], said.lazy, "{fixture}: {layer}");
        assert!(text(layer, "reason").contains(said.reason), "{fixture}: {layer}");
        assert_eq!(layer["podman_asks"], fixture.contains("estargz") || fixture.contains("zc"), "{fixture}: {layer}");
        assert!(text(layer, "advice").contains(said.advice) && layer.get("advice").is_some() != said.advice.is_empty());
        let asked = proxy.blob(&digest);
        let seen =
            |asked: &[crate::support::proxy::Asked]| (asked.len() as u64, asked.iter().map(|one| one.sent).sum());
        let told = |of: &Value, fetched: &str| (of["requests"].as_u64().unwrap(), of[fetched].as_u64().unwrap());
        if fixture != "big-soci1" {
            // Its zTOC counts as well.
            assert_eq!(told(layer, "wait"), seen(&asked), "{fixture}: {layer}");
        }
        assert_eq!(told(&layer["since"], "fetched"), (0, 0), "{fixture}: {layer}");
        assert_eq!(
            json["wait"],
            json["layers"].as_array().unwrap().iter().map(|layer| layer["wait"].as_u64().unwrap()).sum::<u64>()
        );
        if fixture.starts_with("big") {
            assert_eq!(fs::read(mount.path("big/after")).unwrap().len(), 18);
            let since = of_mount(&mount)["layers"][0]["since"].clone();
            let before = seen(&asked);
            let all = seen(&proxy.blob(&digest));
            assert_eq!(told(&since, "fetched"), (all.0 - before.0, all.1 - before.1), "{fixture}: {since}");
            assert_eq!(all.0 > before.0, said.lazy, "{fixture}: what was read whole is in the cache");
        }
    }
}

#[test]
fn an_image_says_what_a_mount_would_do() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    let (image, cache) = (registry.push(&lab, "big-gz"), lab.fresh("cache"));
    let arguments = ["--cache-dir", cache.to_str().unwrap(), "--whole-layer-below", "0", &image];
    let (digest, size) = lab.layers("big-gz")[0].clone();
    let before = explained(&arguments);
    let layer = &before["layers"][0];
    // The end of the blob, where a table of contents would be, and then all of it.
    assert!(before["mount"].is_null() && layer["requests"] == 2, "{before}");
    assert!(layer["wait"].as_u64().unwrap() > size, "{before}");
    assert!(
        text(layer, "reason").contains("the first mount reads all of it") && layer.get("since").is_none(),
        "{layer}"
    );

    let said = lab.crfs(&[&["explain"], &arguments[..]].concat()).ok();
    let title = format!("Layer 0, {digest} (");
    assert!(said.contains(&title) && said.contains("): not lazy.\n  It is plain tar+gzip"), "{said}");
    assert!(said.contains("podman 5.1 and later never ask a layer store") && said.contains("crfs store add"), "{said}");
    assert!(said.contains("To make it better: ") && said.contains("--compression-format zstd:chunked"), "{said}");

    // An index that is cached already.
    let mount = lab.mount_with(&image, &cache, &LAZILY);
    let done = &of_mount(&mount)["layers"][0];
    assert_eq!((&done["requests"], &done["wait"]), (&layer["requests"], &layer["wait"]), "what it was said to do");
    mount.umount().ok();
    let proxy = Proxy::new(registry.port());
    let mount = lab.mount_with(&proxy.through(&image), &cache, &LAZILY);
    let json = of_mount(&mount);
    let layer = &json["layers"][0];
    assert!(layer["lazy"] == true && text(layer, "reason").contains("read whole before"), "{layer}");
    assert_eq!((&layer["requests"], &layer["wait"], proxy.blob(&digest).len()), (&0.into(), &0.into(), 0));
    let said = run(Command::new(CRFS).arg("explain").arg(mount.dir())).ok();
    assert!(
        said.contains("): lazy.\n") && said.contains("Fetched before the mount was ready: nothing; since: nothing."),
        "{said}"
    );
}

#[test]
fn a_registry_that_ignores_ranges_is_the_reason() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let layer = plain(gzip(&tar(&[File { name: "file", content: noise(2 << 20, 1) }])));
    let image = liar.push(&[&layer]);
    liar.fault(Fault::always(On::Blobs, Lie::Whole));
    let mount = lab.mount(&image, &LAZILY);
    let json = of_mount(&mount);
    let told = &json["layers"][0];
    assert!(told["lazy"] == false && text(told, "reason").contains("its host sends all of it"), "{told}");
    assert!(text(told, "advice").contains("range requests"), "{told}");
    assert_eq!(told["wait"].as_u64(), Some(liar.sent(&layer.digest())), "{told}");
}

#[test]
fn a_mount_whose_server_is_gone_is_explained_by_its_record() {
    let Some(lab) = Lab::new() else { return };
    let mut registry = Registry::new(&lab, Access::Open);
    let image = registry.push(&lab, "big-zc-new");
    let mount = lab.mount(&image, &LAZILY);
    let id = text(&mount.status().unwrap(), "id").to_owned();
    assert_eq!(explained(&[&id])["mount"]["id"], id.as_str());
    kill_for_good(&mount);
    registry.stop();
    until("the end of the server", || (mount.status()?["state"] == "dead").then_some(()));
    // Manifest and index are in the mount's own cache, which nobody has named here.
    for target in [mount.dir().to_str().unwrap(), &id] {
        let json = explained(&[target]);
        assert_eq!((&json["mount"]["told"], &json["layers"][0]["lazy"]), (&false.into(), &true.into()), "{json}");
        assert!(text(&json["layers"][0], "reason").contains(TOC.reason), "{json}");
    }
    mount.umount().ok();
    for path in [mount.dir(), Path::new("/proc"), Path::new("./nowhere")] {
        let said = run(Command::new(CRFS).arg("explain").arg(path)).refused();
        assert!(said.contains(path.file_name().unwrap().to_str().unwrap()), "{said}");
    }
}
