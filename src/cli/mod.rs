//! What the user typed, turned once into plain option structs; the commands, and what they print.
//!
//! Only this folder uses clap, the environment, standard output and standard error.

mod args;
mod cache;
mod configuration;
mod doctor;
mod endpoints;
mod environment;
mod explain;
mod format;
mod heat;
mod help;
mod helper;
mod metrics;
mod mount;
mod options;
mod pages;
mod progress;
mod settled;
mod show;
#[cfg(feature = "snapshotter")]
mod snapshotter;
mod status;
mod store;
mod upgrade;
mod values;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::CommandFactory;
use clap::error::ErrorKind;
use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;

use crate::doctor::apart;
use crate::errors::chain;
use crate::image::{self, Error};
use crate::keeper;
use crate::serve;
use args::{Cli, Command, ConfigCommand, StoreCommand};
use configuration::Typed;
use environment::Environment;
use options::UsageError;

/// Runs the command that this process was started with. 0: it worked; 1: it failed; 2: wrong usage.
#[must_use]
pub fn run() -> ExitCode {
    // A write past RLIMIT_FSIZE is to fail with EFBIG, as on a full disk, not to end the server.
    let _cannot_fail = SigSet::from(Signal::SIGXFSZ).thread_block();
    let mut arguments: Vec<_> = std::env::args_os().collect();
    if let Some(role) = helper::role(&arguments) {
        return helper::run(role, &arguments);
    }
    let first = arguments.get(1).and_then(|first| first.to_str());
    // Before anything else takes memory: it stays as small as it is here.
    if first == Some(keeper::SUBCOMMAND) {
        let arguments: Vec<_> = arguments.into_iter().skip(2).collect();
        let clear_away = store::clearing(&arguments);
        return keeper::run(arguments, &Environment::manager(), clear_away);
    }
    if first == Some(apart::SUBCOMMAND) {
        arguments.remove(1);
        return doctor::in_child(|| command(arguments)).into();
    }
    if doctor::is_asked(&arguments) {
        return doctor::in_parent(arguments).into();
    }
    command(arguments).into()
}

/// Does what was typed, and has the exit status.
fn command(arguments: Vec<OsString>) -> u8 {
    const FAILURE: u8 = 1;
    serve::log::write_by(progress::aside);
    let environment = Environment::read();
    let Typed { cli, is_faulty } = match configuration::parse(store::named(arguments), &environment) {
        Ok(typed) => typed,
        Err(error) => {
            complain(&chain(&error));
            return FAILURE;
        }
    };
    if cli.quiet {
        progress::be_quiet();
    }
    match dispatch(cli.command, cli.verbose, &environment) {
        Ok(()) if is_faulty => FAILURE,
        Ok(()) => 0,
        Err(Failure::Usage(error)) => {
            Cli::command().error(ErrorKind::ValueValidation, format::printable(&causes(&error))).exit()
        }
        // Whoever read our output has had enough of it.
        Err(Failure::Failed(serve::Error::Image(Error::Output { source })))
            if source.kind() == io::ErrorKind::BrokenPipe =>
        {
            0
        }
        Err(Failure::Reported) => FAILURE,
        Err(Failure::Failed(error)) => {
            complain(&error.chain());
            FAILURE
        }
        Err(Failure::Store(error)) => {
            complain(&error.chain());
            FAILURE
        }
        #[cfg(feature = "snapshotter")]
        Err(Failure::Snapshotter(error)) => {
            complain(&error.chain());
            FAILURE
        }
    }
}

/// Why a command did not work.
enum Failure {
    Usage(UsageError),
    Failed(serve::Error),
    Store(crate::podman::Error),
    #[cfg(feature = "snapshotter")]
    Snapshotter(crate::snapshotter::Error),
    /// Whoever waits has been told already.
    Reported,
}

impl From<UsageError> for Failure {
    fn from(error: UsageError) -> Self {
        Self::Usage(error)
    }
}

