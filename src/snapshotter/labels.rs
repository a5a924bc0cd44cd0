//! What containerd says with a snapshot of the layer that it is for (docs/containerd.md).

use std::collections::BTreeMap;

use super::error::{Code, Status};
use crate::blob::Digest;

/// The chain id under which containerd looks for the layer.
pub(super) const REF: &str = "containerd.io/snapshot.ref";
const IMAGE: &str = "containerd.io/snapshot/cri.image-ref";
const LAYER: &str = "containerd.io/snapshot/cri.layer-digest";
const MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";
const USERS: &str = "containerd.io/snapshot/uidmapping";
const GROUPS: &str = "containerd.io/snapshot/gidmapping";

/// What crfs says itself: how a layer is there, and why it is unpacked.
pub(super) const LAZY: &str = "containerd.io/snapshot/crfs.lazy";
pub(super) const REASON: &str = "containerd.io/snapshot/crfs.reason";

/// Bytes of a reason in a label.
const LONGEST_REASON: usize = 2000;

pub(super) type Labels = BTreeMap<String, String>;

/// A layer that is asked for by its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// NAME@DIGEST: a tag may lead elsewhere by now.
    pub(super) reference: String,
    pub(super) blob: Digest,
    pub(super) chain: String,
}

/// What is asked for, or why that cannot be told. `None`: it is no layer of an image.
pub(super) fn wanted(labels: &Labels) -> Option<Result<Wanted, String>> {
    let chain = labels.get(REF)?.clone();
    let label = |name: &str| {
        labels.get(name).ok_or_else(|| {
            format!(
                "containerd has not said which image it is for (no label {name}): `crfs snapshotter config` prints what its configuration lacks"
            )
        })
    };
    let found = || {
        let (image, layer, manifest) = (label(IMAGE)?, label(LAYER)?, label(MANIFEST)?);
        let blob = layer.parse().map_err(|_| format!("the label {LAYER} has no digest: {layer:?}"))?;
        let manifest: Digest =
            manifest.parse().map_err(|_| format!("the label {MANIFEST} has no digest: {manifest:?}"))?;
        Ok(Wanted { reference: format!("{}@{manifest}", untagged(image)), blob, chain })
    };
    Some(found())
}

/// A reference without its tag and digest.
fn untagged(image: &str) -> &str {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    let last = name.rfind('/').map_or(0, |slash| slash.saturating_add(1));
    match name.get(last..).and_then(|last| last.find(':')) {
        Some(colon) => name.get(..last.saturating_add(colon)).unwrap_or(name),
        None => name,
    }
}

/// As much of a reason as fits into a label.
pub(super) fn shortened(reason: &str) -> String {
    reason
        .chars()
        .scan(0_usize, |length, next| {
            *length = length.saturating_add(next.len_utf8());
            (*length <= LONGEST_REASON).then_some(next)
        })
        .collect()
}

/// Options of a mount whose owners are mapped, and the user and the group that root is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) options: Vec<String>,
    pub(super) root: Option<(u32, u32)>,
}

pub(super) fn mapping(labels: &Labels) -> Result<Mapping, Status> {
    let (users, groups) = (labels.get(USERS), labels.get(GROUPS));
    let (Some(users), Some(groups)) = (users, groups) else {
        return match (users, groups) {
            (None, None) => Ok(Mapping::default()),
            _ => Err(Status::new(Code::InvalidArgument, format!("{USERS} and {GROUPS} come together"))),
        };
    };
    let wrong = |text: &str| Status::new(Code::InvalidArgument, format!("{text:?} maps no root"));
    let root = |text: &String| root_of(text).ok_or_else(|| wrong(text));
    Ok(Mapping {
        root: Some((root(users)?, root(groups)?)),
        options: vec![format!("uidmap={users}"), format!("gidmap={groups}")],
    })
}

/// What 0 is by a mapping, `inside:outside:count`, of which there may be several.
fn root_of(mapping: &str) -> Option<u32> {
    let mut root = None;
    for one in mapping.split(',') {
        let mut numbers = one.split(':').map(str::parse::<u32>);
        let (inside, outside, count) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
        if numbers.next().is_some() || outside.checked_add(count).is_none() {
            return None;
        }
        if inside == 0 && count > 0 {
            root = Some(outside);
        }
    }
    root
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_meant_by_their_digests() {
        assert_eq!(untagged("127.0.0.1:5000/a/b:v1"), "127.0.0.1:5000/a/b");
        assert_eq!(untagged("docker.io/library/alpine"), "docker.io/library/alpine");
        assert_eq!(untagged("r.io/a:v1@sha256:00"), "r.io/a");
        assert_eq!(untagged(""), "");
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut labels = Labels::new();
        assert_eq!(wanted(&labels), None);
        labels.insert(REF.to_owned(), "sha256:c".to_owned());
        assert!(wanted(&labels).unwrap().unwrap_err().contains("cri.image-ref"));
        let digest = Digest::of(b"").to_string();
        labels.extend(
            [(IMAGE, "r.io/a:1"), (LAYER, &digest), (MANIFEST, "x")].map(|(k, v)| (k.to_owned(), v.to_owned())),
        );
        assert!(wanted(&labels).unwrap().unwrap_err().contains("cri.manifest-digest"));
        labels.insert(MANIFEST.to_owned(), digest.clone());
        assert_eq!(wanted(&labels).unwrap().unwrap().reference, format!("r.io/a@{digest}"));
    }

    #[test]
    fn owners_are_mapped() {
        let labels = |users: &str, groups: &str| {
            Labels::from([(USERS.to_owned(), users.to_owned()), (GROUPS.to_owned(), groups.to_owned())])
        };
        let mapped = mapping(&labels("0:100000:65536", "1:5:1,0:7:1")).unwrap();
        assert_eq!(mapped.root, Some((100_000, 7)));
        assert_eq!(mapped.options, ["uidmap=0:100000:65536", "gidmap=1:5:1,0:7:1"]);
        for wrong in ["", "1:2:3", "0:1", "0:1:2:3", "0:4294967295:2", "a:b:c"] {
            assert!(mapping(&labels(wrong, "0:1:1")).is_err(), "{wrong}");
        }
        assert!(mapping(&Labels::from([(USERS.to_owned(), "0:1:1".to_owned())])).is_err());
    }

    #[test]
    fn reasons_fit_into_labels() {
        assert_eq!(shortened("why"), "why");
        assert!(shortened(&"ä".repeat(LONGEST_REASON)).len() <= LONGEST_REASON);
    }
}
