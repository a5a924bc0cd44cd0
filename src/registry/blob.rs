//! The bytes of one layer, wherever they are: streamed for the fetch engine, read at for the formats.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle;

use super::ask::Counters;
use super::file_blob::FileBlob;
use super::link::Capacity;
use super::manifest::LayerDescriptor;
use super::ranged::{RangedBody, RemoteBlob};
use super::repository::Repository;
use super::silent::silence;
use super::{Error, Freshness};
use crate::blob::{ByteRange, ByteSource, Digest, SourceError};
use crate::sys::limit;
use crate::threads::{self, Work};

/// What is read from a file at a time.
const FILE_PART: u64 = 1 << 20;

/// Reserved at most before any byte has come.
const LARGEST_RESERVE: u64 = 1 << 20;

/// What has been asked of registries through one blob, for status and tests. Token servers are not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests in all: a redirect that is followed counts for the registry and for the host that it leads to.
    pub requests: u64,
    /// Of these, the ones to hosts other than the registry.
    pub elsewhere: u64,
    /// Bytes of bodies, those included that were thrown away.
    pub bytes: u64,
    /// How often something has moved: an answer came to its end, or as many bytes as its deadline asks for.
    pub progress: u64,
}

/// The bytes of one blob: in a registry, a file of a layout, or a part of an archive.
#[derive(Clone)]
pub struct Blob {
    digest: Digest,
    place: Place,
}

#[derive(Clone)]
enum Place {
    Remote(Arc<RemoteBlob>, Handle),
    /// How long its filesystem may take for a read.
    Local(Arc<LocalBlob>, Duration),
}

struct LocalBlob {
    file: FileBlob,
    counters: Counters,
    /// How long its filesystem may take for a read once its image is open.
    in_use: Duration,
    /// Reads that took longer, and whose threads have not come back.
    stuck: AtomicUsize,
}

/// Threads that may wait for one file. Beyond that its reads fail at once: threads are for other files, too.
const MOST_STUCK: usize = 8;

impl LocalBlob {
    /// Reads by a thread that may wait for as long as the filesystem wants, and waits no longer for it than it has patience.
    async fn read_patiently(self: &Arc<Self>, part: ByteRange, patience: Duration) -> Result<Bytes, Error> {
        if self.stuck.load(Ordering::Relaxed) >= MOST_STUCK {
            return Err(self.silence(patience));
        }
        let is_over = Arc::new(AtomicBool::new(false));
        let (reader, was_over) = (Arc::clone(self), Arc::clone(&is_over));
        let reading = threads::run(Work::Outside, move || {
            let read = reader.read(part);
            if was_over.swap(true, Ordering::AcqRel) {
                reader.stuck.fetch_sub(1, Ordering::Relaxed);
            }
            read
        });
        match tokio::time::timeout(patience, reading).await {
            Ok(read) => read.unwrap_or_else(|source| {
                let (path, source) = (self.file.path.clone(), std::io::Error::other(source));
                Err(Error::File { path, what: "cannot be read", source })
            }),
            Err(_late) => {
                self.stuck.fetch_add(1, Ordering::Relaxed);
                if is_over.swap(true, Ordering::AcqRel) {
                    self.stuck.fetch_sub(1, Ordering::Relaxed);
                }
                Err(self.silence(patience))
            }
        }
    }

    fn silence(&self, patience: Duration) -> Error {
        silence(self.file.place(), format!("has not answered for {} s", patience.as_secs()))
    }

    fn read(&self, range: ByteRange) -> Result<Bytes, Error> {
        let bytes = self.file.read(range)?;
        self.counters.bytes.fetch_add(range.len(), Ordering::Relaxed);
        self.counters.progress.fetch_add(1, Ordering::Relaxed);
        Ok(bytes)
    }
}

impl Blob {
    pub(super) fn remote(repository: Repository, layer: &LayerDescriptor, runtime: Handle) -> Self {
        let remote = RemoteBlob::new(repository, layer.digest, layer.size);
        Self { digest: layer.digest, place: Place::Remote(Arc::new(remote), runtime) }
    }

