//! Asks servers by their control sockets (control.rs). One that is stopped is not waited for, nor one that says nothing.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::sockopt::{PeerCredentials, SendTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, getsockopt, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::control::{Answer, Request, SOCKET};
use super::service::{Nothing, Told};
use crate::image::Event;
use crate::sys::own::short_path;

/// How long a server is waited for that is asked for what it knows at once.
pub(crate) const GLANCE: Duration = Duration::from_secs(2);
/// The same of one that works on a request, and says so meanwhile.
pub(crate) const SILENCE: Duration = Duration::from_secs(30);

/// More than any line of an answer has.
const LONGEST: u64 = 8 << 20;

/// Why a server has not done what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    #[error("it has not answered for {seconds} s: it is stopped, or waits for a filesystem that does not answer")]
    Stopped { seconds: u64 },
    #[error("it ended before it had answered")]
    Ended { source: io::Error },
    #[error("another server has taken its place meanwhile, and not for the upgrade: ask again")]
    Replaced,
    #[error("it is of another version of crfs: end it, and start it again")]
    OtherVersion,
    #[error("{message}")]
    Failed { message: String },
    /// Its keeper says so.
    #[error("{message}")]
    Troubled { message: String, keeper: u32 },
}

/// Connects to a server by the directory of its state, for which it has a name that is short enough for a socket. One that is stopped takes as many
/// connections as its backlog has; whoever comes then would wait for ever.
pub(crate) fn connect(dir: BorrowedFd<'_>, patience: Duration) -> Result<UnixStream, Unanswered> {
    connected(&short_path(dir).join(SOCKET), patience).map_err(|source| silent(patience, source))
}

fn connected(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let millis = i64::try_from(patience.as_millis()).unwrap_or(i64::MAX);
    setsockopt(&socket, SendTimeout, &TimeVal::milliseconds(millis.max(1)))?;
    nix::sys::socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket.into())
}

/// The process behind a connection, by the number that it has here. Its own number is that of its PID namespace.
pub(crate) fn server_of(stream: &UnixStream) -> io::Result<u32> {
    u32::try_from(getsockopt(stream, PeerCredentials)?.pid()).map_err(io::Error::other)
}

/// Asks a server how it is.
pub(crate) fn status(stream: UnixStream) -> Result<Told, Unanswered> {
    match ask::<Nothing, Nothing>(stream, &Request::Status, GLANCE, &mut |_| {})? {
        Answer::Status(told) => Ok(told),
        _ => Err(Unanswered::OtherVersion),
    }
}

/// Asks a server for its metrics, in Prometheus' text format.
pub(crate) fn metrics(stream: UnixStream) -> Result<String, Unanswered> {
    match ask::<Nothing, Nothing>(stream, &Request::Metrics, GLANCE, &mut |_| {})? {
        Answer::Metrics(text) => Ok(text),
        _ => Err(Unanswered::OtherVersion),
    }
}

/// Asks a server to unmount.
pub(crate) fn leave(stream: UnixStream) -> Result<(), Unanswered> {
    match ask::<Nothing, Nothing>(stream, &Request::Leave, SILENCE, &mut |_| {})? {
        Answer::Left => Ok(()),
        _ => Err(Unanswered::OtherVersion),
    }
}

/// Asks a server, and waits for the outcome. One that says nothing for `silence` is given up.
pub(crate) fn ask<Q: Serialize, A: DeserializeOwned>(
    mut stream: UnixStream,
    request: &Request<Q>,
    silence: Duration,
    on_event: &mut dyn FnMut(&Event),
) -> Result<Answer<A>, Unanswered> {
    let silent = |source| silent(silence, source);
    let limits = stream.set_read_timeout(Some(silence)).and_then(|()| stream.set_write_timeout(Some(silence)));
    limits.map_err(silent)?;
    let mut line = serde_json::to_vec(request).map_err(|error| silent(error.into()))?;
    line.push(b'\n');
    match stream.write_all(&line) {
        // What it has said before it went says more.
        Err(error) if !is_gone(&error) => return Err(silent(error)),
        _ => {}
    }
    let mut lines = BufReader::new(stream);
    loop {
        let line = next_line(&mut lines).map_err(silent)?;
        let wrong = |error: serde_json::Error| match error.is_eof() {
            // It has ended within a line.
            true => silent(error.into()),
            false => Unanswered::OtherVersion,
        };
        match serde_json::from_slice(&line).map_err(wrong)? {
            Answer::Event(event) => on_event(&event),
            Answer::Working => {}
            Answer::Failed { message } => return Err(Unanswered::Failed { message }),
            Answer::Troubled { message, keeper } => return Err(Unanswered::Troubled { message, keeper }),
            answer => return Ok(answer),
        }
    }
}

