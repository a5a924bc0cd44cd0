//! Who we are to a registry: podman's and docker's credential files (containers-auth.json(5), docker's config.json).
//!
//! ```text
//! {"auths":       {"ghcr.io/org/repo": {"auth": base64("user:password"), "identitytoken": "..."}},
//!  "credHelpers": {"ghcr.io": "NAME"},       docker-credential-NAME get
//!  "credsStore":  "NAME"}                     the same for every registry
//! ```
//!
//! The first file that knows the repository decides. Files are read when a registry asks, and read again when it asks again:
//! a login in another terminal takes effect.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;

use super::grammar::{DOCKER_HUB, DOCKER_HUB_HOST, DOCKER_HUB_OF_OLD};
use super::secret::{Identity, Secret};
use super::silent::Disks;
use super::waits::{Waiting, Waits};
use super::{Error, helper};
use crate::sys::outside;

/// The name that docker's own registry has in docker's files.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// Larger than any real one; a bound against a wrong path.
const LARGEST_FILE: u64 = 4 << 20;

/// How long its filesystem may take: a home may be on NFS.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// Where credentials came from: all that is ever said of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    File(PathBuf),
    Helper { name: String, file: PathBuf },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Helper { name, file } => write!(f, "docker-credential-{name} (named in {})", file.display()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) identity: Identity,
    pub(super) origin: Origin,
}

/// What the credential files say of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Credentials(Credentials),
    HelperFailed(HelperFailure),
}

/// A credential helper that gave no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelperFailure {
    pub helper: Origin,
    pub reason: String,
}

impl Found {
    pub(super) fn credentials(&self) -> Option<&Credentials> {
        match self {
            Self::Credentials(credentials) => Some(credentials),
            Self::Nothing | Self::HelperFailed(_) => None,
        }
    }

    pub(super) fn login(&self) -> Login {
        match self {
            Self::Nothing => Login::Nobody,
            Self::Credentials(credentials) => Login::Known(credentials.origin.clone()),
            Self::HelperFailed(failure) => Login::HelperFailed(Box::new(failure.clone())),
        }
    }
}

/// Who a registry was told that we are, as far as that is ever said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    Nobody,
    Known(Origin),
    HelperFailed(Box<HelperFailure>),
}

/// What decides which credential files are asked, as plain values.
#[derive(Debug, Clone, Default)]
pub struct AuthPlaces {
    /// `--authfile` or `$REGISTRY_AUTH_FILE`: asked alone.
    pub authfile: Option<PathBuf>,
    /// `$XDG_RUNTIME_DIR`; where it is not set, `/run/containers/UID` stands for its `containers`.
    pub xdg_runtime_dir: Option<PathBuf>,
    pub xdg_config_home: Option<PathBuf>,
    /// `$DOCKER_CONFIG`: the directory of docker's config.json.
    pub docker_config: Option<PathBuf>,
    pub home: Option<PathBuf>,
    pub uid: u32,
}

/// The credential files in podman's order (containers-auth.json(5)).
#[must_use]
pub fn auth_files(places: &AuthPlaces) -> Vec<PathBuf> {
    if let Some(only) = &places.authfile {
        return vec![only.clone()];
    }
    let runtime = match &places.xdg_runtime_dir {
        Some(dir) => dir.join("containers/auth.json"),
        None => PathBuf::from(format!("/run/containers/{}/auth.json", places.uid)),
    };
    let in_home = |below: &str| places.home.as_ref().map(|home| home.join(below));
    let config = places.xdg_config_home.clone().or_else(|| in_home(".config"));
    let docker = places.docker_config.clone().or_else(|| in_home(".docker"));
    let rest = [config.map(|dir| dir.join("containers/auth.json")), docker.map(|dir| dir.join("config.json"))];
    std::iter::once(runtime).chain(rest.into_iter().flatten()).collect()
}

#[derive(Default, Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: HashMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: HashMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    identitytoken: Option<String>,
}

