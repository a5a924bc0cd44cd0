//! The command line, as clap reads it.

mod cache;
mod config;
mod doctor;
#[cfg(feature = "snapshotter")]
mod snapshotter;
mod store;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

pub(super) use self::cache::*;
pub(super) use self::config::*;
pub(super) use self::doctor::*;
#[cfg(feature = "snapshotter")]
pub(super) use self::snapshotter::*;
pub(super) use self::store::*;
use super::{help, values};
use crate::blob::Digest;
use crate::registry::Platform;
use crate::serve::listen::Listen;
use crate::serve::options::LayerChoice;

/// The options that have a key in the configuration stand below this heading in `--help`: src/cli/configuration reads it here.
pub(super) const CONFIGURABLE: &str = "Configurable options";

/// Container images, readable at once.
///
/// crfs shows the files of a container image without downloading it first: it reads the manifest and the layers' tables of
/// contents, and fetches and verifies what is read when it is first read.
#[derive(Debug, Parser)]
#[command(name = "crfs", version, after_long_help = help::CRFS, disable_help_subcommand = true, max_term_width = 110)]
pub(super) struct Cli {
    /// Say more on standard error: -v what is done, -vv every request, -vvv everything. RUST_LOG wins over it.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(super) verbose: u8,
    /// Say nothing on standard error but what has failed: no progress, no warnings.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(super) quiet: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Mount(MountArgs),
    Umount(UmountArgs),
    Upgrade(UpgradeArgs),
    Inspect(InspectArgs),
    Explain(ExplainArgs),
    Heat(HeatArgs),
    Index(IndexArgs),
    Ls(LsArgs),
    Cat(CatArgs),
    Stat(StatArgs),
    Status(StatusArgs),
    Doctor(DoctorArgs),
    Metrics(MetricsArgs),
    Store(StoreArgs),
    #[cfg(feature = "snapshotter")]
    Snapshotter(SnapshotterArgs),
    Cache(CacheArgs),
    Config(ConfigArgs),
    Man(ManArgs),
    Completions(CompletionsArgs),
    /// Serves a mount whose options come on standard input. Its keeper starts it.
    #[command(name = crate::serve::background::SUBCOMMAND, hide = true)]
    Serve(ServeArgs),
    /// Holds a user namespace for whoever maps owners by it. `crfs store` starts it.
    #[command(name = crate::podman::NAMESPACE, hide = true)]
    UserNamespace,
    /// Serves a store whose options come on standard input. Its keeper starts it.
    #[command(name = crate::podman::WORKER, hide = true)]
    StoreWorker(StoreWorkerArgs),
    /// Reads the layers of an image for a store's server. The server starts it.
    #[command(name = crate::podman::READER, hide = true)]
    StoreReader,
    /// Tries what the kernel can do. `crfs doctor` starts it.
    #[command(name = crate::doctor::SUBCOMMAND, hide = true)]
    ProbeKernel(ProbeKernelArgs),
}

/// As src/keeper and src/serve/background.rs spell them.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// The number of the descriptor that leads to the keeper.
    #[arg(long)]
    pub(super) keeper: std::os::fd::RawFd,
    /// Goes on with what another one has mounted.
    #[arg(long)]
    pub(super) resume: bool,
    /// Whoever wants the mount stays with it.
    #[arg(long)]
    pub(super) foreground: bool,
    /// What is mounted at the directory waits for this process group to mount something else there.
    #[arg(long)]
    pub(super) over_autofs: bool,
}

