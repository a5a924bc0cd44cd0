//! What a server's images hold is read in processes of their own, so that no image, however it was made, can end the server, which has the layers of all
//! running containers.
//!
//! ```text
//! server                                          reader: /proc/self/exe store-reader, the first that the kernel takes where memory runs out
//!   open: the image, as pinned  ──> stdin  ──>      opens the layers: each index goes into the cache, else into a file in memory;
//!   split: for `add --full`                         builds what a server builds of them, and lets that go
//!   (its end ends the reader)   <── stdout <──      events, what came of each layer
//!   log                         <── stderr <──      what it logs; the last words of one that is aborted
//!   opens the layers by their indexes, and lets the reader end
//! ```
//!
//! A layer whose index is in the cache already has been read before: a start needs no reader for it.

mod reader;
mod words;

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::libc;
use nix::sys::signal::Signal;
use serde::Serialize;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub use self::reader::read;
use self::words::{Ask, Came, Open, Said, Split};
use super::Error;
use super::Store;
use super::records::CachePlace;
use crate::blob::Digest;
use crate::cache::Cache;
use crate::image::engine::{Engine, Until};
use crate::image::known::Handed;
use crate::image::layer::OpenLayer;
use crate::image::options::ImageOptions;
use crate::image::silence::unless_silent;
use crate::image::{self, Report};
use crate::metrics::{Counts, METRICS};
use crate::registry;
use crate::serve::log;
use crate::serve::options::LogOptions;
use crate::sys::own::regular;
use crate::{sys, threads};

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "store-reader";

/// How often a reader says that it lives, and how long one that says nothing is waited for.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
const SILENCE: Duration = Duration::from_secs(30);

/// Bytes of the longest answer of a reader, which has some for each layer, and of a line that it logs.
const LONGEST_ANSWER: u64 = 64 << 20;
const LONGEST_LINE: u64 = 64 << 10;

/// How long one may take to end that is not wanted any more.
const GRACE: Duration = Duration::from_secs(5);

/// Readers at a time, of images that are added and of those at a start: a registry that does not answer is not to keep either from the other. Each
/// may take as much memory as one image may.
const READERS: usize = 8;

/// What is needed to start readers. Only a server has any: a command has nobody to protect.
pub(super) struct Readers {
    place: CachePlace,
    log: LogOptions,
    adding: Semaphore,
    starting: Semaphore,
}

impl Readers {
    pub(super) fn new(place: CachePlace, log: LogOptions) -> Self {
        Self { place, log, adding: Semaphore::new(READERS), starting: Semaphore::new(READERS) }
    }
}

/// For what layers are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// They are those of an image that is added; with `full`, all are read whole.
    Adding {
        full: bool,
    },
    Start,
    /// They are those of an image that podman pulls: those that need no full read.
    Asked,
    /// They are those of an image that something else than podman has, whatever they need.
    Held,
    /// They are to go on as they were: those whose indexes are in the cache, and no others yet.
    GoingOn,
}

/// Layers that were opened.
pub(super) struct Opened<'a> {
    pub(super) layers: BTreeMap<usize, Result<OpenLayer, image::Error>>,
    /// The tar-splits of those that were read whole, with the lengths of their tars.
    pub(super) splits: BTreeMap<usize, (File, u64)>,
    /// Who has read them, where that was not this process.
    pub(super) reader: Option<Reader<'a>>,
}

/// A layer of an image, by its number.
type Numbered = (usize, registry::Layer);

