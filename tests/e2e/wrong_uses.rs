//! What people do wrong, or find broken: each time crfs says what happened and what to do, and ends with the right status.
//!
//! A row is a script of sh(1). It runs in a mount namespace and a directory of its own, with these variables:
//!
//! | variable | what |
//! |---|---|
//! | CRFS, MOUNT | the program; `crfs mount` with a cache of its own |
//! | FSTAB | mount(8) with a line of fstab: `$FSTAB IMAGE OPTIONS [DIR [TYPE]]` |
//! | IMAGE, LAYOUT, ARCHIVE | `oci:` of a layout, its directory, and a docker archive |
//! | HOST, LOCKED | a registry with the image `late-zc-new`; the same, with a password |
//! | TLS | a registry with an expired certificate |
//! | NOBODY | loopback and a port that nobody listens at |
//!
//! The working directory has an empty directory `dir`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::fixtures::docker_archive;
use crate::image::{File, gzip, plain, ramp, tar};
use crate::support::command::Finished;
use crate::support::lab::CRFS;
use crate::support::lies::Liar;
use crate::support::registry::Access;
use crate::support::{Lab, Registry, run};

/// What is done; how crfs ends; what it must say of what happened and of what to do.
type Row = (&'static str, i32, &'static [&'static str]);

const WRONG: &[Row] = &[
    // The command line.
    ("$CRFS", 2, &["Usage: crfs"]),
    ("$CRFS muont $IMAGE dir", 2, &["unrecognized subcommand 'muont'", "'mount'"]),
    ("$MOUNT --prefetsch all $IMAGE dir", 2, &["unexpected argument '--prefetsch'", "'--prefetch'"]),
    ("$MOUNT --cache-size 10Q $IMAGE dir", 2, &["10Q", "GiB"]),
    ("$MOUNT --io-deadline soon $IMAGE dir", 2, &["soon", "500ms"]),
    ("$MOUNT --io-deadline 0 $IMAGE dir", 2, &["0", "--io-deadline"]),
    ("$MOUNT --platform arm $IMAGE dir", 2, &["\"arm\" is not a platform", "linux/arm64"]),
    ("$MOUNT --tls-verify=maybe $IMAGE dir", 2, &["'maybe'", "true, false"]),
    ("$CRFS umount --all dir", 2, &["'--all' cannot be used with"]),
    ("$MOUNT --metrics-listen 80 $IMAGE dir", 2, &["\"80\" is not an address", "127.0.0.1:PORT"]),
    ("$CRFS completions tcsh", 2, &["'tcsh'", "possible values: bash"]),
    ("$MOUNT --memory-limit 1K $IMAGE dir", 1, &["more than 1 KiB of memory", "--memory-limit"]),
    // The configuration.
    (
        "mkdir -p .config/crfs; echo 'cach-size = \"1G\"' > .config/crfs/config.toml; $CRFS cache show",
        1,
        &["config.toml, line 1", "cache-size"],
    ),
    ("CRFS_IO_DEADLINE=soon $MOUNT $IMAGE dir", 1, &["the variable CRFS_IO_DEADLINE", "500ms"]),
    ("$MOUNT --layer 99 $IMAGE dir", 1, &["no layer 99", "the lowest is 0"]),
    ("$MOUNT --prefetch some $IMAGE dir", 2, &["'some'", "hints"]),
    ("$MOUNT $IMAGE", 2, &["<DIR>"]),
    // References.
    ("$MOUNT Alpine dir", 2, &["\"Alpine\" is not an image reference", "lower case"]),
    ("$MOUNT alpine: dir", 2, &["is not an image reference"]),
    ("$MOUNT alpine@sha256:12 dir", 2, &["is not an image reference", "64"]),
    ("$MOUNT https://a.io/b dir", 2, &["https", "docker://"]),
    ("$MOUNT docker-daemon:a:1 dir", 2, &["docker-daemon", "docker-archive:"]),
    // The directory.
    ("$MOUNT $IMAGE missing", 1, &["missing", "mkdir"]),
    ("touch file; $MOUNT $IMAGE file", 1, &["file is not a directory"]),
    (
        "$MOUNT $IMAGE dir && $MOUNT $IMAGE dir; s=$?; $CRFS umount dir; exit $s",
        1,
        &["dir is already a crfs mount", "crfs umount"],
    ),
    ("ln -s loop loop; $MOUNT $IMAGE loop", 1, &["loop", "Too many levels of symbolic links"]),
    // Unmounting.
    ("$CRFS umount dir", 1, &["dir is not a mount point", "crfs status"]),
    ("mount -t tmpfs x dir; $CRFS umount dir", 1, &["dir is not a crfs mount but one of type tmpfs"]),
    (
        "$MOUNT $IMAGE dir; (cd dir; $CRFS umount ..//dir); s=$?; $CRFS umount dir; exit $s",
        1,
        &["dir is in use", "fuser -vm"],
    ),
    ("$CRFS upgrade dir", 1, &["dir is not a mount point", "crfs status"]),
    // Images on disk.
    ("$MOUNT oci:missing:latest dir", 1, &["missing is not an OCI image layout", "index.json"]),
    ("$MOUNT oci:dir:latest dir", 1, &["dir is not an OCI image layout", "name the directory that has one"]),
    ("$MOUNT oci:$LAYOUT:latset dir", 1, &["has no tag \"latset\"", "its tags are: latest"]),
    (
        "head -c 20000 $ARCHIVE > cut.tar; $MOUNT docker-archive:cut.tar dir",
        1,
        &["cut.tar", "it was cut: copy it again"],
    ),
    ("echo hello > text; $MOUNT oci-archive:text dir", 1, &["text", "tar"]),
    ("$MOUNT docker-archive:$ARCHIVE:b:2 dir", 1, &["has no tag", "b:2", "its tags are"]),
    // Registries.
    (
        "$MOUNT $HOST/late-zc-new:never dir",
        1,
        &["late-zc-new/manifests/never is not there (404)", "check the name of the image, and its tag"],
    ),
    ("$MOUNT $HOST/never/was:1 dir", 1, &["never/was", "is not there (404)", "check the name"]),
    ("$MOUNT --platform windows/arm64 $MANY dir", 1, &["nothing for windows/arm64", "it has: linux/"]),
    ("$MOUNT $LOCKED/late-zc-new dir", 1, &["wants credentials, and there are none", "podman login"]),
    (
        "echo '{\"auths\":{\"'$LOCKED'\":{\"auth\":\"Y3JmczpodW50ZXIy\"}}}' > a.json; \
         $MOUNT --authfile a.json $LOCKED/late-zc-new dir",
        1,
        &["refused the credentials from", "a.json", "log in again"],
    ),
    ("$MOUNT --authfile missing.json $HOST/late-zc-new dir", 2, &["missing.json", "podman login --authfile"]),
    ("echo '{' > a.json; $MOUNT --authfile a.json $LOCKED/late-zc-new dir", 1, &["a.json", "no valid JSON at line"]),
    (
        "echo '{\"credsStore\":\"nowhere\"}' > a.json; $MOUNT --authfile a.json $LOCKED/late-zc-new dir",
        1,
        &["docker-credential-nowhere", "cannot be run", "--authfile"],
    ),
    ("$MOUNT --tls-verify $HOST/late-zc-new dir", 1, &["no TLS connection", "--tls-verify=false"]),
    ("$MOUNT $TLS/a:1 dir", 1, &["no TLS connection", "xpired", "clock"]),
    ("$MOUNT $NOBODY/a:1 --mount-deadline 1s dir", 1, &["$NOBODY", "refused", "check the name and the port"]),
    (
        "HTTPS_PROXY=http://$NOBODY $MOUNT --mount-deadline 1s registry.invalid/a dir",
        1,
        &["the proxy http://$NOBODY", "HTTPS_PROXY"],
    ),
    (
        "$MOUNT --mount-deadline 2s registry.invalid/a dir",
        1,
        &["registry.invalid", "lookup address", "check the name and the port of the registry"],
    ),
    (
        "$MOUNT --mount-deadline 1s $SILENT/a:1 dir",
        1,
        &["$SILENT", "nothing moved for", "check whether this machine reaches the registry"],
    ),
    ("$MOUNT $WRONG/a:1 dir", 1, &["wrong bytes", "sha256:"]),
    ("$MOUNT --hosts-dir missing $HOST/late-zc-new dir", 2, &["--hosts-dir", "config_path"]),
    (
        "echo '[[registry]]' > r.conf; CONTAINERS_REGISTRIES_CONF=$PWD/r.conf $MOUNT $HOST/late-zc-new dir",
        1,
        &["r.conf, line 1"],
    ),
    // The cache.
    (
        "mkdir ro; mount -t tmpfs -o ro x ro; $CRFS index --cache-dir ro $GZ",
        1,
        &["ro", "Read-only file system", "--cache-dir"],
    ),
    (
        "mkdir full; mount -t tmpfs -o size=64k x full; $CRFS index --cache-dir full $GZ",
        1,
        &["the cache would not keep its index", "--cache-dir that can be written and has room"],
    ),
    (
        "mkdir theirs; mkdir -m 0700 theirs/v2; chown 4242 theirs/v2; $CRFS index --cache-dir theirs $GZ",
        1,
        &["it belongs to another user", "--cache-dir"],
    ),
    ("$CRFS index --cache-dir c $IMAGE", 0, &["its own"]),
    (
        "mkdir theirs; mkdir -m 0777 theirs/v2; $CRFS index --cache-dir theirs $GZ",
        1,
        &["others may write", "--cache-dir"],
    ),
    ("$CRFS cache verify --cache-dir $LAYOUT/index.json", 1, &["index.json", "Not a directory"]),
    ("mkdir c; echo > c/x; mkdir -m 0700 c/v2; echo > c/v2/x; $CRFS cache clear --cache-dir c", 1, &["c", "crfs"]),
    // FUSE.
    (
        "mount -t tmpfs x /dev; mknod -m 0666 /dev/null c 1 3; $MOUNT $IMAGE dir",
        1,
        &["there is no /dev/fuse", "modprobe fuse", "container"],
    ),
    // Stores.
    ("$CRFS store add --root s no.invalid/a", 1, &["no.invalid"]),
    ("$CRFS store rm --root s never", 1, &["the store has no image \"never\"", "crfs store ls"]),
    (
        "mkdir -p s/overlay-images; echo '[{}]' > s/overlay-images/images.json; $CRFS store serve --root s",
        1,
        &["a list that crfs has not made", "a directory of its own"],
    ),
    (
        "mkdir -p s/crfs; chmod 0700 s s/crfs; echo '{\"v\":9}' > s/crfs/store.json; $CRFS store ls --root s",
        1,
        &["store.json", "not of this version"],
    ),
    ("$CRFS store add --root s --name 'No Name' $IMAGE", 1, &["is no name for podman", "--name"]),
    ("$CRFS store share --root s --user nosuchuser", 1, &["nosuchuser", "getent passwd"]),
    (
        "$CRFS store serve --root s & p=$!; until [ -S s/crfs/control.sock ]; do :; done; \
         $CRFS store serve --root s; s=$?; kill $p; wait $p; exit $s",
        1,
        &["the store", "is served already"],
    ),
    // Lines of fstab, by mount(8) and its helper.
    ("$FSTAB $IMAGE prefech=all", 1, &["unknown option prefech: is prefetch meant?"]),
    ("$FSTAB $IMAGE defualts", 1, &["unknown option defualts: is defaults meant?"]),
    ("$FSTAB $IMAGE uid=1000", 1, &["unknown option uid", "crfs mount --help"]),
    ("$FSTAB $IMAGE cache_size", 1, &["the option cache_size needs a value", "-o cache_size=SIZE"]),
    ("$FSTAB $IMAGE cache-size=10Q", 1, &["'10Q' for 'cache-size", "GiB"]),
    ("$FSTAB $IMAGE io-deadline=soon", 1, &["'soon' for 'io-deadline", "500ms"]),
    ("$FSTAB $IMAGE prefetch=some", 1, &["'some'", "none, hints, all"]),
    ("$FSTAB $IMAGE platform=arm", 1, &["\"arm\" is not a platform", "linux/arm64"]),
    ("$FSTAB $IMAGE noexec=yes", 1, &["noexec is a switch", "noexec=false"]),
    ("$FSTAB $IMAGE nfs-export,layer=0", 1, &["'nfs-export' cannot be used with 'layer"]),
    ("$FSTAB $IMAGE foreground", 1, &["foreground is not for mount(8)", "leave it out"]),
    ("$FSTAB $IMAGE authfile=/missing.json", 1, &["/missing.json", "podman login --authfile"]),
    ("$FSTAB $IMAGE authfile=/a,b/c", 1, &["unknown option b/c", "a comma in a value has a backslash before it"]),
    ("$FSTAB $IMAGE layer=99", 32, &["no layer 99", "the lowest is 0"]),
    ("$FSTAB $IMAGE ro $PWD/missing", 32, &["there is no directory", "mkdir -p"]),
    ("touch file; $FSTAB $IMAGE ro $PWD/file", 32, &["file is not a directory"]),
    // That is mount(8)'s.
    ("$FSTAB $IMAGE ro $PWD/dir crsf", 32, &["unknown filesystem type 'crsf'"]),
    ("$FSTAB /srv/alpine ro", 1, &["/srv/alpine is a file, and no image", "docker://NAME"]),
    ("$FSTAB docker://Alpine ro", 1, &["\"docker://Alpine\" is not an image reference", "lower case"]),
    ("$FSTAB https://a.io/b ro", 1, &["https", "docker://"]),
    ("$FSTAB oci:$PWD/missing:latest ro", 32, &["missing is not an OCI image layout", "index.json"]),
    ("$FSTAB oci:$LAYOUT:latset ro", 32, &["has no tag \"latset\"", "its tags are: latest"]),
    ("$FSTAB docker://$LOCKED/late-zc-new ro", 32, &["wants credentials, and there are none", "podman login"]),
    (
        "$FSTAB $IMAGE ro && $FSTAB $IMAGE ro; s=$?; umount dir; exit $s",
        32,
        &["dir is already a crfs mount", "`crfs umount` it first"],
    ),
    (
        "$FSTAB $IMAGE ro && $FSTAB $IMAGE remount,prefetch=all; s=$?; umount dir; exit $s",
        32,
        &["a remount cannot change prefetch", "unmount it and mount it again"],
    ),
    // Looking into images.
    ("$CRFS cat $IMAGE /no/such", 1, &["/no/such", "there is no"]),
    ("$CRFS explain ./dir", 1, &["dir is not a mount point", "crfs status"]),
];

/// As the ordinary user nobody, with what distributions give to users.
const OF_A_USER: &[Row] = &[
    ("PATH=/nowhere $MOUNT $IMAGE dir", 1, &["fusermount3", "install the package fuse3"]),
    ("$MOUNT --allow-other $IMAGE dir", 1, &["user_allow_other", "/etc/fuse.conf"]),
    ("$CRFS mount --cache-dir /root/x $IMAGE dir && $CRFS umount dir", 0, &["the cache directory cannot be used"]),
    ("$CRFS store serve --root /var/lib/crfs-of-root", 1, &["/var/lib/crfs-of-root", "Permission denied", "--root"]),
    ("$MOUNT $IMAGE /etc", 1, &["cannot mount on /etc", "no write access"]),
    ("$CRFS umount --all; $CRFS umount /proc", 1, &["/proc is not a crfs mount but one of type proc"]),
];

/// Where rows are done, and what they may ask.
struct Ground {
    lab: Lab,
    variables: Vec<(&'static str, String)>,
}

impl Ground {
    fn expanded(&self, text: &str) -> String {
        let fill = |text: String, (name, value): &(&str, String)| text.replace(&format!("${name}"), value);
        self.variables.iter().fold(text.to_owned(), fill)
    }

    fn command(&self, script: &str, dir: &Path) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
        command.current_dir(dir).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("HOME", dir).env("MOUNT", format!("{CRFS} mount --cache-dir {}/cache", dir.display()));
        command.env("FSTAB", format!("sh {}/tests/e2e/support/fstab.sh {CRFS}", env!("CARGO_MANIFEST_DIR")));
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// What is wrong with what crfs did.
    fn differs(&self, (script, status, said): &Row, finished: &Finished) -> Option<String> {
        let output = format!("{}{}", finished.stdout, finished.stderr);
        let said = said.iter().map(|said| self.expanded(said));
        let missing: Vec<_> = said.filter(|said| !output.contains(said)).collect();
        let is_right = finished.status == Some(*status) && missing.is_empty() && !output.contains("panicked");
        (!is_right).then(|| format!("{script}\n  lacks {missing:?}, wants status {status}: {finished}\n"))
    }
}

/// Registries that live as long as the test.
struct Registries {
    _open: Registry,
    _locked: Registry,
    _behind: Liar,
    _tls: crate::tls_front::Front,
    _silent: std::net::TcpListener,
    _wrong: Liar,
}

fn registries(lab: &Lab, variables: &mut Vec<(&'static str, String)>) -> Registries {
    let (open, locked) = (Registry::new(lab, Access::Open), Registry::new(lab, Access::Password));
    open.push(lab, "late-zc-new");
    locked.push(lab, "late-zc-new");
    let behind = Liar::new();
    let tls = behind.behind_tls("expired");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let wrong = Liar::new();
    let layer = plain(gzip(&tar(&[File { name: "file", content: ramp(9000, 1) }])));
    wrong.push(&[&layer]);
    let mut other = layer.blob.clone();
    *other.last_mut().unwrap() ^= 1;
    wrong.replace_blob(&layer.digest(), &other);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    variables.extend([
        ("HOST", open.host()),
        ("LOCKED", locked.host()),
        ("TLS", tls.host().to_owned()),
        ("NOBODY", nobody.to_string()),
        ("SILENT", silent.local_addr().unwrap().to_string()),
        ("WRONG", wrong.host().to_owned()),
    ]);
    Registries { _open: open, _locked: locked, _behind: behind, _tls: tls, _silent: silent, _wrong: wrong }
}

fn ground(lab: Lab) -> Ground {
    let layout = lab.dir_of("late-zc-new").display().to_string();
    let variables = vec![
        ("CRFS", CRFS.to_owned()),
        ("IMAGE", format!("oci:{layout}:latest")),
        ("LAYOUT", layout),
        ("GZ", lab.layout("late-gz")),
        ("MANY", lab.layout("sink-index")),
        ("ARCHIVE", docker_archive().display().to_string()),
    ];
    Ground { lab, variables }
}

#[track_caller]
fn all_right(wrong: &[String], rows: &[Row]) {
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

#[test]
fn every_wrong_use_says_what_happened_and_what_to_do() {
    let Some(lab) = Lab::new() else { return };
    let mut ground = ground(lab);
    let mut variables = std::mem::take(&mut ground.variables);
    let _registries = registries(&ground.lab, &mut variables);
    ground.variables = variables;
    let differs = |row: &Row| {
        let dir = ground.lab.fresh("row");
        fs::create_dir(dir.join("dir")).unwrap();
        ground.differs(row, &run(&mut ground.command(row.0, &dir)))
    };
    all_right(&WRONG.iter().filter_map(differs).collect::<Vec<_>>(), WRONG);
}

#[test]
fn every_wrong_use_of_a_user_says_what_happened_and_what_to_do() {
    let Some(lab) = Lab::new() else { return };
    let (crfs, image) = (lab.path("crfs"), lab.path("image"));
    fs::copy(CRFS, &crfs).unwrap();
    run(Command::new("cp").arg("-rL").arg(lab.dir_of("late-zc-new")).arg(&image)).ok();
    run(Command::new("chmod").args(["-R", "a+rX"]).arg(&image)).ok();
    let variables = vec![("CRFS", crfs.display().to_string()), ("IMAGE", format!("oci:{}:latest", image.display()))];
    let ground = Ground { lab, variables };
    let differs = |row: &Row| {
        let (home, script) = (ground.lab.fresh("home"), ground.lab.path("script"));
        let text = format!("MOUNT=\"$CRFS mount --cache-dir $HOME/c\"\nmkdir dir\n{}\n", row.0);
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o644)).unwrap();
        let mut command = Command::new("sh");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/support/as-user.sh")).arg(&home).arg(&script);
        command.envs(ground.variables.iter().map(|(name, value)| (name, value)));
        ground.differs(row, &run(&mut command))
    };
    all_right(&OF_A_USER.iter().filter_map(differs).collect::<Vec<_>>(), OF_A_USER);
}

#[test]
fn there_are_forty_and_more() {
    assert!(WRONG.len() + OF_A_USER.len() >= 90);
}