/// Mount an image, read-only, on a directory
///
/// Returns when the directory can be used, prints one line, and leaves a server in the background that ends with the mount.
/// When it fails, nothing is mounted.
#[derive(Debug, PartialEq, Eq, Args)]
#[command(after_long_help = help::MOUNT)]
pub(super) struct MountArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,
    /// The directory to mount on; it must exist.
    pub(super) dir: PathBuf,
    /// Let other users look into the mount. Default: yes for root, no for others, who need user_allow_other in
    /// /etc/fuse.conf for it.
    #[arg(long, help_heading = CONFIGURABLE, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) allow_other: Option<bool>,
    /// Let nobody start a program from the mount.
    #[arg(long)]
    pub(super) noexec: bool,
    /// What to fetch before anything reads it; readers who wait always come first. What is read brings its surroundings as
    /// well, but with none.
    #[arg(long, help_heading = CONFIGURABLE, value_enum, default_value = "hints")]
    pub(super) prefetch: PrefetchArg,
    /// Give up where the directory cannot be used after this time. Time in which layers without an index are read does not count, as
    /// long as bytes come.
    #[arg(long, help_heading = CONFIGURABLE, value_name = "TIME", value_parser = values::time, default_value = "60s")]
    pub(super) mount_deadline: Duration,
    /// Serve in this process, and stay until the mount ends.
    #[arg(long)]
    pub(super) foreground: bool,
    /// Who answers the kernel.
    #[arg(long, help_heading = CONFIGURABLE, value_enum, default_value = "auto")]
    pub(super) frontend: FrontendArg,
    /// Serve one layer alone, as a lower directory for overlayfs: its number, 0 the lowest, or its digest. Whiteouts are
    /// character devices 0:0, opaque directories have an xattr.
    #[arg(long, value_name = "N|DIGEST", value_parser = values::layer)]
    pub(super) layer: Option<LayerChoice>,
    /// With --layer: the namespace of the xattr on opaque directories. overlayfs looks at user.* where it is mounted with
    /// userxattr. Default: trusted with CAP_SYS_ADMIN in the initial user namespace, else user.
    #[arg(long, value_enum)]
    pub(super) opaque_xattr: Option<OpaqueArg>,
    /// Serve this mount's metrics, for Prometheus, at http://ADDR/metrics: 127.0.0.1:PORT or unix:PATH.
    #[arg(long, value_name = "ADDR", value_parser = |text: &str| text.parse::<Listen>())]
    pub(super) metrics_listen: Option<Listen>,
    /// Let file handles outlive the kernel's caches, as NFS servers and some backup programs need it. Not for the lower
    /// directory of an overlayfs with metacopy, redirect_dir, index or xino: files that are written there become stale.
    #[arg(long, conflicts_with = "layer")]
    pub(super) nfs_export: bool,
    /// All of these, as settled.rs has them.
    #[arg(skip)]
    pub(super) settled: Vec<PathBuf>,
}

/// Which image, and how to reach it.
#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct ImageArgs {
    /// As it was typed; parsed by registry/.
    #[arg(
        value_name = "IMAGE",
        help = "The image: NAME[:TAG][@DIGEST] in a registry, oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:NAME]"
    )]
    pub(super) reference: OsString,
    #[command(flatten)]
    pub(super) access: AccessArgs,
    #[command(flatten)]
    pub(super) cache: CachePlaceArgs,
}

