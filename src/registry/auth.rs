//! Authorisation: Basic, and Bearer tokens from the server that a registry's challenge names (distribution's token
//! specification; RFC 6750, RFC 7617).
//!
//! A grant is what is sent in `Authorization` for one repository. When a registry refuses one, the first reader that says so
//! renews it, and all others wait for that.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use moka::future::Cache;
use moka::ops::compute::Op;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;

use super::credentials::{self, Found, Login};
use super::hosts::Hosts;
use super::redirect::leads_to_link_local;
use super::secret::{Identity, Secret};
use super::silent::Disks;
use super::throttle::{Throttle, status_error};
use super::transport::{Connection, Transport};
use super::waits::Waits;
use super::{Error, Redacted};

/// What a token lives without `expires_in`, by the specification.
const DEFAULT_LIFE: u64 = 60;

/// Whatever a token server says: a token of a day is renewed.
const LONGEST_LIFE: u64 = 86_400;

const LARGEST_TOKEN: usize = 1 << 20;

/// A name for us in OAuth2 requests.
const CLIENT_ID: &str = "crfs";

/// A repository, as far as authorisation goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Scope {
    pub(super) registry: String,
    pub(super) repository: String,
}

/// How a registry wants to be convinced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: Url, service: Option<String>, scope: Option<String> },
}

/// What is sent in `Authorization`, and how to get it anew.
pub(super) struct Grant {
    pub(super) id: u64,
    header: HeaderValue,
    challenge: Challenge,
    expires: Option<Instant>,
    pub(super) login: Login,
}

impl Grant {
    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        headers.insert(AUTHORIZATION, self.header.clone());
    }
}

/// Everything that registries have granted us.
pub(super) struct Authority {
    files: Vec<PathBuf>,
    disks: Disks,
    transport: Arc<Transport>,
    throttle: Arc<Throttle>,
    grants: Cache<Scope, Arc<Grant>>,
    waits: Arc<Waits>,
    last_id: AtomicU64,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<i64>,
}

impl Authority {
    pub(super) fn new(files: Vec<PathBuf>, hosts: &Hosts, transport: Arc<Transport>, throttle: Arc<Throttle>) -> Self {
        let (disks, waits) = (hosts.disks.clone(), hosts.waits.clone());
        Self { files, disks, transport, throttle, grants: Cache::new(10_000), waits, last_id: AtomicU64::new(0) }
    }

    /// What was granted before, renewed where its life has ended; `None` before the registry's first challenge.
    pub(super) async fn current(&self, scope: &Scope) -> Result<Option<Arc<Grant>>, Error> {
        match self.grants.get(scope).await {
            Some(grant) if grant.expires.is_some_and(|expires| expires <= Instant::now()) => {
                self.renew(scope, grant.challenge.clone(), Some(grant.id)).await.map(Some)
            }
            grant => Ok(grant),
        }
    }

    /// A grant other than the refused one. Credentials are read again.
    pub(super) async fn renew(
        &self,
        scope: &Scope,
        challenge: Challenge,
        refused: Option<u64>,
    ) -> Result<Arc<Grant>, Error> {
        let drop_refused = |entry: Option<moka::Entry<Scope, Arc<Grant>>>| {
            let matches = entry.is_some_and(|entry| Some(entry.value().id) == refused);
            std::future::ready(if matches { Op::Remove } else { Op::Nop })
        };
        self.grants.entry_by_ref(scope).and_compute_with(drop_refused).await;
        let granted = self.grants.try_get_with_by_ref(scope, Box::pin(self.obtain(scope, challenge))).await;
        granted.map_err(Error::shared)
    }

