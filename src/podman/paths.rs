//! Where everything of a store is.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use serde::{Deserialize, Serialize};

use super::Error;
use crate::blob::Digest;
use crate::image::wire;
use crate::sys::own::{OwnDir, regular};
use crate::sys::trusted;

/// How the name of a tar-split ends, behind the layer's id.
pub(super) const TAR_SPLIT: &str = ".tar-split.gz";

/// Modes of the root: of one that is its owner's alone, and of one of which users have a part.
const OWN_ROOT: u32 = 0o700;
const SHARED_ROOT: u32 = 0o711;

/// The directories of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paths {
    /// What podman is told. Absolute.
    #[serde(with = "wire::path")]
    pub root: PathBuf,
    /// What only crfs reads.
    #[serde(with = "wire::path")]
    pub state: PathBuf,
}

/// What a podman keeps in its own root, besides the two lists.
const OF_PODMAN: [&str; 5] =
    ["overlay-layers/volatile-layers.json", "overlay-containers", "libpod", "db.sql", "storage.lock"];

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

    /// Where each image has a directory, beside their list.
    pub(super) fn images(&self) -> PathBuf {
        self.root.join("overlay-images")
    }

    /// Manifest and config of an image.
    pub(super) fn image(&self, id: &str) -> PathBuf {
        self.images().join(id)
    }

    /// Where podman finds layers while it pulls, for storage.conf's additionallayerstores.
    #[must_use]
    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(super) fn records(&self) -> PathBuf {
        self.state.join("store.json")
    }

    /// Below the root, whatever the state is: there is one server of a root.
    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("crfs.lock")
    }

    /// What podman has handed over to pull by, for its owner alone.
    pub(super) fn credentials(&self) -> PathBuf {
        self.state.join("auth.json")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.state.join("server.log")
    }

    /// Makes what is missing. The root is for its owner alone, as podman's own is; whoever may enter it (`set_root_mode`) may read the lists in it,
    /// since users may be given the store.
    pub(super) fn create(&self) -> Result<(), Error> {
        let made =
            |path: &Path, mode| make_dir(path, mode).map_err(|source| Error::File { path: path.to_owned(), source });
        for (own, mode) in [(&self.root, OWN_ROOT), (&self.state, 0o700)] {
            let trusted = |source| Error::Place { path: own.clone(), source };
            check(own).map_err(trusted)?;
            make_dir(own, mode).map_err(trusted)?;
            // Also what was made in between.
            check(own).map_err(trusted)?;
        }
        self.check_private()?;
        self.check_own()?;
        // What is mounted there has a mode of its own, and so have users' clones of that.
        made(&self.mount(), 0o700)?;
        for kind in [Kind::Layers, Kind::Images] {
            made(&self.root.join(format!("overlay-{}", kind.name())), 0o755)?;
            let lock = self.podman(kind, "lock");
            let opened = open_own(&lock, OpenOptions::new().append(true).create(true).mode(0o644));
            // Whatever the umask was.
            let readable = opened.and_then(|file| file.set_permissions(Permissions::from_mode(0o644)));
            readable.map_err(|source| Error::File { path: lock, source })?;
        }
        Ok(())
    }

    /// Comes back once the store's disk has answered something that would write, whatever it answers. Nothing is left behind.
    pub(super) fn ask_disk(&self) {
        if let Ok(state) = OwnDir::open(&self.state) {
            state.ask_disk();
        }
    }

    /// A podman has its own lists by the same names, which crfs would replace. Whatever was a store of crfs's has its lock.
    fn check_own(&self) -> Result<(), Error> {
        let is_there = |path: &Path| path.symlink_metadata().is_ok();
        let lists = [Kind::Layers, Kind::Images].map(|kind| self.podman(kind, "json"));
        // What podman has besides, also before it has a list.
        let others = OF_PODMAN.map(|name| self.root.join(name));
        match lists.iter().chain(&others).find(|list| is_there(list) && !is_there(&self.lock())) {
            Some(list) => Err(Error::NotAStore { root: self.root.clone(), list: list.clone() }),
            None => Ok(()),
        }
    }

    /// Lets those enter the root who have a part of it, and nobody where nobody has. A root that was there before crfs is not closed to anybody.
    pub(super) fn set_root_mode(&self, is_shared: bool) -> io::Result<()> {
        let mode = fs::metadata(&self.root)?.mode() & 0o7777;
        let wanted = match (is_shared, mode) {
            (true, _) => mode | 0o011,
            (false, SHARED_ROOT) => OWN_ROOT,
            (false, _) => mode,
        };
        if wanted == mode { Ok(()) } else { fs::set_permissions(&self.root, Permissions::from_mode(wanted)) }
    }

    /// Whoever could write there could have the server read any image, with its owner's credentials.
    fn check_private(&self) -> Result<(), Error> {
        check_ours(&self.state, 0o077, "not a directory of this user alone (mode 0700)")?;
        // What is put there before crfs comes could lead it elsewhere.
        check_ours(&self.root, 0o022, "not a directory of this user's in which nobody else may write")
    }
}

