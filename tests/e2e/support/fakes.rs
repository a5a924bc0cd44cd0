//! Neighbours that serve images to the nodes of a fleet, as far as a client sees them. What each answers is from its source, as of August 2026.
//!
//! Dragonfly (dragonflyoss/client 1.5.1, dragonfly-client/src/proxy/mod.rs): a proxy for the registry that `X-Dragonfly-Registry` names, or `ns`. It
//! fetches blobs in pieces of 4 MiB or more, and answers 206 to a range. All else it passes on.
//! Spegel (spegel-org/spegel v0.7.4, pkg/registry/registry.go): serves what its store has, and 404 for all else. A tag without `ns` is 404. One range
//! is 206, several are 404, one that begins behind the end is 416.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;

/// Dragonfly's smallest piece.
const PIECE: u64 = 4 << 20;

/// What came, and what was answered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard {
    /// With its query.
    pub(crate) path: String,
    /// As they came, by names in lower case.
    headers: Vec<(String, String)>,
    pub(crate) status: u16,
}

impl Heard {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A host, with its port.
    pub(crate) fn ns(&self) -> Option<String> {
        let (_, query) = self.path.split_once('?')?;
        Some(query.split('&').find_map(|pair| pair.strip_prefix("ns="))?.replace("%3A", ":"))
    }

    fn bare(&self) -> &str {
        self.path.split('?').next().unwrap_or_default()
    }

    /// The one range that is asked for: its ends, where they are said.
    fn range(&self) -> Option<Result<Ends, ()>> {
        let range = self.header("range")?;
        let parse = || {
            let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
            let end = |text: &str| if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) };
            Some((end(first)?, end(last)?))
        };
        Some(parse().ok_or(()))
    }
}

/// The first and the last byte of a range.
type Ends = (Option<u64>, Option<u64>);

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn plain(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }
}

/// Runs until the test process ends.
pub(crate) struct Fake {
    port: u16,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Fake {
    fn new(answer: impl Fn(&Heard) -> Option<Answer> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Arc::<Mutex<Vec<Heard>>>::default();
        let (log, answer) = (Arc::clone(&heard), Arc::new(answer));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                thread::spawn(move || serve(&client, &log, &*answer));
            }
        });
        Self { port, heard }
    }

    pub(crate) fn dragonfly() -> Self {
        Self::new(dragonfly)
    }

    /// One whose store has what this OCI layout has, but for the blobs of which `lacks` holds; `names`: what its tags are called there, `NS/NAME:TAG`.
    pub(crate) fn spegel(layout: PathBuf, names: &str, lacks: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        let names = names.to_owned();
        Self::new(move |heard| Some(spegel(heard, &layout, &names, &lacks)))
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    pub(crate) fn blobs(&self) -> Vec<Heard> {
        self.heard().into_iter().filter(|heard| heard.path.contains("/blobs/")).collect()
    }
}

/// One request a connection.
fn serve(mut client: &TcpStream, log: &Mutex<Vec<Heard>>, answer: &dyn Fn(&Heard) -> Option<Answer>) -> Option<()> {
    let (first, headers) = head(&mut BufReader::new(client))?;
    let mut heard = Heard { path: first.split(' ').nth(1)?.to_owned(), headers, status: 0 };
    let answer = answer(&heard).unwrap_or_else(|| Answer::plain(502));
    heard.status = answer.status;
    log.lock().unwrap().push(heard);
    let length = answer.body.len();
    let headers: String = answer.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let status = answer.status;
    let head = format!("HTTP/1.1 {status} Said\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n");
    client.write_all(head.as_bytes()).ok()?;
    client.write_all(&answer.body).ok()?;
    client.shutdown(Shutdown::Both).ok()
}

/// The first line of a request or answer, and its headers.
fn head(from: &mut impl BufRead) -> Option<(String, Vec<(String, String)>)> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line.trim_end().is_empty() {
            break;
        }
        lines.push(line.trim_end().to_owned());
    }
    let header = |line: &String| line.split_once(": ").map(|(key, value)| (key.to_lowercase(), value.to_owned()));
    let headers = lines.iter().skip(1).filter_map(header).collect();
    Some((lines.first()?.clone(), headers))
}

/// What a registry on loopback answers.
fn fetch(registry: &str, path: &str, headers: &[(&str, &str)]) -> Option<Answer> {
    let mut server = TcpStream::connect(registry).ok()?;
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    write!(server, "GET {path} HTTP/1.1\r\nHost: {registry}\r\nConnection: close\r\n{headers}\r\n").ok()?;
    let mut server = BufReader::new(server);
    let (first, headers) = head(&mut server)?;
    let mut body = Vec::new();
    server.read_to_end(&mut body).ok()?;
    let kept = ["content-type", "docker-content-digest", "www-authenticate", "location"];
    let length = headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok());
    body.truncate(length?);
    let mut answer = Answer { status: first.split(' ').nth(1)?.parse().ok()?, headers: Vec::new(), body };
    answer.headers = headers.into_iter().filter(|(name, _)| kept.contains(&name.as_str())).collect();
    Some(answer)
}

