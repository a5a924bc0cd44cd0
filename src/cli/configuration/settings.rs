//! What the files and variables say, and which of them wins.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Command;

use super::error::Error;
use super::files::{Found, Places};
use super::keys::{self, Key};
use crate::toml_file::{self, File, Table, Value};

/// Variables that other programs have as well: each stands for an option, behind the one that is crfs's own.
const OTHERS: [(&str, &str); 1] = [("authfile", "REGISTRY_AUTH_FILE")];

/// Each variable of crfs begins so.
const OWN: &str = "CRFS_";

/// So many in a file are enough to know that it is another program's.
const MOST_FAULTS: usize = 10;

/// Who says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    File { path: PathBuf, line: usize },
    Variable(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) values: Vec<OsString>,
    pub(super) origin: Origin,
}

/// What is wrong, and for which command alone; `None`: for all.
#[derive(Debug)]
struct Fault {
    command: Option<Vec<String>>,
    error: Error,
}

#[derive(Debug)]
pub(super) struct Settings {
    /// Each with what is said of it.
    keys: Vec<(Key, Option<Setting>)>,
    faults: Vec<Fault>,
    /// Each with whether it is there.
    files: Vec<(PathBuf, bool)>,
    /// `CRFS_*` that are none of ours, with those that may be meant.
    stray: Vec<(String, Option<String>)>,
}

impl Settings {
    pub(super) fn read(crfs: &Command, places: &Places, variables: &BTreeMap<String, OsString>) -> Self {
        let keys = keys::of(crfs).into_iter().map(|key| (key, None)).collect();
        let mut settings = Self { keys, faults: Vec::new(), files: Vec::new(), stray: Vec::new() };
        for Found { path, text } in places.read() {
            settings.files.push((path.clone(), !matches!(text, Ok(None))));
            match text {
                Ok(text) => settings.file(crfs, &path, &text.unwrap_or_default()),
                Err(error) => settings.fault(error),
            }
        }
        settings.variables(variables);
        settings
    }

    /// What is said to a command.
    pub(super) fn of(&self, command: &[String]) -> impl Iterator<Item = (&Key, &Setting)> {
        let set = self.keys.iter().filter_map(|(key, setting)| Some((key, setting.as_ref()?)));
        set.filter(move |(key, _)| key.command == command)
    }

    /// All keys, with what is said of them.
    pub(super) fn all(&self) -> &[(Key, Option<Setting>)] {
        &self.keys
    }

    pub(super) fn files(&self) -> &[(PathBuf, bool)] {
        &self.files
    }

    pub(super) fn stray_variables(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.stray.iter().map(|(name, meant)| (name.as_str(), meant.as_deref()))
    }

    pub(super) fn faults(&self) -> impl Iterator<Item = &Error> {
        self.faults.iter().map(|fault| &fault.error)
    }

    /// The same, if nothing keeps a command from using it; else the first fault, and how many there are.
    pub(super) fn checked(self, command: &[String]) -> Result<Self, Error> {
        let is_of_it = |fault: &Fault| fault.command.as_ref().is_none_or(|other| other == command);
        let (of_it, others): (Vec<_>, Vec<_>) = self.faults.into_iter().partition(is_of_it);
        let mut of_it = of_it.into_iter().map(|fault| fault.error);
        match (of_it.next(), of_it.count()) {
            (None, _) => Ok(Self { faults: others, ..self }),
            (Some(first), 0) => Err(first),
            (Some(first), more) => Err(Error::Several { first: first.into(), more }),
        }
    }

    fn fault(&mut self, error: impl Into<Error>) {
        self.faults.push(Fault { command: None, error: error.into() });
    }

    fn file(&mut self, crfs: &Command, path: &Path, text: &str) {
        let file = File { path, text };
        let before = self.faults.len();
        match file.parse() {
            Ok(parsed) => self.table(crfs, &[], path, Table::root(file, &parsed), before + MOST_FAULTS),
            Err(error) => self.fault(error),
        }
    }