/// The credentials for a repository: of the first file that has any.
///
/// # Errors
/// Where a file is there but cannot be understood; a missing one is passed over.
pub(super) async fn find(
    files: &[PathBuf],
    disks: &Disks,
    registry: &str,
    repository: &str,
    waits: &Arc<Waits>,
) -> Result<Found, Error> {
    let mut found = Found::Nothing;
    for path in files {
        let asked = path.clone();
        let Some(file) = disks.ask(path, TIME_LIMIT, move || read(&asked)).await? else { continue };
        match find_in(&file, path, registry, repository, waits).await? {
            Found::Nothing => {}
            Found::Credentials(credentials) => return Ok(Found::Credentials(credentials)),
            // Another file may know more.
            Found::HelperFailed(failure) => found = Found::HelperFailed(failure),
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Option<AuthFile>, Error> {
    let error = |reason: String| Error::Credentials { path: path.to_owned(), reason };
    let text = match outside::read(path, LARGEST_FILE) {
        Ok(text) => text,
        Err(source) if matches!(source.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(source) => return Err(error(source.to_string())),
    };
    if text.trim_ascii().is_empty() {
        return Ok(None);
    }
    // serde_json's message may quote a value of the file: only the place is told.
    let parsed = serde_json::from_slice(&text);
    parsed.map(Some).map_err(|source| error(format!("no valid JSON at line {}", source.line())))
}

/// What is in a credential file, without any secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surveyed {
    /// Registries and repositories with credentials in the file itself.
    pub known: usize,
    /// The names of helpers, `NAME` of `docker-credential-NAME`.
    pub helpers: Vec<String>,
}

/// Reads a credential file as a pull would; `None`: there is none. Blocking.
///
/// # Errors
/// Where it cannot be read or understood.
pub fn survey_credentials(path: &Path) -> Result<Option<Surveyed>, Error> {
    let Some(file) = read(path)? else { return Ok(None) };
    let identities = file.auths.values().map(|entry| entry.identity(path)).collect::<Result<Vec<_>, _>>()?;
    let named = file.helpers.values().chain(&file.store).filter(|name| !name.is_empty());
    let mut helpers: Vec<_> = named.cloned().collect();
    helpers.sort();
    helpers.dedup();
    Ok(Some(Surveyed { known: identities.into_iter().flatten().count(), helpers }))
}

async fn find_in(
    file: &AuthFile,
    path: &Path,
    registry: &str,
    repository: &str,
    waits: &Arc<Waits>,
) -> Result<Found, Error> {
    for key in keys(registry, repository) {
        if let Some(name) = file.helpers.get(&key) {
            return Ok(ask_helper(name, &key, path, waits).await);
        }
    }
    let mut entries: Vec<_> = file.auths.iter().map(|(key, entry)| (normalized(key), key, entry)).collect();
    // Two spellings of one key: the plain one first.
    entries.sort_by_key(|(_, key, _)| key.len());
    for key in keys(registry, repository) {
        for (_, _, entry) in entries.iter().filter(|(normalized, _, _)| *normalized == key) {
            if let Some(identity) = entry.identity(path)? {
                return Ok(Found::Credentials(Credentials { identity, origin: Origin::File(path.to_owned()) }));
            }
        }
    }
    match &file.store {
        Some(name) if !name.is_empty() => {
            let key = if registry == DOCKER_HUB { DOCKER_HUB_KEY } else { registry };
            Ok(ask_helper(name, key, path, waits).await)
        }
        _ => Ok(Found::Nothing),
    }
}

/// A helper that fails is no reason to fail a pull that may need no credentials: the registry's answer decides.
async fn ask_helper(name: &str, key: &str, path: &Path, waits: &Arc<Waits>) -> Found {
    let origin = Origin::Helper { name: name.to_owned(), file: path.to_owned() };
    let _waiting = waits.begin(Waiting::for_program(origin.to_string()));
    match helper::get(name, key).await {
        Ok(Some(identity)) => Found::Credentials(Credentials { identity, origin }),
        Ok(None) => Found::Nothing,
        Err(error) => {
            tracing::warn!(helper = name, file = %path.display(), %error, "credential helper failed");
            Found::HelperFailed(HelperFailure { helper: origin, reason: error.to_string() })
        }
    }
}

impl Entry {
    fn identity(&self, path: &Path) -> Result<Option<Identity>, Error> {
        if let Some(token) = self.identitytoken.as_ref().filter(|token| !token.is_empty()) {
            return Ok(Some(Identity::Token(Secret::new(token.clone()))));
        }
        let Some(auth) = self.auth.as_ref().filter(|auth| !auth.is_empty()) else { return Ok(None) };
        let error =
            || Error::Credentials { path: path.to_owned(), reason: "an auth is not base64 of user:password".into() };
        let decoded = STANDARD.decode(auth).or_else(|_| STANDARD_NO_PAD.decode(auth)).map_err(|_| error())?;
        let text = String::from_utf8(decoded).map_err(|_| error())?;
        let (user, password) = text.split_once(':').ok_or_else(error)?;
        // Docker pads some passwords with NUL.
        let password = Secret::new(password.trim_end_matches('\0').to_owned());
        Ok(Some(Identity::Password { user: user.to_owned(), password }))
    }
}

/// `registry/ns/repo`, `registry/ns`, `registry`: the most specific first.
fn keys(registry: &str, repository: &str) -> Vec<String> {
    let whole = format!("{registry}/{repository}");
    let mut keys: Vec<String> =
        whole.match_indices('/').filter_map(|(end, _)| whole.get(..end)).map(str::to_owned).collect();
    keys.push(whole);
    keys.reverse();
    keys
}

/// A key of `auths` without what older docker versions put around the host: a scheme, and the path of the API.
fn normalized(key: &str) -> String {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let had_scheme = bare.len() != key.len();
    let bare = bare.trim_end_matches('/');
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    let host = if matches!(host, DOCKER_HUB_OF_OLD | DOCKER_HUB_HOST) { DOCKER_HUB } else { host };
    let api_path = matches!(path, "v1" | "v2");
    if path.is_empty() || api_path || had_scheme { host.to_owned() } else { format!("{host}/{path}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn user(json: &str, registry: &str, repository: &str) -> Option<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json).unwrap();
        let missing = PathBuf::from("/nonexistent/auth.json");
        let files = [missing, file.path().to_owned()];
        let found = find(&files, &Disks::default(), registry, repository, &Arc::default()).await.unwrap();
        found.credentials().map(|credentials| match &credentials.identity {
            Identity::Password { user, password } => format!("{user}:{}", password.reveal()),
            Identity::Token(token) => format!("token {}", token.reveal()),
        })
    }

    fn auths(entries: &[(&str, &str)]) -> String {
        let entries = entries.iter().map(|(key, text)| format!("{key:?}:{{\"auth\":\"{}\"}}", STANDARD.encode(text)));
        format!("{{\"auths\":{{{}}}}}", entries.collect::<Vec<_>>().join(","))
    }

    #[tokio::test]
    async fn files_are_files() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("auth.json");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = find(&[pipe], &Disks::default(), "r.io", "x", &Arc::default()).await.unwrap_err().to_string();
        assert!(error.contains("auth.json") && error.contains("not a regular file"), "{error}");
        let none = find(&["/dev/null".into()], &Disks::default(), "r.io", "x", &Arc::default()).await.unwrap();
        assert_eq!(none, Found::Nothing);
    }

    #[tokio::test]
    async fn the_most_specific_key_wins() {
        let json = auths(&[("r.io", "host:1"), ("r.io/a", "ns:2"), ("r.io/a/b", "repo:3:colon")]);
        assert_eq!(user(&json, "r.io", "a/b").await.as_deref(), Some("repo:3:colon"));
        assert_eq!(user(&json, "r.io", "a/c").await.as_deref(), Some("ns:2"));
        assert_eq!(user(&json, "r.io", "ab").await.as_deref(), Some("host:1"));
        assert_eq!(user(&json, "other.io", "a/b").await, None);
    }

    #[tokio::test]
    async fn an_ipv6_address_is_looked_up_as_it_is_written() {
        let json = auths(&[("[::1]:5000/a", "ns:1"), ("http://[::1]:5000/v2/", "host:2"), ("[::1]", "other:3")]);
        assert_eq!(user(&json, "[::1]:5000", "a/b").await.as_deref(), Some("ns:1"));
        assert_eq!(user(&json, "[::1]:5000", "b").await.as_deref(), Some("host:2"));
        assert_eq!(user(&json, "[0:0::1]:5000", "b").await, None);
    }

    #[tokio::test]
    async fn keys_of_docker_are_understood() {
        let json = auths(&[(DOCKER_HUB_KEY, "hub:1"), ("https://r.io/v2/", "r:2")]);
        assert_eq!(user(&json, "docker.io", "library/alpine").await.as_deref(), Some("hub:1"));
        assert_eq!(user(&json, "r.io", "x").await.as_deref(), Some("r:2"));
        let token = r#"{"auths":{"r.io":{"auth":"","identitytoken":"abc"}}}"#;
        assert_eq!(user(token, "r.io", "x").await.as_deref(), Some("token abc"));
        assert_eq!(user(r#"{"auths":{"r.io":{}}}"#, "r.io", "x").await, None);
    }

    #[tokio::test]
    async fn a_broken_file_is_named_and_not_quoted() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for text in ["{\"auths\":{\"r.io\":{\"auth\":\"hunter2", r#"{"auths":{"r.io":{"auth":"aHVudGVyMg=="}}}"#] {
            std::fs::write(file.path(), text).unwrap();
            let files = [file.path().to_owned()];
            let found = find(&files, &Disks::default(), "r.io", "x", &Arc::default()).await;
            let error = found.unwrap_err().to_string();
            assert!(error.contains(file.path().to_str().unwrap()) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn files_are_asked_in_podmans_order() {
        let mut places = AuthPlaces { home: Some("/h".into()), uid: 7, ..AuthPlaces::default() };
        let paths =
            |places: &AuthPlaces| auth_files(places).iter().map(|p| p.display().to_string()).collect::<Vec<_>>();
        let unset = ["/run/containers/7/auth.json", "/h/.config/containers/auth.json", "/h/.docker/config.json"];
        assert_eq!(paths(&places), unset);
        places.xdg_runtime_dir = Some("/r".into());
        places.xdg_config_home = Some("/c".into());
        places.docker_config = Some("/d".into());
        assert_eq!(paths(&places), ["/r/containers/auth.json", "/c/containers/auth.json", "/d/config.json"]);
        places.authfile = Some("/flag.json".into());
        assert_eq!(paths(&places), ["/flag.json"]);
    }

    #[tokio::test]
    async fn a_helper_that_fails_is_named_and_another_file_may_know_more() {
        let [broken, good] = [0; 2].map(|_| tempfile::NamedTempFile::new().unwrap());
        std::fs::write(broken.path(), r#"{"credsStore":"no-such-helper-here"}"#).unwrap();
        let mut files = vec![broken.path().to_owned()];
        let Login::HelperFailed(failure) =
            find(&files, &Disks::default(), "r.io", "x", &Arc::default()).await.unwrap().login()
        else {
            panic!("no failure")
        };
        assert!(failure.helper.to_string().contains("docker-credential-no-such-helper-here (named in "));
        std::fs::write(good.path(), auths(&[("r.io", "u:p")])).unwrap();
        files.push(good.path().to_owned());
        let found = find(&files, &Disks::default(), "r.io", "x", &Arc::default()).await.unwrap();
        assert_eq!(found.login(), Login::Known(Origin::File(good.path().to_owned())));
    }

    #[test]
    fn secrets_never_show_themselves() {
        let identity = Identity::Password { user: "u".into(), password: Secret::new("hunter2".into()) };
        assert!(!format!("{identity:?}").contains("hunter2"));
    }
}
