//! Which images may be had at all: policy.json (containers-policy.json(5); package signature of containers/image 5.36).
//!
//! crfs checks no signatures. So what demands one is refused, and so is everything where the file cannot be understood. As there, keys that
//! nobody knows, or that come twice, are an error: who misspells a rule means it.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::super::ImageRef;
use super::super::grammar::Reference;
use super::error::Error;
use super::places::Places;
use super::read;
use crate::toml_file;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    default: Requirements,
    #[serde(default)]
    transports: Unique<Unique<Requirements>>,
}

/// All of them have to be met; there is at least one.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Vec<Requirement>")]
struct Requirements(Vec<Requirement>);

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
enum Requirement {
    InsecureAcceptAnything(Nothing),
    Reject(Nothing),
    SignedBy(serde::de::IgnoredAny),
    SignedBaseLayer(serde::de::IgnoredAny),
    SigstoreSigned(serde::de::IgnoredAny),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

impl TryFrom<Vec<Requirement>> for Requirements {
    type Error = &'static str;

    fn try_from(all: Vec<Requirement>) -> Result<Self, Self::Error> {
        if all.is_empty() { Err("a list of requirements is empty") } else { Ok(Self(all)) }
    }
}

/// An object in which no key comes twice.
#[derive(Debug)]
struct Unique<T>(BTreeMap<String, T>);

impl<T> Default for Unique<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Keys<T> {
            type Value = Unique<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut found = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, T>()? {
                    if found.insert(key.clone(), value).is_some() {
                        return Err(A::Error::custom(format!("{key:?} comes twice")));
                    }
                }
                Ok(Unique(found))
            }
        }

        deserializer.deserialize_map(Keys(PhantomData))
    }
}

/// # Errors
/// Where the policy of this machine does not allow an image, or cannot be understood.
pub(in crate::registry) fn permits(places: &Places, image: &ImageRef) -> Result<(), Error> {
    for path in [&places.user, &places.system].into_iter().flatten().map(|dir| dir.join("policy.json")) {
        if read::exists(&path)? {
            let text = read::file(&path)?.unwrap_or_default();
            return permits_by(&path, &text, image);
        }
    }
    Ok(())
}

pub(super) fn permits_by(path: &Path, text: &str, image: &ImageRef) -> Result<(), Error> {
    let policy: Policy = serde_json::from_str(text).map_err(|error| toml_file::Error::Syntax {
        path: path.to_owned(),
        line: error.line(),
        reason: format!("not a policy of images: {error}"),
    })?;
    let (scope, requirements) = policy.requirements(image);
    for requirement in &requirements.0 {
        let (image, path, scope) = (image.to_string(), path.to_owned(), scope.clone());
        let kind = match requirement {
            Requirement::InsecureAcceptAnything(Nothing {}) => continue,
            Requirement::Reject(Nothing {}) => return Err(Error::Rejected { image, path, scope }),
            Requirement::SignedBy(_) => "signedBy",
            Requirement::SignedBaseLayer(_) => "signedBaseLayer",
            Requirement::SigstoreSigned(_) => "sigstoreSigned",
        };
        return Err(Error::SignatureWanted { image, path, scope, kind: kind.to_owned() });
    }
    Ok(())
}

impl Policy {
    /// What is demanded of an image, and what says so.
    fn requirements(&self, image: &ImageRef) -> (String, &Requirements) {
        let (transport, scopes) = scopes(image);
        let own = self.transports.0.get(transport);
        let found = own.and_then(|own| {
            let known = |scope: &String| own.0.get(scope).map(|found| (scope.clone(), found));
            scopes.iter().find_map(known)
        });
        match found {
            Some((scope, found)) if scope.is_empty() => (format!("the transport {transport}"), found),
            Some((scope, found)) => (format!("{transport}: {scope}"), found),
            None => ("all images (default)".to_owned(), &self.default),
        }
    }
}

/// The transport of an image, and the scopes that mean it, the narrowest first.
fn scopes(image: &ImageRef) -> (&'static str, Vec<String>) {
    let (transport, mut scopes) = match image {
        ImageRef::Registry(reference) => ("docker", of_reference(reference)),
        ImageRef::Layout { dir, .. } => ("oci", of_path(dir)),
        ImageRef::Archive { file, .. } => ("oci-archive", of_path(file)),
        ImageRef::DockerArchive { .. } => ("docker-archive", Vec::new()),
    };
    scopes.push(String::new());
    (transport, scopes)
}

/// The image, its repository, the namespaces around it, the host, and `*.` before what is behind each dot of the host.
fn of_reference(reference: &Reference) -> Vec<String> {
    let name = format!("{}/{}", reference.registry, reference.repository);
    let identity = match (&reference.digest, &reference.tag) {
        (Some(digest), _) => format!("{name}@{digest}"),
        (None, Some(tag)) => format!("{name}:{tag}"),
        (None, None) => name.clone(),
    };
    let mut scopes = vec![identity, name.clone()];
    scopes.extend(name.rmatch_indices('/').filter_map(|(end, _)| name.get(..end)).map(str::to_owned));
    let host = reference.registry.split(':').next().unwrap_or_default();
    scopes.extend(host.match_indices('.').filter_map(|(dot, _)| host.get(dot..)).map(|domain| format!("*{domain}")));
    scopes
}