    /// `command`: that whose table it is, and that of all commands below it. What is said to fewer commands wins.
    fn table(&mut self, crfs: &Command, command: &[String], path: &Path, table: Table<'_>, most: usize) {
        let is_inner = |(name, value): &(&str, Value<'_>)| value.is_table() && self.applies(command, name).is_empty();
        let (inner, plain): (Vec<_>, Vec<_>) = table.entries().into_iter().partition(is_inner);
        for (name, value) in plain {
            if self.faults.len() >= most {
                return;
            }
            if let Err(error) = self.entry(crfs, command, path, name, value) {
                self.fault(error);
            }
        }
        for (name, value) in inner {
            let below = [command, &[name.to_owned()]].concat();
            let has_keys = self.keys.iter().any(|(key, _)| key.command.starts_with(&below));
            match value.table() {
                Ok(table) if has_keys => self.table(crfs, &below, path, table, most),
                _ if self.faults.len() >= most => return,
                _ => self.fault(value.refuse::<toml_file::Error>(unknown_table(crfs, command, name))),
            }
        }
    }

    /// The keys of that name of a command, and of those below it.
    fn applies(&self, command: &[String], name: &str) -> Vec<usize> {
        let keys = self.keys.iter().enumerate();
        let keys = keys.filter(|(_, (key, _))| key.name() == name && key.command.starts_with(command));
        keys.map(|(number, _)| number).collect()
    }

    fn entry(
        &mut self,
        crfs: &Command,
        command: &[String],
        path: &Path,
        name: &str,
        value: Value<'_>,
    ) -> Result<(), toml_file::Error> {
        let applies = self.applies(command, name);
        if applies.is_empty() {
            return Err(value.refuse(self.unknown(crfs, command, name)));
        }
        let origin = Origin::File { path: path.to_owned(), line: value.line() };
        let mut found = Vec::new();
        for key in applies.iter().filter_map(|number| self.keys.get(*number)).map(|(key, _)| key) {
            found.push(key.values(value).map_err(|why| (why, key.shown_command())));
        }
        // Where some of the commands take it, one should know which does not.
        let some_take_it = found.iter().any(Result::is_ok);
        let refused = |(why, command): (String, String)| match some_take_it {
            true => format!("{why} (`{command}`; in a table it is for one command alone)"),
            false => why,
        };
        let found = found.into_iter().collect::<Result<Vec<_>, _>>();
        let found = found.map_err(|wrong| value.refuse::<toml_file::Error>(refused(wrong)))?;
        for (number, values) in applies.into_iter().zip(found) {
            if let Some((_, setting)) = self.keys.get_mut(number) {
                *setting = Some(Setting { values, origin: origin.clone() });
            }
        }
        Ok(())
    }

    fn variables(&mut self, variables: &BTreeMap<String, OsString>) {
        for (key, setting) in &mut self.keys {
            let other = OTHERS.iter().filter(|(name, _)| *name == key.name()).map(|(_, other)| (*other).to_owned());
            let mut names = std::iter::once(key.variable()).chain(other);
            let Some((name, value)) = names.find_map(|name| variables.get_key_value(&name)) else { continue };
            match key.values_of_variable(value) {
                Ok(values) => *setting = Some(Setting { values, origin: Origin::Variable(name.clone()) }),
                Err(reason) => {
                    let error = Error::Variable { name: name.clone(), reason };
                    self.faults.push(Fault { command: Some(key.command.clone()), error });
                }
            }
        }
        let known: Vec<String> = self.keys.iter().map(|(key, _)| key.variable()).collect();
        let others = variables.keys().filter(|name| name.starts_with(OWN) && !known.contains(name));
        let meant = |name: &String| keys::nearest(own(name), known.iter().map(|known| own(known)));
        let meant = |name: &String| meant(name).map(|meant| format!("{OWN}{meant}"));
        self.stray = others.map(|name| (name.clone(), meant(name))).collect();
    }

    /// Why a name is no key there, and what is meant.
    fn unknown(&self, crfs: &Command, command: &[String], name: &str) -> String {
        let elsewhere = self.keys.iter().find(|(key, _)| key.name() == name).map(|(key, _)| key);
        let own = keys::find(crfs, command);
        if keys::find(crfs, &[command, &[name.to_owned()]].concat()).is_some() {
            return format!(
                "is a command: write [{}], and below it what holds for that",
                [command, &[name.to_owned()]].concat().join(".")
            );
        }
        if let Some(key) = elsewhere {
            return format!(
                "`crfs {}` has no such option, but `{}` has: put it above the first [table], or into [{}]",
                command.join(" "),
                key.shown_command(),
                key.command.join(".")
            );
        }
        let all = |command: &Command| command.get_arguments().any(|arg| arg.get_long() == Some(name));
        if own.is_some_and(all) || crfs.get_subcommands().any(all) {
            return format!("--{name} is for one call, and has no key");
        }
        let here = self.keys.iter().map(|(key, _)| key).filter(|key| key.command.starts_with(command));
        no_such("key", keys::nearest(name, here.map(Key::name)))
    }
}

/// Without what is the same in all of them.
fn own(variable: &str) -> &str {
    variable.strip_prefix(OWN).unwrap_or(variable)
}

fn no_such(what: &str, meant: Option<&str>) -> String {
    match meant {
        Some(meant) => format!("there is no such {what}; did you mean {meant}?"),
        None => format!("there is no such {what}; `crfs config show` lists all"),
    }
}

fn unknown_table(crfs: &Command, command: &[String], name: &str) -> String {
    let path = [command, &[name.to_owned()]].concat();
    if keys::find(crfs, &path).is_some() {
        return format!("`crfs {}` has no options that have a key", path.join(" "));
    }
    let commands = keys::find(crfs, command).map(|own| own.get_subcommands().map(Command::get_name));
    let meant = keys::nearest(name, commands.into_iter().flatten());
    no_such("table", meant.map(|meant| [command, &[meant.to_owned()]].concat().join(".")).as_deref())
}
