//! `crfs store`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::{AccessArgs, CONFIGURABLE, CachePlaceArgs};
use crate::cli::{help, values};
use crate::serve::listen::Listen;

/// Let podman run images without pulling them: its additional image store
///
/// One server shows the layers of all images that were added. podman lists these images as read-only (R/O), and runs them at once; what a container
/// reads is fetched when it first reads it.
#[derive(Debug, Args)]
#[command(after_long_help = help::STORE, disable_help_subcommand = true)]
pub(in crate::cli) struct StoreArgs {
    #[command(subcommand)]
    pub(in crate::cli) command: StoreCommand,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum StoreCommand {
    Serve(Box<StoreServeArgs>),
    Add(Box<StoreAddArgs>),
    Rm(StoreRmArgs),
    Ls(StoreLsArgs),
    Config(StoreConfigArgs),
    Share(StoreShareArgs),
    AuthHelper(StoreAuthHelperArgs),
}

/// Which store.
#[derive(Debug, Args)]
pub(in crate::cli) struct StorePlaceArgs {
    /// The store's directory, for podman. Default: /var/lib/crfs/store for root, else $XDG_DATA_HOME/crfs/store.
    #[arg(long, help_heading = CONFIGURABLE, value_name = "DIR")]
    pub(in crate::cli) root: Option<PathBuf>,
    /// Where crfs keeps what it knows of the store, its socket and its log: a directory for its owner alone. Default: crfs in the
    /// store's directory.
    #[arg(long, help_heading = CONFIGURABLE, value_name = "DIR")]
    pub(in crate::cli) state: Option<PathBuf>,
}

/// Serve a store, in the foreground
///
/// Says on standard error, and to a service manager, when podman can use the store. Images may be added and removed meanwhile, by other commands.
#[derive(Debug, Args)]
#[command(after_long_help = help::STORE_SERVE)]
pub(in crate::cli) struct StoreServeArgs {
    #[command(flatten)]
    pub(in crate::cli) place: StorePlaceArgs,
    #[command(flatten)]
    pub(in crate::cli) cache: CachePlaceArgs,
    /// What to fetch beyond what is read: with none, nothing.
    #[arg(long, help_heading = CONFIGURABLE, value_enum, default_value = "hints")]
    pub(in crate::cli) prefetch: StorePrefetchArg,
    /// Serve the store's metrics, for Prometheus, at http://ADDR/metrics: 127.0.0.1:PORT or unix:PATH.
    #[arg(long, help_heading = CONFIGURABLE, value_name = "ADDR", value_parser = |text: &str| text.parse::<Listen>())]
    pub(in crate::cli) metrics_listen: Option<Listen>,
    /// Answer podman where it looks for layers of an image that it pulls (additionallayerstores): what has a table of contents or an index is not
    /// downloaded.
    #[arg(long)]
    pub(in crate::cli) layers: bool,
    /// With --layers: the longest time that `podman pull` waits for a layer before it pulls that itself.
    #[arg(long, help_heading = CONFIGURABLE, value_name = "TIME", value_parser = values::time, default_value = "60s", requires = "layers")]
    pub(in crate::cli) mount_deadline: Duration,
    /// With --layers: how images are reached.
    #[command(flatten)]
    pub(in crate::cli) access: AccessArgs,
}

/// As src/keeper and src/podman/serve.rs spell them.
#[derive(Debug, Args)]
pub(in crate::cli) struct StoreWorkerArgs {
    /// The store's directory.
    #[arg(long)]
    pub(in crate::cli) root: PathBuf,
    /// The number of the descriptor that leads to the keeper.
    #[arg(long)]
    pub(in crate::cli) keeper: std::os::fd::RawFd,
    /// Goes on with what another one has mounted.
    #[arg(long)]
    pub(in crate::cli) resume: bool,
}

/// Add images to a store
///
/// Only manifests, configs and tables of contents are read; of a layer that has no table of contents everything, once. Where an image is there
/// already, its name is added, and with --full what podman needs to push it. What is read goes into the cache of the server; --cache-dir is for when none
/// runs.
#[derive(Debug, Args)]
#[command(after_long_help = help::STORE_ADD)]
pub(in crate::cli) struct StoreAddArgs {
    #[arg(
        value_name = "IMAGE",
        required = true,
        help = "The images: NAME[:TAG][@DIGEST] in a registry, oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:NAME]"
    )]
    pub(in crate::cli) images: Vec<OsString>,
    #[command(flatten)]
    pub(in crate::cli) place: StorePlaceArgs,
    /// The name that podman is to know the image by. Default: its own; of one on disk, localhost and the last part of its path.
    #[arg(long, value_name = "NAME[:TAG]")]
    pub(in crate::cli) name: Option<String>,
    /// Read every layer whole, once, so that podman can push images that are built on these to where their layers are not. What each layer
    /// unpacks to is compared with the image's config.
    #[arg(long)]
    pub(in crate::cli) full: bool,
    #[command(flatten)]
    pub(in crate::cli) access: AccessArgs,
    #[command(flatten)]
    pub(in crate::cli) cache: CachePlaceArgs,
    /// Print one JSON array.
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