/// How to reach an image's registry, and what to believe of it.
#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct AccessArgs {
    /// The image for this platform. Default: that of this machine.
    #[arg(long, help_heading = CONFIGURABLE, value_name = "OS/ARCH[/VARIANT]", value_parser = |text: &str| text.parse::<Platform>())]
    pub(super) platform: Option<Platform>,
    /// The file with the credentials, instead of those that podman and docker keep.
    #[arg(long, help_heading = CONFIGURABLE, value_name = "FILE")]
    pub(super) authfile: Option<PathBuf>,
    /// Verify certificates; with =false, take any and speak http, too. It wins over `insecure` of registries.conf. Default: verify,
    /// but loopback registries may speak http.
    #[arg(long, help_heading = CONFIGURABLE, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) tls_verify: Option<bool>,
    /// A directory with certificates for all hosts, instead of certs.d: *.crt of authorities or of the registry itself, *.cert and
    /// *.key of this client.
    #[arg(long, help_heading = CONFIGURABLE, value_name = "DIR")]
    pub(super) cert_dir: Option<PathBuf>,
    /// A directory of containerd's hosts.toml (`config_path`), with a directory for each registry. It alone says which hosts are asked:
    /// neither registries.conf nor certs.d is read then.
    #[arg(long, help_heading = CONFIGURABLE, value_name = "DIR")]
    pub(super) hosts_dir: Option<PathBuf>,
    /// Give up a read that has made no progress for this time (less than 1 KiB/s is none). The reader sees EIO, and the next
    /// read tries again.
    #[arg(long, help_heading = CONFIGURABLE, value_name = "TIME", value_parser = values::time, default_value = "120s")]
    pub(super) io_deadline: Duration,
    /// Read layers smaller than this whole, in one request: their own digest then vouches for them. 0: none.
    #[arg(long, help_heading = CONFIGURABLE, value_name = "SIZE", value_parser = values::size, default_value = "1MiB")]
    pub(super) whole_layer_below: u64,
    /// Serve a layer although nothing vouches for its table of contents. Whoever controls the registry can then show any
    /// files; nothing of it enters the shared cache.
    #[arg(long, help_heading = CONFIGURABLE, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = ArgAction::Set)]
    pub(super) insecure_unverified_toc: bool,
    /// The most memory that the image may take beside some 100 bytes for each of its entries (200 more while they are read): what its layers have of
    /// long names, links and xattrs, and what they unpack to. An image that would take more is refused, with the name of the layer.
    #[arg(long, help_heading = CONFIGURABLE, value_name = "SIZE", value_parser = values::size, default_value = "256MiB")]
    pub(super) memory_limit: u64,
    /// Use a SOCI index (v1) that refers to the image where its manifest names none. Whoever may push to the repository can add
    /// one, and what it says of a layer is shown.
    #[arg(long, help_heading = CONFIGURABLE, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = ArgAction::Set, conflicts_with = "soci_index")]
    pub(super) soci_v1: bool,
    /// Use this SOCI index of the repository. It is trusted as the image is.
    #[arg(long, value_name = "DIGEST", value_parser = |text: &str| text.parse::<Digest>())]
    pub(super) soci_index: Option<Digest>,
}

/// Where what was fetched is kept.
#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct CachePlaceArgs {
    /// Where to keep what was fetched: a directory on a local filesystem, since on a network filesystem contents stay only while
    /// they are mounted. What is kept goes into `v2` below it, which becomes crfs's; one that holds anything else is not used. Default: $XDG_CACHE_HOME/crfs, for root /var/cache/crfs.
    #[arg(long, help_heading = CONFIGURABLE, value_name = "DIR")]
    pub(super) cache_dir: Option<PathBuf>,
    /// The most that the cache may take on the disk, all in all; what was not used for the longest time goes first. Give all
    /// mounts the same, since each keeps to its own. Default: 10 GiB, or a tenth of the filesystem where that is less. Nothing
    /// is stored where less than 5 % of the filesystem would stay free, or less than 1 GiB (a quarter, where that is less).
    #[arg(long, help_heading = CONFIGURABLE, value_name = "SIZE", value_parser = values::size)]
    pub(super) cache_size: Option<u64>,
}

/// Take a crfs mount from its directory
///
/// fusermount3 -u and umount do so, too. A mount whose server has died is taken away as well.
#[derive(Debug, Args)]
#[command(after_long_help = help::UMOUNT)]
pub(super) struct UmountArgs {
    /// The mount point, or the mount's id (see `crfs status`).
    #[arg(value_name = "DIR|ID", required_unless_present = "all")]
    pub(super) target: Option<PathBuf>,
    /// Unmount all crfs mounts of this user.
    #[arg(long, conflicts_with = "target")]
    pub(super) all: bool,
}

/// Hand a mount, or a store, over to the crfs that is installed now
///
/// Nobody who uses the mount notices. The new server opens the image by the cache while the old one serves, and takes over when
/// it is ready. If it does not become ready, the old one goes on, and the reason is said.
#[derive(Debug, Args)]
#[command(after_long_help = help::UPGRADE)]
pub(super) struct UpgradeArgs {
    /// The mount point, the mount's id (see `crfs status`), or the directory of a store.
    #[arg(value_name = "DIR|ID", required_unless_present = "all")]
    pub(super) target: Option<PathBuf>,
    /// Upgrade all crfs mounts of this user, and the store that is served at --root.
    #[arg(long, conflicts_with = "target")]
    pub(super) all: bool,
    #[command(flatten)]
    pub(super) place: StorePlaceArgs,
}

