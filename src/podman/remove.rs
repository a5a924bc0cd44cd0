//! Removes an image, or one of its names, where podman does not use it.

use std::path::PathBuf;
use std::time::Instant;

use super::Error;
use super::Store;
use super::lockfile::{GLANCE, PATIENCE};
use super::open::Listing;
use super::records::{Image, Records};
use super::refer::{self, Users};
use crate::image::Report;
use crate::registry::ImageRef;

/// Hexadecimal digits of an id that are enough to mean one.
const SHORTEST_ID: usize = 4;

impl Store {
    /// Removes images, each given by a name or an id; of one with several names, only that name. `podman`: the roots of podman's own stores.
    ///
    /// # Errors
    /// Where one is not there, or is in use: the others are as they were, too.
    pub(super) async fn remove(
        &self,
        names: &[String],
        podman: &[PathBuf],
        _report: &Report,
    ) -> Result<Vec<Listing>, Error> {
        let start = Instant::now();
        loop {
            let tried = self.try_to_remove(names, podman).await;
            match tried {
                Err(Error::PodmanLock { .. }) if start.elapsed() < PATIENCE => tokio::time::sleep(GLANCE).await,
                Err(Error::PodmanLock { path, .. }) => {
                    return Err(Error::PodmanLock { path, seconds: PATIENCE.as_secs() });
                }
                tried => return tried,
            }
        }
    }

    /// An error where podman's lists are locked, maybe by a user who never unlocks them: nobody else waits for that, so the records are free meanwhile.
    async fn try_to_remove(&self, names: &[String], podman: &[PathBuf]) -> Result<Vec<Listing>, Error> {
        let mut records = self.records.lock().await;
        tokio::task::block_in_place(|| {
            let mut changed = records.clone();
            changed.know_podman(podman);
            let users = Users::of_records(&changed)?;
            for name in names {
                remove(&mut changed, name, &users)?;
            }
            let gone = records.images.iter().filter(|image| !changed.images.contains(image));
            let listings = gone.map(|image| self.listing(&records, image)).collect();
            self.commit(&mut records, changed)?;
            drop(users);
            self.sweeping.note(&records);
            // Here, where whoever asked for it cannot go away in between.
            self.sweeping.wake();
            Ok(listings)
        })
    }
}

fn remove(records: &mut Records, name: &str, users: &Users) -> Result<(), Error> {
    let (position, full) = find(records, name)?;
    let Some(image) = records.images.get_mut(position) else { return Ok(()) };
    if let Some(full) = full.filter(|_| image.names.len() > 1) {
        image.names.retain(|name| *name != full);
        return Ok(());
    }
    let image = image.clone();
    if let Some(user) = users.of(&image.id, &refer::going(records, &image)) {
        return Err(Error::InUse { image: image.name().to_owned(), user });
    }
    // podman may come to need a layer of it before that is gone.
    let image = records.images.remove(position);
    records.retired.push(image);
    Ok(())
}

/// The image that is meant, and its name where it is meant by that.
fn find(records: &Records, text: &str) -> Result<(usize, Option<String>), Error> {
    let full = full_name(text);
    let by_name =
        |image: &Image| image.names.iter().find(|name| *name == text || Some(*name) == full.as_ref()).cloned();
    let named = records.images.iter().enumerate().find_map(|(position, image)| Some((position, by_name(image)?)));
    if let Some((position, name)) = named {
        return Ok((position, Some(name)));
    }
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let is_id = hex.len() >= SHORTEST_ID && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
    let meant = |image: &Image| is_id && image.id.hex().starts_with(hex);
    let found: Vec<_> = records.images.iter().enumerate().filter(|(_, image)| meant(image)).collect();
    match found.as_slice() {
        [(position, _)] => Ok((*position, None)),
        [] => Err(Error::NoImage { name: text.to_owned() }),
        several => {
            let ids = several.iter().map(|(_, image)| image.id.hex()).collect();
            Err(Error::Ambiguous { name: text.to_owned(), ids })
        }
    }
}

