//! Why a mount helper does nothing: what was asked for cannot be meant.

use std::io;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};

#[derive(Debug, thiserror::Error)]
pub(super) enum Wrong {
    #[error("unknown option {name}{}", near(name, nearest.as_deref()))]
    Unknown { name: String, nearest: Option<String> },
    #[error("the option {name} needs a value: -o {name}={value}")]
    NoValue { name: String, value: String },
    #[error("the option {name} is a switch, and takes no {value:?}: write {name}, or {name}=false")]
    Switch { name: String, value: String },
    #[error("the option {name} is not for mount(8), which returns when the image can be used; leave it out")]
    Stays { name: &'static str },
    #[error("{0}")]
    Options(String),
    #[error(
        "{text} is a file, and no image: write docker://NAME, or oci:, oci-archive: or docker-archive: before a path"
    )]
    Path { text: String },
    #[error("the mount namespace {path:?} of -N cannot be entered")]
    Namespace { path: PathBuf, source: io::Error },
    #[error("a remount cannot change {names} of {dir:?}: unmount it and mount it again")]
    Fixed { names: String, dir: PathBuf },
    #[error("{dir:?} shows {source_there}, and a remount cannot make it show {image}: unmount it and mount it again")]
    OtherImage { dir: PathBuf, source_there: String, image: String },
}

fn near(name: &str, nearest: Option<&str>) -> String {
    match nearest {
        Some(nearest) => format!(": is {nearest} meant?"),
        // What stands behind a comma of a path.
        None if name.contains('/') => ": a comma in a value has a backslash before it".to_owned(),
        None => ": `crfs mount --help` names them, without the -- before them".to_owned(),
    }
}

impl From<clap::Error> for Wrong {
    /// What the command line says of its options, said of those of mount(8).
    fn from(error: clap::Error) -> Self {
        let context = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => Some(text.clone()),
            Some(ContextValue::Strings(texts)) => texts.first().cloned(),
            _ => None,
        };
        let bare = |text: String| text.trim_start_matches("--").to_owned();
        match (error.kind(), context(ContextKind::InvalidArg)) {
            (ErrorKind::UnknownArgument, Some(name)) => {
                let name = bare(name);
                let nearest = context(ContextKind::SuggestedArg).map(bare);
                Self::Unknown { name, nearest }
            }
            (ErrorKind::DisplayHelp, _) => Self::Unknown { name: "help".to_owned(), nearest: None },
            (ErrorKind::DisplayVersion, _) => Self::Unknown { name: "version".to_owned(), nearest: None },
            _ => Self::Options(first_paragraph(&error.to_string())),
        }
    }
}

/// Without what is said of the usage of another command.
fn first_paragraph(text: &str) -> String {
    let lines = text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim);
    let line = lines.collect::<Vec<_>>().join(" ");
    line.trim_start_matches("error: ").replace("'--", "'")
}
