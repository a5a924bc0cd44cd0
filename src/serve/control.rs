//! The sockets of a mount's server. A connection to the control socket is answered with the server's status, one to the metrics socket with its metrics.
//! One to the leave socket asks the server to unmount, and is answered with the outcome. Each answer is one JSON document.

use std::fs::{self, Permissions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::{PeerCredentials, SendTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, getsockopt, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

use crate::fetch::Stats;
use crate::threads::{self, Work};

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same for a server that unmounts: the filesystem that it has mounted on may be slow (mounts.rs, fusedev.rs).
const UNMOUNTING: Duration = Duration::from_secs(25);
/// More than any answer has.
const LONGEST_ANSWER: usize = 8 << 20;

/// What a server says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    #[serde(flatten)]
    pub stats: Stats,
    pub last_error: Option<String>,
}

impl Activity {
    /// Both together; of two last errors, the other's.
    pub(crate) fn and(self, other: Self) -> Self {
        let (a, b) = (self.stats, other.stats);
        let stats = Stats {
            served: a.served.saturating_add(b.served),
            fetched: a.fetched.saturating_add(b.fetched),
            cached: a.cached.saturating_add(b.cached),
            requests: a.requests.saturating_add(b.requests),
            errors: a.errors.saturating_add(b.errors),
            uncached: a.uncached.saturating_add(b.uncached),
        };
        Self { stats, last_error: other.last_error.or(self.last_error) }
    }
}

/// Asks the view for its figures.
pub(crate) type Figures = Arc<dyn Fn() -> Activity + Send + Sync>;

/// Makes the socket, for its owner alone. Its directory is private, so nobody reaches it before its mode is set.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Tells the server's figures until the task is dropped. Needs a tokio runtime.
pub(crate) async fn answer(listener: UnixListener, figures: Figures) {
    serve(listener, PATIENCE, move || std::future::ready(serde_json::to_vec(&figures()))).await;
}

/// Tells the server's metrics, in Prometheus' text format, until the task is dropped.
pub(crate) async fn answer_metrics<T>(listener: UnixListener, metrics: impl Fn() -> T)
where
    T: Future<Output = String> + Send + 'static,
{
    let answer = || {
        let text = metrics();
        async move { serde_json::to_vec(&text.await) }
    };
    serve(listener, PATIENCE, answer).await;
}

/// Asks the server behind such a socket for its metrics.
pub(crate) fn ask_for_metrics(path: &Path) -> io::Result<String> {
    told_within(path, PATIENCE)
}

/// What came of asking a server to unmount: where it has not, why.
pub(crate) type Left = Result<(), String>;

/// Calls `leave` for each connection, and tells what came of it.
pub(crate) async fn answer_leave(listener: UnixListener, leave: impl Fn() -> Left + Send + Sync + 'static) {
    let leave = Arc::new(leave);
    let answer = move || {
        let leave = Arc::clone(&leave);
        async move {
            let left = threads::run(Work::Outside, move || leave()).await;
            serde_json::to_vec(&left.unwrap_or_else(|lost| Err(lost.to_string())))
        }
    };
    serve(listener, UNMOUNTING, answer).await;
}

/// Asks the server behind such a socket to unmount.
pub(crate) fn ask_to_leave(path: &Path) -> io::Result<Left> {
    told_within(path, UNMOUNTING)
}

/// The process behind such a socket, by the number that it has here. Its own number is that of its PID namespace.
pub(crate) fn server_of(path: &Path) -> io::Result<u32> {
    let server = getsockopt(&connect(path, PATIENCE)?, PeerCredentials)?;
    u32::try_from(server.pid()).map_err(io::Error::other)
}

async fn serve<A>(listener: UnixListener, patience: Duration, answer: impl Fn() -> A)
where
    A: Future<Output = serde_json::Result<Vec<u8>>> + Send + 'static,
{
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::warn!(%error, "the control socket cannot be served"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(tokio::time::timeout(patience, tell(stream, answer())))),
            Err(error) => {
                // No descriptors, most likely: what is open has to close first.
                tracing::warn!(%error, "control connection refused");
                tokio::time::sleep(PATIENCE).await;
            }
        }
    }
}

