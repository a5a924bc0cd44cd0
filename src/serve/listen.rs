//! `--metrics-listen`: a server's metrics over HTTP/1.1, for Prometheus.
//!
//! On loopback or a socket of the filesystem, and nowhere else: nobody is asked who they are. Clients may be slow or hostile. Each has a time limit, a
//! limit of bytes and one request; where there are too many, the oldest goes. Nobody who serves waits for any of them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::fs;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;
use tokio::task::AbortHandle;

use super::Error;
use crate::image::wire;
use crate::sys::own::short_path;
use crate::sys::{limit, trusted};

/// Connections at a time. One who asks is done within a moment.
const MOST: usize = 16;

/// How long a client may take to ask, and for all of it.
const ASKING: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(10);

/// Bytes of a request, and its headers.
const LONGEST: usize = 16 << 10;
const HEADERS: usize = 64;

/// How long the filesystem of a socket may take.
const DISK: Duration = Duration::from_secs(10);

/// How old an answer may be.
const RECENT: Duration = Duration::from_millis(500);

/// Between two tries to accept where there are no descriptors.
const PAUSE: Duration = Duration::from_secs(1);

/// Prometheus' text format.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Where metrics are served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Listen {
    /// Of loopback.
    Tcp(SocketAddr),
    Unix(#[serde(with = "wire::path")] PathBuf),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORMS: &str = "127.0.0.1:PORT, [::1]:PORT or unix:PATH";
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err(format!("unix: has no path: write {FORMS}"))
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        let address: SocketAddr = text.parse().map_err(|_| format!("{text:?} is not an address: write {FORMS}"))?;
        match address {
            other if !other.ip().is_loopback() => Err(format!(
                "{} can be reached from other machines, and nobody is asked who they are: write {FORMS}, and put a proxy that asks in front of it",
                other.ip()
            )),
            no_port if no_port.port() == 0 => Err(format!("nobody would know which port it is: write {FORMS}")),
            address => Ok(Self::Tcp(address)),
        }
    }
}

/// A place where clients may connect, though nobody answers yet.
pub(crate) struct Listening {
    socket: Socket,
    /// The socket's file, which goes with it.
    file: Option<SocketFile>,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listening {
    /// Before anything is mounted; `None`: nobody has asked for it.
    ///
    /// # Errors
    /// Where somebody else listens there, or this user may not.
    pub(crate) fn asked_for(at: Option<&Listen>) -> Result<Option<Self>, Error> {
        let bind = |at: &Listen| Self::bind(at).map_err(|source| Error::Listen { at: at.to_string(), source });
        at.map(bind).transpose()
    }

    fn bind(at: &Listen) -> io::Result<Self> {
        match at {
            Listen::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(Self { socket: Socket::Tcp(listener), file: None })
            }
            Listen::Unix(path) => {
                let asked = path.clone();
                let (listener, file) = limit::answered(DISK, move || bind_file(&asked))?;
                Ok(Self { socket: Socket::Unix(listener), file: Some(file) })
            }
        }
    }

