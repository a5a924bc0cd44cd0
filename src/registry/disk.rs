//! Files on this machine as "read bytes at", those that are compressed unpacked.
//!
//! An archive that is compressed can be read in order only, so all of it is unpacked when it is opened: into a file without a name that
//! takes room of the cache, for as long as an image of it is in use, and once for all images of a process.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;

use super::Error;
use crate::blob::{ByteRange, ByteSource, Documents, FileSource, Packing, SourceError};
use crate::sys::expansion::{Allowance, Expands, Meter};
use crate::sys::frames::{Frames, LARGEST_WINDOW, Unpacked, WideWindow};
use crate::sys::outside;

/// What is unpacked at a time.
const PART: usize = 1 << 20;

/// Which file it was, and that nobody has written to it since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Version {
    fn of(file: &Metadata) -> Self {
        let (device, inode, size) = (file.dev(), file.ino(), file.size());
        Self { device, inode, size, changed: (file.ctime(), file.ctime_nsec()) }
    }
}

/// How much of compressed archives is unpacked.
#[derive(Debug, Default)]
pub(super) struct Unpacking {
    bytes: AtomicU64,
    of: AtomicU64,
}

impl Unpacking {
    /// Compressed bytes that were read, and all that there are; both 0 where nothing is compressed.
    pub(super) fn progress(&self) -> (u64, u64) {
        (self.bytes.load(Ordering::Relaxed), self.of.load(Ordering::Relaxed))
    }
}

/// A file that tells how far it is read.
struct Counted<'a> {
    file: File,
    read: Rc<Cell<usize>>,
    progress: &'a Unpacking,
    doing: &'a Doing,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.read.set(self.read.get().saturating_add(read));
        self.progress.bytes.fetch_add(read as u64, Ordering::Relaxed);
        self.doing.move_on();
        Ok(read)
    }
}

/// What is being done with an archive.
#[derive(Default)]
struct Doing {
    /// How often something of it was read or unpacked.
    moved: AtomicU64,
    /// Those who wait for the disk of the cache, and not for the archive's.
    in_cache: AtomicUsize,
}

impl Doing {
    fn move_on(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    /// Does something with what is unpacked of the archive, or will be.
    fn in_cache<T>(&self, work: impl FnOnce() -> T) -> T {
        self.in_cache.fetch_add(1, Ordering::Relaxed);
        let done = work();
        self.in_cache.fetch_sub(1, Ordering::Relaxed);
        done
    }
}

/// What an archive was when it was unpacked, and what came of it while somebody has it.
type InUse = Option<(Version, Weak<dyn ByteSource>)>;

/// An archive that somebody wants.
#[derive(Default)]
struct Known {
    unpacked: Mutex<InUse>,
    doing: Arc<Doing>,
}

/// The archives that are in use. Clones share them.
#[derive(Clone, Default)]
pub struct Archives {
    known: Arc<Mutex<HashMap<PathBuf, Arc<Known>>>>,
}

/// An archive that tells when something of it was read.
struct Told {
    file: Arc<dyn ByteSource>,
    /// The directory of the cache, where it is unpacked there.
    cache: Option<PathBuf>,
    doing: Arc<Doing>,
}

impl ByteSource for Told {
    fn size(&self) -> u64 {
        self.file.size()
    }

    fn read_at(&self, range: ByteRange) -> Result<Bytes, SourceError> {
        let read = || self.file.read_at(range);
        let read = if self.cache.is_some() { self.doing.in_cache(read)? } else { read()? };
        self.doing.move_on();
        Ok(read)
    }

    fn place(&self) -> Option<&Path> {
        self.cache.as_deref()
    }
}

impl Archives {
    fn known(&self, path: &Path) -> Arc<Known> {
        Arc::clone(self.known.lock().unwrap_or_else(PoisonError::into_inner).entry(path.to_owned()).or_default())
    }

