//! The control socket of a server: a request as one line of JSON, answered by lines of JSON of which the last has the outcome.
//!
//! Every server answers `status`, which waits for no disk, `metrics`, which waits for the cache's a second at most, and `leave`. What it is asked
//! besides is its service's.
//! Whoever goes away before the outcome wants their request no more; what has begun to be written is still written whole.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use super::frontend::Place;
use super::kept::Keeping;
use super::service::{Activity, Nothing, Service, Told};
use crate::errors::chain;
use crate::image::{Event, Report};
use crate::metrics::{METRICS, Snapshot};
use crate::threads::{self, Work};

/// The socket's name in the directory of the server's state.
pub(crate) const SOCKET: &str = "control.sock";

/// How long a line may wait for whoever does not read: then they want to hear nothing more.
const UNREAD: Duration = Duration::from_secs(30);

/// How long a client may take to say what it wants, and how long to wait where there are no descriptors.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a server that works says that it does.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
/// How long a disk may take to answer while a request is worked on.
const DISK: Duration = Duration::from_secs(10);
/// Bytes of the longest request.
const LONGEST: u64 = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request<Q = Nothing> {
    Status,
    Metrics,
    /// To unmount, where nothing uses the mount.
    Leave,
    /// That the program that is installed now takes over. Answered only where it does not.
    Upgrade,
    #[serde(untagged)]
    Own(Q),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer<A = Nothing> {
    Event(Event),
    /// The request is being worked on.
    Working,
    Status(Told),
    Metrics(String),
    Left,
    Failed {
        message: String,
    },
    /// Said by a keeper, whose workers die.
    Troubled {
        message: String,
        keeper: u32,
    },
    #[serde(untagged)]
    Own(A),
}

/// Makes the socket, for its owner alone. Its directory is private, so nobody reaches it before its mode is set.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Who answers.
pub(crate) struct Answering<S> {
    pub(crate) service: Arc<S>,
    pub(crate) frontend: &'static str,
    /// Seconds since 1970.
    pub(crate) started: u64,
    pub(crate) kept: Arc<std::sync::Mutex<Option<Keeping>>>,
    pub(crate) place: Place,
}

impl<S: Service> Answering<S> {
    fn told(&self) -> Told {
        let layers = self.service.layers();
        let (images, activity) = (self.service.images(), self.service.past().and(Activity::of(&layers)));
        let (frontend, started) = (self.frontend.to_owned(), self.started);
        let (kept, endpoints) = (self.keeping().map(|keeping| keeping.told()), self.service.common().endpoints());
        let (pulled, layers) = (self.service.pulled(), layers.len());
        Told { frontend, started, kept, images, layers, pulled, endpoints, activity }
    }

    pub(super) async fn metrics(&self) -> String {
        let levels = self.service.common().levels().await;
        METRICS.text(&Snapshot { server: self.service.id(), kind: S::KIND, ..levels })
    }

    fn keeping(&self) -> Option<Keeping> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn leave(&self) -> Result<(), String> {
        if let Some(why) = self.service.stays() {
            return Err(why.to_owned());
        }
        self.place.leave().map_err(|error| chain(&error))
    }

    async fn perform(self: Arc<Self>, request: Request<S::Request>, report: Report) -> Answer<S::Answer> {
        let done = match request {
            Request::Status => Ok(Answer::Status(self.told())),
            Request::Metrics => Ok(Answer::Metrics(self.metrics().await)),
            Request::Leave => {
                let left = threads::run(Work::Outside, move || self.leave()).await;
                left.unwrap_or_else(|lost| Err(lost.to_string())).map(|()| Answer::Left)
            }
            Request::Upgrade => Err(match self.keeping() {
                Some(keeping) => keeping.upgrade().await,
                None => "it ends with its process, and so it cannot be upgraded while it is mounted".to_owned(),
            }),
            Request::Own(own) => Arc::clone(&self.service).perform(own, report).await.map(Answer::Own),
        };
        done.unwrap_or_else(|message| Answer::Failed { message })
    }
}

/// Answers until the task is dropped. Needs a tokio runtime.
pub(crate) async fn answer<S: Service>(listener: UnixListener, server: Arc<Answering<S>>) {
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::warn!(%error, "the control socket cannot be served"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(converse(stream, Arc::clone(&server)))),
            Err(error) => {
                // No descriptors, most likely: what is open has to close first.
                tracing::warn!(%error, "control connection refused");
                tokio::time::sleep(PATIENCE).await;
            }
        }
    }
}

