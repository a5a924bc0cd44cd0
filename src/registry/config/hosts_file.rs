//! The syntax of hosts.toml (docs/hosts.md of containerd; core/remotes/docker/config/hosts.go of 2.4.2).

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::secret::Secret;
use super::duration;
use super::endpoint::Certificates;
use super::error::Error;
use crate::toml_file::{File, Table, Value};

/// A host, or the server at the end of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    /// `None`: the registry itself.
    pub(super) url: Option<HostUrl>,
    pub(super) pulls: bool,
    pub(super) resolves: bool,
    pub(super) certificates: Vec<Certificates>,
    pub(super) skip_verify: Option<bool>,
    pub(super) headers: Vec<(String, Secret)>,
    pub(super) dial_timeout: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostUrl {
    pub(super) is_https: bool,
    /// With its port, where one is written.
    pub(super) host: String,
    /// Where the API is, without a slash at its end.
    pub(super) api: String,
}

impl Default for Host {
    fn default() -> Self {
        let (url, certificates, skip_verify, headers, dial_timeout) = (None, Vec::new(), None, Vec::new(), None);
        Self { url, pulls: true, resolves: true, certificates, skip_verify, headers, dial_timeout }
    }
}

/// The hosts of a file in the order in which they are asked, the server at the end.
pub(super) fn parse(path: &Path, text: &str) -> Result<Vec<Host>, Error> {
    let file = File { path, text };
    let parsed = file.parse()?;
    let root = Table::root(file, &parsed);
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut hosts = Vec::new();
    if let Some(tables) = root.table("host")? {
        let mut all = tables.entries();
        // A table within it may stand before it, such as its header.
        all.sort_by_key(|(_, value)| value.first());
        for (name, value) in all {
            let mut parsed = host(&value.table()?, dir)?;
            parsed.url = Some(url(name, &value, value.table()?.flag("override_path")?)?);
            // containerd takes those alone that stand in a header: only there it knows their order.
            if value.is_headed() {
                hosts.push(parsed);
            }
        }
    }
    let mut server = host(&root, dir)?;
    match root.get("server") {
        Some(value) if !value.text()?.is_empty() => {
            server.url = Some(url(value.text()?, &value, root.flag("override_path")?)?);
        }
        // The registry itself can do everything, whatever the file says.
        _ => (server.pulls, server.resolves) = (true, true),
    }
    hosts.push(server);
    Ok(hosts)
}

fn host(table: &Table<'_>, dir: &Path) -> Result<Host, Error> {
    let (pulls, resolves) = capabilities(table)?;
    let mut certificates = table.get("ca").map_or_else(|| Ok(Vec::new()), |value| authorities(value, dir))?;
    certificates.extend(table.get("client").map_or_else(|| Ok(Vec::new()), |value| clients(value, dir))?);
    Ok(Host {
        url: None,
        pulls,
        resolves,
        certificates,
        skip_verify: table.get("skip_verify").map(Value::flag).transpose()?,
        headers: table.table("header")?.map_or_else(|| Ok(Vec::new()), |table| headers(&table))?,
        dial_timeout: dial_timeout(table)?,
    })
}

/// Whether it is there to pull from, and to resolve tags.
fn capabilities(table: &Table<'_>) -> Result<(bool, bool), Error> {
    let Some(list) = table.get("capabilities") else { return Ok((true, true)) };
    let items = list.items()?;
    if items.is_empty() {
        return Ok((true, true));
    }
    let mut found = (false, false);
    for item in items {
        match item.text()?.to_lowercase().as_str() {
            "pull" => found.0 = true,
            "resolve" => found.1 = true,
            "push" | "referrers" => {}
            _ => return Err(item.refuse("a host may pull, resolve, push and have referrers, nothing else")),
        }
    }
    Ok(found)
}

fn authorities(value: Value<'_>, dir: &Path) -> Result<Vec<Certificates>, Error> {
    let paths = if value.is_text() { vec![value.text()?] } else { value.texts()? };
    Ok(paths.into_iter().map(|path| Certificates::Authorities(dir.join(path))).collect())
}

/// A file with both, several such files, or pairs of a certificate and its key.
fn clients(value: Value<'_>, dir: &Path) -> Result<Vec<Certificates>, Error> {
    if value.is_text() {
        let both = dir.join(value.text()?);
        return Ok(vec![Certificates::Client(both.clone(), both)]);
    }
    value.items()?.into_iter().map(|item| client(item, dir)).collect()
}

fn client(item: Value<'_>, dir: &Path) -> Result<Certificates, Error> {
    let of = |path: &str| -> PathBuf { dir.join(path) };
    if item.is_text() {
        return Ok(Certificates::Client(of(item.text()?), of(item.text()?)));
    }
    match item.texts()?.as_slice() {
        // containerd makes the path of the directory of it, and fails; its documents mean this.
        [certificate, ""] => Ok(Certificates::Client(of(certificate), of(certificate))),
        [certificate, key] => Ok(Certificates::Client(of(certificate), of(key))),
        _ => Err(item.refuse("a pair of a certificate and its key is wanted")),
    }
}

fn headers(table: &Table<'_>) -> Result<Vec<(String, Secret)>, Error> {
    let mut headers = Vec::new();
    for (name, value) in table.entries() {
        let values = if value.is_text() { vec![value.text()?] } else { value.texts()? };
        for text in values {
            let is_header = reqwest::header::HeaderName::try_from(name).is_ok()
                && reqwest::header::HeaderValue::try_from(text).is_ok();
            if !is_header {
                return Err(value.refuse("is no header of HTTP that can be sent"));
            }
            headers.push((name.to_owned(), Secret::new(text.to_owned())));
        }
    }
    Ok(headers)
}

