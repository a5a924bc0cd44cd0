//! Which manifests are no images, and what they are instead.
//!
//! An image is what podman and containerd unpack: its config has the type of an image's config, by OCI or by Docker. podman refuses all
//! else, and containerd mounts it as an empty directory. In the oldest images of registries the config is application/octet-stream or has no
//! type; Docker and containerd take these for images.
//!
//! The config's type is not enough: Ollama uses Docker's, and oras any. There the layers tell: Ollama's have types of its own, and what oras
//! pushes is a file with a name, though it calls each a tar. An artifactType alone makes no artifact: podman and containerd do not look at it.

use std::fmt;

use super::left_out::{is_image_config, shown};
use super::manifest::{LayerDescriptor, Manifest};

/// How old images call their configs.
const OLD_CONFIGS: [&str; 2] = ["application/octet-stream", ""];

/// By which a layer says that it is a file of that name (ORAS, ModelPack).
const FILE_NAMES: [&str; 3] = ["org.opencontainers.image.title", "org.cncf.model.filepath", "org.cnai.model.filepath"];

/// What registries hold beside images, by the beginning of its types.
const KNOWN: [(&str, &str); 17] = [
    ("application/vnd.cncf.model.", "a ModelPack model"),
    ("application/vnd.cnai.model.", "a ModelPack model"),
    ("application/vnd.docker.ai.", "a Docker model"),
    ("application/vnd.ollama.", "an Ollama model"),
    ("application/vnd.cncf.helm.", "a Helm chart"),
    ("application/vnd.cncf.notary.", "a Notation signature"),
    ("application/vnd.dev.cosign.", "a Sigstore signature or attestation"),
    ("application/vnd.dev.sigstore.", "a Sigstore signature or attestation"),
    ("application/vnd.docker.attestation.", "an attestation"),
    ("application/vnd.in-toto", "an attestation"),
    ("application/vnd.docker.plugin.", "a Docker plugin"),
    ("application/vnd.buildkit.cacheconfig.", "a BuildKit cache"),
    ("application/vnd.amazon.soci.", "a SOCI index"),
    ("application/vnd.wasm.", "a WebAssembly module"),
    ("application/vnd.bytecodealliance.wasm.", "a WebAssembly module"),
    ("application/vnd.module.wasm.", "a WebAssembly module"),
    ("application/wasm", "a WebAssembly module"),
];

/// What a manifest is that is no image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// The type that tells most: its artifactType, its config's or its first layer's.
    pub(super) kind: String,
    name: Option<&'static str>,
}

impl fmt::Display for Artifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name {
            Some(name) => write!(f, "{name} ({:?})", self.kind),
            None => write!(f, "an artifact of type {:?}", self.kind),
        }
    }
}

impl Manifest {
    /// What it is where it is no image.
    pub(super) fn artifact(&self) -> Option<Artifact> {
        let config =
            Some(self.config_type.as_str()).filter(|kind| !is_image_config(kind) && !OLD_CONFIGS.contains(kind));
        let said = self.artifact_type.as_deref().filter(|kind| !is_image_config(kind));
        let layers = || self.layers.iter().map(|layer| layer.media_type.as_str());
        let has_no_layer = self.layers.is_empty() || !layers().all(|kind| known(kind).is_some());
        if config.is_none() && has_no_layer && !(said.is_some() && self.layers.iter().any(is_file)) {
            return None;
        }
        let types = || said.into_iter().chain(config).chain(layers());
        let telling = said.or_else(|| types().find(|kind| known(kind).is_some())).or_else(|| types().next());
        Some(Artifact { kind: telling.map(shown).unwrap_or_default(), name: types().find_map(known) })
    }
}

fn known(media_type: &str) -> Option<&'static str> {
    KNOWN.iter().find(|(beginning, _)| media_type.starts_with(beginning)).map(|(_, name)| *name)
}

fn is_file(layer: &LayerDescriptor) -> bool {
    FILE_NAMES.iter().any(|name| layer.annotations.contains_key(*name))
}

#[cfg(test)]
mod tests {
    use super::super::manifest::{Content, parse};
    use super::*;