async fn converse<S: Service>(stream: tokio::net::UnixStream, server: Arc<Answering<S>>) -> io::Result<()> {
    let (input, output) = stream.into_split();
    let output = Arc::new(Mutex::new(output));
    let mut input = tokio::io::BufReader::new(input.take(LONGEST));
    let mut line = String::new();
    tokio::time::timeout(PATIENCE, input.read_line(&mut line)).await??;
    let request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(error) => {
            let message = format!("the server is of another version of crfs: {error}; start it again");
            return say(&output, &Answer::<Nothing>::Failed { message }).await;
        }
    };
    // By a task of its own: the request may keep its thread for long.
    let mut signs = JoinSet::new();
    if !matches!(request, Request::Status | Request::Metrics) {
        signs.spawn(say_that_it_works(Arc::clone(&output), Arc::clone(&server.service)));
    }
    let (events, mut heard) = mpsc::unbounded_channel();
    let report: Report = Arc::new(move |event| {
        // Whoever listened may be gone.
        drop(events.send(event.clone()));
        Ok(())
    });
    let performing = server.perform(request, report);
    tokio::pin!(performing);
    let mut rest = Vec::new();
    let answer = loop {
        tokio::select! {
            answer = &mut performing => break answer,
            Some(event) = heard.recv() => say(&output, &Answer::<Nothing>::Event(event)).await?,
            _gone = input.read_to_end(&mut rest) => return Ok(()),
        }
    };
    while let Ok(event) = heard.try_recv() {
        say(&output, &Answer::<Nothing>::Event(event)).await?;
    }
    // Where nobody writes, no sign of life is cut short within its line.
    let mut output = output.lock().await;
    drop(signs);
    write(&mut output, &answer).await
}

/// Until nobody listens any more, or the task is given up. A server whose disk has stopped does not work: then whoever waits is told so.
async fn say_that_it_works<S: Service>(output: Arc<Mutex<OwnedWriteHalf>>, service: Arc<S>) {
    let mut ticks = tokio::time::interval(SIGN_OF_LIFE);
    loop {
        ticks.tick().await;
        let asked = Arc::clone(&service);
        let disk = threads::run(Work::Outside, move || asked.ask_disk());
        if tokio::time::timeout(DISK, disk).await.is_err() {
            let (id, seconds) = (service.id(), DISK.as_secs());
            let message = format!("{id}: its filesystem has not answered the server for {seconds} s; this is given up");
            tracing::warn!("{message}");
            // Whoever listens has all there is to hear.
            return drop(say(&output, &Answer::<Nothing>::Failed { message }).await);
        }
        if say(&output, &Answer::<Nothing>::Working).await.is_err() {
            return;
        }
    }
}

async fn say<A: Serialize>(output: &Mutex<OwnedWriteHalf>, answer: &Answer<A>) -> io::Result<()> {
    write(&mut *output.lock().await, answer).await
}