/// Where a path is no directory of this user's, or has any of these bits, refuses it.
fn check_ours(path: &Path, never: u32, why: &str) -> Result<(), Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let meta = fs::symlink_metadata(path).map_err(failed)?;
    if meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & never == 0 {
        return Ok(());
    }
    Err(failed(io::Error::new(io::ErrorKind::PermissionDenied, why)))
}

/// Makes a directory where there is none, with that mode whatever the umask is. Those above it that are missing everybody may go through.
pub(super) fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    let make = || DirBuilder::new().mode(mode).create(path);
    let made = match (make(), path.parent()) {
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
            make_dir(parent, 0o711)?;
            make()
        }
        (made, _) => made,
    };
    match made {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(mode)),
        // A mount point whose server is gone cannot be looked at.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether nobody else can have prepared what is there of a path.
fn check(path: &Path) -> io::Result<()> {
    match trusted::existing(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A file of the store's own: no symlink, and nothing that could be waited for.
pub(super) fn open_own(path: &Path, how: &mut OpenOptions) -> io::Result<File> {
    regular(how.custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path)?)
}

/// A path without symlinks in that part of it that is there, and without a slash at its end.
fn real(path: &Path) -> PathBuf {
    let there =
        |part: &Path| Some(part.canonicalize().ok()?.join(path.strip_prefix(part).ok()?).components().collect());
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
    fn the_root_is_for_those_who_have_a_part_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(&dir.path().join("s"), None);
        paths.create().unwrap();
        let mode = |is_shared| {
            paths.set_root_mode(is_shared).unwrap();
            fs::metadata(&paths.root).unwrap().mode() & 0o777
        };
        assert_eq!((mode(false), mode(true), mode(false)), (0o700, 0o711, 0o700));
        fs::set_permissions(&paths.root, Permissions::from_mode(0o750)).unwrap();
        assert_eq!((mode(false), mode(true), mode(false)), (0o750, 0o751, 0o751), "it is somebody's");
    }

    #[test]
    fn a_root_has_one_name_whether_or_not_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        for name in ["", "a/b"] {
            let root = Paths::new(&dir.path().join(name), None).root;
            assert_eq!(root.as_os_str(), if name.is_empty() { real.clone() } else { real.join(name) }.as_os_str());
        }
    }

    #[test]
    fn podman_can_read_its_part_and_nobody_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(&dir.path().join("a/store"), None);
        paths.create().unwrap();
        paths.create().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&paths.root), mode(&paths.state), mode(&dir.path().join("a"))), (0o700, 0o700, 0o711));
        assert_eq!(mode(&paths.tar_splits()), 0o755);
        assert_eq!(mode(&dir.path().join("a/store/overlay-images/images.lock")), 0o644);
        assert_eq!(mode(&paths.podman(Kind::Layers, "lock")), 0o644);
        fs::set_permissions(&paths.state, Permissions::from_mode(0o750)).unwrap();
        assert!(paths.create().unwrap_err().to_string().contains("crfs"), "others may enter");
    }

    #[test]
    fn a_store_of_podmans_own_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("overlay-images/images.json");
        fs::create_dir(list.parent().unwrap()).unwrap();
        fs::write(&list, "[]").unwrap();
        let paths = Paths::new(dir.path(), None);
        assert!(matches!(paths.create(), Err(Error::NotAStore { .. })));
        assert!(!paths.mount().exists());
        fs::write(paths.lock(), "").unwrap();
        paths.create().unwrap();
    }

    #[test]
    fn a_podman_that_has_no_list_yet_has_other_files() {
        for name in OF_PODMAN {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
            assert!(matches!(Paths::new(dir.path(), None).create(), Err(Error::NotAStore { .. })), "{name}");
        }
    }

    #[test]
    fn a_root_that_others_may_write_in_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("s");
        for (mode, is_fine) in [(0o777, false), (0o770, false), (0o1777, false), (0o755, true), (0o700, true)] {
            let _made_before = fs::create_dir(&root);
            fs::set_permissions(&root, Permissions::from_mode(mode)).unwrap();
            let made = Paths::new(&root, Some(dir.path().join("state"))).create();
            assert_eq!(made.is_ok(), is_fine, "{mode:o}: {made:?}");
        }
    }

    #[test]
    fn files_of_the_store_are_files() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(&dir.path().join("s"), None);
        paths.create().unwrap();
        let lock = paths.podman(Kind::Layers, "lock");
        fs::remove_file(&lock).unwrap();
        nix::unistd::mkfifo(&lock, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(paths.create(), Err(Error::File { path, .. }) if path == lock));
    }

    #[test]
    fn a_store_in_a_place_that_somebody_else_has_prepared_is_refused() {
        use std::os::unix::fs::{lchown, symlink};
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o1777)).unwrap();
        let (victims, root) = (dir.path().join("victims"), dir.path().join("crfs-7"));
        fs::create_dir(&victims).unwrap();
        symlink(&victims, &root).unwrap();
        if lchown(&root, Some(4242), None).is_err() {
            return;
        }
        // As it is where it was looked at before the symlink was there.
        let paths = Paths { root: root.join("store"), state: root.join("store/crfs") };
        let error = paths.create().unwrap_err();
        assert!(error.chain().contains("user 4242"), "{}", error.chain());
        assert_eq!(fs::read_dir(&victims).unwrap().count(), 0);
    }
}