/// A name as the store has it: completed.
fn full_name(text: &str) -> Option<String> {
    let image = text.parse::<ImageRef>().ok()?;
    super::add::name_of(&image).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::blob::Digest;
    use crate::cache::Cache;
    use crate::podman::lock::Lock;
    use crate::podman::lockfile::Held;
    use crate::podman::paths::Paths;
    use crate::podman::records::tests::{image, layer};

    /// A store below that directory, which nobody serves.
    pub(in super::super) fn store(dir: &Path, records: &Records) -> Store {
        let paths = Paths::new(&dir.join("store"), None);
        paths.create().unwrap();
        records.write(&paths.records()).unwrap();
        let lock = Lock::take(&paths).unwrap().unwrap();
        Store::new(paths, Cache::none(), None, lock).unwrap()
    }

    fn quiet() -> Report {
        Arc::new(|_| Ok(()))
    }

    /// A user may lock what is theirs for as long as they like.
    #[tokio::test(flavor = "multi_thread")]
    async fn podmans_locks_are_waited_for_with_the_records_free() {
        let dir = tempfile::tempdir().unwrap();
        let layers = dir.path().join("overlay-layers");
        fs::create_dir(&layers).unwrap();
        fs::write(layers.join("layers.lock"), "").unwrap();
        let store = store(dir.path(), &records());
        let held = Held::to_write(&layers.join("layers.lock")).unwrap();
        assert!(held.is_some());
        let (names, podman, report) = ([Digest::of(b"j").hex()], [dir.path().to_owned()], quiet());
        let other = async {
            assert_eq!(store.list().await.len(), 2);
            drop(held);
        };
        let (removed, ()) = tokio::join!(store.remove(&names, &podman, &report), other);
        assert_eq!(removed.unwrap().len(), 1);
        assert!(store.sweeping.is_woken(), "whoever sweeps is told");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_removed_image_is_kept_while_podman_needs_a_layer_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut records = Records::default();
        for (id, parent) in [("one", None), ("two", Some("one"))] {
            let new = layer(&mut records, id, parent);
            records.layers.push(new);
        }
        records.put(image("i", &["localhost/i:1"], &["one", "two"]));
        let store = store(dir.path(), &records);
        store.remove(&["localhost/i:1".to_owned()], &[dir.path().to_owned()], &quiet()).await.unwrap();
        assert!(store.list().await.is_empty());
        let layers = dir.path().join("overlay-layers");
        fs::create_dir(&layers).unwrap();
        // podman has pulled something that stands on the lower one, and removes it again.
        let on_top = json!([{"id": "l1", "parent": Digest::of(b"one").hex()}]);
        for (list, left) in [(on_top, (1, 1)), (json!([]), (0, 0))] {
            fs::write(layers.join("layers.json"), list.to_string()).unwrap();
            let mut records = store.records.lock().await;
            assert!(tokio::task::block_in_place(|| store.sweep_due(&mut records, |_| true)));
            let written = Records::read(&store.paths.records()).unwrap();
            assert_eq!((written.layers.len(), written.retired.len()), left);
        }
    }

    fn records() -> Records {
        let mut records = Records::default();
        records.put(image("i", &["docker.io/library/a:latest", "quay.io/b:1"], &[]));
        records.put(image("j", &[], &[]));
        records
    }

    #[test]
    fn an_image_with_several_names_loses_one() {
        let mut records = records();
        let nobody = Users::read(&[]).unwrap();
        remove(&mut records, "a", &nobody).unwrap();
        assert_eq!(records.images[0].names, ["quay.io/b:1"]);
        remove(&mut records, "quay.io/b:1", &nobody).unwrap();
        assert_eq!(records.images.len(), 1);
        remove(&mut records, &Digest::of(b"j").hex()[..8], &nobody).unwrap();
        assert!(records.images.is_empty());
    }

    #[test]
    fn what_is_not_there_is_said() {
        let records = records();
        for missing in ["b", "a:1", "abc", "ffffffff", ""] {
            assert!(matches!(find(&records, missing), Err(Error::NoImage { .. })), "{missing}");
        }
        let id = Digest::of(b"i");
        assert_eq!(find(&records, &id.to_string()).unwrap(), (0, None));
    }
}