async fn write<A: Serialize>(output: &mut OwnedWriteHalf, answer: &Answer<A>) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    tokio::time::timeout(UNREAD, output.write_all(&line)).await?
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::cache::Cache;
    use crate::fetch::{Layer, Stats};
    use crate::image::engine::Common;
    use crate::kernel::mounts::{Device, Identity};
    use crate::registry::Hosts;
    use crate::serve::ask::{self, GLANCE, Unanswered};
    use crate::serve::frontend::Mounted;
    use crate::serve::service::Activity;
    use crate::sys::own::OwnDir;

    /// It answers a word with its length, and says before that it has heard it.
    struct Echo(Common);

    impl Service for Echo {
        const KIND: &'static str = "echo";
        type Request = String;
        type Answer = usize;

        fn id(&self) -> String {
            "e".into()
        }

        fn common(&self) -> &Common {
            &self.0
        }

        fn images(&self) -> usize {
            3
        }

        fn layers(&self) -> Vec<Arc<Layer>> {
            Vec::new()
        }

        fn past(&self) -> Activity {
            Activity { stats: Stats { served: 7, ..Stats::default() }, last_error: Some("gone".into()) }
        }

        async fn perform(self: Arc<Self>, word: String, report: Report) -> Result<usize, String> {
            let _heard = report(&Event::Opened { layers: word.len(), of: 9, fetched: 0 });
            if word.is_empty() { Err("no word".into()) } else { Ok(word.len()) }
        }
    }

    /// A server that answers at a directory until it is dropped. (Nothing is mounted there.)
    fn serving(dir: &Path) -> tokio::runtime::Runtime {
        let listener = bind(&dir.join(SOCKET)).unwrap();
        let device = Device { major: 0, minor: u32::MAX };
        let identity = Identity { id: u32::MAX, device, source: "e".into(), user: None };
        let place = Mounted { dir: dir.join("nowhere"), identity, stays: true }.place();
        let service = Arc::new(Echo(Common::new(Cache::none(), Hosts::default())));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(answer(
            listener,
            Arc::new(Answering { service, frontend: "none", started: 5, kept: Arc::default(), place }),
        ));
        runtime
    }

    fn connected(dir: &Path) -> UnixStream {
        ask::connect(OwnDir::open(dir).unwrap().as_fd(), GLANCE).unwrap()
    }

    #[test]
    fn every_server_says_how_it_is_and_what_it_counts() {
        let dir = tempfile::tempdir().unwrap();
        let _server = serving(dir.path());
        assert_eq!(fs::metadata(dir.path().join(SOCKET)).unwrap().mode() & 0o777, 0o600);
        let told = ask::status(connected(dir.path())).unwrap();
        assert_eq!((&*told.frontend, told.started, told.images, told.layers), ("none", 5, 3, 0));
        assert_eq!((told.activity.stats.served, told.activity.last_error.as_deref()), (7, Some("gone")));
        let metrics = ask::metrics(connected(dir.path())).unwrap();
        assert!(metrics.contains(r#"crfs_server{server="e",kind="echo"} 1"#), "{metrics}");
        assert_eq!(ask::server_of(&connected(dir.path())).unwrap(), std::process::id());
    }

    #[test]
    fn whoever_asks_a_server_to_leave_is_told_why_it_stays() {
        let dir = tempfile::tempdir().unwrap();
        let _server = serving(dir.path());
        match ask::leave(connected(dir.path())) {
            Err(Unanswered::Failed { message }) => assert!(message.contains("nowhere"), "{message}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_service_answers_what_is_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let _server = serving(dir.path());
        let asked = |word: &str| {
            let (mut events, request) = (Vec::new(), Request::Own(word.to_owned()));
            let mut hear = |event: &Event| events.push(event.clone());
            let answer = ask::ask::<_, usize>(connected(dir.path()), &request, GLANCE, &mut hear);
            (answer, events)
        };
        let (answer, events) = asked("word");
        assert_eq!(answer.unwrap(), Answer::Own(4));
        assert_eq!(events, [Event::Opened { layers: 4, of: 9, fetched: 0 }]);
        assert!(matches!(asked("").0, Err(Unanswered::Failed { message }) if message == "no word"));
    }

    #[test]
    fn a_request_that_is_not_understood_is_of_another_version() {
        let dir = tempfile::tempdir().unwrap();
        let _server = serving(dir.path());
        for request in [&b"{\"frobnicate\":1}\n"[..], b"\xff\n", b"\n"] {
            let mut stream = connected(dir.path());
            stream.write_all(request).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            let is_told = answer.starts_with("{\"failed\":{\"message\":\"the server is of another version of crfs: ");
            assert!(is_told && answer.ends_with("\n") || request[0] == 0xff && answer.is_empty(), "{answer}");
        }
        let mut stream = connected(dir.path());
        stream.write_all(&vec![b' '; LONGEST as usize + 1]).unwrap();
        let mut answer = String::new();
        // It may be gone before it has read all of it.
        let _read = stream.read_to_string(&mut answer);
        assert!(answer.is_empty() || answer.contains("another version"), "{answer}");
    }
}
