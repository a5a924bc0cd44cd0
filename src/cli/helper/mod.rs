//! crfs as the helper of mount(8) and umount(8): by its name (mount.crfs, mount.fuse.crfs, umount.crfs, umount.fuse.crfs), and as
//! `crfs IMAGE DIR -o OPTIONS`, which is how mount.fuse(8) calls a filesystem.

mod args;
mod error;
mod help;
mod words;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser};
use nix::sched::{CloneFlags, setns};

use self::args::{MountHelperArgs, UmountHelperArgs};
use self::error::Wrong;
use self::words::Asked;
use super::args::{Cli, Command, MountArgs};
use super::environment::Environment;
use super::options::{self, rooted};
use super::{Failure, causes, complain, configuration, mount, settled};
use crate::errors::chain;
use crate::keeper;
use crate::registry::ImageRef;
use crate::serve::options::MountOptions;
use crate::serve::remount::Present;
use crate::serve::unmount::{Detach, unmount};
use crate::serve::{self, Error};

const MOUNT: &str = "mount.crfs";
const UMOUNT: &str = "umount.crfs";

/// What a helper's exit status says (mount(8), "EXIT STATUS").
mod status {
    pub(super) const USAGE: u8 = 1;
    pub(super) const SYSTEM: u8 = 2;
    pub(super) const INTERRUPTED: u8 = 8;
    pub(super) const FAILED: u8 = 32;
}

/// Which helper it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Mount,
    Umount,
}

/// By the program's name, or by arguments that name no command of crfs.
pub(super) fn role(arguments: &[OsString]) -> Option<Role> {
    let program = Path::new(arguments.first()?).file_name()?.to_str()?;
    match program {
        MOUNT | "mount.fuse.crfs" => Some(Role::Mount),
        UMOUNT | "umount.fuse.crfs" => Some(Role::Umount),
        _ => is_by_arguments(arguments.get(1..)?).then_some(Role::Mount),
    }
}

/// `IMAGE DIR -o OPTIONS`
fn is_by_arguments(arguments: &[OsString]) -> bool {
    let starts_with = |word: &OsString, start: &str| word.to_str().is_some_and(|word| word.starts_with(start));
    match arguments {
        [image, dir, options @ ..] if !starts_with(image, "-") && !starts_with(dir, "-") => {
            let is_command = || image == keeper::SUBCOMMAND || Cli::command().find_subcommand(image).is_some();
            options.iter().any(|word| starts_with(word, "-o")) && !is_command()
        }
        _ => false,
    }
}

/// The definitions, for manual pages.
pub(super) fn definitions() -> [clap::Command; 2] {
    [MountHelperArgs::command(), UmountHelperArgs::command()]
}

/// Does what mount(8) or umount(8) wants.
pub(super) fn run(role: Role, arguments: &[OsString]) -> ExitCode {
    let done = match role {
        Role::Mount => parsed(arguments).and_then(|args| mount_image(&args)),
        Role::Umount => parsed(arguments).and_then(|args| unmount_image(&args)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            let (status, message) = failed.told();
            message.iter().for_each(|message| complain(message));
            ExitCode::from(status)
        }
    }
}

fn parsed<A: Parser>(arguments: &[OsString]) -> Result<A, Failed> {
    A::try_parse_from(arguments).map_err(|error| Failed::Arguments(Box::new(error)))
}

/// Why a helper has failed.
enum Failed {
    Arguments(Box<clap::Error>),
    Usage(Wrong),
    Refused(Wrong),
    Configuration(configuration::Error),
    Command(Failure),
}

impl From<Wrong> for Failed {
    fn from(wrong: Wrong) -> Self {
        match wrong {
            Wrong::Fixed { .. } | Wrong::OtherImage { .. } | Wrong::Namespace { .. } => Self::Refused(wrong),
            _ => Self::Usage(wrong),
        }
    }
}

impl<E: Into<Failure>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Command(error.into())
    }
}