    fn doing(&self, path: &Path) -> Option<Arc<Doing>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&known.get(path)?.doing))
    }

    /// How often something of an archive was read: who waits for another to unpack it sees that move, too.
    pub(super) fn moved(&self, path: &Path) -> u64 {
        self.doing(path).map_or(0, |doing| doing.moved.load(Ordering::Relaxed))
    }

    /// Whether it is the disk of the cache that an archive waits for just now.
    pub(super) fn waits_for_cache(&self, path: &Path) -> bool {
        self.doing(path).is_some_and(|doing| doing.in_cache.load(Ordering::Relaxed) > 0)
    }

    /// An archive, unpacked where it is compressed, which tells of itself. Blocking.
    pub(super) fn open(
        &self,
        path: &Path,
        documents: &dyn Documents,
        unpacking: &Unpacking,
    ) -> Result<Arc<dyn ByteSource>, Error> {
        let error = |source| Error::File { path: path.to_owned(), what: "cannot be read", source };
        let file = outside::open_file(path).map_err(error)?;
        let metadata = file.metadata().map_err(error)?;
        let plain = FileSource::new(file, metadata.len());
        let head = plain.read_at(ByteRange { start: 0, end: plain.size().min(Packing::LONGEST_MAGIC) });
        let head = head.map_err(|source| error(io::Error::other(source)))?;
        let known = self.known(path);
        let doing = Arc::clone(&known.doing);
        let Some(packing) = Packing::of(&head) else {
            return Ok(Arc::new(Told { file: Arc::new(plain), cache: None, doing }));
        };
        let version = Version::of(&metadata);
        // Who wants the same archive meanwhile waits for it.
        let mut unpacked = known.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = unpacked.as_ref().filter(|(before, _)| *before == version);
        if let Some(kept) = kept.and_then(|(_, kept)| kept.upgrade()) {
            return Ok(kept);
        }
        unpacking.of.fetch_add(plain.size(), Ordering::Relaxed);
        let counted = Counted { file: plain.into_file(), read: Rc::default(), progress: unpacking, doing: &doing };
        let file = unpack(path, packing, counted, documents, &Allowance::default())?;
        let told: Arc<dyn ByteSource> = Arc::new(Told { file, cache: documents.dir(), doing });
        *unpacked = Some((version, Arc::downgrade(&told)));
        Ok(told)
    }
}

fn unpack(
    path: &Path,
    packing: Packing,
    file: Counted<'_>,
    documents: &dyn Documents,
    allowance: &Allowance,
) -> Result<Arc<dyn ByteSource>, Error> {
    let path = path.to_owned();
    let (mut meter, packed, doing) = (Meter::new(allowance), Rc::clone(&file.read), file.doing);
    let mut reader: Box<dyn Read> = match packing {
        Packing::Gzip => Box::new(MultiGzDecoder::new(BufReader::with_capacity(PART, file))),
        Packing::Zstd => {
            let frames = Frames::new(LARGEST_WINDOW).map_err(|source| broken(&path, source))?;
            Box::new(Unpacked::new(BufReader::with_capacity(PART, file), frames))
        }
        Packing::Other(by, command) => return Err(Error::Packed { path, by, command }),
    };
    let no_room = |unpacked, source| Error::NoRoom { path: path.clone(), unpacked, source };
    let mut scratch = doing.in_cache(|| documents.scratch()).map_err(|source| no_room(0, source))?;
    let (mut buffer, mut unpacked) = (vec![0; PART], 0);
    loop {
        let read = reader.read(&mut buffer);
        let read = read.map_err(|source| broken(&path, source))?;
        let part = buffer.get(..read).unwrap_or_default();
        if part.is_empty() {
            meter.keep();
            return Ok(doing.in_cache(|| scratch.finish()));
        }
        // Whoever waits sees that it goes on, also while much comes of little.
        doing.move_on();
        meter.packed(packed.take());
        meter.unpacked(read).map_err(|source| broken(&path, source))?;
        doing.in_cache(|| scratch.append(part)).map_err(|source| no_room(unpacked, source))?;
        unpacked += read as u64;
    }
}

