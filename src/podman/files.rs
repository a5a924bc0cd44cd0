//! Writes what podman reads, by its rules: under its write locks, layers.json before images.json.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Seek};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use tempfile::NamedTempFile;

use super::lockfile::{self, Held};
use super::paths::{Kind, Paths, TAR_SPLIT};
use super::records::{Image, Records, is_unfinished, new_file, put, replace, sync_dir_of};
use super::{Error, lists};
use crate::blob::Digest;
use crate::sys::outside;
use crate::sys::own::{Entry, EntryKind, OwnDir};

/// Modes of tar-splits.
const OWN_TAR_SPLIT: u32 = 0o600;
const SHARED_TAR_SPLIT: u32 = 0o644;

/// The files of an image, before its name is in the list.
pub(super) fn write_image(paths: &Paths, image: &Image, manifest: &[u8], config: &[u8]) -> Result<(), Error> {
    let dir = paths.image(&image.id.hex());
    let made = fs::DirBuilder::new().recursive(true).create(&dir);
    made.map_err(|source| Error::File { path: dir.clone(), source })?;
    let files = lists::big_data(image).map(|(key, digest, _)| (lists::big_data_file(&key), digest));
    for (name, digest) in files {
        replace(&dir.join(name), if digest == image.id { config } else { manifest }, 0o644)?;
    }
    let readable = fs::set_permissions(&dir, fs::Permissions::from_mode(0o755));
    readable.map_err(|source| Error::File { path: dir, source })
}

/// The manifest of an image, by the file that its digest names: an `add` that was cut short may have left another one of the same image in the other file.
pub(super) fn read_manifest(paths: &Paths, image: &Image) -> Result<Vec<u8>, Error> {
    let path = paths.image(&image.id.hex()).join(lists::big_data_file(&lists::manifest_key(&image.manifest)));
    let failed = |source| Error::File { path: path.clone(), source };
    let manifest = outside::read(&path, u64::MAX).map_err(failed)?;
    if Digest::of(&manifest) == image.manifest {
        return Ok(manifest);
    }
    Err(failed(io::Error::new(io::ErrorKind::InvalidData, "it has another digest; add the image again")))
}

/// Removes the files of images that no record has.
pub(super) fn remove_other_images(paths: &Paths, records: &Records) {
    let Ok(images) = OwnDir::open(&paths.images()) else { return };
    let is_kept = |id: &OsStr| records.all_images().any(|image| *image.id.hex() == *id);
    for entry in images.list().unwrap_or_default() {
        if entry.kind == EntryKind::Directory && is_id(&entry.name) && !is_kept(&entry.name) {
            warn_of(&paths.images().join(&entry.name), images.remove_with(&entry.name, is_of_image));
        }
    }
}

/// Whether it is a file that `write_image` makes.
fn is_of_image(entry: &Entry) -> bool {
    entry.kind == EntryKind::File && (lists::is_big_data_file(&entry.name) || is_unfinished(&entry.name))
}

/// Whether a name is that of an image's or a layer's directory.
pub(super) fn is_id(name: &OsStr) -> bool {
    name.to_str().is_some_and(|hex| format!("sha256:{hex}").parse::<Digest>().is_ok())
}

fn warn_of(path: &Path, removed: io::Result<()>) {
    if let Err(error) = removed {
        tracing::warn!(path = %path.display(), %error, "cannot be removed");
    }
}

/// Writes the tar-split in a file to where it needs nothing but its name. That can take a while.
pub(super) fn stage_tar_split(paths: &Paths, split: &mut File) -> Result<NamedTempFile, Error> {
    let dir = paths.tar_splits();
    let mut stage = || {
        let mut staged = new_file().tempfile_in(&dir)?;
        split.rewind()?;
        io::copy(split, &mut staged)?;
        staged.as_file().sync_all()?;
        Ok(staged)
    };
    stage().map_err(|source| Error::File { path: dir.clone(), source })
}

/// Gives a layer its tar-split, before the list says how long its tar is. podman opens it when it pushes the layer, and remembers nothing of it.
pub(super) fn put_tar_split(
    paths: &Paths,
    records: &Records,
    layer: &Digest,
    staged: NamedTempFile,
) -> Result<(), Error> {
    let path = paths.tar_split(layer);
    // Users of the store may be pushing by the one that it replaces.
    put(staged, &path, tar_split_mode(records)).map_err(|source| Error::File { path, source })
}

