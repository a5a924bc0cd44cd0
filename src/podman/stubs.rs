//! What lies below the FUSE mount, and shows where no server runs: as much of each layer as podman looks at when it does not read the layer.
//!
//! Without it `podman inspect` and `podman pull` would fail for images and containers on top of the store. `diff` is a file there and no directory, so
//! that nothing can be run from it: an overlay over a file is refused, and one over an empty directory would be an empty root.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::mount::{OpenTreeFlags, open_tree};

use super::files::is_id;
use super::idmap::Map;
use super::lists;
use super::paths::make_dir;
use super::records::{Layer, Records};
use crate::sys::own::{Entry, EntryKind, OwnDir, short_path};

/// The directory of the layers' links.
const LINKS: &str = "l";

/// Those of the store, and those of the users that have it.
#[derive(Default)]
pub(super) struct AllStubs {
    /// `None` where they cannot be reached.
    own: Mutex<Option<Stubs>>,
    of_users: Mutex<BTreeMap<String, Stubs>>,
}

impl AllStubs {
    /// `of_users`: by their names.
    pub(super) fn new(own: Stubs, of_users: BTreeMap<String, Stubs>) -> Self {
        Self { own: Mutex::new(Some(own)), of_users: Mutex::new(of_users) }
    }

    pub(super) fn set_own(&self, own: Stubs) {
        *self.own() = Some(own);
    }

    pub(super) fn add(&self, user: String, stubs: Stubs) {
        self.of_users().insert(user, stubs);
    }

    /// Makes them what the records say.
    pub(super) fn write(&self, records: &Records) {
        self.own().iter().for_each(|own| own.write(records));
        let mut of_users = self.of_users();
        of_users.retain(|name, _| records.users.contains(name));
        of_users.values().for_each(|stubs| stubs.write(records));
    }

    /// Makes a directory of the store's own, which shows where nothing is mounted.
    pub(super) fn make_dir(&self, name: &OsStr) -> io::Result<()> {
        let own = self.own();
        let Some(own) = own.as_ref() else { return Ok(()) };
        make_dir(&Path::new("/proc/self/fd").join(own.dir.as_fd().as_raw_fd().to_string()).join(name), 0o755)
    }

    fn own(&self) -> MutexGuard<'_, Option<Stubs>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of_users(&self) -> MutexGuard<'_, BTreeMap<String, Stubs>> {
        self.of_users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A directory that is mounted on, open since before it was.
pub(super) struct Stubs {
    dir: OwnDir,
    /// Whose the owners of layers are there, where that is a user's.
    owners: Option<Map>,
}

impl Stubs {
    /// To be called while nothing is mounted there.
    pub(super) fn open(dir: &Path, owners: Option<Map>) -> io::Result<Self> {
        Ok(Self { dir: OwnDir::open(dir)?, owners })
    }

    /// The same of a directory that is mounted on: by a clone of what it is in, which is nowhere and has no mounts in it.
    pub(super) fn below(dir: &Path, owners: Option<Map>) -> io::Result<Self> {
        let (parent, name) = dir.parent().zip(dir.file_name()).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let clone = open_tree(rustix::fs::CWD, parent, flags)?;
        Self::open(&short_path(clone.as_fd()).join(name), owners)
    }

    /// Makes them what the records say. What fails costs a few commands of podman while no server runs, so it is only logged.
    pub(super) fn write(&self, records: &Records) {
        // Not the path, which leads to what is mounted there.
        let dir = PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_fd().as_raw_fd()));
        let write = |layer: &Layer| write_layer(&dir, records, layer, self.owner(layer));
        let written = records.layers.iter().try_for_each(write);
        if let Err(error) = written.and_then(|()| remove_others(&self.dir, records)) {
            tracing::warn!(%error, "podman will be able to do less while no server runs");
        }
    }

    /// Of a layer's root. `None`: one that the user's podman does not have.
    fn owner(&self, layer: &Layer) -> Option<(u32, u32)> {
        let [_, user, group] = layer.facts.root;
        self.owners.as_ref().map_or(Some((user, group)), |map| map.outside(user, group))
    }
}

fn write_layer(dir: &Path, records: &Records, layer: &Layer, owner: Option<(u32, u32)>) -> io::Result<()> {
    let own = dir.join(layer.id.hex());
    let diff = own.join("diff");
    if diff.exists() {
        // It is made last.
        return Ok(());
    }
    let links = dir.join(LINKS);
    for made in [&own, &links, &own.join("merged")] {
        make_dir(made, 0o755)?;
    }
    let link = links.join(&layer.link);
    ignore(symlink(Path::new("..").join(layer.id.hex()).join("diff"), link), io::ErrorKind::AlreadyExists)?;
    write_file(&own.join("link"), &layer.link)?;
    if let Some(lower) = lists::lower(records, layer) {
        write_file(&own.join("lower"), &lower)?;
    }
    let new = own.join("new");
    File::create(&new)?;
    // podman gives a layer that it puts on top a root like this one.
    if let Some((user, group)) = owner {
        ignore(chown(&new, Some(user), Some(group)), io::ErrorKind::PermissionDenied).or_else(|error| {
            // An owner that this user namespace does not have.
            if error.raw_os_error() == Some(nix::libc::EINVAL) { Ok(()) } else { Err(error) }
        })?;
    }
    // It is a file of this machine: nobody is to run it as its owner.
    let [mode, ..] = layer.facts.root;
    fs::set_permissions(&new, Permissions::from_mode(mode & 0o1777))?;
    fs::rename(&new, &diff)
}

