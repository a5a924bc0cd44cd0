//! Whatever crfs removes, unmounts, opens or waits for: it is never somebody else's.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;

use crate::store::{derived, layout};
use crate::support::command::{Finished, ends, start};
use crate::support::lab::CRFS;
use crate::support::podman::Store;
use crate::support::{Lab, run, until};

const IMAGE: &str = "late-zc-new";

/// Runs a script in a mount namespace of its own, where `places` are empty and are root's alone or, with that mode, everybody's.
#[track_caller]
pub(crate) fn apart(lab: &Lab, places: &[(&str, &str)], script: &str) -> Finished {
    let mounts = places
        .iter()
        .map(|(place, mode)| format!("mkdir -p -m 0700 {place}; mount -t tmpfs -o mode={mode} t {place}; "));
    let crfs = r#"cp --remove-destination "$CRFS" "$LAB/crfs"; CRFS=$LAB/crfs; "#;
    let script = format!("set -e; {crfs}{}{script}", mounts.collect::<String>());
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]).env("CRFS", CRFS);
    // The repository may lie where others cannot go, or below one of the places.
    run(command.env("LAB", lab.path("")).env("IMAGE", layout(&copied(lab))))
}

#[test]
fn directories_beside_the_state_of_mounts_stay() {
    let Some(lab) = Lab::new() else { return };
    let theirs = lab.fresh("theirs");
    fs::write(theirs.join("server.log"), "mine").unwrap();
    let script = r#"
        cd /run/crfs
        mkdir -p overlay/upper/work abcd1234 bound123 empty123
        echo mine > overlay/upper/work/file; echo mine > abcd1234/server.log
        mount --bind "$LAB/theirs0" bound123
        mkdir "$LAB/mnt"
        "$CRFS" mount --cache-dir "$LAB/cache" "$IMAGE" "$LAB/mnt"
        "$CRFS" status
        kill -9 "$("$CRFS" status --json | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')"
        "$CRFS" umount "$LAB/mnt"
        "$CRFS" status
        umount bound123
        echo left: *
        cat overlay/upper/work/file abcd1234/server.log
    "#;
    let told = apart(&lab, &[("/run/crfs", "0700")], script).ok();
    assert!(told.ends_with("left: abcd1234 bound123 empty123 overlay\nmine\nmine\n"), "{told}");
    assert_eq!(fs::read_to_string(theirs.join("server.log")).unwrap(), "mine");
}

/// A registry that takes connections and says nothing.
struct Silent(TcpListener);

impl Silent {
    fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn image(&self) -> String {
        format!("{}/a:1", self.0.local_addr().unwrap())
    }
}

#[test]
fn a_mount_that_fails_leaves_the_mount_that_somebody_else_has_made_there() {
    let Some(lab) = Lab::new() else { return };
    let (registry, dir) = (Silent::new(), lab.fresh("mount"));
    let mut failing = Command::new(CRFS);
    failing.args(["mount", "--mount-deadline", "5s", "--cache-dir"]).arg(lab.fresh("cache")).arg(registry.image());
    let mut failing = start(failing.arg(&dir).stderr(Stdio::null()));
    let _asked = registry.0.accept().unwrap();
    let cache = lab.fresh("cache");
    run(Command::new(CRFS).arg("mount").arg("--cache-dir").arg(cache).arg(lab.layout(IMAGE)).arg(&dir)).ok();
    let other = crate::support::Mount::new(dir, String::new());
    // As that of another user, or of another mount namespace, which this command knows nothing of.
    let state = Path::new("/run/crfs").join(other.status().unwrap()["id"].as_str().unwrap());
    let elsewhere = PathBuf::from(format!("/run/crfs-e2e-{}", std::process::id()));
    fs::rename(&state, &elsewhere).unwrap();
    let status = ends("the end of the mount that fails", &mut failing);
    fs::rename(&elsewhere, &state).unwrap();
    assert!(!status.success() && other.is_mounted());
    lab.assert_equal(other.dir(), "late", &[]);
}

