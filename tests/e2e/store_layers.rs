//! podman's additional layer store with real podman: images that podman pulls by itself, without downloading what crfs has.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::readers::drop_caches;
use crate::store::layout;
use crate::support::lab::{CRFS, skip};
use crate::support::podman::{Podman, Store};
use crate::support::registry::{Access, PASSWORD, USER};
use crate::support::{LAZY, Lab, Proxy, Registry, busy, fixtures, run, until};

/// A podman that asks a store for layers. `None` where there is none.
fn asking(lab: &Lab) -> Option<(Store, Podman)> {
    let mut store = Store::unserved(lab)?;
    serve(&mut store);
    let podman = podman(lab, &store);
    Some((store, podman))
}

fn serve(store: &mut Store) {
    store.serve_with(&["--layers", "--whole-layer-below=0"]);
}

fn podman(lab: &Lab, store: &Store) -> Podman {
    let layers = format!("--storage-opt=overlay.additionallayerstore={}:ref", store.path("layers").display());
    Podman::new(lab, store).with(&layers)
}

/// The layers of podman's own that stand on a layer of the store, as podman has it written down.
fn lazy_layers(podman: &Podman) -> Vec<PathBuf> {
    let Ok(layers) = fs::read_dir(podman.graph().join("overlay")) else { return Vec::new() };
    let diffs = layers.map(|layer| layer.unwrap().path().join("diff"));
    diffs.filter_map(|diff| fs::read_link(diff).ok()).collect()
}

/// What the store has of images that podman pulls: the uses of each layer.
fn uses(store: &Store) -> Vec<u64> {
    let records: Value = serde_json::from_slice(&fs::read(store.path("crfs/store.json")).unwrap()).unwrap();
    let images = records["pulled"].as_array().unwrap();
    let layers = images.iter().flat_map(|image| image["layers"].as_array().unwrap());
    layers.map(|layer| layer["uses"].as_u64().unwrap()).collect()
}

/// Requests for all of a layer's blob, as podman makes them.
fn downloads(proxy: &Proxy, lab: &Lab, fixture: &str) -> usize {
    let layers = lab.layers(fixture);
    let of_layers = proxy.blobs().into_iter().filter(|asked| layers.iter().any(|(blob, _)| asked.path.ends_with(blob)));
    of_layers.filter(|asked| asked.range.is_none() && asked.sent > 0).count()
}

fn pull(podman: &Podman, image: &str) {
    podman.podman(&["pull", "-q", "--tls-verify=false", image]).ok();
}

/// The first file below a directory that has contents.
fn file_below(dir: &Path) -> Option<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().find_map(|path| {
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() { file_below(&path) } else { (metadata.is_file() && metadata.len() > 0).then_some(path) }
    })
}

/// The kernel takes the mount for one that can be written to, and all containers share its copy of a file.
#[test]
fn nobody_can_open_a_file_to_write_to_it() {
    let Some(lab) = Lab::new() else { return };
    let Some((_store, podman)) = asking(&lab) else { return };
    let registry = Registry::new(&lab, Access::Open);
    pull(&podman, &registry.push(&lab, "big-estargz"));
    let file = lazy_layers(&podman).iter().find_map(|layer| file_below(layer)).unwrap();
    let before = fs::read(&file).unwrap();
    for reads in [false, true] {
        let refused = fs::OpenOptions::new().read(reads).write(true).open(&file).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(nix::libc::EROFS), "{refused}");
    }
    fs::OpenOptions::new().write(true).truncate(true).open(&file).unwrap_err();
    drop_caches();
    assert_eq!(fs::read(&file).unwrap(), before);
}

