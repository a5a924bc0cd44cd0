//! The commands that look without mounting: inspect, ls, cat, stat; and status.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crfs::blob::Digest;
use serde_json::Value;

use crate::image::{File, config, gzip, plain, ramp, tar};
use crate::lying::{Fault, Lie, On};
use crate::support::lab::CRFS;
use crate::support::lies::Liar;
use crate::support::registry::Access;
use crate::support::{Lab, Proxy, Registry, run};

/// `crfs COMMAND` with a cache of its own.
#[track_caller]
fn crfs(lab: &Lab, command: &str, options: &[&str], arguments: &[&str]) -> String {
    let mut crfs = Command::new(CRFS);
    crfs.arg(command).arg("--cache-dir").arg(lab.fresh("cache")).args(options).args(arguments);
    run(&mut crfs).ok()
}

/// `crfs inspect --json` and its layers.
fn inspect_with(lab: &Lab, image: &str, options: &[&str]) -> (Value, Vec<Value>) {
    let text = lab.crfs(&[&["inspect", "--json"], options, &[image]].concat()).ok();
    let json: Value = serde_json::from_str(&text).unwrap();
    let layers = json["layers"].as_array().unwrap().clone();
    (json, layers)
}

/// Of a fixture, with a cache of its own; its layers beside the digests and sizes that they must have.
fn inspect(lab: &Lab, fixture: &str, options: &[&str]) -> (Value, Vec<Value>) {
    let cache = lab.fresh("cache");
    let own = ["--cache-dir", cache.to_str().unwrap()];
    let (json, layers) = inspect_with(lab, &lab.layout(fixture), &[&own, options].concat());
    let named = |layer: &Value| (layer["digest"].as_str().unwrap().to_owned(), layer["size"].as_u64().unwrap());
    assert_eq!(layers.iter().map(named).collect::<Vec<_>>(), lab.layers(fixture));
    (json, layers)
}

#[test]
fn inspect_says_what_each_layer_is() {
    let Some(lab) = Lab::new() else { return };
    for (fixture, format) in [
        ("sink-stargz", "stargz"),
        ("sink-estargz", "estargz"),
        ("sink-estargz-ext", "estargz (external TOC)"),
        ("sink-zc-new", "zstd:chunked"),
    ] {
        let (json, layers) = inspect(&lab, fixture, &[]);
        assert!(json["digest"].as_str().unwrap().starts_with("sha256:"), "{json}");
        // The fourth has no entries.
        for layer in &layers[..3] {
            assert_eq!(layer["format"], format, "{fixture}: {layer}");
            assert_eq!(layer["lazy"], false, "below 1 MiB: {layer}");
        }
        let text = crfs(&lab, "inspect", &[], &[&lab.layout(fixture)]);
        assert!(layers.iter().all(|layer| text.contains(layer["digest"].as_str().unwrap())), "{text}");
    }
}

#[test]
fn inspect_says_why_a_layer_is_lazy_or_not() {
    let Some(lab) = Lab::new() else { return };
    let reasons = |fixture, options: &[&str]| -> Vec<_> {
        let (_, layers) = inspect(&lab, fixture, options);
        layers
            .iter()
            .map(|layer| (layer["lazy"].as_bool().unwrap(), layer["reason"].as_str().unwrap().to_owned()))
            .collect()
    };
    let (lazy, why) = &reasons("big-zc-new", &["--whole-layer-below", "0"])[0];
    assert!(*lazy && why.contains("manifest"), "{why}");
    let (lazy, why) = &reasons("big-zc-new", &[])[0];
    assert!(!lazy && why.contains("--whole-layer-below"), "{why}");
    let (lazy, why) = &reasons("big-stargz", &["--whole-layer-below", "0"])[0];
    assert!(!lazy && why.contains("vouches"), "{why}");
    let (lazy, why) = &reasons("sink-mixed", &[])[2];
    assert!(!lazy && why.contains("no table of contents"), "{why}");
}

