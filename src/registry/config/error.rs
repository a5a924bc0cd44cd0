//! What is wrong with a configuration: which file, which line, which key, and what to do.

use std::path::PathBuf;

use crate::toml_file;

/// Why a configuration allows no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("{path} cannot be read: {reason}; it says how registries are reached: mend it, or remove it", path = path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error(transparent)]
    File(#[from] toml_file::Error),
    #[error("{name} is blocked: {path}, line {line}, has blocked = true for {prefix:?}; remove that, or name another registry", path = path.display())]
    Blocked { name: String, prefix: String, path: PathBuf, line: usize },
    #[error("{name:?} is not an image's name: {reason}")]
    Name { name: String, reason: String },
    #[error(
        "{name:?} names no registry, and may be any of {}; {path} has short-name-mode = \"enforcing\": name one of them",
        candidates.join(", "), path = path.display()
    )]
    Ambiguous { name: String, candidates: Vec<String>, path: PathBuf },
    #[error(
        "{image} is refused: {path} says \"reject\" for {scope}; name an image that it allows, or change it",
        path = path.display()
    )]
    Rejected { image: String, path: PathBuf, scope: String },
    #[error(
        "{image} is refused: {path} demands a signature ({kind}) for {scope}, which crfs cannot check: use podman",
        path = path.display()
    )]
    SignatureWanted { image: String, path: PathBuf, scope: String, kind: String },
    #[error(
        "{path} gives no host of {registry} the capability {capability:?}: add it to one of them",
        path = path.display()
    )]
    NoHost { registry: String, path: PathBuf, capability: &'static str },
}