/// For whoever has the store, whatever the umask is.
fn write_file(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, Permissions::from_mode(0o644))
}

/// Removes the stubs of all layers. What else there is was not made by crfs.
pub(super) fn remove_all(dir: &OwnDir) -> io::Result<()> {
    remove_others(dir, &Records::default())?;
    ignore(dir.remove_empty(LINKS), io::ErrorKind::NotFound)
}

/// Removes what can be; the first error is told.
fn remove_others(dir: &OwnDir, records: &Records) -> io::Result<()> {
    let mut outcome = Ok(());
    let is_kept = |id: &OsStr| records.layers.iter().any(|layer| *layer.id.hex() == *id);
    for entry in dir.list()? {
        if entry.kind == EntryKind::Directory && is_id(&entry.name) && !is_kept(&entry.name) {
            outcome = outcome.and(dir.remove_with(&entry.name, is_of_stub));
        }
    }
    let Ok(links) = dir.enter(LINKS) else { return outcome };
    let is_kept = |link: &OsStr| records.layers.iter().any(|layer| *layer.link == *link);
    for entry in links.list()? {
        if entry.kind == EntryKind::Symlink && !is_kept(&entry.name) && leads_to_layer(&links, &entry.name)? {
            outcome = outcome.and(links.remove(&entry.name));
        }
    }
    outcome
}

/// Whether it is what `write_layer` makes.
fn is_of_stub(entry: &Entry) -> bool {
    match entry.kind {
        EntryKind::File => ["diff", "link", "lower", "new"].iter().any(|name| entry.name == *name),
        EntryKind::Directory => entry.name == "merged",
        _ => false,
    }
}

/// Whether a symlink is one that `write_layer` makes.
fn leads_to_layer(links: &OwnDir, name: &OsStr) -> io::Result<bool> {
    let target = links.read_link(name)?;
    let id = target.strip_prefix("..").ok().filter(|rest| rest.ends_with("diff")).and_then(Path::parent);
    Ok(id.is_some_and(|id| is_id(id.as_os_str())))
}

fn ignore(done: io::Result<()>, kind: io::ErrorKind) -> io::Result<()> {
    match done {
        Err(error) if error.kind() != kind => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::blob::Digest;
    use crate::podman::records::tests::layer;

    #[test]
    fn nothing_can_be_run_from_a_stub_and_those_of_other_layers_go() {
        let dir = tempfile::tempdir().unwrap();
        let stubs = Stubs::open(dir.path(), None).unwrap();
        let mut records = Records::default();
        for (id, parent) in [("one", None), ("two", Some("one"))] {
            let new = layer(&mut records, id, parent);
            records.layers.push(new);
        }
        stubs.write(&records);
        stubs.write(&records);
        let path = |id: &str, name: &str| dir.path().join(Digest::of(id.as_bytes()).hex()).join(name);
        let diff = fs::metadata(dir.path().join("l/TWO")).unwrap();
        assert!(diff.is_file() && diff.mode() & 0o7777 == 0o711);
        assert_eq!(fs::read_to_string(path("two", "lower")).unwrap(), "l/ONE");
        assert_eq!(fs::read_to_string(path("one", "link")).unwrap(), "ONE");
        assert!(!path("one", "lower").exists());
        // Somebody else's, whatever they are called.
        let theirs = Digest::of(b"theirs").hex();
        fs::create_dir(dir.path().join(&theirs)).unwrap();
        fs::write(dir.path().join(&theirs).join("mine"), "").unwrap();
        symlink("/etc/passwd", dir.path().join("l/THEIRS")).unwrap();
        symlink("one", dir.path().join("link")).unwrap();
        records.layers.pop();
        assert!(remove_others(&stubs.dir, &records).is_err());
        assert!(!path("two", "").exists(), "it keeps nothing else");
        for kept in ["link", "l/THEIRS"] {
            assert!(fs::symlink_metadata(dir.path().join(kept)).is_ok(), "{kept}");
        }
        assert!(dir.path().join(&theirs).join("mine").exists());
        fs::remove_file(dir.path().join(&theirs).join("mine")).unwrap();
        stubs.write(&records);
        assert!(path("one", "link").exists() && !path("two", "").exists());
        assert!(fs::symlink_metadata(dir.path().join("l/TWO")).is_err());
    }
}