/// Gives a layer the tar-split of another. It is one file, so that this takes no time.
pub(super) fn link_tar_split(paths: &Paths, from: &Digest, to: &Digest) -> Result<(), Error> {
    let (from, to) = (paths.tar_split(from), paths.tar_split(to));
    let link = || {
        let file = |path: &Path| path.metadata().map(|meta| (meta.dev(), meta.ino()));
        // rename(2) does nothing where both are one file already, and leaves the name that it was to take away.
        if file(&to).is_ok_and(|to| file(&from).is_ok_and(|from| from == to)) {
            return Ok(());
        }
        let linked = new_file().make_in(paths.tar_splits(), |new| fs::hard_link(&from, new))?;
        linked.persist(&to)?;
        sync_dir_of(&to)
    };
    link().map_err(|source| Error::File { path: to.clone(), source })
}

/// Those read the tar-splits who have the layers: contents of files can be in them.
fn tar_split_mode(records: &Records) -> u32 {
    if records.users.is_empty() { OWN_TAR_SPLIT } else { SHARED_TAR_SPLIT }
}

fn set_modes(paths: &Paths, records: &Records) {
    if let Err(error) = paths.set_root_mode(!records.users.is_empty()) {
        tracing::warn!(path = %paths.root.display(), %error, "users may not be able to read the store");
    }
    let mode = tar_split_mode(records);
    for layer in records.layers.iter().filter(|layer| layer.tar.is_some()) {
        let path = paths.tar_split(&layer.id);
        if let Err(error) = fs::set_permissions(&path, fs::Permissions::from_mode(mode)) {
            tracing::warn!(path = %path.display(), %error, "podman may not be able to push this layer; `crfs store add --full` the image again");
        }
    }
}

/// Removes the tar-splits of layers that no record has.
pub(super) fn remove_other_tar_splits(paths: &Paths, records: &Records) {
    let Ok(dir) = OwnDir::open(&paths.tar_splits()) else { return };
    let kept = |id: &str| records.layers.iter().any(|layer| layer.tar.is_some() && layer.id.hex() == id);
    for entry in dir.list().unwrap_or_default().iter().filter(|entry| entry.kind == EntryKind::File) {
        let id = entry.name.to_str().and_then(|name| name.strip_suffix(TAR_SPLIT));
        if id.is_some_and(|id| is_id(OsStr::new(id)) && !kept(id)) {
            warn_of(&paths.tar_splits().join(&entry.name), dir.remove(&entry.name));
        }
    }
}

/// Removes what somebody who was killed has not put in its place. Nobody writes now: this process has the store's lock.
pub(super) fn remove_unfinished(paths: &Paths) {
    let images = OwnDir::open(&paths.images()).and_then(|dir| dir.list()).unwrap_or_default();
    let images = images.iter().filter(|entry| entry.kind == EntryKind::Directory && is_id(&entry.name));
    let images = images.map(|entry| paths.images().join(&entry.name));
    for path in images.chain([paths.images(), paths.tar_splits(), paths.state.clone()]) {
        let Ok(dir) = OwnDir::open(&path) else { continue };
        for entry in dir.list().unwrap_or_default() {
            if entry.kind == EntryKind::File && is_unfinished(&entry.name) {
                warn_of(&path.join(&entry.name), dir.remove(&entry.name));
            }
        }
    }
}

/// Lets podman see what the records say. A list that is the same already is not touched, so that nobody reads it again.
///
/// Whoever reads layers before images may have read layers.json before this and images.json after it: it finds the missing layer when it
/// looks for it, since the lock file has changed.
///
/// `patience`: how long those who hold podman's locks are waited for. Where both lists are right already, nobody is.
pub(super) fn publish(paths: &Paths, records: &Records, patience: Duration) -> Result<(), Error> {
    set_modes(paths, records);
    let lists = [(Kind::Layers, lists::layers(records)), (Kind::Images, lists::images(records))];
    let mut new = Vec::new();
    for (kind, list) in lists {
        let path = paths.podman(kind, "json");
        let list = list.map_err(|source| Error::Records { path: path.clone(), source })?;
        let is_new = !outside::read(&path, list.len() as u64).is_ok_and(|old| old == list);
        new.extend(is_new.then_some((kind, path, list)));
    }
    if new.is_empty() {
        return Ok(());
    }
    let locks = lists_locked(paths, patience)?;
    for (kind, path, list) in new {
        let [layers, images] = &locks;
        let lock = if kind == Kind::Layers { layers } else { images };
        // First, so that a crash here costs a reader a look at an unchanged list, and hides nothing.
        lock.touch().map_err(|source| Error::File { path: paths.podman(kind, "lock"), source })?;
        replace(&path, &list, 0o644)?;
    }
    Ok(())
}

