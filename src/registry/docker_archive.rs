//! Images in a tar as `docker save`, `podman save` and skopeo write it (`docker-archive:`; Docker image specification 1.2,
//! "Combined Image JSON + Filesystem Changeset Format").
//!
//! ```text
//! manifest.json      [{"Config": path, "RepoTags": [name, ...], "Layers": [path, ...]}, ...], keys in any case
//! <config>.json      the image's config; rootfs.diff_ids has the digest of each layer's tar
//! <id>/layer.tar     a layer, or a link to one; also <digest>.tar, or blobs/sha256/<digest>
//! ```
//!
//! Such an archive has no manifest with digests, so one is made of what is there, in the form of OCI: the digest of an image is the sha256
//! of that JSON. A layer that is a plain tar has the digest that the config names for it, its diffID. docker with containerd's store
//! saves layers as they were pulled, compressed: those have the digest that their name states, else that of their own bytes.
//! None of this is believed: it is what the bytes are checked against when they are read.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::archive::Archive;
use super::file_blob::FileBlob;
use super::manifest::{LARGEST_DOCUMENT, MOST_LAYERS};
use super::repository::Document;
use super::tarfile::{Content, members};
use super::{Error, json};
use crate::blob::{ByteRange, ByteSource, Digest, Packing};

/// Links to links are followed so far: docker and skopeo write none.
const MOST_LINKS: usize = 8;

/// What is read at a time to compute a digest.
const PART: u64 = 1 << 20;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// One image of manifest.json. The names are null where the image has none.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Item {
    config: String,
    #[serde(rename = "repoTags")]
    names: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

impl Item {
    fn is_called(&self, wanted: &str) -> bool {
        self.names.iter().flatten().any(|name| is_named(name, wanted))
    }

    fn is_same_image(&self, other: &Self) -> bool {
        self.config == other.config && self.layers == other.layers
    }
}

/// As much of a config as says what its layers are.
#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Option<Vec<Digest>>,
}

/// The manifest that is made. Its fields are written in this order, without blanks.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: &'static str,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: Digest,
    size: u64,
}

/// The files and links of an archive by their names.
struct Contents {
    path: PathBuf,
    file: Arc<dyn ByteSource>,
    members: HashMap<String, Content>,
}

/// Finds an image: its manifest as it is made here, and where config and layers are. Blocking.
///
/// `name` is a canonical reference with a tag, or `@` and the image's place in manifest.json; without one the only image is meant.
pub(super) fn open(
    path: &Path,
    file: Arc<dyn ByteSource>,
    image: &str,
    name: Option<&str>,
) -> Result<(Document, Archive), Error> {
    let contents = Contents::open(path, file)?;
    let items = contents.document("manifest.json")?;
    let items: Vec<Item> = json::from_slice(&items).map_err(|source| contents.broken("manifest.json", &source))?;
    let item = choose(image, name, items)?;
    let config = contents.document(&item.config)?;
    let parsed: Config = json::from_slice(&config).map_err(|source| contents.broken(&item.config, &source))?;
    let (diff_ids, layers) = (parsed.rootfs.diff_ids.unwrap_or_default(), item.layers.unwrap_or_default());
    if layers.len() != diff_ids.len() || layers.len() > MOST_LAYERS {
        let (named, said) = (layers.len(), diff_ids.len());
        let what = format!("a docker archive: manifest.json names {named} layers and {} has {said}", item.config);
        return Err(contents.refused(what));
    }
    let (_, config_place) = contents.find(&item.config)?;
    let config_digest = Digest::of(&config);
    let mut blobs = HashMap::from([(config_digest, config_place)]);
    let descriptor =
        |media_type: String, digest, place: ByteRange| Descriptor { media_type, digest, size: place.len() };
    let mut manifest = Manifest {
        schema_version: 2,
        media_type: MANIFEST,
        config: descriptor(CONFIG.to_owned(), config_digest, config_place),
        layers: Vec::new(),
    };
    for (layer, diff_id) in layers.iter().zip(diff_ids) {
        let (name, place) = contents.find(layer)?;
        let (suffix, digest) = contents.layer(&name, place, diff_id)?;
        manifest.layers.push(descriptor(format!("{LAYER}{suffix}"), digest, place));
        blobs.insert(digest, place);
    }
    let bytes = Bytes::from(serde_json::to_vec(&manifest).map_err(|source| contents.broken("manifest", &source))?);
    Ok((Document { digest: Digest::of(&bytes), bytes }, Archive::new(path, contents.file, blobs)))
}

