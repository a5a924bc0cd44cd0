//! Who uses an image: the containers and images in podman's own stores, read under podman's locks.
//!
//! containers/storage 1.43 writes containers.json, images.json and layers.json; from 1.44 on what ends with the machine's run is in
//! volatile-containers.json and volatile-layers.json. Whoever makes a container has the write lock of its layers from before it looks for the image until
//! it has written the container down, so that nobody who holds the three locks is told too little.

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::lockfile::{self, Held};
use super::records::{Image, Records};
use super::{Error, share};
use crate::blob::Digest;
use crate::sys::limit;

/// The parts of podman's own stores that tell, each with its list or lists.
const PARTS: [(&str, &str, &[&str]); 3] = [
    ("overlay-layers", "layers.lock", &["layers.json", "volatile-layers.json"]),
    ("overlay-images", "images.lock", &["images.json"]),
    ("overlay-containers", "containers.lock", &["containers.json", "volatile-containers.json"]),
];

/// Bytes of a list: twenty thousand layers. A user may have written it, and it takes up to nine times as much when it has been read.
const LONGEST_LIST: u64 = 16 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Item {
    id: Box<str>,
    #[serde(default)]
    names: Option<Vec<Box<str>>>,
    #[serde(default)]
    parent: Box<str>,
    #[serde(default)]
    image: Box<str>,
    #[serde(default)]
    layer: Box<str>,
    /// Only how many there are.
    #[serde(default)]
    big_data_names: Option<Vec<IgnoredAny>>,
}

/// What one podman has itself.
struct Own {
    layers: Vec<Item>,
    images: Vec<Item>,
    containers: Vec<Item>,
}

/// podman's own stores, and their locks for as long as this lives: nothing new comes to use an image meanwhile.
pub(super) struct Users {
    own: Vec<Own>,
    _locks: Vec<Held>,
}

impl Users {
    /// Those of all podmans that the records know of.
    pub(super) fn of_records(records: &Records) -> Result<Self, Error> {
        Self::read(&[records.podman.as_slice(), &share::podman_roots(records)?].concat())
    }

    /// Those of the stores at `roots`; one that is not there has none. Waits for nobody: what is locked is an error.
    pub(super) fn read(roots: &[PathBuf]) -> Result<Self, Error> {
        let locks = roots.iter().map(|root| answered(root, locks)).collect::<Result<Vec<_>, _>>()?;
        let own = roots.iter().map(|root| answered(root, Own::read)).collect::<Result<_, _>>()?;
        Ok(Self { own, _locks: locks.into_iter().flatten().collect() })
    }

    /// Who uses that image, or one of the layers that would go with it.
    pub(super) fn of(&self, image: &Digest, layers: &[Digest]) -> Option<String> {
        self.own.iter().find_map(|own| own.user(&image.hex(), layers))
    }
}

/// How long the filesystem of a podman's store may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Does what may wait for the filesystem of a store at `root`.
fn answered<T: Send + 'static>(
    root: &Path,
    ask: impl FnOnce(&Path) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let asked = root.to_owned();
    let silent = || Err(Error::File { path: root.to_owned(), source: limit::silence(PATIENCE) });
    limit::within(PATIENCE, move || ask(&asked)).unwrap_or_else(silent)
}

/// The locks of a podman's store, as far as they are there.
fn locks(root: &Path) -> Result<Vec<Held>, Error> {
    let mut locks = Vec::new();
    for (part, lock, _) in PARTS {
        let path = root.join(part).join(lock);
        match lockfile::open_below(root, part, lock).and_then(Held::of_reader) {
            Ok(Some(held)) => locks.push(held),
            Ok(None) => return Err(Error::PodmanLock { path, seconds: 0 }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::File { path, source }),
        }
    }
    Ok(locks)
}

impl Own {
    fn read(root: &Path) -> Result<Self, Error> {
        let mut own = Self { layers: Vec::new(), images: Vec::new(), containers: Vec::new() };
        for ((part, _, lists), items) in PARTS.iter().zip([&mut own.layers, &mut own.images, &mut own.containers]) {
            for list in *lists {
                items.extend(read_list(root, part, list)?);
            }
        }
        Ok(own)
    }