/// The write locks of the layers and of the images.
fn lists_locked(paths: &Paths, patience: Duration) -> Result<[Held; 2], Error> {
    let path = paths.podman(Kind::Layers, "lock");
    let both = || -> io::Result<Option<Vec<Held>>> {
        let Some(layers) = Held::to_write(&path)? else { return Ok(None) };
        let images = Held::to_write(&paths.podman(Kind::Images, "lock"))?;
        Ok(images.map(|images| vec![layers, images]))
    };
    let locks = lockfile::all(patience, both).map_err(|source| Error::File { path: path.clone(), source })?;
    let both = locks.and_then(|locks| locks.try_into().ok());
    both.ok_or(Error::PodmanLock { path, seconds: patience.as_secs() })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, Ordering};

    use serde_json::Value;

    use super::lockfile::PATIENCE;
    use super::*;
    use crate::podman::records::Tar;
    use crate::podman::records::tests::{image, layer};

    fn read(paths: &Paths, kind: Kind) -> Vec<Value> {
        let text = fs::read(paths.podman(kind, "json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    #[test]
    fn what_has_not_changed_is_not_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(&dir.path().join("s"), None);
        paths.create().unwrap();
        let mut records = Records::default();
        publish(&paths, &records, PATIENCE).unwrap();
        let lock = |kind| fs::read(paths.podman(kind, "lock")).unwrap();
        let (layers, images) = (lock(Kind::Layers), lock(Kind::Images));
        assert_eq!((layers.len(), images.len()), (64, 64));
        records.put(image("i", &["a:1"], &[]));
        publish(&paths, &records, PATIENCE).unwrap();
        assert_eq!(lock(Kind::Layers), layers);
        assert_ne!(lock(Kind::Images), images);
    }

    /// podman reads the layers for as long as it unpacks one, and anybody who can read a lock file can hold it for ever.
    #[test]
    fn whoever_reads_is_waited_for_only_where_something_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(&dir.path().join("s"), None);
        paths.create().unwrap();
        let mut records = Records::default();
        publish(&paths, &records, PATIENCE).unwrap();
        let reader = Held::of_reader(File::open(paths.podman(Kind::Layers, "lock")).unwrap()).unwrap().unwrap();
        publish(&paths, &records, Duration::ZERO).unwrap();
        records.put(image("i", &["a:1"], &[]));
        let refused = publish(&paths, &records, Duration::ZERO).unwrap_err();
        assert!(matches!(refused, Error::PodmanLock { .. }) && read(&paths, Kind::Images).is_empty(), "{refused}");
        drop(reader);
        publish(&paths, &records, Duration::ZERO).unwrap();
        assert_eq!(read(&paths, Kind::Images).len(), 1);
    }

    /// Both orders in which podman reads, while an image comes and goes: under read locks, as podman does.
    #[test]
    fn no_reader_sees_an_image_without_its_layers() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(&dir.path().join("s"), None);
        paths.create().unwrap();
        let mut with = Records::default();
        let one = layer(&mut with, "one", None);
        with.layers.push(one);
        let without = with.clone();
        with.put(image("i", &["a:1"], &["one"]));
        publish(&paths, &Records::default(), PATIENCE).unwrap();
        let done = AtomicBool::new(false);
        let locked = |kind| loop {
            if let Some(_held) = Held::of_reader(File::open(paths.podman(kind, "lock")).unwrap()).unwrap() {
                return read(&paths, kind);
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..50 {
                    publish(&paths, &with, PATIENCE).unwrap();
                    publish(&paths, &without, PATIENCE).unwrap();
                }
                done.store(true, Ordering::SeqCst);
            });
            while !done.load(Ordering::SeqCst) {
                let images = locked(Kind::Images);
                let layers = locked(Kind::Layers);
                assert!(images.is_empty() || !layers.is_empty());
            }
        });
    }

    #[test]
    fn tar_splits_are_for_those_who_have_the_layers_and_go_with_them() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(&dir.path().join("s"), None);
        paths.create().unwrap();
        let mut records = Records::default();
        let mut one = layer(&mut records, "one", None);
        one.tar = Some(Tar { len: 99, is_verified: true });
        let path = paths.tar_split(&one.id);
        let mut written = tempfile::tempfile().unwrap();
        written.write_all(b"split").unwrap();
        let staged = stage_tar_split(&paths, &mut written).unwrap();
        put_tar_split(&paths, &records, &one.id, staged).unwrap();
        records.layers.push(one);
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        publish(&paths, &records, PATIENCE).unwrap();
        assert_eq!((fs::read(&path).unwrap(), mode()), (b"split".to_vec(), 0o600));
        assert_eq!(read(&paths, Kind::Layers)[0]["diff-size"], 99);
        records.users.push("ann".into());
        publish(&paths, &records, PATIENCE).unwrap();
        assert_eq!(mode(), 0o644);
        remove_other_tar_splits(&paths, &records);
        assert!(path.exists());
        records.layers[0].tar = None;
        remove_other_tar_splits(&paths, &records);
        assert!(!path.exists() && paths.podman(Kind::Layers, "json").exists());
    }

    /// podman refuses the whole list over a number that it cannot read.
    #[test]
    fn no_size_is_more_than_podman_can_read() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(&dir.path().join("s"), None);
        paths.create().unwrap();
        let mut records = Records::default();
        for (id, tar) in [("a", Some(Tar { len: u64::MAX, is_verified: false })), ("b", None)] {
            let mut new = layer(&mut records, id, None);
            (new.tar, new.facts.size) = (tar, u64::MAX);
            records.layers.push(new);
        }
        publish(&paths, &records, PATIENCE).unwrap();
        assert!(read(&paths, Kind::Layers).iter().all(|layer| layer["diff-size"] == i64::MAX));
    }

    #[test]
    fn a_tar_split_that_layers_share_is_one_file_and_what_is_not_in_its_place_goes() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(&dir.path().join("s"), None);
        paths.create().unwrap();
        let mut records = Records::default();
        records.users.push("ann".into());
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        let staged = || stage_tar_split(&paths, &mut tempfile::tempfile().unwrap()).unwrap();
        put_tar_split(&paths, &records, &one, staged()).unwrap();
        let meta = |id: &Digest| fs::metadata(paths.tar_split(id)).unwrap();
        assert_eq!(meta(&one).permissions().mode() & 0o777, 0o644, "at once: ann may be pushing");
        put_tar_split(&paths, &records, &two, staged()).unwrap();
        for _ in 0..2 {
            link_tar_split(&paths, &one, &two).unwrap();
            assert_eq!(meta(&one).ino(), meta(&two).ino());
        }
        let names = || fs::read_dir(paths.tar_splits()).unwrap().count();
        assert_eq!(names(), 3, "both and the lock");
        let (_, left) = staged().keep().unwrap();
        remove_unfinished(&paths);
        assert!(!left.exists() && names() == 3);
    }

    /// It is written before the records are, which can fail.
    #[test]
    fn another_manifest_of_an_image_hides_none() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(&dir.path().join("s"), None);
        paths.create().unwrap();
        let with = |manifest: &[u8]| Image { manifest: Digest::of(manifest), ..image("i", &[], &[]) };
        let (old, new) = (with(b"old"), with(b"new"));
        write_image(&paths, &old, b"old", b"config").unwrap();
        write_image(&paths, &new, b"new", b"config").unwrap();
        assert_eq!(read_manifest(&paths, &old).unwrap(), b"old");
        assert_eq!(read_manifest(&paths, &new).unwrap(), b"new");
        write_image(&paths, &old, b"damaged", b"config").unwrap();
        assert!(read_manifest(&paths, &old).unwrap_err().chain().contains("another digest"));
    }

    #[test]
    fn an_images_files_come_and_go_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(&dir.path().join("s"), None);
        paths.create().unwrap();
        let mut records = Records::default();
        records.put(image("i", &[], &[]));
        write_image(&paths, &records.images[0], b"manifest", b"config").unwrap();
        let path = paths.image(&Digest::of(b"i").hex());
        assert_eq!(fs::read(path.join("manifest")).unwrap(), b"manifest");
        let config = lists::big_data_file(&Digest::of(b"i").to_string());
        assert_eq!(fs::read(path.join(config)).unwrap(), b"config");
        remove_other_images(&paths, &records);
        assert!(path.exists());
        remove_other_images(&paths, &Records::default());
        assert!(!path.exists() && paths.podman(Kind::Images, "lock").exists());
    }
}