/// Show what an image is made of, and which layers can be read lazily
#[derive(Debug, Args)]
#[command(after_long_help = help::INSPECT)]
pub(super) struct InspectArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,
    /// Bytes per second of the link to the registry, to say how long a mount would wait. The default is 100 Mbit/s.
    #[arg(long, help_heading = CONFIGURABLE, value_name = "SIZE", value_parser = values::size, default_value = "12500000")]
    pub(super) bandwidth: u64,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
}

/// Say of each layer whether it is lazy, why, what it costs, and what would make it better
///
/// Of a mount it says what its server has fetched until the mount was ready, and since. Of an image, what a mount would fetch.
#[derive(Debug, Args)]
#[command(after_long_help = help::EXPLAIN)]
pub(super) struct ExplainArgs {
    /// A mount point, the id of a mount (see `crfs status`), or an image as the other commands take it.
    #[arg(value_name = "MOUNT|IMAGE")]
    pub(super) target: OsString,
    #[command(flatten)]
    pub(super) access: AccessArgs,
    #[command(flatten)]
    pub(super) cache: CachePlaceArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
}

/// Draw what became of the bytes of each layer: read, fetched and not read, not fetched, and when
///
/// Of a mount, what its server has recorded since it started. Of an image that is not mounted, what the cache has of it.
#[derive(Debug, Args)]
#[command(after_long_help = help::HEAT, group = clap::ArgGroup::new("how").required(true).multiple(true))]
pub(super) struct HeatArgs {
    /// A mount point, the id of a mount (see `crfs status`), or an image as the other commands take it.
    #[arg(value_name = "MOUNT|IMAGE")]
    pub(super) target: OsString,
    #[command(flatten)]
    pub(super) access: AccessArgs,
    #[command(flatten)]
    pub(super) cache: CachePlaceArgs,
    /// Write a picture to this file, or to standard output (-). It is one file, for light and dark backgrounds.
    #[arg(long, value_name = "FILE", group = "how")]
    pub(super) svg: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long, group = "how")]
    pub(super) json: bool,
}

/// Make the indexes of all plain layers of an image, ahead of time
///
/// Layers without a table of contents (tar, tar+gzip, tar+zstd) are read once, checked and indexed; mounts that use the same cache find
/// the indexes there, and fetch only what is read.
#[derive(Debug, Args)]
#[command(after_long_help = help::INDEX)]
pub(super) struct IndexArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,
    /// Write the indexes to this tar, too: unpacked in the cache directory of another machine, they serve there.
    #[arg(long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
}

/// List a directory of an image without mounting it
#[derive(Debug, Args)]
#[command(after_long_help = help::LS)]
pub(super) struct LsArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,
    /// The path in the image.
    #[arg(default_value = "/")]
    pub(super) path: OsString,
    /// Show mode, links, owner, group, size and time (UTC), too.
    #[arg(short)]
    pub(super) long: bool,
    /// List all directories below, too.
    #[arg(short = 'R')]
    pub(super) recursive: bool,
    /// Print one JSON object per file and line.
    #[arg(long)]
    pub(super) json: bool,
}

/// Write a file of an image to standard output, without mounting the image
#[derive(Debug, Args)]
#[command(after_long_help = help::CAT)]
pub(super) struct CatArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,
    /// The path in the image.
    pub(super) path: OsString,
}

/// Show the attributes of a file of an image, without mounting the image
#[derive(Debug, Args)]
#[command(after_long_help = help::STAT)]
pub(super) struct StatArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,
    /// The path in the image; a symbolic link at its end is shown itself.
    pub(super) path: OsString,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
}

/// Show this user's mounts and store, and what they have done
#[derive(Debug, Args)]
#[command(after_long_help = help::STATUS)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    pub(super) place: StorePlaceArgs,
    /// Print one JSON array.
    #[arg(long)]
    pub(super) json: bool,
}

