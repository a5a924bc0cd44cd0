//! `crfs cache`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::CONFIGURABLE;
use crate::cli::{help, values};

/// Show, clear or verify what was fetched and is kept on disk
///
/// All mounts of a user share one cache. It may be shown, cleared and verified while they are in use.
#[derive(Debug, Args)]
#[command(after_long_help = help::CACHE, disable_help_subcommand = true)]
pub(in crate::cli) struct CacheArgs {
    #[command(subcommand)]
    pub(in crate::cli) command: CacheCommand,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum CacheCommand {
    Show(CacheShowArgs),
    Clear(CacheClearArgs),
    Verify(CacheVerifyArgs),
}

/// Where the cache is.
#[derive(Debug, Args)]
pub(in crate::cli) struct CacheDirArgs {
    /// The cache directory; crfs's is what is in `v2` below it. Default: $XDG_CACHE_HOME/crfs, for root /var/cache/crfs.
    #[arg(long, help_heading = CONFIGURABLE, value_name = "DIR")]
    pub(in crate::cli) cache_dir: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

/// Show what is cached of each layer, and the limit
#[derive(Debug, Args)]
#[command(after_long_help = help::CACHE_SHOW)]
pub(in crate::cli) struct CacheShowArgs {
    #[command(flatten)]
    pub(in crate::cli) dir: CacheDirArgs,
    /// The limit that mounts are given, if they are.
    #[arg(long, help_heading = CONFIGURABLE, value_name = "SIZE", value_parser = values::size)]
    pub(in crate::cli) cache_size: Option<u64>,
}

/// Remove what is cached
///
/// Mounts go on: what they need again they fetch again. Of a layer that is in use the index stays.
#[derive(Debug, Args)]
#[command(after_long_help = help::CACHE_CLEAR)]
pub(in crate::cli) struct CacheClearArgs {
    #[command(flatten)]
    pub(in crate::cli) dir: CacheDirArgs,
    /// Only files' contents: indexes and manifests stay, so that mounting stays as quick as it was.
    #[arg(long)]
    pub(in crate::cli) contents: bool,
}

/// Check every cached byte against its digest
///
/// Says what is wrong, and changes nothing. A mount would notice by itself, at its first use, and fetch it again.
#[derive(Debug, Args)]
#[command(after_long_help = help::CACHE_VERIFY)]
pub(in crate::cli) struct CacheVerifyArgs {
    #[command(flatten)]
    pub(in crate::cli) dir: CacheDirArgs,
}
