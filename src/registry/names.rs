//! Which entry of a layout is meant, by its names.
//!
//! ```text
//! org.opencontainers.image.ref.name  a tag; podman writes the whole name
//! io.containerd.image.name           the whole name, as docker and containerd write it: docker.io/library/alpine:3
//! ```
//!
//! A whole name may be typed as one in a registry, so `alpine:3` means that one.

use std::collections::HashSet;

use super::Error;
use super::grammar;
use super::left_out::LeftOut;
use super::manifest::Descriptor;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const WHOLE_NAME: &str = "io.containerd.image.name";

/// The tag that is read where several are there and none is named.
const DEFAULT_TAG: &str = "latest";

/// The entry that a tag or a name means; without one the only image, or the one called latest. `image` names the layout in errors.
pub(super) fn choose(image: &str, wanted: Option<&str>, entries: Vec<Descriptor>) -> Result<Descriptor, Error> {
    let names = || entries.iter().flat_map(names_of).cloned().collect();
    let image = image.to_owned();
    let left_out = Box::new(LeftOut::of(&entries));
    let (images, others): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| entry.may_be_image());
    if let Some(wanted) = wanted {
        // What is no image says so itself, once it is read.
        let named = |entries| only(&image, wanted, called(wanted, entries));
        let found = named(&images)?.map_or_else(|| named(&others), |found| Ok(Some(found)))?;
        return found.ok_or_else(|| Error::NoTag { image, tag: wanted.to_owned(), tags: names(), left_out });
    }
    match (different(&images).as_slice(), different(&others).as_slice()) {
        ([only], _) | ([], [only]) => Ok((*only).clone()),
        ([], _) => Err(Error::NoImage { image, left_out }),
        _ => {
            let latest = only(&image, DEFAULT_TAG, called(DEFAULT_TAG, &images))?;
            latest.ok_or_else(|| Error::AmbiguousLayout { image, tags: names(), left_out })
        }
    }
}

fn names_of(entry: &Descriptor) -> impl Iterator<Item = &String> {
    [REF_NAME, WHOLE_NAME].into_iter().filter_map(|key| entry.annotations.get(key))
}

/// Those that have a name as it is written; else those whose whole name it is when both are completed.
fn called<'a>(wanted: &str, entries: &[&'a Descriptor]) -> Vec<&'a Descriptor> {
    let with = |is_it: &dyn Fn(&String) -> bool| -> Vec<&Descriptor> {
        entries.iter().copied().filter(|entry| names_of(entry).any(is_it)).collect()
    };
    let exact = with(&|name| name == wanted);
    match grammar::parse(wanted) {
        // A tag is no name: alpine is not docker.io/library/alpine:latest.
        Ok(whole) if exact.is_empty() => {
            with(&|name| name.contains(['/', ':']) && grammar::parse(name).is_ok_and(|name| name == whole))
        }
        _ => exact,
    }
}

/// The only image among those that have a name.
fn only(image: &str, name: &str, entries: Vec<&Descriptor>) -> Result<Option<Descriptor>, Error> {
    match different(&entries).as_slice() {
        [] => Ok(None),
        [only] => Ok(Some((*only).clone())),
        several => Err(Error::SharedName {
            image: image.to_owned(),
            name: name.to_owned(),
            owners: several.iter().map(|entry| owner(entry, name)).collect(),
        }),
    }
}

/// An entry as it can be told from others of the same name.
fn owner(entry: &Descriptor, shared: &str) -> String {
    let own: Vec<_> = names_of(entry).filter(|name| *name != shared).map(String::as_str).collect();
    if own.is_empty() { entry.digest.clone() } else { format!("{} ({})", entry.digest, own.join(", ")) }
}

