//! `crfs doctor`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::{AccessArgs, CachePlaceArgs, StorePlaceArgs};
use crate::cli::help;

/// Look at this machine: what crfs needs and does not find, what that means, and what to do
///
/// Tells problems and notes, and of what is well only that it is. With an IMAGE also whether its registry answers, by which mirrors and
/// credentials, and whether its layers are lazy.
#[derive(Debug, Args)]
#[command(after_long_help = help::DOCTOR)]
pub(in crate::cli) struct DoctorArgs {
    /// An image as the other commands take it.
    #[arg(value_name = "IMAGE")]
    pub(in crate::cli) image: Option<OsString>,
    /// Tell what is well, too.
    #[arg(long)]
    pub(in crate::cli) all: bool,
    #[command(flatten)]
    pub(in crate::cli) place: StorePlaceArgs,
    #[command(flatten)]
    pub(in crate::cli) access: AccessArgs,
    #[command(flatten)]
    pub(in crate::cli) cache: CachePlaceArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

/// As src/doctor/probe.rs spells them.
#[derive(Debug, Args)]
pub(in crate::cli) struct ProbeKernelArgs {
    /// An empty directory.
    pub(in crate::cli) dir: PathBuf,
}
