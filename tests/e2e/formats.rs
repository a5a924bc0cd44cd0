//! Every fixture, from every source, looks exactly like its expected listing.

use crate::fixtures::{docker_archive, fixtures};
use crate::support::fixtures::tree;
use crate::support::registry::{Access, PASSWORD, USER};
use crate::support::{Fixture, LAZY, Lab, Mount, PLAIN, Registry, run};

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Nothing is read whole, and the default, by which small layers are.
const WHOLE: [&[&str]; 2] = [&["--whole-layer-below", "0"], &[]];

/// Mounts fixtures and compares. `reference` says where each is.
fn all_equal<'a>(
    lab: &Lab,
    fixtures: impl IntoIterator<Item = &'a Fixture>,
    options: &[&str],
    mut reference: impl FnMut(&'static str) -> String,
) {
    let equal = |fixture: &Fixture| {
        let compared = equal(lab, &reference(fixture.name), *fixture, options);
        compared.err().map(|failure| format!("{} {options:?}: {failure}", fixture.name))
    };
    let failures: Vec<_> = fixtures.into_iter().filter_map(equal).collect();
    assert!(failures.is_empty(), "{}:\n{}", failures.len(), failures.join("\n"));
}

/// Of each format one, for what need not be seen with all of them.
fn of_each_format() -> impl Iterator<Item = &'static Fixture> {
    let some = ["sink-stargz", "sink-estargz-ext", "sink-index", "sink-zc-bare", "twice-estargz", "big-zc-new"];
    LAZY.iter().filter(move |fixture| some.contains(&fixture.name))
}

fn equal(lab: &Lab, image: &str, fixture: Fixture, options: &[&str]) -> Result<(), String> {
    let lazy = options.contains(&"0");
    let trust = if lazy { fixture.trust() } else { &[] };
    let options = [options, trust, platform(fixture)].concat();
    let mount = lab.try_mount(image, &lab.fresh("cache"), &options).map_err(|finished| finished.to_string())?;
    lab.differences(mount.dir(), fixture.tree(), &[])
}

/// An index is asked for the platform of its listing, whatever machine this is.
fn platform(fixture: Fixture) -> &'static [&'static str] {
    if fixture.name == "sink-index" { &["--platform", "linux/amd64"] } else { &[] }
}

/// Of each kind of plain layer one, for what need not be seen with all of them.
const KINDS: [&str; 12] = [
    "big-gz",
    "gnu-zst",
    "late-zst",
    "odd-soci2-tar",
    "raw-tar",
    "sink-docker",
    "sink-gz-multi",
    "sink-mixed",
    "sink-soci1",
    "sink-soci2",
    "sink-zst-frames",
    "twice-soci2-multi",
];

/// Mounts plain fixtures with a cache each and compares: with no index; with an index and no contents; and, if `gone` gives true, again.
fn plain_equal(
    lab: &Lab,
    names: &[&'static str],
    mut reference: impl FnMut(&str) -> String,
    gone: impl FnOnce() -> bool,
) {
    let images: Vec<_> = names.iter().map(|name| (*name, reference(name), lab.fresh("cache"))).collect();
    let compare = |what: &str, options: &[&str]| {
        let differ = |(name, image, cache): &(&str, String, PathBuf)| {
            let compared = match lab.try_mount(image, cache, options) {
                Ok(mount) => lab.differences(mount.dir(), tree(name), &[]),
                Err(finished) => Err(finished.to_string()),
            };
            compared.err().map(|difference| format!("{name}, {what}: {difference}"))
        };
        let failures: Vec<_> = images.iter().filter_map(differ).collect();
        assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), images.len(), failures.join("\n"));
    };
    compare("first mount", &["--whole-layer-below", "0"]);
    for (_, _, cache) in &images {
        lab.crfs(&["cache", "clear", "--contents", "--cache-dir", cache.to_str().unwrap()]).ok();
    }
    compare("second mount", &["--whole-layer-below", "0", "--prefetch", "none"]);
    if gone() {
        compare("third mount", &["--mount-deadline", "10s", "--io-deadline", "1s"]);
    }
}

#[test]
fn every_plain_fixture_from_its_oci_layout() {
    let Some(lab) = Lab::new() else { return };
    plain_equal(&lab, PLAIN, |name| lab.layout(name), || false);
}

