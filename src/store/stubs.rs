//! What lies below the FUSE mount, and shows where no server runs: as much of each layer as podman looks at when it does not read the layer.
//!
//! Without it `podman inspect` and `podman pull` would fail for images and containers on top of the store. `diff` is a file there and no directory, so
//! that nothing can be run from it: an overlay over a file is refused, and one over an empty directory would be an empty root.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use super::idmap::Map;
use super::paths::make_dir;
use super::podman;
use super::records::{Layer, Records};

/// A directory that is mounted on, open since before it was.
pub(super) struct Stubs {
    dir: File,
    /// Whose the owners of layers are there, where that is a user's.
    owners: Option<Map>,
}

impl Stubs {
    /// To be called while nothing is mounted there.
    pub(super) fn open(dir: &Path, owners: Option<Map>) -> io::Result<Self> {
        Ok(Self { dir: File::open(dir)?, owners })
    }

    /// Makes them what the records say. What fails costs a few commands of podman while no server runs, so it is only logged.
    pub(super) fn write(&self, records: &Records) {
        // Not the path, which leads to what is mounted there.
        let dir = PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd()));
        let write = |layer: &Layer| write_layer(&dir, records, layer, self.owner(layer));
        let written = records.layers.iter().try_for_each(write);
        if let Err(error) = written.and_then(|()| remove_others(&dir, records)) {
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
    let links = dir.join("l");
    for made in [&own, &links, &own.join("merged")] {
        make_dir(made, 0o755)?;
    }
    let link = links.join(&layer.link);
    ignore(symlink(Path::new("..").join(layer.id.hex()).join("diff"), link), io::ErrorKind::AlreadyExists)?;
    write_file(&own.join("link"), &layer.link)?;
    if let Some(lower) = podman::lower(records, layer) {
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

fn remove_others(dir: &Path, records: &Records) -> io::Result<()> {
    let ids: BTreeSet<_> = records.layers.iter().map(|layer| layer.id.hex()).collect();
    let links: BTreeSet<_> = records.layers.iter().map(|layer| layer.link.clone()).collect();
    for (place, kept) in [(dir.to_owned(), &ids), (dir.join("l"), &links)] {
        let Ok(entries) = fs::read_dir(&place) else { continue };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_link = entry.file_type()?.is_symlink();
            // What else there is was not made by crfs.
            if kept.contains(&name) || (name.len() != 64 && !is_link) {
                continue;
            }
            ignore(
                if is_link { fs::remove_file(entry.path()) } else { fs::remove_dir_all(entry.path()) },
                io::ErrorKind::NotFound,
            )?;
        }
    }
    Ok(())
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
    use crate::store::records::tests::layer;

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
        records.layers.pop();
        stubs.write(&records);
        assert!(path("one", "link").exists() && !path("two", "").exists());
        assert!(fs::symlink_metadata(dir.path().join("l/TWO")).is_err());
    }
}
