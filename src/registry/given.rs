//! Credentials that podman hands over while it pulls (its `additional-layer-store-auth-helper`), and how they are kept: as a credential file of our own.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::reference::ImageRef;
use super::secret::{Identity, Secret};
use super::{Error, Hosts, Reference, credentials};

/// Repositories whose credentials are kept: more than anybody has.
const MOST: usize = 4096;

/// What podman hands over: `{"REFERENCE": {"username": "...", "password": "...", "identityToken": "..."}}`, by the reference that it has asked a
/// registry for. An entry without a name and a token says that it has asked as nobody.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Given(BTreeMap<String, Entry>);

#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    #[serde(rename = "identityToken")]
    token: String,
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A credential file, as far as it is written here.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    auths: BTreeMap<String, Auth>,
}

#[derive(Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Auth {
    #[serde(skip_serializing_if = "String::is_empty")]
    auth: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    identitytoken: String,
}

impl Given {
    /// What a podman has written; `None`: it is something else.
    #[must_use]
    pub fn read(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    /// The credential file `kept` with these in it; `None`: it stays as it is. What the files `others` say as well is not kept a second time, so that a
    /// later login there counts.
    ///
    /// # Errors
    /// Where one of those files is there but cannot be understood.
    pub async fn keep(self, kept: &[u8], others: &[PathBuf], hosts: &Hosts) -> Result<Option<Vec<u8>>, Error> {
        // One that is damaged holds nothing that podman would not hand over again.
        let mut file: Kept = serde_json::from_slice(kept).unwrap_or_default();
        let mut is_changed = false;
        for (reference, entry) in self.0 {
            let Ok(ImageRef::Registry(Reference { registry, repository, .. })) = reference.parse() else { continue };
            let key = format!("{registry}/{repository}");
            let known = credentials::find(others, &hosts.disks, &registry, &repository, &hosts.waits).await;
            let is_known = |identity: &Identity| {
                known.as_ref().is_ok_and(|found| found.credentials().is_some_and(|found| found.identity == *identity))
            };
            let auth = entry.identity().filter(|identity| !is_known(identity)).map(|_| entry.auth());
            is_changed |= match auth {
                None => file.auths.remove(&key).is_some(),
                Some(auth) if file.auths.get(&key) == Some(&auth) => false,
                Some(_) if file.auths.len() >= MOST && !file.auths.contains_key(&key) => false,
                Some(auth) => {
                    file.auths.insert(key, auth);
                    true
                }
            };
        }
        Ok(if is_changed { serde_json::to_vec(&file).ok() } else { None })
    }
}

impl Entry {
    fn identity(&self) -> Option<Identity> {
        if !self.token.is_empty() {
            return Some(Identity::Token(Secret::new(self.token.clone())));
        }
        let user = self.username.clone();
        (!user.is_empty()).then(|| Identity::Password { user, password: Secret::new(self.password.clone()) })
    }

    fn auth(&self) -> Auth {
        if self.token.is_empty() {
            return Auth { auth: STANDARD.encode(format!("{}:{}", self.username, self.password)), ..Auth::default() };
        }
        Auth { identitytoken: self.token.clone(), ..Auth::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDED: &str = r#"{"r.io/a/b:1": {"username": "ann", "password": "pass:word"}}"#;

    async fn kept(handed: &str, before: &str, others: &[PathBuf]) -> Option<String> {
        let given = Given::read(handed.as_bytes()).unwrap();
        let file = given.keep(before.as_bytes(), others, &Hosts::default()).await.unwrap();
        file.map(|file| String::from_utf8(file).unwrap())
    }

    #[tokio::test]
    async fn what_podman_hands_over_is_found_where_a_registry_asks() {
        let text = kept(HANDED, "", &[]).await.unwrap();
        assert_eq!(kept(HANDED, &text, &[]).await, None);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        let (files, hosts) = ([file.path().to_owned()], Hosts::default());
        let found = credentials::find(&files, &hosts.disks, "r.io", "a/b", &hosts.waits).await.unwrap();
        let Identity::Password { user, password } = &found.credentials().unwrap().identity else { panic!() };
        assert_eq!((&**user, password.reveal()), ("ann", "pass:word"));
        let other = credentials::find(&files, &hosts.disks, "r.io", "a/c", &hosts.waits).await.unwrap();
        assert!(other.credentials().is_none());
        // A tag more of the same, as somebody else, and as nobody.
        let token = r#"{"r.io/a/b:2": {"identityToken": "abc"}}"#;
        let text = kept(token, &text, &[]).await.unwrap();
        assert_eq!(text, r#"{"auths":{"r.io/a/b":{"identitytoken":"abc"}}}"#);
        assert_eq!(kept(r#"{"r.io/a/b:1": {}}"#, &text, &[]).await.as_deref(), Some(r#"{"auths":{}}"#));
    }

    #[tokio::test]
    async fn what_a_login_says_as_well_is_not_kept() {
        let login = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(login.path(), kept(HANDED, "", &[]).await.unwrap()).unwrap();
        let files = [login.path().to_owned()];
        assert_eq!(kept(HANDED, "", &files).await, None);
        assert!(kept(&HANDED.replace("ann", "bob"), "", &files).await.is_some());
    }

    #[tokio::test]
    async fn other_texts_are_refused_and_paths_passed_over() {
        for other in ["", "[]", "{", r#"{"r.io/a": "x"}"#] {
            assert!(Given::read(other.as_bytes()).is_none(), "{other}");
        }
        assert_eq!(kept(r#"{"oci:/srv/a": {"username": "u", "password": "p"}, "": {}}"#, "", &[]).await, None);
        let shown = format!("{:?}", Given::read(HANDED.as_bytes()).unwrap());
        assert!(shown.contains("r.io/a/b:1") && !shown.contains("pass"), "{shown}");
    }
}
