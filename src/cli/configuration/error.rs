//! What is wrong with the configuration: in which file and line, or which variable, and what to do.

use std::path::PathBuf;

use crate::toml_file;

/// Why the configuration is not used.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum Error {
    #[error("the configuration {path} cannot be used: {source}", path = path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("the configuration {path} cannot be used: it is not text in UTF-8; correct the file, or remove it", path = path.display())]
    NotText { path: PathBuf },
    #[error(transparent)]
    File(#[from] toml_file::Error),
    #[error("the variable {name}: {reason}")]
    Variable { name: String, reason: String },
    #[error("{first}; and {more} more: `crfs config show` names them")]
    Several { first: Box<Error>, more: usize },
}
