//! The directories of snapshots: what a container writes, and what containerd unpacks.
//!
//! ```text
//! ROOT/snapshots/<id>/fs      the snapshot's own files
//!                     work    overlayfs's, of one that can be written
//! ```

use std::collections::HashSet;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};

use super::error::Status;

/// Bytes of a block, as stat counts them.
const BLOCK: u64 = 512;

pub(super) struct Dirs {
    dir: PathBuf,
}

impl Dirs {
    pub(super) fn new(root: &Path) -> io::Result<Self> {
        let dir = root.join("snapshots");
        make(&dir, 0o700)?;
        Ok(Self { dir })
    }

    pub(super) fn fs(&self, id: u64) -> PathBuf {
        self.dir.join(id.to_string()).join("fs")
    }

    pub(super) fn work(&self, id: u64) -> PathBuf {
        self.dir.join(id.to_string()).join("work")
    }

    /// Makes the directories of a snapshot.
    pub(super) fn make(&self, id: u64, can_be_written: bool, owner: Option<(u32, u32)>) -> Result<(), Status> {
        let dir = self.dir.join(id.to_string());
        let made = || {
            // What a process has left that was killed. Nobody was told of it.
            match fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => make(&dir, 0o700)?,
            }
            make(&self.fs(id), 0o755)?;
            if can_be_written {
                make(&self.work(id), 0o711)?;
            }
            match owner {
                Some((user, group)) => lchown(self.fs(id), Some(user), Some(group)),
                None => Ok(()),
            }
        };
        made().map_err(|error| {
            self.remove(id);
            Status::file(&dir, &error)
        })
    }

    /// What cannot be removed is tried again by the next cleanup.
    pub(super) fn remove(&self, id: u64) {
        let dir = self.dir.join(id.to_string());
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(dir = %dir.display(), %error, "the directory of a removed snapshot stays for now");
            }
            _ => {}
        }
    }

    /// The directories of snapshots that are not among these.
    pub(super) fn others(&self, known: &HashSet<u64>) -> Vec<u64> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        ids.filter(|id| !known.contains(id)).collect()
    }

    pub(super) fn owner(&self, id: u64) -> Result<(u32, u32), Status> {
        let path = self.fs(id);
        let metadata = fs::symlink_metadata(&path).map_err(|error| Status::file(&path, &error))?;
        Ok((metadata.uid(), metadata.gid()))
    }

    /// Bytes on disk and inodes. Files that go meanwhile do not count.
    pub(super) fn usage(&self, id: u64) -> Result<(i64, i64), Status> {
        let path = self.fs(id);
        let root = fs::symlink_metadata(&path).map_err(|error| Status::file(&path, &error))?;
        let (mut seen, mut bytes) = (HashSet::from([root.ino()]), root.blocks().saturating_mul(BLOCK));
        let mut dirs = vec![path];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                let Ok(metadata) = entry.metadata() else { continue };
                if metadata.dev() != root.dev() || !seen.insert(metadata.ino()) {
                    continue;
                }
                bytes = bytes.saturating_add(metadata.blocks().saturating_mul(BLOCK));
                if metadata.is_dir() {
                    dirs.push(entry.path());
                }
            }
        }
        Ok((i64::try_from(bytes).unwrap_or(i64::MAX), i64::try_from(seen.len()).unwrap_or(i64::MAX)))
    }
}

/// Makes a directory with exactly this mode, whatever the umask is. One that is there stays as it is.
pub(super) fn make(dir: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        made => made.and_then(|()| fs::set_permissions(dir, Permissions::from_mode(mode))),
    }
}