/// Remove images from a store
///
/// An image that a container or an image in podman's own stores needs is not removed. Of an image with several names, the one that is given goes.
#[derive(Debug, Args)]
#[command(after_long_help = help::STORE_RM)]
pub(in crate::cli) struct StoreRmArgs {
    /// The images, by name or id.
    #[arg(value_name = "IMAGE", required = true)]
    pub(in crate::cli) images: Vec<String>,
    #[command(flatten)]
    pub(in crate::cli) place: StorePlaceArgs,
    /// A store of podman's own (its --root) that may need the image, besides those that a storage.conf names. May be given several times.
    #[arg(long, help_heading = CONFIGURABLE, value_name = "DIR")]
    pub(in crate::cli) podman_root: Vec<PathBuf>,
    /// Print one JSON array.
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

/// List the images of a store
#[derive(Debug, Args)]
#[command(after_long_help = help::STORE_LS)]
pub(in crate::cli) struct StoreLsArgs {
    #[command(flatten)]
    pub(in crate::cli) place: StorePlaceArgs,
    /// Print one JSON array.
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

/// Print what has to stand in storage.conf for podman to use a store
#[derive(Debug, Args)]
#[command(after_long_help = help::STORE_CONFIG)]
pub(in crate::cli) struct StoreConfigArgs {
    #[command(flatten)]
    pub(in crate::cli) place: StorePlaceArgs,
    /// What has to stand there for `podman pull` to find the layers of a server that was started with --layers.
    #[arg(long)]
    pub(in crate::cli) layers: bool,
}

/// Let a user's rootless podman use root's store
///
/// For that user the layers are mounted once more, so that what root owns in them is the user's. It stays so after a restart of the server. Needs Linux 6.12
/// and the user's ids in /etc/subuid and /etc/subgid.
#[derive(Debug, Args)]
#[command(after_long_help = help::STORE_SHARE)]
pub(in crate::cli) struct StoreShareArgs {
    #[command(flatten)]
    pub(in crate::cli) place: StorePlaceArgs,
    /// The user.
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) user: String,
    /// Take it away again.
    #[arg(long)]
    pub(in crate::cli) stop: bool,
}

/// Take the credentials from podman by which it pulls
///
/// podman starts it, with the credentials on its standard input, where registries.conf names it as additional-layer-store-auth-helper. The store's server
/// reads the layers of that image by them, also after a restart, and forgets them once podman has no image of its layers any more.
#[derive(Debug, Args)]
#[command(after_long_help = help::STORE_AUTH_HELPER)]
pub(in crate::cli) struct StoreAuthHelperArgs {
    #[command(flatten)]
    pub(in crate::cli) place: StorePlaceArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum StorePrefetchArg {
    /// Nothing but what is read.
    None,
    /// What is likely read next.
    Hints,
}