    async fn obtain(&self, scope: &Scope, challenge: Challenge) -> Result<Arc<Grant>, Error> {
        let (registry, repository) = (&scope.registry, &scope.repository);
        let found = credentials::find(&self.files, &self.disks, registry, repository, &self.waits).await?;
        let login = found.login();
        let (value, life) = match &challenge {
            Challenge::Basic => (basic(scope, &found)?, None),
            Challenge::Bearer { realm, service, scope: asked } => {
                let asked = asked.clone().unwrap_or_else(|| format!("repository:{}:pull", scope.repository));
                let of_token_server = |error| match error {
                    error @ (Error::Unauthorized { .. } | Error::Challenge { .. }) => error,
                    error => Error::TokenServer { registry: scope.registry.clone(), source: Box::new(error) },
                };
                let answer = self.token(scope, realm, service.as_deref(), &asked, &found).await;
                answer.and_then(|answer| bearer(answer, realm)).map_err(of_token_server)?
            }
        };
        let refused = |_| challenge_refused(scope, "the credentials cannot be sent in a header".to_owned());
        let mut header = HeaderValue::from_str(value.reveal()).map_err(refused)?;
        header.set_sensitive(true);
        // Renewed a little early: the last of its life may pass on the way.
        let expires = life.map(|life| Instant::now() + life.saturating_sub((life / 10).min(Duration::from_secs(10))));
        let id = self.last_id.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Grant { id, header, challenge, expires, login }))
    }

    async fn token(
        &self,
        scope: &Scope,
        realm: &Url,
        service: Option<&str>,
        asked: &str,
        found: &Found,
    ) -> Result<TokenAnswer, Error> {
        let mut parameters: Vec<(&str, &str)> = service.iter().map(|service| ("service", *service)).collect();
        parameters.push(("scope", asked));
        let identity = found.credentials().map(|credentials| &credentials.identity);
        let request = self.token_request(realm, &parameters, identity)?;
        self.throttle.admit(realm).await;
        let response = self.transport.send(realm, request, &self.throttle).await?;
        self.throttle.note(realm, &response);
        match response.status().as_u16() {
            200 => read_token(realm, response).await,
            401 | 403 => Err(unauthorized(scope, found.login())),
            300..=399 => Err(challenge_refused(scope, "its token server redirects".to_owned())),
            _ => Err(status_error(realm, &response)),
        }
    }

    /// An identity token is posted, a password is sent as Basic, and without either anyone's token is asked for.
    fn token_request(
        &self,
        realm: &Url,
        parameters: &[(&str, &str)],
        identity: Option<&Identity>,
    ) -> Result<reqwest::RequestBuilder, Error> {
        Ok(match identity {
            Some(Identity::Token(token)) => {
                let grant =
                    [("grant_type", "refresh_token"), ("client_id", CLIENT_ID), ("refresh_token", token.reveal())];
                let mut form = url::form_urlencoded::Serializer::new(String::new());
                form.extend_pairs(grant.iter().chain(parameters));
                let content_type = "application/x-www-form-urlencoded";
                self.transport.post(realm)?.header(CONTENT_TYPE, content_type).body(form.finish())
            }
            identity => {
                let mut url = realm.clone();
                url.query_pairs_mut().extend_pairs(parameters);
                let request = self.transport.get(&url, Connection::Pooled)?;
                match identity {
                    Some(Identity::Password { user, password }) => request.basic_auth(user, Some(password.reveal())),
                    _ => request,
                }
            }
        })
    }
}

pub(super) fn unauthorized(scope: &Scope, login: Login) -> Error {
    Error::Unauthorized { registry: scope.registry.clone(), repository: scope.repository.clone(), login }
}

fn challenge_refused(scope: &Scope, reason: String) -> Error {
    Error::Challenge { registry: scope.registry.clone(), reason }
}

async fn read_token(realm: &Url, mut response: reqwest::Response) -> Result<TokenAnswer, Error> {
    let mut body = Vec::new();
    let failed = |source| Error::transfer(realm, "the body broke off", Some(source));
    while let Some(bytes) = response.chunk().await.map_err(failed)? {
        body.extend_from_slice(&bytes);
        if body.len() > LARGEST_TOKEN {
            return Err(Error::protocol(realm, format!("a token of more than {LARGEST_TOKEN} bytes")));
        }
    }
    // Never the parser's own message, which could quote the token.
    serde_json::from_slice(&body).map_err(|_| {
        Error::protocol(realm, "no token: JSON with text as token or access_token, and a whole number as expires_in")
    })
}

fn basic(scope: &Scope, found: &Found) -> Result<Secret, Error> {
    match found.credentials().map(|credentials| &credentials.identity) {
        Some(Identity::Password { user, password }) => {
            Ok(Secret::new(format!("Basic {}", STANDARD.encode(format!("{user}:{}", password.reveal())))))
        }
        _ => Err(unauthorized(scope, found.login())),
    }
}

fn bearer(answer: TokenAnswer, realm: &Url) -> Result<(Secret, Option<Duration>), Error> {
    let token = [answer.token, answer.access_token].into_iter().flatten().find(|token| !token.is_empty());
    let token = token.ok_or_else(|| Error::protocol(realm, "neither token nor access_token"))?;
    Ok((Secret::new(format!("Bearer {token}")), Some(life(answer.expires_in))))
}

