//! Credentials and tokens: sent where they belong, renewed once for everyone, read again, and never shown.

use std::io::Write as _;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crfs::registry::{Client, Error, Options};

use crate::registry::{Auth, Fault, Lie, On, Registry, ramp};
use crate::support::{client, options, range, read, resolve, whole_text};

pub(crate) fn auth_file(host: &str, user: &str, password: &str) -> tempfile::NamedTempFile {
    let auth = STANDARD.encode(format!("{user}:{password}"));
    write_file(&format!("{{\"auths\":{{\"{host}\":{{\"auth\":\"{auth}\"}}}}}}"))
}

fn write_file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn client_with(file: &tempfile::NamedTempFile) -> Client {
    client(Options { auth_files: vec![PathBuf::from("/nonexistent"), file.path().to_owned()], ..options() })
}

fn basic() -> Auth {
    Auth::Basic { user: "user".into(), password: "hunter2".into() }
}

fn bearer(server: &Registry) -> Auth {
    let user = Some(("user".to_owned(), "hunter2".to_owned()));
    Auth::Bearer { realm: server.url("/token"), user, refresh_token: None, expires_in: None }
}

#[tokio::test]
async fn basic_credentials_are_sent_after_the_challenge() {
    let registry = Registry::start().await;
    registry.push_image("a/b", "1", &[b"0123456789"]);
    registry.set_auth(basic());
    let reference = format!("{}/a/b:1", registry.host());
    let file = auth_file(&registry.host(), "user", "hunter2");
    let image = resolve(&client_with(&file), &reference).await.unwrap();
    assert_eq!(read(&image.layers[0].blob, range(2, 4)).await.unwrap(), b"23");
    let sent: Vec<_> = registry.requests().iter().map(|request| request.header("authorization").is_some()).collect();
    assert_eq!(sent, [false, true, true]);
}

#[tokio::test]
async fn refused_credentials_are_named_by_their_file_and_not_shown() {
    let registry = Registry::start().await;
    registry.push_image("a", "1", &[b"x"]);
    let reference = format!("{}/a:1", registry.host());
    for auth in [basic(), bearer(&registry)] {
        registry.set_auth(auth);
        let file = auth_file(&registry.host(), "user", "wrong-secret");
        let error = resolve(&client_with(&file), &reference).await.err().unwrap();
        let text = whole_text(&error);
        for part in [file.path().to_str().unwrap(), "repository a", "podman login", &registry.host()] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("wrong-secret") && !text.contains(&STANDARD.encode("user:wrong-secret")), "{text}");
        let error = resolve(&client(options()), &reference).await.err().unwrap();
        assert!(error.to_string().contains("there are none"), "{error}");
    }
}

#[tokio::test]
async fn a_token_is_fetched_once_and_renewed_once_for_all() {
    let registry = Registry::start().await;
    let server = registry.start_sharing().await;
    let bytes = ramp(1000);
    registry.push_image("a/b", "1", &[&bytes]);
    registry.set_auth(bearer(&server));
    let file = auth_file(&registry.host(), "user", "hunter2");
    let client = client_with(&file);
    let image = resolve(&client, &format!("{}/a/b:1", registry.host())).await.unwrap();
    let blob = &image.layers[0].blob;
    assert_eq!(read(blob, range(0, 1000)).await.unwrap(), bytes);
    let asked = server.requests();
    assert_eq!(asked.len(), 1);
    assert!(asked[0].path.contains("service=lies") && asked[0].path.contains("scope=repository%3Aa%2Fb%3Apull"));
    registry.expire_tokens();
    let reads = (0..64).map(|start| read(blob, range(start, start + 10)));
    for (start, read) in futures_util::future::join_all(reads).await.into_iter().enumerate() {
        assert_eq!(read.unwrap(), bytes[start..start + 10]);
    }
    assert_eq!(server.requests().len(), 2);
    // The password goes to the token server alone, the token to the registry alone.
    assert!(server.requests().iter().all(|request| request.header("authorization").unwrap().starts_with("Basic ")));
    let at_registry = registry.requests();
    assert!(
        at_registry
            .iter()
            .filter_map(|request| request.header("authorization"))
            .all(|sent| sent.starts_with("Bearer "))
    );
}

#[tokio::test]
async fn tokens_are_for_anyone_where_the_server_says_so() {
    let registry = Registry::start().await;
    registry.push_image("a", "1", &[b"x"]);
    let anyone = Auth::Bearer { realm: registry.url("/token"), user: None, refresh_token: None, expires_in: Some(300) };
    registry.set_auth(anyone);
    resolve(&client(options()), &format!("{}/a:1", registry.host())).await.unwrap();
    assert!(registry.requests_to("/token")[0].header("authorization").is_none());
}