impl Store {
    /// Opens layers of an image, as far as they have to be read by a reader.
    ///
    /// # Errors
    /// Where the reader does not come to an end with them.
    pub(super) async fn open_apart(
        &self,
        engine: &Arc<Engine>,
        (name, source): (&str, &ImageOptions),
        (image, wanted): (&Arc<registry::Image>, Vec<Numbered>),
        purpose: For,
        report: &Report,
    ) -> Result<Opened<'_>, Error> {
        let Some(readers) = &self.readers else {
            let adds = matches!(purpose, For::Adding { .. });
            let until = if adds { Until::OneIsRefused } else { Until::AllAreKnown };
            let layers = engine.open_each(image, wanted, until, report).await;
            return Ok(Opened { layers, splits: BTreeMap::new(), reader: None });
        };
        let mut layers = BTreeMap::new();
        let mut unknown = wanted;
        if !matches!(purpose, For::Adding { .. }) {
            layers = engine.open_known(image, unknown.clone(), HashMap::new()).await?;
            unknown.retain(|(number, _)| !layers.contains_key(number));
        }
        if unknown.is_empty() || purpose == For::GoingOn {
            return Ok(Opened { layers, splits: BTreeMap::new(), reader: None });
        }
        let adds = match purpose {
            For::Adding { full } => Some(words::Adds { tar_splits: self.paths.tar_splits().into(), full }),
            For::Start | For::Asked | For::Held | For::GoingOn => None,
        };
        let CachePlace { dir, size } = readers.place.clone();
        let open = Open {
            source: ImageOptions { cache_dir: dir, cache_size: size, ..source.clone() },
            manifest: image.manifest.to_vec(),
            wanted: unknown.iter().map(|(number, _)| *number).collect(),
            adds,
            is_lazy: purpose == For::Asked,
            log: readers.log.clone(),
        };
        let places = if purpose == For::Start { &readers.starting } else { &readers.adding };
        let mut reader = Reader::start(places, name).await?;
        // It says that it lives also while the cache's disk keeps it from its work.
        let said = unless_silent(engine.cache(), reader.ask(&Ask::Open(Box::new(open)), report)).await??;
        let Said::Opened(came) = said else { return Err(reader.lost(said)) };
        let (read, splits) = reader.take_over(engine, image, (unknown, came)).await?;
        layers.extend(read);
        Ok(Opened { layers, splits, reader: Some(reader) })
    }
}

fn failed(image: &str, source: io::Error) -> Error {
    Error::Reader { image: image.to_owned(), source }
}

/// A process that reads an image. It is killed where this is dropped.
pub(super) struct Reader<'a> {
    image: String,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Comes to what it has said last that was no line of a log.
    words: JoinHandle<Option<String>>,
    /// What it has counted, as far as this process has counted it as well.
    counted: Counts,
    _place: Option<SemaphorePermit<'a>>,
}

