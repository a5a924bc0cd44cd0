//! A small real registry in the test process: HTTP/1.1 on a loopback port, repositories in memory, and faults as data.
//!
//! ```text
//! GET /v2/                                 200, or a challenge
//! GET /v2/REPO/manifests/TAG | DIGEST      what was pushed
//! GET /v2/REPO/referrers/DIGEST            what was pushed, if anything was
//! GET /v2/REPO/blobs/DIGEST                whole, or one range; or a redirect to a host that stores
//! GET /storage/DIGEST?sig=N                the same bytes, while N has not expired
//! GET | POST /token                        a token, for the right credentials
//! ```
//!
//! Registries that share contents ([`Registry::start_sharing`]) have their own address, faults and log: one can play
//! the storage or the token server of another.

mod serve;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crfs::blob::Digest;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Bytes that name their own offset: a ramp modulo a prime, so that a wrong offset shows.
pub(crate) fn ramp(length: usize) -> Vec<u8> {
    (0..length).map(|offset| (offset % 251) as u8).collect()
}

/// What a fault is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    Blobs,
    Manifests,
    Referrers,
    Token,
    Storage,
}

/// How long it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lasting {
    Always,
    /// That many requests.
    Times(u32),
    /// As long as the client does not say `Cache-Control: no-cache`.
    UntilNoCache,
}