/// One entry for each digest: an image that has two names has two.
fn different<'a>(entries: &[&'a Descriptor]) -> Vec<&'a Descriptor> {
    let mut seen = HashSet::new();
    entries.iter().copied().filter(|entry| seen.insert(&entry.digest)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry of that digest, with its two names where they are not empty.
    fn entry(digest: &str, tag: &str, whole: &str) -> Descriptor {
        let names = [(REF_NAME, tag), (WHOLE_NAME, whole)].into_iter().filter(|(_, name)| !name.is_empty());
        let annotations: serde_json::Map<_, _> = names.map(|(key, name)| (key.to_owned(), name.into())).collect();
        serde_json::from_value(serde_json::json!({"digest": digest, "size": 1, "annotations": annotations})).unwrap()
    }

    fn artifact(digest: &str, tag: &str) -> Descriptor {
        let mut artifact = entry(digest, tag, "");
        artifact.artifact_type = Some("text/x".to_owned());
        artifact
    }

    fn found(wanted: Option<&str>, entries: &[Descriptor]) -> Result<String, String> {
        let found = choose("oci:x", wanted, entries.to_vec());
        found.map(|entry| entry.digest).map_err(|error| error.to_string())
    }

    fn refusal(wanted: Option<&str>, entries: &[Descriptor]) -> String {
        found(wanted, entries).unwrap_err()
    }

    #[test]
    fn a_tag_is_found_and_a_missing_one_is_listed() {
        let entries = [entry("A", "a", ""), entry("none", "", ""), entry("B", "b", "docker.io/x/b:b")];
        assert_eq!(found(Some("b"), &entries).unwrap(), "B");
        let error = refusal(Some("c"), &entries);
        assert!(error.contains("\"c\"") && error.ends_with("a, b, docker.io/x/b:b"), "{error}");
        let error = refusal(None, &entries);
        assert!(error.contains("a, b, docker.io/x/b:b"), "{error}");
    }

    #[test]
    fn without_a_tag_the_only_image_or_latest_is_meant() {
        assert_eq!(found(None, &[artifact("x", "y"), entry("A", "a", "")]).unwrap(), "A");
        assert_eq!(found(None, &[entry("A", "a", ""), entry("A", "b", "")]).unwrap(), "A", "one image of two names");
        assert_eq!(found(None, &[entry("A", "a", ""), entry("L", "latest", "")]).unwrap(), "L");
        assert_eq!(found(None, &[artifact("x", "")]).unwrap(), "x", "its manifest says what it is");
        assert_eq!(refusal(None, &[]), "oci:x holds no image");
        let error = refusal(None, &[artifact("x", ""), artifact("y", "")]);
        assert!(error.starts_with("oci:x holds no image; left out: 2 artifacts of type \"text/x\""), "{error}");
    }

    #[test]
    fn a_whole_name_is_typed_as_in_a_registry() {
        let entries = [
            entry("A", "3", "docker.io/library/alpine:3"),
            entry("B", "latest", "ghcr.io/o/b:latest"),
            entry("C", "localhost/c:1", ""),
            entry("D", "", "docker.io/library/d:latest"),
        ];
        let cases = [
            ("docker.io/library/alpine:3", "A"),
            ("alpine:3", "A"),
            ("3", "A"),
            ("ghcr.io/o/b", "B"),
            ("latest", "B"),
            ("localhost/c:1", "C"),
            ("d", "D"),
        ];
        for (wanted, digest) in cases {
            assert_eq!(found(Some(wanted), &entries).unwrap(), digest, "{wanted}");
        }
        for wanted in ["alpine", "b", "c:1", "docker.io/library/3:latest"] {
            assert!(refusal(Some(wanted), &entries).contains("no tag"), "{wanted}");
        }
        // A tag that is spelled like an image of Docker Hub is still a tag.
        assert_eq!(found(Some("alpine"), &[entry("A", "3", "alpine:3"), entry("B", "alpine", "")]).unwrap(), "B");
    }

    #[test]
    fn a_name_of_two_images_is_refused_and_both_are_named() {
        let entries =
            [entry("A", "latest", "docker.io/library/a:latest"), entry("B", "latest", "b"), entry("C", "c", "")];
        for wanted in [Some("latest"), None] {
            let error = refusal(wanted, &entries);
            assert!(error.contains("A (docker.io/library/a:latest)") && error.contains("B (b)"), "{error}");
        }
        assert_eq!(found(Some("a"), &entries).unwrap(), "A");
        let whole = [entry("A", "", "docker.io/library/a:1"), entry("B", "", "a:1")];
        assert!(refusal(Some("index.docker.io/a:1"), &whole).contains("A (docker.io/library/a:1), B (a:1)"));
        assert_eq!(found(Some("a:1"), &whole).unwrap(), "B", "as it is written");
        // What is no image takes no name from an image.
        assert_eq!(found(Some("t"), &[artifact("x", "t"), entry("A", "t", "")]).unwrap(), "A");
        assert!(refusal(Some("t"), &[artifact("x", "t"), artifact("y", "t")]).contains("x, y"));
    }
}
