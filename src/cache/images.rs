//! Which images a cached layer is of, as far as the documents in the cache tell: for people, who know images by their names.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;

use serde::Deserialize;

use super::dir::Dir;
use super::documents::{self, DOCUMENTS, NAMES};
use crate::blob::Digest;

/// A manifest or an image index, as far as it leads to layers. What is no such document has neither.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: Digest,
}

/// The images of each blob: by their names, and by the digest of the manifest where no name leads to it.
pub(super) fn of_blobs(dir: &Dir) -> HashMap<Digest, BTreeSet<String>> {
    let known: HashMap<Digest, Document> =
        documents::in_folder(dir, DOCUMENTS).filter_map(|path| read(dir, &path)).collect();
    let (mut found, mut named): (HashMap<_, BTreeSet<_>>, _) = (HashMap::new(), HashSet::new());
    let mut tell = |manifest: &Document, image: &str| {
        for layer in &manifest.layers {
            found.entry(layer.digest).or_default().insert(image.to_owned());
        }
    };
    for (name, top) in documents::in_folder(dir, NAMES).filter_map(|path| documents::named(dir, &path)) {
        let Some(document) = known.get(&top) else { continue };
        // An index of indexes names no image here: nobody makes them.
        let below = document.manifests.iter().map(|child| child.digest);
        for digest in std::iter::once(top).chain(below) {
            if let Some(manifest) = known.get(&digest) {
                named.insert(digest);
                tell(manifest, &name);
            }
        }
    }
    known
        .iter()
        .filter(|(digest, _)| !named.contains(digest))
        .for_each(|(digest, manifest)| tell(manifest, &digest.to_string()));
    found
}

fn read(dir: &Dir, path: &Path) -> Option<(Digest, Document)> {
    let (digest, bytes) = documents::document(dir, path)?;
    Some((digest, serde_json::from_slice(&bytes).ok()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::blob::Documents as _;
    use crate::cache::{Cache, LAYOUT};

    fn put(cache: &Cache, document: &serde_json::Value) -> Digest {
        let bytes = document.to_string();
        let digest = Digest::of(bytes.as_bytes());
        cache.put(&digest, bytes.as_bytes());
        digest
    }

    fn manifest(layers: &[Digest]) -> serde_json::Value {
        json!({"layers": layers.iter().map(|digest| json!({"digest": digest})).collect::<Vec<_>>()})
    }

    #[test]
    fn a_layer_has_the_names_of_all_images_that_lead_to_it() {
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::of_any_size(temp.path());
        let [shared, alone, pinned] = [b"1", b"2", b"3"].map(|text| Digest::of(text));
        let one = put(&cache, &manifest(&[shared, alone]));
        let two = put(&cache, &manifest(&[shared]));
        let by_digest = put(&cache, &manifest(&[pinned]));
        let missing = Digest::of(b"a manifest for another platform");
        let index = put(&cache, &json!({"manifests": [{"digest": missing}, {"digest": one}]}));
        put(&cache, &json!({"layers": "these are none"}));
        cache.remember("r.io/a:1 linux/amd64", &index);
        cache.remember("r.io/b:2 linux/amd64", &two);
        cache.remember("r.io/gone:3 linux/amd64", &missing);
        let found = of_blobs(&Dir::existing(temp.path(), LAYOUT).unwrap());
        let names = |blob: Digest| found[&blob].iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!(names(shared), ["r.io/a:1", "r.io/b:2"]);
        assert_eq!(names(alone), ["r.io/a:1"]);
        assert_eq!(names(pinned), [by_digest.to_string()], "mounted by its digest");
        assert_eq!(found.len(), 3);
    }
}
