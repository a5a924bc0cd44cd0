//! A real registry (Debian's docker-registry) on loopback, with a real client's view of it.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::net::TcpSocket;

use super::command::{ends, send, start, until};
use super::counts::{Account, Answers};
use super::lab::Lab;

/// Who may pull from the registries with [`Access::Password`]: as `htpasswd -B` wrote it.
pub(crate) const USER: &str = "crfs";
pub(crate) const PASSWORD: &str = "right horse";
const HTPASSWD: &str = "crfs:$2y$05$qLydprHAsor8pF7O4kGPMOMZkWjvHxyxlav7wLuFvfwdfo85RReca\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Open,
    Password,
}

/// A running docker-registry; killed when dropped.
pub(crate) struct Registry {
    port: u16,
    /// Never listens: keeps the port from everybody else, the registry of another test above all, while the server is stopped.
    _held: TcpSocket,
    config: PathBuf,
    server: Option<Child>,
    account: Arc<Account>,
}

impl Registry {
    #[track_caller]
    pub(crate) fn new(lab: &Lab, access: Access) -> Self {
        let dir = lab.fresh("registry");
        let held = hold_a_port();
        let port = held.local_addr().unwrap().port();
        fs::write(dir.join("htpasswd"), HTPASSWD).unwrap();
        let auth = match access {
            Access::Open => String::new(),
            Access::Password => format!("auth: {{htpasswd: {{realm: crfs, path: {}/htpasswd}}}}\n", dir.display()),
        };
        let config = dir.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}/data}}}}\n\
             http: {{addr: \"127.0.0.1:{port}\"}}\n{auth}",
            dir.display()
        );
        fs::write(&config, text).unwrap();
        let log = access_log(&config);
        let account = Account::new(port, move || answers(&fs::read_to_string(&log).unwrap()));
        let mut registry = Self { port, _held: held, config, server: None, account };
        registry.start();
        registry
    }

    /// Starts it, or starts it again at the same port, and waits until it answers.
    #[track_caller]
    pub(crate) fn start(&mut self) {
        let log = fs::File::create(self.config.with_extension("log")).unwrap();
        let mut command = Command::new("docker-registry");
        let answers = fs::File::options().create(true).append(true).open(access_log(&self.config)).unwrap();
        command.arg("serve").arg(&self.config).stdout(answers).stderr(log);
        let mut server = start(&mut command);
        until("an answer from docker-registry", || {
            assert!(server.try_wait().unwrap().is_none(), "docker-registry ended: see {}", self.config.display());
            TcpStream::connect(("127.0.0.1", self.port)).ok()
        });
        self.server = Some(server);
    }

    /// Kills it: connections are refused from now on.
    pub(crate) fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // What it has answered last may be missing in its log.
            self.account.is_unknown();
            send(server.id(), Signal::SIGKILL);
            ends("the end of docker-registry", &mut server);
        }
    }

    /// Stops its process where it is: connections are taken, but nothing answers.
    pub(crate) fn freeze(&self) {
        self.account.is_unknown();
        send(self.server.as_ref().unwrap().id(), Signal::SIGSTOP);
    }

    pub(crate) fn thaw(&self) {
        send(self.server.as_ref().unwrap().id(), Signal::SIGCONT);
    }

    /// The bytes of a blob that was pushed, wherever to.
    #[track_caller]
    pub(crate) fn blob(&self, digest: &str) -> Vec<u8> {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let path = format!("data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
        fs::read(self.config.with_file_name(path)).unwrap()
    }

    /// The manifest that a tag names.
    #[track_caller]
    pub(crate) fn manifest(&self, repository: &str, tag: &str) -> Value {
        let path = format!("data/docker/registry/v2/repositories/{repository}/_manifests/tags/{tag}/current/link");
        let digest = fs::read_to_string(self.config.with_file_name(path)).unwrap();
        serde_json::from_slice(&self.blob(&digest)).unwrap()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Puts a fixture in, byte for byte as it is, and gives its reference there.
    #[track_caller]
    pub(crate) fn push(&self, lab: &Lab, fixture: &str) -> String {
        self.push_layout(&lab.dir_of(fixture), &fixture.to_lowercase())
    }

    /// Puts in all named images of a layout, with what they refer to: into its storage, which it looks into at each request. Its clients would
    /// rewrite or refuse some of the fixtures (indexes with attestations, Docker's types in a layout, manifests without annotations).
    #[track_caller]
    pub(crate) fn push_layout(&self, layout: &Path, name: &str) -> String {
        let storage = Storage { layout, root: self.config.with_file_name("data/docker/registry/v2"), name };
        let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
        for image in index["manifests"].as_array().unwrap() {
            storage.put(image, image["annotations"]["org.opencontainers.image.ref.name"].as_str());
        }
        format!("{}/{name}:latest", self.host())
    }
}

/// Where docker-registry writes a line for each request that it has answered.
fn access_log(config: &Path) -> PathBuf {
    config.with_extension("answers")
}

/// Those of crfs in such a log: `HOST - USER [TIME] "METHOD PATH HTTP/1.1" STATUS BYTES "REFERER" "AGENT"`.
fn answers(log: &str) -> Answers {
    let mut answers = Answers::default();
    // A line that is being written has no end yet.
    let lines = log.split_inclusive('\n').filter(|line| line.trim_end().ends_with('"') && line.ends_with('\n'));
    for line in lines.filter(|line| line.contains("\"crfs/")) {
        let words: Vec<_> = line.split('"').collect();
        let (status, bytes) = words[2].trim().split_once(' ').unwrap();
        let (status, bytes): (u16, u64) = (status.parse().unwrap(), bytes.parse().unwrap());
        answers.add(status, if words[1].contains("/blobs/") && matches!(status, 200 | 206) { bytes } else { 0 });
    }
    answers
}

/// One repository in the storage of docker-registry (distribution, registry/storage/paths.go).
struct Storage<'a> {
    layout: &'a Path,
    root: PathBuf,
    name: &'a str,
}

