//! What stands in configuration files and `CRFS_*` variables becomes the default of the option of that name, before the command line is parsed. So the
//! command line wins by itself.
//!
//! ```text
//! args.rs -> keys (options below the heading "Configurable options")
//!              |
//! /etc/crfs/config.toml, config.d, ~/.config/crfs/config.toml -> settings <- CRFS_* variables
//!                                                                  |
//! what was typed ------------------------------------------------> Cli
//! ```

mod error;
mod files;
pub(super) mod help;
mod keys;
mod settings;
mod show;

use std::ffi::OsString;

use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};

pub(super) use self::error::Error;
use self::files::Places;
use self::settings::Settings;
pub(super) use self::show::show;
use super::args::Cli;
use super::environment::Environment;
use super::{complain, settled};
use crate::errors::chain;

/// Commands that go on without a configuration that is wrong: whoever has to look, or to upgrade, can do so.
const GO_ON: [&str; 4] = ["status", "metrics", "upgrade", "doctor"];

/// What was typed, with the defaults of this machine.
#[derive(Debug)]
pub(super) struct Typed {
    pub(super) cli: Cli,
    /// Something is wrong in the configuration, and has been said.
    pub(super) is_faulty: bool,
}

/// Help and wrong usage end the process here, with clap's own exit status; neither needs the configuration.
///
/// # Errors
/// Where the configuration is wrong, and the command needs it.
pub(super) fn parse(arguments: Vec<OsString>, environment: &Environment) -> Result<Typed, Error> {
    let typed = Cli::command().get_matches_from(&arguments);
    let command = names(&typed);
    let (matches, is_faulty) = match configured(Cli::command(), &command, environment) {
        Ok(Some(crfs)) => (crfs.get_matches_from(arguments), false),
        Ok(None) => (typed, false),
        Err(error) if command.first().is_some_and(|name| GO_ON.contains(&name.as_str())) => {
            complain(&format!("{}; going on without the configuration", chain(&error)));
            (typed, true)
        }
        Err(error) => return Err(error),
    };
    // clap has just read the same definitions.
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if let super::args::Command::Mount(args) = &mut cli.command {
        args.settled = settled::words(&Cli::command(), &matches);
    }
    Ok(Typed { cli, is_faulty })
}

/// The definition of the command line with the defaults that this machine's configuration has for a command, such as store and serve; `None`: that has no
/// keys, and nothing was read.
///
/// # Errors
/// Where the configuration is wrong.
pub(super) fn configured(
    crfs: Command,
    command: &[String],
    environment: &Environment,
) -> Result<Option<Command>, Error> {
    if !keys::of(&crfs).iter().any(|key| key.command == command) {
        return Ok(None);
    }
    let settings = Settings::read(&crfs, &Places::of(environment), &environment.variables);
    for (name, meant) in settings.stray_variables().filter_map(|(name, meant)| Some((name, meant?))) {
        complain(&not_used(name, Some(meant)));
    }
    let settings = settings.checked(command)?;
    Ok(Some(with_defaults(crfs, command, command, &settings)))
}

/// What is said of a variable that has our name, and that we do not know.
fn not_used(variable: &str, meant: Option<&str>) -> String {
    let meant = meant.map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
    format!("{variable} is no variable of crfs, and is not used{meant}")
}

/// The names of the command that was typed, such as store and serve.
fn names(matches: &ArgMatches) -> Vec<String> {
    let below = matches.subcommand().map(|(name, below)| std::iter::once(name.to_owned()).chain(names(below)));
    below.into_iter().flatten().collect()
}

fn with_defaults(crfs: Command, rest: &[String], command: &[String], settings: &Settings) -> Command {
    match rest.split_first() {
        Some((name, rest)) => crfs.mut_subcommand(name, |below| with_defaults(below, rest, command, settings)),
        None => settings.of(command).fold(crfs, |crfs, (key, setting)| {
            let values = setting.values.clone();
            crfs.mut_arg(key.arg.get_id(), |arg| arg.default_values(values))
        }),
    }
}

#[cfg(test)]
mod template;
#[cfg(test)]
mod tests;
