//! The long help of `crfs snapshotter`.

pub(in crate::cli) const SNAPSHOTTER: &str = concat!(
    "\
Examples:
  crfs snapshotter serve
  crfs snapshotter config >> /etc/containerd/config.toml

docs/containerd.md has the whole set-up.
",
    exit_help!()
);

pub(in crate::cli) const SNAPSHOTTER_SERVE: &str = concat!(
    "\
Examples:
  crfs snapshotter serve
  crfs snapshotter serve --address /run/crfs/s.sock --root /srv/snapshotter

When containerd can ask it says so on standard error:
  crfs: answering at /run/crfs/snapshotter.sock

Layers are served by another process, which it starts when it needs it: `crfs
store serve` of the directory layers below --root. That one stays when this
command ends, so that containers go on. Its log is layers/crfs/server.log.

A layer that cannot be had is fetched and unpacked by containerd; the log says
why, and so does the label containerd.io/snapshot/crfs.reason of its snapshot.

",
    image_help!(),
    exit_help!()
);

pub(in crate::cli) const SNAPSHOTTER_CONFIG: &str = concat!(
    "\
Examples:
  crfs snapshotter config
  crfs snapshotter config --containerd 1.7
  crfs snapshotter config --name stargz       # for nerdctl and BuildKit

Nothing is changed. What is there already must not stand there twice: merge the
lines by hand where config.toml has these tables.
",
    exit_help!()
);