#[tokio::test]
async fn an_identity_token_is_posted() {
    let registry = Registry::start().await;
    registry.push_image("a", "1", &[b"x"]);
    let user = Some(("user".to_owned(), "hunter2".to_owned()));
    let refresh_token = Some("refresh-me".to_owned());
    registry.set_auth(Auth::Bearer { realm: registry.url("/token"), user, refresh_token, expires_in: None });
    let file = write_file(&format!("{{\"auths\":{{\"{}\":{{\"identitytoken\":\"refresh-me\"}}}}}}", registry.host()));
    resolve(&client_with(&file), &format!("{}/a:1", registry.host())).await.unwrap();
    let asked = &registry.requests_to("/token")[0];
    assert_eq!((asked.method.as_str(), asked.header("authorization")), ("POST", None));
    assert!(asked.body.contains("grant_type=refresh_token") && !asked.path.contains("refresh-me"));
}

#[tokio::test]
async fn credentials_are_read_again_when_the_registry_refuses() {
    let registry = Registry::start().await;
    registry.push_image("a", "1", &[b"0123456789"]);
    registry.set_auth(basic());
    let file = auth_file(&registry.host(), "user", "hunter2");
    let client = client_with(&file);
    let image = resolve(&client, &format!("{}/a:1", registry.host())).await.unwrap();
    registry.set_auth(Auth::Basic { user: "user".into(), password: "changed".into() });
    let error = read(&image.layers[0].blob, range(0, 1)).await.err().unwrap();
    assert!(matches!(error.root(), Error::Unauthorized { .. }), "{error}");
    let auth = STANDARD.encode("user:changed");
    std::fs::write(file.path(), format!("{{\"auths\":{{\"{}\":{{\"auth\":\"{auth}\"}}}}}}", registry.host())).unwrap();
    assert_eq!(read(&image.layers[0].blob, range(0, 1)).await.unwrap(), b"0");
}

#[tokio::test]
async fn a_token_server_that_redirects_or_lives_at_a_link_local_address_gets_nothing() {
    let registry = Registry::start().await;
    let other = registry.start_sharing().await;
    registry.push_image("a", "1", &[b"x"]);
    registry.set_auth(bearer(&registry));
    registry.fault(Fault::always(On::Token, Lie::Redirect(other.url("/token"))));
    let file = auth_file(&registry.host(), "user", "hunter2");
    let client = client_with(&file);
    let reference = format!("{}/a:1", registry.host());
    let error = resolve(&client, &reference).await.err().unwrap();
    assert!(error.to_string().contains("token server redirects"), "{error}");
    assert!(other.requests().is_empty());
    let realm = "http://169.254.169.254/token".to_owned();
    registry.set_auth(Auth::Bearer { realm, user: None, refresh_token: None, expires_in: None });
    let error = resolve(&client, &reference).await.err().unwrap();
    assert!(error.to_string().contains("link-local"), "{error}");
}

#[tokio::test]
async fn a_token_server_that_is_unwell_for_a_while_is_asked_again() {
    let registry = Registry::start().await;
    registry.push_image("a", "1", &[b"x"]);
    registry.set_auth(bearer(&registry));
    registry.fault(Fault::times(2, On::Token, Lie::Status(500, Vec::new())));
    registry.fault(Fault::times(1, On::Token, Lie::Reset(3)));
    let file = auth_file(&registry.host(), "user", "hunter2");
    let client = client_with(&file);
    resolve(&client, &format!("{}/a:1", registry.host())).await.unwrap();
    assert_eq!(registry.requests_to("/token").len(), 4);
}

#[tokio::test]
async fn a_token_is_renewed_before_it_is_refused() {
    let registry = Registry::start().await;
    registry.push_image("a", "1", &[b"0123456789"]);
    let anyone = Auth::Bearer { realm: registry.url("/token"), user: None, refresh_token: None, expires_in: Some(300) };
    registry.set_auth(anyone);
    let image = resolve(&client(options()), &format!("{}/a:1", registry.host())).await.unwrap();
    for (seconds, tokens) in [(200, 1), (101, 2)] {
        tokio::time::pause();
        tokio::time::advance(std::time::Duration::from_secs(seconds)).await;
        tokio::time::resume();
        assert_eq!(read(&image.layers[0].blob, range(0, 1)).await.unwrap(), b"0");
        assert_eq!(registry.requests_to("/token").len(), tokens);
    }
    assert!(registry.requests_to("/blobs/").iter().all(|request| request.header("authorization").is_some()));
    assert_eq!(registry.requests_to("/blobs/").len(), 2);
}

