//! What the registries of the tests have answered, against what the servers of mounts say that they were answered.
//!
//! Each registry, liar and proxy of the tests has an account here. As a mount ends that its test has made by [`Lab::mount`](super::lab::Lab), its
//! server is asked for its metrics: requests by status, and bytes of layers. They have to be what the registry has counted since that server began.
//! A server still fetches ahead while it is asked, so this is asked until it is so. Where others ask the same registry meanwhile (commands, stores,
//! failed mounts, mounts in other namespaces), what they asked for is in no metrics: nothing is compared then, until nobody is connected to it any more.
//! The same holds for what a server has asked for behind its comparison, and where a registry is killed or stopped, whose log may lack its last lines.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::command::HANG;

/// How long a server that has left may take to close its connections. Later, the next one is not compared.
const CLOSING: Duration = Duration::from_millis(500);

/// Statuses that crfs counts one by one.
const KNOWN: [std::ops::RangeInclusive<u16>; 6] = [200..=200, 206..=206, 301..=303, 307..=308, 400..=429, 500..=504];

/// Requests by their status, and bytes of blobs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answers {
    requests: BTreeMap<String, u64>,
    bytes: u64,
    /// Requests that have got no answer, as far as who asked knows.
    unanswered: u64,
    /// Requests or bodies that failed, and were asked for once more.
    retries: u64,
}

impl Answers {
    /// One more, with so many bytes of a blob.
    pub(crate) fn add(&mut self, status: u16, of_blob: u64) {
        let known = KNOWN.iter().any(|known| known.contains(&status));
        let status = if known { status.to_string() } else { "other".to_owned() };
        *self.requests.entry(status).or_default() += 1;
        self.bytes += of_blob;
    }

    /// Whether a registry has answered that, as a server says what it was answered. An answer may have come after the server had given it up, and a
    /// body may have been left that failed: then the registry may have counted more.
    fn is(&self, answered: &Self) -> bool {
        let count = |of: &Self, status: &String| of.requests.get(status).copied().unwrap_or_default();
        let statuses = || self.requests.keys().chain(answered.requests.keys());
        let fewer = statuses().any(|status| count(answered, status) < count(self, status));
        let total = |of: &Self| of.requests.values().sum::<u64>();
        let whole = self.unanswered == 0 && self.retries == 0;
        let has_bytes = if whole { self.bytes == answered.bytes } else { self.bytes <= answered.bytes };
        !fewer && total(answered) <= total(self) + self.unanswered && has_bytes
    }

    fn since(mut self, before: &Self) -> Self {
        for (status, count) in &before.requests {
            *self.requests.entry(status.clone()).or_default() -= count;
        }
        self.requests.retain(|_, count| *count > 0);
        self.bytes -= before.bytes;
        self
    }

    /// What is in a text of metrics of a host's.
    fn read(&mut self, text: &str, port: u16) {
        for line in text.lines() {
            let Some((labels, count)) = line.rsplit_once(' ') else { continue };
            let label = |name: &str| Some(labels.split_once(&format!("{name}=\""))?.1.split_once('"')?.0);
            if !label("host").is_some_and(|host| host.ends_with(&format!(":{port}"))) {
                continue;
            }
            let count = count.parse::<u64>().unwrap();
            if labels.starts_with("crfs_received_bytes_total{") {
                self.bytes += count;
            } else if labels.starts_with("crfs_retries_total{") {
                self.retries += count;
            } else if labels.starts_with("crfs_requests_total{") {
                match label("status").unwrap() {
                    "none" => self.unanswered += count,
                    status => *self.requests.entry(status.to_owned()).or_default() += count,
                }
            }
        }
    }
}

/// One for each registry that runs.
static ACCOUNTS: Mutex<Vec<Weak<Account>>> = Mutex::new(Vec::new());

pub(crate) struct Account {
    port: u16,
    answered: Box<dyn Fn() -> Answers + Send + Sync>,
    window: Mutex<Window>,
}

#[derive(Default)]
struct Window {
    /// The directories of the mounts that ask.
    mounts: Vec<PathBuf>,
    /// What was answered before them; `None`: others ask as well.
    before: Option<Answers>,
    /// Somebody asks who does not come to an end.
    is_shared: bool,
}

impl Account {
    /// Of whoever listens at that port, and has answered that.
    pub(crate) fn new(port: u16, answered: impl Fn() -> Answers + Send + Sync + 'static) -> Arc<Self> {
        let window = Window { before: Some(Answers::default()), ..Window::default() };
        let account = Arc::new(Self { port, answered: Box::new(answered), window: Mutex::new(window) });
        let mut accounts = ACCOUNTS.lock().unwrap();
        accounts.retain(|account| account.strong_count() > 0);
        accounts.push(Arc::downgrade(&account));
        account
    }

    /// Others ask from now on, for as long as it runs.
    pub(crate) fn is_shared(&self) {
        let mut window = self.window.lock().unwrap();
        (window.before, window.is_shared) = (None, true);
    }

    /// Others have asked, or answers were cut.
    pub(crate) fn is_unknown(&self) {
        self.window.lock().unwrap().before = None;
    }