/// What goes wrong. `Cut`, `Reset` and `Stall` let so many bytes of the body through.
#[derive(Debug, Clone)]
pub(crate) enum Lie {
    Status(u16, Vec<(&'static str, String)>),
    /// 200 with this body.
    Body(Vec<u8>),
    /// `{digest}` and `{sig}` are filled in; a signature is good until [`Registry::expire_signatures`].
    Redirect(String),
    /// 200 and the whole body, whatever range was asked for.
    Whole,
    /// The same, and after so many bytes the connection is closed, or nothing more comes.
    WholeUntil(usize, bool),
    /// The whole body, once there is a permit.
    WholeBehind(Arc<Semaphore>),
    /// So many bytes, and the rest once there is a permit.
    #[allow(dead_code, reason = "for e2e")]
    PartBehind(usize, Arc<Semaphore>),
    /// This status to whoever asks for a range.
    RefusesRanges(u16),
    /// Another Content-Range, or none; the body is what was asked for.
    ContentRange(Option<String>),
    /// The same, but for requests that want it past caches.
    ContentRangeInCaches(&'static str),
    Multipart,
    Header(&'static str, String),
    /// The right number of wrong bytes.
    WrongBytes,
    /// The same, but for requests that want them past caches.
    WrongBytesInCaches,
    /// The last byte of the body is wrong.
    LastByte,
    Cut(usize),
    Reset(usize),
    Stall(usize),
    /// Takes the request and says nothing.
    Silence,
    /// So many bytes of the body at a time, with a pause before each but the first.
    Slow(usize, Duration),
}

#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) on: On,
    pub(crate) lasting: Lasting,
    pub(crate) lie: Lie,
    /// The only paths that it is about are those that hold this.
    pub(crate) about: String,
    /// So many requests come before it.
    pub(crate) spared: u32,
}

impl Fault {
    pub(crate) fn new(on: On, lasting: Lasting, lie: Lie) -> Self {
        Self { on, lasting, lie, about: String::new(), spared: 0 }
    }

    pub(crate) fn always(on: On, lie: Lie) -> Self {
        Self::new(on, Lasting::Always, lie)
    }

    pub(crate) fn times(times: u32, on: On, lie: Lie) -> Self {
        Self::new(on, Lasting::Times(times), lie)
    }

    /// Only for paths that hold a text.
    pub(crate) fn about(self, part: &str) -> Self {
        Self { about: part.to_owned(), ..self }
    }

    /// Only behind so many requests.
    pub(crate) fn behind(self, spared: u32) -> Self {
        Self { spared, ..self }
    }
}

/// Who may read.
#[derive(Debug, Clone)]
pub(crate) enum Auth {
    Anyone,
    Basic {
        user: String,
        password: String,
    },
    /// `realm` is the token server's URL. Without a user it gives tokens to anyone.
    Bearer {
        realm: String,
        user: Option<(String, String)>,
        refresh_token: Option<String>,
        expires_in: Option<i64>,
    },
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With its query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    /// Counts connections from 0.
    pub(crate) connection: u64,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn is_about(&self, digest: &Digest) -> bool {
        self.path.contains(&digest.to_string())
    }
}

/// What was pushed, and what is valid: shared by registries that share contents.
struct Contents {
    documents: BTreeMap<(String, String), (String, Vec<u8>)>,
    blobs: BTreeMap<Digest, Vec<u8>>,
    auth: Auth,
    /// What is answered without a challenge, but for /v2/, to whoever may not read.
    hidden: Option<u16>,
    tokens: BTreeSet<String>,
    last_signature: u64,
    first_valid_signature: u64,
    expired_status: u16,
    issued: u64,
}

/// The status of each answer whose head was sent, and how many bytes of a blob came behind it.
pub(crate) type Answered = Arc<Mutex<Vec<(u16, u64)>>>;

struct State {
    contents: Arc<Mutex<Contents>>,
    faults: Mutex<Vec<Fault>>,
    log: Mutex<Vec<Request>>,
    sent: Mutex<BTreeMap<Digest, u64>>,
    answered: Answered,
    connections: AtomicU64,
}

impl State {
    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap()
    }
}

pub(crate) struct Registry {
    state: Arc<State>,
    address: SocketAddr,
    task: Mutex<Option<JoinHandle<()>>>,
    /// While down: bound, so that nobody else gets the port, but not listening.
    held: Mutex<Option<TcpSocket>>,
}

impl Registry {
    pub(crate) async fn start() -> Self {
        Self::with_contents(Arc::new(Mutex::new(Contents {
            documents: BTreeMap::new(),
            blobs: BTreeMap::new(),
            auth: Auth::Anyone,
            hidden: None,
            tokens: BTreeSet::new(),
            last_signature: 0,
            first_valid_signature: 0,
            expired_status: 403,
            issued: 0,
        })))
    }

    /// Another host with the same contents.
    pub(crate) async fn start_sharing(&self) -> Self {
        Self::with_contents(self.state.contents.clone())
    }

    fn with_contents(contents: Arc<Mutex<Contents>>) -> Self {
        let state = Arc::new(State {
            contents,
            faults: Mutex::default(),
            log: Mutex::default(),
            sent: Mutex::default(),
            answered: Answered::default(),
            connections: AtomicU64::new(0),
        });
        let socket = bind("127.0.0.1:0".parse().unwrap());
        let address = socket.local_addr().unwrap();
        let task = tokio::spawn(serve::accept(state.clone(), socket.listen(1024).unwrap()));
        Self { state, address, task: Mutex::new(Some(task)), held: Mutex::default() }
    }

    /// `127.0.0.1:PORT`
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Stores a manifest or index under its digest and a tag, and blobs.
    pub(crate) fn push(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        manifest: &[u8],
        blobs: &[&[u8]],
    ) -> Digest {
        let digest = Digest::of(manifest);
        let mut contents = self.state.contents();
        for name in [tag.to_owned(), digest.to_string()] {
            contents.documents.insert((repository.to_owned(), name), (media_type.to_owned(), manifest.to_vec()));
        }
        contents.blobs.extend(blobs.iter().map(|blob| (Digest::of(blob), blob.to_vec())));
        digest
    }

    /// What the referrers API answers of a manifest.
    pub(crate) fn push_referrers(&self, repository: &str, subject: &Digest, index: &[u8]) {
        let name = (repository.to_owned(), format!("referrers/{subject}"));
        self.state.contents().documents.insert(name, (OCI_INDEX.to_owned(), index.to_vec()));
    }

    /// Pushes an image of plain layers.
    pub(crate) fn push_image(&self, repository: &str, tag: &str, layers: &[&[u8]]) -> Digest {
        self.push(repository, tag, OCI_MANIFEST, &image_manifest(layers), layers)
    }

    /// Pushes all that an OCI layout holds, under the layout's own tags and digests.
    pub(crate) fn push_layout(&self, repository: &str, layout: &Path) {
        let mut contents = self.state.contents();
        for entry in std::fs::read_dir(layout.join("blobs/sha256")).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            let digest = Digest::of(&bytes);
            let json: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
            let media_type = json.as_ref().and_then(|json| json["mediaType"].as_str()).unwrap_or(OCI_MANIFEST);
            if json.as_ref().is_some_and(|json| json["schemaVersion"] == 2) {
                let name = (repository.to_owned(), digest.to_string());
                contents.documents.insert(name, (media_type.to_owned(), bytes.clone()));
            }
            contents.blobs.insert(digest, bytes);
        }
        let index = std::fs::read(layout.join("index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        for entry in index["manifests"].as_array().unwrap() {
            let digest = entry["digest"].as_str().unwrap().to_owned();
            if let Some(tag) = entry["annotations"]["org.opencontainers.image.ref.name"].as_str() {
                let document = contents.documents[&(repository.to_owned(), digest)].clone();
                contents.documents.insert((repository.to_owned(), tag.to_owned()), document);
            }
        }
    }

    /// Other bytes under the same digest.
    pub(crate) fn replace_blob(&self, digest: &Digest, bytes: &[u8]) {
        self.state.contents().blobs.insert(*digest, bytes.to_vec());
    }

    pub(crate) fn set_auth(&self, auth: Auth) {
        self.state.contents().auth = auth;
    }

    /// The challenge is given at /v2/ alone; elsewhere whoever may not read is answered with `status`.
    pub(crate) fn challenge_at_the_root_only(&self, status: u16) {
        self.state.contents().hidden = Some(status);
    }

    pub(crate) fn fault(&self, fault: Fault) {
        self.state.faults.lock().unwrap().push(fault);
    }

    pub(crate) fn clear_faults(&self) {
        self.state.faults.lock().unwrap().clear();
    }

    /// Blobs are redirected to `storage`, each time with a new signature.
    pub(crate) fn redirect_blobs_to(&self, storage: &Self) {
        self.fault(Fault::always(On::Blobs, Lie::Redirect(storage.url("/storage/{digest}?sig={sig}"))));
    }

    /// All signatures so far are answered with `status`.
    pub(crate) fn expire_signatures(&self, status: u16) {
        let mut contents = self.state.contents();
        contents.first_valid_signature = contents.last_signature + 1;
        contents.expired_status = status;
    }

    pub(crate) fn expire_tokens(&self) {
        self.state.contents().tokens.clear();
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.state.log.lock().unwrap().clone()
    }

    /// Those whose path holds a text.
    pub(crate) fn requests_to(&self, part: &str) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.path.contains(part)).collect()
    }