fn dragonfly(heard: &Heard) -> Option<Answer> {
    let named = heard.header("x-dragonfly-registry").map(str::to_owned).or_else(|| heard.ns())?;
    let registry = named.strip_prefix("http://").unwrap_or(&named);
    let accept = heard.header("accept").unwrap_or("*/*");
    if !heard.path.contains("/blobs/sha256") {
        return fetch(registry, &heard.path, &[("Accept", accept)]);
    }
    let Some(Ok((Some(first), Some(last)))) = heard.range() else {
        return Some(fetch(registry, &heard.path, &[])?.with("X-Dragonfly-Task-ID", "whole"));
    };
    let (start, end) = (first / PIECE * PIECE, (last / PIECE + 1) * PIECE - 1);
    let pieces = fetch(registry, &heard.path, &[("Range", &format!("bytes={start}-{end}"))])?;
    let body = pieces.body.get(usize::try_from(first - start).ok()?..usize::try_from(last - start + 1).ok()?)?.to_vec();
    let size = fetch_size(registry, &heard.path)?;
    let answer = Answer { status: 206, headers: pieces.headers, body };
    Some(answer.with("Content-Range", &format!("bytes {first}-{last}/{size}")).with("X-Dragonfly-Task-ID", "part"))
}

fn fetch_size(registry: &str, path: &str) -> Option<usize> {
    Some(fetch(registry, path, &[])?.body.len())
}

fn spegel(heard: &Heard, layout: &std::path::Path, names: &str, lacks: &dyn Fn(&str) -> bool) -> Answer {
    let path = heard.bare();
    if path.trim_end_matches('/') == "/v2" {
        return Answer::plain(200);
    }
    let found = resolve(heard, layout, names).filter(|digest| !lacks(digest));
    let content = found.and_then(|digest| {
        let content = std::fs::read(layout.join("blobs").join(digest.replace(':', "/"))).ok()?;
        Some((digest, content))
    });
    let Some((digest, content)) = content else { return Answer::plain(404) };
    let answer = |status: u16| Answer::plain(status).with("Docker-Content-Digest", &digest);
    if path.contains("/manifests/") {
        let document: Option<Value> = serde_json::from_slice(&content).ok();
        let media_type = document.as_ref().and_then(|document| document["mediaType"].as_str());
        let media_type = media_type.unwrap_or("application/vnd.oci.image.manifest.v1+json").to_owned();
        return Answer { body: content, ..answer(200) }.with("Content-Type", &media_type);
    }
    let size = content.len() as u64;
    let (first, last) = match heard.range() {
        None => return Answer { body: content, ..answer(200) }.with("Accept-Ranges", "bytes"),
        // Not in its form, or several: a path that it cannot parse.
        Some(Err(()) | Ok((None, None))) => return Answer::plain(404),
        Some(Ok((None, Some(suffix)))) => (size.saturating_sub(suffix), size - 1),
        Some(Ok((Some(first), _))) if first >= size => return Answer::plain(416),
        Some(Ok((Some(first), last))) => (first, last.unwrap_or(size - 1).min(size - 1)),
    };
    let part = content[usize::try_from(first).unwrap()..=usize::try_from(last).unwrap()].to_vec();
    let answer = Answer { body: part, ..answer(206) }.with("Accept-Ranges", "bytes");
    answer
        .with("Content-Type", "application/octet-stream")
        .with("Content-Range", &format!("bytes {first}-{last}/{size}"))
}

/// The digest that is asked for, by its own store.
fn resolve(heard: &Heard, layout: &std::path::Path, names: &str) -> Option<String> {
    let (repository, name) = heard.bare().strip_prefix("/v2/")?.split_once("/manifests/").or_else(|| {
        let (repository, name) = heard.bare().strip_prefix("/v2/")?.split_once("/blobs/")?;
        name.starts_with("sha256:").then_some((repository, name))
    })?;
    if name.starts_with("sha256:") {
        return Some(name.to_owned());
    }
    let full = format!("{}/{repository}:{name}", heard.ns()?);
    let index: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json")).ok()?).ok()?;
    let tagged = |image: &&Value| image["annotations"]["org.opencontainers.image.ref.name"] == *name;
    let image = index["manifests"].as_array()?.iter().find(tagged).filter(|_| full == names)?;
    Some(image["digest"].as_str()?.to_owned())
}