/// The image that is meant.
fn choose(image: &str, wanted: Option<&str>, mut items: Vec<Item>) -> Result<Item, Error> {
    let names: Vec<String> = items.iter().flat_map(|item| item.names.iter().flatten()).cloned().collect();
    let image = image.to_owned();
    let found = match wanted {
        None if items.len() == 1 => Some(0),
        None => return Err(Error::AmbiguousArchive { image, count: items.len(), names }),
        Some(wanted) => match wanted.strip_prefix('@') {
            Some(place) => place.parse().ok().filter(|place| *place < items.len()),
            None => called(&image, wanted, &items)?,
        },
    };
    let tag = wanted.unwrap_or_default().to_owned();
    let missing = || Error::NoTag { image, tag, tags: names, left_out: Box::default() };
    Ok(items.swap_remove(found.ok_or_else(missing)?))
}

/// The place of the image of that name.
fn called(image: &str, wanted: &str, items: &[Item]) -> Result<Option<usize>, Error> {
    let mut found = items.iter().enumerate().filter(|(_, item)| item.is_called(wanted));
    let Some((place, first)) = found.next() else { return Ok(None) };
    match found.find(|(_, other)| !other.is_same_image(first)) {
        Some((other_place, other)) => Err(Error::SharedName {
            image: image.to_owned(),
            name: wanted.to_owned(),
            owners: vec![format!("@{place} ({})", first.config), format!("@{other_place} ({})", other.config)],
        }),
        None => Ok(Some(place)),
    }
}

/// Names in archives leave out what names on a command line may leave out.
fn is_named(name: &str, wanted: &str) -> bool {
    super::grammar::parse(name).is_ok_and(|name| name.to_string() == wanted)
}

impl Contents {
    fn open(path: &Path, file: Arc<dyn ByteSource>) -> Result<Self, Error> {
        let found = members(path, &*file)?;
        // The last of two entries of one name counts. Names that are no text are no image's.
        let named = |name: &[u8]| std::str::from_utf8(name).ok().and_then(|name| clean("", name));
        let members = found.into_iter().filter_map(|member| Some((named(&member.name)?, member.content))).collect();
        Ok(Self { path: path.to_owned(), file, members })
    }

    fn refused(&self, what: String) -> Error {
        Error::NotALayout { path: self.path.clone(), what }
    }

    fn broken(&self, name: &str, source: &serde_json::Error) -> Error {
        self.refused(format!("a docker archive: its {name} cannot be read: {source}"))
    }

    /// A file by its name, links followed within the archive: the name that it has itself, and its bytes.
    fn find(&self, name: &str) -> Result<(String, ByteRange), Error> {
        let missing = || self.refused(format!("a docker archive that is whole: {name:?} is not in it"));
        let mut at = clean("", name).ok_or_else(missing)?;
        for _ in 0..=MOST_LINKS {
            let (base, target) = match self.members.get(&at).ok_or_else(missing)? {
                Content::File(place) => return Ok((at, *place)),
                Content::Symlink(target) => (at.rsplit_once('/').map_or("", |(dir, _)| dir), target),
                Content::HardLink(target) => ("", target),
            };
            let target = std::str::from_utf8(target).ok().and_then(|target| clean(base, target));
            at = target.ok_or_else(|| self.refused(format!("a docker archive: {name:?} is a link out of it")))?;
        }
        Err(self.refused(format!("a docker archive: {name:?} leads through more than {MOST_LINKS} links")))
    }

    fn blob(&self, place: ByteRange) -> FileBlob {
        FileBlob::new(self.path.clone(), Arc::clone(&self.file), place)
    }

    /// A small file: manifest.json or a config.
    fn document(&self, name: &str) -> Result<Bytes, Error> {
        let (_, place) = self.find(name)?;
        if place.len() > LARGEST_DOCUMENT as u64 {
            return Err(self.refused(format!("a docker archive: its {name} has more than {LARGEST_DOCUMENT} bytes")));
        }
        self.blob(place).read(ByteRange { start: 0, end: place.len() })
    }

    /// A layer's compression, as the end of its media type, and its digest.
    fn layer(&self, name: &str, place: ByteRange, diff_id: Digest) -> Result<(&'static str, Digest), Error> {
        let blob = self.blob(place);
        let head = blob.read(ByteRange { start: 0, end: place.len().min(Packing::LONGEST_MAGIC) })?;
        let suffix = match Packing::of(&head) {
            Some(Packing::Gzip) => "+gzip",
            Some(Packing::Zstd) => "+zstd",
            Some(Packing::Other(by, _)) => {
                let what =
                    format!("a docker archive that crfs reads: its layer {name:?} is a tar compressed with {by}");
                return Err(
                    self.refused(format!("{what}, and crfs serves tar, tar+gzip and tar+zstd; convert the image"))
                );
            }
            None => "",
        };
        let named = || name.strip_prefix("blobs/sha256/").and_then(|hex| format!("sha256:{hex}").parse().ok());
        let digest = match suffix {
            "" => diff_id,
            _ => named().map_or_else(|| digest_of(&blob), Ok)?,
        };
        Ok((suffix, digest))
    }
}

