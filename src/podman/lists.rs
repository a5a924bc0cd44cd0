//! How podman names things, and the two lists that it reads: images.json and layers.json of containers/storage 1.43 (images.go, layers.go).

use std::ffi::OsStr;

use serde::Serialize;

use super::records::{Blob, Image, Layer, Records};
use crate::blob::Digest;

/// Characters of a link. So short, since 4.3.1 hands the paths of all lower directories to mount(2) in one page: 100 layers fit below the default
/// root. Never 26: that is how long podman's own are.
const LINK: usize = 7;

const LINK_LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The id of a layer: that of the diffIDs up to it (OCI image specification 1.1, config.md, "Layer ChainID", but without the prefixes).
pub(super) fn chain_id(parent: Option<&Digest>, diff_id: &Digest) -> Digest {
    match parent {
        None => *diff_id,
        Some(parent) => Digest::of(format!("{}+{}", parent.hex(), diff_id.hex()).as_bytes()),
    }
}

/// The id of a layer whose chain id is that of other contents.
pub(super) fn other_id(chain_id: &Digest, contents: &str) -> Digest {
    Digest::of(format!("crfs+{}+{contents}", chain_id.hex()).as_bytes())
}

/// A layer's name in `l/`, which is the same in every store that has the layer. `is_taken` says of a name whether another layer has it.
pub(super) fn link(id: &Digest, is_taken: impl Fn(&str) -> bool) -> String {
    let names = (0u32..).map(|attempt| {
        let digest = Digest::of(format!("{}+{attempt}", id.hex()).as_bytes());
        let letters = digest.as_bytes().iter().map(|byte| {
            let place = usize::from(*byte) % LINK_LETTERS.len();
            char::from(LINK_LETTERS.get(place).copied().unwrap_or(b'0'))
        });
        letters.take(LINK).collect::<String>()
    });
    names.into_iter().find(|name| !is_taken(name)).unwrap_or_default()
}

/// A layer's `lower` file: the links of the layers below it, the uppermost first. The base has none.
pub(super) fn lower(records: &Records, layer: &Layer) -> Option<String> {
    let links = records.links_below(layer);
    let links: Vec<_> = links.iter().map(|link| format!("l/{link}")).collect();
    Some(links.join(":")).filter(|lower| !lower.is_empty())
}

/// The file of an image's big data: by its key where that is a plain word, else by base64.
pub(super) fn big_data_file(key: &str) -> String {
    use base64::Engine as _;
    match key.contains(|letter: char| !letter.is_ascii_alphanumeric()) {
        true => format!("={}", base64::prelude::BASE64_STANDARD.encode(key)),
        false => key.to_owned(),
    }
}

/// Whether a name is that of a file of an image's big data.
pub(super) fn is_big_data_file(name: &OsStr) -> bool {
    use base64::Engine as _;
    let Some(name) = name.to_str() else { return false };
    let key = name.strip_prefix('=').and_then(|name| base64::prelude::BASE64_STANDARD.decode(name).ok());
    let key = key.and_then(|key| String::from_utf8(key).ok());
    let is_digest = |key: String| key.strip_prefix("manifest-").unwrap_or(&key).parse::<Digest>().is_ok();
    name == "manifest" || key.is_some_and(is_digest)
}

/// The key by which a manifest is found whatever other manifests the image has.
pub(super) fn manifest_key(manifest: &Digest) -> String {
    format!("manifest-{manifest}")
}

/// The keys of an image's big data: twice the manifest, and the config.
pub(super) fn big_data(image: &Image) -> [(String, Digest, u64); 3] {
    let [manifest, config] = image.sizes;
    [
        ("manifest".to_owned(), image.manifest, manifest),
        (manifest_key(&image.manifest), image.manifest, manifest),
        (image.id.to_string(), image.id, config),
    ]
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ImageEntry<'a> {
    id: String,
    digest: Digest,
    names: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<String>,
    metadata: &'static str,
    created: &'a str,
    big_data_names: Vec<String>,
    big_data_sizes: serde_json::Map<String, serde_json::Value>,
    big_data_digests: serde_json::Map<String, serde_json::Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct LayerEntry<'a> {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    created: &'a str,
    diff_digest: Digest,
    diff_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    compressed_diff_digest: Option<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compressed_size: Option<u64>,
    /// None: podman looks at it only where it makes a layer's tar and nobody says how to compress that.
    compression: u8,
    uidset: &'a [u32],
    gidset: &'a [u32],
}

