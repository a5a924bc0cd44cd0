//! contrib/config.toml: all keys, commented out, made of the definition of the command line. `CRFS_WRITE_CONFIG=1 cargo test --release config` writes it.

use std::path::Path;

use clap::CommandFactory;

use super::keys::{self, Key};
use super::tests::Machine;
use crate::cli::args::Cli;

/// What stands there for keys that have no default.
const EXAMPLES: &[(&str, &str)] = &[
    ("allow-other", "true"),
    ("authfile", "\"/etc/crfs/auth.json\""),
    ("cache-dir", "\"/var/cache/crfs\""),
    ("cache-size", "\"10GiB\""),
    ("cert-dir", "\"/etc/crfs/certs\""),
    ("hosts-dir", "\"/etc/containerd/certs.d\""),
    ("metrics-listen", "\"127.0.0.1:9464\""),
    ("platform", "\"linux/amd64\""),
    ("podman-root", "[\"/srv/containers\"]"),
    ("root", "\"/var/lib/crfs/store\""),
    ("state", "\"/var/lib/crfs/state\""),
    ("tls-verify", "true"),
];

const HEAD: &str = "\
# Options of crfs for all users of this machine. What is commented out shows the
# default, or an example. `crfs config show` says what holds, and why.
#
# Files *.toml in /etc/crfs/config.d win over this one, ~/.config/crfs/config.toml
# over both, then variables such as CRFS_CACHE_SIZE, then what is typed.
#
# A key holds for all commands that have the option. Where these are few they
# stand in brackets. In a table a key holds for one command:
#
#   [mount]
#   prefetch = \"all\"
#
# Tables stand at the end: what is behind one belongs to it.
";

const WIDTH: usize = 80;

/// So many commands are named. Which others there are `--help` says.
const FEW: usize = 3;

fn wrapped(text: &str) -> String {
    let mut lines = vec![String::from("#")];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= WIDTH => *line += &format!(" {word}"),
            _ => lines.push(format!("# {word}")),
        }
    }
    lines.join("\n") + "\n"
}

fn entry(key: &Key, all: &[Key]) -> String {
    let help = key.arg.get_long_help().or(key.arg.get_help()).unwrap().to_string();
    let stop = if help.ends_with('.') { "" } else { "." };
    let commands: Vec<_> =
        all.iter().filter(|other| other.name() == key.name()).map(|other| other.command.join(" ")).collect();
    let commands = if commands.len() > FEW { String::new() } else { format!(" ({})", commands.join(", ")) };
    let fixed = key.arg.get_default_values().first().map(|value| value.to_str().unwrap());
    let value = match fixed {
        Some(value) if key.is_switch() => value.to_owned(),
        Some(value) => format!("{value:?}"),
        None => EXAMPLES
            .iter()
            .find(|example| example.0 == key.name())
            .map_or_else(|| panic!("no example for {}", key.name()), |example| example.1.to_owned()),
    };
    format!("\n{}#{} = {value}\n", wrapped(&format!("{help}{stop}{commands}")), key.name())
}

fn template() -> String {
    let all = keys::of(&Cli::command());
    let mut names: Vec<&str> = Vec::new();
    let mut text = HEAD.to_owned();
    for key in &all {
        if !names.contains(&key.name()) {
            names.push(key.name());
            text += &entry(key, &all);
        }
    }
    text
}

#[test]
fn the_default_configuration_has_all_keys() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/config.toml");
    let text = template();
    if std::env::var_os("CRFS_WRITE_CONFIG").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(there, text, "write it with CRFS_WRITE_CONFIG=1");
    assert!(text.lines().all(|line| line.is_empty() || line.starts_with('#')));
    let is_used = |example: &&(&str, &str)| text.contains(&format!("\n#{} = {}\n", example.0, example.1));
    assert_eq!(EXAMPLES.iter().find(|example| !is_used(example)), None);
}

/// As somebody would who takes the comments away.
#[test]
fn the_default_configuration_can_be_used() {
    let uncommented = |line: &str| match line.strip_prefix('#') {
        Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => format!("{rest}\n"),
        _ => format!("{line}\n"),
    };
    let machine = Machine::with("etc/config.toml", template().lines().map(uncommented).collect::<String>());
    assert_eq!(machine.faults(), Vec::<String>::new());
    let settings = machine.read();
    assert!(settings.all().iter().all(|(_, setting)| setting.is_some()));
}