/// A path without symlinks, and the directories above it but for the root.
fn of_path(path: &Path) -> Vec<String> {
    let real: PathBuf = read::real_path(path);
    let above = real.ancestors().filter(|dir| dir.parent().is_some());
    above.map(|dir| dir.display().to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCEPT: &str = r#"[{"type":"insecureAcceptAnything"}]"#;
    const REJECT: &str = r#"[{"type":"reject"}]"#;

    fn check(policy: &str, image: &str) -> Result<(), Error> {
        permits_by(Path::new("/policy.json"), policy, &image.parse().unwrap())
    }

    #[test]
    fn the_narrowest_scope_decides() {
        let digest = format!("a.b.io:5/n/r@sha256:{}", "0".repeat(64));
        let scopes = [&digest, "a.b.io:5/n/r:1", "a.b.io:5/n/r", "a.b.io:5/n", "a.b.io:5", "*.b.io", "*.io", ""];
        for (number, scope) in scopes.iter().enumerate() {
            // What is wider says the contrary.
            let rest = scopes.iter().skip(number + 1).map(|scope| format!("{scope:?}:{ACCEPT}"));
            let all = std::iter::once(format!("{scope:?}:{REJECT}")).chain(rest).collect::<Vec<_>>().join(",");
            let policy = format!(r#"{{"default":{ACCEPT},"transports":{{"docker":{{{all}}}}}}}"#);
            let image = if number == 0 { &digest } else { "a.b.io:5/n/r:1" };
            let error = check(&policy, image).unwrap_err();
            assert!(matches!(&error, Error::Rejected { scope: found, .. } if found.ends_with(scope)), "{error}");
            check(&policy, "other.org/x:1").unwrap_or_else(|error| assert!(scope.is_empty(), "{error}"));
        }
        let policy =
            format!(r#"{{"default":{REJECT},"transports":{{"docker":{{"b.io:5":{ACCEPT}, "x.io/a":{ACCEPT}}}}}}}"#);
        for refused in ["b.io/x", "x.b.io:5/x", "x.io/ab", "docker.io/library/x", "oci:/x"] {
            let error = check(&policy, refused).unwrap_err().to_string();
            assert!(error.contains("is refused: /policy.json says \"reject\" for all images (default)"), "{error}");
        }
        check(&policy, "b.io:5/x").unwrap();
        check(&policy, "x.io/a:7").unwrap();
    }

    #[test]
    fn a_signature_that_cannot_be_checked_is_missed() {
        for kind in ["signedBy", "signedBaseLayer", "sigstoreSigned"] {
            let policy = format!(
                r#"{{"default":[{{"type":"insecureAcceptAnything"}},{{"type":"{kind}","keyType":"x","y":{{}}}}]}}"#
            );
            let error = check(&policy, "a.io/x").unwrap_err().to_string();
            assert!(error.contains(&format!("({kind})")) && error.contains("a.io/x:latest"), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_understood_refuses() {
        for policy in [
            "",
            "{",
            "[]",
            "{}",
            r#"{"default":[]}"#,
            r#"{"default":[{"type":"trust"}]}"#,
            r#"{"default":[{"type":"reject","type":"reject"}]}"#,
            r#"{"default":[{"type":"insecureAcceptAnything","more":1}]}"#,
            r#"{"default":[{}]}"#,
            &format!(r#"{{"default":{ACCEPT},"default":{ACCEPT}}}"#),
            &format!(r#"{{"default":{ACCEPT},"other":{ACCEPT}}}"#),
            &format!(r#"{{"default":{ACCEPT},"transports":{{"docker":{{"a":{ACCEPT},"a":{ACCEPT}}}}}}}"#),
            &format!(r#"{{"default":{ACCEPT},"transports":{{"docker":{{}},"docker":{{}}}}}}"#),
            &format!(r#"{{"default":{ACCEPT},"transports":{{"docker":{{"a":[]}}}}}}"#),
        ] {
            let error = check(policy, "a.io/x").unwrap_err();
            assert!(matches!(error, Error::File(toml_file::Error::Syntax { .. })), "{policy}: {error}");
        }
    }

    #[test]
    fn images_on_disk_are_known_by_their_real_path() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("real");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
        let policy = |transport: &str, scope: &str| {
            format!(r#"{{"default":{ACCEPT},"transports":{{"{transport}":{{"{scope}":{REJECT}}}}}}}"#)
        };
        let image = format!("oci:{}/link:t", dir.path().display());
        for scope in [real.to_str().unwrap(), real.parent().unwrap().to_str().unwrap(), ""] {
            assert!(check(&policy("oci", scope), &image).is_err(), "{scope}");
        }
        check(&policy("oci", "/elsewhere"), &image).unwrap();
        check(&policy("oci-archive", ""), &image).unwrap();
        assert!(check(&policy("oci-archive", "/a"), "oci-archive:/a/b.tar").is_err());
        assert!(check(&policy("docker-archive", ""), "docker-archive:/a/b.tar").is_err());
    }

    #[test]
    fn the_users_file_takes_the_place_of_the_machines() {
        let [user, system] = [0; 2].map(|_| tempfile::tempdir().unwrap());
        let places =
            Places { user: Some(user.path().to_owned()), system: Some(system.path().to_owned()), ..Places::default() };
        let image: ImageRef = "a.io/x".parse().unwrap();
        permits(&places, &image).unwrap();
        std::fs::write(system.path().join("policy.json"), format!(r#"{{"default":{REJECT}}}"#)).unwrap();
        assert!(permits(&places, &image).unwrap_err().to_string().contains(system.path().to_str().unwrap()));
        std::fs::write(user.path().join("policy.json"), format!(r#"{{"default":{ACCEPT}}}"#)).unwrap();
        permits(&places, &image).unwrap();
    }
}