#[test]
fn podman_pulls_what_has_a_table_of_contents_without_its_blobs() {
    let Some(lab) = Lab::new() else { return };
    let Some((store, podman)) = asking(&lab) else { return };
    let registry = Registry::new(&lab, Access::Open);
    for fixture in
        LAZY.iter().map(|fixture| fixture.name).filter(|name| is_vouched(name) && fixtures::tree(name) != "odd")
    {
        let image = registry.push(&lab, fixture);
        pull(&podman, &image);
        let layers = podman.podman(&["image", "inspect", "--format", "{{len .RootFS.Layers}}", &image]).ok();
        assert_eq!(lazy_layers(&podman).len().to_string(), layers.trim(), "{fixture}");
        {
            let mounted = podman.mount(&image);
            if let Err(differences) = lab.differences(&mounted.dir, fixtures::tree(fixture), &["--overlay"]) {
                panic!("{fixture}: {differences}");
            }
        }
        podman.podman(&["rmi", &image]).ok();
        assert!(uses(&store).iter().all(|uses| *uses == 0), "{fixture}: {:?}", uses(&store));
    }
    assert_eq!(lazy_layers(&podman), Vec::<PathBuf>::new());
}

/// Those whose tables of contents the manifest vouches for, and that are not asked for in another way.
fn is_vouched(fixture: &str) -> bool {
    LAZY.iter().any(|known| known.name == fixture && known.vouched)
}

/// A plain layer cannot be had at once, so podman pulls it: nothing waits for a full read.
#[test]
fn podman_pulls_other_layers_itself() {
    let Some(lab) = Lab::new() else { return };
    let Some((store, podman)) = asking(&lab) else { return };
    let registry = Registry::new(&lab, Access::Open);
    let image = registry.push(&lab, "big-gz");
    pull(&podman, &image);
    assert_eq!(lazy_layers(&podman), Vec::<PathBuf>::new());
    assert!(fs::metadata(store.path("layers")).unwrap().is_dir());
    let mounted = podman.mount(&image);
    lab.differences(&mounted.dir, "big", &["--overlay"]).unwrap();
}

#[test]
fn a_pulled_image_is_podmans_own() {
    let Some(lab) = Lab::new() else { return };
    let Some((mut store, podman)) = asking(&lab) else { return };
    let registry = Registry::new(&lab, Access::Open);
    let proxy = Proxy::new(registry.port());
    let image = proxy.through(&registry.push(&lab, "busy"));
    pull(&podman, &image);
    assert_eq!(podman.run(&[], &image, "echo it runs").ok(), "it runs\n");
    assert_eq!((downloads(&proxy, &lab, "busy"), lazy_layers(&podman).len(), uses(&store)), (0, 1, vec![1]));
    let dir = podman.podman(&["image", "mount", &image]).ok();
    assert!(Path::new(dir.trim()).join("bin/busybox").is_file());
    podman.podman(&["image", "umount", &image]).ok();
    // What stands on it.
    podman.start("one", &image);
    podman.podman(&["exec", "one", "/bin/busybox", "sh", "-c", "echo new > /new; rm /bin/zcat"]).ok();
    let changes = podman.podman(&["diff", "one"]).ok();
    assert!(changes.contains("A /new") && !changes.contains("busybox"), "{changes}");
    podman.podman(&["commit", "-q", "one", "localhost/committed:1"]).ok();
    assert_eq!(podman.run(&[], "localhost/committed:1", "cat /new; ls /bin/zcat || :").ok(), "new\n");
    // Its blob goes to another registry as it is.
    let other = Registry::new(&lab, Access::Open);
    let copy = format!("{}/copy:1", other.host());
    podman.podman(&["push", "-q", "--tls-verify=false", &image, &copy]).ok();
    let pushed = other.manifest("copy", "1");
    let blob = pushed["layers"][0]["digest"].as_str().unwrap().to_owned();
    assert_eq!(crfs::blob::Digest::of(&other.blob(&blob)).to_string(), blob);
    // Killed, the server is followed by another one.
    store.kill_worker();
    drop_caches();
    assert_eq!(podman.podman(&["exec", "one", "/bin/busybox", "echo", "still"]).ok(), "still\n");
    // As after a restart of the machine, and without its registry.
    podman.podman(&["rm", "-f", "-t", "0", "one"]).ok();
    store.end(Signal::SIGKILL);
    serve(&mut store);
    drop(registry);
    assert_eq!(podman.run(&[], &image, "echo it runs").ok(), "it runs\n");
    podman.podman(&["rmi", "localhost/committed:1", &image]).ok();
    assert_eq!((lazy_layers(&podman), uses(&store)), (Vec::new(), vec![0]));
    // podman fails altogether where the directory that it is told of is not there.
    store.end(Signal::SIGKILL);
    store.serve();
    assert_eq!(fs::read_dir(store.path("layers")).unwrap().count(), 0);
    podman.podman(&["images"]).ok();
}

