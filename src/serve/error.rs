//! Why a server does not come up or go on, and what to do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::ask::Unanswered;
use crate::errors::chain;
use crate::registry::Waiting;
use crate::{image, kernel};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the state of the mount cannot be kept in {}", path.display())]
    State { path: PathBuf, source: io::Error },
    #[error("the state of mounts cannot be read in {}", path.display())]
    UnreadState { path: PathBuf, source: io::Error },
    #[error("no directory for the state of the mount; tried {tried}")]
    NoStateDirectory { tried: String },
    #[error("not mounted within {} s (--mount-deadline){}", limit.as_secs_f64(), after_colon(waiting.as_deref()))]
    Deadline { limit: Duration, waiting: Option<Box<Waiting>> },
    #[error("interrupted; nothing is mounted")]
    Interrupted,
    #[error("serving {} failed", dir.display())]
    Session { dir: PathBuf, source: io::Error },
    #[error("the first lookup in {} failed", dir.display())]
    NotReady { dir: PathBuf, source: io::Error },
    #[error("{} is a crfs mount of another user, or its state is gone; ask as that user, or name its image", dir.display())]
    NotOurs { dir: PathBuf },
    #[error("the server of {} does not say what became of its bytes", dir.display())]
    NotTold { dir: PathBuf, source: Unanswered },
    #[error("metrics cannot be served on {at}; give --metrics-listen another address or path")]
    Listen { at: String, source: io::Error },
    #[error("{} is not a crfs mount but one of type {kind}", dir.display())]
    NotCrfs { dir: PathBuf, kind: String },
    #[error(
        "{} is mounted in another mount namespace, {namespace}, where others see it: {holders}; unmount it there, or by `crfs umount {id}`", dir.display()
    )]
    MountedElsewhere { dir: PathBuf, namespace: String, holders: String, id: String },
    #[error("{} is mounted in several mount namespaces; say which one by its id: {ids} (see `crfs status`)", dir.display())]
    SeveralMounted { dir: PathBuf, ids: String },
    #[error("{} is mounted in another mount namespace, and its server, process {pid} there, cannot be asked to unmount it", dir.display())]
    NotAsked { dir: PathBuf, pid: u32, source: Unanswered },
    #[error("in the mount namespace of {}: {why}", dir.display())]
    StaysElsewhere { dir: PathBuf, why: String },
    #[error("{} is covered by another mount, of type {kind}; unmount that one first", dir.display())]
    Covered { dir: PathBuf, kind: String },
    #[error("the background server cannot be started")]
    Spawn { source: io::Error },
    #[error("{message}")]
    Reported { message: String },
    #[error("the background server ended without a word ({status}); `--foreground -v` shows what it does")]
    Silent { status: String },
    #[error("the options on standard input are not those of this version of crfs")]
    Handover { source: serde_json::Error },
    #[error("the mount was handed over in form {found}, of another version of crfs; this one knows form {known}")]
    OtherForm { found: u32, known: u32 },
    #[error("the image has other files or attributes than when it was mounted; unmount it, and mount it again")]
    OtherTree,
    #[error("{} goes on with the server that it has", dir.display())]
    NotUpgraded {
        dir: PathBuf,
        #[source]
        why: Unanswered,
    },
    #[error("the keeper of the mount does not answer")]
    Keeper { source: io::Error },
    #[error("the runtime cannot be started")]
    Runtime { source: io::Error },
    #[error(transparent)]
    Ended(#[from] crate::threads::Ended),
    #[error(transparent)]
    Image(#[from] image::Error),
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
}

impl Error {
    /// The message and its causes, on one line.
    #[must_use]
    pub fn chain(&self) -> String {
        chain(self)
    }
}

fn after_colon(waiting: Option<&Waiting>) -> String {
    waiting.map(|waiting| format!(": {waiting}")).unwrap_or_default()
}