/// images.json
pub(super) fn images(records: &Records) -> serde_json::Result<Vec<u8>> {
    let entries: Vec<_> = records.images.iter().map(image_entry).collect();
    serde_json::to_vec(&entries)
}

fn image_entry(image: &Image) -> ImageEntry<'_> {
    let data = big_data(image);
    ImageEntry {
        id: image.id.hex(),
        digest: image.manifest,
        names: &image.names,
        layer: image.layers.last().map(Digest::hex),
        metadata: "{}",
        created: &image.created,
        big_data_names: data.iter().map(|(key, ..)| key.clone()).collect(),
        big_data_sizes: data.iter().map(|(key, _, size)| (key.clone(), (*size).into())).collect(),
        big_data_digests: data.iter().map(|(key, digest, _)| (key.clone(), digest.to_string().into())).collect(),
    }
}

/// layers.json
pub(super) fn layers(records: &Records) -> serde_json::Result<Vec<u8>> {
    let created = |layer: &Layer| {
        let image = records.images.iter().find(|image| image.layers.contains(&layer.id));
        image.map_or(EPOCH, |image| image.created.as_str())
    };
    let entries: Vec<_> = records
        .layers
        .iter()
        .map(|layer| {
            let blob = blob_to_reuse(records, layer);
            LayerEntry {
                id: layer.id.hex(),
                parent: layer.parent.as_ref().map(Digest::hex),
                created: created(layer),
                diff_digest: layer.diff_id,
                // podman compares it with the tar that it makes.
                // It reads a signed number, and refuses the whole list over one that is none.
                diff_size: layer.tar.map_or(layer.facts.size, |tar| tar.len).min(i64::MAX.unsigned_abs()),
                compressed_diff_digest: blob.map(|blob| blob.digest),
                compressed_size: blob.map(|blob| blob.size.min(i64::MAX.unsigned_abs())),
                compression: 0,
                uidset: &layer.facts.users,
                gidset: &layer.facts.groups,
            }
        })
        .collect();
    serde_json::to_vec(&entries)
}

/// The blob that podman need not fetch, since it has the layer.
///
/// podman believes without a look that this blob unpacks to the layer's diffID. And for an image that has the layer on top of something else it
/// makes a copy, from the tar of *any* layer with that diffID, which it does not compare with anything: without a tar-split it would be
/// another tar, and podman could never push that image. So all of them must have one that is known to be right.
fn blob_to_reuse(records: &Records, layer: &Layer) -> Option<Blob> {
    let mut equal = records.layers.iter().filter(|other| other.diff_id == layer.diff_id);
    layer.blob.filter(|_| equal.all(Layer::is_verified))
}

