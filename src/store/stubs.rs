//! What lies below the FUSE mount, and shows where no server runs: as much of each layer as podman looks at when it does not read the layer.
//!
//! Without it `podman inspect` and `podman pull` would fail for images and containers on top of the store. `diff` is a file there and no directory, so
//! that nothing can be run from it: an overlay over a file is refused, and one over an empty directory would be an empty root.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use super::podman;
use super::records::{Layer, Records};

/// The directory that is mounted on, open since before it was.
pub(super) struct Stubs(File);

impl Stubs {
    /// To be called while nothing is mounted there.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        File::open(dir).map(Self)
    }

    /// Makes them what the records say. What fails costs a few commands of podman while no server runs, so it is only logged.
    pub(super) fn write(&self, records: &Records) {
        // Not the path, which leads to what is mounted there.
        let dir = PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()));
        let written = records.layers.iter().try_for_each(|layer| write_layer(&dir, records, layer));
        if let Err(error) = written.and_then(|()| remove_others(&dir, records)) {
            tracing::warn!(%error, "podman will be able to do less while no server runs");
        }
    }
}

fn write_layer(dir: &Path, records: &Records, layer: &Layer) -> io::Result<()> {
    let own = dir.join(layer.id.hex());
    let diff = own.join("diff");
    if diff.exists() {
        // It is made last.
        return Ok(());
    }
    let links = dir.join("l");
    for made in [&own, &links, &own.join("merged")] {
        ignore(DirBuilder::new().mode(0o755).create(made), io::ErrorKind::AlreadyExists)?;
    }
    let link = links.join(&layer.link);
    ignore(symlink(Path::new("..").join(layer.id.hex()).join("diff"), link), io::ErrorKind::AlreadyExists)?;
    fs::write(own.join("link"), &layer.link)?;
    if let Some(lower) = podman::lower(records, layer) {
        fs::write(own.join("lower"), lower)?;
    }
    let new = own.join("new");
    File::create(&new)?;
    // podman gives a layer that it puts on top a root like this one.
    let [mode, user, group] = layer.facts.root;
    ignore(chown(&new, Some(user), Some(group)), io::ErrorKind::PermissionDenied).or_else(|error| {
        // An owner that this user namespace does not have.
        if error.raw_os_error() == Some(nix::libc::EINVAL) { Ok(()) } else { Err(error) }
    })?;
    // It is a file of this machine: nobody is to run it as its owner.
    fs::set_permissions(&new, Permissions::from_mode(mode & 0o1777))?;
    fs::rename(&new, &diff)
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
        let stubs = Stubs::open(dir.path()).unwrap();
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