    fn user(&self, id: &str, layers: &[Digest]) -> Option<String> {
        if let Some(container) = self.containers.iter().find(|container| *container.image == *id) {
            return Some(format!("the container {}", name(container)));
        }
        let own: HashSet<&str> = self.layers.iter().map(|layer| &*layer.id).collect();
        let going: HashSet<String> =
            layers.iter().map(Digest::hex).filter(|layer| !own.contains(layer.as_str())).collect();
        let mut on_top: Vec<&str> =
            self.layers.iter().filter(|layer| going.contains(&*layer.parent)).map(|layer| &*layer.id).collect();
        let mut seen: HashSet<&str> = HashSet::new();
        while let Some(layer) = on_top.pop() {
            if seen.insert(layer) {
                on_top.extend(self.layers.iter().filter(|above| *above.parent == *layer).map(|above| &*above.id));
            }
        }
        let uses = |item: &&Item| seen.contains(&*item.layer) || going.contains(&*item.layer);
        let container = self.containers.iter().find(uses).map(|container| format!("the container {}", name(container)));
        let needs = |item: &&Item| uses(item) || (*item.id == *id && item.is_bare());
        let image = || self.images.iter().find(needs).map(|image| format!("the image {}", name(image)));
        let layer = || seen.iter().next().map(|layer| format!("the layer {layer}, of no image"));
        container.or_else(image).or_else(layer)
    }
}

impl Item {
    /// Whether an image has neither manifest nor config: `podman tag` makes such a record of the store's image, beside it.
    fn is_bare(&self) -> bool {
        self.big_data_names.as_ref().is_none_or(Vec::is_empty)
    }
}

fn name(item: &Item) -> &str {
    item.names.iter().flatten().next().unwrap_or(&item.id)
}

fn read_list(root: &Path, part: &str, list: &str) -> Result<Vec<Item>, Error> {
    let path = || root.join(part).join(list);
    let read = || {
        let mut text = Vec::new();
        lockfile::open_below(root, part, list)?.take(LONGEST_LIST).read_to_end(&mut text).map(|_| text)
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::File { path: path(), source }),
        Ok(text) if text.is_empty() => Ok(Vec::new()),
        // One that is longer ends in the middle, which is an error.
        Ok(text) => serde_json::from_slice(&text).map_err(|source| Error::Podman { path: path(), source }),
    }
}