    fn begin(&self) {
        let is_closed = {
            let window = self.window.lock().unwrap();
            window.before.is_none() && window.mounts.is_empty() && !window.is_shared
        };
        if is_closed && nobody_is_connected(self.port) {
            let answered = (self.answered)();
            self.window.lock().unwrap().before = Some(answered);
        }
    }

    fn is_of(&self, dir: &Path) -> bool {
        self.window.lock().unwrap().mounts.iter().any(|mount| mount == dir)
    }

    /// Compares what the mounts say with what was answered.
    #[track_caller]
    fn compare(&self) {
        let (mounts, before) = {
            let window = self.window.lock().unwrap();
            (window.mounts.clone(), window.before.clone())
        };
        let Some(before) = before.filter(|_| !mounts.is_empty()) else { return };
        let start = Instant::now();
        loop {
            let mut told = Answers::default();
            mounts.iter().for_each(|dir| told.read(&metrics(dir), self.port));
            let answered = (self.answered)().since(&before);
            if told.is(&answered) {
                return;
            }
            assert!(start.elapsed() < HANG, "the metrics of {mounts:?} say {told:?}; the registry says {answered:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(&self, dir: &Path) {
        let mut window = self.window.lock().unwrap();
        window.mounts.retain(|mount| mount != dir);
        window.before = None;
    }
}

/// Those that one of these words names by its port.
fn named(words: &[String]) -> Vec<Arc<Account>> {
    let accounts: Vec<_> = ACCOUNTS.lock().unwrap().iter().filter_map(Weak::upgrade).collect();
    let is_named = |account: &Arc<Account>| {
        let port = format!(":{}", account.port);
        words
            .iter()
            .any(|word| word.split(&port).skip(1).any(|rest| !rest.starts_with(|next: char| next.is_ascii_digit())))
    };
    accounts.into_iter().filter(is_named).collect()
}

/// A mount is about to ask.
pub(crate) fn mounting(image: &str) {
    named(&[image.to_owned()]).iter().for_each(|account| account.begin());
}

/// What came of it.
pub(crate) fn mounted(image: &str, dir: Option<&Path>) {
    for account in named(&[image.to_owned()]) {
        match dir {
            Some(dir) => account.window.lock().unwrap().mounts.push(dir.to_owned()),
            // Nobody can say any more what it has asked for.
            None => account.is_unknown(),
        }
    }
}

/// Another command may ask. `ends`: it comes to an end by itself.
pub(crate) fn other(command: &Command, ends: bool) {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    let mut parts = words.iter().flat_map(|word| word.split_whitespace());
    let leaves_somebody = parts.any(|part| ["mount", "store", "serve"].contains(&part));
    for account in named(&words) {
        if ends && !leaves_somebody { account.is_unknown() } else { account.is_shared() }
    }
}

/// Others ask whoever listens at a port, for as long as it runs.
pub(crate) fn shared(port: u16) {
    named(&[format!(":{port}")]).iter().for_each(|account| account.is_shared());
}

/// Before a mount ends: compares what it says, unless others ask as well.
#[track_caller]
pub(crate) fn settle(dir: &Path) {
    for account in ending(dir) {
        account.compare();
        account.end(dir);
    }
}

/// A mount that cannot say what it has asked for.
pub(crate) fn give_up(dir: &Path) {
    ending(dir).iter().for_each(|account| account.end(dir));
}

fn ending(dir: &Path) -> Vec<Arc<Account>> {
    let accounts: Vec<_> = ACCOUNTS.lock().unwrap().iter().filter_map(Weak::upgrade).collect();
    accounts.into_iter().filter(|account| account.is_of(dir)).collect()
}

/// By its own socket: `crfs metrics` asks all servers of this machine.
#[track_caller]
fn metrics(dir: &Path) -> String {
    let is_its = |state: &PathBuf| {
        let record = fs::read(state.join("mount.json")).ok().and_then(|text| serde_json::from_slice(&text).ok());
        record.is_some_and(|record: Value| record["dir"].as_str().map(Path::new) == Some(dir))
    };
    let mut states = fs::read_dir("/run/crfs").unwrap().map(|state| state.unwrap().path());
    let state = states.find(is_its).unwrap_or_else(|| panic!("no record of a mount at {}", dir.display()));
    let ask = || -> std::io::Result<String> {
        let mut server = UnixStream::connect(state.join("control.sock"))?;
        server.set_read_timeout(Some(HANG))?;
        server.write_all(b"\"metrics\"\n")?;
        let mut line = String::new();
        BufReader::new(server).read_line(&mut line)?;
        Ok(serde_json::from_str::<Value>(&line)?["metrics"].as_str().unwrap_or(&line).to_owned())
    };
    ask().unwrap_or_else(|error| panic!("the server of {} says no metrics: {error}", dir.display()))
}

/// Whether all connections to a port are closed, also on the side of who listens there.
fn nobody_is_connected(port: u16) -> bool {
    const OVER: [&str; 2] = ["06", "0A"];
    let is_open = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        words.get(1).is_some_and(|own| own.ends_with(&format!(":{port:04X}"))) && !OVER.contains(&words[3])
    };
    let start = Instant::now();
    while start.elapsed() < CLOSING {
        if !fs::read_to_string("/proc/net/tcp").unwrap().lines().any(is_open) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    false
}