    /// `opening`: how long its filesystem may take for a read while its image is opened.
    pub(super) fn local(file: FileBlob, digest: Digest, opening: Duration, in_use: Duration) -> Self {
        let (counters, stuck) = (Counters::default(), AtomicUsize::new(0));
        Self { digest, place: Place::Local(Arc::new(LocalBlob { file, counters, in_use, stuck }), opening) }
    }

    /// The same blob, of an image that is open: what is read of it is waited for until the deadline of reads. Before, nobody has waited for longer
    /// than for a manifest.
    #[must_use]
    pub fn in_use(&self) -> Self {
        let place = match &self.place {
            Place::Local(local, _) => Place::Local(Arc::clone(local), local.in_use),
            Place::Remote(remote, handle) => Place::Remote(Arc::clone(remote), handle.clone()),
        };
        Self { digest: self.digest, place }
    }

    #[must_use]
    pub fn size(&self) -> u64 {
        match &self.place {
            Place::Remote(remote, _) => remote.size,
            Place::Local(local, _) => local.file.size,
        }
    }

    /// Starts reading a range. Retries and resumes by itself until the deadline.
    ///
    /// # Errors
    /// Where the range passes the blob's end, the bytes are refused or not there, or nothing has moved for the deadline.
    pub async fn stream(&self, range: ByteRange, freshness: Freshness) -> Result<Sent<Body>, Error> {
        self.check(range)?;
        Ok(match &self.place {
            Place::Remote(remote, _) => {
                let body = Box::new(RangedBody::open(remote.clone(), range, freshness).await?);
                let is_whole = body.is_whole(range);
                let body = Body(Kind::Remote(body));
                if is_whole { Sent::Whole(body) } else { Sent::Part(body) }
            }
            Place::Local(blob, patience) => {
                Sent::Part(Body(Kind::Local { blob: blob.clone(), patience: *patience, rest: range }))
            }
        })
    }

    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let counters = match &self.place {
            Place::Remote(remote, _) => &*remote.counters,
            Place::Local(local, _) => &local.counters,
        };
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            requests: get(&counters.requests),
            elsewhere: get(&counters.elsewhere),
            bytes: get(&counters.bytes),
            progress: get(&counters.progress),
        }
    }

    /// Whether it is in a registry, and not on disk.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        matches!(self.place, Place::Remote(..))
    }

    /// What the way to it can carry, as measured so far; `None` for one on disk.
    #[must_use]
    pub fn capacity(&self) -> Option<Capacity> {
        match &self.place {
            Place::Remote(remote, _) => remote.capacity(),
            Place::Local(..) => None,
        }
    }

    /// Whether its host sent the whole blob when it was last asked for a part: one long read is then cheaper than many.
    #[must_use]
    pub fn is_sent_whole(&self) -> bool {
        match &self.place {
            Place::Remote(remote, _) => remote.is_sent_whole(),
            Place::Local(..) => false,
        }
    }

    /// How many places may have it. Wrong bytes are asked for past caches so many times: each time of another.
    #[must_use]
    pub fn places(&self) -> usize {
        match &self.place {
            Place::Remote(remote, _) => remote.places(),
            Place::Local(..) => 1,
        }
    }

    /// Whether the host that was asked last for its bytes asks for restraint just now (429, 503, or it refuses us): what nobody waits for had better
    /// not be asked for then. `false` where nobody has been asked yet.
    #[must_use]
    pub fn is_restrained(&self) -> bool {
        match &self.place {
            Place::Remote(remote, _) => remote.counters.is_restrained(),
            Place::Local(..) => false,
        }
    }

    fn check(&self, range: ByteRange) -> Result<(), Error> {
        let size = self.size();
        let fits = range.start <= range.end && range.end <= size;
        if fits { Ok(()) } else { Err(Error::OutOfRange { layer: self.digest, range, size }) }
    }

    async fn collect(&self, range: ByteRange, freshness: Freshness) -> Result<Bytes, Error> {
        self.stream(range, freshness).await?.only(range).collect(range.len()).await
    }

    fn read_blocking(&self, range: ByteRange, freshness: Freshness) -> Result<Bytes, SourceError> {
        self.check(range)?;
        Ok(match &self.place {
            Place::Remote(_, handle) => {
                let blob = self.clone();
                threads::wait(handle, async move { blob.collect(range, freshness).await })??
            }
            Place::Local(local, patience) => {
                let reader = Arc::clone(local);
                limit::within(*patience, move || reader.read(range)).unwrap_or_else(|| Err(local.silence(*patience)))?
            }
        })
    }
}

