//! Where everything of a store is.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::Error;
use crate::blob::Digest;

/// How the name of a tar-split ends, behind the layer's id.
pub(super) const TAR_SPLIT: &str = ".tar-split.gz";

/// The directories of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// What podman is told. Absolute.
    pub root: PathBuf,
    /// What only crfs reads.
    pub state: PathBuf,
}

impl Paths {
    /// `state`: below the root where none is given. Symlinks on the way to the root are followed now: the kernel's list of mounts has none.
    #[must_use]
    pub fn new(root: &Path, state: Option<PathBuf>) -> Self {
        let root = real(root);
        let state = state.unwrap_or_else(|| root.join("crfs"));
        Self { root, state }
    }

    pub(super) fn mount(&self) -> PathBuf {
        self.root.join("overlay")
    }

    /// A file of overlay-images or overlay-layers.
    pub(super) fn podman(&self, kind: Kind, extension: &str) -> PathBuf {
        let name = kind.name();
        self.root.join(format!("overlay-{name}")).join(name).with_extension(extension)
    }

    /// Where podman looks for the tar-splits of layers, beside their list.
    pub(super) fn tar_splits(&self) -> PathBuf {
        self.root.join("overlay-layers")
    }

    /// That of a layer.
    pub(super) fn tar_split(&self, layer: &Digest) -> PathBuf {
        self.tar_splits().join(layer.hex() + TAR_SPLIT)
    }

    /// Manifest and config of an image.
    pub(super) fn image(&self, id: &str) -> PathBuf {
        self.root.join("overlay-images").join(id)
    }

    pub(super) fn records(&self) -> PathBuf {
        self.state.join("store.json")
    }

    /// Below the root, whatever the state is: there is one server of a root.
    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("crfs.lock")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.state.join("server.log")
    }

    /// Makes what is missing. What podman reads is for everybody to read: users may be given a part of root's store.
    pub(super) fn create(&self) -> Result<(), Error> {
        let made = |path: &Path, mode: u32| {
            let failed = |source| Error::File { path: path.to_owned(), source };
            match DirBuilder::new().recursive(true).mode(mode).create(path) {
                // A mount point whose server is gone cannot be looked at.
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(error)),
                _ => Ok(()),
            }
        };
        made(&self.root, 0o755)?;
        made(&self.state, 0o700)?;
        self.check_private()?;
        made(&self.mount(), 0o755)?;
        for kind in [Kind::Layers, Kind::Images] {
            made(&self.root.join(format!("overlay-{}", kind.name())), 0o755)?;
            let lock = self.podman(kind, "lock");
            let opened = OpenOptions::new().append(true).create(true).mode(0o644).open(&lock);
            // Whatever the umask was.
            let readable = opened.and_then(|file| file.set_permissions(Permissions::from_mode(0o644)));
            readable.map_err(|source| Error::File { path: lock, source })?;
        }
        Ok(())
    }

    /// Whoever could write there could have the server read any image, with its owner's credentials.
    fn check_private(&self) -> Result<(), Error> {
        let failed = |source| Error::File { path: self.state.clone(), source };
        let meta = fs::symlink_metadata(&self.state).map_err(failed)?;
        if meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o077 == 0 {
            return Ok(());
        }
        let why = "not a directory of this user alone (mode 0700)";
        Err(failed(io::Error::new(io::ErrorKind::PermissionDenied, why)))
    }
}

/// A path without symlinks in that part of it that is there.
fn real(path: &Path) -> PathBuf {
    let there = |part: &Path| Some(part.canonicalize().ok()?.join(path.strip_prefix(part).ok()?));
    path.ancestors().find_map(there).unwrap_or_else(|| path.to_owned())
}

/// The two lists that podman reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Images,
    Layers,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Images => "images",
            Self::Layers => "layers",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn podman_can_read_its_part_and_nobody_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(&dir.path().join("a/store"), None);
        paths.create().unwrap();
        paths.create().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&paths.state), 0o700);
        assert_eq!(mode(&dir.path().join("a/store/overlay-images/images.lock")), 0o644);
        assert_eq!(mode(&paths.podman(Kind::Layers, "lock")), 0o644);
        fs::set_permissions(&paths.state, Permissions::from_mode(0o750)).unwrap();
        assert!(paths.create().unwrap_err().to_string().contains("crfs"), "others may enter");
    }
}
