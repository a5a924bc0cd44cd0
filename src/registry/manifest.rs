//! Manifests and image indexes of OCI (image specification 1.1) and Docker (schema 2), read strictly.
//!
//! What a document is follows from its own bytes, which its digest covers, never from a header; one that could be read as
//! both a manifest and an index is refused (CVE-2021-41190). What the specification wants and other tools do without is not
//! missed here either: a schemaVersion, and the media types of descriptors. (The types of oci-client want them.) JSON is read as in Go.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use super::{Error, Platform, json};
use crate::blob::Digest;

/// The distribution specification's own limit for manifests.
pub(super) const LARGEST_DOCUMENT: usize = 4 << 20;

/// More layers than any storage takes; overlayfs itself ends at 500.
pub(super) const MOST_LAYERS: usize = 4096;

/// All that crfs reads, as an `Accept` header.
pub(super) const MEDIA_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// What a verified document holds.
pub(super) enum Content {
    Index(Vec<Descriptor>),
    Image(Manifest),
}

/// An image's manifest, or an artifact's, which is of the same form.
pub(super) struct Manifest {
    pub(super) layers: Vec<LayerDescriptor>,
    pub(super) config: Option<LayerDescriptor>,
    pub(super) annotations: BTreeMap<String, String>,
    /// `None` where it is not there, or empty.
    pub(super) artifact_type: Option<String>,
    pub(super) config_type: String,
    /// The manifest that it refers to.
    pub(super) subject: Option<Digest>,
}

/// One layer, as a manifest has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LayerDescriptor {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) media_type: String,
    pub(super) annotations: BTreeMap<String, String>,
}

/// What a descriptor of a manifest, an index or a layout says, not checked yet.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: i64,
    #[serde(default, deserialize_with = "or_default")]
    urls: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) artifact_type: Option<String>,
    #[serde(default, deserialize_with = "stated_platform")]
    pub(super) platform: Option<Platform>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u32>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    artifact_type: Option<String>,
    subject: Option<Subject>,
    annotations: Option<BTreeMap<String, String>>,
}

/// One without a digest is none.
#[derive(Deserialize)]
struct Subject {
    #[serde(default)]
    digest: String,
}

/// Schema 1 has other fields altogether, so it is looked for first.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    schema_version: Option<u32>,
    fs_layers: Option<IgnoredAny>,
}

impl Version {
    const fn is_schema_1(&self) -> bool {
        matches!(self.schema_version, Some(1)) || self.fs_layers.is_some()
    }
}

/// null is what is missing.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// One that names neither system nor architecture is none: tools that know of none write empty texts.
fn stated_platform<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Platform>, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Stated {
        #[serde(deserialize_with = "or_default")]
        os: String,
        #[serde(deserialize_with = "or_default")]
        architecture: String,
        variant: Option<String>,
    }
    let Stated { os, architecture, variant } = or_default(deserializer)?;
    let is_stated = !os.is_empty() || !architecture.is_empty();
    Ok(is_stated.then_some(Platform { os, architecture, variant }))
}

/// Reads a document whose digest was checked; `what` names it in errors.
pub(super) fn parse(what: &str, bytes: &[u8]) -> Result<Content, Error> {
    let refused = |reason: String| Error::Manifest { what: what.to_owned(), kind: "manifest", reason };
    if bytes.len() > LARGEST_DOCUMENT {
        return Err(refused(format!("it has more than {LARGEST_DOCUMENT} bytes")));
    }
    if json::from_slice(bytes).is_ok_and(|version: Version| version.is_schema_1()) {
        return Err(refused(
            "it is of Docker schema 1, which no registry should serve any more; push the image again".into(),
        ));
    }
    let raw: Raw = json::from_slice(bytes).map_err(|source| refused(source.to_string()))?;
    // As in Go, 0 is none.
    if let Some(version) = raw.schema_version.filter(|version| ![0, 2].contains(version)) {
        return Err(refused(format!("schemaVersion {version} is unknown")));
    }
    let names_index = raw.media_type.as_deref().map(|kind| kind.contains("index") || kind.contains("manifest.list"));
    match (raw.manifests, raw.layers, raw.config) {
        (Some(entries), None, None) if names_index != Some(false) => Ok(Content::Index(entries)),
        (None, layers, Some(config)) if names_index != Some(true) => {
            let layers = layers.unwrap_or_default();
            if layers.len() > MOST_LAYERS {
                return Err(refused(format!("it has more than {MOST_LAYERS} layers")));
            }
            let layers = layers.into_iter().map(|layer| layer_descriptor(what, layer)).collect::<Result<_, _>>()?;
            Ok(Content::Image(Manifest {
                layers,
                artifact_type: raw.artifact_type.filter(|kind| !kind.is_empty()),
                config_type: config.media_type.clone(),
                // Nothing that is served depends on it.
                config: layer_descriptor(what, config).ok(),
                annotations: raw.annotations.unwrap_or_default(),
                subject: raw.subject.and_then(|subject| subject.digest.parse().ok()),
            }))
        }
        _ => Err(refused("it is neither one image nor an index of images".to_owned())),
    }
}