#[test]
fn inspect_says_what_a_mount_would_wait_for() {
    const LOOK: u64 = 16 << 10;
    let Some(lab) = Lab::new() else { return };
    let whole = |layers: &[(String, u64)]| layers.iter().map(|(_, size)| size).sum::<u64>();
    for (fixture, name) in [("sink-gz", "big-gz"), ("sink-zst", "big-zst"), ("raw-tar", "late-tar")] {
        for fixture in [fixture, name] {
            let (json, layers) = inspect(&lab, fixture, &["--whole-layer-below", "0"]);
            // A look at the end of each is for a table of contents.
            let (whole, looks) = (whole(&lab.layers(fixture)), LOOK * layers.len() as u64);
            assert!(json["wait"].as_u64().unwrap() <= whole + looks, "{json}");
            let layer = &layers[0];
            let [size, wait] = ["size", "wait"].map(|field| layer[field].as_u64().unwrap());
            assert!((size..=size + LOOK).contains(&wait) && layer["index_from"] == "none", "{layer}");
            assert!(
                layer["advice"].as_str().unwrap().contains("crfs index") && layer.get("units").is_none(),
                "{layer}"
            );
        }
    }
    let (json, layers) = inspect(&lab, "big-zc-new", &["--whole-layer-below", "0"]);
    assert_eq!(json["wait"], layers[0]["wait"]);
    assert!(json["wait"].as_u64().unwrap() < whole(&lab.layers("big-zc-new")) / 2, "{json}");
    assert!(layers[0]["index_from"] == "toc" && layers[0].get("advice").is_none(), "{json}");

    let text = crfs(&lab, "inspect", &["--bandwidth", "1M"], &[&lab.layout("big-gz")]);
    assert!(text.contains("/s") && text.contains("before it is ready") && text.contains("crfs index"), "{text}");
}

#[test]
fn an_index_made_ahead_of_time_is_all_that_a_mount_needs() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    for (fixture, tree) in [("sink-gz-multi", "sink"), ("sink-mixed", "sink"), ("big-zst", "big"), ("raw-tar", "raw")] {
        let (image, cache, archive) = (registry.push(&lab, fixture), lab.fresh("cache"), lab.path("indexes.tar"));
        let dir = cache.to_str().unwrap();
        let options = ["--whole-layer-below", "0", "--cache-dir", dir];
        let text = lab
            .crfs(&[&["index", "--json", "--output", archive.to_str().unwrap()], &options[..], &[&image]].concat())
            .ok();
        let json: Value = serde_json::from_str(&text).unwrap();
        let indexes: Vec<_> =
            json["layers"].as_array().unwrap().iter().map(|layer| layer["index_size"].as_u64()).collect();
        let plain = if fixture == "sink-mixed" { vec![false, false, true, true] } else { vec![true; indexes.len()] };
        assert_eq!(indexes.iter().map(Option::is_some).collect::<Vec<_>>(), plain, "{fixture}: {json}");

        let other = lab.fresh("cache");
        fs::set_permissions(&other, fs::Permissions::from_mode(0o700)).unwrap();
        run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&other)).ok();
        lab.crfs(&["cache", "clear", "--contents", "--cache-dir", dir]).ok();
        for cache in [cache.clone(), other] {
            let proxy = Proxy::new(registry.port());
            let mount =
                lab.mount_with(&proxy.through(&image), &cache, &["--whole-layer-below", "0", "--prefetch", "none"]);
            let layers = lab.layers(fixture);
            let asked =
                layers.iter().zip(&plain).filter(|(_, plain)| **plain).map(|((digest, _), _)| proxy.blob(digest).len());
            assert_eq!(asked.sum::<usize>(), 0, "{fixture}: {:?}", proxy.blobs());
            lab.assert_equal(mount.dir(), tree, &[]);
            mount.umount().ok();
        }
        // What is indexed already is not read again.
        let proxy = Proxy::new(registry.port());
        let table = lab.crfs(&[&["index"], &options[..], &[&proxy.through(&image)]].concat()).ok();
        assert!(
            table.contains("SHARE") && table.contains(lab.layers(fixture)[2.min(indexes.len() - 1)].0.as_str()),
            "{table}"
        );
        assert!(proxy.blobs().iter().all(|asked| asked.sent < 10_000), "{:?}", proxy.blobs());
        let (_, layers) = inspect_with(&lab, &image, &options);
        assert!(layers.iter().zip(&plain).all(|(layer, plain)| !plain || layer["index_from"] == "own"), "{layers:?}");
    }
}