fn digest_of(blob: &FileBlob) -> Result<Digest, Error> {
    let (mut hasher, mut at) = (Sha256::new(), 0);
    while at < blob.size {
        let end = blob.size.min(at.saturating_add(PART));
        hasher.update(blob.read(ByteRange { start: at, end })?);
        at = end;
    }
    Ok(Digest::from_bytes(hasher.finalize().into()))
}

/// A path in the archive as its shortest text; `None` for one that leads out of it.
fn clean(base: &str, path: &str) -> Option<String> {
    if path.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            _ => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::super::tarfile::tests::{archive, entry, link};
    use super::*;

    fn document(name: &str, value: &serde_json::Value) -> Vec<u8> {
        entry(name, b'0', value.to_string().as_bytes())
    }

    fn item(config: &str, names: &[&str], layers: &[&str]) -> serde_json::Value {
        serde_json::json!({"Config": config, "RepoTags": names, "Layers": layers})
    }

    fn config(layers: &[&[u8]]) -> serde_json::Value {
        let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        serde_json::json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}})
    }

    fn opened(parts: &[Vec<u8>], name: Option<&str>) -> Result<(serde_json::Value, Archive), Error> {
        let (document, archive) = open(Path::new("/x"), archive(parts), "docker-archive:/x", name)?;
        assert_eq!(document.digest, Digest::of(&document.bytes));
        Ok((serde_json::from_slice(&document.bytes).unwrap(), archive))
    }

    fn refusal(parts: &[Vec<u8>], name: Option<&str>) -> String {
        opened(parts, name).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn links_lead_to_layers_and_plain_tars_have_their_diff_ids() {
        let layers = ["i1/layer.tar", "./i2/layer.tar", "blobs/x"];
        let (manifest, archive) = opened(
            &[
                document("manifest.json", &serde_json::json!([item("c.json", &["a"], &layers)])),
                document("./c.json", &config(&[b"one", b"two", b"one"])),
                entry("one.tar", b'0', b"one"),
                link("i1/layer.tar", b'2', "../one.tar"),
                entry("i2/layer.tar", b'0', b"two"),
                link("blobs/x", b'1', "i1/layer.tar"),
            ],
            None,
        )
        .unwrap();
        for (layer, data) in manifest["layers"].as_array().unwrap().iter().zip([b"one", b"two", b"one"]) {
            assert_eq!(layer["mediaType"], LAYER);
            let digest: Digest = layer["digest"].as_str().unwrap().parse().unwrap();
            let blob = archive.blob(&digest).unwrap();
            assert_eq!(blob.read(ByteRange { start: 0, end: blob.size }).unwrap(), &data[..]);
        }
        assert!(archive.blob(&manifest["config"]["digest"].as_str().unwrap().parse().unwrap()).is_ok());
    }

    #[test]
    fn compressed_layers_have_their_own_digests() {
        let (gzip, zstd) = (b"\x1f\x8b\x08\0 gzip", b"\x28\xb5\x2f\xfd zstd");
        let named = format!("blobs/sha256/{}", Digest::of(gzip).hex());
        let (manifest, _) = opened(
            &[
                document("manifest.json", &serde_json::json!([item("c", &[], &[&named, "z"])])),
                document("c", &config(&[b"one", b"two"])),
                entry(&named, b'0', gzip),
                entry("z", b'0', zstd),
            ],
            None,
        )
        .unwrap();
        for (layer, (data, suffix)) in [(&gzip[..], "+gzip"), (zstd, "+zstd")].into_iter().enumerate() {
            let layer = &manifest["layers"][layer];
            assert_eq!(layer["mediaType"], format!("{LAYER}{suffix}"));
            assert_eq!(layer["digest"], Digest::of(data).to_string());
        }
    }

    #[test]
    fn a_layer_that_is_compressed_otherwise_is_refused_by_name() {
        for (data, by) in [(&b"\xfd7zXZ\0..."[..], "xz"), (b"BZh91AY&SY", "bzip2")] {
            let parts = [
                document("manifest.json", &serde_json::json!([item("c", &[], &["l"])])),
                document("c", &config(&[b"one"])),
                entry("l", b'0', data),
            ];
            let text = refusal(&parts, None);
            assert!(text.contains(&format!("its layer \"l\" is a tar compressed with {by}")), "{text}");
        }
    }

    #[test]
    fn images_are_told_apart_by_name_and_place() {
        let parts = [
            document(
                "manifest.json",
                &serde_json::json!([item("a", &["x", "q.io/y:1"], &[]), item("b", &["z:2"], &[])]),
            ),
            document("a", &config(&[])),
            document("b", &serde_json::json!({"rootfs": {}})),
        ];
        let config = |name: &str| opened(&parts, Some(name)).unwrap().0["config"]["size"].as_u64().unwrap();
        let (a, b) = (config("docker.io/library/x:latest"), config("docker.io/library/z:2"));
        assert_ne!(a, b);
        assert_eq!((config("q.io/y:1"), config("@0"), config("@1")), (a, a, b));
        for (name, says) in [(None, "x, q.io/y:1, z:2"), (Some("docker.io/library/z:3"), "z:2"), (Some("@2"), "@2")] {
            let error = refusal(&parts, name);
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn what_is_written_by_hand_is_read_as_docker_reads_it() {
        let item = r#"{"CONFIG": "gone", "config": "c", "repotags": null, "LAYERS": ["one.tar"]}"#;
        let config = format!(r#"{{"RootFS": {{"Diff_IDs": ["{}"]}}}}"#, Digest::of(b"one"));
        let parts = [
            entry("./manifest.json", b'0', format!("[{item}]").as_bytes()),
            entry("./c", b'0', config.as_bytes()),
            entry("./one.tar", b'0', b"one"),
        ];
        let (manifest, _) = opened(&parts, None).unwrap();
        assert_eq!(manifest["layers"][0]["digest"], Digest::of(b"one").to_string());
        let half = br#"[{"Config": "c", "config": null, "RepoTags": ["\udfff", null, "x:1"], "Layers": ["one.tar"]}]"#;
        let again = [entry("manifest.json", b'0', half), parts[1].clone(), parts[2].clone()];
        assert_eq!(opened(&again, Some("docker.io/library/x:1")).unwrap().0, manifest);
        assert!(refusal(&parts, Some("docker.io/library/c:latest")).contains("its tags are: (none)"));
    }

    #[test]
    fn a_name_of_two_images_is_refused_and_both_are_named() {
        let items = |configs: &[&str]| {
            let items: Vec<_> = configs.iter().map(|config| item(config, &["x:1"], &[])).collect();
            [document("manifest.json", &items.into()), document("a", &config(&[])), document("b", &config(&[]))]
        };
        let name = Some("docker.io/library/x:1");
        let text = refusal(&items(&["a", "a", "b"]), name);
        assert!(text.contains("@0 (a), @2 (b)"), "{text}");
        assert!(opened(&items(&["a", "b"]), Some("@1")).is_ok());
        assert!(opened(&items(&["a", "a"]), name).is_ok(), "one image twice");
    }

    #[test]
    fn what_is_broken_or_hostile_is_refused_by_name() {
        let with = |item: serde_json::Value, more: &[Vec<u8>]| {
            let manifest = document("manifest.json", &serde_json::json!([item]));
            refusal(&[vec![manifest, document("c", &config(&[b"one"]))], more.to_vec()].concat(), None)
        };
        let layer = |path: &str, more: &[Vec<u8>]| with(item("c", &[], &[path]), more);
        assert!(layer("gone", &[]).contains("\"gone\" is not in it"));
        assert!(layer("../../etc/passwd", &[]).contains("is not in it"));
        assert!(layer("l", &[link("l", b'2', "/etc/passwd")]).contains("a link out of it"));
        assert!(layer("d/l", &[link("d/l", b'2', "../../x")]).contains("a link out of it"));
        assert!(layer("l", &[link("l", b'2', "l")]).contains("more than 8 links"));
        assert!(layer("l", &[link("l", b'1', "gone")]).contains("\"l\" is not in it"));
        assert!(with(item("c", &[], &[]), &[]).contains("names 0 layers and c has 1"));
        assert!(with(item("d", &[], &[]), &[entry("d", b'0', b"[]")]).contains("its d cannot be read"));
        assert!(with(item("d", &[], &[]), &[entry("d", b'0', &vec![b' '; 5 << 20])]).contains("more than 4194304"));
        assert!(refusal(&[entry("index.json", b'0', b"{}")], None).contains("\"manifest.json\" is not in it"));
        assert!(refusal(&[entry("manifest.json", b'0', b"{}")], None).contains("manifest.json cannot be read"));
        assert!(refusal(&[entry("manifest.json", b'0', b"[]")], None).contains("none of the 0 images"));
    }
}
