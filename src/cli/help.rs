//! What `crfs COMMAND --help` says after the options. Lines are broken here, for 80 columns.

/// The same for all commands that take an image.
macro_rules! image_help {
    () => {
        "\
Images:
  alpine                  docker.io/library/alpine:latest
  ghcr.io/a/b:1.2         a tag; it is resolved once
  ghcr.io/a/b@sha256:...  a digest; it wins where there is a tag, too
  docker://ghcr.io/a/b    the same as without docker://
  [::1]:5000/a            an IPv6 address stands in brackets
  oci:DIR[:TAG]           an OCI image layout; TAG may be a whole name, such as
                          alpine:3
  oci-archive:FILE[:TAG]  an OCI image layout in a tar file
  docker-archive:FILE[:NAME]
                          what docker save wrote; NAME is that of an image in
                          it, such as alpine:3, or @0 for the first
                          Archives may be compressed (gzip, zstd): they are
                          unpacked into the cache while they are in use.

Units:
  SIZE  bytes, or with K, M, G, KiB, MiB or GiB: powers of 1024 all of them
  TIME  500ms, 8s, 2m; a bare number is seconds

Environment:
  REGISTRY_AUTH_FILE      like --authfile, which wins. Without both:
                            $XDG_RUNTIME_DIR/containers/auth.json
                            $XDG_CONFIG_HOME/containers/auth.json (~/.config)
                            $DOCKER_CONFIG/config.json (~/.docker)
  HTTPS_PROXY, NO_PROXY   the proxy, and the hosts that need none
  SSL_CERT_FILE           certificate authorities, instead of the system's
  XDG_CACHE_HOME          where the cache is without --cache-dir (~/.cache)
  RUST_LOG                what is logged, such as crfs=debug; wins over -v
"
    };
}

macro_rules! exit_help {
    () => {
        "\n\
Exit status:
  0  it worked
  1  it failed; one line on standard error says why
  2  wrong usage"
    };
}

mod layers;
#[cfg(feature = "snapshotter")]
mod snapshotter;
mod store;

pub(super) use self::layers::{EXPLAIN, HEAT};
#[cfg(feature = "snapshotter")]
pub(super) use self::snapshotter::{SNAPSHOTTER, SNAPSHOTTER_CONFIG, SNAPSHOTTER_SERVE};
pub(super) use self::store::*;

pub(super) const CRFS: &str = concat!(
    "\
Examples:
  crfs mount docker.io/library/python:3.13 /mnt
  crfs status
  crfs umount /mnt
  crfs inspect ghcr.io/stargz-containers/alpine:3.15.3-esgz
  crfs explain /mnt
  crfs index docker.io/library/python:3.13
  crfs cat alpine /etc/os-release

`crfs COMMAND --help` has the options, units and variables of each. Options may
stand in files and CRFS_... variables as well: `crfs config show --help`.
",
    exit_help!()
);

pub(super) const MOUNT: &str = concat!(
    "\
Examples:
  crfs mount alpine /mnt
  crfs mount --platform linux/arm64 ghcr.io/a/b@sha256:... /mnt
  crfs mount --tls-verify=false localhost:5000/a /mnt
  crfs mount --prefetch all oci:/srv/images/a:1.0 /mnt
  crfs mount --layer 0 alpine /mnt/lower
  crfs mount docker-archive:image.tar /mnt

It prints one line to standard output (here broken in two):
  docker.io/library/alpine@sha256:... on /mnt:
  5 layers (4 lazy, 1 read whole), 1.2 MiB fetched in 0.84 s

Layers without a table of contents (tar, tar+gzip, tar+zstd) are read once: with
a bar for each on a terminal, a line now and then elsewhere, and nothing said
with -q. --mount-deadline does not count that time as long as bytes come. Later
mounts use the index that is kept of them, and fetch what is read.
`crfs inspect` tells beforehand what a mount waits for.

The mount is read-only, nosuid and nodev. It lives until it is unmounted
everywhere: an overlayfs on it keeps it alive after `crfs umount`. The server
ends on SIGTERM where nothing uses its mount; otherwise it says so and stays,
and a second SIGTERM ends it all the same. SIGQUIT makes it log what it does.
It logs to server.log (JSON lines) in $XDG_RUNTIME_DIR/crfs/ID, for root in
/run/crfs/ID; see `crfs status --json`.

An ordinary user needs fusermount3 (package fuse3).

",
    image_help!(),
    "  XDG_RUNTIME_DIR         where the mount's state is kept
                            (else /run/user/UID, else /tmp/crfs-UID)
  NOTIFY_SOCKET           told when the directory can be used (sd_notify(3))
",
    exit_help!()
);

