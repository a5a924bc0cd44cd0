//! `crfs config show`.

use std::path::PathBuf;

use clap::CommandFactory;
use serde::Serialize;

use super::files::Places;
use super::keys::Key;
use super::not_used;
use super::settings::{Origin, Setting, Settings};
use crate::cli::args::{Cli, ConfigShowArgs};
use crate::cli::environment::Environment;
use crate::cli::format::{Side, printable, table};
use crate::cli::{Failure, complain, json, print};
use crate::errors::chain;
use crate::registry::Platform;

/// A key as the commands see it that have the same of it.
#[derive(Debug, Serialize)]
struct Shown {
    key: String,
    commands: Vec<String>,
    /// `None`: it is not set.
    value: Option<Shape>,
    origin: &'static str,
    file: Option<PathBuf>,
    line: Option<usize>,
    variable: Option<String>,
    #[serde(skip)]
    is_switch: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Shape {
    One(String),
    List(Vec<String>),
}

#[derive(Debug, Serialize)]
struct FileShown {
    path: PathBuf,
    found: bool,
}

#[derive(Debug, Serialize)]
struct Unused {
    variable: String,
    meant: Option<String>,
}

#[derive(Debug, Serialize)]
struct All {
    files: Vec<FileShown>,
    values: Vec<Shown>,
    unused_variables: Vec<Unused>,
    faults: Vec<String>,
}

/// What is good is shown also where something is wrong; that is named on standard error.
pub(in crate::cli) fn show(args: &ConfigShowArgs, environment: &Environment) -> Result<(), Failure> {
    let settings = Settings::read(&Cli::command(), &Places::of(environment), &environment.variables);
    let all = all(&settings, environment);
    print(&if args.json { json(&all)? } else { text(&all) })?;
    for unused in &all.unused_variables {
        complain(&not_used(&unused.variable, unused.meant.as_deref()));
    }
    all.faults.iter().for_each(|fault| complain(fault));
    if all.faults.is_empty() { Ok(()) } else { Err(Failure::Reported) }
}

fn all(settings: &Settings, environment: &Environment) -> All {
    let files = settings.files().iter().map(|(path, found)| FileShown { path: path.clone(), found: *found });
    let unused = settings.stray_variables();
    All {
        files: files.collect(),
        values: values(settings.all(), environment),
        unused_variables: unused
            .map(|(variable, meant)| Unused { variable: variable.to_owned(), meant: meant.map(str::to_owned) })
            .collect(),
        faults: settings.faults().map(|fault| chain(fault)).collect(),
    }
}

/// One for each key, or several where commands differ.
fn values(keys: &[(Key, Option<Setting>)], environment: &Environment) -> Vec<Shown> {
    let mut values: Vec<Shown> = Vec::new();
    for (key, setting) in keys {
        let new = shown(key, setting.as_ref(), environment);
        let is_same = |old: &&mut Shown| {
            let place = (&old.file, old.line, &old.variable);
            (&old.key, &old.value, place) == (&new.key, &new.value, (&new.file, new.line, &new.variable))
        };
        match values.iter_mut().find(is_same) {
            Some(same) => same.commands.extend(new.commands),
            None => values.push(new),
        }
    }
    values
}

fn shown(key: &Key, setting: Option<&Setting>, environment: &Environment) -> Shown {
    let fixed = || key.arg.get_default_values().first().map(|value| value.to_string_lossy().into_owned());
    let value = match setting {
        Some(setting) => Some(shape(key, setting)),
        None => fixed().or_else(|| found(key.name(), environment)).map(Shape::One),
    };
    let (origin, file, line, variable) = match setting.map(|setting| setting.origin.clone()) {
        None => ("default", None, None, None),
        Some(Origin::File { path, line }) => ("file", Some(path), Some(line), None),
        Some(Origin::Variable(name)) => ("variable", None, None, Some(name)),
    };
    let (key, commands) = (key, vec![key.command.join(" ")]);
    Shown { key: key.name().to_owned(), commands, value, origin, file, line, variable, is_switch: key.is_switch() }
}

fn shape(key: &Key, setting: &Setting) -> Shape {
    let mut values = setting.values.iter().map(|value| value.to_string_lossy().into_owned());
    if key.is_list() { Shape::List(values.collect()) } else { Shape::One(values.next().unwrap_or_default()) }
}

/// The defaults that crfs finds when it runs.
fn found(key: &str, environment: &Environment) -> Option<String> {
    match key {
        "cache-dir" => Some(environment.cache_dir().display().to_string()),
        "root" => Some(environment.store_dir().display().to_string()),
        "platform" => Some(Platform::of_this_machine().to_string()),
        _ => None,
    }
}

/// A file that says the same: what holds for most commands first, then a table for each other one.
fn text(all: &All) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let (mut most, mut rest): (Vec<&Shown>, Vec<&Shown>) = (Vec::new(), Vec::new());
    for value in &all.values {
        let others = all.values.iter().filter(|other| other.key == value.key);
        let is_most = others.max_by_key(|other| other.commands.len()).is_some_and(|first| std::ptr::eq(first, value));
        if is_most { most.push(value) } else { rest.push(value) }
    }
    rows.extend(most.into_iter().map(row));
    let mut commands: Vec<&String> = rest.iter().flat_map(|value| &value.commands).collect();
    commands.sort();
    commands.dedup();
    for command in commands {
        rows.push(vec![String::new(), String::new()]);
        rows.push(vec![format!("[{}]", command.replace(' ', ".")), String::new()]);
        rows.extend(rest.iter().filter(|value| value.commands.contains(command)).map(|value| row(value)));
    }
    let files = all.files.iter().map(|file| {
        let found = if file.found { "" } else { ", which is not there" };
        format!("# {}{found}\n", printable(&file.path.display().to_string()))
    });
    let head = "# Later files win over earlier ones, variables over files, and options over variables.\n";
    format!("{head}{}\n{}", files.collect::<String>(), table(&[Side::Left, Side::Left], &rows))
}