impl Failed {
    /// The exit status, and what is said, if clap has not said it already.
    fn told(self) -> (u8, Option<String>) {
        match self {
            Self::Arguments(error) => {
                let is_asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
                // Where nobody can be told, the exit status has to do.
                let _told = error.print();
                (if is_asked { 0 } else { status::USAGE }, None)
            }
            Self::Usage(wrong) => (status::USAGE, Some(causes(&wrong))),
            Self::Refused(wrong) => (status::FAILED, Some(causes(&wrong))),
            Self::Configuration(error) => (status::USAGE, Some(chain(&error))),
            Self::Command(Failure::Usage(error)) => (status::USAGE, Some(causes(&error))),
            Self::Command(Failure::Failed(error)) => (of_error(&error), Some(error.chain())),
            Self::Command(Failure::Store(error)) => (status::FAILED, Some(error.chain())),
            #[cfg(feature = "snapshotter")]
            Self::Command(Failure::Snapshotter(error)) => (status::FAILED, Some(error.chain())),
            Self::Command(Failure::Reported) => (status::FAILED, None),
        }
    }
}

fn of_error(error: &Error) -> u8 {
    match error {
        Error::Interrupted => status::INTERRUPTED,
        Error::Spawn { .. } | Error::Runtime { .. } | Error::Handover { .. } => status::SYSTEM,
        _ => status::FAILED,
    }
}

fn mount_image(args: &MountHelperArgs) -> Result<(), Failed> {
    // While there is but one thread.
    args.both.namespace.as_deref().map_or(Ok(()), enter)?;
    let environment = Environment::of_helper();
    serve::log::start(&options::log(args.verbose.saturating_sub(1), &environment));
    let definition = definition();
    let asked = words::read(&args.options, definition.get_arguments())?;
    if asked.remount {
        return remount(args, asked, &environment);
    }
    let options = wanted(args, asked, &command(&environment)?, &environment)?;
    if args.fake {
        return Ok(());
    }
    let start = Instant::now();
    let ready = mount::in_background(&options)?;
    if args.verbose > 0 {
        // It is mounted, whether or not anybody could be told.
        untold(mount::say_ready(&ready, &options.dir, start.elapsed()));
    }
    Ok(())
}

fn untold(told: Result<(), crate::image::Error>) {
    if let Err(error) = told {
        tracing::warn!(error = chain(&error), "it is done, but nobody could be told so");
    }
}

fn enter(namespace: &Path) -> Result<(), Wrong> {
    let failed = |source| Wrong::Namespace { path: namespace.to_owned(), source };
    let file = File::open(namespace).map_err(failed)?;
    setns(file, CloneFlags::CLONE_NEWNS).map_err(|errno| failed(errno.into()))
}

/// `crfs mount`, with all that may stand behind it.
fn definition() -> clap::Command {
    let mut whole = Cli::command();
    whole.build();
    whole.find_subcommand("mount").cloned().unwrap_or_default()
}

/// What clap says, and what of the options of mount(8) may be meant.
fn wrong(error: clap::Error) -> Wrong {
    match Wrong::from(error) {
        Wrong::Unknown { name, nearest: None } => Wrong::Unknown { nearest: words::nearest(&name), name },
        wrong => wrong,
    }
}

/// Reads the words. Those that are unknown are left out where that is wanted.
fn read(args: &MountHelperArgs, asked: &mut Asked, crfs: &clap::Command) -> Result<(MountArgs, u8), Wrong> {
    loop {
        match parse(crfs, &asked.words, &args.image, &args.dir).map_err(wrong) {
            Err(Wrong::Unknown { name, .. })
                if args.sloppy && asked.words.iter().any(|word| words::name(word) == name) =>
            {
                tracing::info!(name, "an option is unknown, and left out");
                asked.words.retain(|word| words::name(word) != name);
            }
            done => return done,
        }
    }
}

/// What is to be mounted.
fn wanted(
    args: &MountHelperArgs,
    mut asked: Asked,
    crfs: &clap::Command,
    environment: &Environment,
) -> Result<MountOptions, Failed> {
    let (parsed, verbose) = read(args, &mut asked, crfs)?;
    let text = args.image.to_string_lossy();
    if text.starts_with('/') {
        return Err(Wrong::Path { text: text.into_owned() }.into());
    }
    let options = options::mount(parsed, verbose.max(args.verbose.saturating_sub(1)), environment)?;
    let shown = shown(&text, &options.source.image);
    Ok(MountOptions { shown, ..options })
}

/// The command line with the defaults that this machine's configuration has for `crfs mount`.
fn command(environment: &Environment) -> Result<clap::Command, Failed> {
    let configured = configuration::configured(Cli::command(), &["mount".to_owned()], environment);
    let crfs = configured.map_err(Failed::Configuration)?.unwrap_or_else(Cli::command);
    Ok(mount_command(crfs))
}

