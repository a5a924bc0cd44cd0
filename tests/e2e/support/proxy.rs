//! A reverse proxy in front of a registry that writes down what was asked and how many bytes were sent.
//!
//! Plain HTTP/1.1, one request per connection, bodies passed on as they come: enough for pulls on loopback, and nothing that could hide a
//! request from the count.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use super::counts::{self, Account, Answers};

/// One request that came, noted when it came; `status` and `sent` follow as the answer does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub(crate) path: String,
    /// The `Range` header: first and last byte.
    pub(crate) range: Option<(u64, u64)>,
    pub(crate) status: u16,
    /// Bytes of the body that went to the client.
    pub(crate) sent: u64,
}

/// Runs until the test process ends: its threads wait for connections that no longer come.
pub(crate) struct Proxy {
    port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
    _account: Arc<Account>,
}

/// Those that were answered.
fn answers(asked: &[Asked]) -> Answers {
    let mut answers = Answers::default();
    for Asked { path, status, sent, .. } in asked.iter().filter(|asked| asked.status > 0) {
        answers.add(*status, if path.contains("/blobs/") && matches!(status, 200 | 206) { *sent } else { 0 });
    }
    answers
}

impl Proxy {
    /// A proxy for the registry at `upstream` (a port on loopback), at a port of its own.
    pub(crate) fn new(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&asked);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let asked = Arc::clone(&shared);
                thread::spawn(move || serve(&client, upstream, &asked));
            }
        });
        // What it passes on is not asked for by whoever asks the registry by its own name.
        counts::shared(upstream);
        let counted = Arc::clone(&asked);
        let account = Account::new(port, move || answers(&counted.lock().unwrap()));
        Self { port, asked, _account: account }
    }

    /// The same image, asked for through the proxy.
    pub(crate) fn through(&self, reference: &str) -> String {
        let (_, rest) = reference.split_once('/').unwrap();
        format!("127.0.0.1:{}/{rest}", self.port)
    }

    /// All requests so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// The blob requests so far.
    pub(crate) fn blobs(&self) -> Vec<Asked> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|asked| asked.path.contains("/blobs/")).cloned().collect()
    }

    /// Those for one blob.
    pub(crate) fn blob(&self, digest: &str) -> Vec<Asked> {
        self.blobs().into_iter().filter(|asked| asked.path.ends_with(digest)).collect()
    }
}

/// One connection. Where the registry is not there, or either end goes away, the connection just closes.
fn serve(client: &TcpStream, upstream: u16, log: &Mutex<Vec<Asked>>) -> Option<()> {
    let (asked, head) = request(&mut BufReader::new(client)).ok()?;
    let place = {
        let mut log = log.lock().unwrap();
        log.push(asked);
        log.len() - 1
    };
    let server = TcpStream::connect(("127.0.0.1", upstream)).ok()?;
    (&server).write_all(head.as_bytes()).ok()?;
    let mut answer = BufReader::new(&server);
    let (status, head) = response(&mut answer).ok()?;
    log.lock().unwrap()[place].status = status;
    let mut to_client = client;
    to_client.write_all(head.as_bytes()).ok()?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = answer.read(&mut buffer).ok().filter(|n| *n > 0);
        let Some(n) = n else { return client.shutdown(Shutdown::Both).ok() };
        to_client.write_all(&buffer[..n]).ok()?;
        log.lock().unwrap()[place].sent += n as u64;
    }
}

/// A request's head, made to close its connection, and what it asks for.
fn request(from: &mut impl BufRead) -> io::Result<(Asked, String)> {
    let lines = head_lines(from)?;
    let path = lines.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
    let asked = Asked { path, range: lines.iter().find_map(|line| range(line)), ..Asked::default() };
    Ok((asked, closing(&lines)))
}

/// A response's head, made to close its connection, and its status.
fn response(from: &mut impl BufRead) -> io::Result<(u16, String)> {
    let lines = head_lines(from)?;
    let status = lines.first().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    Ok((status.ok_or(io::ErrorKind::InvalidData)?, closing(&lines)))
}

/// The lines up to the empty one, without their line ends.
fn head_lines(from: &mut impl BufRead) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            return Ok(lines);
        }
        lines.push(line);
    }
}

fn closing(lines: &[String]) -> String {
    let kept = lines.iter().filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
    let kept: String = kept.map(|line| format!("{line}\r\n")).collect();
    format!("{kept}Connection: close\r\n\r\n")
}

/// `Range: bytes=FIRST-LAST`
fn range(line: &str) -> Option<(u64, u64)> {
    let line = line.to_ascii_lowercase();
    let (first, last) = line.strip_prefix("range: bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}
