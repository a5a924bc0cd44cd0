//! The command lines with which mount(8) and umount(8) call their helpers. Both give their options behind the names.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser};

use super::help;

/// Mount a container image, as mount(8) and fstab(5) have it
///
/// mount(8) calls it for `mount -t crfs`, with what fstab says or what was typed. It returns when the directory can be used, and leaves
/// a server in the background that ends with the mount.
#[derive(Debug, Parser)]
#[command(name = super::MOUNT, version, after_long_help = help::MOUNT, max_term_width = 110)]
pub(super) struct MountHelperArgs {
    /// The image, as `crfs mount` takes it; docker:// before a name keeps mount(8) from taking it for a file.
    #[arg(value_name = "IMAGE")]
    pub(super) image: OsString,
    /// The directory to mount on; it must exist.
    pub(super) dir: PathBuf,
    /// Options with commas between them: those of `crfs mount` without the dashes before them, and those of mount(8).
    #[arg(short, value_name = "OPTIONS")]
    pub(super) options: Vec<OsString>,
    /// Tolerate options that crfs does not know.
    #[arg(short)]
    pub(super) sloppy: bool,
    /// Do everything but mount.
    #[arg(short)]
    pub(super) fake: bool,
    /// Say what was mounted; twice: log what is done, and so on.
    #[arg(short, action = ArgAction::Count)]
    pub(super) verbose: u8,
    #[command(flatten)]
    pub(super) both: BothArgs,
}

/// Unmount a container image, as umount(8) has it
///
/// umount(8) calls it for what crfs has mounted. It returns when the mount's server has ended, or says who still uses it.
#[derive(Debug, Parser)]
#[command(name = super::UMOUNT, version, after_long_help = help::UMOUNT, max_term_width = 110)]
pub(super) struct UmountHelperArgs {
    /// The mount point.
    pub(super) dir: PathBuf,
    /// Fail what waits for an answer of the mount.
    #[arg(short)]
    pub(super) force: bool,
    /// Unmount it also where it is in use: those who use it keep it.
    #[arg(short)]
    pub(super) lazy: bool,
    /// For umount(8): it is read-only already.
    #[arg(short)]
    pub(super) read_only: bool,
    /// Log what is done.
    #[arg(short, action = ArgAction::Count)]
    pub(super) verbose: u8,
    #[command(flatten)]
    pub(super) both: BothArgs,
}

/// What both are called with.
#[derive(Debug, Args)]
pub(super) struct BothArgs {
    /// Do it in this mount namespace.
    #[arg(short = 'N', value_name = "FILE")]
    pub(super) namespace: Option<PathBuf>,
    /// For mount(8) and umount(8): crfs has no mtab.
    #[arg(short)]
    pub(super) no_mtab: bool,
    /// For mount(8) and umount(8): the type of the filesystem.
    #[arg(short = 't', value_name = "TYPE")]
    pub(super) kind: Option<OsString>,
}
