//! The control socket of a store's server: a request as one line of JSON, answered by lines of JSON of which the last has the outcome.
//!
//! Whoever goes away before that wants its request no more; what has begun to be written is still written whole.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use super::Error;
use super::Store;
use super::open::Listing;
use super::paths::Paths;
use crate::image::options::ImageOptions;
use crate::image::{Event, Report};
use crate::serve::state::short_path;
use crate::threads::{self, Work};

/// How long a client may take to say what it wants, and how long to wait where there are no descriptors.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often a server that works says that it does, and how long one that says nothing is waited for: it is stopped, or gone astray.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
const SILENCE: Duration = Duration::from_secs(30);
/// How long the store's disk may take to answer while a request is worked on.
const DISK: Duration = Duration::from_secs(10);

/// Bytes of the longest request.
const LONGEST: u64 = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Request {
    Add { source: Box<ImageOptions>, name: Option<String>, full: bool },
    Remove { names: Vec<String>, podman: Vec<PathBuf> },
    List,
    Share { user: String, stop: bool },
    Metrics,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Answer {
    Event(Event),
    /// The request is being worked on.
    Working,
    Images(Vec<Listing>),
    Metrics(String),
    Failed {
        message: String,
    },
}

pub(super) const SOCKET: &str = "control.sock";

/// Connects to the server by a name that is short enough for a socket, wherever the store is.
pub(super) fn connect(paths: &Paths, patience: Duration) -> io::Result<UnixStream> {
    let dir = File::open(&paths.state)?;
    crate::serve::control::connect(&short_path(dir.as_fd()).join(SOCKET), patience)
}

impl Answer {
    /// Those that it is about.
    pub(super) fn images(self) -> Vec<Listing> {
        match self {
            Self::Images(images) => images,
            _ => Vec::new(),
        }
    }
}

impl Store {
    /// Does what is asked for. `report` hears how far it is.
    pub(super) async fn perform(&self, request: Request, report: &Report) -> Result<Answer, Error> {
        match request {
            Request::Add { source, name, full } => {
                Ok(Answer::Images(vec![self.add(*source, name, full, report).await?]))
            }
            Request::Remove { names, podman } => self.remove(&names, &podman, report).await.map(Answer::Images),
            Request::List => Ok(Answer::Images(self.list().await)),
            Request::Share { user, stop } => self.share(&user, stop).await.map(|()| Answer::Images(Vec::new())),
            Request::Metrics => Ok(Answer::Metrics(self.metrics().await)),
        }
    }
}

/// Answers until the task is dropped.
pub(super) async fn answer(listener: UnixListener, store: Arc<Store>) {
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::warn!(%error, "the control socket cannot be served"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(converse(stream, Arc::clone(&store)))),
            Err(error) => {
                tracing::warn!(%error, "control connection refused");
                tokio::time::sleep(PATIENCE).await;
            }
        }
    }
}

async fn converse(stream: tokio::net::UnixStream, store: Arc<Store>) -> io::Result<()> {
    let (input, output) = stream.into_split();
    let output = Arc::new(Mutex::new(output));
    let mut input = tokio::io::BufReader::new(input.take(LONGEST));
    let mut line = String::new();
    tokio::time::timeout(PATIENCE, input.read_line(&mut line)).await??;
    let request: Request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(error) => {
            return say(&output, &Answer::Failed { message: other_version(&error) }).await;
        }
    };
    let adds = matches!(request, Request::Add { .. });
    let (events, mut heard) = mpsc::unbounded_channel();
    let report: Report = Arc::new(move |event| {
        // Whoever listened may be gone.
        drop(events.send(event.clone()));
        Ok(())
    });
    let performing = store.perform(request, &report);
    tokio::pin!(performing);
    let mut rest = Vec::new();
    // By a task of its own: the request may keep its thread for long.
    let mut signs = JoinSet::new();
    signs.spawn(say_that_it_works(Arc::clone(&output), store.paths.clone()));
    let outcome = loop {
        tokio::select! {
            outcome = &mut performing => break outcome,
            Some(event) = heard.recv() => say(&output, &Answer::Event(event)).await?,
            _gone = input.read_to_end(&mut rest) => return Ok(()),
        }
    };
    let answer = match outcome {
        Ok(answer) => {
            if adds {
                let (store, added) = (Arc::clone(&store), answer.clone().images());
                tokio::spawn(async move {
                    store.join_added(&added).await;
                    store.opened.notify_one();
                });
            }
            answer
        }
        Err(error) => Answer::Failed { message: error.chain() },
    };
    // Where nobody writes, none is cut short within a line.
    let mut output = output.lock().await;
    drop(signs);
    write(&mut output, &answer).await
}