    /// Answers until the task is dropped. Needs a tokio runtime.
    pub(crate) async fn answer<T>(self, metrics: impl Fn() -> T + Send + Sync + 'static)
    where
        T: Future<Output = String> + Send + 'static,
    {
        let Self { socket, file: _file } = self;
        let metrics = Arc::new(Recent { metrics, last: Mutex::default() });
        let accepting = match Accepting::new(socket) {
            Ok(accepting) => accepting,
            Err(error) => return tracing::warn!(%error, "metrics cannot be served over HTTP"),
        };
        let mut open: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            match accepting.next().await {
                Ok(client) => {
                    open.retain(|client| !client.is_finished());
                    // Whoever came long ago has had their time; who comes now may be the one who scrapes.
                    if open.len() >= MOST {
                        open.pop_front().iter().for_each(AbortHandle::abort);
                    }
                    open.push_back(tokio::spawn(converse(client, Arc::clone(&metrics))).abort_handle());
                }
                Err(error) => {
                    tracing::debug!(%error, "no client for metrics is accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// In a directory that nobody can put another one in the place of, and by a name that is short enough for a socket.
fn bind_file(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it names no file"));
    };
    let dir = trusted::existing(parent)?;
    let path = short_path(dir.as_fd()).join(name);
    let listener = match UnixListener::bind(&path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left(&path) => {
            fs::remove_file(&path)?;
            UnixListener::bind(&path)?
        }
        bound => bound?,
    };
    listener.set_nonblocking(true)?;
    Ok((listener, SocketFile::new(dir, path)?))
}

/// Whether a killed server has left it: a socket of this user at which nobody listens.
fn is_left(path: &Path) -> bool {
    let is_socket =
        |found: fs::Metadata| found.file_type().is_socket() && found.uid() == nix::unistd::geteuid().as_raw();
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let refused = || {
        let address = UnixAddr::new(path)?;
        let client = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(client.as_raw_fd(), &address)
    };
    fs::symlink_metadata(path).is_ok_and(is_socket) && refused() == Err(Errno::ECONNREFUSED)
}

/// The file of a socket, removed when it is dropped, if it is still that one.
struct SocketFile {
    /// What the path leads through.
    _dir: OwnedFd,
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketFile {
    fn new(dir: OwnedFd, path: PathBuf) -> io::Result<Self> {
        let found = fs::symlink_metadata(&path)?;
        Ok(Self { _dir: dir, path, inode: (found.dev(), found.ino()) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.inode) {
            // Where it cannot be removed, the next server does it.
            let _left = fs::remove_file(&self.path);
        }
    }
}

trait Client: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Client for T {}

enum Accepting {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener),
}

impl Accepting {
    fn new(socket: Socket) -> io::Result<Self> {
        Ok(match socket {
            Socket::Tcp(listener) => Self::Tcp(tokio::net::TcpListener::from_std(listener)?),
            Socket::Unix(listener) => Self::Unix(tokio::net::UnixListener::from_std(listener)?),
        })
    }

    async fn next(&self) -> io::Result<Box<dyn Client>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

/// Metrics as they were told lately: however many ask, and however often, they are put together about twice a second.
struct Recent<M> {
    metrics: M,
    last: Mutex<Option<(Instant, Bytes)>>,
}

impl<T: Future<Output = String>, M: Fn() -> T> Recent<M> {
    async fn text(&self) -> Bytes {
        let mut last = self.last.lock().await;
        match &*last {
            Some((when, text)) if when.elapsed() < RECENT => text.clone(),
            _ => {
                let text = Bytes::from((self.metrics)().await);
                *last = Some((Instant::now(), text.clone()));
                text
            }
        }
    }
}

/// One request of one client.
async fn converse<T, M>(client: Box<dyn Client>, metrics: Arc<Recent<M>>)
where
    T: Future<Output = String> + Send + 'static,
    M: Fn() -> T + Send + Sync + 'static,
{
    let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
        let (asks, metrics) = (asked(request.method(), request.uri().path()), Arc::clone(&metrics));
        async move {
            Ok::<_, Infallible>(match asks {
                Ok(()) => response(StatusCode::OK, metrics.text().await),
                Err(status) => refused(status),
            })
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(ASKING)
        .keep_alive(false)
        .max_buf_size(LONGEST)
        .max_headers(HEADERS);
    let conversation = http.serve_connection(TokioIo::new(client), service);
    match tokio::time::timeout(LIMIT, conversation).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a client for metrics was not answered"),
        Err(_) => tracing::debug!("a client for metrics was too slow"),
    }
}

/// Whether a request asks for the metrics; else, the status that tells why not.
fn asked(method: &Method, path: &str) -> Result<(), StatusCode> {
    match path {
        "/metrics" if [Method::GET, Method::HEAD].contains(method) => Ok(()),
        "/metrics" => Err(StatusCode::METHOD_NOT_ALLOWED),
        _ => Err(StatusCode::NOT_FOUND),
    }
}

fn refused(status: StatusCode) -> Response<Full<Bytes>> {
    let mut refused = response(status, Bytes::from_static(b"crfs serves GET /metrics\n"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    refused
}

fn response(status: StatusCode, text: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;

    /// A server, and where it is.
    fn serving(dir: &Path) -> PathBuf {
        let path = dir.join("metrics");
        let listening = Listening::bind(&Listen::Unix(path.clone())).unwrap();
        tokio::spawn(listening.answer(|| std::future::ready("crfs_server 1\n".to_owned())));
        path
    }

    async fn says(path: &Path, request: &[u8]) -> String {
        let mut client = UnixStream::connect(path).await.unwrap();
        // It may be refused before all of it was written.
        let _refused = client.write_all(request).await;
        let mut answer = Vec::new();
        let _reset = client.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn metrics_are_told_to_who_asks_for_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = serving(dir.path());
        let told = says(&path, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(told.starts_with("HTTP/1.1 200 OK\r\n") && told.ends_with("\r\n\r\ncrfs_server 1\n"), "{told}");
        assert!(told.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{told}");
        let head = says(&path, b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
        for (request, status) in [("GET /", "404"), ("GET /metrics/x", "404"), ("POST /metrics", "405")] {
            let refused = says(&path, format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await;
            assert!(refused.starts_with(&format!("HTTP/1.1 {status} ")), "{refused}");
        }
        assert!(says(&path, b"hello\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
        let huge = [b"GET /metrics HTTP/1.1\r\nX: ".as_slice(), &[b'x'; 2 * LONGEST], b"\r\n\r\n"].concat();
        assert!(says(&path, &huge).await.starts_with("HTTP/1.1 431 "));
    }

    #[tokio::test]
    async fn clients_that_say_nothing_keep_nobody_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = serving(dir.path());
        let mut silent = Vec::new();
        for _ in 0..2 * MOST {
            silent.push(UnixStream::connect(&path).await.unwrap());
        }
        assert!(says(&path, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.contains("crfs_server 1"));
        // The first have made room for the last.
        assert_eq!(silent[0].read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn what_a_killed_server_has_left_is_taken_over_and_what_others_have_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (left, file) = (dir.path().join("left"), dir.path().join("file"));
        drop(UnixListener::bind(&left).unwrap());
        let first = Listening::bind(&Listen::Unix(left.clone())).unwrap();
        assert!(Listening::bind(&Listen::Unix(left.clone())).is_err(), "somebody listens there");
        drop(first);
        assert!(!left.exists());
        fs::write(&file, "theirs").unwrap();
        assert!(Listening::bind(&Listen::Unix(file.clone())).is_err());
        let deep = dir.path().join("d".repeat(200));
        fs::create_dir(&deep).unwrap();
        assert!(Listening::bind(&Listen::Unix(deep.join("long"))).is_ok(), "longer than a socket's address");
        // Somebody else's link, where anybody may make one.
        let (open, link) = (dir.path().join("open"), dir.path().join("open/link"));
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
        std::os::unix::fs::symlink(&deep, &link).unwrap();
        if std::os::unix::fs::lchown(&link, Some(4242), None).is_ok() {
            assert!(Listening::bind(&Listen::Unix(link.join("socket"))).is_err());
        }
        assert_eq!(fs::read(&file).unwrap(), b"theirs");
    }

    #[test]
    fn only_this_machine_is_told() {
        for text in ["127.0.0.1:9155", "[::1]:9155", "127.8.8.8:1", "unix:/run/x"] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        let refused = |text: &str| text.parse::<Listen>().unwrap_err();
        for text in ["0.0.0.0:9155", "[::]:9155", "192.0.2.1:80"] {
            assert!(refused(text).contains("other machines"), "{text}");
        }
        for text in ["localhost:9155", "9155", ":9155", "127.0.0.1", "unix:", "127.0.0.1:0", "/run/x"] {
            assert!(refused(text).contains("127.0.0.1:PORT"), "{text}");
        }
    }
}