fn broken(path: &Path, source: io::Error) -> Error {
    let path = path.to_owned();
    let cause = source.get_ref();
    if let Some(found) = cause.and_then(|error| error.downcast_ref::<Expands>()) {
        return Error::Expands { path, found: *found };
    }
    match cause.and_then(|error| error.downcast_ref()) {
        Some(WideWindow { window, limit }) => Error::Window { path, window: *window, limit: *limit },
        None => Error::File { path, what: "cannot be unpacked", source },
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use std::sync::mpsc;
    use std::time::Duration;

    use super::super::{Client, ImageRef, Options};
    use super::*;
    use crate::blob::{Digest, Scratch};

    /// Room in memory, which counts how often some was asked for.
    #[derive(Default)]
    struct Room {
        limit: usize,
        asked: AtomicU64,
    }

    struct InMemory {
        bytes: Vec<u8>,
        limit: usize,
    }

    impl Scratch for InMemory {
        fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.bytes.extend(bytes);
            if self.bytes.len() > self.limit { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }

        fn finish(self: Box<Self>) -> Arc<dyn ByteSource> {
            Arc::new(Bytes::from(self.bytes))
        }
    }

    impl Documents for Room {
        fn get(&self, _: &Digest) -> Option<Bytes> {
            None
        }

        fn put(&self, _: &Digest, _: &[u8]) {}

        fn resolved(&self, _: &str) -> Option<Digest> {
            None
        }

        fn remember(&self, _: &str, _: &Digest) {}

        fn scratch(&self) -> io::Result<Box<dyn Scratch>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            Ok(Box::new(InMemory { bytes: Vec::new(), limit: self.limit }))
        }

        fn dir(&self) -> Option<PathBuf> {
            Some("/room".into())
        }
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        zstd::encode_all(data, 1).unwrap()
    }

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn all(source: &dyn ByteSource) -> Bytes {
        source.read_at(ByteRange { start: 0, end: source.size() }).unwrap()
    }

    fn opened(bytes: &[u8], limit: usize) -> Result<(Bytes, (u64, u64)), String> {
        let (room, unpacking) = (Room { limit, ..Room::default() }, Unpacking::default());
        let source = Archives::default().open(file(bytes).path(), &room, &unpacking);
        source.map(|source| (all(&*source), unpacking.progress())).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_compressed_is_unpacked_whatever_it_is_called() {
        let data: Vec<u8> = (0..3 << 20).map(|at: u32| (at % 251) as u8).collect();
        let (head, tail) = data.split_at(1 << 20);
        let skippable = [b"\x52\x2a\x4d\x18\x03\0\0\0abc".to_vec(), zstd(&data)].concat();
        for packed in [gzip(&data), [gzip(head), gzip(tail)].concat(), [zstd(head), zstd(tail)].concat(), skippable] {
            let (unpacked, progress) = opened(&packed, usize::MAX).unwrap();
            assert!(unpacked == data);
            assert_eq!(progress, (packed.len() as u64, packed.len() as u64));
        }
        assert_eq!(opened(&data, 0).unwrap(), (data.into(), (0, 0)), "what is not compressed takes no room");
        assert_eq!(opened(b"", 0).unwrap(), (Bytes::new(), (0, 0)));
    }

    #[test]
    fn zeros_without_end_are_given_up_by_name() {
        let room = Room { limit: usize::MAX, ..Room::default() };
        let unpacked = |packed: &[u8], allowance| {
            let (file, progress) = (file(packed), Unpacking::default());
            let packing = Packing::of(packed).unwrap();
            let doing = Doing::default();
            let counted =
                Counted { file: file.reopen().unwrap(), read: Rc::default(), progress: &progress, doing: &doing };
            unpack(file.path(), packing, counted, &room, &Allowance::small(allowance))
        };
        let zeros = vec![0; 32 << 20];
        assert!(unpacked(&gzip(&zeros), 0).is_ok(), "gzip cannot do that");
        assert!(unpacked(&zstd(&zeros), 32 << 20).is_ok());
        let error = unpacked(&zstd(&zeros), 16 << 20).err().unwrap();
        assert!(matches!(error, Error::Expands { .. }), "{error}");
        assert!(error.to_string().contains("unpack it first"), "{error}");
    }

    #[test]
    fn what_cannot_be_unpacked_is_refused_with_what_to_do() {
        let bomb = opened(&gzip(&vec![0; 8 << 20]), 1 << 20).unwrap_err();
        assert!(bomb.contains("--cache-size") && bomb.contains("1048576 bytes"), "{bomb}");
        for (packed, command) in
            [(&b"\xfd7zXZ\0rest"[..], "xz -dk"), (b"BZh91AY&SY", "bzip2 -dk"), (b"\x04\x22\x4d\x18", "lz4")]
        {
            let text = opened(packed, usize::MAX).unwrap_err();
            assert!(text.contains(command), "{text}");
        }
        let whole = gzip(b"0123456789");
        let more = [&whole[..], b"more"].concat();
        for broken in [&whole[..whole.len() - 1], &whole[..5], &zstd(&[1; 100])[..9], &more] {
            assert!(opened(broken, usize::MAX).unwrap_err().contains("cannot be unpacked"));
        }
    }

    /// A frame of these bytes with a window of `1 << log`.
    fn long(data: &[u8], log: u32) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.set_parameter(zstd::stream::raw::CParameter::WindowLog(log)).unwrap();
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_long_window_is_unpacked_within_the_bounds_of_a_layer() {
        for log in [27, 28, 29, 31] {
            assert_eq!(opened(&long(b"an archive", log), usize::MAX).unwrap().0, "an archive", "{log}");
        }
        // A frame that says that it unpacks to 1 TiB, all of which is its window.
        let wide = [&b"\x28\xb5\x2f\xfd\xe0"[..], &(1_u64 << 40).to_le_bytes()].concat();
        let text = opened(&wide, usize::MAX).unwrap_err();
        assert!(text.contains("window of 1048576 MiB") && text.contains("zstd -d --long=31"), "{text}");
    }

    /// A cache whose disk stops, at once or when something is written to it.
    struct Stopped {
        at_once: bool,
        answers: Arc<Mutex<mpsc::Receiver<()>>>,
    }

    impl Stopped {
        fn wait(answers: &Mutex<mpsc::Receiver<()>>) {
            let _end = answers.lock().unwrap().recv();
        }
    }

    impl Scratch for Arc<Mutex<mpsc::Receiver<()>>> {
        fn append(&mut self, _: &[u8]) -> io::Result<()> {
            Stopped::wait(self);
            Ok(())
        }

        fn finish(self: Box<Self>) -> Arc<dyn ByteSource> {
            Arc::new(Bytes::new())
        }
    }

    impl Documents for Stopped {
        fn get(&self, _: &Digest) -> Option<Bytes> {
            None
        }

        fn put(&self, _: &Digest, _: &[u8]) {}

        fn resolved(&self, _: &str) -> Option<Digest> {
            None
        }

        fn remember(&self, _: &str, _: &Digest) {}

        fn scratch(&self) -> io::Result<Box<dyn Scratch>> {
            if self.at_once {
                Self::wait(&self.answers);
            }
            Ok(Box::new(Arc::clone(&self.answers)))
        }

        fn dir(&self) -> Option<PathBuf> {
            Some("/the/cache".into())
        }
    }

    fn options() -> Options {
        Options {
            auth_files: Vec::new(),
            places: crate::registry::Places::default(),
            platform: "linux/amd64".parse().unwrap(),
            io_deadline: Duration::from_secs(600),
        }
    }

    #[tokio::test]
    async fn a_cache_that_stops_while_an_archive_is_unpacked_is_named_and_not_the_archive() {
        let file = file(&gzip(b"one"));
        for at_once in [true, false] {
            let (answer, answers) = mpsc::channel();
            let stopped = Arc::new(Stopped { at_once, answers: Arc::new(Mutex::new(answers)) });
            let client = Client::new(options(), stopped).unwrap();
            let client = client.with_resolve_deadline(Duration::from_secs(1));
            let image: ImageRef = format!("oci-archive:{}", file.path().display()).parse().unwrap();
            let error = client.resolve(&image).await.err().unwrap().to_string();
            assert!(error.starts_with("/the/cache") && !error.contains("archive"), "{error}");
            let again = client.resolve(&image).await.err().unwrap().to_string();
            assert!(again.starts_with("/the/cache"), "{again}");
            drop(answer);
        }
    }

    #[test]
    fn an_archive_is_unpacked_once_while_it_is_in_use_and_as_it_is() {
        let (room, unpacking) = (Room { limit: 1 << 20, ..Room::default() }, Unpacking::default());
        let (archives, file) = (Archives::default(), file(&gzip(b"one")));
        let open = || archives.clone().open(file.path(), &room, &unpacking).unwrap();
        let (first, second) = (open(), open());
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(first.place(), Some(Path::new("/room")), "that is what is waited for where it does not come");
        assert!(archives.moved(file.path()) > 0 && archives.moved(Path::new("/another")) == 0);
        assert_eq!(room.asked.load(Ordering::Relaxed), 1);
        std::fs::write(file.path(), gzip(b"other")).unwrap();
        assert_eq!((all(&*open()), all(&*first)), ("other".into(), "one".into()));
        drop((first, second));
        let asked = room.asked.load(Ordering::Relaxed);
        drop(open());
        assert_eq!(room.asked.load(Ordering::Relaxed), asked + 1, "nobody had it any more");
    }
}