#[tokio::test]
async fn a_challenge_at_the_root_alone_is_asked_for_once() {
    for (status, by_token) in [(404, false), (403, false), (401, false), (404, true)] {
        let registry = Registry::start().await;
        registry.push_image("a/b", "1", &[b"0123456789"]);
        registry.set_auth(if by_token { bearer(&registry) } else { basic() });
        registry.challenge_at_the_root_only(status);
        let file = auth_file(&registry.host(), "user", "hunter2");
        let client = client_with(&file);
        let image = resolve(&client, &format!("{}/a/b:1", registry.host())).await.unwrap();
        assert_eq!(read(&image.layers[0].blob, range(0, 2)).await.unwrap(), b"01");
        let missing = resolve(&client, &format!("{}/a/b:2", registry.host())).await.err().unwrap();
        assert!(missing.is_not_found(), "{missing}");
        let roots = registry.requests().iter().filter(|request| request.path == "/v2/").count();
        assert_eq!((roots, registry.requests_to("/blobs/").len()), (1, 1), "{status}");
    }
}

#[tokio::test]
async fn a_blob_that_is_hidden_from_who_is_not_logged_in_is_had() {
    let registry = Registry::start().await;
    registry.push_image("a", "1", &[b"0123456789"]);
    let file = auth_file(&registry.host(), "user", "hunter2");
    let image = resolve(&client_with(&file), &format!("{}/a:1", registry.host())).await.unwrap();
    registry.set_auth(basic());
    registry.challenge_at_the_root_only(404);
    assert_eq!(read(&image.layers[0].blob, range(0, 2)).await.unwrap(), b"01");
}

#[tokio::test]
async fn who_has_no_login_is_told_what_the_registry_said_and_that_it_wants_one() {
    let registry = Registry::start().await;
    registry.push_image("a", "1", &[b"x"]);
    registry.set_auth(basic());
    for status in [404, 403] {
        registry.challenge_at_the_root_only(status);
        let error = resolve(&client(options()), &format!("{}/a:1", registry.host())).await.err().unwrap();
        assert!(matches!(error.root(), Error::LoginWanted { .. }), "{error}");
        assert_eq!(error.is_not_found(), status == 404);
        for part in
            [&status.to_string(), "/v2/a/manifests/1", &format!("podman login --tls-verify=false {}", registry.host())]
        {
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_there_where_no_login_is_wanted() {
    let registry = Registry::start().await;
    registry.push_image("a", "1", &[b"x"]);
    let client = client(options());
    for _ in 0..3 {
        let error = resolve(&client, &format!("{}/a:2", registry.host())).await.err().unwrap();
        assert!(matches!(error.root(), Error::NotFound { .. }), "{error}");
    }
    resolve(&client, &format!("{}/a:1", registry.host())).await.unwrap();
    let roots = registry.requests().iter().filter(|request| request.path == "/v2/").count();
    assert_eq!((roots, registry.requests().len()), (1, 5));
}

#[tokio::test]
async fn a_token_that_has_expired_already_is_used_once() {
    let registry = Registry::start().await;
    registry.push_image("a", "1", &[b"0123456789"]);
    let anyone = Auth::Bearer { realm: registry.url("/token"), user: None, refresh_token: None, expires_in: Some(-5) };
    registry.set_auth(anyone);
    let image = resolve(&client(options()), &format!("{}/a:1", registry.host())).await.unwrap();
    assert_eq!(read(&image.layers[0].blob, range(0, 1)).await.unwrap(), b"0");
    assert_eq!(registry.requests_to("/token").len(), 2);
    assert_eq!(registry.requests_to("/blobs/").len(), 1);
}

#[tokio::test]
async fn a_token_server_that_gives_none_is_named() {
    let answers =
        [r#"{"token":"good","expires_in":"300"}"#, r#"{"token":7}"#, r#"{"token":""}"#, "<html>hunter2</html>", "{}"];
    for answer in answers {
        let registry = Registry::start().await;
        registry.push_image("a", "1", &[b"x"]);
        registry.set_auth(bearer(&registry));
        registry.fault(Fault::always(On::Token, Lie::Body(answer.as_bytes().to_vec())));
        let file = auth_file(&registry.host(), "user", "hunter2");
        let error = resolve(&client_with(&file), &format!("{}/a:1", registry.host())).await.err().unwrap();
        assert!(matches!(error.root(), Error::TokenServer { .. }), "{error}");
        let text = whole_text(&error);
        assert!(text.contains("token server of registry") && text.contains(&registry.url("/token")), "{text}");
        assert!(!text.contains("range request") && !text.contains("hunter2"), "{text}");
    }
}

#[tokio::test]
async fn a_token_server_that_is_not_there_is_no_missing_image() {
    let registry = Registry::start().await;
    registry.push_image("a", "1", &[b"x"]);
    registry.set_auth(bearer(&registry));
    registry.fault(Fault::always(On::Token, Lie::Status(404, Vec::new())));
    let file = auth_file(&registry.host(), "user", "hunter2");
    let error = resolve(&client_with(&file), &format!("{}/a:1", registry.host())).await.err().unwrap();
    assert!(!error.is_not_found() && error.to_string().contains("token server of registry"), "{error}");
}