fn silent(patience: Duration, source: io::Error) -> Unanswered {
    match source.kind() {
        io::ErrorKind::WouldBlock => Unanswered::Stopped { seconds: patience.as_secs() },
        _ => Unanswered::Ended { source },
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// A line, or what stands at the end without one: a server of an older crfs says all that it has to say unasked, and goes.
fn next_line(lines: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let read = lines.take(LONGEST).read_until(b'\n', &mut line);
    match read {
        Err(error) if line.is_empty() || !is_gone(&error) => Err(error),
        _ if line.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
        _ if line.len() as u64 >= LONGEST => Err(io::Error::other("its answer is too long")),
        _ => Ok(line),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::sys::own::OwnDir;

    const MOMENT: Duration = Duration::from_millis(20);

    /// As that of a server that is stopped: whoever asks would hang in connect(2).
    #[test]
    fn a_server_whose_backlog_is_full_is_not_waited_for() {
        use nix::sys::socket::{Backlog, bind, listen};
        let dir = tempfile::tempdir().unwrap();
        let (path, own) = (dir.path().join(SOCKET), OwnDir::open(dir.path()).unwrap());
        let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let mut waiting = Vec::new();
        let full = loop {
            match connect(own.as_fd(), MOMENT) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert!(!waiting.is_empty() && matches!(full, Unanswered::Stopped { .. }), "{full}");
        // There is room again, and nobody who answers.
        waiting.clear();
        let listener = UnixListener::from(listener);
        drop(listener.accept().unwrap());
        let stream = connect(own.as_fd(), MOMENT).unwrap();
        let asked = ask::<Nothing, Nothing>(stream, &Request::Status, MOMENT, &mut |_| {});
        assert!(matches!(asked, Err(Unanswered::Stopped { .. })), "{asked:?}");
    }

    #[test]
    fn a_server_that_is_gone_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let own = OwnDir::open(dir.path()).unwrap();
        assert!(matches!(connect(own.as_fd(), MOMENT), Err(Unanswered::Ended { .. })));
        drop(UnixListener::bind(dir.path().join(SOCKET)).unwrap());
        assert!(matches!(connect(own.as_fd(), MOMENT), Err(Unanswered::Ended { .. })));
    }

    /// What comes of asking a server for its metrics that says just that, and goes.
    fn said(text: &str) -> Result<String, Unanswered> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(text.as_bytes()).unwrap();
        drop(theirs);
        metrics(ours)
    }

    #[test]
    fn one_that_works_is_waited_for() {
        assert_eq!(said("\"working\"\n\"working\"\n{\"metrics\":\"text\"}\n").unwrap(), "text");
        assert!(matches!(said("\"working\"\n"), Err(Unanswered::Ended { .. })));
        assert!(matches!(said("\"working\"\n{\"metr"), Err(Unanswered::Ended { .. })));
        assert!(
            matches!(said("{\"failed\":{\"message\":\"why\"}}\n"), Err(Unanswered::Failed { message }) if message == "why")
        );
    }

    /// It has said what it is asked for by the first version's sockets, without a question, and is gone before it has read one.
    #[test]
    fn a_server_of_another_version_is_told_from_one_that_failed() {
        let status = r#"{"served":1,"fetched":2,"cached":3,"requests":4,"errors":5,"unkept":6,"last_error":null}"#;
        for answer in [status, "null", "\"# HELP crfs_server ...\"", "\"left\"\n", "HTTP/1.1 400 Bad Request\r\n"] {
            assert!(matches!(said(answer), Err(Unanswered::OtherVersion)), "{answer}");
        }
    }

    /// It answers without having read what it is asked, so that the connection is reset.
    #[test]
    fn what_a_server_has_said_before_it_went_is_heard() {
        let dir = tempfile::tempdir().unwrap();
        let own = OwnDir::open(dir.path()).unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        let stream = connect(own.as_fd(), MOMENT).unwrap();
        let answer = std::thread::spawn(move || {
            let (mut theirs, _) = listener.accept().unwrap();
            // Until the question is there.
            while nix::sys::socket::recv(theirs.as_raw_fd(), &mut [0], nix::sys::socket::MsgFlags::MSG_PEEK).is_err() {}
            theirs.write_all(b"{\"served\":1}").unwrap();
        });
        let asked = status(stream);
        answer.join().unwrap();
        assert!(matches!(asked, Err(Unanswered::OtherVersion)), "{asked:?}");
    }
}
