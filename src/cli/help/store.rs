//! The long help of `crfs store` and its commands.

macro_rules! store_environment_help {
    () => {
        "
Environment:
  XDG_DATA_HOME           where an ordinary user's store is without --root
                            (~/.local/share)
"
    };
}

pub(in crate::cli) const STORE: &str = concat!(
    "\
Examples:
  crfs store serve &
  crfs store add docker.io/library/python:3.13
  crfs store config                        # what to put into storage.conf
  podman images                            # lists it as R/O
  podman run docker.io/library/python:3.13
  crfs store ls
  crfs store rm docker.io/library/python:3.13

contrib/ of the sources has units for systemd. docs/podman.md says what holds
for which podman, kernel and privilege.

`crfs store COMMAND --help` has the options of each.
",
    exit_help!()
);

pub(in crate::cli) const STORE_SERVE: &str = concat!(
    "\
Examples:
  crfs store serve --layers                # podman pull is lazy by itself
  crfs store serve --root /srv/store --cache-size 50G
  podman unshare crfs store serve          # an ordinary user's own

When podman can use the store it says so on standard error:
  crfs: serving /var/lib/crfs/store: 3 images

A layer that cannot be opened (its registry cannot be reached, and nothing of it
is cached) keeps no other image from being served; it is tried again.

It ends on SIGTERM where nothing uses its layers; otherwise it says so and
stays, and a second SIGTERM ends it all the same: containers then read errors.
Where its server is killed another one goes on. It logs to standard error, and
to server.log (JSON lines) in --state.
",
    store_environment_help!(),
    "  XDG_CACHE_HOME          where the cache is without --cache-dir (~/.cache)
  NOTIFY_SOCKET           told when podman can use the store (sd_notify(3))
  RUST_LOG                what is logged, such as crfs=debug; wins over -v
",
    exit_help!()
);

pub(in crate::cli) const STORE_ADD: &str = concat!(
    "\
Examples:
  crfs store add alpine quay.io/a/b:1.2
  crfs store add --name localhost/tools:1 oci:/srv/images/tools
  crfs store add --full --name localhost/base:1 quay.io/a/b:1.2
  crfs store add --json alpine | jq -r '.[].id'

Without a server the image is there for the next one. A name that another image
had is the new one's from then on. Fields of --json: see `crfs store ls --help`.

--full is for `podman push` and `podman save`: of an image of the store, and of
one that is built on it, to where its layers are not. It may be given later, for
an image that is there. An image whose layers do not have the digests that its
config names is refused then. Layers without a table of contents, which `add`
reads whole, do not need it; nor do zstd:chunked layers that carry a tar-split:
a server gives podman that by itself, when nothing else is read.

",
    image_help!(),
    store_environment_help!(),
    exit_help!()
);

pub(in crate::cli) const STORE_RM: &str = concat!(
    "\
Examples:
  crfs store rm alpine
  crfs store rm --podman-root /srv/containers 4f1c7a2e9d0b

All are removed or none. It looks into podman's own stores of this user and of
those that the store is shared with, wherever a storage.conf says that they are,
and into each --podman-root. Fields of --json: see `crfs store ls --help`.
",
    store_environment_help!(),
    "  CONTAINERS_STORAGE_CONF the storage.conf that podman reads
",
    exit_help!()
);

pub(in crate::cli) const STORE_LS: &str = concat!(
    "\
Examples:
  crfs store ls
  crfs store ls --json | jq -r '.[] | select(.served | not) | .problem'

Fields of --json, an array:
  id                      podman's image id
  digest                  of the manifest
  names                   an array
  created                 when it was built (RFC 3339)
  size, layers            bytes of all files, number of layers
  source                  where its layers come from
  served                  whether a server runs that can read all of its layers
  problem                 why not; null where nothing is known
  pushable                whether podman has all tar-splits that it needs to
                            push or save it; one that a blob carries is a
                            claim, which podman checks when it pushes
",
    store_environment_help!(),
    exit_help!()
);

pub(in crate::cli) const STORE_CONFIG: &str = concat!(
    "\
Examples:
  crfs store config
  crfs store config --root /srv/store

It says which file podman reads, and what to put where in it. Do not append it
unseen: podman takes no file in which a part or a key stands twice. It changes
nothing. For one command there is also
  podman --storage-opt overlay.imagestore=DIR ...
",
    store_environment_help!(),
    exit_help!()
);

pub(in crate::cli) const STORE_AUTH_HELPER: &str = concat!(
    "\
Examples:
  ln -s /usr/bin/crfs /usr/local/bin/crfs-auth-helper
  crfs store auth-helper --root /srv/store < credentials.json

podman starts a program without arguments, so that this command goes by the name
crfs-auth-helper as well. In /etc/containers/registries.conf, above its first
[part]:
  additional-layer-store-auth-helper = \"/usr/local/bin/crfs-auth-helper\"
For a store elsewhere it can be a script:
  #!/bin/sh
  exec crfs store auth-helper --root /srv/store

Only podman 5.2 and later hand over credentials. Without them the server reads
those of `podman login`. Where no server runs, nothing is done.
",
    store_environment_help!(),
    exit_help!()
);

pub(in crate::cli) const STORE_SHARE: &str = concat!(
    "\
Examples:
  crfs store share --user ann
  # as ann:
  podman --storage-opt overlay.imagestore=/var/lib/crfs/store/users/ann images
  crfs store share --user ann --stop

It prints the directory that the user's storage.conf has to name, in
additionalimagestores; `crfs store config` shows where that stands.
",
    store_environment_help!(),
    exit_help!()
);