#[test]
fn plain_fixtures_from_a_registry_and_then_without_it() {
    let Some(lab) = Lab::new() else { return };
    let registry = RefCell::new(Registry::new(&lab, Access::Open));
    let stop = || {
        registry.borrow_mut().stop();
        true
    };
    plain_equal(&lab, &KINDS, |name| registry.borrow().push(&lab, name), stop);
}

/// Read whole because they are small, and held in memory meanwhile.
#[test]
fn plain_fixtures_by_default() {
    let Some(lab) = Lab::new() else { return };
    for name in KINDS {
        lab.assert_equal(lab.mount(&lab.layout(name), &[]).dir(), tree(name), &[]);
    }
}

#[test]
fn single_plain_layers_are_lowers_for_the_kernels_overlayfs() {
    let Some(lab) = Lab::new() else { return };
    for name in ["sink-gz-multi", "sink-mixed", "late-tar", "late-zst"] {
        for (number, _) in (0..).zip(lab.layers(name)) {
            let mount = lab.mount(&lab.layout(name), &["--layer", &number.to_string()]);
            lab.assert_equal(mount.dir(), tree(name), &["--layer", &(number + 1).to_string()]);
        }
    }
}

/// As `explain` tells it of the same mount.
#[test]
fn a_mount_says_which_layers_it_has_read_whole() {
    let Some(lab) = Lab::new() else { return };
    let cache = lab.fresh("cache");
    for said in [": 1 layer (read whole), ", ": 1 layer (lazy), 0 B fetched"] {
        let mount = lab.mount_with(&lab.layout("big-gz"), &cache, &[]);
        assert!(mount.line.contains(said), "{}", mount.line);
    }
}

/// Without --insecure-unverified-toc: the blob itself vouches for its TOC, once it was read whole.
#[test]
fn a_toc_that_nothing_else_vouches_for() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    for fixture in LAZY.iter().filter(|fixture| !fixture.vouched) {
        for image in [lab.layout(fixture.name), registry.push(&lab, fixture.name)] {
            let cache = lab.fresh("cache");
            for lazy in ["read whole", "lazy"] {
                let mount = lab.mount_with(&image, &cache, &["--whole-layer-below", "0"]);
                assert!(mount.line.contains(lazy), "{}: {}", fixture.name, mount.line);
                lab.assert_equal(mount.dir(), fixture.tree(), &[]);
            }
        }
    }
}

#[test]
fn a_docker_archive_is_mounted() {
    let Some(lab) = Lab::new() else { return };
    let archive = docker_archive();
    let cache = lab.fresh("cache");
    for name in ["", ":fixtures.invalid/sink:latest", ""] {
        let mount = lab.mount_with(&format!("docker-archive:{}{name}", archive.display()), &cache, &[]);
        lab.assert_equal(mount.dir(), "sink", &[]);
        drop(mount);
        lab.crfs(&["cache", "clear", "--contents", "--cache-dir", cache.to_str().unwrap()]).ok();
    }
}

#[test]
fn every_fixture_from_its_oci_layout() {
    let Some(lab) = Lab::new() else { return };
    for whole in WHOLE {
        all_equal(&lab, LAZY, whole, |name| lab.layout(name));
    }
}

#[test]
fn every_fixture_from_a_registry() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    all_equal(&lab, LAZY, WHOLE[0], |name| registry.push(&lab, name));
    all_equal(&lab, of_each_format(), WHOLE[1], |name| registry.push(&lab, name));
}

#[test]
fn fixtures_from_a_registry_with_a_password() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Password);
    let authfile = lab.path("auth.json");
    log_in(&registry, &authfile);
    for whole in WHOLE {
        let options = [&["--authfile", authfile.to_str().unwrap()], whole].concat();
        all_equal(&lab, of_each_format(), &options, |name| registry.push(&lab, name));
    }
}

/// As a user does it.
fn log_in(registry: &Registry, authfile: &Path) {
    let mut command = Command::new("skopeo");
    command.args(["login", "--tls-verify=false", "-u", USER, "-p", PASSWORD, "--authfile"]);
    run(command.arg(authfile).arg(registry.host())).ok();
}

