//! What every option of `crfs mount` was when an image was mounted, wherever it came from, as words: `--name=value`. A remount compares with these, since
//! the configuration and the defaults may be other ones by then.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint};

use super::options::rooted;

const MOUNT: &str = "mount";

/// Those that are no matter of the mount, or that a remount can change.
const OTHERS: [&str; 2] = ["foreground", "noexec"];

/// The words for what clap has read, by the definitions that it read them with.
pub(super) fn words(crfs: &Command, matches: &ArgMatches) -> Vec<PathBuf> {
    let definitions = crfs.find_subcommand(MOUNT).map(Command::get_arguments);
    let all = definitions.into_iter().flatten().zip(std::iter::repeat(matches.subcommand_matches(MOUNT)));
    all.flat_map(|(arg, matches)| words_of(arg, matches)).collect()
}

fn words_of(arg: &Arg, matches: Option<&ArgMatches>) -> Vec<PathBuf> {
    let has_values = matches!(arg.get_action(), ArgAction::Set | ArgAction::SetTrue | ArgAction::Append);
    let Some(name) = arg.get_long().filter(|name| has_values && !OTHERS.contains(name)) else { return Vec::new() };
    let values = matches.and_then(|matches| matches.try_get_raw(arg.get_id().as_str()).ok().flatten());
    values.into_iter().flatten().map(|value| word(name, &meant(arg, value))).collect()
}

fn word(name: &str, value: &OsStr) -> PathBuf {
    let mut word = OsString::from(format!("--{name}="));
    word.push(value);
    word.into()
}

/// A path that was typed in some directory means the same in all.
fn meant(arg: &Arg, value: &OsStr) -> OsString {
    let is_path = matches!(arg.get_value_hint(), ValueHint::AnyPath | ValueHint::FilePath | ValueHint::DirPath);
    let path = is_path.then(|| rooted(Path::new(value)).ok()).flatten();
    path.map_or_else(|| value.to_owned(), PathBuf::into_os_string)
}

/// The definitions with these words as the defaults of `crfs mount`. A word that is none any more says nothing.
pub(super) fn with_defaults(crfs: Command, words: &[PathBuf]) -> Command {
    let mut values: BTreeMap<String, Vec<OsString>> = BTreeMap::new();
    for word in words {
        let text = word.as_os_str().as_bytes();
        let mut parts = text.strip_prefix(b"--").unwrap_or(text).splitn(2, |byte| *byte == b'=');
        let name = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
        let value = parts.next().unwrap_or(b"true").to_vec();
        values.entry(name).or_default().push(OsString::from_vec(value));
    }
    crfs.mut_subcommand(MOUNT, |mount| {
        mount.mut_args(|arg| match arg.get_long().and_then(|name| values.get(name)) {
            Some(values) => arg.default_values(values.clone()),
            None => arg,
        })
    })
}