/// How long a token may be used, by its `expires_in`. One that has expired is used for the request that it was fetched for.
fn life(expires_in: Option<i64>) -> Duration {
    match expires_in {
        None | Some(0) => Duration::from_secs(DEFAULT_LIFE),
        Some(seconds) => Duration::from_secs(u64::try_from(seconds).unwrap_or(0).min(LONGEST_LIFE)),
    }
}

/// Reads a challenge; a Bearer one is preferred. `None` where there is none that crfs knows. `base` is the registry's own URL.
pub(super) fn challenge(scope: &Scope, base: &Url, headers: &HeaderMap) -> Result<Option<Challenge>, Error> {
    let mut basic = false;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Some(challenges) = value.to_str().ok().and_then(|value| http_auth::parse_challenges(value).ok()) else {
            continue;
        };
        for challenge in challenges {
            let parameter = |name: &str| {
                let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped()).filter(|value| !value.is_empty())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                let realm = realm(scope, base, parameter("realm").as_deref())?;
                let (service, scope) = (parameter("service"), parameter("scope"));
                return Ok(Some(Challenge::Bearer { realm, service, scope }));
            }
            basic |= challenge.scheme.eq_ignore_ascii_case("basic");
        }
    }
    Ok(basic.then_some(Challenge::Basic))
}

pub(super) fn no_challenge(scope: &Scope) -> Error {
    challenge_refused(scope, "it names neither Basic nor Bearer".to_owned())
}

/// Where credentials may be sent for a token: https only, unless the registry itself is plain http.
fn realm(scope: &Scope, base: &Url, text: Option<&str>) -> Result<Url, Error> {
    let refused = |reason: String| challenge_refused(scope, reason);
    let realm: Option<Url> = text.and_then(|text| text.parse().ok());
    let mut realm = realm.ok_or_else(|| refused("it names no token server".to_owned()))?;
    let _ = realm.set_username("");
    let _ = realm.set_password(None);
    let shown = Redacted::of(&realm);
    match (base.scheme(), realm.scheme()) {
        (_, "https") | ("http", "http") => {}
        _ => return Err(refused(format!("its token server {shown} is not https"))),
    }
    if leads_to_link_local(&realm) {
        return Err(refused(format!("its token server {shown} is at a link-local address")));
    }
    Ok(realm)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(base: &str, value: &str) -> Result<Option<Challenge>, Error> {
        let scope = Scope { registry: "r".into(), repository: "a/b".into() };
        let headers = HeaderMap::from_iter([(WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap())]);
        challenge(&scope, &base.parse().unwrap(), &headers)
    }

    #[test]
    fn challenges_are_read() {
        let bearer = r#"Basic realm="x", Bearer realm="https://auth/token",service="s",scope="repository:a/b:pull""#;
        let expected = Challenge::Bearer {
            realm: "https://auth/token".parse().unwrap(),
            service: Some("s".into()),
            scope: Some("repository:a/b:pull".into()),
        };
        assert_eq!(parse("https://r/", bearer).unwrap(), Some(expected));
        assert_eq!(parse("https://r/", "basic realm=x").unwrap(), Some(Challenge::Basic));
        assert_eq!(parse("https://r/", "Negotiate").unwrap(), None);
    }

    #[test]
    fn the_life_of_a_token_is_what_the_server_says_within_bounds() {
        for (expires_in, seconds) in [(None, 60), (Some(0), 60), (Some(300), 300), (Some(-5), 0), (Some(i64::MIN), 0)] {
            assert_eq!(life(expires_in), Duration::from_secs(seconds), "{expires_in:?}");
        }
        assert_eq!(life(Some(i64::MAX)), Duration::from_secs(LONGEST_LIFE));
    }

    #[test]
    fn a_realm_that_would_leak_credentials_is_refused() {
        let bearer = |base: &str, realm: &str| parse(base, &format!("Bearer realm=\"{realm}\""));
        assert!(bearer("http://r/", "http://auth/").is_ok());
        let refused = [
            ("https://r/", "http://auth/"),
            ("https://r/", "ftp://auth/"),
            ("http://r/", "http://169.254.169.254/"),
            ("https://r/", "https://[fe80::1]/"),
            ("https://r/", "/token"),
        ];
        for (base, realm) in refused {
            assert!(matches!(bearer(base, realm), Err(Error::Challenge { .. })), "{base} {realm}");
        }
    }
}