/// One that was removed is not downloaded when it is pulled again.
#[test]
fn a_second_pull_is_lazy_again() {
    let Some(lab) = Lab::new() else { return };
    let Some((store, podman)) = asking(&lab) else { return };
    let registry = Registry::new(&lab, Access::Open);
    let proxy = Proxy::new(registry.port());
    let image = proxy.through(&registry.push(&lab, "busy"));
    for _ in 0..4 {
        pull(&podman, &image);
        assert_eq!((lazy_layers(&podman).len(), uses(&store)), (1, vec![1]));
        podman.forget_blobs();
        podman.podman(&["rmi", &image]).ok();
        assert_eq!(uses(&store), [0]);
    }
    assert_eq!(downloads(&proxy, &lab, "busy"), 0);
}

/// A registry that does not answer keeps nobody longer than it may.
#[test]
fn a_registry_that_fails_is_asked_again() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::unserved(&lab) else { return };
    store.serve_with(&["--layers", "--mount-deadline=1s"]);
    let mut registry = Registry::new(&lab, Access::Open);
    let image = registry.push(&lab, "busy");
    let (blob, _) = lab.layers("busy").remove(0);
    use base64::Engine as _;
    let encoded = base64::prelude::BASE64_STANDARD.encode(&image);
    let diff = store.path("layers").join(encoded).join(&blob).join("diff");
    registry.freeze();
    assert_eq!(fs::metadata(&diff).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    registry.thaw();
    registry.stop();
    assert_eq!(fs::metadata(&diff).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    registry.start();
    until("the layer", || fs::metadata(&diff).ok());
    assert!(fs::read_dir(store.path("layers")).unwrap().next().is_none(), "it is never listed");
    let other = diff.parent().unwrap().with_file_name(format!("sha256:{}", "0".repeat(64)));
    assert!(fs::metadata(other.join("diff")).is_err());
    assert!(fs::write(diff.with_file_name("use"), "").is_err());
    assert_eq!(uses(&store), [1]);
    assert!(fs::remove_dir(diff.parent().unwrap()).is_err());
    assert_eq!(uses(&store), [0]);
}

/// A user's own server, in the namespace of their podman: by kernel overlayfs, by fuse-overlayfs, with users of containers mapped, and by Buildah.
#[test]
fn a_user_pulls_lazily() {
    let Some(lab) = Lab::new() else { return };
    if Store::unserved(&lab).is_none() {
        return;
    }
    if !Path::new("/usr/bin/newuidmap").exists() {
        let _skipped: Option<()> = skip("there is no newuidmap: install the package uidmap");
        return;
    }
    let registry = Registry::new(&lab, Access::Open);
    let proxy = Proxy::new(registry.port());
    let image = proxy.through(&registry.push(&lab, "busy"));
    // The repository may lie where others cannot go.
    let (crfs, dir) = (lab.path("crfs"), lab.fresh("user"));
    fs::copy(CRFS, &crfs).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/support/rootless-layers.sh");
    let mut command = Command::new("sh");
    command
        .arg(script)
        .arg(&dir)
        .arg(&crfs)
        .arg(&image)
        .arg(format!("{}/copy:1", registry.host()))
        .arg(busy::FILES.to_string());
    run(&mut command).ok();
    // The one is what the push reads.
    assert!(downloads(&proxy, &lab, "busy") <= 1);
}

/// The same library as podman's, with its storage.
#[test]
fn buildah_pulls_lazily() {
    let Some(lab) = Lab::new() else { return };
    let Some((store, podman)) = asking(&lab) else { return };
    if Command::new("buildah").arg("--version").stdout(Stdio::null()).status().is_err() {
        let _skipped: Option<()> = skip("there is no buildah: install the package buildah");
        return;
    }
    let registry = Registry::new(&lab, Access::Open);
    let proxy = Proxy::new(registry.port());
    let image = proxy.through(&registry.push(&lab, "busy"));
    let script = r#"
        mkdir -p /var/lib/containers/cache && mount --bind "$3" /var/lib/containers/cache
        run() { buildah --root "$graph" --runroot "$graph/../run" --storage-driver overlay --storage-opt "overlay.additionallayerstore=$layers:ref" "$@"; }
        graph=$1 layers=$2
        container=$(run from --tls-verify=false "$4")
        root=$(run mount "$container")
        test -s "$root/bin/busybox"
        echo new > "$root/new"
        run umount "$container"
        run commit -q "$container" localhost/built:1
        run rm "$container""#;
    let blobs = lab.fresh("blobs");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation=private", "sh", "-euc", script, "sh"]).arg(podman.graph());
    run(command.arg(store.path("layers")).arg(&blobs).arg(&image)).ok();
    assert_eq!((downloads(&proxy, &lab, "busy"), lazy_layers(&podman).len(), uses(&store)), (0, 1, vec![1]));
    assert_eq!(podman.run(&[], "localhost/built:1", "cat /new; ls /bin/zcat").ok(), "new\n/bin/zcat\n");
    podman.podman(&["rmi", "-a", "-f"]).ok();
    assert_eq!(uses(&store), [0]);
}

/// As podman does it from 5.2 on: a program without arguments, by a name of its own or in a script.
fn hand_over(lab: &Lab, store: &Store, text: &str) -> std::process::Output {
    let helper = lab.fresh("helper").join("crfs-auth-helper");
    std::os::unix::fs::symlink(CRFS, &helper).unwrap();
    let mut command = Command::new(helper);
    command.arg("--root").arg(store.root()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn podman_hands_over_what_it_pulls_by() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::unserved(&lab) else { return };
    let registry = Registry::new(&lab, Access::Password);
    let image = registry.push(&lab, "busy");
    let (blob, _) = lab.layers("busy").remove(0);
    let handed = |password: &str| {
        let entry = serde_json::json!({"username": USER, "password": password});
        serde_json::json!({ &image: entry }).to_string()
    };
    assert!(hand_over(&lab, &store, &handed(PASSWORD)).status.success(), "without a server there is nothing to do");
    serve(&mut store);
    let refused = hand_over(&lab, &store, "right horse");
    assert!(!refused.status.success());
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("started by podman") && !said.contains("right horse"), "{said}");
    use base64::Engine as _;
    let diff = |name: &str| {
        let encoded = base64::prelude::BASE64_STANDARD.encode(name);
        store.path("layers").join(encoded).join(&blob).join("diff")
    };
    assert!(hand_over(&lab, &store, &handed(PASSWORD)).status.success());
    let file = store.path("crfs/auth.json");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(fs::metadata(diff(&image)).unwrap().is_dir());
    assert!(fs::write(diff(&image).with_file_name("use"), "").is_err());
    // As after a restart of the machine: what was handed over is still there.
    store.end(Signal::SIGKILL);
    store.forget_cache();
    serve(&mut store);
    let path = store.path("layers").join(base64::prelude::BASE64_STANDARD.encode(&image)).join(&blob).join("diff/bin");
    assert!(fs::read(path.join("busybox")).unwrap().len() > 1000);
    let status = store.status().unwrap();
    assert_eq!(status["pulled"], 1, "{status}");
    // Whoever asks as nobody from now on needs nothing, and nothing of it is kept.
    let nobody = serde_json::json!({ &image: {} }).to_string();
    assert!(hand_over(&lab, &store, &nobody).status.success());
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"auths\":{}}");
}

/// Whoever looks a layer up has it fetched with the credentials of the server's user.
#[test]
fn a_store_with_layers_is_shared_with_nobody() {
    let Some(lab) = Lab::new() else { return };
    let Some((store, _podman)) = asking(&lab) else { return };
    let said = store.crfs("share", &["--user", "nobody"]).refused();
    assert!(said.contains("--layers"), "{said}");
    store.add("localhost/busy:1", &layout(&lab.dir_of("busy")));
    let mut command: Command = store.command("ls");
    assert!(command.status().unwrap().success());
}