impl<'a> Reader<'a> {
    async fn start(places: &'a Semaphore, image: &str) -> Result<Self, Error> {
        // An error says that there are no places any more: nobody closes them.
        let place = places.acquire().await.ok();
        let failed = |source| failed(image, source);
        sys::close_inherited_on_exec();
        let mut command = Command::new("/proc/self/exe");
        command.arg0("crfs").arg(SUBCOMMAND).env_remove("NOTIFY_SOCKET").kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| failed(threads::explained(error)))?;
        let pipe = || failed(io::ErrorKind::BrokenPipe.into());
        let input = child.stdin.take().ok_or_else(pipe)?;
        let output = BufReader::new(child.stdout.take().ok_or_else(pipe)?);
        let words = tokio::spawn(hand_on(child.stderr.take().ok_or_else(pipe)?));
        Ok(Self { image: image.to_owned(), child, input, output, words, counted: Counts::default(), _place: place })
    }

    /// What it says to that, but for events. Where it ends instead, how it came to its end.
    async fn ask(&mut self, ask: &(impl Serialize + Sync), report: &Report) -> Result<Said, Error> {
        let mut line = serde_json::to_vec(ask).map_err(|error| failed(&self.image, error.into()))?;
        line.push(b'\n');
        // One that has ended says why below; one that does not read says nothing.
        let _unread = timeout(SILENCE, self.input.write_all(&line)).await;
        loop {
            let Ok(line) = timeout(SILENCE, next_line(&mut self.output, LONGEST_ANSWER)).await else {
                let end = format!("was given up: its process has said nothing for {} s", SILENCE.as_secs());
                return Err(Error::Reading { image: self.image.clone(), end });
            };
            let Ok(Some(line)) = line else { return Err(self.ended().await) };
            match serde_json::from_slice(&line).map_err(|error| failed(&self.image, error.into()))? {
                // Progress that nobody hears is none.
                Said::Event(event) => drop(report(&event)),
                Said::Working(counts) => {
                    METRICS.add(&counts, &self.counted);
                    self.counted = counts;
                }
                said => return Ok(said),
            }
        }
    }

    async fn ended(&mut self) -> Error {
        let end = match timeout(GRACE, self.child.wait()).await {
            Ok(Ok(status)) => {
                let words = timeout(GRACE, &mut self.words).await.ok().and_then(Result::ok).flatten();
                told(status, words)
            }
            Ok(Err(error)) => format!("ended, nobody knows how: {error}"),
            Err(_late) => "was given up: its process has closed its output".to_owned(),
        };
        Error::Reading { image: self.image.clone(), end }
    }

    /// The error of a reader that says so, or something else than it was asked for.
    fn lost(&self, said: Said) -> Error {
        match said {
            Said::Failed { message, .. } => Error::Reported { message: format!("{}: {message}", self.image) },
            _ => failed(&self.image, io::ErrorKind::InvalidData.into()),
        }
    }

    /// The layers as they are open there.
    async fn take_over(
        &self,
        engine: &Arc<Engine>,
        image: &registry::Image,
        (wanted, came): (Vec<Numbered>, BTreeMap<usize, Came>),
    ) -> Result<(Layers, BTreeMap<usize, (File, u64)>), Error> {
        let (mut layers, mut handed, mut splits) = (BTreeMap::new(), HashMap::new(), BTreeMap::new());
        if !is_answer(wanted.iter().map(|(number, _)| *number), &came) {
            return Err(failed(&self.image, io::ErrorKind::InvalidData.into()));
        }
        let wanted: Vec<_> = wanted.into_iter().filter(|(number, _)| came.contains_key(number)).collect();
        for (number, came) in came {
            match came {
                Came::Refused { message, not_lazy } => {
                    METRICS.layer("unknown", "refused");
                    let layer = wanted.iter().find(|(wanted, _)| not_lazy && *wanted == number);
                    let error = layer.map(|(_, layer)| image::Error::NotLazy { layer: layer.digest });
                    layers.insert(number, Err(error.unwrap_or(image::Error::Reported { message })));
                }
                Came::Open { index, split } => {
                    if let Some(words::Index { identity, trust, file }) = index {
                        handed.insert(number, Handed { identity, trust, index: self.file(file)? });
                    }
                    if let Some(split) = split {
                        splits.insert(number, self.split_of(split)?);
                    }
                }
            }
        }
        let open: Vec<_> = wanted.into_iter().filter(|(number, _)| !layers.contains_key(number)).collect();
        let digests: Vec<_> = open.iter().map(|(number, layer)| (*number, layer.digest)).collect();
        layers.extend(engine.open_known(image, open, handed).await?);
        for (number, layer) in digests {
            layers.entry(number).or_insert(Err(image::Error::NotKept { layer }));
        }
        Ok((layers, splits))
    }

    /// Makes the tar-splits of these layers, by reading them whole.
    pub(super) async fn split(
        &mut self,
        wanted: &BTreeMap<usize, Digest>,
        (cache, report): (&Cache, &Report),
    ) -> Result<BTreeMap<usize, (File, u64)>, Unsplit> {
        let asked = unless_silent(cache, self.ask(&Ask::Split(wanted.clone()), report)).await;
        let said = asked.map_err(Error::from).and_then(|said| said).map_err(Unsplit::Image)?;
        match said {
            Said::Split(splits) => {
                let each = splits.into_iter().map(|(number, split)| Ok((number, self.split_of(split)?)));
                each.collect::<Result<_, Error>>().map_err(Unsplit::Image)
            }
            Said::Failed { layer: Some(number), message } => {
                Err(Unsplit::Layer(number, image::Error::Reported { message }))
            }
            said => Err(Unsplit::Image(self.lost(said))),
        }
    }

    fn split_of(&self, split: Split) -> Result<(File, u64), Error> {
        Ok((self.file(split.file)?, split.tar_len))
    }

    /// A file that it has open. Its number is nobody else's for as long as nobody has waited for it.
    fn file(&self, number: RawFd) -> Result<File, Error> {
        let open = || {
            let pid = self.child.id().ok_or(io::ErrorKind::NotFound)?;
            let path = format!("/proc/{pid}/fd/{number}");
            regular(OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?)
        };
        open().map_err(|source| failed(&self.image, source))
    }

    /// Lets it end: this process has all layers open now.
    pub(super) async fn end(mut self) {
        drop(self.input);
        if timeout(GRACE, self.child.wait()).await.is_err() {
            tracing::warn!(image = self.image, "the process that has read an image does not end; it is killed");
        }
    }
}

