//! Which entries of an index or a layout are no images, and how a message tells of them.
//!
//! An artifactType alone does not make an artifact: crane, ko and whatever else is built on go-containerregistry repeat the type of the
//! image's config there, on every entry.

use std::collections::BTreeMap;
use std::fmt;

use super::manifest::Descriptor;

/// The types of an image's config, by OCI and by Docker.
const IMAGE_CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// By which BuildKit says of what an entry is an attestation, or that it is one.
const ATTESTATION: &str = "vnd.docker.reference.type";

/// What takes the place of a system or an architecture where there is none.
const UNKNOWN: &str = "unknown";

/// Types that a message names; what lies beyond is only counted.
const MOST_TYPES: usize = 8;

/// Characters of a type that a message shows.
const LONGEST_TYPE: usize = 200;

/// A type as a message shows it.
pub(super) fn shown(media_type: &str) -> String {
    media_type.chars().take(LONGEST_TYPE).collect()
}

/// Whether an artifactType says no more than that this is an image.
pub(super) fn is_image_config(media_type: &str) -> bool {
    IMAGE_CONFIGS.contains(&media_type)
}

impl Descriptor {
    /// The artifactType, where it says that this is no image.
    pub(super) fn artifact(&self) -> Option<&str> {
        self.artifact_type.as_deref().filter(|kind| !kind.is_empty() && !is_image_config(kind))
    }

    fn is_attestation(&self) -> bool {
        self.annotations.contains_key(ATTESTATION)
    }

    fn has_no_platform(&self) -> bool {
        self.platform.as_ref().is_some_and(|platform| platform.os == UNKNOWN && platform.architecture == UNKNOWN)
    }

    /// Whether it may be an image, or an index of images.
    pub(super) fn may_be_image(&self) -> bool {
        !self.is_attestation() && !self.has_no_platform() && self.artifact().is_none()
    }
}

/// How many entries were left out, and why. Shown behind a message, and as nothing where there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftOut {
    attestations: usize,
    without_platform: usize,
    /// By their types.
    artifacts: BTreeMap<String, usize>,
}

impl LeftOut {
    /// Those of some entries that are no images.
    pub(super) fn of<'a>(entries: impl IntoIterator<Item = &'a Descriptor>) -> Self {
        let mut left_out = Self::default();
        entries.into_iter().for_each(|entry| left_out.note(entry));
        left_out
    }

    fn note(&mut self, entry: &Descriptor) {
        if entry.is_attestation() {
            self.attestations = self.attestations.saturating_add(1);
        } else if let Some(kind) = entry.artifact() {
            self.note_artifact(kind);
        } else if entry.has_no_platform() {
            self.without_platform = self.without_platform.saturating_add(1);
        }
    }

    /// One that turned out to be an artifact.
    pub(super) fn note_artifact(&mut self, kind: &str) {
        let count = self.artifacts.entry(shown(kind)).or_default();
        *count = count.saturating_add(1);
    }

    pub(super) fn add(&mut self, other: Self) {
        self.attestations = self.attestations.saturating_add(other.attestations);
        self.without_platform = self.without_platform.saturating_add(other.without_platform);
        for (kind, more) in other.artifacts {
            let count = self.artifacts.entry(kind).or_default();
            *count = count.saturating_add(more);
        }
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let artifacts = self.artifacts.values().copied().fold(0, usize::saturating_add);
        let mut separator = "; left out: ";
        let counts = [(self.attestations, "attestation"), (self.without_platform, "entry"), (artifacts, "artifact")];
        for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
            f.write_str(std::mem::replace(&mut separator, ", "))?;
            match (what, count) {
                ("entry", 1) => f.write_str("1 entry for unknown/unknown")?,
                ("entry", _) => write!(f, "{count} entries for unknown/unknown")?,
                (_, 1) => write!(f, "1 {what}")?,
                (..) => write!(f, "{count} {what}s")?,
            }
        }
        for (number, kind) in self.artifacts.keys().take(MOST_TYPES).enumerate() {
            write!(f, "{}{kind:?}", if number == 0 { " of type " } else { ", " })?;
        }
        if self.artifacts.len() > MOST_TYPES {
            f.write_str(" and others")?;
        }
        if artifacts > 0 { f.write_str(" (crfs serves no artifacts yet)") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(more: serde_json::Value) -> Descriptor {
        let mut json = serde_json::json!({"mediaType": "m", "digest": "d", "size": 1});
        json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(json).unwrap()
    }

    fn typed(kind: &str) -> Descriptor {
        entry(serde_json::json!({ "artifactType": kind }))
    }

    #[test]
    fn the_type_of_an_images_config_makes_no_artifact() {
        for kind in IMAGE_CONFIGS.into_iter().chain([""]) {
            assert!(typed(kind).may_be_image(), "{kind}");
        }
        let platform = serde_json::json!({"os": "linux", "architecture": "unknown"});
        let plain = [serde_json::json!({}), serde_json::json!({"artifactType": null, "platform": platform})];
        assert!(plain.into_iter().all(|more| entry(more).may_be_image()));
        assert!(!typed("application/vnd.oci.empty.v1+json").may_be_image());
    }

    #[test]
    fn what_is_left_out_is_counted_by_its_reason() {
        assert_eq!(LeftOut::of(&[typed(IMAGE_CONFIGS[0])]).to_string(), "");
        let unknown = serde_json::json!({"os": "unknown", "architecture": "unknown"});
        let attestation =
            serde_json::json!({"platform": unknown, "annotations": {ATTESTATION: "attestation-manifest"}});
        let unknown = serde_json::json!({ "platform": unknown });
        let entries =
            [entry(attestation), entry(unknown.clone()), entry(unknown), typed("a\n"), typed("b"), typed("b")];
        assert!(!entries.iter().any(Descriptor::may_be_image));
        let mut left_out = LeftOut::of(&entries);
        let text = "; left out: 1 attestation, 2 entries for unknown/unknown, 3 artifacts of type \"a\\n\", \"b\" \
            (crfs serves no artifacts yet)";
        assert_eq!(left_out.to_string(), text);
        (0..9).for_each(|number| left_out.note_artifact(&number.to_string()));
        left_out.add(LeftOut::of(&entries));
        let text = left_out.to_string();
        assert!(text.contains("2 attestations, 4 entries") && text.contains("15 artifacts"), "{text}");
        assert!(text.ends_with("\"7\" and others (crfs serves no artifacts yet)"), "{text}");
        let text = LeftOut::of(&[typed("a")]).to_string();
        assert!(text.starts_with("; left out: 1 artifact of type \"a\" ("), "{text}");
    }
}