pub(super) const UMOUNT: &str = concat!(
    "\
Examples:
  crfs umount /mnt
  crfs umount --all

Where something in the mount is in use, it stays, and the exit status is 1.
Where it was unmounted and something else still uses it, an overlayfs or another
mount namespace, it prints \"unmounted; still in use by another mount\" and names
those that this user may see. The server goes on until they are gone.

A mount that was made in another mount namespace is unmounted there. Where
processes see it there, --all and DIR leave it alone; its id, which `crfs
status` shows, unmounts it.
",
    exit_help!()
);

pub(super) const UPGRADE: &str = concat!(
    "\
Examples:
  crfs upgrade --all
  crfs upgrade /var/lib/crfs/store
SIGHUP to the keeper (see `crfs status --json`) asks for the same.
",
    exit_help!()
);

pub(super) const INSPECT: &str = concat!(
    "\
Examples:
  crfs inspect alpine
  crfs inspect --json ghcr.io/a/b | jq '.layers[] | select(.lazy | not)'

Fields of --json:
  image, digest           the name, and the digest of the manifest
  platform                null where the image does not say
  wait                    bytes that a mount fetches before it is ready
  layers                  an array, the lowest first, of
    digest, size          of the blob, in bytes
    media_type
    usable                whether a mount can open it; else, reason says why not
    lazy, reason          whether its contents are fetched when read, and why
    index_from            toc: its own table of contents; own: made by crfs from
                          the layer; soci: a zTOC; none: all of it has to be
                          read first
    requests, wait        requests for it, and bytes that a mount fetches of it,
                          before it is ready
    advice                what would make it better
    podman_asks           whether podman 5.1 and later ask a layer store for it
                          (`crfs store serve --layers`)
    format, entries, units, toc_size, contents_size
                          where it can be opened; toc_size is that of the table
                          of contents in the registry, contents_size that of
                          all files, each rounded up to 4 KiB, in bytes

Nothing is read but manifests and tables of contents. A layer that crfs cannot
serve is shown with the reason; that is no failure.

",
    image_help!(),
    exit_help!()
);

pub(super) const INDEX: &str = concat!(
    "\
Examples:
  crfs index docker.io/library/python:3.13
  crfs index --output indexes.tar ghcr.io/a/b
  tar -xf indexes.tar -C /var/cache/crfs     # on another machine

Fields of --json:
  image, digest           the name, and the digest of the manifest
  layers                  an array, the lowest first, of
    digest, size          of the blob, in bytes
    format, entries, units
    index_size            bytes of the index that crfs has made; null where the
                          layer has a table of contents of its own

An index is made once: layers that have one in the cache are not read again.
Take indexes only from machines that you trust: what they say of a layer is
what mounts will show.

",
    image_help!(),
    exit_help!()
);

/// The fields of a file in JSON.
macro_rules! node_help {
    () => {
        "  path                    path_base64, too, where it is not UTF-8
  type                    file, directory, symlink, char-device, block-device
                          or fifo
  inode, nlink, uid, gid, size
  mode                    permissions in octal, as text
  mtime, mtime_nanos      seconds since 1970, and nanoseconds
  device                  [major, minor], of a device
  target                  of a symlink
  layer                   the digest of the layer that holds a file's contents
"
    };
}