/// Whether a reader has answered for each layer that it was asked for, and for no other. Where one is refused those above it are left out.
fn is_answer(wanted: impl Iterator<Item = usize> + Clone, came: &BTreeMap<usize, Came>) -> bool {
    let is_refused = came.values().any(|came| matches!(came, Came::Refused { .. }));
    let has_all = wanted.clone().all(|number| came.contains_key(&number));
    (has_all || is_refused) && came.keys().all(|number| wanted.clone().any(|wanted| wanted == *number))
}

/// Layers that are open, or why not, by their numbers.
type Layers = BTreeMap<usize, Result<OpenLayer, image::Error>>;

/// Why there are no tar-splits.
pub(super) enum Unsplit {
    Layer(usize, image::Error),
    Image(Error),
}

/// Logs what a reader logs. Gives the last line that is none.
async fn hand_on(said: ChildStderr) -> Option<String> {
    let (mut lines, mut last) = (BufReader::new(said), None);
    while let Ok(Some(line)) = next_line(&mut lines, LONGEST_LINE).await {
        let line = String::from_utf8_lossy(&line).into_owned();
        if log::take_over(&line).is_none() && !line.trim().is_empty() {
            tracing::warn!(line, "a reader of an image says");
            last = Some(line);
        }
    }
    last
}

/// A line of at most so many bytes, without its end; what is longer is taken for several. `None` at the end.
async fn next_line(from: &mut (impl AsyncBufRead + Unpin), longest: u64) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    from.take(longest).read_until(b'\n', &mut line).await?;
    let is_end = line.is_empty();
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    Ok((!is_end).then_some(line))
}

/// How a reader came to its end.
fn told(status: ExitStatus, words: Option<String>) -> String {
    let words = words.map(|words| format!(" ({words})")).unwrap_or_default();
    let signal = status.signal().and_then(|number| Signal::try_from(number).ok());
    match signal {
        Some(Signal::SIGKILL) => format!(
            "ended by SIGKILL{words}: where nobody has killed it there was no memory left for it, as the kernel's log says then; add the image where there is \
             more, or give the server's cgroup more"
        ),
        Some(signal) => format!("ended by {signal}{words}"),
        None => format!("ended ({status}){words}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_answers_for_each_layer() {
        let open = || Came::Open { index: None, split: None };
        let refused = || Came::Refused { message: "no".into(), not_lazy: false };
        let is_answer = |came: Vec<(usize, Came)>| is_answer([1, 2].into_iter(), &came.into_iter().collect());
        assert!(is_answer(vec![(1, open()), (2, open())]) && is_answer(vec![(1, refused())]));
        assert!(!is_answer(vec![(1, open())]) && !is_answer(vec![]), "a smaller image");
        assert!(!is_answer(vec![(1, open()), (2, open()), (3, open())]), "nobody has asked for it");
    }

    #[tokio::test]
    async fn lines_have_a_limit() {
        let mut said = b"one\n\nlonger than that".as_slice();
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut said, 8).await.unwrap() {
            lines.push(String::from_utf8(line).unwrap());
        }
        assert_eq!(lines, ["one", "", "longer t", "han that"]);
    }
}