impl From<crate::podman::Error> for Failure {
    fn from(error: crate::podman::Error) -> Self {
        Self::Store(error)
    }
}

#[cfg(feature = "snapshotter")]
impl From<crate::snapshotter::Error> for Failure {
    fn from(error: crate::snapshotter::Error) -> Self {
        Self::Snapshotter(error)
    }
}

impl From<serve::Error> for Failure {
    fn from(error: serve::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<image::Error> for Failure {
    fn from(error: image::Error) -> Self {
        Self::Failed(error.into())
    }
}

fn dispatch(command: Command, verbose: u8, environment: &Environment) -> Result<(), Failure> {
    let log = options::log(verbose, environment);
    // A server starts its log itself, when it has a directory for it.
    let serves = match &command {
        Command::Serve(_)
        | Command::UserNamespace
        | Command::ProbeKernel(_)
        | Command::StoreWorker(_)
        | Command::StoreReader => true,
        Command::Mount(args) => args.foreground,
        Command::Store(args) => matches!(args.command, StoreCommand::Serve(_)),
        #[cfg(feature = "snapshotter")]
        Command::Snapshotter(args) => matches!(args.command, args::SnapshotterCommand::Serve(_)),
        _ => false,
    };
    if !serves {
        serve::log::start(&log);
    }
    match command {
        Command::Mount(args) => mount::mount(args, verbose, environment),
        Command::Umount(args) => mount::umount(&args, environment),
        Command::Upgrade(args) => upgrade::upgrade(&args, environment),
        Command::Serve(args) => mount::serve(&args),
        Command::UserNamespace => Ok(crate::podman::hold_namespace()?),
        Command::StoreWorker(args) => store::worker(&args),
        Command::StoreReader => Ok(crate::podman::read()?),
        Command::ProbeKernel(args) => Ok(print(&crate::doctor::answer_parent(&args.dir)?)?),
        Command::Inspect(args) => show::inspect(args, environment),
        Command::Explain(args) => explain::explain(&args, environment),
        Command::Heat(args) => heat::heat(&args, environment),
        Command::Doctor(args) => doctor::doctor(&args, environment),
        Command::Index(args) => show::index(args, environment),
        Command::Ls(args) => show::ls(args, environment),
        Command::Cat(args) => show::cat(args, environment),
        Command::Stat(args) => show::stat(args, environment),
        Command::Status(args) => status::status(&args, environment),
        Command::Metrics(args) => metrics::metrics(&args, environment),
        Command::Store(args) => store::store(args.command, &log, environment),
        #[cfg(feature = "snapshotter")]
        Command::Snapshotter(args) => snapshotter::snapshotter(args.command, &log, environment),
        Command::Cache(args) => cache::cache(args.command, environment),
        Command::Config(args) => {
            let ConfigCommand::Show(args) = args.command;
            configuration::show(&args, environment)
        }
        Command::Man(args) => Ok(pages::man(&args.dir)?),
        Command::Completions(args) => Ok(pages::completions(args.shell)?),
    }
}

/// One line of JSON.
fn json(value: &impl Serialize) -> Result<String, Error> {
    let text = serde_json::to_string(value).map_err(|error| Error::Output { source: error.into() })?;
    Ok(text + "\n")
}

/// Writes the result of a command to standard output.
fn print(text: &str) -> Result<(), Error> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).map_err(|source| Error::Output { source })
}

/// Says on standard error what went wrong.
fn complain(message: &str) {
    // Where standard error is closed, the exit status has to do.
    let line = complaint(message);
    progress::aside(&mut || drop(writeln!(io::stderr().lock(), "{line}")));
}

fn complaint(message: &str) -> String {
    format!("crfs: {}", format::printable(message))
}

/// An error and its causes on one line.
fn causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .map(ToString::to_string)
        .fold(error.to_string(), |text, cause| if text.contains(&cause) { text } else { format!("{text}: {cause}") })
}