pub(super) const LS: &str = concat!(
    "\
Examples:
  crfs ls alpine
  crfs ls -l alpine /etc
  crfs ls -R --json alpine / | jq -r .path

Fields of --json, one object per line:
",
    node_help!(),
    "
Without --json, bytes of names that are no text, or that a terminal would obey,
are shown as \\xNN.

",
    image_help!(),
    exit_help!()
);

pub(super) const CAT: &str = concat!(
    "\
Examples:
  crfs cat alpine /etc/os-release
  crfs cat alpine /bin/busybox | sha256sum

Only what is needed of the image is read, and every byte is verified.

",
    image_help!(),
    exit_help!()
);

pub(super) const STAT: &str = concat!(
    "\
Examples:
  crfs stat alpine /bin/sh
  crfs stat --json alpine /usr/bin/ping | jq .xattrs

Fields of --json:
",
    node_help!(),
    "  xattrs                  names, and values in base64

",
    image_help!(),
    exit_help!()
);

pub(super) const STATUS: &str = concat!(
    "\
Examples:
  crfs status
  crfs status --json | jq '.[] | select(.state != \"serving\")'

Fields of --json, an array of the mounts in the order in which they were
mounted, then the store (docs/STATUS.md has each with its type and unit):
  kind                    mount or store
  id                      of a mount the name of the directory of its state, of
                          a store its root
  state                   serving; silent: its server lives and does not answer,
                          or nobody can tell (see last_error); failing: it died
                          several times in a row; dead: its server is gone,
                          `crfs umount` takes a mount away
  pid, image, digest, frontend
  dir                     where it is mounted; of a store, its root
  images, layers          how many it has; layers that can be read
  pulled                  of a store, layers that podman has pulled by itself
                          (--layers) and has not released yet
  elsewhere               where it is, if it is not at dir: namespace, where it
                          was mounted, if that is another mount namespace; and
                          holders, the processes and overlayfs that have it
  started                 seconds since 1970
  endpoints               hosts that are asked, and what came of it
  keeper, restarts        the process that starts another server when this one
                          dies; how many servers there were before
  served                  bytes given to readers
  fetched, requests       bytes and requests asked of the registry
  cached                  bytes given to readers that were on local disk
  errors, last_error      reads that failed, and why the last one did, or why
                          the server does not answer
  uncached                bytes that a full or broken cache did not take

Mounts are looked for in several directories, the store in the place of --root.
Where one of them does not answer or cannot be read, the servers of the others
are shown, and the exit status is 1.
",
    exit_help!()
);

pub(super) const DOCTOR: &str = concat!(
    "\
Examples:
  crfs doctor
  crfs doctor --all docker.io/library/python:3.13
  crfs doctor --json | jq '.findings[] | select(.verdict != \"ok\")'

Fields of --json (docs/doctor.md has each check):
  verdict                 the worst of all: ok, note or problem
  version                 of crfs
  findings                an array, in the order of the checks, of
    check                 fuse, kernel, cache, credentials, proxies, registries,
                          podman, limits, mounts, leftovers or image
    verdict               ok; note: it works, and is worth knowing; problem
    found                 what was found
    meaning, advice       what that means for crfs, and what to do; null if ok

Nothing is changed but for a directory in /tmp that is gone at the end: root
mounts there where nobody sees it, a user by fusermount3. No check waits for
longer than 20 s, and the one that asks registries 60 s. No secret is shown.

",
    image_help!(),
    "
Exit status:
  0  there is no problem
  1  there is a problem, or it failed
  2  wrong usage"
);