    /// Bytes of bodies that were sent of a blob.
    pub(crate) fn sent(&self, digest: &Digest) -> u64 {
        self.state.sent.lock().unwrap().get(digest).copied().unwrap_or(0)
    }

    /// All answers so far, and those to come.
    #[allow(dead_code)]
    pub(crate) fn answered(&self) -> Answered {
        Arc::clone(&self.state.answered)
    }

    pub(crate) fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Refuses connections and drops those there are, but keeps the port.
    pub(crate) async fn go_down(&self) {
        let task = self.task.lock().unwrap().take();
        if let Some(task) = task {
            task.abort();
            let _ = task.await;
        }
        *self.held.lock().unwrap() = Some(bind(self.address));
    }

    /// Up again, at the same address.
    pub(crate) fn come_up(&self) {
        if let Some(socket) = self.held.lock().unwrap().take() {
            let listener: TcpListener = socket.listen(1024).unwrap();
            *self.task.lock().unwrap() = Some(tokio::spawn(serve::accept(self.state.clone(), listener)));
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Some(task) = self.task.lock().unwrap().take() {
            task.abort();
        }
    }
}

fn bind(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An OCI manifest with an empty config.
pub(crate) fn image_manifest(layers: &[&[u8]]) -> Vec<u8> {
    let descriptor = |kind: &str, bytes: &[u8]| serde_json::json!({"mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len()});
    let layers: Vec<_> = layers.iter().map(|l| descriptor("application/vnd.oci.image.layer.v1.tar", l)).collect();
    let config = descriptor("application/vnd.oci.image.config.v1+json", b"{}");
    let manifest =
        serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
    serde_json::to_vec(&manifest).unwrap()
}