async fn tell(
    mut stream: tokio::net::UnixStream,
    answer: impl Future<Output = serde_json::Result<Vec<u8>>>,
) -> io::Result<()> {
    let answer = answer.await?;
    stream.write_all(&answer).await?;
    stream.shutdown().await
}

/// Asks the server behind a socket.
pub(crate) fn ask(path: &Path) -> io::Result<Activity> {
    told_within(path, PATIENCE)
}

fn told_within<T: DeserializeOwned>(path: &Path, patience: Duration) -> io::Result<T> {
    let end = Instant::now() + patience;
    let mut stream = connect(path, patience)?;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        // The kernel takes none for no limit at all.
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match stream.read(&mut part)? {
            0 => return Ok(serde_json::from_slice(&answer)?),
            _ if answer.len() > LONGEST_ANSWER => return Err(io::Error::other("its answer is too long")),
            _ if left.is_zero() => return Err(io::ErrorKind::TimedOut.into()),
            read => answer.extend(part.get(..read).unwrap_or_default()),
        }
    }
}

/// Connects to a server. One that is stopped takes as many connections as its backlog has; whoever comes then would wait for ever.
pub(crate) fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let millis = i64::try_from(patience.as_millis()).unwrap_or(i64::MAX);
    setsockopt(&socket, SendTimeout, &TimeVal::milliseconds(millis.max(1)))?;
    nix::sys::socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn whoever_connects_is_told_the_figures_of_that_moment() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let listener = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);

        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let stats = Stats { served: 1, fetched: 2, cached: 3, requests: 4, errors: 5, uncached: 6 };
        let expected = Activity { stats, last_error: Some("gone".into()) };
        let told = expected.clone();
        runtime.spawn(answer(listener, Arc::new(move || told.clone())));
        for _ in 0..3 {
            assert_eq!(ask(&path).unwrap(), expected);
        }
        assert_eq!(server_of(&path).unwrap(), std::process::id());
    }

    #[test]
    fn whoever_asks_a_server_to_leave_is_told_what_came_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leave.sock");
        let listener = bind(&path).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let leave = move || match asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => Err("it is in use".to_owned()),
            _ => Ok(()),
        };
        runtime.spawn(answer_leave(listener, leave));
        assert_eq!(ask_to_leave(&path).unwrap(), Err("it is in use".to_owned()));
        assert_eq!(ask_to_leave(&path).unwrap(), Ok(()));
    }

    #[test]
    fn whoever_asks_for_metrics_is_told_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.sock");
        let listener = bind(&path).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(answer_metrics(listener, || std::future::ready("crfs_served_bytes_total 1\n".to_owned())));
        assert_eq!(ask_for_metrics(&path).unwrap(), "crfs_served_bytes_total 1\n");
    }

    #[test]
    fn layers_add_up() {
        let one = Stats { served: 1, fetched: 2, cached: 3, requests: 4, errors: u64::MAX, uncached: 6 };
        let with_error = Activity { stats: one, last_error: Some("e".into()) };
        let without = Activity { stats: one, last_error: None };
        let sum = with_error.and(without);
        assert_eq!(sum.stats, Stats { served: 2, fetched: 4, cached: 6, requests: 8, errors: u64::MAX, uncached: 12 });
        assert_eq!(sum.last_error.as_deref(), Some("e"));
    }

    /// As that of a server that is stopped: `status` would hang in connect(2).
    #[test]
    fn a_server_whose_backlog_is_full_is_not_waited_for() {
        use nix::sys::socket::{Backlog, bind, listen};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let mut waiting = Vec::new();
        let full = loop {
            match connect(&path, Duration::from_millis(20)) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert!(!waiting.is_empty() && full.kind() == io::ErrorKind::WouldBlock, "{full}");
        assert!(told_within::<Activity>(&path, Duration::from_millis(20)).is_err());
        // There is room again, and nobody who answers.
        waiting.clear();
        let listener = UnixListener::from(listener);
        drop(listener.accept().unwrap());
        assert!(told_within::<Activity>(&path, Duration::from_millis(20)).is_err());
    }

    #[test]
    fn a_server_that_is_gone_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        drop(bind(&path).unwrap());
        assert_eq!(ask(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