fn dial_timeout(table: &Table<'_>) -> Result<Option<Duration>, Error> {
    match table.text("dial_timeout")?.unwrap_or_default() {
        "" => Ok(None),
        text => match duration::parse(text) {
            // No limit, as in Go.
            Some(Duration::ZERO) => Ok(None),
            Some(time) => Ok(Some(time)),
            None => Err(table.refuse("dial_timeout", "is a time such as 200ms, 1.5s or 1m")),
        },
    }
}

fn url(text: &str, value: &Value<'_>, override_path: bool) -> Result<HostUrl, Error> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("https", text));
    let is_https = match scheme {
        "https" => true,
        "http" => false,
        _ => return Err(value.refuse("is a URL that starts with https:// or http://")),
    };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = rest.split_once('/').map_or((rest, None), |(host, path)| (host, Some(path)));
    let host = authority.rsplit('@').next().unwrap_or_default();
    if !super::super::grammar::is_host(host) {
        return Err(value.refuse("names no host: a URL like https://HOST[:PORT][/PATH] is wanted"));
    }
    Ok(HostUrl { is_https, host: host.to_owned(), api: api(path, override_path) })
}

/// The path of the API: below `/v2`, unless the path is all.
fn api(path: Option<&str>, override_path: bool) -> String {
    let mut parts = Vec::new();
    for part in path.unwrap_or_default().split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    if !override_path && parts.last() != Some(&"v2") {
        parts.push("v2");
    }
    parts.iter().map(|part| format!("/{part}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_of_a_host_are_read() {
        let text = r#"
server = "https://s.io/v2/"
ca = "/etc/ca.crt"
[host."http://m.io:5000/api"]
capabilities = ["pull", "Resolve", "push", "referrers"]
ca = ["a.crt", "b.crt"]
client = [["c.cert", "c.key"], "both.pem"]
skip_verify = true
override_path = true
dial_timeout = "200ms"
[host."http://m.io:5000/api".header]
X-One = "1"
X-Two = ["2", "3"]
[host."n.io"]
capabilities = ["pull"]
client = "both.pem"
"#;
        let hosts = parse(Path::new("/h/r/hosts.toml"), text).unwrap();
        let [first, second, server] = hosts.as_slice() else { panic!("{hosts:?}") };
        let url =
            |is_https, host: &str, api: &str| Some(HostUrl { is_https, host: host.to_owned(), api: api.to_owned() });
        let client = |certificate: &str, key: &str| Certificates::Client(certificate.into(), key.into());
        assert_eq!(first.url, url(false, "m.io:5000", "/api"));
        assert_eq!((first.pulls, first.resolves, first.skip_verify), (true, true, Some(true)));
        let authority = |path: &str| Certificates::Authorities(path.into());
        let expected = [
            authority("/h/r/a.crt"),
            authority("/h/r/b.crt"),
            client("/h/r/c.cert", "/h/r/c.key"),
            client("/h/r/both.pem", "/h/r/both.pem"),
        ];
        assert_eq!(first.certificates, expected);
        let headers = [("X-One", "1"), ("X-Two", "2"), ("X-Two", "3")];
        assert_eq!(first.headers, headers.map(|(name, value)| (name.to_owned(), Secret::new(value.to_owned()))));
        assert_eq!(first.dial_timeout, Some(Duration::from_millis(200)));
        assert_eq!((&second.url, second.pulls, second.resolves), (&url(true, "n.io", "/v2"), true, false));
        assert_eq!((&server.url, &server.certificates), (&url(true, "s.io", "/v2"), &vec![authority("/etc/ca.crt")]));
    }

    #[test]
    fn an_error_names_the_file_the_line_and_the_key() {
        let host = "[host.\"https://m.io\"]\n";
        let cases = [
            ("capabilities = [\"delete\"]", 1, "capabilities"),
            ("ca = 1", 1, "ca"),
            ("client = [[\"a\", \"b\", \"c\"]]", 1, "client"),
            ("skip_verify = \"true\"", 1, "skip_verify"),
            ("dial_timeout = \"30\"", 1, "dial_timeout"),
            ("dial_timeout = \"-1s\"", 1, "dial_timeout"),
            ("server = \"ftp://s.io\"", 1, "server"),
            ("server = \"https://\"", 1, "server"),
            (&format!("{host}[host.\"https://m.io\".header]\n\"X Y\" = \"1\""), 3, "X Y"),
            (&format!("{host}[host.\"https://m.io\".header]\nX = \"a\\nb\""), 3, "X"),
            ("[host.\"https://m io\"]", 1, "https://m io"),
        ];
        for (text, line, key) in cases {
            let error = parse(Path::new("/hosts.toml"), text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("/hosts.toml, line {line}: {key}: ")), "{text}: {error}");
        }
    }

    #[test]
    fn the_path_of_the_api_is_below_v2_unless_it_is_all() {
        let cases = [
            (None, "/v2", ""),
            (Some(""), "/v2", ""),
            (Some("v2"), "/v2", "/v2"),
            (Some("v2/"), "/v2", "/v2"),
            (Some("a/b/"), "/a/b/v2", "/a/b"),
            (Some("a//./b/../v2"), "/a/v2", "/a/v2"),
            (Some("../.."), "/v2", ""),
            (Some("av2"), "/av2/v2", "/av2"),
        ];
        for (path, usual, overridden) in cases {
            assert_eq!((api(path, false).as_str(), api(path, true).as_str()), (usual, overridden), "{path:?}");
        }
    }
}