#[test]
fn an_index_that_cannot_be_kept_is_an_error() {
    let Some(lab) = Lab::new() else { return };
    let image = lab.layout("late-gz");
    let message = lab.crfs(&["index", "--cache-dir", "/proc/nowhere", &image]).refused();
    assert!(message.contains("--cache-dir"), "{message}");
    let cache = lab.fresh("cache");
    let message =
        lab.crfs(&["index", "--cache-dir", cache.to_str().unwrap(), "--output", "/proc/nowhere", &image]).refused();
    assert!(message.contains("/proc/nowhere"), "{message}");
}

#[test]
fn inspect_counts() {
    let Some(lab) = Lab::new() else { return };
    let (_, layers) = inspect(&lab, "big-zc-new", &["--whole-layer-below", "0"]);
    let number = |name: &str| layers[0][name].as_u64().unwrap();
    // /big and its five files; with or without the root, which has no entry.
    assert!((6..=7).contains(&number("entries")), "{layers:?}");
    let contents = 4_194_304 + 4_194_305 + 8_400_953 + 4_500_000 + 18;
    assert!(number("contents_size") >= contents && number("contents_size") < contents + 5 * 4096, "{layers:?}");
    assert!(number("units") > 4 && number("toc_size") > 0, "{layers:?}");
}

/// In the order of their spans: image, layer, request.
#[test]
fn the_log_of_an_opening_says_for_which_image_and_layer_each_request_is() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    let options = ["--whole-layer-below", "0", "--cache-dir"];
    let (image, cache) = (registry.push(&lab, "sink-mixed"), lab.fresh("cache"));
    let said = lab.crfs(&[&["-vv", "ls"], &options[..], &[cache.to_str().unwrap(), &image]].concat());
    assert!(said.good(), "{said}");
    let requests: Vec<_> = said.stderr.lines().filter(|line| line.contains(": answered")).collect();
    assert!(requests.iter().all(|line| line.contains(&format!("image{{image={image}"))), "{requests:#?}");
    assert!(requests.iter().any(|line| line.contains("/manifests/")), "{requests:#?}");
    for (number, (digest, _)) in lab.layers("sink-mixed").iter().enumerate() {
        let of_layer = format!("layer{{number={number} layer={digest}}}:http{{");
        let its: Vec<_> = requests.iter().filter(|line| line.contains(&format!("/blobs/{digest}"))).collect();
        assert!(!its.is_empty() && its.iter().all(|line| line.contains(&of_layer)), "{of_layer}: {requests:#?}");
    }
}

#[test]
fn a_config_that_is_missing_says_why() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let layer = plain(gzip(&tar(&[File { name: "file", content: ramp(9000, 1) }])));
    let image = liar.push(&[&layer]);
    liar.fault(Fault::always(On::Blobs, Lie::Status(404, Vec::new())).about(&Digest::of(&config(&[])).to_string()));
    let mount = lab.try_mount(&image, &lab.fresh("cache"), &["--whole-layer-below", "0"]);
    let message = mount.err().unwrap().refused();
    assert!(message.contains("cannot be had: ") && message.contains("(404)"), "{message}");
}

#[test]
fn ls_cat_and_stat_agree_with_the_listing() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    for image in [lab.layout("big-estargz"), registry.push(&lab, "big-estargz")] {
        let names = crfs(&lab, "ls", &[], &[&image, "/big"]);
        assert_eq!(
            names.lines().collect::<Vec<_>>(),
            ["after", "ramp-4194304", "ramp-4194305", "ramp-8400953", "zeros"]
        );
        let all = crfs(&lab, "ls", &["-R"], &[&image, "/"]);
        assert!(all.contains("ramp-8400953"), "{all}");
        let long = crfs(&lab, "ls", &["-l"], &[&image, "/big/ramp-4194305"]);
        assert!(long.contains("4194305") && long.contains("-rw-r--r--"), "{long}");
        let stat = crfs(&lab, "stat", &[], &[&image, "/big/ramp-4194305"]);
        assert!(stat.contains("4194305") && stat.contains("0644"), "{stat}");
        let mount = lab.mount(&image, &[]);
        assert_eq!(
            crfs(&lab, "cat", &[], &[&image, "/big/after"]),
            fs::read_to_string(mount.path("big/after")).unwrap()
        );
    }
}

