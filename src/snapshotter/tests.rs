//! The snapshotter as a client sees it, over its socket. No layer server runs: what needs one is in tests/e2e.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;

use super::*;
use crate::podman::Paths;
use proto::*;

fn options(root: &Path) -> ServeOptions {
    let log = LogOptions { filter: None, verbosity: 0, quiet: true };
    let layers = LayerServer {
        paths: Paths::new(&layers_dir(root), None),
        cache_dir: root.join("cache"),
        cache_size: None,
        podman: Vec::new(),
        guesses: false,
        allow_other: false,
        metrics_listen: None,
        layers: None,
        log: log.clone(),
    };
    ServeOptions { address: root.join("s.sock"), root: root.to_owned(), layers, log }
}

/// What a call gives: its messages, or its status and message.
type Answered = Result<Vec<Bytes>, (String, String)>;

struct Client {
    runtime: threads::Runtime,
    options: ServeOptions,
}

impl Client {
    /// A front and who asks it, in one process.
    fn new(root: &Path) -> Self {
        let options = options(root);
        let snapshots = Arc::new(prepare(&options).unwrap());
        let listener = bind(&options.address).unwrap();
        let runtime = threads::runtime().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            drop(tokio::spawn(grpc::answer(listener, Arc::new(Api(snapshots)))));
        });
        Self { runtime, options }
    }

    fn raw(&self, path: &str, body: Vec<u8>) -> Answered {
        let (address, path) = (self.options.address.clone(), path.to_owned());
        self.runtime.block_on(async move {
            let stream = tokio::net::UnixStream::connect(address).await.unwrap();
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
            drop(tokio::spawn(connection));
            let request = Request::post(format!("http://localhost{path}")).header("content-type", "application/grpc");
            let response = sender.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap();
            let headers = response.headers().clone();
            let collected = response.into_body().collect().await.unwrap();
            let trailers = collected.trailers().cloned().unwrap_or_default();
            let find = |name: &str| {
                let value = trailers.get(name).or_else(|| headers.get(name));
                value.map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
            };
            if find("grpc-status") != "0" {
                return Err((find("grpc-status"), find("grpc-message")));
            }
            let (mut bytes, mut messages) = (collected.to_bytes(), Vec::new());
            while !bytes.is_empty() {
                let prefix = bytes.split_to(5);
                messages.push(bytes.split_to(u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize));
            }
            Ok(messages)
        })
    }

    fn call(&self, method: &str, message: &impl Message) -> Answered {
        let message = message.encode_to_vec();
        let mut body = BytesMut::new();
        body.put_u8(0);
        body.put_u32(message.len().try_into().unwrap());
        body.put_slice(&message);
        self.raw(&format!("/containerd.services.snapshots.v1.Snapshots/{method}"), body.to_vec())
    }

    fn one<M: Message + Default>(&self, method: &str, message: &impl Message) -> Result<M, String> {
        let mut messages = self.call(method, message).map_err(|(status, _)| status)?;
        Ok(M::decode(messages.remove(0)).unwrap())
    }

    fn prepare(&self, key: &str, parent: &str) -> Result<Vec<Mount>, String> {
        let request = PrepareSnapshotRequest { key: key.into(), parent: parent.into(), ..Default::default() };
        self.one::<PrepareSnapshotResponse>("Prepare", &request).map(|response| response.mounts)
    }

    fn commit(&self, name: &str, key: &str) -> Result<Empty, String> {
        self.one("Commit", &CommitSnapshotRequest { name: name.into(), key: key.into(), ..Default::default() })
    }

    fn remove(&self, key: &str) -> Result<Empty, String> {
        self.one("Remove", &RemoveSnapshotRequest { key: key.into(), ..Default::default() })
    }

    fn list(&self, filters: &[&str]) -> Result<Vec<String>, String> {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let messages =
            self.call("List", &ListSnapshotsRequest { filters, ..Default::default() }).map_err(|(status, _)| status)?;
        let blocks = messages.into_iter().map(|message| ListSnapshotsResponse::decode(message).unwrap());
        Ok(blocks.flat_map(|block| block.info).map(|info| info.name).collect())
    }
}

const INVALID: &str = "3";
const NOT_FOUND: &str = "5";
const EXISTS: &str = "6";
const PRECONDITION: &str = "9";