/// What stands for a time that is none: podman refuses the whole list over one.
pub(super) const EPOCH: &str = "1970-01-01T00:00:00Z";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::*;
    use crate::podman::records::Tar;
    use crate::podman::records::tests::{image, layer};

    #[test]
    fn chain_ids_are_those_that_podman_computes() {
        let digest = |digit: &str| format!("sha256:{}", digit.repeat(64)).parse::<Digest>().unwrap();
        let base = chain_id(None, &digest("1"));
        assert_eq!(base, digest("1"));
        let next = chain_id(Some(&base), &digest("2"));
        let by_hand = Digest::of(format!("{}+{}", "1".repeat(64), "2".repeat(64)).as_bytes());
        assert_eq!(next, by_hand);
        assert_ne!(other_id(&next, "x"), other_id(&next, "y"));
    }

    #[test]
    fn links_are_short_stay_the_same_and_are_no_others() {
        let ids: Vec<_> = (0..1000).map(|n: u32| Digest::of(&n.to_le_bytes())).collect();
        let links: BTreeSet<_> = ids.iter().map(|id| link(id, |_| false)).collect();
        assert_eq!(links.len(), 1000);
        assert!(
            links.iter().all(|link| link.len() == LINK && link.bytes().all(|letter| letter.is_ascii_alphanumeric()))
        );
        let first = link(&ids[0], |_| false);
        assert_eq!(first, link(&ids[0], |_| false));
        assert_ne!(first, link(&ids[0], |name| name == first));
    }

    #[test]
    fn a_hundred_layers_fit_into_a_page_of_mount_options() {
        let lowers = "/var/lib/crfs/store/overlay/l/".len() + LINK + 1;
        let upper = "/var/lib/containers/storage/overlay//diff".len() + 64;
        let options = "lowerdir=,upperdir=,workdir=,metacopy=on,volatile".len();
        assert!(100 * lowers + 2 * upper + options < 4095);
    }

    #[test]
    fn big_data_is_found_where_podman_looks() {
        assert_eq!(big_data_file("manifest"), "manifest");
        assert_eq!(big_data_file("sha256:00"), "=c2hhMjU2OjAw");
        assert_eq!(big_data_file("manifest-sha256:00"), "=bWFuaWZlc3Qtc2hhMjU2OjAw");
        let image = image("i", &[], &[]);
        assert!(big_data(&image).iter().all(|(key, ..)| is_big_data_file(OsStr::new(&big_data_file(key)))));
        for other in ["config", "=bWFuaWZlc3Qtc2hhMjU2OjAw", "=", "=x", "manifest-2"] {
            assert!(!is_big_data_file(OsStr::new(other)), "{other}");
        }
    }

    #[test]
    fn the_lists_have_what_podman_reads() {
        let mut records = Records::default();
        for (id, parent) in [("one", None), ("two", Some("one"))] {
            let new = layer(&mut records, id, parent);
            records.layers.push(new);
        }
        records.put(image("i", &["a:1"], &["one", "two"]));
        let (one, two) = (Digest::of(b"one").hex(), Digest::of(b"two").hex());
        let (id, manifest) = (Digest::of(b"i"), Digest::of(b"m"));
        let images: Value = serde_json::from_slice(&images(&records).unwrap()).unwrap();
        let key = format!("manifest-{manifest}");
        assert_eq!(
            images,
            json!([{
                "id": id.hex(), "digest": manifest, "names": ["a:1"], "layer": two, "metadata": "{}",
                "created": "2020-01-02T03:04:05Z",
                "big-data-names": ["manifest", key, id.to_string()],
                "big-data-sizes": {"manifest": 10, key.as_str(): 10, id.to_string(): 20},
                "big-data-digests": {"manifest": manifest, key.as_str(): manifest, id.to_string(): id},
            }])
        );
        let layers: Value = serde_json::from_slice(&layers(&records).unwrap()).unwrap();
        let common = json!({
            "id": one, "created": "2020-01-02T03:04:05Z", "diff-digest": Digest::of(b"d"), "diff-size": 7,
            "compression": 0, "uidset": [0, 5], "gidset": [0],
        });
        assert_eq!(layers[0], common);
        assert_eq!((&layers[1]["id"], &layers[1]["parent"]), (&json!(two), &json!(one)));
        assert_eq!(lower(&records, &records.layers[1]).as_deref(), Some("l/ONE"));
        assert_eq!(lower(&records, &records.layers[0]), None);
    }

    #[test]
    fn podman_is_told_of_the_blobs_whose_tars_it_can_make() {
        let mut records = Records::default();
        for id in ["one", "two"] {
            let new = layer(&mut records, id, None);
            records.layers.push(new);
        }
        let told = |records: &Records| {
            let list: Value = serde_json::from_slice(&layers(records).unwrap()).unwrap();
            ["compressed-diff-digest", "compressed-size"].map(|key| list[0][key].clone())
        };
        let none = [Value::Null, Value::Null];
        let tar = |is_verified| Some(Tar { len: 9, is_verified });
        records.layers[0].tar = tar(true);
        assert_eq!(told(&records), none, "another layer of that diffID has no tar-split");
        records.layers[1].tar = tar(false);
        assert_eq!(told(&records), none, "nobody compared that one with the diffID");
        records.layers[1].tar = tar(true);
        assert_eq!(told(&records), [json!(Digest::of(b"blob of one")), json!(5)]);
        records.layers[1].tar = None;
        records.layers[1].diff_id = Digest::of(b"another");
        assert_eq!(told(&records)[1], json!(5));
        records.layers[0].tar = tar(false);
        assert_eq!(told(&records), none);
    }
}