#[test]
fn links_are_followed_inside_the_image_only() {
    let Some(lab) = Lab::new() else { return };
    let image = lab.layout("sink-zc-new");
    let mount = lab.mount(&image, &[]);
    let sh = fs::read_link(mount.path("bin/sh")).unwrap();
    assert_eq!(sh.to_str(), Some("dash"));
    let long = crfs(&lab, "ls", &["-l"], &[&image, "/bin/sh"]);
    assert!(long.contains("dash"), "{long}");
    let passwd = crfs(&lab, "cat", &[], &[&image, "/etc/../../../etc/passwd"]);
    assert_eq!(passwd, fs::read_to_string(mount.path("etc/passwd")).unwrap());
}

#[test]
fn what_is_not_there_is_said() {
    let Some(lab) = Lab::new() else { return };
    let image = lab.layout("late-zc-new");
    for command in ["ls", "cat", "stat"] {
        let cache = lab.fresh("cache");
        let message = lab.crfs(&[command, "--cache-dir", cache.to_str().unwrap(), &image, "/no/such"]).refused();
        assert!(message.contains("/no/such"), "{message}");
    }
}

#[test]
fn cat_reads_only_what_it_needs() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    for (fixture, path, bytes) in
        [("big-estargz", "/big/after", 18), ("big-zc-new", "/big/after", 18), ("big-zc-stargz", "/big/after", 18)]
    {
        let proxy = Proxy::new(registry.port());
        let image = proxy.through(&registry.push(&lab, fixture));
        let text = crfs(&lab, "cat", &["--whole-layer-below", "0"], &[&image, path]);
        assert_eq!(text.len(), bytes);
        let sent: u64 = proxy.blobs().iter().map(|asked| asked.sent).sum();
        assert!(sent < lab.layers(fixture)[0].1, "{fixture}: {sent} bytes sent");
    }
}

#[test]
fn status_tells_what_a_mount_does() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    let image = registry.push(&lab, "big-zc-new");
    let mount = lab.mount(&image, &["--whole-layer-below", "0", "--prefetch", "none"]);
    let fetched = mount.counter("fetched");
    lab.assert_equal(mount.dir(), "big", &[]);
    let status = mount.status().unwrap();
    assert!(status["image"].as_str().unwrap().contains("big-zc-new"), "{status}");
    assert!(status["digest"].as_str().unwrap().starts_with("sha256:"), "{status}");
    assert_eq!(status["frontend"], "fuse", "{status}");
    assert!(mount.counter("fetched") > fetched, "{status}");
    let contents = 4_194_304 + 4_194_305 + 8_400_953 + 18;
    assert!(mount.counter("served") >= contents, "{status}");
    assert!(mount.counter("requests") >= 2, "{status}");
    assert_eq!(mount.counter("errors"), 0, "{status}");
    assert!(status["last_error"].is_null(), "{status}");
    let text = lab.crfs(&["status"]).ok();
    assert!(text.contains(mount.dir().to_str().unwrap()), "{text}");
}

/// Nothing but the result goes to a pipe, and no control character out of an image reaches a terminal.
#[test]
fn names_of_an_image_cannot_talk_to_the_terminal() {
    let Some(lab) = Lab::new() else { return };
    let all = crfs(&lab, "ls", &["-R"], &[&lab.layout("sink-zc-new"), "/"]);
    assert!(!all.chars().any(|c| c.is_control() && c != '\n'), "a control character in the listing");
    let expected = fs::read_to_string(crate::fixtures::fixtures().join("sink.expected.jsonl")).unwrap().lines().count();
    assert!(all.lines().count() >= expected - 1, "{} lines", all.lines().count());
}

/// What the README leads with.
#[test]
fn the_demo_runs() {
    let Some(_lab) = Lab::new() else { return };
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/demo");
    let said = run(Command::new(demo).env("CRFS", CRFS)).ok();
    assert!(said.contains("$ crfs mount") && said.contains("as it should be"), "{said}");
}