pub(super) const METRICS: &str = concat!(
    "\
Examples:
  crfs metrics
  crfs metrics > /var/lib/node_exporter/crfs.prom   # for its textfile collector

A server that does not answer is named on standard error. The metrics of the
others are printed all the same, and the exit status is 1.
",
    exit_help!()
);

pub(super) const MAN: &str = concat!(
    "\
Examples:
  crfs man /usr/local/share/man/man1
  mkdir /tmp/man && crfs man /tmp/man && man /tmp/man/crfs-mount.1
",
    exit_help!()
);

pub(super) const COMPLETIONS: &str = concat!(
    "\
Examples:
  crfs completions bash > /etc/bash_completion.d/crfs
  crfs completions zsh > /usr/local/share/zsh/site-functions/_crfs
  crfs completions fish > ~/.config/fish/completions/crfs.fish
",
    exit_help!()
);

macro_rules! cache_environment_help {
    () => {
        "
Environment:
  XDG_CACHE_HOME  where the cache is without --cache-dir (~/.cache)
"
    };
}

pub(super) const CACHE: &str = concat!(
    "\
Examples:
  crfs cache show
  crfs cache clear --contents
  crfs cache verify

`crfs cache COMMAND --help` has the options and fields of each. How large the
cache may become is said where it is filled: `crfs mount --cache-size 2G ...`.
",
    exit_help!()
);

pub(super) const CACHE_SHOW: &str = concat!(
    "\
Examples:
  crfs cache show
  crfs cache show --json | jq '.layers[] | select(.in_use | not) | .blob'
  crfs cache show --cache-dir /srv/cache --cache-size 2G

Fields of --json; sizes are bytes on the disk, as du(1) counts them:
  dir, total, limit       the directory, what it takes, what it may take
  floor                   what stays free on the filesystem in any case
  documents               manifests, and what tags were resolved to
  layers                  an array of
    blob, toc             the digests of the layer and of its table of contents;
                          toc is null where the blob's own digest vouches for it
    contents, index       what is cached of it
    contents_size         bytes of all contents, cached or not
    in_use                by a mount or another command
    images                those that it is of: their names, or the digest of the
                          manifest of one that was asked for by that. Those of
                          a layout or an archive leave no name
",
    cache_environment_help!(),
    exit_help!()
);

pub(super) const CACHE_CLEAR: &str = concat!(
    "\
Examples:
  crfs cache clear
  crfs cache clear --contents
  crfs cache clear --json | jq .freed

Fields of --json:
  freed, total            bytes that are free now, and that are left
  in_use                  layers in use, whose indexes stay
  held_up                 those of them whose contents stay as well, because a
                          process has them locked and does not go on
",
    cache_environment_help!(),
    exit_help!()
);

pub(super) const CACHE_VERIFY: &str = concat!(
    "\
Examples:
  crfs cache verify
  crfs cache verify --json | jq -r '.wrong[] | \"\\(.path): \\(.what)\"'

What is evicted or removed meanwhile is not wrong.

Fields of --json:
  documents, indexes      how many were checked
  checks, bytes           parts of files' contents, and their bytes
  without_index           layers that cannot be checked, nor used, without one
  wrong                   an array of path and what
",
    cache_environment_help!(),
    "\n\
Exit status:
  0  all is right
  1  something is wrong: it is named on standard output; or it failed, and one
     line on standard error says why
  2  wrong usage"
);

#[cfg(test)]
mod tests {
    #[test]
    fn lines_fit_a_terminal() {
        use super::*;
        let store = [STORE, STORE_SERVE, STORE_ADD, STORE_RM, STORE_LS, STORE_CONFIG, STORE_SHARE];
        let others = [CRFS, MOUNT, UMOUNT, INSPECT, EXPLAIN, HEAT, INDEX, LS, CAT, STAT, STATUS, CACHE];
        for text in others.into_iter().chain([CACHE_SHOW, CACHE_CLEAR, CACHE_VERIFY]).chain(store) {
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{line}");
            }
        }
    }
}