    const OCI: &str = "application/vnd.oci.image.config.v1+json";
    const DOCKER: &str = "application/vnd.docker.container.image.v1+json";
    const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
    const EMPTY: &str = "application/vnd.oci.empty.v1+json";
    const UNKNOWN: &str = "application/vnd.unknown.artifact.v1";

    /// What a manifest is, by its artifactType, its config's type and its layers' types; a layer with a `*` before its type has a name.
    fn of(artifact_type: Option<&str>, config: &str, layers: &[&str]) -> Option<String> {
        let digest = format!("sha256:{}", "0".repeat(64));
        let layers: Vec<_> = layers
            .iter()
            .map(|kind| {
                let name = kind.strip_prefix('*').map(|_| serde_json::json!({(FILE_NAMES[0]): "f"}));
                serde_json::json!({"mediaType": kind.trim_start_matches('*'), "digest": digest, "size": 1, "annotations": name})
            })
            .collect();
        let config = serde_json::json!({"mediaType": config, "digest": digest, "size": 2});
        let manifest = serde_json::json!({"artifactType": artifact_type, "config": config, "layers": layers});
        let Ok(Content::Image(manifest)) = parse("x", manifest.to_string().as_bytes()) else { panic!("{manifest}") };
        manifest.artifact().map(|artifact| artifact.to_string())
    }

    #[test]
    fn what_podman_and_containerd_unpack_is_an_image() {
        for config in [OCI, DOCKER, "application/octet-stream", ""] {
            for artifact_type in [None, Some(""), Some(OCI), Some(DOCKER), Some("application/vnd.example.rootfs")] {
                for layers in [&[][..], &[TAR], &["application/vnd.docker.image.rootfs.diff.tar.gzip", TAR]] {
                    assert_eq!(of(artifact_type, config, layers), None, "{artifact_type:?} {config} {layers:?}");
                }
            }
        }
        // Homebrew's bottles have names.
        assert_eq!(of(None, OCI, &["*application/vnd.oci.image.layer.v1.tar+gzip"]), None);
        // The layer says what it is.
        assert_eq!(of(None, OCI, &["application/vnd.erofs.layer.v1"]), None);
    }

    #[test]
    fn what_artifacts_are_is_said() {
        let model = "application/vnd.cncf.model.manifest.v1+json";
        let helm = "application/vnd.cncf.helm.config.v1+json";
        let cases = [
            (
                Some(model),
                "application/vnd.cncf.model.config.v1+json",
                "application/vnd.cncf.model.weight.v1.raw",
                model,
            ),
            (None, "application/vnd.docker.ai.model.config.v0.1+json", "x", "a Docker model"),
            (
                None,
                DOCKER,
                "application/vnd.ollama.image.model",
                "an Ollama model (\"application/vnd.ollama.image.model\")",
            ),
            (Some(UNKNOWN), EMPTY, "*application/vnd.oci.image.layer.v1.tar", "an artifact of type"),
            (
                None,
                "application/vnd.unknown.config.v1+json",
                "*application/vnd.oci.image.layer.v1.tar",
                "vnd.unknown.config",
            ),
            (Some(UNKNOWN), OCI, "*application/vnd.oci.image.layer.v1.tar", UNKNOWN),
            (
                None,
                helm,
                "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
                "a Helm chart (\"application/vnd.cncf.helm.config",
            ),
            (None, OCI, "application/vnd.in-toto+json", "an attestation"),
            (None, EMPTY, "application/vnd.in-toto+json", "an attestation (\"application/vnd.in-toto+json\")"),
            (None, "application/vnd.amazon.soci.index.v1+json", "application/octet-stream", "a SOCI index"),
        ];
        for (artifact_type, config, layer, says) in cases {
            let text = of(artifact_type, config, &[layer]).unwrap();
            assert!(text.contains(says), "{text}");
        }
        assert!(of(Some(UNKNOWN), EMPTY, &[]).is_some());
        let long = of(None, &format!("application/\n{}", "x".repeat(10_000)), &[]).unwrap();
        assert!(long.len() < 300 && !long.contains('\n'), "{long}");
    }
}