/// The layers that an image alone has.
pub(super) fn going(records: &Records, image: &Image) -> Vec<Digest> {
    let others = || records.images.iter().filter(|other| other.id != image.id);
    image.layers.iter().filter(|layer| !others().any(|other| other.layers.contains(layer))).copied().collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

    use super::*;

    fn store(layers: &Value, images: &Value, containers: &Value) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for ((part, lock, lists), list) in PARTS.iter().zip([layers, images, containers]) {
            let part = dir.path().join(part);
            fs::create_dir(&part).unwrap();
            fs::write(part.join(lock), "").unwrap();
            fs::write(part.join(lists[0]), list.to_string()).unwrap();
        }
        dir
    }

    fn user(layers: Value, images: Value, containers: Value) -> Option<String> {
        user_in(&[&store(&layers, &images, &containers)])
    }

    fn user_in(stores: &[&tempfile::TempDir]) -> Option<String> {
        let roots = stores.iter().flat_map(|dir| [dir.path().join("missing"), dir.path().to_owned()]);
        let users = Users::read(&roots.collect::<Vec<_>>()).unwrap();
        users.of(&Digest::of(b"image"), &[Digest::of(b"base"), Digest::of(b"top")])
    }

    #[test]
    fn containers_images_and_builds_on_top_are_users() {
        let (image, top) = (Digest::of(b"image").hex(), Digest::of(b"top").hex());
        assert_eq!(user(json!([]), json!([]), json!([])), None);
        let container = json!([{"id": "c1", "names": ["happy"], "image": image, "layer": "x"}]);
        assert_eq!(user(json!([]), json!([]), container).unwrap(), "the container happy");
        let layers = json!([{"id": "l1", "parent": top}, {"id": "l2", "parent": "l1"}, {"id": "l3"}]);
        let derived = json!([{"id": "i2", "layer": "l2"}]);
        assert_eq!(user(layers.clone(), derived, json!([])).unwrap(), "the image i2");
        let build = json!([{"id": "b1", "names": ["working"], "image": "i2", "layer": "l2"}]);
        assert_eq!(user(layers.clone(), json!([]), build).unwrap(), "the container working");
        assert!(user(layers, json!([]), json!([])).unwrap().contains("of no image"));
        let stranger = json!([{"id": "l9", "parent": "other"}]);
        assert_eq!(user(stranger, json!([{"id": "i9", "layer": "l9"}]), json!([])), None);
    }

    /// A layer that podman has pulled itself stays when ours goes.
    #[test]
    fn what_podman_has_itself_is_not_ours() {
        let top = Digest::of(b"top").hex();
        let layers = json!([{"id": top}, {"id": "l1", "parent": top}]);
        assert_eq!(user(layers, json!([{"id": "i2", "layer": "l1"}]), json!([])), None);
    }

    /// podman's own record of the image: after `podman tag` without manifest and config, after `podman pull` with them, but on the store's layers.
    #[test]
    fn podmans_own_record_of_the_image_is_a_user_where_it_needs_the_stores() {
        let (image, top) = (Digest::of(b"image").hex(), Digest::of(b"top").hex());
        let record =
            |layer: &str, data: Value| json!([{"id": image, "names": ["y"], "layer": layer, "big-data-names": data}]);
        let whole = || json!(["manifest", "config"]);
        let of = |layers: Value, images| user(layers, images, json!([])).is_some();
        assert_eq!(user(json!([]), record(&top, json!(null)), json!([])).unwrap(), "the image y", "a tag");
        assert!(of(json!([]), record("shared", json!([]))), "a tag of layers that stay");
        assert!(of(json!([{"id": top}]), record(&top, json!(null))), "a tag, and layers of podman's own");
        assert!(of(json!([]), record(&top, whole())), "a pull");
        assert!(!of(json!([{"id": top}]), record(&top, whole())), "a pull that podman made before");
    }

    /// What one podman has pulled another does not have.
    #[test]
    fn one_podmans_layers_are_not_anothers() {
        let (base, top) = (Digest::of(b"base").hex(), Digest::of(b"top").hex());
        let pulled = store(&json!([{"id": base}, {"id": top, "parent": base}]), &json!([]), &json!([]));
        let layers = json!([{"id": "l1", "parent": top}]);
        let built = store(&layers, &json!([{"id": "i2", "layer": "l1"}]), &json!([]));
        assert_eq!(user_in(&[&pulled]), None);
        for both in [[&pulled, &built], [&built, &pulled]] {
            assert_eq!(user_in(&both).unwrap(), "the image i2");
        }
    }

    /// Nobody is waited for in there: whoever has the records tries again.
    #[test]
    fn a_list_that_is_being_written_is_not_read() {
        let dir = store(&json!([]), &json!([]), &json!([]));
        let lock = dir.path().join("overlay-images/images.lock");
        let writer = Held::to_write(&lock).unwrap();
        let refused = Users::read(&[dir.path().to_owned()]).err().unwrap();
        assert!(matches!(refused, Error::PodmanLock { path, .. } if path == lock));
        drop(writer);
        assert!(Users::read(&[dir.path().to_owned()]).is_ok());
    }

    /// Root reads what users have written.
    #[test]
    fn a_list_has_an_end() {
        let mut layers = b"[".to_vec();
        layers.resize(usize::try_from(LONGEST_LIST).unwrap(), b' ');
        let dir = store(&json!([]), &json!([]), &json!([]));
        layers.push(b']');
        fs::write(dir.path().join("overlay-layers/layers.json"), layers).unwrap();
        let refused = Users::read(&[dir.path().to_owned()]).err().unwrap();
        assert!(matches!(refused, Error::Podman { .. }), "{refused}");
    }

    #[test]
    fn a_list_that_cannot_be_read_is_no_empty_one() {
        let dir = store(&json!([]), &json!([]), &json!({}));
        let error = Users::read(&[dir.path().to_owned()]).err().unwrap();
        assert!(error.to_string().contains("containers.json"), "{error}");
    }
}