#[test]
fn snapshots_are_made_committed_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::new(dir.path());
    assert_eq!(client.options.address.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let mounts = client.prepare("a", "").unwrap();
    assert_eq!((mounts[0].r#type.as_str(), &*mounts[0].options.join(",")), ("bind", "rw,rbind"));
    std::fs::write(Path::new(&mounts[0].source).join("f"), "x").unwrap();
    assert_eq!(client.prepare("a", ""), Err(EXISTS.into()));
    assert_eq!(client.prepare("b", "a"), Err(INVALID.into()), "it is not committed");
    assert_eq!(client.prepare("b", "nothing"), Err(NOT_FOUND.into()));
    client.commit("A", "a").unwrap();
    assert_eq!(client.commit("A", "a"), Err(NOT_FOUND.into()));
    let usage: UsageResponse = client.one("Usage", &UsageRequest { key: "A".into(), ..Default::default() }).unwrap();
    assert!(usage.size > 0 && usage.inodes == 2, "{usage:?}");
    let mounts = client.prepare("b", "A").unwrap();
    let options = &mounts[0].options;
    assert_eq!(mounts[0].r#type, "overlay");
    assert!(options[0].starts_with("workdir=") && options[1].starts_with("upperdir="), "{options:?}");
    assert!(options[2].starts_with("lowerdir=") && options[2].ends_with("snapshots/1/fs"), "{options:?}");
    assert_eq!(client.remove("A"), Err(PRECONDITION.into()), "it has a child");
    client.remove("b").unwrap();
    client.remove("A").unwrap();
    assert!(!dir.path().join("snapshots/1").exists() && !dir.path().join("snapshots/2").exists());
    assert_eq!(client.list(&[]).unwrap(), [""; 0]);
}

#[test]
fn views_are_read_only() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::new(dir.path());
    client.prepare("a", "").unwrap();
    client.commit("A", "a").unwrap();
    client.prepare("b", "A").unwrap();
    client.commit("B", "b").unwrap();
    let view = |key: &str, parent: &str| {
        let request = ViewSnapshotRequest { key: key.into(), parent: parent.into(), ..Default::default() };
        client.one::<ViewSnapshotResponse>("View", &request).unwrap().mounts.remove(0)
    };
    assert_eq!(view("v0", "").options, ["ro", "rbind"]);
    let one = view("v1", "A");
    assert_eq!((one.r#type.as_str(), one.source.ends_with("snapshots/1/fs")), ("bind", true));
    let two = view("v2", "B");
    assert_eq!(two.r#type, "overlay");
    assert!(two.options[0].starts_with("lowerdir=") && two.options[0].contains("snapshots/2/fs:"), "{two:?}");
    assert_eq!(client.commit("V", "v1"), Err(PRECONDITION.into()));
    let mounts =
        |key: &str| client.one::<MountsResponse>("Mounts", &MountsRequest { key: key.into(), ..Default::default() });
    assert_eq!(mounts("v1").unwrap().mounts, [one]);
    assert_eq!(mounts("A").unwrap_err(), PRECONDITION);
}

#[test]
fn what_was_answered_outlives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::new(dir.path());
    client.prepare("a", "").unwrap();
    client.commit("A", "a").unwrap();
    client.prepare("b", "A").unwrap();
    drop(client);
    // What a killed process leaves: a directory of no snapshot, and a socket.
    std::fs::create_dir_all(dir.path().join("snapshots/77/fs")).unwrap();
    let client = Client::new(dir.path());
    assert_eq!(client.list(&[]).unwrap(), ["A", "b"]);
    assert_eq!(client.list(&["kind==committed", "name==x"]).unwrap(), ["A"]);
    assert_eq!(client.list(&["name=x"]), Err(INVALID.into()));
    client.one::<Empty>("Cleanup", &CleanupRequest::default()).unwrap();
    assert!(!dir.path().join("snapshots/77").exists() && dir.path().join("snapshots/2").exists());
    client.prepare("c", "A").unwrap();
    assert!(dir.path().join("snapshots/3").exists(), "no number is given twice");
}

#[test]
fn labels_are_updated_by_field_masks() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::new(dir.path());
    client.prepare("a", "").unwrap();
    let update = |labels: &[(&str, &str)], paths: &[&str]| {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut request = UpdateSnapshotRequest {
            info: Some(Info { name: "a".into(), labels, ..Default::default() }),
            ..Default::default()
        };
        if !paths.is_empty() {
            let mut mask = request.update_mask.take().unwrap_or_default();
            mask.paths = paths.iter().map(|path| (*path).to_owned()).collect();
            request.update_mask = Some(mask);
        }
        let updated: Result<UpdateSnapshotResponse, _> = client.one("Update", &request);
        updated.map(|updated| {
            updated.info.unwrap().labels.into_iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>()
        })
    };
    assert_eq!(update(&[("x", "1"), ("y", "2")], &[]).unwrap(), ["x=1", "y=2"]);
    assert_eq!(update(&[("x", "3"), ("y", "4")], &["labels.x"]).unwrap(), ["x=3", "y=2"]);
    assert_eq!(update(&[("z", "5")], &["labels"]).unwrap(), ["z=5"]);
    assert_eq!(update(&[], &["labels.z"]).unwrap(), [""; 0]);
    assert_eq!(update(&[], &["parent"]), Err(INVALID.into()));
}

#[test]
fn a_layer_that_is_not_lazy_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::new(dir.path());
    let labels = [("containerd.io/snapshot.ref".to_owned(), "sha256:c".to_owned())];
    let request =
        PrepareSnapshotRequest { key: "a".into(), labels: labels.into_iter().collect(), ..Default::default() };
    client.one::<PrepareSnapshotResponse>("Prepare", &request).unwrap();
    client.commit("A", "a").unwrap();
    let stat: StatSnapshotResponse =
        client.one("Stat", &StatSnapshotRequest { key: "A".into(), ..Default::default() }).unwrap();
    let labels = stat.info.unwrap().labels;
    assert!(labels["containerd.io/snapshot/crfs.reason"].contains("crfs snapshotter config"), "{labels:?}");
}

#[test]
fn what_is_no_call_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::new(dir.path());
    let path = "/containerd.services.snapshots.v1.Snapshots/Stat";
    let status = |body: &[u8]| client.raw(path, body.to_vec()).unwrap_err().0;
    assert_eq!(status(b""), INVALID);
    assert_eq!(status(b"\0\0\0\0\x09x"), INVALID, "it is shorter than it says");
    assert_eq!(status(b"\0\0\0\0\x01\xff"), INVALID, "it is no message");
    assert_eq!(status(b"\x01\0\0\0\0"), "12", "it is compressed");
    assert_eq!(status(&vec![0; (4 << 20) + 6]), INVALID, "it is too long");
    assert_eq!(client.raw("/x.Y/Z", vec![0; 5]).unwrap_err().0, "12");
    assert_eq!(client.call("Frob", &Empty {}).unwrap_err().0, "12");
    assert_eq!(client.prepare(&"k".repeat(5000), "").unwrap_err(), INVALID);
}

#[test]
fn owners_are_mapped() {
    let dir = tempfile::tempdir().unwrap();
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let client = Client::new(dir.path());
    let labels =
        ["uid", "gid"].map(|which| (format!("containerd.io/snapshot/{which}mapping"), "0:100000:65536".to_owned()));
    let request =
        PrepareSnapshotRequest { key: "a".into(), labels: labels.into_iter().collect(), ..Default::default() };
    let mount = client.one::<PrepareSnapshotResponse>("Prepare", &request).unwrap().mounts.remove(0);
    assert_eq!(mount.options, ["uidmap=0:100000:65536", "gidmap=0:100000:65536", "rw", "rbind"]);
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&mount.source).unwrap());
    assert_eq!(owner, 100_000);
}