fn other_version(error: &serde_json::Error) -> String {
    format!("the server is of another version of crfs: {error}; start it again")
}

/// Until nobody listens any more, or the task is given up. A store whose disk has stopped does not work: then whoever waits is told so.
async fn say_that_it_works(output: Arc<Mutex<OwnedWriteHalf>>, paths: Paths) {
    let mut ticks = tokio::time::interval(SIGN_OF_LIFE);
    loop {
        ticks.tick().await;
        let asked = paths.clone();
        let disk = threads::run(Work::Outside, move || asked.ask_disk());
        if tokio::time::timeout(DISK, disk).await.is_err() {
            let (root, seconds) = (paths.root.display(), DISK.as_secs());
            let message =
                format!("{root}: its filesystem has not answered the server for {seconds} s; this is given up");
            tracing::warn!("{message}");
            // Whoever listens has all there is to hear.
            return drop(say(&output, &Answer::Failed { message }).await);
        }
        if say(&output, &Answer::Working).await.is_err() {
            return;
        }
    }
}

async fn say(output: &Mutex<OwnedWriteHalf>, answer: &Answer) -> io::Result<()> {
    write(&mut *output.lock().await, answer).await
}

async fn write(output: &mut OwnedWriteHalf, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    output.write_all(&line).await
}

/// Asks a server, and waits for the outcome.
pub(super) fn ask(
    stream: UnixStream,
    request: &Request,
    log: PathBuf,
    on_event: &mut dyn FnMut(&Event),
) -> Result<Answer, Error> {
    ask_within(SILENCE, stream, request, log, on_event)
}

fn ask_within(
    silence: Duration,
    mut stream: UnixStream,
    request: &Request,
    log: PathBuf,
    on_event: &mut dyn FnMut(&Event),
) -> Result<Answer, Error> {
    let silent = |source: io::Error| match source.kind() {
        io::ErrorKind::WouldBlock => Error::Stopped { log: log.clone(), seconds: silence.as_secs() },
        _ => Error::Silent { log: log.clone(), source },
    };
    let limits = stream.set_read_timeout(Some(silence)).and_then(|()| stream.set_write_timeout(Some(silence)));
    limits.map_err(silent)?;
    let mut line = serde_json::to_vec(request).map_err(|error| silent(error.into()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(silent)?;
    for line in BufReader::new(stream).lines() {
        let answer = serde_json::from_str(&line.map_err(silent)?);
        let wrong = |error: serde_json::Error| match error.is_data() {
            true => Error::Reported { message: other_version(&error) },
            // It has ended within a line.
            false => silent(error.into()),
        };
        match answer.map_err(wrong)? {
            Answer::Event(event) => on_event(&event),
            Answer::Working => {}
            Answer::Failed { message } => return Err(Error::Reported { message }),
            answer => return Ok(answer),
        }
    }
    Err(silent(io::ErrorKind::UnexpectedEof.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_says_nothing_is_not_waited_for() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let asked = ask_within(Duration::from_millis(10), ours, &Request::List, "/log".into(), &mut |_| {});
        assert!(matches!(asked, Err(Error::Stopped { .. })), "{asked:?}");
    }

    #[test]
    fn one_that_works_is() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        for answer in [Answer::Working, Answer::Images(Vec::new())] {
            theirs.write_all(&[serde_json::to_vec(&answer).unwrap(), b"\n".to_vec()].concat()).unwrap();
        }
        assert!(ask(ours, &Request::List, "/log".into(), &mut |_| {}).unwrap().images().is_empty());
    }
}
