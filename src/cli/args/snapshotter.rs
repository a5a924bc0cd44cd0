//! `crfs snapshotter`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{AccessArgs, CONFIGURABLE, CachePlaceArgs, StorePrefetchArg};
use crate::cli::help;

/// Let containerd run images without pulling their layers: a snapshotter
///
/// containerd asks it for each layer of an image, and is told that the layer is there. What a container reads is fetched when it first reads it.
#[derive(Debug, Args)]
#[command(after_long_help = help::SNAPSHOTTER, disable_help_subcommand = true)]
pub(in crate::cli) struct SnapshotterArgs {
    #[command(subcommand)]
    pub(in crate::cli) command: SnapshotterCommand,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum SnapshotterCommand {
    Serve(Box<SnapshotterServeArgs>),
    Config(SnapshotterConfigArgs),
}

/// Where it is.
#[derive(Debug, Args)]
pub(in crate::cli) struct SnapshotterPlaceArgs {
    /// The socket at which containerd asks: for its owner alone.
    #[arg(long, help_heading = CONFIGURABLE, value_name = "SOCKET", default_value = "/run/crfs/snapshotter.sock")]
    pub(in crate::cli) address: PathBuf,
    /// The directory of what it knows, of what containers write, and of layers that are unpacked.
    #[arg(long, help_heading = CONFIGURABLE, value_name = "DIR", default_value = "/var/lib/crfs/snapshotter")]
    pub(in crate::cli) root: PathBuf,
}

/// Answer containerd, in the foreground
///
/// Says on standard error, and to a service manager, when containerd can ask. It may be ended and started again at any time: containers go on.
#[derive(Debug, Args)]
#[command(after_long_help = help::SNAPSHOTTER_SERVE)]
pub(in crate::cli) struct SnapshotterServeArgs {
    #[command(flatten)]
    pub(in crate::cli) place: SnapshotterPlaceArgs,
    #[command(flatten)]
    pub(in crate::cli) cache: CachePlaceArgs,
    /// What to fetch beyond what is read: with none, nothing.
    #[arg(long, help_heading = CONFIGURABLE, value_enum, default_value = "hints")]
    pub(in crate::cli) prefetch: StorePrefetchArg,
    #[command(flatten)]
    pub(in crate::cli) access: AccessArgs,
}

/// Print the lines that containerd's configuration needs
#[derive(Debug, Args)]
#[command(after_long_help = help::SNAPSHOTTER_CONFIG)]
pub(in crate::cli) struct SnapshotterConfigArgs {
    #[command(flatten)]
    pub(in crate::cli) place: SnapshotterPlaceArgs,
    /// The version of containerd, such as 2.4. Default: what `containerd --version` says.
    #[arg(long, value_name = "VERSION")]
    pub(in crate::cli) containerd: Option<String>,
    /// The name by which the snapshotter is chosen. nerdctl and BuildKit are lazy with `stargz` alone.
    #[arg(long, value_name = "NAME", default_value = "crfs")]
    pub(in crate::cli) name: String,
}
