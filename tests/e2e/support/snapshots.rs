//! A snapshotter, and as much of a client of its gRPC as containerd is: a message is fields of text, and maps of text.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::command::{ends, run, send};
use super::lab::{CRFS, Lab};
use super::mount::until_gone;
use super::podman::detach_below;

/// A running `crfs snapshotter serve`. It, its server of layers and all that is mounted below its directory end when it is dropped.
pub(crate) struct Snapshotter {
    root: PathBuf,
    cache: PathBuf,
    front: Option<Child>,
}

/// Number and message of gRPC's status.
pub(crate) type Refused = (u16, String);

pub(crate) const EXISTS: u16 = 6;

impl Snapshotter {
    #[track_caller]
    pub(crate) fn new(lab: &Lab) -> Self {
        let mut snapshotter = Self { root: lab.fresh("snapshotter"), cache: lab.fresh("cache"), front: None };
        snapshotter.serve();
        snapshotter
    }

    /// Starts it, and waits until it says that it answers.
    #[track_caller]
    pub(crate) fn serve(&mut self) {
        let mut command = Command::new(CRFS);
        command.args(["snapshotter", "serve", "--address"]).arg(self.root.join("s.sock"));
        command.arg("--root").arg(self.root.join("r")).arg("--cache-dir").arg(&self.cache);
        let mut front = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(front.stderr.take().unwrap()).lines().map_while(Result::ok);
        let ready = lines.by_ref().any(|line| line.contains("crfs: answering"));
        std::thread::spawn(move || lines.for_each(drop));
        self.front = Some(front);
        assert!(ready, "the snapshotter has ended");
    }

    #[track_caller]
    pub(crate) fn end(&mut self, signal: Signal) {
        let Some(mut front) = self.front.take() else { return };
        send(front.id(), signal);
        ends("the end of the snapshotter", &mut front);
    }

    fn status(&self) -> Option<Value> {
        let layers = self.root.join("r/layers");
        let status = run(Command::new(CRFS).args(["status", "--json", "--root"]).arg(&layers));
        let all: Vec<Value> = serde_json::from_str(&status.good().then(|| status.ok())?).unwrap();
        all.into_iter().find(|one| one["dir"].as_str().map(Path::new) == Some(&layers))
    }

    /// The server of the layers, and its keeper.
    pub(crate) fn server(&self) -> Option<(u32, u32)> {
        let status = self.status()?;
        let number = |value: &Value| u32::try_from(value.as_u64()?).ok();
        Some((number(&status["pid"])?, number(&status["keeper"])?))
    }

    /// As a restart of the machine does: nothing runs, nothing is mounted.
    #[track_caller]
    pub(crate) fn power_off(&mut self) {
        self.end(Signal::SIGKILL);
        if let Some((server, keeper)) = self.server() {
            send(keeper, Signal::SIGKILL);
            send(server, Signal::SIGKILL);
            // A worker whose keeper is gone starts another one, where it is the faster one.
            until_gone(keeper);
            until_gone(server);
        }
        detach_below(&self.root);
    }

    /// What the server of the layers holds: the reference, and how many layers of it.
    pub(crate) fn held(&self) -> Vec<(String, usize)> {
        let records = fs::read(self.root.join("r/layers/crfs/store.json")).unwrap_or_default();
        let Ok(records) = serde_json::from_slice::<Value>(&records) else { return Vec::new() };
        let images = records["pulled"].as_array().unwrap().iter();
        let held = images.map(|image| {
            let held = image["layers"].as_array().unwrap().iter().filter(|layer| layer["held"] == true).count();
            (image["reference"].as_str().unwrap().to_owned(), held)
        });
        held.filter(|(_, held)| *held > 0).collect()
    }

    /// Calls a method with fields of text by their numbers, and labels.
    pub(crate) fn call(
        &self,
        method: &str,
        fields: &[(u8, &str)],
        labels: &BTreeMap<String, String>,
    ) -> Result<Vec<u8>, Refused> {
        let mut message = Vec::new();
        fields.iter().for_each(|(number, text)| field(&mut message, *number, text.as_bytes()));
        for (key, value) in labels {
            let mut entry = Vec::new();
            field(&mut entry, 1, key.as_bytes());
            field(&mut entry, 2, value.as_bytes());
            field(&mut message, 4, &entry);
        }
        let mut body = vec![0];
        body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        body.extend(message);
        let path = format!("http://localhost/containerd.services.snapshots.v1.Snapshots/{method}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let stream = tokio::net::UnixStream::connect(self.root.join("s.sock")).await.unwrap();
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
            drop(tokio::spawn(connection));
            let request = Request::post(path).body(Full::new(Bytes::from(body))).unwrap();
            let response = sender.send_request(request).await.unwrap();
            let headers = response.headers().clone();
            let body = response.into_body().collect().await.unwrap();
            let trailers = body.trailers().cloned().unwrap_or_default();
            let said =
                |name: &str| trailers.get(name).or_else(|| headers.get(name)).map(|it| it.to_str().unwrap().to_owned());
            match said("grpc-status").unwrap().parse().unwrap() {
                0 => Ok(body.to_bytes().get(5..).unwrap_or_default().to_vec()),
                status => Err((status, said("grpc-message").unwrap_or_default())),
            }
        })
    }

    /// Mounts a snapshot as containerd does, and gives the directory.
    #[track_caller]
    pub(crate) fn mount(&self, lab: &Lab, response: &[u8]) -> PathBuf {
        let mount = fields_of(response).remove(0).1;
        let (mut kind, mut source, mut options) = (String::new(), String::new(), Vec::new());
        for (number, value) in fields_of(&mount) {
            let text = String::from_utf8(value).unwrap();
            match number {
                1 => kind = text,
                2 => source = text,
                4 => options.push(text),
                _ => {}
            }
        }
        let dir = lab.fresh("container");
        let mut command = Command::new("mount");
        if kind != "bind" {
            command.args(["-t", &kind]);
        }
        run(command.arg("-o").arg(options.join(",")).arg(source).arg(&dir)).ok();
        dir
    }
}

impl Drop for Snapshotter {
    fn drop(&mut self) {
        detach_below(self.root.parent().unwrap());
        self.power_off();
    }
}

fn number(bytes: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        bytes.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
        number >>= 7;
    }
    bytes.push(u8::try_from(number).unwrap());
}

fn field(message: &mut Vec<u8>, field: u8, value: &[u8]) {
    message.push(field << 3 | 2);
    number(message, value.len());
    message.extend(value);
}

/// The fields of a message that have a length.
fn fields_of(mut message: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut fields = Vec::new();
    let next = |message: &mut &[u8]| {
        let (mut number, mut shift) = (0_usize, 0);
        loop {
            let (first, rest) = message.split_first().unwrap();
            *message = rest;
            number |= usize::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return number;
            }
            shift += 7;
        }
    };
    while !message.is_empty() {
        let key = next(&mut message);
        assert_eq!(key & 7, 2, "a field of another type");
        let length = next(&mut message);
        let (value, rest) = message.split_at(length);
        fields.push((u8::try_from(key >> 3).unwrap(), value.to_vec()));
        message = rest;
    }
    fields
}