/// Print what this user's servers count, for Prometheus
///
/// Of all mounts and of the store, in Prometheus' text format. docs/METRICS.md says what each metric means.
#[derive(Debug, Args)]
#[command(after_long_help = help::METRICS)]
pub(super) struct MetricsArgs {
    #[command(flatten)]
    pub(super) place: StorePlaceArgs,
}

/// Write the manual pages
///
/// One for each command: crfs.1, crfs-mount.1 and so on.
#[derive(Debug, Args)]
#[command(after_long_help = help::MAN)]
pub(super) struct ManArgs {
    /// The directory to write them into; it must exist.
    pub(super) dir: PathBuf,
}

/// Print what completes the commands and options of crfs in a shell
#[derive(Debug, Args)]
#[command(after_long_help = help::COMPLETIONS)]
pub(super) struct CompletionsArgs {
    /// The shell that they are for.
    pub(super) shell: Shell,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PrefetchArg {
    /// Nothing but what is read.
    None,
    /// What the image's landmarks name, and the program that its config starts.
    Hints,
    /// The hints, then everything.
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum FrontendArg {
    /// The best that works here.
    Auto,
    /// FUSE: every kernel, every user.
    Fuse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum OpaqueArg {
    Trusted,
    User,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("crfs").chain(words.iter().copied()))
    }

    fn mount(words: &[&str]) -> MountArgs {
        match parse(&[&["mount"], words].concat()).unwrap().command {
            Command::Mount(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_of_mount() {
        let args = mount(&["alpine", "/mnt"]);
        assert_eq!(args.mount_deadline, Duration::from_secs(60));
        assert_eq!(args.image.access.io_deadline, Duration::from_secs(120));
        assert_eq!(args.image.access.whole_layer_below, 1 << 20);
        assert_eq!((args.prefetch, args.frontend), (PrefetchArg::Hints, FrontendArg::Auto));
        assert_eq!((args.image.access.tls_verify, args.allow_other, args.image.cache.cache_size), (None, None, None));
        assert!(!args.foreground && !args.image.access.insecure_unverified_toc);
    }

    #[test]
    fn switches_take_a_value_only_after_an_equals_sign() {
        assert_eq!(mount(&["--tls-verify", "alpine", "/mnt"]).image.access.tls_verify, Some(true));
        assert_eq!(mount(&["--tls-verify=false", "alpine", "/mnt"]).image.access.tls_verify, Some(false));
        assert_eq!(mount(&["--allow-other=false", "alpine", "/mnt"]).allow_other, Some(false));
    }

    #[test]
    fn verbosity_may_stand_anywhere() {
        for words in [["-vv", "status"], ["status", "-vv"]] {
            assert_eq!(parse(&words).unwrap().verbose, 2);
        }
    }

    #[test]
    fn wrong_usage_ends_with_2() {
        let wrong: [&[&str]; 9] = [
            &[],
            &["mount", "alpine"],
            &["mount", "--io-deadline=0", "alpine", "/mnt"],
            &["mount", "--whole-layer-below=1T", "alpine", "/mnt"],
            &["mount", "--platform=arm", "alpine", "/mnt"],
            &["mount", "--prefetch=some", "alpine", "/mnt"],
            &["umount"],
            &["cache"],
            &["mount", "--cache-size=most", "alpine", "/mnt"],
        ];
        for words in wrong {
            assert_eq!(parse(words).unwrap_err().exit_code(), 2, "{words:?}");
        }
    }

    #[test]
    fn every_command_has_its_own_help_with_examples() {
        fn check(command: &mut clap::Command) {
            let help = command.render_long_help().to_string();
            let lacks = ["Examples:", "Exit status:", "Usage:"].iter().find(|part| !help.contains(**part));
            assert_eq!(lacks, None, "{}", command.get_name());
            command.get_subcommands_mut().for_each(check);
        }
        let mut crfs = Cli::command();
        crfs.get_subcommands_mut().filter(|command| !command.is_hide_set()).for_each(check);
        assert_eq!(parse(&["mount", "--help"]).unwrap_err().kind(), ErrorKind::DisplayHelp);
        assert!(!crfs.render_long_help().to_string().contains(" serve "));
    }
}
