//! The control socket of a store's server: a request as one line of JSON, answered by lines of JSON of which the last has the outcome.
//!
//! Whoever goes away before that wants its request no more; what has begun to be written is still written whole.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::Error;
use super::open::{Listing, Store};
use crate::mount::options::ImageOptions;
use crate::mount::{Event, Report};

/// How long a client may take to say what it wants, and how long to wait where there are no descriptors.
const PATIENCE: Duration = Duration::from_secs(2);

/// Bytes of the longest request.
const LONGEST: u64 = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Request {
    Add { source: Box<ImageOptions>, name: Option<String>, full: bool },
    Remove { names: Vec<String>, podman: Vec<PathBuf> },
    List,
    Share { user: String, stop: bool },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Answer {
    Event(Event),
    Images(Vec<Listing>),
    Failed { message: String },
}

impl Store {
    /// Does what is asked for. `report` hears how far it is.
    pub(super) async fn perform(&self, request: Request, report: &Report) -> Result<Vec<Listing>, Error> {
        match request {
            Request::Add { source, name, full } => Ok(vec![self.add(*source, name, full, report).await?]),
            Request::Remove { names, podman } => self.remove(&names, &podman, report).await,
            Request::List => Ok(self.list().await),
            Request::Share { user, stop } => self.share(&user, stop).await.map(|()| Vec::new()),
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
    let (input, mut output) = stream.into_split();
    let mut input = tokio::io::BufReader::new(input.take(LONGEST));
    let mut line = String::new();
    tokio::time::timeout(PATIENCE, input.read_line(&mut line)).await??;
    let request: Request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(error) => {
            return say(&mut output, &Answer::Failed { message: other_version(&error) }).await;
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
    let outcome = loop {
        tokio::select! {
            outcome = &mut performing => break outcome,
            Some(event) = heard.recv() => say(&mut output, &Answer::Event(event)).await?,
            _gone = input.read_to_end(&mut rest) => return Ok(()),
        }
    };
    let answer = match outcome {
        Ok(images) => {
            if adds {
                let (store, added) = (Arc::clone(&store), images.clone());
                tokio::spawn(async move {
                    store.join_added(&added).await;
                    store.opened.notify_one();
                });
            }
            Answer::Images(images)
        }
        Err(error) => Answer::Failed { message: error.chain() },
    };
    say(&mut output, &answer).await
}

fn other_version(error: &serde_json::Error) -> String {
    format!("the server is of another version of crfs: {error}; start it again")
}

async fn say(output: &mut tokio::net::unix::OwnedWriteHalf, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    output.write_all(&line).await
}

/// Asks a server, and waits for the outcome.
pub(super) fn ask(
    mut stream: UnixStream,
    request: &Request,
    log: PathBuf,
    on_event: &mut dyn FnMut(&Event),
) -> Result<Vec<Listing>, Error> {
    let silent = |source: io::Error| Error::Silent { log: log.clone(), source };
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
            Answer::Images(images) => return Ok(images),
            Answer::Failed { message } => return Err(Error::Reported { message }),
        }
    }
    Err(silent(io::ErrorKind::UnexpectedEof.into()))
}
