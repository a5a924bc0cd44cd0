//! `crfs config`.

use clap::{Args, Subcommand};

use crate::cli::configuration::help;

/// Show the options that files and variables of this machine set
#[derive(Debug, Args)]
#[command(after_long_help = help::CONFIG, disable_help_subcommand = true)]
pub(in crate::cli) struct ConfigArgs {
    #[command(subcommand)]
    pub(in crate::cli) command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ConfigCommand {
    Show(ConfigShowArgs),
}

/// Show each key with its value, and where the value is from
#[derive(Debug, Args)]
#[command(after_long_help = help::SHOW)]
pub(in crate::cli) struct ConfigShowArgs {
    /// Print one JSON object.
    #[arg(long)]
    pub(in crate::cli) json: bool,
}
