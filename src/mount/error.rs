//! Why something about a mount failed, and what to do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::blob::Digest;
use crate::registry::Waiting;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}", dir.display())]
    Directory { dir: PathBuf, source: io::Error },
    #[error("{} has not answered for {seconds} s: the server of a filesystem that leads to it is gone or stopped", path.display())]
    Unanswered { path: PathBuf, seconds: u64 },
    #[error("{} is not a directory", dir.display())]
    NotADirectory { dir: PathBuf },
    #[error("{} is already a crfs mount, of {image}: `crfs umount` it first", dir.display())]
    AlreadyMounted { dir: PathBuf, image: String },
    #[error("there is no /dev/fuse: load the kernel module fuse (modprobe fuse), or give the container that device")]
    NoDevice,
    #[error("cannot open /dev/fuse")]
    Device { source: io::Error },
    #[error("cannot mount on {}", dir.display())]
    Mount { dir: PathBuf, source: io::Error },
    #[error("an ordinary user mounts by fusermount3, which is not installed: install the package fuse3")]
    NoHelper,
    #[error("cannot mount on {}: {message}", dir.display())]
    Helper { dir: PathBuf, message: String },
    #[error("cannot talk to fusermount3")]
    HelperTalk { source: io::Error },
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

    #[error("{} is not a mount point", dir.display())]
    NotMounted { dir: PathBuf },
    #[error("{}: what is mounted there has changed meanwhile; it was left alone", dir.display())]
    Replaced { dir: PathBuf },
    #[error("{} is not a crfs mount but one of type {kind}", dir.display())]
    NotCrfs { dir: PathBuf, kind: String },
    #[error(
        "{} is mounted in another mount namespace, {namespace}, where others see it: {holders}; unmount it there, or by `crfs umount {id}`", dir.display()
    )]
    MountedElsewhere { dir: PathBuf, namespace: String, holders: String, id: String },
    #[error("{} is mounted in several mount namespaces; say which one by its id: {ids} (see `crfs status`)", dir.display())]
    SeveralMounted { dir: PathBuf, ids: String },
    #[error("{} is mounted in another mount namespace, and its server, process {pid} there, cannot be asked to unmount it", dir.display())]
    NotAsked { dir: PathBuf, pid: u32, source: io::Error },
    #[error("in the mount namespace of {}: {why}", dir.display())]
    StaysElsewhere { dir: PathBuf, why: String },
    #[error("{} is covered by another mount, of type {kind}; unmount that one first", dir.display())]
    Covered { dir: PathBuf, kind: String },
    #[error("{} is in use; see by whom with `fuser -vm {0}` or `lsof +f -- {0}`", dir.display())]
    Busy { dir: PathBuf },
    #[error("cannot unmount {}", dir.display())]
    Unmount { dir: PathBuf, source: io::Error },
    #[error("cannot unmount {}: {message}", dir.display())]
    HelperUnmount { dir: PathBuf, message: String },

    #[error("the background server cannot be started")]
    Spawn { source: io::Error },
    #[error("{message}")]
    Reported { message: String },
    #[error("the background server ended without a word ({status}); `--foreground -v` shows what it does")]
    Silent { status: String },
    #[error("the options on standard input are not those of this version of crfs")]
    Handover { source: serde_json::Error },
    #[error("the runtime cannot be started")]
    Runtime { source: io::Error },
    #[error(transparent)]
    Ended(#[from] crate::threads::Ended),

    #[error(transparent)]
    Registry(#[from] crate::registry::Error),
    #[error(transparent)]
    Index(#[from] crate::index::Error),
    #[error(transparent)]
    Pass(#[from] crate::fetch::PassError),
    #[error(transparent)]
    Damaged(#[from] crate::index::Damaged),
    #[error(transparent)]
    Tree(#[from] crate::fs::tree::Error),
    #[error("layer {layer}, which has the most of them: the names, links and xattrs of all layers together")]
    Memory { layer: Digest, source: crate::budget::Exceeded },
    #[error("the image has no layer {wanted}; it has {count}, the lowest is 0")]
    NoSuchLayer { wanted: String, count: usize },
    #[error(
        "layer {layer} can only be unpacked from its start, so it has to be kept unpacked while it is mounted: the cache has no room for its \
         {needed} bytes; give crfs a larger --cache-size, or a --cache-dir with that much space"
    )]
    CannotKeep { layer: Digest, needed: u64 },
    #[error(
        "layer {layer}: the cache would not keep its index; give crfs a --cache-dir that can be written and has room"
    )]
    NotKept { layer: Digest },
    #[error("layer {layer}: its index cannot be taken over from the process that has read the layer")]
    Handed { layer: Digest, source: io::Error },
    #[error("a tar-split cannot be written in {}", dir.display())]
    TarSplit { dir: PathBuf, source: io::Error },
    #[error("{} cannot be written", path.display())]
    Archive { path: PathBuf, source: io::Error },
    #[error("layer {layer}: its zTOC has {size} bytes, the limit is {limit}")]
    ZtocTooLarge { layer: Digest, size: u64, limit: u64 },
    #[error(
        "layer {layer}: the image's config, which has the digest of its tar, {why}; mount again, or push the image again"
    )]
    NoConfig { layer: Digest, why: super::config::Unusable },
    #[error("the image's config {why}; push the image again")]
    OtherLayers { why: super::config::Unusable },
    #[error("layer {layer} was given up")]
    LayerTask { layer: Digest, source: crate::threads::Lost },
    #[error("the layers were not merged")]
    Merge { source: crate::threads::Lost },
    #[error(transparent)]
    Path(#[from] crate::fs::view::ResolveError),
    #[error("{path}: there is no such file in the image")]
    NoSuchPath { path: String },
    #[error("{path} is a directory")]
    IsADirectory { path: String },
    #[error("{path} is not a regular file")]
    NotAFile { path: String },
    #[error(transparent)]
    Read(#[from] crate::fetch::Error),
    #[error("the cache {} cannot be used", dir.display())]
    Cache { dir: PathBuf, source: io::Error },
    #[error("cannot write the output")]
    Output { source: io::Error },
}

impl Error {
    /// Whether other bytes came than the manifest names, so that a read past caches may mend it.
    pub(super) const fn is_wrong_bytes(&self) -> bool {
        match self {
            Self::Index(error) => error.is_wrong_bytes(),
            Self::Pass(error) => error.is_wrong_bytes(),
            _ => false,
        }
    }

    /// The message and its causes, on one line.
    #[must_use]
    pub fn chain(&self) -> String {
        chain(self)
    }
}

fn after_colon(waiting: Option<&Waiting>) -> String {
    waiting.map(|waiting| format!(": {waiting}")).unwrap_or_default()
}

/// An error's message and its causes, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        // A cause that the messages above it already hold would be said twice.
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_follow_the_message_and_are_not_repeated() {
        let source = io::Error::from_raw_os_error(nix::libc::EACCES);
        let error = Error::Mount { dir: PathBuf::from("/mnt"), source };
        assert_eq!(error.chain(), "cannot mount on /mnt: Permission denied (os error 13)");
        assert_eq!(Error::Reported { message: "no".into() }.chain(), "no");
    }

    #[test]
    fn a_busy_mount_says_what_to_look_with() {
        let text = Error::Busy { dir: PathBuf::from("/mnt/a") }.to_string();
        assert!(text.contains("fuser -vm /mnt/a") && text.contains("lsof +f -- /mnt/a"), "{text}");
    }
}