impl ByteSource for Blob {
    fn size(&self) -> u64 {
        Blob::size(self)
    }

    fn read_at(&self, range: ByteRange) -> Result<Bytes, SourceError> {
        self.read_blocking(range, Freshness::Any)
    }
}

/// A blob as the formats look into it, by its parts alone: where its host sends all of it instead, that is kept for whoever wants it.
pub struct Parts<'a> {
    blob: &'a Blob,
    freshness: Freshness,
    whole: Mutex<Option<Body>>,
}

impl<'a> Parts<'a> {
    #[must_use]
    pub fn new(blob: &'a Blob, freshness: Freshness) -> Self {
        Self { blob, freshness, whole: Mutex::default() }
    }

    /// The whole blob that came instead of a part, from its first byte on.
    #[must_use]
    pub fn take_whole(&self) -> Option<Body> {
        self.whole.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ByteSource for Parts<'_> {
    fn size(&self) -> u64 {
        self.blob.size()
    }

    fn read_at(&self, range: ByteRange) -> Result<Bytes, SourceError> {
        let Place::Remote(_, handle) = &self.blob.place else { return self.blob.read_at(range) };
        let (blob, freshness) = (self.blob.clone(), self.freshness);
        let asking = async move {
            Ok::<_, Error>(match blob.stream(range, freshness).await? {
                Sent::Part(body) => Ok(body.collect(range.len()).await?),
                Sent::Whole(body) => Err(body),
            })
        };
        threads::wait(handle, asking)??.map_err(|body| {
            *self.whole.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
            "its host sends all of it for a part".into()
        })
    }
}

/// What is sent for a part of a blob.
pub enum Sent<T> {
    Part(T),
    /// All of the blob, from its first byte on: its host sends nothing less, or not yet.
    Whole(T),
}

impl<T> Sent<T> {
    pub(crate) fn map<U>(self, change: impl FnOnce(T) -> U) -> Sent<U> {
        match self {
            Self::Part(sent) => Sent::Part(change(sent)),
            Self::Whole(sent) => Sent::Whole(change(sent)),
        }
    }

    /// For whoever has asked for all of it.
    pub fn into_inner(self) -> T {
        match self {
            Self::Part(sent) | Self::Whole(sent) => sent,
        }
    }
}

impl Sent<Body> {
    /// The part that was asked for, in any case.
    #[must_use]
    pub fn only(self, range: ByteRange) -> Body {
        match self {
            Self::Whole(Body(Kind::Remote(mut body))) => {
                body.only(range);
                Body(Kind::Remote(body))
            }
            sent => sent.into_inner(),
        }
    }
}

/// A body on its way: yields exactly the bytes of its range, in order, or an error.
pub struct Body(Kind);

enum Kind {
    Remote(Box<RangedBody>),
    Local { blob: Arc<LocalBlob>, patience: Duration, rest: ByteRange },
}

impl Body {
    /// All that is left of it, about `length` bytes.
    async fn collect(mut self, length: u64) -> Result<Bytes, Error> {
        let mut bytes = BytesMut::with_capacity(usize::try_from(length.min(LARGEST_RESERVE)).unwrap_or(0));
        while let Some(part) = self.next().await {
            bytes.extend_from_slice(&part?);
        }
        Ok(bytes.freeze())
    }