#[test]
fn a_wrong_password_is_said_and_not_shown() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Password);
    let image = registry.push(&lab, "late-zc-new");
    let cache = lab.fresh("cache");
    let message = lab.try_mount(&image, &cache, &[]).err().expect("mounted without a password").refused();
    assert!(message.contains("401") || message.to_lowercase().contains("credentials"), "{message}");

    let authfile = lab.path("auth.json");
    let wrong = r#"{"auths": {"HOST": {"auth": "Y3JmczpiYWQgaG9yc2U="}}}"#.replace("HOST", &registry.host());
    std::fs::write(&authfile, wrong).unwrap();
    let options = ["--authfile", authfile.to_str().unwrap(), "-v"];
    let message = lab.try_mount(&image, &cache, &options).err().expect("mounted with a wrong password").refused();
    for secret in ["bad horse", "Y3JmczpiYWQgaG9yc2U"] {
        assert!(!message.contains(secret), "{message}");
    }
}

#[test]
fn what_skopeo_pushed_is_mounted() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    let to = format!("docker://{}/pushed/by-skopeo:v1", registry.host());
    let mut command = Command::new("skopeo");
    command.args(["copy", "--quiet", "--insecure-policy", "--preserve-digests", "--dest-tls-verify=false"]);
    run(command.arg(lab.layout("big-zc-new")).arg(&to)).ok();
    let mount = lab.mount(&to, &["--whole-layer-below", "0"]);
    lab.assert_equal(mount.dir(), "big", &[]);
}

#[test]
fn an_oci_archive_is_mounted() {
    let Some(lab) = Lab::new() else { return };
    let plain = format!("oci-archive:{}", fixtures().join("sink.oci-archive.tar").display());
    lab.assert_equal(lab.mount(&plain, &[]).dir(), "sink", &[]);
    let archive = lab.path("image.tar");
    // skopeo 1.9 would decompress and compress again what it copies into an archive: GNU tar does not.
    run(Command::new("tar").arg("-C").arg(lab.dir_of("late-zc-new")).arg("-cf").arg(&archive).arg(".")).ok();
    for tag in ["", ":latest"] {
        for whole in WHOLE {
            let mount = lab.mount(&format!("oci-archive:{}{tag}", archive.display()), whole);
            lab.assert_equal(mount.dir(), "late", &[]);
        }
    }
}

#[test]
fn an_index_gives_the_platform_that_is_asked_for() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    for image in [lab.layout("sink-index"), registry.push(&lab, "sink-index")] {
        let arm = lab.mount(&image, &["--platform", "linux/arm64"]);
        assert_eq!(std::fs::read_to_string(arm.path("etc/arch")).unwrap().trim(), "arm64");
        assert!(!arm.path("bin").exists());
        let message = lab.try_mount(&image, &lab.fresh("cache"), &["--platform", "linux/s390x"]);
        let message = message.err().expect("mounted a platform that is not there").refused();
        assert!(message.contains("s390x") && message.contains("arm64"), "{message}");
    }
    default_platform(&lab);
}

/// This machine's own, where the fixture has it.
fn default_platform(lab: &Lab) {
    let mount = lab.mount(&lab.layout("sink-index"), &[]);
    match std::env::consts::ARCH {
        "x86_64" => lab.assert_equal(mount.dir(), "sink", &[]),
        _ => assert!(mount.path("etc/arch").exists()),
    }
}

#[test]
fn the_digest_wins_over_the_tag_and_is_the_source_of_the_mount() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::new(&lab, Access::Open);
    let image = registry.push(&lab, "late-estargz");
    let digest = manifest_digest(&lab.mount(&image, &[]));
    let by_digest = image.replace(":latest", &format!(":no-such-tag@{digest}"));
    let mount = lab.mount(&by_digest, &[]);
    lab.assert_equal(mount.dir(), "late", &[]);
    assert_eq!(manifest_digest(&mount), digest);
}

/// From /proc/mounts, where the source is `name@sha256:...`, the type fuse.crfs, and the options those of every mount of crfs.
fn manifest_digest(mount: &Mount) -> String {
    let line = mount.proc_line().unwrap();
    let words: Vec<_> = line.split(' ').collect();
    assert_eq!(words[2], "fuse.crfs", "{line}");
    for option in ["ro", "nosuid", "nodev", "default_permissions"] {
        assert!(words[3].split(',').any(|have| have == option), "{option} is missing in {line}");
    }
    let (name, digest) = words[0].split_once('@').expect(&line);
    assert!(name.ends_with("/late-estargz") && digest.starts_with("sha256:"), "{line}");
    digest.to_owned()
}