#[test]
fn a_cache_that_somebody_else_has_put_in_our_place_is_not_used() {
    let Some(lab) = Lab::new() else { return };
    let script = r#"
        victim() { setpriv --reuid 65534 --regid 65534 --clear-groups env -u HOME -u XDG_RUNTIME_DIR -u XDG_CACHE_HOME "$@"; }
        layer=v2/layers/$(printf %064d 1)/own
        mkdir -p "$LAB/home/$layer" "$LAB/home/v2/documents"
        for file in "$layer/data" "$layer/index" v2/documents/$(printf %064d 2) v2/documents/thesis; do
          echo mine > "$LAB/home/$file"
        done
        chown -R 65534:65534 "$LAB/home"
        ln -s "$LAB/home" /var/tmp/crfs-65534
        chown -h 4242:4242 /var/tmp/crfs-65534
        find "$LAB/home" | sort > "$LAB/before"
        if victim "$LAB/crfs" cache clear; then echo cleared; fi
        victim "$LAB/crfs" ls "$IMAGE" /again
        find "$LAB/home" | sort | diff "$LAB/before" -
    "#;
    let told = apart(&lab, &[("/var/tmp", "1777")], script);
    assert!(told.good() && told.stdout.contains("after") && !told.stdout.contains("cleared"), "{told}");
    assert!(told.stderr.matches("belongs to user 4242").count() == 2, "{told}");
}

#[test]
fn only_what_crfs_has_made_is_cleared_from_a_cache() {
    let Some(lab) = Lab::new() else { return };
    let cache = lab.fresh("cache");
    drop(lab.mount_with(&lab.layout(IMAGE), &cache, &["--prefetch", "all"]));
    let theirs = lab.fresh("theirs");
    let mine = [
        cache.join("v2/documents/thesis"),
        cache.join("v2/layers/work/own/data"),
        cache.join("v2/work.tmp-1"),
        theirs.join("own/data"),
    ];
    for file in &mine {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "mine").unwrap();
    }
    symlink(&theirs, cache.join("v2/layers").join("0".repeat(64))).unwrap();
    run(Command::new(CRFS).args(["cache", "clear", "--cache-dir"]).arg(&cache)).ok();
    for file in mine {
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine", "{}", file.display());
    }
}

/// Puts a FIFO in the place of a file.
fn pipe(path: &Path) {
    fs::remove_file(path).unwrap();
    mkfifo(path, Mode::S_IRWXU).unwrap();
}

fn copied(lab: &Lab) -> PathBuf {
    let dir = lab.fresh("layout");
    run(Command::new("cp").arg("-rLT").arg(lab.dir_of(IMAGE)).arg(&dir)).ok();
    dir
}

fn blobs(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir.join("blobs/sha256")).unwrap().map(|blob| blob.unwrap().path()).collect()
}

#[test]
fn nothing_is_opened_but_regular_files() {
    let Some(lab) = Lab::new() else { return };
    let (index, blob) = (copied(&lab), copied(&lab));
    pipe(&index.join("index.json"));
    blobs(&blob).iter().for_each(|path| pipe(path));
    let file = lab.path("archive");
    mkfifo(&file, Mode::S_IRWXU).unwrap();
    let archives = ["oci-archive", "docker-archive"].map(|kind| format!("{kind}:{}", file.display()));
    let cache = lab.fresh("cache");
    for image in [layout(&index), layout(&blob)].iter().chain(&archives) {
        let message = run(Command::new(CRFS).args(["ls", "--cache-dir"]).arg(&cache).arg(image)).refused();
        assert!(message.contains("not a regular file"), "{message}");
    }
    // A blob may be a symlink to a file.
    let linked = copied(&lab);
    for (number, path) in blobs(&linked).iter().enumerate() {
        let elsewhere = lab.path(format!("blob{number}"));
        fs::rename(path, &elsewhere).unwrap();
        symlink(&elsewhere, path).unwrap();
    }
    run(Command::new(CRFS).args(["ls", "--cache-dir"]).arg(&cache).arg(layout(&linked))).ok();
}

#[test]
fn images_whose_files_do_not_answer_keep_no_other_from_being_served() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut store) = Store::new(&lab) else { return };
    let dirs: Vec<_> = (1..=9).map(|number| derived(&lab, "busy", number)).collect();
    let name = |number: usize| format!("localhost/image:{number}");
    for (number, dir) in dirs.iter().enumerate() {
        store.add(&name(number), &layout(dir));
    }
    store.end(nix::sys::signal::Signal::SIGTERM);
    // All but the last of them, which is behind eight others.
    dirs.iter().take(8).flat_map(|dir| blobs(dir)).for_each(|path| pipe(&path));
    store.forget_cache();
    store.serve();
    let served = |store: &Store| {
        let list = store.list();
        list.iter()
            .filter(|image| image["served"] == json!(true))
            .map(|image| image["names"].clone())
            .collect::<Vec<_>>()
    };
    // Of the others, too, what it has of theirs.
    until("the image that can be served", || served(&store).contains(&json!([name(8)])).then_some(()));
}