    /// The next bytes, never empty; `None` after the last, or after an error.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        match &mut self.0 {
            Kind::Remote(body) => body.next().await,
            Kind::Local { rest, .. } if rest.is_empty() => None,
            Kind::Local { blob, patience, rest } => {
                let part = ByteRange { start: rest.start, end: rest.end.min(rest.start.saturating_add(FILE_PART)) };
                rest.start = part.end;
                let read = blob.read_patiently(part, *patience).await;
                if read.is_err() {
                    rest.start = rest.end;
                }
                Some(read)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc;

    use super::*;

    /// A file whose filesystem answers when it is told to.
    struct Silent {
        asked: AtomicUsize,
        answers: Mutex<mpsc::Receiver<()>>,
        place: Option<&'static Path>,
    }

    impl ByteSource for Silent {
        fn size(&self) -> u64 {
            100
        }

        fn read_at(&self, range: ByteRange) -> Result<Bytes, SourceError> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            // An end is an answer, too.
            let _told = answers.recv();
            Ok(vec![7; range.len() as usize].into())
        }

        fn place(&self) -> Option<&Path> {
            self.place
        }
    }

    fn blob(opening: Duration, in_use: Duration) -> (Blob, Arc<Silent>, mpsc::Sender<()>) {
        blob_at(None, opening, in_use)
    }

    fn blob_at(
        place: Option<&'static Path>,
        opening: Duration,
        in_use: Duration,
    ) -> (Blob, Arc<Silent>, mpsc::Sender<()>) {
        let (answer, answers) = mpsc::channel();
        let file = Arc::new(Silent { asked: AtomicUsize::new(0), answers: Mutex::new(answers), place });
        let place = ByteRange { start: 0, end: 100 };
        let of = FileBlob::new(Path::new("/dead/blob").to_owned(), Arc::clone(&file) as Arc<dyn ByteSource>, place);
        (Blob::local(of, Digest::of(b""), opening, in_use), file, answer)
    }

    const MOMENT: Duration = Duration::from_millis(1);
    const LONG: Duration = Duration::from_secs(3600);
    const PART: ByteRange = ByteRange { start: 10, end: 20 };

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_that_does_not_answer_has_a_few_threads_and_no_more() {
        let (blob, file, answer) = blob(MOMENT, LONG);
        for _ in 0..3 * MOST_STUCK {
            let error = blob.collect(PART, Freshness::Any).await.unwrap_err();
            assert!(error.to_string().contains("/dead/blob"), "{error}");
        }
        let Place::Local(local, _) = &blob.place else { panic!("it is a file") };
        assert_eq!(local.stuck.load(Ordering::SeqCst), MOST_STUCK);
        // Who may wait for longer is refused at once as well.
        assert!(blob.in_use().collect(PART, Freshness::Any).await.is_err());
        drop(answer);
        while local.stuck.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
        assert!(file.asked.load(Ordering::SeqCst) <= MOST_STUCK);
        assert_eq!(blob.in_use().collect(PART, Freshness::Any).await.unwrap(), vec![7; 10]);
    }

    #[tokio::test]
    async fn what_is_unpacked_elsewhere_is_waited_for_there() {
        let (blob, _file, _answer) = blob_at(Some(Path::new("/the/cache")), MOMENT, MOMENT);
        let by_format = tokio::task::spawn_blocking({
            let blob = blob.clone();
            move || blob.read_at(PART).unwrap_err().to_string()
        });
        for said in [blob.collect(PART, Freshness::Any).await.unwrap_err().to_string(), by_format.await.unwrap()] {
            assert!(said.starts_with("/the/cache"), "{said}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn while_an_image_is_opened_its_files_are_not_waited_for_as_long_as_later() {
        let (blob, _file, answer) = blob(MOMENT, LONG);
        assert!(blob.collect(PART, Freshness::Any).await.is_err());
        let (reader, looked_into) = (blob.in_use(), blob.clone());
        let by_format = tokio::task::spawn_blocking(move || looked_into.read_at(PART).is_err());
        assert!(by_format.await.unwrap());
        let reading = tokio::spawn(async move { reader.collect(PART, Freshness::Any).await });
        let told = std::iter::repeat_n((), 3).all(|()| answer.send(()).is_ok());
        assert!(told && reading.await.unwrap().is_ok());
    }
}
