//! The options of mount(8), `a=b,c,d`, as words of `crfs mount`: `--a=b --c --d`.
//!
//! What crfs takes is what its command line takes: there is no second list. What is for mount(8), systemd and the kernel is known here.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::{Arg, ArgAction};

use super::error::Wrong;

/// Options that are for others, or that every mount of crfs has: it is read-only, nosuid and nodev, and the kernel notes no access times of it.
#[rustfmt::skip]
const FOR_OTHERS: [&str; 43] = [
    // mount(8), fstab(5)
    "auto", "noauto", "defaults", "nofail", "_netdev", "comment", "user", "nouser", "users", "nousers", "owner", "noowner", "group", "nogroup",
    "uhelper", "helper", "sizelimit",
    // access: mount(8) says rw of whatever is not said to be ro
    "ro", "rw", "suid", "nosuid", "dev", "nodev", "default_permissions",
    // how it is written, and what is noted of it
    "sync", "async", "dirsync", "mand", "nomand", "silent", "loud", "iversion", "noiversion", "atime", "noatime", "diratime", "nodiratime",
    "relatime", "norelatime", "strictatime", "nostrictatime", "lazytime", "nolazytime",
];

/// What the kernel shows of a mount: mount(8) hands it back where nothing but the directory of a remount is said.
const SHOWN: [&str; 4] = ["user_id", "group_id", "fsname", "subtype"];

/// That of `crfs mount` which mount(8) has no use for: it would wait for ever.
const STAYS: &str = "foreground";

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// Long options, each a word.
    pub(super) words: Vec<OsString>,
    pub(super) remount: bool,
}

/// Reads what stood behind each -o. `known`: the options of `crfs mount`.
pub(super) fn read<'a>(options: &[OsString], known: impl Iterator<Item = &'a Arg>) -> Result<Asked, Wrong> {
    let known: Vec<_> = known.filter(|arg| arg.get_long().is_some()).collect();
    let items: Vec<_> = options.iter().flat_map(|options| items(options.as_bytes())).collect();
    let remount = items.iter().any(|item| item == b"remount");
    let mut asked = Asked { remount, ..Asked::default() };
    for item in &items {
        let (name, value) = named(item);
        let is_for_others = FOR_OTHERS.contains(&&*name) || name.starts_with("x-") || name.starts_with("X-");
        match &*name {
            "remount" => {}
            "" => {}
            _ if is_for_others || (remount && SHOWN.contains(&&*name)) => {}
            "exec" => asked.take_back("noexec"),
            STAYS => return Err(Wrong::Stays { name: STAYS }),
            name => asked.add(name, value, &known)?,
        }
    }
    Ok(asked)
}

impl Asked {
    fn add(&mut self, name: &str, value: Option<&OsStr>, known: &[&Arg]) -> Result<(), Wrong> {
        // Most options of mount(8) that have two words have an underscore between them.
        let hyphened = name.replace('_', "-");
        let found = known.iter().find(|arg| arg.get_long() == Some(&hyphened));
        let is_switch = found.is_some_and(|arg| matches!(arg.get_action(), ArgAction::SetTrue));
        let needs_value = found.is_some_and(|arg| arg.get_action().takes_values() && !may_be_bare(arg));
        match (value, value.and_then(OsStr::to_str)) {
            (None, _) if needs_value => {
                return Err(Wrong::NoValue { name: name.to_owned(), value: placeholder(found) });
            }
            (Some(_), Some("false")) if is_switch => self.take_back(&hyphened),
            (Some(_), Some("true")) if is_switch => self.words.push(word(&hyphened, None)),
            (Some(value), _) if is_switch => {
                return Err(Wrong::Switch { name: name.to_owned(), value: value.to_string_lossy().into_owned() });
            }
            _ if found.is_some() => self.words.push(word(&hyphened, value)),
            // Whoever reads the words says what is meant.
            _ => self.words.push(word(name, value)),
        }
        Ok(())
    }

    fn take_back(&mut self, switch: &str) {
        let word = word(switch, None);
        self.words.retain(|other| *other != word);
    }
}

/// What of the options for others is nearest to one that nobody knows. Of short words many are near.
pub(super) fn nearest(name: &str) -> Option<String> {
    const SHORT: usize = 4;
    let near = FOR_OTHERS
        .iter()
        .map(|other| (strsim::jaro(name, other), other))
        .filter(|(near, _)| *near > 0.8 && name.len() > SHORT);
    near.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, other)| (*other).to_owned())
}

fn may_be_bare(arg: &Arg) -> bool {
    arg.get_num_args().is_some_and(|range| range.min_values() == 0)
}

fn placeholder(arg: Option<&&Arg>) -> String {
    let names = arg.and_then(|arg| arg.get_value_names()).unwrap_or_default();
    names.first().map_or_else(|| "VALUE".to_owned(), ToString::to_string)
}