fn layer_descriptor(what: &str, layer: Descriptor) -> Result<LayerDescriptor, Error> {
    let refused = |reason: String| Error::Manifest { what: what.to_owned(), kind: "layer", reason };
    let (digest, size) = place(&layer.digest, layer.size).map_err(refused)?;
    if !layer.urls.is_empty() {
        return Err(refused(format!(
            "{digest} is a foreign layer ({}), kept outside of the registry",
            layer.media_type
        )));
    }
    Ok(LayerDescriptor { digest, size, media_type: layer.media_type, annotations: layer.annotations })
}

/// A descriptor's digest and size, checked.
pub(super) fn place(digest: &str, size: i64) -> Result<(Digest, u64), String> {
    let digest: Digest = digest.parse().map_err(|source| format!("{source}"))?;
    let size = u64::try_from(size).map_err(|_| format!("{digest} has the size {size}"))?;
    Ok((digest, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn image(layer: &str) -> String {
        let config = format!("{{\"mediaType\":\"c\",\"digest\":\"{DIGEST}\",\"size\":2}}");
        format!("{{\"schemaVersion\":2,\"config\":{config},\"layers\":[{layer}]}}")
    }

    fn reason(text: &str) -> String {
        parse("r/x", text.as_bytes()).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn images_and_indexes_are_told_apart() {
        let layer =
            format!("{{\"mediaType\":\"m\",\"digest\":\"{DIGEST}\",\"size\":7,\"annotations\":{{\"a\":\"b\"}}}}");
        let Ok(Content::Image(manifest)) = parse("r/x", image(&layer).as_bytes()) else { panic!("no image") };
        let layers = manifest.layers;
        assert_eq!((manifest.config.unwrap().size, manifest.config_type.as_str(), manifest.subject), (2, "c", None));
        assert_eq!((layers[0].size, layers[0].digest.to_string().as_str()), (7, DIGEST));
        assert_eq!(layers[0].annotations["a"], "b");
        let index = "{\"schemaVersion\":2,\"manifests\":[]}";
        assert!(matches!(parse("r/x", index.as_bytes()), Ok(Content::Index(_))));
        let null = image("").replace("[]", "null");
        assert!(matches!(parse("r/x", null.as_bytes()), Ok(Content::Image(null)) if null.layers.is_empty()));
    }

    #[test]
    fn what_cannot_be_trusted_is_refused_by_name() {
        let layer = |digest: &str, size: &str, more: &str| {
            reason(&image(&format!("{{\"mediaType\":\"m\",\"digest\":\"{digest}\",\"size\":{size}{more}}}")))
        };
        assert!(layer(DIGEST, "-1", "").contains("size -1"));
        assert!(layer("sha512:00", "1", "").contains("sha512:00"));
        assert!(layer("sha256:../../etc", "1", "").contains("not a sha256 digest"));
        assert!(layer(DIGEST, "1", ",\"urls\":[\"http://x\"]").contains("foreign layer"));
        assert!(reason("{\"schemaVersion\":1,\"fsLayers\":[],\"layers\":7}").contains("schema 1"));
        assert!(reason(&image("").replace("\"config\"", "\"manifests\":[],\"config\"")).contains("neither"));
        let lying =
            image("").replace("{\"schema", "{\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\"schema");
        assert!(reason(&lying).contains("neither"));
        for broken in ["", "[]", "{}", "{\"schemaVersion\":3}", "{\"schemaVersion\":2}"] {
            assert!(!reason(broken).is_empty(), "{broken}");
        }
    }

    #[test]
    fn what_other_tools_do_without_is_not_missed() {
        let layer = format!("{{\"digest\":\"{DIGEST}\",\"size\":7,\"annotations\":null,\"urls\":null}}");
        let manifest = image(&layer).replace("\"mediaType\":\"c\",", "");
        for version in ["", "\"schemaVersion\":0,", "\"schemaVersion\":null,", "\"schemaVersion\":2,"] {
            let text = manifest.replace("\"schemaVersion\":2,", version);
            let Ok(Content::Image(manifest)) = parse("r/x", text.as_bytes()) else { panic!("{text}") };
            assert_eq!((manifest.layers[0].size, manifest.layers[0].media_type.as_str()), (7, ""));
            let text = format!("{{{version}\"manifests\":[{layer}]}}");
            let Ok(Content::Index(entries)) = parse("r/x", text.as_bytes()) else { panic!("{text}") };
            assert_eq!((entries[0].size, &entries[0].platform), (7, &None));
        }
        let typed = format!("{{\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\"manifests\":[{layer}]}}");
        assert!(matches!(parse("r/x", typed.as_bytes()), Ok(Content::Index(_))));
        for old in ["{\"fsLayers\":[{\"blobSum\":\"x\"}]}".to_owned(), image("").replace(":2", ":1")] {
            assert!(reason(&old).contains("schema 1"), "{old}");
        }
        assert!(reason(&image("").replace("Version\":2", "Version\":3")).contains("schemaVersion 3"));
    }

    #[test]
    fn a_manifest_means_what_it_means_in_go() {
        let layer = format!("{{\"Digest\":\"{DIGEST}\",\"SIZE\":7,\"annotations\":{{\"A\":\"x\",\"n\":null}}}}");
        for (key, other) in [
            ("\"layers\"", "\"Layers\""),
            ("\"config\"", "\"subject\":{},\"Config\""),
            ("\"config\"", "\"annotations\":{\"a\":null},\"config\""),
            ("\"config\"", "\"schemaVersion\":2,\"x\":1e999,\"config\""),
            ("\"layers\"", "\"y\":\"\\ud800\",\"layers\":[],\"LAYERS\""),
        ] {
            let text = image(&layer).replace(key, other);
            let Ok(Content::Image(manifest)) = parse("r/x", text.as_bytes()) else { panic!("{text}") };
            let found: Vec<_> = manifest.layers.iter().map(|layer| (layer.size, &layer.annotations)).collect();
            let annotations = BTreeMap::from([("A".to_owned(), "x".to_owned()), ("n".to_owned(), String::new())]);
            assert_eq!((found, manifest.subject), (vec![(7, &annotations)], None), "{text}");
        }
        let index = format!("{{\"Manifests\":[{layer}]}}");
        assert!(matches!(parse("r/x", index.as_bytes()), Ok(Content::Index(entries)) if entries.len() == 1));
        let both = image(&layer).replace("\"layers\"", "\"MANIFESTS\":[],\"layers\"");
        assert!(reason(&both).contains("neither"), "in no case both");
        assert!(reason(&image(&layer).replace("schemaVersion\":2", "SchemaVersion\":1")).contains("schema 1"));
    }

    #[test]
    fn a_platform_that_says_nothing_is_none() {
        let platform = |platform: &str| {
            let entry = format!("{{\"digest\":\"d\",\"size\":1,\"platform\":{platform}}}");
            serde_json::from_str::<Descriptor>(&entry).unwrap().platform.map(|platform| platform.to_string())
        };
        for none in ["null", "{}", "{\"os\":\"\",\"architecture\":\"\"}", "{\"os\":null}"] {
            assert_eq!(platform(none), None, "{none}");
        }
        assert_eq!(platform("{\"os\":\"linux\"}").as_deref(), Some("linux/"));
        let whole = "{\"os\":\"linux\",\"architecture\":\"arm\",\"variant\":\"v7\",\"os.version\":\"1\"}";
        assert_eq!(platform(whole).as_deref(), Some("linux/arm/v7"));
    }
}