#[test]
fn a_socket_that_somebody_has_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let address = dir.path().join("s.sock");
    let _first = bind(&address).unwrap();
    assert!(matches!(bind(&address), Err(Error::Served { .. })));
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(matches!(bind(&file), Err(Error::Socket { .. })));
    assert_eq!(std::fs::read(&file).unwrap(), b"x");
}

#[test]
fn orphans_go_and_nothing_else() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    let snapshots = prepare(&options(&root)).unwrap();
    let dir = |id: u64| root.join(format!("snapshots/{id}"));
    let make = |key: &str| snapshots.create(table::Kind::Active, key, ("", labels::Labels::new()), None).unwrap();
    make("a");
    make("b");
    // What a killed process has made before it wrote anything down.
    std::fs::create_dir(dir(3)).unwrap();
    snapshots.clean_up();
    assert!(!dir(3).exists() && dir(1).exists());
    make("c");
    snapshots.remove("b").unwrap();
    std::fs::create_dir(dir(2)).unwrap();
    snapshots.clean_up();
    assert!(dir(3).join("fs").exists() && !dir(2).exists());
}

#[test]
fn what_is_no_socket_stays_and_odd_roots_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let address = place.path().join("s.sock");
    let beside = place.path().join("s.sock.new");
    std::fs::write(&beside, b"somebody else's").unwrap();
    assert!(bind(&address).is_err() && std::fs::read(&beside).unwrap() == b"somebody else's");
    std::fs::remove_file(&beside).unwrap();
    drop(UnixListener::bind(&beside).unwrap());
    drop(bind(&address).unwrap());
    for odd in ["a:b", "a,b", "a\\b"] {
        let root = place.path().join(odd);
        assert!(matches!(prepare(&options(&root)), Err(Error::Name { .. })) && !root.exists(), "{odd}");
    }
}
