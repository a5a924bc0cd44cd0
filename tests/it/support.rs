//! A client with short deadlines, documents in memory, and reading a range to its end.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use crfs::blob::{ByteRange, Digest, Documents};
use crfs::registry::{Blob, Client, Error, Freshness, Image, ImageRef, Options, Places};

/// No test waits for longer, whatever is broken.
const HANG_LIMIT: Duration = Duration::from_secs(30);

/// By a paused clock, whatever is tried again at intervals of an hour has been tried again by then.
const LATER: Duration = Duration::from_secs(9 * 3600);

/// Ends a test that hangs.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANG_LIMIT, future).await.expect("the test hangs")
}

/// Between two looks at something: who looks all the time keeps a core from those who work.
pub(crate) async fn pause() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

/// Returns when `happened`, however long that takes.
pub(crate) async fn until(happened: impl Fn() -> bool) {
    within(async {
        while !happened() {
            pause().await;
        }
    })
    .await;
}

/// Lets a paused clock go on by a minute, as it does by itself while all tasks sleep, and the threads of crfs, of which the clock knows nothing, get
/// on meanwhile.
async fn minute() {
    tokio::time::sleep(Duration::from_secs(60)).await;
    tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(1))).await.unwrap();
}

/// Lets a paused clock go on by so many hours.
pub(crate) async fn hours(count: u32) {
    for _ in 0..count * 60 {
        minute().await;
    }
}

/// Lets a paused clock go on until `happened`, which is to be within [`LATER`] by that clock.
pub(crate) async fn until_later(happened: impl Fn() -> bool) {
    let start = tokio::time::Instant::now();
    while !happened() {
        assert!(start.elapsed() < LATER, "it has not happened within {LATER:?} by the paused clock");
        minute().await;
        // The work of a few milliseconds is not to take hours by this clock.
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(4))).await.unwrap();
    }
}

#[derive(Default)]
pub(crate) struct Memory {
    documents: Mutex<HashMap<Digest, Bytes>>,
    names: Mutex<HashMap<String, Digest>>,
}

impl Documents for Memory {
    fn get(&self, digest: &Digest) -> Option<Bytes> {
        self.documents.lock().unwrap().get(digest).cloned()
    }

    fn put(&self, digest: &Digest, document: &[u8]) {
        self.documents.lock().unwrap().insert(*digest, Bytes::copy_from_slice(document));
    }

    fn resolved(&self, name: &str) -> Option<Digest> {
        self.names.lock().unwrap().get(name).copied()
    }

    fn remember(&self, name: &str, digest: &Digest) {
        self.names.lock().unwrap().insert(name.to_owned(), *digest);
    }
}

/// linux/amd64, no credentials, and a deadline that no good registry comes near.
pub(crate) fn options() -> Options {
    Options {
        auth_files: Vec::new(),
        places: Places::default(),
        platform: "linux/amd64".parse().unwrap(),
        io_deadline: Duration::from_secs(20),
    }
}

pub(crate) fn client(options: Options) -> Client {
    Client::new(options, Arc::new(Memory::default())).unwrap()
}

pub(crate) async fn resolve(client: &Client, reference: &str) -> Result<Image, Error> {
    within(client.resolve(&reference.parse::<ImageRef>().unwrap())).await
}

pub(crate) fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).unwrap()
}

pub(crate) async fn read(blob: &Blob, range: ByteRange) -> Result<Vec<u8>, Error> {
    read_with(blob, range, Freshness::Any).await
}

pub(crate) async fn read_with(blob: &Blob, range: ByteRange, freshness: Freshness) -> Result<Vec<u8>, Error> {
    within(async {
        let mut body = blob.stream(range, freshness).await?.only(range);
        let mut bytes = Vec::new();
        while let Some(part) = body.next().await {
            let part = part?;
            assert!(!part.is_empty());
            bytes.extend(part);
        }
        Ok(bytes)
    })
    .await
}

/// The whole text of an error, its sources included.
pub(crate) fn whole_text(error: &Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text += &format!(" {error} {error:?}");
        source = error.source();
    }
    text
}