fn word(name: &str, value: Option<&OsStr>) -> OsString {
    let mut word = OsString::from(format!("--{name}"));
    if let Some(value) = value {
        word.push("=");
        word.push(value);
    }
    word
}

/// The name of a word's option.
pub(super) fn name(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let name = text.trim_start_matches("--");
    name.split_once('=').map_or(name, |(name, _)| name).to_owned()
}

fn named(item: &[u8]) -> (String, Option<&OsStr>) {
    let mut parts = item.splitn(2, |byte| *byte == b'=');
    let name = String::from_utf8_lossy(parts.next().unwrap_or_default()).trim().to_owned();
    (name, parts.next().map(OsStr::from_bytes))
}

/// Commas are between options, but for those behind a backslash and in double quotes: those are of a value, and quotes and backslash are not.
fn items(text: &[u8]) -> Vec<Vec<u8>> {
    let (mut items, mut item, mut is_quoted) = (Vec::new(), Vec::new(), false);
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => item.push(bytes.next_if(|next| matches!(next, b',' | b'\\' | b'"')).unwrap_or(byte)),
            b'"' => is_quoted = !is_quoted,
            b',' if !is_quoted => items.push(std::mem::take(&mut item)),
            byte => item.push(byte),
        }
    }
    items.push(item);
    items.retain(|item| !item.is_empty());
    items
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use clap::CommandFactory;
    use proptest::prelude::*;

    use super::*;
    use crate::cli::args::Cli;

    fn asked(options: &str) -> Result<Asked, Wrong> {
        let mut whole = Cli::command();
        whole.build();
        read(&[options.into()], whole.find_subcommand("mount").unwrap().get_arguments())
    }

    fn words(options: &str) -> Vec<String> {
        asked(options).unwrap().words.into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn options_become_words() {
        assert_eq!(
            words("prefetch=all,nfs-export,tls_verify=false,allow_other"),
            ["--prefetch=all", "--nfs-export", "--tls-verify=false", "--allow-other"]
        );
        assert_eq!(
            words("nfs_export=true,noexec,exec,insecure-unverified-toc=false"),
            ["--nfs-export", "--insecure-unverified-toc=false"]
        );
        assert_eq!(words("prefech=all,uid=7"), ["--prefech=all", "--uid=7"], "whoever reads them says what is wrong");
    }

    #[test]
    fn what_is_for_others_is_left_out() {
        let fstab =
            "rw,defaults,_netdev,nofail,noauto,user=me,comment=a b,x-systemd.automount,X-mount.mkdir=0755,x-gvfs-show";
        assert_eq!(asked(fstab).unwrap(), Asked::default());
        assert_eq!(
            asked("ro,nosuid,nodev,relatime,user_id=0,group_id=0,remount").unwrap(),
            Asked { words: vec![], remount: true }
        );
        assert_eq!(words("user_id=0"), ["--user_id=0"], "nothing but a remount has it");
        assert_eq!(asked(", ,=5,").unwrap(), Asked::default());
    }

    #[test]
    fn a_comma_may_be_in_a_value() {
        let expected = ["--authfile=/a,b", "--nfs-export"];
        assert_eq!(words(r"authfile=/a\,b,nfs-export"), expected);
        assert_eq!(words(r#"authfile="/a,b",nfs-export"#), expected);
        assert_eq!(words(r#"authfile=/a\"\\b\c"#), [r#"--authfile=/a"\b\c"#]);
    }

    #[test]
    fn what_mount_cannot_do_is_said() {
        assert!(asked("foreground").unwrap_err().to_string().contains("mount(8)"));
        assert_eq!(
            asked("cache-dir,ro").unwrap_err().to_string(),
            "the option cache-dir needs a value: -o cache-dir=DIR"
        );
        assert_eq!(
            asked("noexec=yes").unwrap_err().to_string(),
            "the option noexec is a switch, and takes no \"yes\": write noexec, or noexec=false"
        );
        assert_eq!(nearest("defualts").as_deref(), Some("defaults"));
        assert_eq!(nearest("uid"), None);
    }

    /// The same the other way round, for a test of both.
    fn escaped(value: &OsStr) -> OsString {
        let escape = |byte: &u8| match byte {
            b',' | b'\\' | b'"' => vec![b'\\', *byte],
            other => vec![*other],
        };
        OsString::from_vec(value.as_bytes().iter().flat_map(escape).collect())
    }

    proptest! {
        #[test]
        fn every_value_can_be_written(value in proptest::collection::vec(1u8.., 0..20)) {
            let value = OsString::from_vec(value);
            let mut text = OsString::from("ro,authfile=");
            text.push(escaped(&value));
            text.push(",rw");
            let mut expected = OsString::from("--authfile=");
            expected.push(&value);
            prop_assert_eq!(read(&[text], std::iter::empty()).unwrap().words, [expected]);
        }
    }
}