impl Storage<'_> {
    /// A manifest or index, and all that it refers to.
    fn put(&self, descriptor: &Value, tag: Option<&str>) {
        let digest = self.blob(descriptor);
        let document: Value = serde_json::from_slice(&fs::read(self.source(&digest)).unwrap()).unwrap();
        let items = |key: &str| document[key].as_array().cloned().unwrap_or_default();
        items("manifests").iter().for_each(|child| self.put(child, None));
        for blob in items("layers").iter().chain(document.get("config")) {
            let digest = self.blob(blob);
            self.link(&format!("_layers/{}", digest.replace(':', "/")), &digest);
        }
        let hex = digest.replace(':', "/");
        self.link(&format!("_manifests/revisions/{hex}"), &digest);
        if let Some(tag) = tag {
            self.link(&format!("_manifests/tags/{tag}/current"), &digest);
            self.link(&format!("_manifests/tags/{tag}/index/{hex}"), &digest);
        }
    }

    fn source(&self, digest: &str) -> PathBuf {
        self.layout.join("blobs").join(digest.replace(':', "/"))
    }

    fn blob(&self, descriptor: &Value) -> String {
        let digest = descriptor["digest"].as_str().unwrap();
        let hex = digest.strip_prefix("sha256:").unwrap();
        let dir = self.root.join("blobs/sha256").join(&hex[..2]).join(hex);
        // One that is there may be read by somebody now.
        if !dir.join("data").exists() {
            fs::create_dir_all(&dir).unwrap();
            fs::copy(self.source(digest), dir.join("data")).unwrap();
        }
        digest.to_owned()
    }

    fn link(&self, place: &str, digest: &str) {
        let dir = self.root.join("repositories").join(self.name).join(place);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("link"), digest).unwrap();
    }
}

/// A bound socket that lets a server listen at its port: both ask for SO_REUSEADDR, as every server written in Go does.
fn hold_a_port() -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    socket
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}