fn row(shown: &Shown) -> Vec<String> {
    let quoted = |text: &String| match shown.is_switch {
        true => text.clone(),
        // The escapes of JSON are those of TOML, which wants one more.
        false => printable(&serde_json::Value::from(text.as_str()).to_string().replace('\u{7f}', "\\u007f")),
    };
    let setting = match &shown.value {
        None => format!("# {} =", shown.key),
        Some(Shape::One(text)) => format!("{} = {}", shown.key, quoted(text)),
        Some(Shape::List(texts)) => {
            format!("{} = [{}]", shown.key, texts.iter().map(quoted).collect::<Vec<_>>().join(", "))
        }
    };
    let origin = match (&shown.file, shown.line, &shown.variable) {
        (Some(path), Some(line), _) => printable(&format!("{}, line {line}", path.display())),
        (_, _, Some(variable)) => variable.clone(),
        _ if shown.value.is_none() => "not set".to_owned(),
        _ => "default".to_owned(),
    };
    vec![setting, format!("# {origin}")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::configuration::tests::Machine;

    fn shown(machine: &Machine) -> All {
        all(&machine.read(), &Environment { uid: 7, home: Some("/home/u".into()), ..Environment::default() })
    }

    fn lines(machine: &Machine) -> Vec<String> {
        let dir = format!("{}/", machine.path().display());
        let text = text(&shown(machine)).replace(&dir, "");
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn each_value_says_where_it_is_from() {
        let mut machine =
            Machine::with("etc/config.toml", "tls-verify = false\ncache-size = \"1G\"\n[mount]\nprefetch = \"all\"\n");
        machine.set("CRFS_CACHE_SIZE", "2G");
        let lines = lines(&machine);
        for line in [
            "# etc/config.toml",
            "# home/config.toml, which is not there",
            "cache-size = \"2G\" # CRFS_CACHE_SIZE",
            "tls-verify = false # etc/config.toml, line 1",
            "io-deadline = \"120s\" # default",
            "cache-dir = \"/home/u/.cache/crfs\" # default",
            "# cert-dir = # not set",
            "prefetch = \"hints\" # default",
            "[mount]",
        ] {
            assert!(lines.iter().any(|shown| shown == line), "{line}: {lines:#?}");
        }
        let json: serde_json::Value = serde_json::from_str(&json(&shown(&machine)).unwrap()).unwrap();
        let values = json["values"].as_array().unwrap();
        let of = |key: &str| values.iter().find(|value| value["key"] == key).unwrap();
        assert_eq!(
            (&of("cache-size")["value"], &of("cache-size")["variable"]),
            (&"2G".into(), &"CRFS_CACHE_SIZE".into())
        );
        assert_eq!((&of("tls-verify")["line"], &of("tls-verify")["origin"]), (&1.into(), &"file".into()));
        assert_eq!((&of("prefetch")["commands"], &of("prefetch")["line"]), (&vec!["mount"].into(), &4.into()));
        assert!(of("cert-dir")["value"].is_null() && json["files"][0]["found"] == true);
    }

    /// Also where values are odd.
    #[test]
    fn what_is_shown_is_a_file_that_says_the_same() {
        let text_of = "cache-dir = \"/a\\u0007\\\"\\\\ # b\\u007f\"\npodman-root = [\"/a\", \"/b\"]\nprefetch = \"none\"\n[index]\nio-deadline = 7\n[ls]\nio-deadline = 8\n";
        let machine = Machine::with("home/config.toml", text_of);
        let again = Machine::with("home/config.toml", text(&shown(&machine)));
        assert_eq!(again.faults(), Vec::<String>::new());
        let all = |machine: &Machine| -> Vec<_> {
            let values = shown(machine).values.into_iter().filter(|shown| shown.value.is_some());
            let each = values.flat_map(|shown| {
                shown
                    .commands
                    .clone()
                    .into_iter()
                    .map(move |command| (shown.key.clone(), command, format!("{:?}", shown.value)))
            });
            let mut all: Vec<_> = each.collect();
            all.sort();
            all
        };
        assert_eq!(all(&again), all(&machine));
    }
}
