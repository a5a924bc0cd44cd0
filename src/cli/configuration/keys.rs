//! The keys: read from the definition of the command line, which is the only list of them.

use std::ffi::{OsStr, OsString};

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, Command};

use crate::cli::args::CONFIGURABLE;
use crate::toml_file::{Kind, Value};

/// As alike as a mistyped word is to the right one (0 to 1).
const ALIKE: f64 = 0.8;

/// A key of one command: an option that has the heading for it.
#[derive(Debug, Clone)]
pub(super) struct Key {
    /// As it is typed: store, serve.
    pub(super) command: Vec<String>,
    pub(super) arg: Arg,
}

/// All keys of all commands that a person may type.
pub(super) fn of(crfs: &Command) -> Vec<Key> {
    below(crfs, &[])
}

fn below(command: &Command, path: &[String]) -> Vec<Key> {
    let own = command.get_arguments().filter(|arg| arg.get_help_heading() == Some(CONFIGURABLE));
    let own = own.map(|arg| Key { command: path.to_vec(), arg: arg.clone() });
    let commands = command.get_subcommands().filter(|below| !below.is_hide_set());
    let inner = commands.flat_map(|inner| below(inner, &[path, &[inner.get_name().to_owned()]].concat()));
    own.chain(inner).collect()
}

/// The command with such a name, as it is typed.
pub(super) fn find<'a>(crfs: &'a Command, path: &[String]) -> Option<&'a Command> {
    path.iter().try_fold(crfs, |command, name| command.find_subcommand(name).filter(|found| !found.is_hide_set()))
}

/// That of the words which is most like a word, if any is.
pub(super) fn nearest<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let alike = words.into_iter().map(|known| (strsim::jaro(word, known), known)).filter(|found| found.0 > ALIKE);
    alike.max_by(|a, b| a.0.total_cmp(&b.0)).map(|found| found.1)
}

impl Key {
    pub(super) fn name(&self) -> &str {
        self.arg.get_long().unwrap_or_default()
    }

    /// The name of its variable.
    pub(super) fn variable(&self) -> String {
        format!("CRFS_{}", self.name().replace('-', "_").to_uppercase())
    }

    /// `crfs store serve`
    pub(super) fn shown_command(&self) -> String {
        format!("crfs {}", self.command.join(" "))
    }

    /// Whether it may have several values.
    pub(super) fn is_list(&self) -> bool {
        matches!(self.arg.get_action(), ArgAction::Append)
    }

    pub(super) fn is_switch(&self) -> bool {
        self.value_name() == "BOOL"
    }

    fn value_name(&self) -> &str {
        self.arg.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str())
    }

    /// What a value of a file means, or why it cannot.
    pub(super) fn values(&self, value: Value<'_>) -> Result<Vec<OsString>, String> {
        let one = |value: Value<'_>| {
            let text = self.text(value)?;
            self.check(OsStr::new(&text))?;
            Ok(OsString::from(text))
        };
        match self.is_list() && value.is_array() {
            true => value.items().map_err(|error| error.to_string())?.into_iter().map(one).collect(),
            false => Ok(vec![one(value)?]),
        }
    }

    /// What a variable means, or why it cannot. Several values are separated as those of $PATH.
    pub(super) fn values_of_variable(&self, value: &OsStr) -> Result<Vec<OsString>, String> {
        let values = match self.is_list() {
            true => std::env::split_paths(value).map(OsString::from).filter(|value| !value.is_empty()).collect(),
            false => vec![value.to_owned()],
        };
        values.iter().try_for_each(|value| self.check(value))?;
        Ok(values)
    }

    fn text(&self, value: Value<'_>) -> Result<String, String> {
        let name = self.value_name();
        let text = match value.plain() {
            Some((Kind::Text, text)) => text,
            Some((Kind::Flag, text)) if self.is_switch() => text,
            Some((Kind::Number, text)) if ["SIZE", "TIME"].contains(&name) => text,
            _ if self.is_switch() => return Err("true or false is wanted".to_owned()),
            _ if self.is_list() => return Err("an array of texts in quotes is wanted".to_owned()),
            _ => return Err(format!("a text in quotes is wanted, as behind --{} on the command line", self.name())),
        };
        let path = match name {
            "DIR" | "FILE" => Some(text.as_str()),
            "ADDR" => text.strip_prefix("unix:"),
            _ => None,
        };
        match path {
            Some(path) if !path.starts_with('/') => {
                Err(format!("{path:?} is no absolute path: it has to start with /"))
            }
            _ => Ok(text),
        }
    }

    /// Lets clap parse a value as if it had been typed.
    fn check(&self, value: &OsStr) -> Result<(), String> {
        let alone = self.arg.clone().conflicts_with(Resettable::Reset).required(false);
        let mut typed = OsString::from(format!("--{}=", self.name()));
        typed.push(value);
        let parser = Command::new("crfs").no_binary_name(true).disable_help_flag(true).arg(alone);
        parser.try_get_matches_from([typed]).map(drop).map_err(|error| reason(&error, value))
    }
}

/// What clap says of a value, without what it says of the command line.
fn reason(error: &clap::Error, value: &OsStr) -> String {
    let value = value.to_string_lossy();
    if let Some(ContextValue::Strings(valid)) = error.get(ContextKind::ValidValue) {
        return match valid.is_empty() {
            true => "a value is wanted".to_owned(),
            false => format!("\"{value}\" is none of {}", valid.join(", ")),
        };
    }
    match std::error::Error::source(error) {
        Some(cause) => format!("\"{value}\" is not valid: {cause}"),
        None => format!("\"{value}\" is not valid"),
    }
}