/// A later word wins, as for mount(8).
fn mount_command(crfs: clap::Command) -> clap::Command {
    crfs.mut_subcommand("mount", |mount| mount.args_override_self(true))
}

/// As `crfs mount` understands it.
fn parse(crfs: &clap::Command, words: &[OsString], image: &OsStr, dir: &Path) -> Result<(MountArgs, u8), clap::Error> {
    let before = ["crfs", "mount"].map(OsString::from);
    let behind = [OsString::from("--"), image.to_owned(), dir.into()];
    let matches = crfs.clone().try_get_matches_from(before.iter().chain(words).chain(&behind))?;
    match Cli::from_arg_matches(&matches)? {
        Cli { command: Command::Mount(args), verbose, .. } => {
            Ok((MountArgs { settled: settled::words(crfs, &matches), ..args }, verbose))
        }
        _ => Err(clap::Error::new(ErrorKind::InvalidSubcommand)),
    }
}

/// What the mount table shows: what fstab has, so that mount(8) knows that it is mounted. Paths are those that anybody may use.
fn shown(text: &str, image: &ImageRef) -> Option<String> {
    let is_rooted = matches!(image, ImageRef::Registry(_)) || text.contains(":/");
    let shown = if is_rooted { text.to_owned() } else { image.to_string() };
    // A store's, which has a meaning of its own.
    (!serve::is_stores(&shown)).then_some(shown)
}

/// Changes what can be changed, if all that was asked for is that, or is so already.
fn remount(args: &MountHelperArgs, mut asked: Asked, environment: &Environment) -> Result<(), Failed> {
    let dir = rooted(&args.dir)?;
    let present = Present::at(&dir, &environment.state_dirs())?;
    let image = args.image.to_string_lossy();
    if !present.is_of(&image) {
        return Err(Wrong::OtherImage { dir, source_there: present.source(), image: image.into_owned() }.into());
    }
    let crfs = settled::with_defaults(mount_command(Cli::command()), &present.words());
    read(args, &mut asked, &crfs)?;
    let mut fixed: Vec<String> = Vec::new();
    for word in &asked.words {
        let name = words::name(word);
        match name == NOEXEC || is_so(&crfs, word, environment)? {
            true => {}
            false => fixed.push(name),
        }
    }
    match fixed.is_empty() {
        false => Err(Wrong::Fixed { names: fixed.join(", "), dir }.into()),
        true if args.fake => Ok(()),
        true => Ok(present.change(asked.words.iter().any(|word| words::name(word) == NOEXEC))?),
    }
}

const NOEXEC: &str = "noexec";

/// Whether a word changes nothing of what `crfs` has as defaults: as it was said, or by what is made of it.
fn is_so(crfs: &clap::Command, word: &OsString, environment: &Environment) -> Result<bool, Failed> {
    let read = |words: &[OsString]| parse(crfs, words, "localhost/remount".as_ref(), "/".as_ref());
    let (before, (after, verbose)) = (read(&[]), read(std::slice::from_ref(word)).map_err(wrong)?);
    if before.as_ref().is_ok_and(|(before, _)| before.settled == after.settled) {
        return Ok(true);
    }
    let meant = |args: MountArgs| {
        let settled = options::mount(MountArgs { settled: Vec::new(), ..args }, verbose, environment);
        settled.map_err(Failed::from)
    };
    let after = meant(after)?;
    // What it was mounted with may be nothing today: a file that is gone.
    Ok(before.is_ok_and(|(before, _)| meant(before).is_ok_and(|before| before == after)))
}

fn unmount_image(args: &UmountHelperArgs) -> Result<(), Failed> {
    args.both.namespace.as_deref().map_or(Ok(()), enter)?;
    let environment = Environment::of_helper();
    serve::log::start(&options::log(args.verbose.saturating_sub(1), &environment));
    let how = match args {
        UmountHelperArgs { lazy: true, force: true, .. } => Detach::LazilyByForce,
        UmountHelperArgs { lazy: true, .. } => Detach::Lazily,
        UmountHelperArgs { force: true, .. } => Detach::ByForce,
        _ => Detach::IfIdle,
    };
    let outcome = unmount(&args.dir, &environment.state_dirs(), how)?;
    match how {
        // That others keep it is what was asked for.
        Detach::Lazily | Detach::LazilyByForce if args.verbose == 0 => {}
        // It is unmounted, whether or not anybody could be told.
        _ => untold(mount::said(&args.dir, outcome)),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
